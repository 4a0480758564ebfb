"""``px-sidecar resume``: start delivery again."""

import click

from sidecar.cli.asking import control_option, the_daemon
from sidecar.cli.common import json_option, print_json
from sidecar.units import show_count

__all__ = ["resume"]


@click.command()
@control_option
@json_option
def resume(control_flag: str | None, config_flag: str | None, as_json: bool) -> None:
    """Start delivery again after `px-sidecar pause`.

    A pause for another reason (a wrong key, a wrong region) and an outage are
    probed at once in place of waiting for the next probe; if the reason is
    still there, delivery stays as it was.

    \b
    Example:
      px-sidecar resume
    """
    status = the_daemon(control_flag, config_flag).post("/v1/resume")
    if as_json:
        print_json(status)
        return
    click.echo(f"Delivery goes on; {show_count(status['pending'])} events are pending.")
    for reason in status["reasons"]:
        click.echo(f"But: {reason}")
