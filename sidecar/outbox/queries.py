"""Queries: list events with their outcomes, and show everything about one event. Reads only, one page per call."""

from typing import Any, Final, NamedTuple

import msgspec

from sidecar.mapping import Account, Priority
from sidecar.outbox.dead import DeadLetter, DeadLetterFilter, dead_page
from sidecar.outbox.records import PRIORITY_OF, EventState, Failure
from sidecar.outbox.selection import ALL_EVENTS, EventFilter, condition_of
from sidecar.outbox.steps import READ_BYTES, SCAN_IDS, SEARCHED_ROWS, last_searchable
from sidecar.outbox.store import Store

__all__ = [
    "COLUMNS",
    "STATES",
    "EventDetail",
    "EventPage",
    "EventRow",
    "event_row",
    "get_event",
    "id_behind",
    "list_events",
    "newest_delivery_ms",
    "pending_range",
]

# Most rows that one call hands over, whether they are selected or not: about 20 ms of the store's thread.
SCAN_ROWS: Final = 2_000
MAX_ID: Final = 2**63 - 2

STATES: Final = {
    "pending": tuple(EventState(state) for state in PRIORITY_OF),
    "delivered": (EventState.DELIVERED,),
    "dropped": (EventState.DROPPED,),
    "dead": (EventState.DEAD,),
}
_STATE_NAMES: Final = {state: name for name, states in STATES.items() for state in states}
COLUMNS: Final = (
    "id, state, source, user, received_ms, settled_ms, status, reason, attempts, account, account_from, account_call,"
    " name, via, hashed, history, body"
)
_NAME: Final = 12  # the position of ``name`` among them
_BODY: Final = 16


class EventRow(msgspec.Struct, frozen=True, gc=False):
    """An event and its outcome so far.

    ``state`` is a key of ``STATES``. ``priority`` is None once the event is settled. ``body`` is as received: the caller
    redacts it before showing it.
    """

    id: int
    state: str
    priority: Priority | None
    source: int
    user: str | None
    received_ms: int
    settled_ms: int | None
    status: int | None
    reason: str | None
    attempts: int | None
    account: Account | None
    name: int | None
    via: int | None
    hashed: str | None
    history: str | None
    body: bytes


class EventPage(NamedTuple):
    """Events, newest first, and the ``before`` of the next page, None at the end.

    A page with few or no events can have a next page: a call examines a bounded number of rows.
    """

    events: list[EventRow]
    next_before: tuple[int, int] | None


class EventDetail(NamedTuple):
    """One event, its failed attempts while it is pending, and its dead letter if it is dead."""

    event: EventRow
    failure: Failure | None
    letter: DeadLetter | None


def newest_bodies(store: Store, *, before: int, limit: int) -> list[tuple[int, bytes]]:
    """Return ids and bodies of the newest events with an id below ``before``, newest first."""
    return store.connection.execute(
        "SELECT id, body FROM events WHERE id < ? ORDER BY id DESC LIMIT ?", (before, limit)
    ).fetchall()


def list_events(
    store: Store,
    *,
    state: str | None = None,
    which: EventFilter = ALL_EVENTS,
    limit: int = 50,
    before: tuple[int, int] | None = None,
) -> EventPage:
    """Return the newest events of one state or of all: settled states ordered by settlement time, the others by id.

    ``before`` is ``next_before`` of the previous page. Raises ValueError for an unknown state.
    """
    if state is not None and state not in STATES:
        raise ValueError(f"unknown state {state!r}; use one of {', '.join(STATES)}")
    if state is None or state == "pending":
        part = _by_id(store, before, pending=state == "pending")
        where = condition_of(store, which, time="received_ms")
    else:
        part = _by_settlement(store, STATES[state][0], before)
        where = condition_of(store, which, time="settled_ms")
    if part is None:
        return EventPage([], None)
    if which.message_id is not None:
        part = _searchable(store, part, settled=state not in (None, "pending"))
    rows = store.connection.execute(
        f"SELECT {COLUMNS} FROM events WHERE {part.text}{where.text} ORDER BY {part.order}",
        [*part.values, *where.values],
    )
    events: list[EventRow] = []
    read_bytes = 0
    for examined, row in enumerate(rows, 1):  # row by row, not fetchall: a body may have 32 KiB
        read_bytes += len(row[_BODY])
        if where.accepts(row[_NAME], row[-1]):
            events.append(event_row(row))
        if len(events) == limit or examined == SCAN_ROWS or read_bytes >= READ_BYTES:
            rows.close()  # an open cursor would keep the WAL from being reset
            return EventPage(events, _cursor(row, state))
    return EventPage(events, part.next_before)


def id_behind(store: Store, at_ms: int) -> int:
    """Return an id behind the events that were received until ``at_ms``, by bisection.

    Ids grow with the time of receipt, but for imported events and after a clock that was set back: then the id is a guess.
    """
    low, high = 0, (store.connection.execute("SELECT max(id) FROM events").fetchone()[0] or 0) + 1
    while low < high:
        middle = (low + high) // 2
        row = store.connection.execute(
            "SELECT id, received_ms FROM events WHERE id >= ? ORDER BY id LIMIT 1", (middle,)
        ).fetchone()
        if row is not None and row[1] <= at_ms:
            low = row[0] + 1
        else:
            high = middle
    return low


def newest_delivery_ms(store: Store) -> int | None:
    """Return when the newest event of the history was delivered (epoch milliseconds); None if there is none."""
    row = store.connection.execute(
        "SELECT settled_ms FROM events WHERE state = ? AND state > 3 ORDER BY settled_ms DESC LIMIT 1",
        (EventState.DELIVERED,),
    ).fetchone()
    return row[0] if row else None


def get_event(store: Store, event_id: int) -> EventDetail | None:
    """Return one event with its attempts or dead letter; None if the id was never used or its row is pruned."""
    row = store.connection.execute(f"SELECT {COLUMNS} FROM events WHERE id = ?", (event_id,)).fetchone()
    if row is None:
        return None
    attempts = store.connection.execute("SELECT * FROM retries WHERE id = ?", (event_id,)).fetchone()
    letters = dead_page(store, DeadLetterFilter(ids=(event_id,))).letters
    return EventDetail(event_row(row), Failure(*attempts) if attempts else None, letters[0] if letters else None)


class _Part(NamedTuple):
    """The rows that one call examines: a condition, its values, their order, and the ``before`` of the next rows."""

    text: str
    values: tuple[int, ...]
    order: str
    next_before: tuple[int, int] | None


def _by_id(store: Store, before: tuple[int, int] | None, *, pending: bool) -> _Part | None:
    """Return the next part in the order of ids, of pending rows alone or of all; None at the end."""
    first, last = pending_range(store) if pending else (0, MAX_ID)
    newest = store.connection.execute(
        "SELECT max(id) FROM events WHERE id < ?", (min(before[1] if before else MAX_ID, last + 1),)
    ).fetchone()[0]
    if newest is None or newest < first:
        return None
    # Ids are dense except where history was pruned: the part begins at a row, so an empty range costs nothing.
    end = newest - SCAN_IDS
    text = "id <= ? AND id > ?" + (" AND state < 4" if pending else "")
    return _Part(text, (newest, end), "id DESC", (0, end + 1) if end >= first else None)


def pending_range(store: Store) -> tuple[int, int]:
    """Return the lowest and the highest id of the pending rows; of all ids if some are parked, whose index has none."""
    parked = "SELECT 1 FROM events WHERE state = ? AND state IN (2, 3) LIMIT 1"
    if any(store.connection.execute(parked, (state,)).fetchone() for state in (2, 3)):
        return 0, MAX_ID
    # One at a time: SQLite looks up min() or max() in the index, and scans it for both together
    # (https://www.sqlite.org/optoverview.html#the_min_max_optimization).
    found = [
        store.connection.execute(f"SELECT {end}(id) FROM events WHERE state = ? AND state < 2", (state,)).fetchone()[0]
        for state in (-2, -1, 0, 1)
        for end in ("min", "max")
    ]
    ids = [event_id for event_id in found if event_id is not None]
    return (min(ids), max(ids)) if ids else (0, -1)


def _by_settlement(store: Store, state: EventState, before: tuple[int, int] | None) -> _Part | None:
    """Return the next part of a settled state, newest settlement first; None at the end."""
    settled_ms, event_id = before or (MAX_ID, MAX_ID)
    text = "state = ? AND state > 3 AND settled_ms <= ? AND (settled_ms < ? OR id < ?)"
    values = (state, settled_ms, settled_ms, event_id)
    order = "settled_ms DESC, id DESC"
    # From the index alone, without reading a row.
    ends = f"SELECT settled_ms, id FROM events WHERE {text} ORDER BY {order} LIMIT 1 OFFSET ?"
    end = store.connection.execute(ends, (*values, SCAN_IDS - 1)).fetchone()
    if end is None:
        return _Part(text, values, order, None)
    return _ending_at(_Part(text, values, order, None), settled=True, end=(end[0], end[1]))


def _ending_at(part: _Part, *, settled: bool, end: tuple[int, int]) -> _Part:
    """Return the beginning of a part, up to the row with this cursor."""
    text = " AND settled_ms >= ? AND (settled_ms > ? OR id >= ?)" if settled else " AND id >= ?"
    values = (end[0], end[0], end[1]) if settled else (end[1],)
    return _Part(part.text + text, (*part.values, *values), part.order, end)


def _searchable(store: Store, part: _Part, *, settled: bool) -> _Part:
    """Return as much of a part as one call may search for a text: all bodies in it are read."""
    rows = store.connection.execute(
        f"SELECT {'settled_ms' if settled else '0'}, id, length(body) FROM events WHERE {part.text}"
        f" ORDER BY {part.order} LIMIT ?",
        (*part.values, SEARCHED_ROWS),
    )
    end = last_searchable(rows)
    return part if end is None else _ending_at(part, settled=settled, end=end[:2])


def _cursor(row: Any, state: str | None) -> tuple[int, int]:
    """Return the position of a row in the order of its listing: (settled_ms or 0, id)."""
    return (0 if state in (None, "pending") else row[5], row[0])


def event_row(row: Any) -> EventRow:
    """Return the record of a row with ``COLUMNS``."""
    event_id, state, source, user, received_ms, settled_ms, status, reason, attempts, account, path, call_id, *rest = (
        row
    )
    priority = PRIORITY_OF[state] if state < EventState.DELIVERED else None
    stored = None if path is None else Account(account or "", path, call_id or 0)
    about = (source, user, received_ms, settled_ms, status, reason, attempts, stored)
    return EventRow(event_id, _STATE_NAMES[state], priority, *about, *rest)
