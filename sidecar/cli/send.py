"""``px-sidecar send``: send one event as an app does, and report its outcome."""

import sys
import time
from collections.abc import Iterator
from typing import Any, Final

import click
import msgspec

from sidecar.cli.backend import DURATION, connect_daemon, control_option
from sidecar.cli.common import hint, json_option, print_json
from sidecar.cli.px_queries import is_in_px
from sidecar.cli.screen import json_text, printable
from sidecar.client import Client, NotAccepted
from sidecar.control.client import DaemonClient
from sidecar.errors import Failed

__all__ = ["send"]

ANONYMOUS: Final = "px-sidecar-send"
VERIFY_EVERY_S: Final = 2.0
# A socket with a timeout of 0 does not wait at all, and looks like a daemon that has stopped.
MIN_WAIT_S: Final = 1.0
FINAL_STATES: Final = ("delivered", "dropped", "dead")


@click.command()
@click.argument("name")
@click.option("--user", help="The userId; without one the event is anonymous.")
@click.option("--account", help="The account of the user; sent as context.groupId.")
@click.option(
    "--property", "properties", metavar="K=V", multiple=True, help="A property; V is JSON or text; repeatable."
)
@click.option("--wait", is_flag=True, help="Wait for the outcome; exit 1 if it is not delivered.")
@click.option("--verify", is_flag=True, help="Wait, then read it back from PX; the key needs Read.")
@click.option("--timeout", "timeout_s", type=DURATION, default="60s", show_default=True, help="How long to wait.")
@control_option
@json_option
def send(
    name: str,
    user: str | None,
    account: str | None,
    properties: tuple[str, ...],
    wait: bool,
    verify: bool,
    timeout_s: float,
    control_flag: str | None,
    config_flag: str | None,
    as_json: bool,
) -> None:
    """Send the event NAME through the running daemon.

    The event takes the path of every event: Unix socket (without listen.unix
    the control socket), outbox, mapping, PX.
    Without --wait the command ends when the event is on disk.

    \b
    Examples:
      px-sidecar send "Feature Used" --user u1 --property feature=export --wait
      px-sidecar send "Feature Used" --user u1 --account acme --verify
    """
    daemon = connect_daemon(control_flag, config_flag)
    event = {"user": user, "name": name, "account": account, "properties": dict(map(_parse_property, properties))}
    msgspec.json.encode(event)  # raises for arguments that are not text, before anything is sent
    if not wait and not verify:
        message_id = _send(daemon, event)
        if as_json:
            print_json({"what": "accepted", "messageId": message_id})
        else:
            click.echo(f"accepted: it is on disk and {_expected(daemon, event)} ({message_id})")
        return
    record = _send_and_wait(daemon, event, timeout_s)
    if verify and "payload" in record:
        record["verified"] = _is_in_px(daemon, record["payload"], time.monotonic() + timeout_s)
    if as_json:
        print_json(record)
    else:
        _print_outcome(record)
    if record["what"] != "delivered" or record.get("verified") is False:
        sys.exit(1)


def _parse_property(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise click.BadParameter(f"{text!r} is not a property; write KEY=VALUE.", param_hint="--property")
    try:
        return key, msgspec.json.decode(value)
    except (msgspec.DecodeError, RecursionError):
        return key, value


def _expected(daemon: DaemonClient, event: dict[str, Any]) -> str:
    """Return in words what the mapping in force makes of the event."""
    (outcome,) = daemon.post("/v1/map", {"events": [_call(event)]})["results"]
    if "dropped" not in outcome:
        return "will be delivered"
    return f"will be dropped: {outcome['dropped']}. {_why_dropped(outcome['dropped'])}"


def _call(event: dict[str, Any]) -> dict[str, Any]:
    """Return the event as an app sends it."""
    call: dict[str, Any] = {"type": "track", "event": event["name"], "properties": event["properties"]}
    call |= {"userId": event["user"]} if event["user"] is not None else {"anonymousId": ANONYMOUS}
    return call | ({"context": {"groupId": event["account"]}} if event["account"] is not None else {})


def _why_dropped(reason: str) -> str:
    if reason == "no_user":
        return "PX keeps events of known users only; give --user"
    if reason == "suppressed":
        return "`forget --suppress` was run for this user: its events are dropped"
    return hint("`px-sidecar map --explain` shows why")


def _send(daemon: DaemonClient, event: dict[str, Any]) -> str:
    path = daemon.get("/v1/config")["listen"]["unix"]
    if not path:  # apps use HTTP alone, which may ask for a write key that this user does not have
        return str(daemon.post("/v1/send", {"event": _call(event)})["messageId"])
    context = {"groupId": event["account"]} if event["account"] is not None else None
    anonymous = None if event["user"] is not None else ANONYMOUS
    try:
        with Client(path) as client:
            return client.track(
                event["user"], event["name"], event["properties"], context=context, anonymous_id=anonymous
            )
    except NotAccepted as error:
        raise Failed(str(error)) from None


def _send_and_wait(daemon: DaemonClient, event: dict[str, Any], timeout_s: float) -> dict[str, Any]:
    """Return the record of the event's final state. Raises Failed if it has none within ``timeout_s``."""
    # Not by its user: an id that identity.reject lists is none, and the record has no user then.
    with daemon.lines("/v1/tail", {"name": event["name"]}, timeout_s=max(timeout_s, MIN_WAIT_S)) as records:
        try:
            next(records)  # "listening": from here on the feed misses no outcome of this event
        except (StopIteration, TimeoutError):
            raise Failed("The daemon is stopping or does not answer, and nothing was sent; run this again.") from None
        message_id = _send(daemon, event)
        if sys.stderr.isatty():
            click.echo("Accepted; waiting for its end. Ctrl-C stops waiting, and the event is kept.", err=True)
        try:
            return _follow_feed(records, message_id, time.monotonic() + timeout_s)
        except TimeoutError:
            return _from_outbox(daemon, message_id)


def _follow_feed(records: Iterator[Any], message_id: str, deadline_s: float) -> dict[str, Any]:
    """Read the feed up to the event's final record. Raises TimeoutError."""
    for record in records:
        if record.get("messageId") == message_id:
            if record["what"] in FINAL_STATES:
                return dict(record)
            if record["what"] == "retry":
                click.echo(f"attempt {record['attempts']} failed: {printable(record['detail'])}", err=True)
        if time.monotonic() > deadline_s:
            raise TimeoutError
    raise Failed(f"The daemon stopped before the outcome was known; the event is kept ({message_id}).")


def _from_outbox(daemon: DaemonClient, message_id: str) -> dict[str, Any]:
    """Return the event's final state from the outbox, if a slow reader of the feed missed it. Raises Failed if pending."""
    found = daemon.get("/v1/events", {"message_id": message_id, "limit": 1})["events"]
    if found and found[0]["state"] in FINAL_STATES:
        return {"what": found[0]["state"], **found[0]}
    reasons = daemon.get("/v1/status")["reasons"] or [hint("Run `px-sidecar status` for the reason.")]
    raise Failed(f"The event is accepted and kept, but not delivered yet ({message_id}). {reasons[0]}")


def _is_in_px(daemon: DaemonClient, payload: dict[str, Any], deadline_s: float) -> bool:
    """Poll PX until it shows the event or the deadline passes: an event appears some time after it was accepted."""
    while True:
        if is_in_px(daemon, None, payload):
            return True
        if time.monotonic() > deadline_s:
            return False
        time.sleep(VERIFY_EVERY_S)


def _print_outcome(record: dict[str, Any]) -> None:
    what = record["what"]
    if what == "delivered":
        attempts = f" at attempt {record['attempts']}" if record["attempts"] > 1 else ""
        click.echo(f"delivered: PX answered {record.get('status')}{attempts}")
        if "payload" in record:
            click.echo(json_text(record["payload"]))
    else:
        detail = printable(record.get("detail") or f"{_why_dropped(record['reason'])}.")
        click.echo(f"{what}: {record['reason']}. {detail}")
    if "verified" in record:
        click.echo(
            "verified: PX shows the event"
            if record["verified"]
            else "not verified: PX accepted the event but does not show it yet; some plans require its name to be registered "
            "under Administration > Events"
        )
