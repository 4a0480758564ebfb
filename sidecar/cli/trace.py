"""``px-sidecar trace``: what became of an event, and why it is not in PX."""

import sys
import time
from typing import Any

import click

from sidecar.cli.backend import TIMESTAMP, control_option, open_backend
from sidecar.cli.common import hint, json_option, print_json
from sidecar.cli.px_queries import is_in_px
from sidecar.cli.screen import console, fields, local_time, local_time_ms, printable, table
from sidecar.control.client import ControlApi
from sidecar.units import show_count, show_duration

__all__ = ["trace"]

VIA = {
    "http": "HTTP",
    "unix_http": "HTTP on the Unix socket",
    "ndjson": "the Unix socket, as a line",
    "import": "outbox import",
    "resend": "resend",
    "backfill": "backfill",
}
SETTLED_IN_PX_MS = 15 * 60_000


@click.command()
@click.argument("message_id", metavar="[MESSAGE_ID]", required=False)
@click.option("--user", help="The newest events of this user.")
@click.option("--event", help="The newest events of this name, as `names` shows it.")
@click.option(
    "--since", "since_ms", type=TIMESTAMP, default=0, metavar="WHEN", help="Only later ones: 2h (ago), or a date."
)
@click.option("--limit", type=click.IntRange(1, 100), default=5, show_default=True, help="The most events to show.")
@click.option("--verify", is_flag=True, help="Ask PX whether it shows them; the key needs Read.")
@control_option
@json_option
def trace(
    message_id: str | None,
    user: str | None,
    event: str | None,
    since_ms: int,
    limit: int,
    verify: bool,
    control_flag: str | None,
    config_flag: str | None,
    as_json: bool,
) -> None:
    """Tell the story of an event: why is it not in PX?

    Says when and how it was received, which call decided its account, what
    the mapping makes of it and by which rule, what it waits for, how often it
    failed with the first and the last answer, and how it ended. If there is
    none, it says what was received instead, and exits with 1.

    \b
    Examples:
      px-sidecar trace 0190b3c5-7a4e-7c1e-8f1d-2f6f8f0c1a11
      px-sidecar trace --user u-1 --event "Report Exported" --since 2h
    """
    if message_id is None and user is None and event is None:
        raise click.UsageError("Name the event: a message id, --user or --event.")
    query = {"message_id": message_id, "user": user, "event": event, "since_ms": since_ms}
    with open_backend(control_flag, config_flag) as backend:
        answer = _find(backend, query, limit)
    if verify:
        for story in answer["stories"]:
            requests = story["mapped"]["requests"]
            # An identify or group may have written its user or account only: the last request is then no event.
            if story["state"] == "delivered" and requests and "eventName" in requests[-1]["body"]:
                story["in_px"] = is_in_px(backend, config_flag, requests[-1]["body"])
    if as_json:
        print_json(answer)
    else:
        for number, story in enumerate(answer["stories"]):
            if number:
                click.echo()
            _show(story)
        _show_absent(answer, since_ms)
    if not answer["stories"]:
        sys.exit(1)


def _find(backend: ControlApi, query: dict[str, Any], limit: int) -> dict[str, Any]:
    """Read pages until there are ``limit`` stories: a page examines a bounded number of events, and may be empty."""
    found: dict[str, Any] = {"stories": [], "pruned": []}
    before: str | None = None
    while True:
        page = backend.get("/v1/trace", {**query, "limit": limit - len(found["stories"]), "before": before})
        found["stories"] += page["stories"]
        found["pruned"] += page["pruned"]
        before = page["next"]
        if before is None or len(found["stories"]) >= limit:
            break
    if not found["stories"]:
        found["instead"] = page.get("instead") or backend.get("/v1/trace", {**query, "instead": True})["instead"]
    return found


def _show(story: dict[str, Any]) -> None:
    received = f"{local_time_ms(story['received_ms'])} by {VIA.get(story['via'], 'an earlier release')}"
    failures = story["failures"]
    failed = None
    if failures:
        failed = f"{failures['count']} times; first {local_time_ms(failures['first_ms'])}: {failures['first']}"
        if failures["count"] > 1:
            failed += f" Last {local_time_ms(failures['last_ms'])}: {failures['last']}"
    console().print(
        fields(
            [
                ("event", f"{story['name'] or story['event'].get('type')} (id {story['id']})"),
                ("messageId", story["messageId"]),
                ("user", story["user"] or "none"),
                ("received", received),
                ("account", _account(story["account"], story["id"])),
                ("mapped", _mapped(story["mapped"])),
                *(("changed", f"{change['field']}: {change['what']}") for change in story["mapped"]["changes"]),
                ("failed", failed),
                ("waits for", hint(story["waits_for"] or "") or None),
                ("now" if story["state"] == "pending" else "settled", _ending(story)),
                ("in PX", _verified(story)),
            ]
        )
    )


def _account(account: dict[str, Any] | None, event_id: int) -> str:
    if account is None:
        return "none: no call of this user named one before, and the event names none"
    where = f", from {account['path']}" if account["path"] else ""
    shown = "left out by a rule" if account["id"] is None else account["id"]
    call = account["call"]
    if call is not None:
        return f"{shown}{where} of the {call['type']} call {call['messageId']} ({local_time_ms(call['received_ms'])})"
    own = account["call_id"] in (0, event_id)
    return f"{shown}{where} of {'the event itself' if own else 'a call that is pruned'}"


def _mapped(mapped: dict[str, Any]) -> str:
    rule = f" (by {mapped['rule']})" if mapped["rule"] else ""
    if mapped["dropped"] or mapped["dead"]:
        detail = f": {mapped['detail']}" if mapped["detail"] else ""
        return f"to nothing ({mapped['dropped'] or mapped['dead']}){detail}{rule}"
    paths = ", ".join(f"{request['method']} {request['path']}" for request in mapped["requests"])
    detail = f"; {mapped['detail']}" if mapped["detail"] else ""
    return f"to {mapped['name'] or 'people calls'}{rule}: {paths}{detail}"


def _ending(story: dict[str, Any]) -> str:
    if story["state"] == "pending":
        return f"pending for {show_duration(max(0.0, time.time() - story['received_ms'] / 1000))}"
    text = f"{story['state']} {local_time_ms(story['settled_ms'])}"
    text += f", PX answered {story['status']}" if story["status"] else ""
    text += f", {story['reason']}" if story["reason"] else ""
    return text + (f": {story['detail']}" if story["state"] == "dead" and story.get("detail") else "")


def _verified(story: dict[str, Any]) -> str | None:
    if "in_px" not in story:
        return None
    if story["in_px"]:
        return "yes"
    if time.time() * 1000 - story["settled_ms"] < SETTLED_IN_PX_MS:
        return "not yet: PX shows an event some minutes after it accepted it"
    return (
        "NO, though it answered 201: some plans want the name registered under Administration > Events, and PX drops "
        "events above 1,000 a user and day or 500 a session"
    )


def _show_absent(answer: dict[str, Any], since_ms: int) -> None:
    """Print which events were pruned; if none was found either, what was received instead."""
    for event_id in answer["pruned"]:
        click.echo(
            f"It was accepted as event {event_id} and settled; its row was pruned after outbox.keep_delivered.",
            err=True,
        )
    if answer["stories"] or answer["pruned"]:
        return
    instead = answer["instead"]
    since = f" since {local_time_ms(since_ms)}" if since_ms else ""  # an older one may be there
    click.echo(f"No such event was received{since}. Events received so far: {show_count(instead['events'])}.", err=True)
    for title, rows in (("Similar names", instead.get("names")), ("Newest names", instead.get("newest_names"))):
        if rows:
            click.echo(f"{title}:", err=True)
            cells = [
                (row["name"] or row["type"], show_count(row["events"]), local_time_ms(row["last_ms"])) for row in rows
            ]
            console(stderr=True).print(table(("name", "events", "last"), cells, wide="name"))
    if instead.get("same_user"):
        click.echo("Newest events of this user:", err=True)
        cells = [(row["name"], row["state"], local_time_ms(row["received_ms"])) for row in instead["same_user"]]
        console(stderr=True).print(table(("name", "state", "received"), cells, wide="name"))
    elif "same_user" in instead:
        click.echo("Nothing was received of this user.", err=True)
    newest = instead["refused"].get("newest", [])
    for refusal in newest[:3]:
        click.echo(
            f"Refused {local_time(refusal['at'])} ({refusal['code']}): {printable(refusal['message'])}", err=True
        )
