"""``px-sidecar pause``: stop delivery; accepting goes on."""

import click

from sidecar.cli.asking import control_option, the_daemon
from sidecar.cli.common import json_option, print_json
from sidecar.units import show_count

__all__ = ["pause"]


@click.command()
@control_option
@json_option
def pause(control_flag: str | None, config_flag: str | None, as_json: bool) -> None:
    """Stop delivery to PX; events are still accepted and kept.

    What is in flight comes back; nothing else is sent until `px-sidecar
    resume`, restarts of the daemon and of the host included.

    \b
    Example:
      px-sidecar pause
    """
    status = the_daemon(control_flag, config_flag).post("/v1/pause")
    if as_json:
        print_json(status)
        return
    click.echo(
        f"Delivery is paused; events are still accepted. {show_count(status['pending'])} are pending, "
        f"{show_count(status['in_flight'])} in flight. `px-sidecar resume` goes on."
    )
