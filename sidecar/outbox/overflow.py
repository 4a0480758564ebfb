"""Making room in a full outbox: history goes first, then, if the operator wants it so, the oldest pending events.

A row that makes room is deleted at once: a settled one that stays would free nothing. Its message id is kept, so that
a client which sends the event again is told that it was seen.
"""

from collections.abc import Collection, Sequence

from sidecar.outbox.records import State
from sidecar.outbox.store import Store

__all__ = ["Overflow", "delete_rows"]

STEP_ROWS = 500
# So many rows one call looks at, at most: about 30 ms of the writer's time.
CALL_ROWS = 5_000


def delete_rows(store: Store, ids: Sequence[int]) -> None:
    """Delete event rows, in ascending order of ids, inside a transaction; what is counted is the caller's business."""
    if ids:
        store.keep_ids_of(ids[-1])
        store.connection.executemany("DELETE FROM events WHERE id = ?", [(one,) for one in ids])


class Overflow:
    """Makes room inside a transaction. Remembers how far it looked, so that rows which stay are passed once a round."""

    def __init__(self) -> None:
        self._after_id = 0

    def make_room(self, store: Store, surplus_bytes: int, protected: Collection[int] | None) -> int:
        """Free ``surplus_bytes`` if there is that much; returns how much is still missing, nothing or less if none.

        Without ``protected`` only history goes. With it the oldest pending events go after that, apart from those.
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
        gone: list[int] = []
        for state in (State.DELIVERED, State.DROPPED):
            found = store.connection.execute(
                "SELECT id FROM events WHERE state = ? AND state > 3 ORDER BY settled_ms LIMIT ?", (state, STEP_ROWS)
            )
            gone.extend(row[0] for row in found)
        delete_rows(store, sorted(gone))
        return bool(gone)

    def _drop_pending(self, store: Store, protected: Collection[int]) -> bool:
        """Drop the oldest that may go; False if none was among the rows that one call looks at."""
        for _ in range(CALL_ROWS // STEP_ROWS):
            found = store.connection.execute(
                "SELECT id, state FROM events WHERE id > ? ORDER BY id LIMIT ?", (self._after_id, STEP_ROWS)
            ).fetchall()
            gone = [(one, state) for one, state in found if state < State.DELIVERED and one not in protected]
            if gone:
                self._drop(store, gone)
                return True
            self._after_id = found[-1][0] if found else 0
        return False

    def _drop(self, store: Store, gone: list[tuple[int, int]]) -> None:
        delete_rows(store, [one for one, _ in gone])
        store.connection.executemany("DELETE FROM retries WHERE id = ?", [(one,) for one, _ in gone])
        high = sum(state in (State.HIGH, State.HIGH_ASIDE) for _, state in gone)
        store.count("pending_high", -high)
        store.count("pending_normal", high - len(gone))
        store.count("dropped:outbox_full", len(gone))
