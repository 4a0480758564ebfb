"""``px-sidecar resume``: start delivery again."""

from typing import Any

import click

from sidecar.cli.backend import connect_daemon, control_option
from sidecar.cli.common import hint, json_option, print_json
from sidecar.cli.reload import note_credential
from sidecar.units import counted

__all__ = ["resume"]


@click.command()
@control_option
@json_option
def resume(control_flag: str | None, config_flag: str | None, as_json: bool) -> None:
    """Start delivery again after `px-sidecar pause`.

    If delivery stopped for another reason (a wrong key, a wrong region, an
    outage), PX is probed at once instead of at the next scheduled probe. While
    the reason persists, delivery stays stopped.

    \b
    Example:
      px-sidecar resume
    """
    daemon = connect_daemon(control_flag, config_flag)
    before = daemon.get("/v1/status")
    status = daemon.post("/v1/resume")
    if as_json:
        print_json(status)
    else:
        click.echo(hint(_outcome(before, status)))
        note_credential(daemon)


def _outcome(before: dict[str, Any], status: dict[str, Any]) -> str:
    """Return one statement: what holds now, and why where nothing is delivered."""
    pending = f"{counted(status['pending'], 'event', 'is')} pending"
    if status["state"] == "open" and status["delivering"]:
        done = "was not stopped" if before["state"] == "open" else "is resumed"
        notes = "".join(f"\nNote: {reason}" for reason in status["reasons"])
        return f"Delivery {done}; {pending}.{notes}"
    reason = status["reasons"][0] if status["reasons"] else "PX has not answered yet."
    if status["state"] in ("paused", "probing"):
        return (
            f"PX is tried at once with one event, and delivery continues if PX takes it; {pending}. Until then it is stopped: "
            f"{reason} " + hint("`px-sidecar status` shows what became of it.")
        )
    return f"No pause is in force, but nothing is delivered yet; {pending}. {reason}"
