"""Looking into the outbox: what came in, what became of it, everything about one event. Reads only, a page at a time."""

import sqlite3
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import msgspec

from sidecar.events import readable
from sidecar.outbox.dead import DeadLetter, Which, dead_page
from sidecar.outbox.records import Failure, State
from sidecar.outbox.store import Store

__all__ = ["STATES", "Found", "FoundPage", "Seen", "name_of", "recent", "show"]

# So many rows one call looks at, whether they match or not: some 20 ms.
SCAN_ROWS: Final = 2_000

STATES: Final = {
    "pending": (State.NORMAL, State.HIGH, State.NORMAL_ASIDE, State.HIGH_ASIDE),
    "delivered": (State.DELIVERED,),
    "dropped": (State.DROPPED,),
    "dead": (State.DEAD,),
}
_STATE_NAMES: Final = {state: name for name, states in STATES.items() for state in states}
_COLUMNS: Final = "id, state, source, user, received_ms, settled_ms, status, reason, attempts, body"


class Found(msgspec.Struct, frozen=True, gc=False):
    """An event and what became of it. ``state`` is one of the four; ``body`` as received, redacting is the caller's."""

    id: int
    state: str
    high: bool | None
    source: int
    user: str | None
    received_ms: int
    settled_ms: int | None
    status: int | None
    reason: str | None
    attempts: int | None
    body: bytes


class FoundPage(NamedTuple):
    """Events, newest first, and the ``before`` of the next page, None at the end.

    A page with few or no events may have another one behind it: a call looks at a bounded number of rows.
    """

    events: list[Found]
    next_before: tuple[int, int] | None


class Seen(NamedTuple):
    """Everything that is known of one event: its attempts while it is pending, its dead letter if it is dead."""

    event: Found
    failure: Failure | None
    letter: DeadLetter | None


def name_of(event: dict[str, Any]) -> str:
    """What people call an event: the name of a ``track``, else its type."""
    name = event.get("event") if event.get("type", "track") == "track" else event.get("type")
    return name if isinstance(name, str) else ""


def recent(
    store: Store,
    *,
    state: str | None = None,
    name: str | None = None,
    user: str | None = None,
    limit: int = 50,
    before: tuple[int, int] | None = None,
    matches: Callable[[dict[str, Any]], bool] | None = None,
) -> FoundPage:
    """The newest events, of one state or of all; settled ones by when they were settled, all others by id.

    ``name`` is compared with ``name_of``, ``user`` with the key of order; ``matches`` may look at the decoded event.
    ``before`` is what the page before has given. Raises ValueError if there is no such state.
    """
    if state is not None and state not in STATES:
        raise ValueError(f"there is no state {state!r}; it is one of {', '.join(STATES)}")
    if state is None or state == "pending":
        rows = _newest(store, before)
    else:
        rows = _newest_settled(store, STATES[state][0], before)
    found: list[Found] = []
    looked_at, row = 0, None
    for row in rows:  # one after the other: a body may have 32 KiB
        looked_at += 1
        if (
            (state is None or _STATE_NAMES[row[1]] == state)
            and (user is None or row[3] == user)
            and _matches(row[-1], name, matches)
        ):
            found.append(_as_found(row))
            if len(found) == limit:
                rows.close()
                return FoundPage(found, _cursor(row, state))
    return FoundPage(found, _cursor(row, state) if looked_at == SCAN_ROWS else None)


def show(store: Store, event_id: int) -> Seen | None:
    """Everything that is known of one event; None if it never was or is pruned."""
    row = store.connection.execute(f"SELECT {_COLUMNS} FROM events WHERE id = ?", (event_id,)).fetchone()
    if row is None:
        return None
    attempts = store.connection.execute("SELECT * FROM retries WHERE id = ?", (event_id,)).fetchone()
    letters = dead_page(store, Which(ids=(event_id,))).letters
    return Seen(_as_found(row), Failure(*attempts) if attempts else None, letters[0] if letters else None)


def _newest(store: Store, before: tuple[int, int] | None) -> sqlite3.Cursor:
    return store.connection.execute(
        f"SELECT {_COLUMNS} FROM events WHERE id < ? ORDER BY id DESC LIMIT ?",
        (before[1] if before else 2**63 - 1, SCAN_ROWS),
    )


def _newest_settled(store: Store, state: State, before: tuple[int, int] | None) -> sqlite3.Cursor:
    settled_ms, event_id = before or (2**63 - 1, 2**63 - 1)
    return store.connection.execute(
        f"SELECT {_COLUMNS} FROM events WHERE state = ? AND state > 3 AND settled_ms <= ?"
        " AND (settled_ms < ? OR id < ?) ORDER BY settled_ms DESC, id DESC LIMIT ?",
        (state, settled_ms, settled_ms, event_id, SCAN_ROWS),
    )


def _cursor(row: Any, state: str | None) -> tuple[int, int]:
    return (0 if state in (None, "pending") else row[5], row[0])


def _matches(body: bytes, name: str | None, matches: Callable[[dict[str, Any]], bool] | None) -> bool:
    if name is None and matches is None:
        return True
    event = readable(body)
    return (name is None or name_of(event) == name) and (matches is None or matches(event))


def _as_found(row: Any) -> Found:
    event_id, state, *rest = row
    high = state in (State.HIGH, State.HIGH_ASIDE) if state < State.DELIVERED else None
    return Found(event_id, _STATE_NAMES[state], high, *rest)
