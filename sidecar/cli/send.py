"""``px-sidecar send``: one event, the way an app sends it; and what became of it."""

import sys
import time
from collections.abc import Iterator
from typing import Any, Final

import click
import msgspec

from sidecar.cli.asking import DURATION, control_option, the_daemon
from sidecar.cli.common import json_option, load_config, print_json
from sidecar.cli.px_asking import ask_px, found_events
from sidecar.cli.screen import json_text, printable
from sidecar.client import Client, NotAccepted
from sidecar.control.client import Daemon
from sidecar.errors import Failed
from sidecar.px import read_events

__all__ = ["send"]

VERIFY_EVERY_S: Final = 2.0
VERIFY_WINDOW_MS: Final = 60_000
FINAL: Final = ("delivered", "dropped", "dead")


@click.command()
@click.argument("name")
@click.option("--user", help="The userId; without one the event is anonymous.")
@click.option("--account", help="The account of the user, as context.groupId.")
@click.option(
    "--property", "properties", metavar="K=V", multiple=True, help="A property; V is JSON or text. Repeatable."
)
@click.option("--wait", is_flag=True, help="Wait for what becomes of it; exit 1 if it is not delivered.")
@click.option("--verify", is_flag=True, help="Wait, then read it back from PX (the key needs Read).")
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

    It goes the way of every event: the Unix socket, the outbox, the mapping,
    PX. Without --wait the verb ends once the event is on disk.

    \b
    Examples:
      px-sidecar send "Feature Used" --user u1 --property feature=export --wait
      px-sidecar send "Feature Used" --user u1 --account acme --verify
    """
    daemon = the_daemon(control_flag, config_flag)
    event = {"user": user, "name": name, "account": account, "properties": dict(map(_property, properties))}
    if not wait and not verify:
        message_id = _send(daemon, event)
        if as_json:
            print_json({"what": "accepted", "messageId": message_id})
        else:
            click.echo(f"accepted: it is on disk and will be delivered ({message_id})")
        return
    record = _send_and_wait(daemon, event, timeout_s)
    if verify and "payload" in record:
        record["verified"] = _verified(config_flag, record["payload"], time.monotonic() + timeout_s)
    if as_json:
        print_json(record)
    else:
        _show(record)
    if record["what"] != "delivered" or record.get("verified") is False:
        sys.exit(1)


def _property(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise click.BadParameter(f"{text!r} is no property; write KEY=VALUE.", param_hint="--property")
    try:
        return key, msgspec.json.decode(value)
    except msgspec.DecodeError:
        return key, value


def _send(daemon: Daemon, event: dict[str, Any]) -> str:
    path = daemon.get("/v1/config")["listen"]["unix"]
    context = {"groupId": event["account"]} if event["account"] is not None else None
    anonymous = None if event["user"] is not None else "px-sidecar-send"
    try:
        with Client(path) as client:
            return client.track(
                event["user"], event["name"], event["properties"], context=context, anonymous_id=anonymous
            )
    except NotAccepted as error:
        raise Failed(str(error)) from None


def _send_and_wait(daemon: Daemon, event: dict[str, Any], timeout_s: float) -> dict[str, Any]:
    """The record of the event's final outcome. Raises Failed if there is none in time."""
    chosen = {"user": event["user"]} if event["user"] is not None else {"name": event["name"]}
    with daemon.lines("/v1/tail", chosen, patience_s=timeout_s) as records:
        next(records)  # from here on nothing is missed
        message_id = _send(daemon, event)
        try:
            return _outcome(records, message_id, time.monotonic() + timeout_s)
        except TimeoutError:
            return _from_outbox(daemon, message_id)


def _outcome(records: Iterator[Any], message_id: str, deadline_s: float) -> dict[str, Any]:
    """Follow the feed to the event's last record. Raises TimeoutError."""
    for record in records:
        if record.get("messageId") == message_id:
            if record["what"] in FINAL:
                return dict(record)
            if record["what"] == "retry":
                click.echo(f"attempt {record['attempts']} failed: {printable(record['detail'])}", err=True)
        if time.monotonic() > deadline_s:
            raise TimeoutError
    raise Failed(f"The daemon stopped meanwhile; the event is kept ({message_id}).")


def _from_outbox(daemon: Daemon, message_id: str) -> dict[str, Any]:
    """What the outbox knows of an event whose outcome the feed has not told, or not to us."""
    found = daemon.get("/v1/events", {"message_id": message_id, "limit": 1})["events"]
    if found and found[0]["state"] in FINAL:
        return {"what": found[0]["state"], **found[0]}
    reasons = daemon.get("/v1/status")["reasons"] or ["Look at `px-sidecar status`."]
    raise Failed(f"The event is accepted and kept, but not delivered yet ({message_id}). {reasons[0]}")


def _verified(config_flag: str | None, payload: dict[str, Any], deadline_s: float) -> bool:
    """Whether PX shows the event, asked again and again: it may take a while to appear there."""
    config = load_config(config_flag)
    request = read_events(
        event_name=payload["eventName"],
        user_id=payload["identifyId"],
        from_ms=payload["date"] - VERIFY_WINDOW_MS,
        until_ms=payload["date"] + VERIFY_WINDOW_MS,
        page_size=1_000,
    )
    while True:
        found = found_events(ask_px(config, [request])[0])["customEvents"]
        if any(one.get("date") == payload["date"] for one in found if isinstance(one, dict)):
            return True
        if time.monotonic() > deadline_s:
            return False
        time.sleep(VERIFY_EVERY_S)


def _show(record: dict[str, Any]) -> None:
    what = record["what"]
    if what == "delivered":
        attempts = f" at attempt {record['attempts']}" if record["attempts"] > 1 else ""
        click.echo(f"delivered: PX answered {record.get('status')}{attempts}")
        if "payload" in record:
            click.echo(json_text(record["payload"]))
    else:
        detail = printable(record.get("detail") or "`px-sidecar map` shows why.")
        click.echo(f"{what}: {record['reason']}. {detail}")
    if "verified" in record:
        click.echo(
            "verified: PX shows the event"
            if record["verified"]
            else "not verified: PX took the event, but does not show it (yet); some plans want its name registered "
            "under Administration > Events"
        )
