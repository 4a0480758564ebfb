"""``px-sidecar tail``: print events and their outcomes as they happen. sidecar/observe/feed.py documents the records."""

import sys
from typing import Any

import click
import msgspec

from sidecar.cli.backend import connect_daemon, control_option
from sidecar.cli.common import json_for, json_option
from sidecar.cli.screen import local_time, printable
from sidecar.errors import NotRunning

__all__ = ["tail"]

WHAT = ("accepted", "retry", "delivered", "dropped", "dead", "refused")
COLORS = {"delivered": "green", "dead": "red", "refused": "red", "retry": "yellow", "dropped": "cyan"}


@click.command()
@click.option("--what", type=click.Choice(WHAT), help="Only records of this kind.")
@click.option("--name", help="Only events of this name.")
@click.option("--user", help="Only events of this user.")
@click.option("--payload/--no-payload", default=True, help="Also print the payload sent to PX.  [default: payload]")
@click.option("--count", "most", metavar="N", type=click.IntRange(1), help="Exit after N records.")
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
    """Print events and their outcomes as they happen, with the payload sent.

    It prints records from now on, until Ctrl-C. If the output is too slow,
    records are skipped and their number is printed. Events pass through the
    privacy rules. With --json each record is one line of JSON.

    \b
    Examples:
      px-sidecar tail --user u1
      px-sidecar tail --what dead --json | jq .detail
    """
    daemon = connect_daemon(control_flag, config_flag)
    filters = {"what": what, "name": name, "user": user}
    shown = 0
    try:
        with daemon.lines("/v1/tail", filters) as records:
            for record in records:
                if record.get("what") == "listening":
                    click.echo("Watching; press Ctrl-C to stop.", err=True)
                    continue
                _print_record(record, payload=payload, as_json=as_json)
                shown += "missed" not in record
                if shown == most:
                    return
    except KeyboardInterrupt:
        return  # the normal way to stop
    raise NotRunning("The daemon has stopped; run `px-sidecar tail` again once it is back.")


def _print_record(record: dict[str, Any], *, payload: bool, as_json: bool) -> None:
    if as_json:
        click.echo(json_for(sys.stdout, msgspec.json.encode(record)))
    elif "missed" in record:
        click.secho(f"… {record['missed']} records skipped: this terminal is too slow", fg="magenta")
    else:
        click.echo(_line(record))
        body = record.get("payload", record.get("event")) if payload else None
        if body is not None:
            click.echo(f"    {printable(msgspec.json.encode(body).decode())}")
    sys.stdout.flush()


def _line(record: dict[str, Any]) -> str:
    what = click.style(f"{record['what']:<9}", fg=COLORS.get(record["what"]))
    text = f"{local_time(record['at'])} {what} {printable(record.get('name', ''))}"
    text += f" of {printable(record['user'])}" if "user" in record else ""
    if "status" in record:
        text += f"  {record['status']}"
    if "reason" in record:
        text += f"  {record['reason']}"
    if record.get("attempts", 1) > 1 or record["what"] == "retry":
        text += f"  attempt {record['attempts']}"
    return text + (f": {printable(record['detail'])}" if record.get("detail") else "")
