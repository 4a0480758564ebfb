"""Keeping the file small: bodies of settled events, old dead letters, old message ids and forgotten users leave here.

Every function does one small step inside a transaction and says whether it found something to do, so that the writer
can stop between steps whenever there are events to accept or to settle. What is due is found by an index on when it
was settled: a step costs the same whatever is pending.
"""

from sidecar.outbox.dead import discard_ids
from sidecar.outbox.overflow import delete_rows
from sidecar.outbox.records import State
from sidecar.outbox.store import Store

__all__ = ["Keeper"]

STEP_ROWS = 500


class Keeper:
    """What is kept for how long. ``step`` is called when there is nothing else to do. The ages are in milliseconds."""

    def __init__(self, *, delivered_ms: int, ids_ms: int, dead_ms: int, max_users: int) -> None:
        self._delivered_ms = delivered_ms
        self._ids_ms = ids_ms
        self._dead_ms = dead_ms
        self._max_users = max_users

    def step(self, store: Store, now_ms: int, *, hurry: bool = False) -> bool:
        """Do one step of each kind inside a transaction; True if there may be more to do at once.

        ``hurry`` prunes history whatever its age: room has run short.
        """
        self._clamp(store, now_ms)
        more = self._prune(store, now_ms + 1 if hurry else now_ms - self._delivered_ms)
        more |= self._discard_dead(store, now_ms)
        more |= self._forget_users(store)
        # Ids reach the table an eighth of their time late at most, and so are recognised that much longer at most.
        if store.ids.due((now_ms - self._ids_ms // 8) // 1000):
            store.flush_ids(STEP_ROWS, due=True)
        store.ids.sweep((now_ms - self._ids_ms) // 1000, now_ms // 1000)
        return more

    def _clamp(self, store: Store, now_ms: int) -> None:
        """What was settled in the future (the clock was set back) was settled now: else it would stay too long."""
        for state in (State.DELIVERED, State.DROPPED, State.DEAD):
            store.connection.execute(
                "UPDATE events SET settled_ms = ? WHERE id IN"
                " (SELECT id FROM events WHERE state = ? AND state > 3 AND settled_ms > ? LIMIT ?)",
                (now_ms, state, now_ms, STEP_ROWS),
            )

    def _due(self, store: Store, state: State, settled_before_ms: int) -> list[int]:
        found = store.connection.execute(
            "SELECT id FROM events WHERE state = ? AND state > 3 AND settled_ms < ? ORDER BY settled_ms LIMIT ?",
            (state, settled_before_ms, STEP_ROWS),
        )
        return sorted(row[0] for row in found)

    def _prune(self, store: Store, settled_before_ms: int) -> bool:
        gone = [one for state in (State.DELIVERED, State.DROPPED) for one in self._due(store, state, settled_before_ms)]
        delete_rows(store, sorted(gone))
        return bool(gone)

    def _discard_dead(self, store: Store, now_ms: int) -> bool:
        found = self._due(store, State.DEAD, now_ms - self._dead_ms)
        discard_ids(store, found, now_ms)
        return bool(found)

    def _forget_users(self, store: Store) -> bool:
        surplus = store.counters["users"] - self._max_users
        if surplus <= 0:
            return False
        gone = store.connection.execute(
            "DELETE FROM users WHERE (user, property_key) IN (SELECT user, property_key FROM users ORDER BY seen_ms LIMIT ?)",
            (min(surplus, STEP_ROWS),),
        ).rowcount
        store.count("users", -gone)
        return True
