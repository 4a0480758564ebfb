"""What goes into the outbox and what comes out: plain records, no behaviour.

The states of an event, and the only ways between them::

    accept ──► PENDING ──settle──► DELIVERED ──(pruned after keep_delivered)
       │        ▲  │  └─settle──► DROPPED  ──(pruned likewise; counted for ever)
       │        │  └──settle──► DEAD ──(after keep_dead)──► DROPPED discarded
       └─ bad ──┼─────────────► DEAD
                └──── retry ──── DEAD

A pending row carries its class (normal, high) and whether it is set aside (its user has to wait, and a page of memory
is too precious to hold it) in the same column, so that one partial index over a few bytes finds the next page.
"""

from enum import IntEnum
from typing import Literal, NamedTuple

import msgspec

__all__ = [
    "Accepted",
    "Failure",
    "NewEvent",
    "Page",
    "Remembered",
    "Row",
    "Settlement",
    "State",
]


class State(IntEnum):
    """The ``state`` column. All pending states are below ``DELIVERED``; the set-aside ones are those plus 2."""

    NORMAL = 0
    HIGH = 1
    NORMAL_ASIDE = 2
    HIGH_ASIDE = 3
    DELIVERED = 4
    DROPPED = 5
    DEAD = 6


class NewEvent(NamedTuple):
    """An event that asks to be accepted.

    ``source`` is the number of the source that ``Store.source`` gave, 0 for the default one; ``user`` the key of order
    and memory; ``body`` strict JSON; ``bad`` one sentence if the event is to be stored as dead at once.
    """

    source: int
    high: bool
    user: str | None
    message_id: str
    body: bytes
    bad: str | None = None


class Accepted(NamedTuple):
    """What became of one ``accept``: how many were stored now, and how many were repeats of known message ids."""

    stored: int
    repeated: int


class Failure(msgspec.Struct, frozen=True, gc=False):
    """What is kept of an event's failed attempts, so that patience survives a restart.

    ``attempts`` counts them all; ``counted`` and ``over_ms`` are those that speak against the event itself.
    ``ambiguous`` says of the newest one that PX may have processed it.
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
    """A pending event as a page brings it.

    ``failure`` is None unless it failed before; ``retried_ms`` is when it was a dead letter that somebody retried, or 0.
    """

    id: int
    high: bool
    source: int
    user: str | None
    received_ms: int
    body: bytes
    failure: Failure | None
    retried_ms: int = 0


class Remembered(NamedTuple):
    """What is known of a user of a product; ``known`` is the mapping's own encoding."""

    property_key: str
    user: str
    known: bytes


class Page(NamedTuple):
    """Pending rows in id order, and the memory of their users as far as there is one."""

    rows: list[Row]
    known: list[Remembered]
    more: bool


class Settlement(msgspec.Struct, frozen=True, gc=False):
    """The final word on one pending event.

    ``reason`` is one of the closed lists for dropped and dead, empty for delivered. The rest is for people: the
    status PX gave, a sentence with an excerpt of its answer, how many attempts, when the first one failed, the event's
    name and the payload as sent. ``remember`` is written in the same transaction.
    """

    id: int
    high: bool
    state: Literal[State.DELIVERED, State.DROPPED, State.DEAD]
    reason: str = ""
    status: int | None = None
    detail: str = ""
    attempts: int = 0
    first_failed_ms: int = 0
    name: str = ""
    payload: bytes = b""
    remember: Remembered | None = None
