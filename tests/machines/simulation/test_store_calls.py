"""A store call is never abandoned: it ends before the next one begins and before the lock is free, whatever is cancelled.

The scenario runs with the real thread and the real lock, and is cancelled at every step of every task.
"""

import sqlite3
import threading
import time
from pathlib import Path
from typing import ClassVar

import trio
from test_cancellation import BeforeStep

from sidecar.clock import SystemClock
from sidecar.config import load_text
from sidecar.daemon import open_store
from sidecar.errors import Failed
from sidecar.outbox import Capacity, NewEvent, Outbox, Store, StoreFailed, ThreadRunner, take_lock
from sidecar.systemd import Notifier

COMMIT_S = 0.003


class RecordingConnection(sqlite3.Connection):
    """A connection with slow commits that records every call made while another one runs."""

    guard = threading.Lock()
    inside: ClassVar[list[str]] = []
    overlaps: ClassVar[list[str]] = []

    def _record(self, what: str, call):
        with RecordingConnection.guard:
            RecordingConnection.overlaps += [f"{what} during {other}" for other in RecordingConnection.inside]
            RecordingConnection.inside.append(what)
        try:
            if what == "COMMIT":
                time.sleep(COMMIT_S)
            return call()
        finally:
            with RecordingConnection.guard:
                RecordingConnection.inside.remove(what)

    def execute(self, sql, *rest):
        return self._record(sql, lambda: super(RecordingConnection, self).execute(sql, *rest))

    def executemany(self, sql, *rest):
        return self._record(sql, lambda: super(RecordingConnection, self).executemany(sql, *rest))

    def close(self):
        self._record("close", super().close)


async def scenario(path: Path) -> None:
    """Run three concurrent clients, then stop."""
    config = load_text(f'[px]\nproperty_key = "AP-XXXXXXXXXX-2"\n[outbox]\npath = "{path}"\n')
    runner = ThreadRunner()
    async with open_store(config, runner, Notifier({})) as store, trio.open_nursery() as nursery:
        outbox = Outbox(store, SystemClock(), Capacity(path, 2**30), runner)
        nursery.start_soon(outbox.run)
        async with trio.open_nursery() as clients:
            for number in range(3):
                clients.start_soon(client, outbox, number)
        outbox.stop()


async def client(outbox: Outbox, number: int) -> None:
    try:
        await outbox.accept([NewEvent(0, False, "u", f"m{number}", b'{"messageId":"m%d"}' % number)])
        await outbox.read(Store.pending)
    except StoreFailed:
        pass  # the writer was cancelled first


def run_cancelled(path: Path, n: int) -> int:
    """Run the scenario, cancelled before step ``n``; return the number of steps."""
    instruments: list[BeforeStep] = []

    async def main() -> None:
        with trio.CancelScope() as scope:
            instruments.append(BeforeStep(n, scope.cancel))
            trio.lowlevel.add_instrument(instruments[0])
            await scenario(path)
        assert not RecordingConnection.inside, f"{RecordingConnection.inside} still runs, and the lock is free"
        take_lock(path).release()

    trio.run(main)
    return instruments[0].steps


def test_a_cancelled_store_call_ends_before_the_next_begins(tmp_path: Path, monkeypatch):
    monkeypatch.setitem(Store.__init__.__kwdefaults__, "factory", RecordingConnection)
    monkeypatch.setattr(RecordingConnection, "overlaps", [])
    steps = run_cancelled(tmp_path / "0.db", -1)
    assert steps > 20
    for n in range(1, steps + 1):
        try:
            run_cancelled(tmp_path / f"{n}.db", n)
        except Failed as error:
            raise AssertionError(f"cancelled before step {n}: {error}") from error
        assert not RecordingConnection.overlaps, f"cancelled before step {n}: {RecordingConnection.overlaps}"


def test_two_concurrent_calls_are_detected(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(RecordingConnection, "overlaps", [])
    connection = sqlite3.connect(
        tmp_path / "x.db", factory=RecordingConnection, check_same_thread=False, isolation_level=None
    )
    connection.execute("BEGIN")
    thread = threading.Thread(target=connection.execute, args=("COMMIT",))
    thread.start()
    while not RecordingConnection.inside:
        time.sleep(0.0001)
    connection.execute("SELECT 1")
    thread.join()
    connection.close()
    assert RecordingConnection.overlaps == ["SELECT 1 during COMMIT"]
