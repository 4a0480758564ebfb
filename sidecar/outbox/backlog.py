"""Operations on many pending or delivered events: count them, discard pending ones, mark delivered ones as resent.

Each call examines a bounded range of ids and returns where the next one begins. Events are taken in id order, the order in
which they were accepted.
"""

from collections.abc import Container, Iterable, Sequence
from typing import Any, Final, Literal, NamedTuple

from sidecar.events import decode_or_empty
from sidecar.outbox.classify import Via
from sidecar.outbox.names import OTHER
from sidecar.outbox.queries import COLUMNS, EventRow, event_row, pending_range
from sidecar.outbox.records import PRIORITY_OF, EventState, Settlement
from sidecar.outbox.selection import EventFilter, Where, condition_of
from sidecar.outbox.steps import CHANGED_BYTES, SCAN_IDS, SEARCHED_ROWS, last_searchable
from sidecar.outbox.store import Store

__all__ = ["USAGE_TYPES", "DiscardedPage", "Kind", "count_page", "delivered_page", "discard_page", "mark_resent"]

USAGE_TYPES: Final = frozenset({"track", "page", "screen"})
# A body is decoded only where a name has no number.
_BODY: Final = "CASE WHEN coalesce(name, 0) = 0 THEN body ELSE x'' END"
Kind = Literal["pending", "resend"]
"""Pending events, or delivered ones that may be accepted again."""

# Most events that one call changes, beside the bound of bytes: about 10 ms of the store's thread.
PAGE_ROWS: Final = 500
RESENT: Final = "resent"

# An event is accepted again once, and its copy never; calls that write people would overwrite newer traits.
_RESENDABLE: Final = (
    f"state = {EventState.DELIVERED:d} AND reason IS NULL AND coalesce(via, 0) != {Via.RESEND:d}"
    " AND coalesce(name, 0) NOT IN (SELECT id FROM names WHERE type IN ('identify', 'group', 'alias'))"
)
_CONDITIONS: Final[dict[Kind, str]] = {"pending": "state < 4", "resend": _RESENDABLE}


class DiscardedPage(NamedTuple):
    """The number of discarded events, the ids of those in flight, which were not, and the next ``after_id`` or None."""

    discarded: int
    in_flight: list[int]
    next_after: int | None


def count_page(store: Store, which: EventFilter, *, kind: Kind, after_id: int) -> tuple[int, int | None]:
    """Return how many of the next events are selected, and the ``after_id`` of the next page, None at the end."""
    if (part := _next_part(store, kind, which, after_id)) is None:
        return 0, None
    where = _condition(store, which, kind)
    following = _following(store, kind, part)
    if kind == "pending" and which.name is None and which.message_id is None:  # SQLite's condition says it all
        query = f"SELECT count(*) FROM events WHERE id > ? AND id <= ? AND {_CONDITIONS[kind]}{where.text}"
        return store.connection.execute(query, [*part, *where.values]).fetchone()[0], following
    body = "body" if which.message_id is not None else _BODY
    rows = store.connection.execute(_query(f"name, {body}", kind, where), [*part, *where.values])
    return sum(where.accepts(*row) and (kind == "pending" or _is_usage(*row)) for row in rows), following


def discard_page(
    store: Store, which: EventFilter, now_ms: int, *, checked_out: Container[int], after_id: int
) -> DiscardedPage:
    """Drop the next pending events with the reason ``discarded``, inside a transaction, except those ``checked_out``."""
    if (part := _next_part(store, "pending", which, after_id)) is None:
        return DiscardedPage(0, [], None)
    where = _condition(store, which, "pending")
    columns = (
        f"id, state, name, {_BODY if which.message_id is None else 'body'}, length(body), coalesce((SELECT attempts FROM retries WHERE id = events.id), 0),"
        " coalesce((SELECT first_ms FROM retries WHERE id = events.id), 0)"
    )
    settlements, in_flight, following = [], [], _following(store, "pending", part)
    rows = store.connection.execute(_query(columns, "pending", where), [*part, *where.values])
    changed_bytes = 0
    for event_id, state, number, body, size_bytes, attempts, first_ms in rows:
        if not where.accepts(number, body):
            continue
        if event_id in checked_out:
            in_flight.append(event_id)
            continue
        settlements.append(
            Settlement(
                event_id,
                PRIORITY_OF[state],
                EventState.DROPPED,
                "discarded",
                attempts=attempts,
                first_failed_ms=first_ms,
            )
        )
        changed_bytes += size_bytes
        if len(settlements) == PAGE_ROWS or changed_bytes >= CHANGED_BYTES:
            following = event_id
            break
    rows.close()
    store.settle(settlements, now_ms)
    return DiscardedPage(len(settlements), in_flight, following)


def delivered_page(store: Store, which: EventFilter, *, after_id: int) -> tuple[list[EventRow], int | None]:
    """Return the next delivered events that are selected and were not resent, and the next ``after_id`` or None."""
    if (part := _next_part(store, "resend", which, after_id)) is None:
        return [], None
    where = _condition(store, which, "resend")
    rows = store.connection.execute(_query(COLUMNS, "resend", where), [*part, *where.values])
    page: list[EventRow] = []
    page_bytes = 0
    for raw in rows:  # row by row, not fetchall: a body may have 32 KiB
        row = event_row(raw)
        if where.accepts(row.name, row.body) and _is_usage(row.name, row.body):
            page.append(row)
            page_bytes += len(row.body)
        if len(page) == PAGE_ROWS or page_bytes >= CHANGED_BYTES:
            rows.close()
            return page, row.id
    return page, _following(store, "resend", part)


def mark_resent(store: Store, ids: Iterable[int]) -> None:
    """Record that these delivered events were accepted again, inside a transaction: no later run selects them."""
    store.connection.executemany(
        f"UPDATE events SET reason = '{RESENT}' WHERE id = ? AND state = {EventState.DELIVERED:d}",
        [(event_id,) for event_id in ids],
    )


def _is_usage(number: int | None, body: bytes) -> bool:
    """Return whether an event is usage and does not write people: by the number of its name, else by its body."""
    return number not in (None, OTHER) or decode_or_empty(body).get("type", "track") in USAGE_TYPES


def _condition(store: Store, which: EventFilter, kind: Kind) -> Where:
    return condition_of(store, which, time="received_ms" if kind == "pending" else "settled_ms")


def _query(columns: str, kind: Kind, where: Where) -> str:
    return f"SELECT {columns} FROM events WHERE id > ? AND id <= ? AND {_CONDITIONS[kind]}{where.text} ORDER BY id"


def _next_part(store: Store, kind: Kind, which: EventFilter, after_id: int) -> tuple[int, int] | None:
    """Return the ids, first excluded and last included, that the next call examines; None if no row is left."""
    if (first := _next_id(store, kind, after_id)) is None:
        return None
    last = first - 1 + SCAN_IDS
    if which.message_id is not None:  # all bodies are read
        rows = store.connection.execute(
            "SELECT id, length(body) FROM events WHERE id >= ? AND id <= ? ORDER BY id LIMIT ?",
            (first, last, SEARCHED_ROWS),
        )
        if (end := last_searchable(rows)) is not None:
            last = end[0]
    return first - 1, last


def _next_id(store: Store, kind: Kind, after_id: int) -> int | None:
    first, last = pending_range(store) if kind == "pending" else (0, None)
    following: Sequence[Any] = store.connection.execute(
        "SELECT min(id) FROM events WHERE id > ?", (max(after_id, first - 1),)
    ).fetchone()
    event_id: int | None = following[0]
    return None if event_id is None or (last is not None and event_id > last) else event_id


def _following(store: Store, kind: Kind, part: tuple[int, int]) -> int | None:
    return None if _next_id(store, kind, part[1]) is None else part[1]
