"""Watching the history for PX's silent limits: beyond them PX answers 201 and drops (facts: ``px_and_sdks.md`` 1.2).

1,000 events of a user a day, 500 of a session, 2,000 distinct event names. A round walks what was delivered in the
last 24 hours, oldest first, a bounded number of rows a step, and ends with a list of who is near.

Theory: counting a million users exactly would take more memory than the rest of the process. Only the frequent ones
matter, and those are found with a fixed number of counters (Misra and Gries, 1982): with ``k`` counters, whoever has
more than ``n / k`` of ``n`` events is among them at the end, and his count is too low by at most ``n / k``. With 8,192
counters and the 990,000 events of a day that is 121; it is added, so that nobody near a limit is missed.
"""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from sidecar.events import readable
from sidecar.outbox.records import State
from sidecar.outbox.store import Store

__all__ = ["LIMITS", "Frequent", "Near", "Watch"]

STEP_ROWS: Final = 2_000
DAY_MS: Final = 86_400_000
COUNTERS: Final = 8_192
LIMITS: Final = {"user": 1_000, "session": 500, "names": 2_000}
NEAR: Final = 0.8


class Near(NamedTuple):
    """Something near a limit of PX: a ``user``, a ``session``, or the number of distinct event ``names`` (``who`` "")."""

    kind: str
    who: str
    seen: int
    limit: int


class Frequent:
    """Counts the frequent ones among any number of texts, in bounded memory."""

    def __init__(self, counters: int = COUNTERS) -> None:
        self._max = counters
        self._counts: dict[str, int] = {}
        self._missed = 0

    def add(self, text: str) -> None:
        """Count one more of this text."""
        counts = self._counts
        if text in counts:
            counts[text] += 1
        elif len(counts) < self._max:
            counts[text] = 1
        else:
            self._missed += 1
            self._counts = {one: count - 1 for one, count in counts.items() if count > 1}

    def above(self, bound: float) -> list[tuple[str, int]]:
        """Who may have been added more than ``bound`` times, with the highest count possible; most frequent first."""
        found = [(text, count + self._missed) for text, count in self._counts.items() if count + self._missed > bound]
        return sorted(found, key=lambda one: (-one[1], one[0]))


class Watch:
    """Rounds through the delivered history; ``near`` is what the last finished one has found.

    ``name_of`` gives the name that PX gets for an event, None for one that is no custom event.
    """

    def __init__(self, name_of: Callable[[dict[str, Any]], str | None]) -> None:
        self.near: list[Near] = []
        self._name_of = name_of
        self._start(0)

    def _start(self, since_ms: int) -> None:
        self._cursor = (since_ms, 0)
        self._users = Frequent()
        self._sessions = Frequent()
        self._names: set[str] = set()

    def step(self, store: Store, now_ms: int) -> bool:
        """Look at the next rows; True while the round goes on. The next step after its end begins another."""
        if self._cursor == (0, 0):
            self._start(now_ms - DAY_MS)
        after_ms, after_id = self._cursor
        looked_at = 0
        for event_id, settled_ms, user, body in store.connection.execute(
            "SELECT id, settled_ms, user, body FROM events WHERE state = ? AND state > 3 AND settled_ms >= ?"
            " AND (settled_ms > ? OR id > ?) ORDER BY settled_ms, id LIMIT ?",
            (State.DELIVERED, after_ms, after_ms, after_id, STEP_ROWS),
        ):  # one after the other: a body may have 32 KiB
            looked_at += 1
            self._cursor = (settled_ms, event_id)
            self._look_at(user, readable(body))
        if looked_at == STEP_ROWS:
            return True
        self.near = self._found()
        self._start(0)
        return False

    def _look_at(self, user: str | None, event: dict[str, Any]) -> None:
        name = self._name_of(event)
        if name is None:
            return
        if len(self._names) <= LIMITS["names"]:
            self._names.add(name)
        if user is not None:
            self._users.add(user)
        session = _session_of(event)
        if session is not None:
            self._sessions.add(session)

    def _found(self) -> list[Near]:
        near = [Near("names", "", len(self._names), LIMITS["names"])]
        for kind, counted in (("user", self._users), ("session", self._sessions)):
            near.extend(Near(kind, who, count, LIMITS[kind]) for who, count in counted.above(LIMITS[kind] * NEAR - 1))
        return [one for one in near if one.seen >= one.limit * NEAR]


def _session_of(event: dict[str, Any]) -> str | None:
    """The session of an event, where SDKs put it (DESIGN 3)."""
    context = event.get("context")
    if not isinstance(context, dict):
        return None
    session = context.get("session")
    value = session.get("id") if isinstance(session, dict) else None
    value = context.get("sessionId") if value is None else value
    return str(value) if isinstance(value, (str, int)) and value != "" else None
