"""The records that go into the outbox and come out of it: plain data without behavior.

The states of an event and the only transitions between them::

    accept ──► PENDING ──settle──► DELIVERED ──(row pruned after keep_delivered)
       │        ▲  │  └─settle──► DROPPED  ──(likewise; the counters keep counting it)
       │        │  └──settle──► DEAD ──(after keep_dead)──► DROPPED discarded
       └─ bad ──┼─────────────► DEAD
                └──── retry ──── DEAD

The ``state`` column of a pending row also holds its class (low, normal or high) and whether it is *parked*: its user has to
wait, so the row is not held in memory and pages skip it. One column for all three means that one partial index of a few
bytes per row finds the next page.
"""

from collections.abc import Sequence
from enum import IntEnum
from typing import Any, Final, Literal, NamedTuple

import msgspec

from sidecar.mapping import Account, Priority
from sidecar.mapping.values import as_text

__all__ = [
    "PARKED",
    "PENDING",
    "PRIORITY_OF",
    "Accepted",
    "CapUse",
    "EventState",
    "Failure",
    "NewEvent",
    "Page",
    "Remembered",
    "Row",
    "Settlement",
    "attempts_of",
    "columns_of",
    "first_failure",
    "hashed_values",
    "name_and_user",
]


class EventState(IntEnum):
    """The values of the ``state`` column. Pending states are below ``DELIVERED``; a class has one value while its event waits in its
    place, and one while it is parked."""

    LOW_PARKED = -2
    LOW = -1
    NORMAL = 0
    HIGH = 1
    NORMAL_PARKED = 2
    HIGH_PARKED = 3
    DELIVERED = 4
    DROPPED = 5
    DEAD = 6


# The state of an event of each class while it is parked.
PARKED: Final = {
    Priority.LOW: EventState.LOW_PARKED,
    Priority.NORMAL: EventState.NORMAL_PARKED,
    Priority.HIGH: EventState.HIGH_PARKED,
}
# The class of an event in each pending state, and the counter of that class.
PRIORITY_OF: Final = {int(state): priority for priority, state in PARKED.items()} | {
    int(priority): priority for priority in Priority
}
PENDING: Final = {priority: f"pending_{priority.name.lower()}" for priority in Priority}


class NewEvent(msgspec.Struct, frozen=True, gc=False):
    """An event to be accepted.

    ``source`` is the number that ``Store.source`` returned, 0 for the default source. ``user`` is the key of ordering
    and memory, ``body`` strict JSON. ``bad`` is one sentence if the event is to be stored as dead at once, else None.
    ``product`` is the property key of the source; ``kind`` and ``name`` are the type and the name as sent, by which,
    with source and message id, a repeat is recognized.

    ``says`` is the account that an ``identify`` or ``group`` gives its user, and the path where it stands. ``carried``
    is the account of an event from another host: it fills an empty memory, unless ``keeps_memory``, and overwrites
    none. ``memory`` is the account that its user had there: it fills an empty memory in any case. ``hashed`` are the
    values of the event that are hashed already, as a JSON list.
    """

    source: int
    priority: Priority
    user: str | None
    message_id: str
    body: bytes
    bad: str | None = None
    product: str = ""
    kind: str = ""
    name: str = ""
    says: tuple[str, str] | None = None
    via: int = 0
    carried: Account | None = None
    keeps_memory: bool = False
    hashed: str | None = None
    memory: Account | None = None


def columns_of(events: Sequence[tuple[int, NewEvent]]) -> dict[str, Sequence[Any]]:
    """Return what each row holds of its event as the app sent it, by column; the events come with their ids."""
    return {
        "id": [event_id for event_id, _ in events],
        "source": [event.source for _, event in events],
        "user": [event.user for _, event in events],
        "body": [event.body for _, event in events],
    }


def name_and_user(stored: dict[str, Any]) -> tuple[str, str | None]:
    """Return what a bad event is found by, as far as it says so."""
    name, user = stored.get("event"), as_text(stored.get("userId")) or as_text(stored.get("anonymousId")) or ""
    return name if isinstance(name, str) else "", user[:200] or None


class Accepted(NamedTuple):
    """The result of one ``accept``: how many events were stored, and how many repeated a known message id.

    ``repeats`` are the positions of the latter in the call.
    """

    stored: int
    repeated: int
    repeats: tuple[int, ...] = ()

    def stored_of(self, events: Sequence[NewEvent]) -> Sequence[NewEvent]:
        """Return those of the events of the call that were stored."""
        if not self.repeated:
            return events
        repeats = set(self.repeats)
        return [event for position, event in enumerate(events) if position not in repeats]


class Failure(msgspec.Struct, frozen=True, gc=False):
    """The failed attempts of a pending event; stored, so that a restart does not reset its retry limits.

    ``attempts`` counts all of them. ``counted`` and ``over_ms`` cover only those that speak against the event itself.
    ``ambiguous`` is true if PX may have processed the newest one. It is counted and shown by `tail`, and is the only field
    that is not stored: it is False in a record that was read from the outbox.
    """

    id: int
    attempts: int
    first_failed_ms: int
    last_failed_ms: int
    counted: int
    over_ms: int
    detail: str
    ambiguous: bool = False


class Row(NamedTuple):
    """A pending event as a page returns it.

    ``failure`` is None unless an attempt has failed. ``retried_ms`` is when the event was a dead letter and was
    retried, else 0.
    ``account`` is that of the moment of acceptance; None for a row of the first format, which did not store it.
    ``hashed`` are the values that another host has hashed, as a JSON list.
    """

    id: int
    priority: Priority
    source: int
    user: str | None
    received_ms: int
    body: bytes
    failure: Failure | None
    retried_ms: int = 0
    account: Account | None = None
    hashed: str | None = None


class Remembered(NamedTuple):
    """The record of what was sent to PX about one user of one product; ``known`` is encoded by the mapping."""

    property_key: str
    user: str
    known: bytes


class Page(NamedTuple):
    """Pending rows in id order, and the stored memory of their users; ``more`` is true if the page is full."""

    rows: list[Row]
    known: list[Remembered]
    more: bool


def hashed_values(stored: str | None) -> list[str]:
    """Decode ``Row.hashed``; empty for an event that came from no other host."""
    return [] if stored is None else msgspec.json.decode(stored, type=list[str])


class CapUse(NamedTuple):
    """One event counted for ``per_day``: the number of its name, and the UTC day (days since 1970)."""

    number: int
    day: int


class Settlement(msgspec.Struct, frozen=True, gc=False):
    """The final state of one pending event.

    ``reason`` is from the closed lists for dropped and dead, empty for delivered. The other fields are shown to
    operators: PX's status, a sentence with an excerpt of its answer, the number of attempts, the time of the first
    failed one, the event's name and the payload as sent. ``remember`` and ``cap`` are written in the same transaction.
    """

    id: int
    priority: Priority
    state: Literal[EventState.DELIVERED, EventState.DROPPED, EventState.DEAD]
    reason: str = ""
    status: int | None = None
    detail: str = ""
    attempts: int = 0
    first_failed_ms: int = 0
    name: str = ""
    payload: bytes = b""
    remember: Remembered | None = None
    cap: CapUse | None = None


def first_failure(failure: Failure) -> str:
    """Return ``events.history`` of an event whose first attempt has failed: JSON with the first answer.

    The rest is added when the event is settled, because its row of ``retries``, which holds the last answer, is deleted
    then. An event without failures writes nothing.
    """
    return msgspec.json.encode({"first_ms": failure.first_failed_ms, "first": failure.detail}).decode()


def attempts_of(history: str | None, failure: tuple[int, int, int, str] | None) -> dict[str, Any] | None:
    """Return the failed attempts of an event: ``count``, ``first_ms``, ``last_ms``, and the answers ``first`` and ``last``.

    ``failure`` is its row of ``retries`` (attempts, first, last, detail) while there is one. None if nothing failed.
    """
    try:
        stored = msgspec.json.decode(history or "{}", type=dict[str, Any])
    except msgspec.DecodeError:
        stored = {}
    if failure is not None:
        count, first_ms, last_ms, detail = failure
        stored = {"first": detail, **stored, "count": count, "first_ms": first_ms, "last_ms": last_ms, "last": detail}
    return stored if "count" in stored else None
