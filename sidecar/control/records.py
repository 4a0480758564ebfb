"""The records of the live feed (``px-sidecar tail``), and events as people may see them.

A record of the feed has these keys; those that do not apply are left out::

    at         when, ISO 8601 in UTC
    what       accepted | retry | delivered | dropped | dead
    id         of the event in the outbox; not known yet when it is accepted
    messageId, name, user
    reason     of dropped and dead, from the closed lists
    status     what PX answered
    attempts   how often it was sent
    detail     one sentence: why it is tried again, or refused
    request    method and path of the last request
    payload    the body of that request, as PX got it
    event      accepted: the event, as today's privacy rules let people see it

Two records are not about an event: ``{"at", "what": "listening"}`` comes first, and ``{"missed": n}`` stands for what a
slow reader has lost.
"""

from collections.abc import Callable
from typing import Any

import msgspec

from sidecar.control.status import iso
from sidecar.deliver.order import Item
from sidecar.deliver.prepared import Prepared
from sidecar.events import decode_stored
from sidecar.outbox import Failure, NewEvent, Settlement, State
from sidecar.outbox.lookup import Found, Seen, name_of

__all__ = ["accepted_record", "decoded", "found_event", "outcome_record", "retry_record", "seen_event"]

Redact = Callable[[dict[str, Any]], dict[str, Any]]


def accepted_record(event: NewEvent, redact: Redact, now_ms: int) -> dict[str, Any]:
    """An event was accepted: it is on disk."""
    given = decoded(event.body)
    record = {"at": iso(now_ms), "what": "accepted", "messageId": event.message_id, "name": name_of(given)}
    record |= {"user": event.user} if event.user is not None else {}
    if event.bad is not None:
        record |= {"what": "dead", "reason": "bad_event", "detail": event.bad}
    return record | {"event": redact(given)}


def outcome_record(item: Item, settlement: Settlement, now_ms: int) -> dict[str, Any]:
    """An event has its final answer."""
    record = _about(item, settlement.state.name.lower(), now_ms)
    record |= {"reason": settlement.reason} if settlement.reason else {}
    record |= {"status": settlement.status} if settlement.status is not None else {}
    record |= {"attempts": settlement.attempts}
    record |= {"detail": settlement.detail} if settlement.detail else {}
    return record | ({} if settlement.state is State.DROPPED else _sent(item))


def retry_record(item: Item, failure: Failure, now_ms: int) -> dict[str, Any]:
    """An attempt failed, and the event will be sent again."""
    record = _about(item, "retry", now_ms) | {"attempts": failure.attempts, "detail": failure.detail}
    return record | ({"ambiguous": True} if failure.ambiguous else {})


def _about(item: Item, what: str, now_ms: int) -> dict[str, Any]:
    event = decoded(item.row.body)
    record: dict[str, Any] = {"at": iso(now_ms), "what": what, "id": item.id}
    record |= {"messageId": str(event.get("messageId", "")), "name": name_of(event)}
    return record | ({"user": item.row.user} if item.row.user is not None else {})


def decoded(body: bytes) -> dict[str, Any]:
    """The event of a row; nothing of it if the file was damaged there, which its outcome tells."""
    try:
        return decode_stored(body)
    except msgspec.DecodeError:
        return {}


def _sent(item: Item) -> dict[str, Any]:
    prepared: Prepared | None = item.prepared
    if prepared is None or prepared.walk is None:
        return {}
    request = prepared.walk.current
    return {"request": f"{request.method} {request.path}", "payload": msgspec.Raw(request.body)}


def found_event(found: Found, redact: Redact) -> dict[str, Any]:
    """An event of the outbox in a list: what became of it, and the event as today's privacy rules let people see it."""
    event = decoded(found.body)
    return {
        "id": found.id,
        "state": found.state,
        "class": None if found.high is None else "high" if found.high else "normal",
        "name": name_of(event),
        "user": found.user,
        "messageId": event.get("messageId"),
        "received_ms": found.received_ms,
        "settled_ms": found.settled_ms,
        "reason": found.reason,
        "status": found.status,
        "attempts": found.attempts,
        "event": redact(event),
    }


def seen_event(seen: Seen, redact: Redact) -> dict[str, Any]:
    """Everything about one event: as in a list, with its failed attempts while it is pending, and why it is dead."""
    event = found_event(seen.event, redact)
    if seen.failure is not None:
        failure = seen.failure
        event |= {"attempts": failure.attempts, "detail": failure.detail}
        event |= {"first_failed_ms": failure.first_failed_ms, "last_failed_ms": failure.last_failed_ms}
    if seen.letter is not None:
        letter = seen.letter
        event |= {"detail": letter.detail, "attempts": letter.attempts}
        event |= {"first_failed_ms": letter.first_ms, "last_failed_ms": letter.last_ms}
    return event
