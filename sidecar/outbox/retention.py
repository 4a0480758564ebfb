"""Retention: delete settled rows, dead letters, message ids and user memory when their time is over.

Each function does one small step inside a transaction and returns whether there was something to do: between steps the
writer accepts and settles events. Due rows are found by an index on when they were settled, so a step costs the same
whatever the backlog is. What is due by age is decided by ``AgeScale``: a wrong clock discards nothing, and no stored time
is changed because it looks odd.
"""

from typing import Final

from sidecar.outbox.clock_trust import AgeScale
from sidecar.outbox.dead import discard_ids
from sidecar.outbox.dedup import EXPIRE_ROWS
from sidecar.outbox.overflow import delete_rows
from sidecar.outbox.records import EventState
from sidecar.outbox.steps import CHANGED_BYTES, ROWS_MOST, up_to
from sidecar.outbox.store import Store

__all__ = ["Retention"]

DAY_MS: Final = 86_400_000
# Message ids that a step examines for each row that it may delete.
IDS_PER_ROW: Final = EXPIRE_ROWS // ROWS_MOST

Condition = tuple[str, list[int]]  # of SQL, with its parameters


class Retention:
    """Prunes by age, in milliseconds, and by the number of users. The writer runs ``prune_step`` when it is idle."""

    def __init__(self, *, delivered_ms: int, ids_ms: int, dead_ms: int, max_users: int) -> None:
        self._delivered_ms = delivered_ms
        self._ids_ms = ids_ms
        self._dead_ms = dead_ms
        self._max_users = max_users

    @property
    def longest_ms(self) -> int:
        """The age at which everything that is pruned by age is gone."""
        return max(self._delivered_ms, self._ids_ms, self._dead_ms)

    def prune_step(
        self,
        store: Store,
        now_ms: int,
        *,
        scale: AgeScale | None = None,
        hurry: bool = False,
        rows: int = ROWS_MOST,
    ) -> bool:
        """Do one step of each kind inside a transaction, with ``rows`` at most; return True if there may be more to do.

        ``scale`` says how old stored times are and whether that can be believed; without one ``now_ms`` is. With
        ``hurry`` history is pruned whatever its age, because the outbox is nearly full.
        """
        scale = scale or AgeScale(now_ms)
        more = self._prune(store, ("1", []) if hurry else scale.older_than("settled_ms", self._delivered_ms), rows)
        more |= self._discard_dead(store, scale, now_ms, rows)
        if scale.believed:
            # By last use, not by age; but what a wrong clock calls the last use must not choose.
            more |= self._forget_users(store, rows)
            store.connection.execute("DELETE FROM caps WHERE day < ?", (scale.now_ms // DAY_MS - 1,))
        # Ids expire only in the table, so a quiet host moves them there too: at most an eighth of ``keep_ids`` late,
        # and they are recognized at most that much longer.
        store.names.flush(now_ms)
        if store.ids.due((now_ms - self._ids_ms // 8) // 1000):
            store.flush_ids(rows, due=True)
        # Each may need the row of its event, on a random page: fewer where the disk is slow, as of rows.
        store.ids.expire(scale.older_than("seen_s", self._ids_ms, unit_ms=1000), rows * IDS_PER_ROW)
        return more

    def _due(self, store: Store, state: EventState, age: Condition, rows: int) -> list[int]:
        condition, parameters = age
        due = store.connection.execute(
            f"SELECT id, length(body) FROM events WHERE state = ? AND state > 3 AND {condition} ORDER BY settled_ms LIMIT ?",
            (state, *parameters, rows),
        )
        ids = sorted(event_id for event_id, _ in up_to(CHANGED_BYTES // 2, due, lambda row: row[1]))
        due.close()
        return ids

    def _prune(self, store: Store, age: Condition, rows: int) -> bool:
        ids = [
            event_id
            for state in (EventState.DELIVERED, EventState.DROPPED)
            for event_id in self._due(store, state, age, rows)
        ]
        delete_rows(store, sorted(ids))
        return bool(ids)

    def _discard_dead(self, store: Store, scale: AgeScale, now_ms: int, rows: int) -> bool:
        ids = self._due(store, EventState.DEAD, scale.older_than("settled_ms", self._dead_ms), rows)
        discard_ids(store, ids, now_ms)
        return bool(ids)

    def _forget_users(self, store: Store, rows: int) -> bool:
        """Delete the memory of the least recently seen users beyond ``max_users``."""
        surplus = store.counters["users"] - self._max_users
        if surplus <= 0:
            return False
        deleted = store.connection.execute(
            "DELETE FROM users WHERE (user, property_key) IN (SELECT user, property_key FROM users ORDER BY seen_ms LIMIT ?)",
            (min(surplus, rows),),
        ).rowcount
        store.count("users", -deleted)
        store.accounts.clear()
        return True
