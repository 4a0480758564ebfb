"""``px-sidecar events``: look into the outbox and its history."""

from typing import Any

import click
from rich.text import Text

from sidecar.cli.asking import control_option, reach
from sidecar.cli.common import json_option, print_json
from sidecar.cli.screen import console, fields, json_text, moment_ms, table
from sidecar.control.client import Asked

__all__ = ["events"]

STATES = ("pending", "delivered", "dropped", "dead")


@click.group()
def events() -> None:
    """Look into the outbox and its history.

    Bodies of delivered and dropped events are kept for outbox.keep_delivered.
    Works with and without a running daemon.

    \b
    Examples:
      px-sidecar events list --state delivered
      px-sidecar events show 4711
    """


@events.command("list")
@click.option("--state", type=click.Choice(STATES), help="Only those in this state.")
@click.option("--name", help="Only events of this name.")
@click.option("--user", help="Only events of this user.")
@click.option("--message-id", help="Only the event with this messageId.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=20, show_default=True, help="How many at most.")
@control_option
@json_option
def list_(
    state: str | None,
    name: str | None,
    user: str | None,
    message_id: str | None,
    limit: int,
    control_flag: str | None,
    config_flag: str | None,
    as_json: bool,
) -> None:
    """List the newest events.

    Settled ones are ordered by when they were settled if a state is chosen,
    else all by when they were accepted.

    \b
    Example:
      px-sidecar events list --user u1 --json | jq .events[0].event
    """
    chosen = {"state": state, "name": name, "user": user, "message_id": message_id}
    with reach(control_flag, config_flag) as asked:
        found = _newest(asked, chosen, limit)
    if as_json:
        print_json({"events": found})
        return
    if not found:
        click.echo("There are no such events; what was delivered is kept for outbox.keep_delivered.", err=True)
        return
    rows = [
        (one["id"], _state(one), moment_ms(one["settled_ms"] or one["received_ms"]), one["name"], one["user"])
        for one in found
    ]
    console().print(table(("id", "state", "when", "name", "user"), rows, wide="name"))


def _newest(asked: Asked, chosen: dict[str, str | None], limit: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    before: str | None = None
    while True:
        page = asked.get("/v1/events", {**chosen, "limit": min(1_000, limit - len(found)), "before": before})
        found += page["events"]
        before = page["next"]
        if before is None or len(found) >= limit or (chosen["message_id"] and found):
            return found


def _state(one: dict[str, Any]) -> str:
    if one["reason"]:
        return f"{one['state']}: {one['reason']}"
    return f"{one['state']}, high" if one["class"] == "high" else str(one["state"])


@events.command("show")
@click.argument("event_id", metavar="ID", type=click.IntRange(1))
@control_option
@json_option
def show(event_id: int, control_flag: str | None, config_flag: str | None, as_json: bool) -> None:
    """Show all that is known of one event.

    \b
    Example:
      px-sidecar events show 4711
    """
    with reach(control_flag, config_flag) as asked:
        one = asked.get(f"/v1/events/{event_id}")
    if as_json:
        print_json(one)
        return
    console().print(
        fields(
            [
                ("id", one["id"]),
                ("state", _state(one)),
                ("name", one["name"]),
                ("user", one["user"]),
                ("messageId", one["messageId"]),
                ("received", moment_ms(one["received_ms"])),
                ("settled", moment_ms(one["settled_ms"])),
                ("PX answered", one["status"]),
                ("attempts", one["attempts"]),
                ("first failed", moment_ms(one["first_failed_ms"]) if "first_failed_ms" in one else None),
                ("last failed", moment_ms(one["last_failed_ms"]) if "last_failed_ms" in one else None),
                ("why", one.get("detail")),
            ]
        )
    )
    click.echo("event:")
    console().print(Text(json_text(one["event"])), soft_wrap=True)
    _show_mapped(one["mapped"])


def _show_mapped(mapped: dict[str, Any]) -> None:
    """What today's mapping makes of the event, and what it had to change."""
    for request in mapped.get("requests", []):
        click.echo(f"today's mapping: {request['method']} {request['path']}")
        console().print(Text(json_text(request["body"])), soft_wrap=True)
    for ending in ("dropped", "dead"):
        if ending in mapped:
            click.echo(f"today's mapping: {ending} ({mapped[ending]})")
    for change in mapped["changes"]:
        click.echo(f"changed: {change['field']}: {change['what']}")
