"""The sampled feed of what happens: filters look at all records, readers get a few per second.

``Feed`` builds a record for each event and outcome, which costs the daemon several percent of a core while a client
reads it. Here a record is built only if a reader asks for such events and has space for one more in this second, so that
a page that stays open costs nothing that can be measured.

Rules
-----
* A filter is applied to every record: an event that matches a reader's filter is never lost among those that do not.
* A reader gets at most ``PER_S`` records a second, and a count each second of how many there were: a sample is called a
  sample.
* Nothing waits for a reader.
"""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import msgspec

from sidecar.events import decode_or_empty, has_name
from sidecar.observe.feed import WHAT, AcceptedEvent, EventOutcome, Redact, accepted_record, outcome_record

__all__ = ["LiveFilter", "LiveReader", "LiveSample"]

PER_S: Final = 10
# What a reader may leave unread. A record holds an event and its payload, by default at most 64 KiB.
QUEUE_RECORDS: Final = 30


class LiveFilter(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Selects records: ``what`` is a list separated by commas, ``text`` is searched in the event as received."""

    what: str | None = None
    name: str | None = None
    user: str | None = None
    reason: str | None = None
    text: str | None = None

    def __post_init__(self) -> None:
        for what in () if self.what is None else self.what.split(","):
            if what not in WHAT:  # it would match nothing, and a stream without records looks like a quiet daemon
                raise ValueError(f"unknown what {what[:40]!r}; use some of {', '.join(WHAT)}")


class _Fact(NamedTuple):
    """The fields that a filter looks at, before a record is built."""

    what: str
    user: str | None
    reason: str
    body: bytes


class LiveReader:
    """One reader: its filter, its unread records, and the counts of the present second."""

    def __init__(self, query: LiveFilter) -> None:
        self._what = None if query.what is None else frozenset(query.what.split(","))
        self._query = query
        self._text = (query.text or "").encode()
        self._unread: deque[dict[str, Any]] = deque()
        self.seen = self.matched = self.shown = 0

    def wants(self, fact: _Fact, event: Callable[[], dict[str, Any]]) -> bool:
        """Count the record, and return whether it is to be built for this reader."""
        self.seen += 1
        query = self._query
        if (
            (self._what is not None and fact.what not in self._what)
            or (query.user is not None and fact.user != query.user)
            or (query.reason is not None and fact.reason != query.reason)
            or (self._text and self._text not in fact.body)
            or (query.name is not None and not has_name(event(), query.name))
        ):
            return False
        self.matched += 1
        return self.shown < PER_S and len(self._unread) < QUEUE_RECORDS

    def put(self, record: dict[str, Any]) -> None:
        """Queue a record that the reader wants."""
        self.shown += 1
        self._unread.append(record)

    def take(self) -> list[dict[str, Any]]:
        """Return the unread records and the counts since the last call, and begin a new second."""
        counts = {"sample": {"seen": self.seen, "matched": self.matched, "shown": self.shown}}
        records = [*self._unread, counts]
        self._unread.clear()
        self.seen = self.matched = self.shown = 0
        return records


class LiveSample:
    """The readers of the sampled feed. ``listening`` is false while there are none."""

    def __init__(self, redact: Callable[[], Redact]) -> None:
        self._redact = redact
        self._readers: list[LiveReader] = []

    @property
    def listening(self) -> bool:
        """True if there are readers."""
        return bool(self._readers)

    @contextmanager
    def subscribe(self, query: LiveFilter) -> Iterator[LiveReader]:
        """Yield a reader for the length of the block. Its owner calls ``take`` once a second."""
        reader = LiveReader(query)
        self._readers.append(reader)
        try:
            yield reader
        finally:
            self._readers.remove(reader)

    def accepted(self, event: AcceptedEvent, now_ms: int) -> None:
        """Report an accepted event."""
        what, reason = ("accepted", "") if event.bad is None else ("dead", "bad_event")
        self._publish(
            _Fact(what, event.user, reason, event.body), lambda: accepted_record(event, self._redact(), now_ms)
        )

    def outcome(self, outcome: EventOutcome, now_ms: int) -> None:
        """Report the outcome of an attempt. The record shows the event as received beside what was sent."""

        def build() -> dict[str, Any]:
            return outcome_record(outcome, now_ms) | {"event": outcome.redacted(self._redact())}

        self._publish(_Fact(outcome.what, outcome.user, outcome.reason, outcome.body), build)

    def _publish(self, fact: _Fact, build: Callable[[], dict[str, Any]]) -> None:
        decoded: list[dict[str, Any]] = []
        record: dict[str, Any] | None = None

        def event_once() -> dict[str, Any]:
            if not decoded:
                decoded.append(decode_or_empty(fact.body))
            return decoded[0]

        for reader in self._readers:
            if reader.wants(fact, event_once):
                record = record or build()
                reader.put(record)
