"""``px-sidecar events``: list, show and discard events."""

from collections.abc import Iterator
from typing import Any

import click
from rich.text import Text

from sidecar.cli.backend import control_option, open_backend
from sidecar.cli.bulk import bulk_options, count_events, event_options, events_of, goes_ahead, near_names, selection_of
from sidecar.cli.common import json_option, print_json
from sidecar.cli.screen import console, fields, json_text, local_time_ms, printable, progress_bar, table_lines
from sidecar.control.client import ControlApi
from sidecar.units import counted, show_count

__all__ = ["events"]

HEADINGS = ("id", "state", "when", "name", "user")
CLASSES = ("high", "normal", "low")
STATES = ("pending", "delivered", "dropped", "dead")


@click.group()
def events() -> None:
    """List, show and discard events in the outbox and its history.

    Bodies of delivered and dropped events are kept for outbox.keep_delivered.
    Works with and without a running daemon.

    \b
    Examples:
      px-sidecar events list --state delivered
      px-sidecar events show 4711
      px-sidecar events discard --name "Debug Ping"
    """


@events.command("list")
@click.option("--state", type=click.Choice(STATES), help="Only events in this state.")
@event_options
@click.option("--class", "class", type=click.Choice(CLASSES), help="Only pending events of this class.")
@click.option("--message-id", help="Only the event with this messageId.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=20, show_default=True, help="Maximum number.")
@control_option
@json_option
def list_(limit: int, control_flag: str | None, config_flag: str | None, as_json: bool, **filters: Any) -> None:
    """List the newest events.

    They are ordered by the time they were accepted; with --state delivered,
    dropped or dead by the time they were settled. --since and --until refer
    to that time.

    \b
    Example:
      px-sidecar events list --user u1 --json | jq .events[0].event
    """
    with open_backend(control_flag, config_flag) as backend:
        pages = _newest(backend, filters, limit)
        if as_json:
            print_json({"events": [event for page in pages for event in page]})
            return
        rows = (
            [
                (
                    event["id"],
                    _state(event),
                    local_time_ms(event["settled_ms"] or event["received_ms"]),
                    event["name"],
                    event["user"],
                )
                for event in page
            ]
            for page in pages
        )
        line = None
        for line in table_lines(HEADINGS, rows, wide=("name", "user"), width=console().width):
            click.echo(line)
        hint = near_names(backend, filters["name"]) if line is None else ""
    if line is None:
        click.echo(f"No events match; delivered events are kept for outbox.keep_delivered.{hint}", err=True)


def _newest(backend: ControlApi, filters: dict[str, Any], limit: int) -> Iterator[list[dict[str, Any]]]:
    """Yield the pages that are not empty, newest events first."""
    listed = 0
    before: str | None = None
    while True:
        page = backend.get("/v1/events", {**filters, "limit": min(1_000, limit - listed), "before": before})
        if page["events"]:
            yield page["events"]
        listed += len(page["events"])
        before = page["next"]
        if before is None or listed >= limit:
            return


@events.command("discard")
@event_options
@click.option("--class", "class", type=click.Choice(CLASSES), help="Only events of this class.")
@click.option("--all", "all_", is_flag=True, help="All pending events.")
@bulk_options
@control_option
@json_option
def discard(
    all_: bool,
    yes: bool,
    dry_run: bool,
    control_flag: str | None,
    config_flag: str | None,
    as_json: bool,
    **selection: Any,
) -> None:
    """Drop pending events that must not be sent.

    They count as dropped (discarded). Select by name, source, user, time of
    receipt or class, or use --all. The number is shown first; on a terminal the verb
    asks. Events in flight are left: PX may have them already.

    \b
    Examples:
      px-sidecar events discard --name "Debug Ping" --dry-run
      px-sidecar events discard --user u1 --since 2h --yes
      px-sidecar events discard --class low
    """
    selection = selection_of(selection, all_=all_, options="--name, --source, --user, --since, --until or --class")
    with open_backend(control_flag, config_flag) as backend:
        count = count_events(backend, "/v1/events/count", selection)
        what = f"{counted(count, 'event', 'is')} pending and selected."
        what += near_names(backend, selection["name"]) if not count else ""
        discarded = in_flight = 0
        if goes := goes_ahead(what, yes=yes or not count, dry_run=dry_run):
            progress, task = progress_bar("discarding", total=count)
            after: int | None = 0
            with progress:
                while after is not None:
                    page = backend.post("/v1/events/discard", {**selection, "after": after})
                    after, discarded, in_flight = page["next"], discarded + page["moved"], in_flight + page["in_flight"]
                    progress.update(task, completed=discarded)
    if as_json:
        print_json({"selected": count, "discarded": discarded, "in_flight": in_flight, "dry_run": dry_run})
        return
    if not goes:
        click.echo("Nothing is discarded (--dry-run)." if dry_run else "Nothing is discarded.")
    else:
        click.echo(_discarded(count, discarded, in_flight))


def _discarded(count: int, discarded: int, in_flight: int) -> str:
    """Return the last line: what happened to each of the events that were counted."""
    text = f"{events_of(discarded)} discarded."
    if in_flight:
        text += f" {show_count(in_flight)} in flight are left; their answers decide."
    if (settled := count - discarded - in_flight) > 0:
        text += f" {show_count(settled)} were settled meanwhile."
    return text


def _state(event: dict[str, Any]) -> str:
    if event["reason"]:
        return f"{event['state']}: {event['reason']}"
    special = event["class"] not in (None, "normal")
    return f"{event['state']}, {event['class']}" if special else str(event["state"])


@events.command("show")
@click.argument("event_id", metavar="ID", type=click.IntRange(1))
@control_option
@json_option
def show(event_id: int, control_flag: str | None, config_flag: str | None, as_json: bool) -> None:
    """Show one event: its state, its attempts, and how it maps now.

    \b
    Example:
      px-sidecar events show 4711
    """
    with open_backend(control_flag, config_flag) as backend:
        event = backend.get(f"/v1/events/{event_id}")
    if as_json:
        print_json(event)
        return
    console().print(
        fields(
            [
                ("id", event["id"]),
                ("state", _state(event)),
                ("name", event["name"]),
                ("user", event["user"]),
                ("messageId", event["messageId"]),
                ("received", local_time_ms(event["received_ms"])),
                ("settled", local_time_ms(event["settled_ms"])),
                ("PX answered", event["status"]),
                ("attempts", event["attempts"]),
                ("first failed", local_time_ms(event["first_failed_ms"]) if "first_failed_ms" in event else None),
                ("last failed", local_time_ms(event["last_failed_ms"]) if "last_failed_ms" in event else None),
                ("why", event.get("detail")),
            ]
        )
    )
    click.echo("event:")
    console().print(Text(json_text(event["event"])), soft_wrap=True)
    _show_mapped(event["mapped"])


def _show_mapped(mapped: dict[str, Any]) -> None:
    """Print the requests that the current mapping makes of the event, and what it changes."""
    for request in mapped.get("requests", []):
        click.echo(f"current mapping: {request['method']} {request['path']}")
        console().print(Text(json_text(request["body"])), soft_wrap=True)
    for ending in ("dropped", "dead"):
        if ending in mapped:
            click.echo(f"current mapping: {ending} ({mapped[ending]})")
    for change in mapped["changes"]:
        click.echo(printable(f"changed: {change['field']}: {change['what']}"))
