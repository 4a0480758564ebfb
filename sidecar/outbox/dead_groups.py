"""Count dead letters, all together or by reason, name and status. One call examines a bounded number of rows."""

from typing import Final

import msgspec

from sidecar.outbox.dead import DeadLetterFilter
from sidecar.outbox.store import Store

__all__ = ["DeadGroup", "count_page", "group_page"]

# About 15 ms of the store's thread.
SCAN_ROWS: Final = 10_000


class DeadGroup(msgspec.Struct):
    """Dead letters with the same reason, name and status; ``detail`` is that of the newest of them, with its id."""

    reason: str
    name: str
    status: int | None
    count: int
    first_ms: int
    last_ms: int
    id: int
    detail: str


def group_page(store: Store, *, after_id: int) -> tuple[list[DeadGroup], int | None]:
    """Return the groups of the next ``SCAN_ROWS`` letters, and the ``after_id`` of the next page, None at the end."""
    end = _end(store, after_id)
    if end is None:
        return [], None
    # With max(id) SQLite takes the other columns from that row (https://www.sqlite.org/lang_select.html#bareagg).
    rows = store.connection.execute(
        "SELECT reason, name, status, count(*), min(first_ms), max(last_ms), max(id), detail FROM dead"
        " WHERE id > ? AND id <= ? GROUP BY reason, name, status",
        (after_id, end),
    )
    return [DeadGroup(*row) for row in rows], end


def count_page(store: Store, which: DeadLetterFilter, *, after_id: int) -> tuple[int, int | None]:
    """Return how many of the next ``SCAN_ROWS`` letters match, and the ``after_id`` of the next page."""
    end = _end(store, after_id)
    if end is None:
        return 0, None
    conditions = ["id > ?", "id <= ?"]
    values: list[int | str] = [after_id, end]
    for condition, value in (
        ("name = ?", which.name),
        ("reason = ?", which.reason),
        ("last_ms >= ?", which.since_ms),
        ("last_ms < ?", which.until_ms),
        ("user = ?", which.user),
    ):
        if value is not None:
            conditions.append(condition)
            values.append(value)
    if which.ids is not None:
        conditions.append(f"id IN ({','.join('?' * len(which.ids))})")
        values += which.ids
    query = f"SELECT count(*) FROM dead WHERE {' AND '.join(conditions)}"
    return store.connection.execute(query, values).fetchone()[0], end


def _end(store: Store, after_id: int) -> int | None:
    """Return the id of the last row of the next page, or None if there are no rows left."""
    row = store.connection.execute(
        "SELECT max(id) FROM (SELECT id FROM dead WHERE id > ? ORDER BY id LIMIT ?)", (after_id, SCAN_ROWS)
    ).fetchone()
    last: int | None = row[0]
    return last
