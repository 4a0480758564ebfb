"""What the outbox tests share: events, a store with an account to check, connections that fail when told to."""

import sqlite3
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from sidecar.outbox import Accepted, NewEvent, Settlement, State, Store

NOW_MS = 1_700_000_000_000
HOUR_MS = 3_600_000
IN_MEMORY = Path("/dev/shm")


def event(
    number: int | str,
    *,
    user: str | None = "u1",
    high: bool = False,
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
    return NewEvent(source, high, user, f"m{number}", body, bad)


def accept(store: Store, events: Sequence[NewEvent], now_ms: int = NOW_MS) -> Accepted:
    with store.transaction():
        return store.accept([events], now_ms)[0]


def settle(store: Store, settlements: Iterable[Settlement], now_ms: int = NOW_MS) -> None:
    with store.transaction():
        store.settle(list(settlements), now_ms)


def delivered(event_id: int, *, high: bool = False, **more) -> Settlement:
    return Settlement(event_id, high, State.DELIVERED, status=201, **more)


def dropped(event_id: int, *, reason: str = "unmapped", high: bool = False) -> Settlement:
    return Settlement(event_id, high, State.DROPPED, reason)


def dead(event_id: int, *, reason: str = "refused", high: bool = False, **more) -> Settlement:
    more = {"status": 400, "detail": "PX did not like it", "attempts": 1, "name": "Searched", "payload": b"{}"} | more
    return Settlement(event_id, high, State.DEAD, reason, **more)


@contextmanager
def undone(store: Store):
    """A transaction that ends in an error, and so in nothing."""
    with pytest.raises(ZeroDivisionError), store.transaction():  # noqa: PT012 - the yield is the simple statement
        yield
        raise ZeroDivisionError


def pending_ids(store: Store) -> list[int]:
    return [row.id for high in (True, False) for row in store.page(high=high, after_id=0, limit=1000).rows]


def check_account(store: Store) -> None:
    """The promise about counters, and that they agree with the rows that are there."""
    counters = store.counters
    totals = Counter()
    for name, value in counters.items():
        totals[name.split(":")[0]] += value
    assert all(value >= 0 for value in counters.values()), counters
    assert counters["accepted"] == store.pending() + totals["delivered"] + totals["dropped"] + totals["dead"]
    assert counters["accepted"] == counters["next_id"]
    rows = Counter(dict(store.connection.execute("SELECT state, count(*) FROM events GROUP BY state")))
    assert counters["pending_normal"] == rows[State.NORMAL] + rows[State.NORMAL_ASIDE]
    assert counters["pending_high"] == rows[State.HIGH] + rows[State.HIGH_ASIDE]
    assert totals["dead"] == rows[State.DEAD]
    letters = store.connection.execute("SELECT reason, count(*) FROM dead GROUP BY reason").fetchall()
    assert {f"dead:{reason}": count for reason, count in letters} == {
        name: value for name, value in counters.items() if name.startswith("dead:") and value
    }
    assert totals["delivered"] >= rows[State.DELIVERED]
    assert totals["dropped"] >= rows[State.DROPPED]
    stray = "SELECT count(*) FROM retries WHERE id NOT IN (SELECT id FROM events WHERE state < 4)"
    assert store.connection.execute(stray).fetchone() == (0,)
    assert counters["users"] == store.connection.execute("SELECT count(*) FROM users").fetchone()[0]
    assert dict(store.connection.execute("SELECT name, value FROM counters WHERE value != 0")) == {
        name: value for name, value in counters.items() if value
    }


def copied(path: Path, to: Path) -> Path:
    """The files as they are at this moment, as a crash would leave them."""
    to.mkdir()
    for suffix in ("", "-wal"):
        source = path.with_name(path.name + suffix)
        if source.exists():
            (to / source.name).write_bytes(source.read_bytes())
    return to / path.name


class Faults:
    """Makes the ``n``-th call of SQLite fail: before it has done anything, or after it has."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.armed = False
        self.fail_at: int | None = None
        self.last: int | None = None
        self.for_ever = False
        self.after = False
        self.code = sqlite3.SQLITE_IOERR

    def _fails_now(self) -> bool:
        if not self.armed or self.fail_at is None:
            return False
        number = len(self.calls) - 1
        last = self.fail_at if self.last is None else self.last
        return self.fail_at <= number and (number <= last or self.for_ever)

    def error(self) -> sqlite3.OperationalError:
        error = sqlite3.OperationalError("injected")
        error.sqlite_errorcode = self.code
        return error

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
