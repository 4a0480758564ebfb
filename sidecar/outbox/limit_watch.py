"""Watch the delivered history for PX's silent limits (sidecar/px/README.md#limits): above them PX drops events.

The limits are 1,000 events per user and day, 500 per session, and 2,000 distinct event names. A *round* examines the
events delivered in the last 24 hours, oldest first, a bounded number of rows per step, and ends with a list of the
users and sessions near a limit.

Theory: exact counts of a million users would take more memory than the rest of the process. Only frequent users matter,
and a fixed number of counters finds them (Misra and Gries, "Finding repeated elements", 1982,
https://doi.org/10.1016/0167-6423(82)90012-0): with ``k`` counters, every user with more than ``n / k`` of ``n`` events
has a counter at the end, and its count is too low by at most ``n / k``. With 8,192 counters and the 990,000 events of a
day that is 121. This error is added to each count, so that no user near a limit is missed.
"""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import msgspec

from sidecar.events import decode_or_empty
from sidecar.outbox.lookup import catalogue
from sidecar.outbox.records import EventState
from sidecar.outbox.steps import READ_BYTES
from sidecar.outbox.store import Store

__all__ = ["LIMITS", "FrequentItems", "LimitWatch", "NearLimit", "busiest_name"]

STEP_ROWS: Final = 1_000
DAY_MS: Final = 86_400_000
COUNTERS: Final = 8_192
LIMITS: Final = {"user": 1_000, "session": 500, "names": 2_000}
BASELINES: Final = "name_counts"  # the outbox's meta key
NEAR: Final = 0.8  # the share of a limit from which on a warning is given


class NearLimit(NamedTuple):
    """A count near a limit of PX. ``kind`` is a key of ``LIMITS``; ``subject`` the user or session, "" for names."""

    kind: str
    subject: str
    seen: int
    limit: int


class FrequentItems:
    """Counts the frequent texts among any number of different ones, in bounded memory."""

    def __init__(self, counters: int = COUNTERS) -> None:
        self._max = counters
        self._counts: dict[str, int] = {}
        self._missed = 0  # how many times all counters were decremented: the most that any count is too low by

    def add(self, text: str) -> None:
        """Count one more of this text."""
        counts = self._counts
        if text in counts:
            counts[text] += 1
        elif len(counts) < self._max:
            counts[text] = 1
        else:
            # Misra and Gries: a text without a counter decrements all, and those that reach zero make place for others.
            self._missed += 1
            self._counts = {counted: count - 1 for counted, count in counts.items() if count > 1}

    def above(self, bound: float) -> list[tuple[str, int]]:
        """Return the texts that may have been added more than ``bound`` times, with the highest possible count.

        The most frequent ones come first.
        """
        missed = self._missed
        frequent = [(text, count + missed) for text, count in self._counts.items() if count + missed > bound]
        return sorted(frequent, key=lambda counted: (-counted[1], counted[0]))


class LimitWatch:
    """Examines the delivered history in rounds; ``near`` is the result of the last complete round.

    ``name_of`` returns the name that PX gets for an event, None if it is not sent as a custom event.
    """

    def __init__(self, name_of: Callable[[dict[str, Any]], str | None]) -> None:
        self.near: list[NearLimit] = []
        self._name_of = name_of
        self._start(0)

    def _start(self, since_ms: int) -> None:
        self._cursor = (since_ms, 0)
        self._users = FrequentItems()
        self._sessions = FrequentItems()
        self._names: set[str] = set()

    def step(self, store: Store, now_ms: int) -> bool:
        """Examine the next rows; return False at the end of a round. The step after that begins another round."""
        if self._cursor == (0, 0):
            self._start(now_ms - DAY_MS)
        after_ms, after_id = self._cursor
        read_bytes = 0
        rows = store.connection.execute(
            "SELECT id, settled_ms, user, body FROM events WHERE state = ? AND state > 3 AND settled_ms >= ?"
            " AND (settled_ms > ? OR id > ?) ORDER BY settled_ms, id LIMIT ?",
            (EventState.DELIVERED, after_ms, after_ms, after_id, STEP_ROWS),
        )
        for examined, (event_id, settled_ms, user, body) in enumerate(
            rows, 1
        ):  # row by row, not fetchall: a body may have 32 KiB
            read_bytes += len(body)
            self._cursor = (settled_ms, event_id)
            self._count(user, decode_or_empty(body))
            if examined == STEP_ROWS or read_bytes >= READ_BYTES:
                rows.close()
                return True
        self.near = self._near_limits()
        self._start(0)
        return False

    def _count(self, user: str | None, event: dict[str, Any]) -> None:
        name = self._name_of(event)
        if name is None:
            return
        if len(self._names) <= LIMITS["names"]:  # one above the limit is enough to know
            self._names.add(name)
        if user is not None:
            self._users.add(user)
        session = _session_of(event)
        if session is not None:
            self._sessions.add(session)

    def _near_limits(self) -> list[NearLimit]:
        counts = [NearLimit("names", "", len(self._names), LIMITS["names"])]
        for kind, items in (("user", self._users), ("session", self._sessions)):
            limit = LIMITS[kind]
            counts.extend(NearLimit(kind, subject, seen, limit) for subject, seen in items.above(limit * NEAR - 1))
        return [count for count in counts if count.seen >= count.limit * NEAR]


class _Counts(msgspec.Struct, array_like=True):
    """The number of events of each name, by its number, at a moment (epoch milliseconds)."""

    at_ms: int
    by_number: dict[int, int]


class _Baselines(msgspec.Struct, array_like=True):
    """Two moments, half a day or more apart: the older one is what the counts of the day begin from."""

    older: _Counts
    newer: _Counts


def busiest_name(store: Store, now_ms: int) -> tuple[str, int] | None:
    """Return the name that came most often in the last day, and how often, inside a transaction; None if none came.

    The catalogue counts a name since its first event, so two earlier counts are kept in the outbox. The day is between 12
    and 24 hours long, shorter in the first 12 hours of an outbox of an older version: no count is too high.
    """
    rows = catalogue(store)
    counts = {row.number: row.events for row in rows}
    known = _baselines(store)
    if known is None or not 0 <= now_ms - known.older.at_ms <= DAY_MS:
        newer_is_usable = known is not None and 0 <= now_ms - known.newer.at_ms <= DAY_MS
        # Of a name that is younger than a day every event counts.
        begun = {row.number: row.events for row in rows if row.first_ms < now_ms - DAY_MS}
        older = known.newer if known is not None and newer_is_usable else _Counts(now_ms, begun)
        known = _Baselines(older, _Counts(now_ms, counts))
        store.set_meta(BASELINES, msgspec.json.encode(known).decode())
    elif now_ms - known.newer.at_ms >= DAY_MS // 2:
        known = _Baselines(known.newer, _Counts(now_ms, counts))
        store.set_meta(BASELINES, msgspec.json.encode(known).decode())
    came = [(row.events - known.older.by_number.get(row.number, 0), row) for row in rows]
    events, row = max(came, key=lambda pair: pair[0], default=(0, None))
    if row is None or events <= 0:
        return None
    return (row.name if row.type == "track" else row.type), events


def _baselines(store: Store) -> _Baselines | None:
    try:
        return msgspec.json.decode(store.get_meta(BASELINES) or "null", type=_Baselines | None)
    except msgspec.DecodeError:
        return None


def _session_of(event: dict[str, Any]) -> str | None:
    """Return the session of an event: ``context.session.id``, else ``context.sessionId``; None if it has neither."""
    context = event.get("context")
    if not isinstance(context, dict):
        return None
    session = context.get("session")
    value = session.get("id") if isinstance(session, dict) else None
    value = context.get("sessionId") if value is None else value
    return str(value) if isinstance(value, (str, int)) and value != "" else None
