"""The live feed behind ``px-sidecar tail``: records of events and their outcomes, for any number of readers.

Rules
-----
* Publishing never waits and never fails. Callers check ``listeners`` before they build a record, so that the feed costs
  nothing without readers.
* A reader that is too slow loses the newest records and gets their number instead: ``{"missed": n}``.

A record has these keys; those that do not apply are left out::

    at         the time, ISO 8601 in UTC
    what       accepted | retry | delivered | dropped | dead | refused
    id         the event's id in the outbox; absent when it is accepted
    messageId, name, user
    reason     of dropped and dead, from the closed lists; of refused, the code of the answer
    status     the HTTP status of PX's answer
    attempts   the number of times it was sent
    detail     one sentence: why it is retried or was refused
    ambiguous  true: the attempt was sent and PX may have processed it
    request    method and path of the last request
    payload    the body of that request, as sent to PX
    event      accepted: the event, redacted by the privacy rules in force

Three records are not about a stored event: ``{"at", "what": "listening"}`` comes first, ``{"missed": n}``, and
``refused``, a request that was not answered with success and of which nothing is stored.
"""

from collections import deque
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import Any, Final, Literal, Protocol, get_args

import msgspec
import trio

from sidecar.events import decode_or_empty, name_of
from sidecar.units import iso_utc

__all__ = ["WHAT", "AcceptedEvent", "EventOutcome", "Feed", "Redact", "What", "accepted_record", "outcome_record"]

What = Literal["accepted", "retry", "delivered", "dropped", "dead", "refused"]
WHAT: Final[tuple[str, ...]] = get_args(What)
"""The kinds of records about events and requests."""

# Each record holds an event's payload, by default of at most 32 KiB, so a full queue takes at most 8 MiB.
QUEUE_RECORDS: Final = 256


class Redact(Protocol):
    """Return an event as the privacy rules show it, given the values in it that are ``hashed`` already."""

    def __call__(self, event: dict[str, Any], hashed: Collection[str] = ()) -> dict[str, Any]: ...


def _already(hashed: str | None) -> list[str]:
    """Decode the hashed values of an event, a JSON list; empty for one that came from no other host."""
    return [] if hashed is None else msgspec.json.decode(hashed, type=list[str])


class AcceptedEvent(Protocol):
    """The fields of an accepted event that the feed reports; ``outbox.NewEvent`` has them."""

    @property
    def source(self) -> int: ...
    @property
    def kind(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def message_id(self) -> str: ...
    @property
    def user(self) -> str | None: ...
    @property
    def body(self) -> bytes: ...
    @property
    def bad(self) -> str | None: ...
    @property
    def hashed(self) -> str | None: ...


class EventOutcome(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The outcome of one attempt to deliver an event: ``retry``, or the event's final state.

    ``request`` is method and path of the last request, empty if none was sent; ``payload`` is its body as sent.
    ``reason`` is from the closed lists for dropped and dead; ``status`` is the HTTP status of PX's answer. ``priority`` is
    the name of its class, ``received_ms`` when it was accepted.
    """

    what: str
    event_id: int
    user: str | None
    body: bytes
    attempts: int
    reason: str = ""
    status: int | None = None
    detail: str = ""
    ambiguous: bool = False
    request: str = ""
    payload: bytes = b""
    priority: str = "normal"
    source: int = 0
    received_ms: int = 0
    hashed: str | None = None

    def redacted(self, redact: Redact) -> dict[str, Any]:
        """Return the event as received, as the privacy rules show it."""
        return redact(decode_or_empty(self.body), _already(self.hashed))


def accepted_record(event: AcceptedEvent, redact: Redact, now_ms: int) -> dict[str, Any]:
    """Return the record of an accepted event, which is on disk."""
    given = decode_or_empty(event.body)
    record = {"at": iso_utc(now_ms), "what": "accepted", "messageId": event.message_id, "name": name_of(given)}
    record |= {"user": event.user} if event.user is not None else {}
    if event.bad is not None:
        record |= {"what": "dead", "reason": "bad_event", "detail": event.bad}
    return record | {"event": redact(given, _already(event.hashed))}


def outcome_record(outcome: EventOutcome, now_ms: int) -> dict[str, Any]:
    """Return the record of a failed attempt that will be retried, or of an event's final state."""
    event = decode_or_empty(outcome.body)
    record: dict[str, Any] = {"at": iso_utc(now_ms), "what": outcome.what, "id": outcome.event_id}
    record |= {"messageId": str(event.get("messageId", "")), "name": name_of(event)}
    record |= {"user": outcome.user} if outcome.user is not None else {}
    record |= {"reason": outcome.reason} if outcome.reason else {}
    record |= {"status": outcome.status} if outcome.status is not None else {}
    record |= {"attempts": outcome.attempts}
    record |= {"detail": outcome.detail} if outcome.detail else {}
    record |= {"ambiguous": True} if outcome.ambiguous else {}
    if outcome.request:
        record |= {"request": outcome.request, "payload": msgspec.Raw(outcome.payload)}
    return record


class Feed:
    """One source and any number of readers; ``listeners`` is their number."""

    def __init__(self) -> None:
        self.listeners = 0
        self._readers: set[_Reader] = set()

    @property
    def queued(self) -> int:
        """The number of records that wait for the slowest reader; 0 without readers."""
        return max((reader.queued for reader in self._readers), default=0)

    def publish(self, record: dict[str, Any]) -> None:
        """Pass a record to every reader. Readers share the object, so it must not be changed afterwards."""
        if self.listeners:
            for reader in self._readers:
                reader.put(record)

    @asynccontextmanager
    async def subscribe(self, capacity: int = QUEUE_RECORDS) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        """Iterate over all records published from now on, without end; up to ``capacity`` wait for the reader."""
        reader = _Reader(capacity)
        self._readers.add(reader)
        self.listeners = len(self._readers)
        try:
            yield reader
        finally:
            self._readers.discard(reader)
            self.listeners = len(self._readers)


class _Reader:
    """The queue of one reader, and the number of records that were lost since the last one that was queued."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._waiting: deque[dict[str, Any]] = deque()
        self._missed = 0
        self._wake = trio.Event()

    @property
    def queued(self) -> int:
        """The number of records that wait for the reader."""
        return len(self._waiting)

    def put(self, record: dict[str, Any]) -> None:
        if len(self._waiting) >= self._capacity:
            self._missed += 1
            return
        # Before the record, so that the gap is reported where it is.
        self._report_missed()
        self._waiting.append(record)
        self._wake.set()

    def _report_missed(self) -> None:
        if self._missed:
            self._waiting.append({"missed": self._missed})
            self._missed = 0

    def __aiter__(self) -> "_Reader":
        return self

    async def __anext__(self) -> dict[str, Any]:
        # A reader that always finds records would otherwise never let other tasks run.
        await trio.lowlevel.checkpoint()
        while not self._waiting:
            self._report_missed()
            if not self._waiting:
                self._wake = trio.Event()
                await self._wake.wait()
        return self._waiting.popleft()
