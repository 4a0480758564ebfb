"""``px-sidecar pause``: stop delivery; events are still accepted."""

import click

from sidecar.cli.backend import connect_daemon, control_option
from sidecar.cli.common import hint, json_option, print_json
from sidecar.units import counted, show_count

__all__ = ["pause"]


@click.command()
@control_option
@json_option
def pause(control_flag: str | None, config_flag: str | None, as_json: bool) -> None:
    """Stop delivery to PX; events are still accepted and stored.

    Requests in flight finish; no other is sent until `px-sidecar resume`. The
    pause survives restarts of the daemon and of the host.

    \b
    Example:
      px-sidecar pause
    """
    status = connect_daemon(control_flag, config_flag).post("/v1/pause")
    if as_json:
        print_json(status)
        return
    click.echo(
        hint(
            f"Delivery is paused; events are still accepted. {counted(status['pending'], 'event', 'is')} pending, "
            f"{show_count(status['in_flight'])} in flight. `px-sidecar resume` starts delivery again."
        )
    )
