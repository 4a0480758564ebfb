"""``px-sidecar tail``: events and outcomes as they happen."""

import sys
from typing import Any

import click
import msgspec

from sidecar.cli.asking import control_option, the_daemon
from sidecar.cli.common import json_option
from sidecar.cli.screen import moment, printable
from sidecar.errors import NotRunning

__all__ = ["tail"]

WHAT = ("accepted", "retry", "delivered", "dropped", "dead")
COLOURS = {"delivered": "green", "dead": "red", "retry": "yellow", "dropped": "cyan"}


@click.command()
@click.option("--what", type=click.Choice(WHAT), help="Only these.")
@click.option("--name", help="Only events of this name.")
@click.option("--user", help="Only events of this user.")
@click.option("--payload/--no-payload", default=True, help="Show what PX got, too.  [default: payload]")
@click.option("--count", "most", metavar="N", type=click.IntRange(1), help="End after so many.")
@control_option
@json_option
def tail(
    what: str | None,
    name: str | None,
    user: str | None,
    payload: bool,
    most: int | None,
    control_flag: str | None,
    config_flag: str | None,
    as_json: bool,
) -> None:
    """Watch events and their outcomes live, with the payload PX got.

    It shows what happens from now on, until Ctrl-C; a reader that is too slow
    is told how many it missed. Privacy rules apply. With --json a line of JSON
    for each, as documented in sidecar/control/records.py.

    \b
    Examples:
      px-sidecar tail --user u1
      px-sidecar tail --what dead --json | jq .detail
    """
    daemon = the_daemon(control_flag, config_flag)
    chosen = {"what": what, "name": name, "user": user}
    shown = 0
    try:
        with daemon.lines("/v1/tail", chosen) as records:
            for record in records:
                if record.get("what") == "listening":
                    click.echo("Watching; Ctrl-C ends it.", err=True)
                    continue
                _show(record, payload=payload, as_json=as_json)
                shown += "missed" not in record
                if shown == most:
                    return
    except KeyboardInterrupt:
        return  # the way out
    raise NotRunning("The daemon has stopped; run `px-sidecar tail` again once it is back.")


def _show(record: dict[str, Any], *, payload: bool, as_json: bool) -> None:
    if as_json:
        click.echo(msgspec.json.encode(record).decode())
    elif "missed" in record:
        click.secho(f"… missed {record['missed']} records: this terminal is too slow", fg="magenta")
    else:
        click.echo(_line(record))
        body = record.get("payload", record.get("event")) if payload else None
        if body is not None:
            click.echo(f"    {printable(msgspec.json.encode(body).decode())}")
    sys.stdout.flush()


def _line(record: dict[str, Any]) -> str:
    what = click.style(f"{record['what']:<9}", fg=COLOURS.get(record["what"]))
    text = f"{moment(record['at'])} {what} {printable(record.get('name', ''))}"
    text += f" of {printable(record['user'])}" if "user" in record else ""
    if "status" in record:
        text += f"  {record['status']}"
    if "reason" in record:
        text += f"  {record['reason']}"
    if record.get("attempts", 1) > 1 or record["what"] == "retry":
        text += f"  attempt {record['attempts']}"
    return text + (f": {printable(record['detail'])}" if record.get("detail") else "")
