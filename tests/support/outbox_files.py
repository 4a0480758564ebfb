"""Shared by the outbox tests: events, a store whose counters can be checked, connections that fail on demand."""

import sqlite3
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from sidecar.mapping import PRIORITIES, Priority
from sidecar.outbox import Accepted, EventState, NewEvent, Page, Settlement, Store

NOW_MS = 1_700_000_000_000
HOUR_MS = 3_600_000
IN_MEMORY = Path("/dev/shm")


def event(
    number: int | str,
    *,
    user: str | None = "u1",
    priority: Priority = Priority.NORMAL,
    source: int = 0,
    bad: str | None = None,
    name: str = "Searched",
    padding: int = 0,
) -> NewEvent:
    body = b'{"messageId":"m%b","type":"track","event":"%b","userId":"%b","properties":{"p":"%b"}}' % (
        str(number).encode(),
        name.encode(),
        (user or "").encode(),
        b"x" * padding,
    )
    return NewEvent(source, priority, user, f"m{number}", body, bad, kind="track", name=name)


def accept(store: Store, events: Sequence[NewEvent], now_ms: int = NOW_MS) -> Accepted:
    with store.transaction():
        return store.accept([events], now_ms)[0]


def settle(store: Store, settlements: Iterable[Settlement], now_ms: int = NOW_MS) -> None:
    with store.transaction():
        store.settle(list(settlements), now_ms)


def delivered(event_id: int, *, priority: Priority = Priority.NORMAL, **more) -> Settlement:
    return Settlement(event_id, priority, EventState.DELIVERED, status=201, **more)


def dropped(event_id: int, *, reason: str = "unmapped", priority: Priority = Priority.NORMAL) -> Settlement:
    return Settlement(event_id, priority, EventState.DROPPED, reason)


def dead(event_id: int, *, reason: str = "refused", priority: Priority = Priority.NORMAL, **more) -> Settlement:
    more = {"status": 400, "detail": "PX refused it", "attempts": 1, "name": "Searched", "payload": b"{}"} | more
    return Settlement(event_id, priority, EventState.DEAD, reason, **more)


@contextmanager
def rolled_back(store: Store):
    """A transaction that ends in an error."""
    with pytest.raises(ZeroDivisionError), store.transaction():  # noqa: PT012 - the yield is the simple statement
        yield
        raise ZeroDivisionError


def pending_ids(store: Store) -> list[int]:
    return [row.id for priority in PRIORITIES for row in store.page(priority=priority, after_id=0, limit=1000).rows]


def check_counters(store: Store) -> None:
    """Check that the counters add up and agree with the rows."""
    counters = store.counters
    totals = Counter()
    for name, value in counters.items():
        totals[name.split(":")[0]] += value
    assert all(value >= 0 for value in counters.values()), counters
    assert counters["accepted"] == store.pending() + totals["delivered"] + totals["dropped"] + totals["dead"]
    assert counters["accepted"] == counters["next_id"]
    rows = Counter(dict(store.connection.execute("SELECT state, count(*) FROM events GROUP BY state")))
    assert counters["pending_normal"] == rows[EventState.NORMAL] + rows[EventState.NORMAL_PARKED]
    assert counters["pending_low"] == rows[EventState.LOW] + rows[EventState.LOW_PARKED]
    assert counters["pending_high"] == rows[EventState.HIGH] + rows[EventState.HIGH_PARKED]
    assert totals["dead"] == rows[EventState.DEAD]
    letters = store.connection.execute("SELECT reason, count(*) FROM dead GROUP BY reason").fetchall()
    assert {f"dead:{reason}": count for reason, count in letters} == {
        name: value for name, value in counters.items() if name.startswith("dead:") and value
    }
    assert totals["delivered"] >= rows[EventState.DELIVERED]
    assert totals["dropped"] >= rows[EventState.DROPPED]
    stray = "SELECT count(*) FROM retries WHERE id NOT IN (SELECT id FROM events WHERE state < 4)"
    assert store.connection.execute(stray).fetchone() == (0,)
    assert counters["users"] == store.connection.execute("SELECT count(*) FROM users").fetchone()[0]
    assert dict(store.connection.execute("SELECT name, value FROM counters WHERE value != 0")) == {
        name: value for name, value in counters.items() if value
    }


def copied(path: Path, to: Path) -> Path:
    """Copy the files as they are at this moment, as a crash would leave them; return the path of the copy."""
    to.mkdir()
    for suffix in ("", "-wal"):
        source = path.with_name(path.name + suffix)
        if source.exists():
            (to / source.name).write_bytes(source.read_bytes())
    return to / path.name


def sqlite_error(code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("injected")
    error.sqlite_errorcode = code
    return error


def raiser(error: Exception):
    """Return a function that takes anything and raises ``error``."""

    def call(*_, **__):
        raise error

    return call


class Faults:
    """Makes SQLite calls fail, by number: before the call has done anything, or ``after`` it has.

    Calls are counted while ``armed``. Those from ``fail_at`` to ``last`` (default: only ``fail_at``) fail, or all from
    ``fail_at`` on if ``permanent``.
    """

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.armed = False
        self.fail_at: int | None = None
        self.last: int | None = None
        self.permanent = False
        self.after = False
        self.code = sqlite3.SQLITE_IOERR

    def _fails_now(self) -> bool:
        if not self.armed or self.fail_at is None:
            return False
        number = len(self.calls) - 1
        last = self.fail_at if self.last is None else self.last
        return self.fail_at <= number and (number <= last or self.permanent)

    def error(self) -> sqlite3.OperationalError:
        return sqlite_error(self.code)

    def perform(self, connection: sqlite3.Connection, sql: str, call):
        if self.armed:
            self.calls.append(sql)
        if not self._fails_now():
            return call()
        if self.after:
            call()
        elif connection.in_transaction:
            sqlite3.Connection.execute(connection, "ROLLBACK")  # as SQLite does after many such errors
        raise self.error()

    def factory(self) -> type[sqlite3.Connection]:
        faults = self

        class FaultyConnection(sqlite3.Connection):
            def execute(self, sql, *rest):
                return faults.perform(self, sql, lambda: super(FaultyConnection, self).execute(sql, *rest))

            def executemany(self, sql, *rest):
                return faults.perform(self, sql, lambda: super(FaultyConnection, self).executemany(sql, *rest))

        return FaultyConnection


class RecordingListener:
    """A commit listener that records the settled ids, by commit, and the number of calls of ``accepted``.

    ``reads`` is the page that it asks for with the next commit; ``pages`` holds what it got, in ids.
    """

    def __init__(self) -> None:
        self.settlements: list[list[int]] = []
        self.arrivals = 0
        self.reads: Callable[[Store], Page] | None = None
        self.pages: list[list[int] | None] = []

    @property
    def ids(self) -> list[int]:
        return [event_id for commit in self.settlements for event_id in commit]

    def settled(self, settlements: Sequence[Settlement]) -> None:
        self.settlements.append([settlement.id for settlement in settlements])

    def accepted(self, _priorities: Collection[Priority]) -> None:
        self.arrivals += 1

    def read_with(self, _priorities: Collection[Priority]) -> Callable[[Store], Page] | None:
        return self.reads

    def page_read(self, page: Page | None) -> None:
        self.pages.append(page and [row.id for row in page.rows])
