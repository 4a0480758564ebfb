"""Free space in a full outbox: delete history first, then the oldest pending events if ``when_full`` says so.

Rows are deleted at once: a row that only changes its state frees nothing. Their message ids are kept, so that an event
that a client sends again is recognized as a repeat.
"""

from collections import Counter
from collections.abc import Collection, Sequence

from sidecar.outbox.records import PENDING, PRIORITY_OF, EventState
from sidecar.outbox.steps import CHANGED_BYTES, up_to
from sidecar.outbox.store import Store

__all__ = ["Overflow", "delete_rows"]

STEP_ROWS = 500
# Most rows that one call examines: about 30 ms of the store's thread.
CALL_ROWS = 5_000


def delete_rows(store: Store, ids: Sequence[int]) -> None:
    """Delete event rows inside a transaction. ``ids`` are in ascending order; the caller updates the counters."""
    if ids:
        store.keep_ids_of(ids[-1])
        store.connection.executemany("DELETE FROM events WHERE id = ?", [(event_id,) for event_id in ids])


class Overflow:
    """Frees space inside a transaction. Its position is kept between calls: rows that stay are examined once a pass."""

    def __init__(self) -> None:
        self._after_id = 0

    def free_space(self, store: Store, surplus_bytes: int, protected: Collection[int] | None) -> int:
        """Free ``surplus_bytes`` as far as possible; return how many bytes are still missing, zero or less if none.

        With ``protected`` None only history is deleted. Otherwise the oldest pending events are dropped after it,
        except those whose ids are in ``protected``.
        """
        goal = store.used_bytes() - surplus_bytes
        for _ in range(CALL_ROWS // STEP_ROWS):
            missing = store.used_bytes() - goal
            if missing <= 0:
                return missing
            if not self._drop_history(store) and (protected is None or not self._drop_pending(store, protected)):
                return missing
        return store.used_bytes() - goal

    def _drop_history(self, store: Store) -> bool:
        """Delete the oldest history; False if there is none."""
        ids: list[int] = []
        for state in (EventState.DELIVERED, EventState.DROPPED):
            rows = store.connection.execute(
                "SELECT id, length(body) FROM events WHERE state = ? AND state > 3 ORDER BY settled_ms LIMIT ?",
                (state, STEP_ROWS),
            )
            ids.extend(event_id for event_id, _ in up_to(CHANGED_BYTES // 2, rows, lambda row: row[1]))
            rows.close()
        delete_rows(store, sorted(ids))
        return bool(ids)

    def _drop_pending(self, store: Store, protected: Collection[int]) -> bool:
        """Drop the oldest pending events that are not protected; False if the rows of one call held none."""
        for _ in range(CALL_ROWS // STEP_ROWS):
            rows = store.connection.execute(
                "SELECT id, state, length(body) FROM events WHERE id > ? ORDER BY id LIMIT ?",
                (self._after_id, STEP_ROWS),
            ).fetchall()
            pending = [row for row in rows if row[1] < EventState.DELIVERED and row[0] not in protected]
            if pending:
                # Bounded by bytes, too: 500 rows of 32 KiB would be 16 MiB, more than a request needs, and would hold up the store's thread.
                oldest = up_to(CHANGED_BYTES, pending, lambda row: row[2])
                self._drop(store, [(event_id, state) for event_id, state, _ in oldest])
                return True
            # Only dead and protected rows here: the next call continues after them, or starts over at the end.
            self._after_id = rows[-1][0] if rows else 0
        return False

    def _drop(self, store: Store, pending: list[tuple[int, int]]) -> None:
        store.unlist_parked([event_id for event_id, _ in pending])
        delete_rows(store, [event_id for event_id, _ in pending])
        store.connection.executemany("DELETE FROM retries WHERE id = ?", [(event_id,) for event_id, _ in pending])
        for priority, count in Counter(PRIORITY_OF[state] for _, state in pending).items():
            store.count(PENDING[priority], -count)
        store.count("dropped:outbox_full", len(pending))
