"""Keeping the file small: bodies of settled events, old dead letters, old message ids and forgotten users leave here.

Every function does one small step inside a transaction and says whether it found something to do, so that the writer
can stop between steps whenever there are events to accept or to settle.
"""

from sidecar.outbox.records import State
from sidecar.outbox.store import Store

__all__ = ["Keeper"]

STEP_ROWS = 500


class Keeper:
    """What is kept for how long. ``step`` is called when there is nothing else to do.

    The ages are in milliseconds. The cursor walks the rows in id order and starts over, so that rows which stay (the
    pending and the dead) are passed once a round and not once a step.
    """

    def __init__(self, *, delivered_ms: int, ids_ms: int, dead_ms: int, max_users: int) -> None:
        self._delivered_ms = delivered_ms
        self._ids_ms = ids_ms
        self._dead_ms = dead_ms
        self._max_users = max_users
        self._after_id = 0

    def step(self, store: Store, now_ms: int, *, hurry: bool = False) -> bool:
        """Do one step of each kind inside a transaction; True if there may be more to do at once.

        ``hurry`` prunes history whatever its age: room has run short.
        """
        more = self._prune(store, 2**62 if hurry else now_ms - self._delivered_ms, now_ms)
        more |= self._discard_dead(store, now_ms)
        more |= self._forget_users(store)
        store.ids.sweep((now_ms - self._ids_ms) // 1000)
        return more

    def _prune(self, store: Store, settled_before_ms: int, now_ms: int) -> bool:
        found = store.connection.execute(
            "SELECT id, state, settled_ms FROM events WHERE id > ? ORDER BY id LIMIT ?", (self._after_id, STEP_ROWS)
        ).fetchall()
        gone = [
            event_id
            for event_id, state, settled_ms in found
            if state in (State.DELIVERED, State.DROPPED) and settled_ms < settled_before_ms
        ]
        if gone and gone[-1] > store.counters["ids_flushed_to"]:
            store.flush_ids(now_ms, all_of_them=True)  # what recognises repeats must outlive the rows
        store.connection.executemany("DELETE FROM events WHERE id = ?", [(one,) for one in gone])
        self._after_id = found[-1][0] if len(found) == STEP_ROWS else 0
        return bool(gone)

    def _discard_dead(self, store: Store, now_ms: int) -> bool:
        # Dead letters are buried in nearly the order of their ids; a few that are older wait for the ones before them.
        found = store.connection.execute(
            "SELECT id, reason FROM (SELECT id, reason, last_ms FROM dead ORDER BY id LIMIT ?) WHERE last_ms < ?",
            (STEP_ROWS, now_ms - self._dead_ms),
        ).fetchall()
        for event_id, reason in found:
            store.connection.execute("DELETE FROM dead WHERE id = ?", (event_id,))
            store.connection.execute(
                "UPDATE events SET state = ?, reason = 'discarded', settled_ms = ? WHERE id = ?",
                (State.DROPPED, now_ms, event_id),
            )
            store.count(f"dead:{reason}", -1)
            store.count("dropped:discarded")
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
