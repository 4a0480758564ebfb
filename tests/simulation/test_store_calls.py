"""A store call is never left alone: whatever is cancelled, it ends before the next begins, and before the lock is free.

With the real thread and the real lock; cancelled at every step of every task.
"""

import sqlite3
import threading
import time
from pathlib import Path
from typing import ClassVar

import trio
from test_cancellation import At

from sidecar.clock import SystemClock
from sidecar.config import load_text
from sidecar.daemon import open_store
from sidecar.outbox import NewEvent, Outbox, Room, Store, StoreFailed, ThreadRunner, take_lock
from sidecar.systemd import Notifier

COMMIT_S = 0.003


class Watched(sqlite3.Connection):
    """Takes its time with commits, and notes whoever comes in while another is inside."""

    guard = threading.Lock()
    inside: ClassVar[list[str]] = []
    met: ClassVar[list[str]] = []

    def _watched(self, what: str, call):
        with Watched.guard:
            Watched.met += [f"{what} during {other}" for other in Watched.inside]
            Watched.inside.append(what)
        try:
            if what == "COMMIT":
                time.sleep(COMMIT_S)
            return call()
        finally:
            with Watched.guard:
                Watched.inside.remove(what)

    def execute(self, sql, *rest):
        return self._watched(sql, lambda: super(Watched, self).execute(sql, *rest))

    def executemany(self, sql, *rest):
        return self._watched(sql, lambda: super(Watched, self).executemany(sql, *rest))

    def close(self):
        self._watched("close", super().close)


async def story(path: Path) -> None:
    """Three clients and a reader, each for themselves; then the end."""
    config = load_text(f'[px]\nproperty_key = "AP-XXXXXXXXXX-2"\n[outbox]\npath = "{path}"\n')
    runner = ThreadRunner()
    async with open_store(config, runner, Notifier({})) as store, trio.open_nursery() as nursery:
        outbox = Outbox(store, SystemClock(), Room(path, 2**30), runner)
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
        pass  # the writer was cancelled before


def broken_off(path: Path, n: int) -> int:
    """Tell the story, cancelled before step ``n``; how many steps there were."""
    found: list[At] = []

    async def main() -> None:
        with trio.CancelScope() as scope:
            found.append(At(n, scope.cancel))
            trio.lowlevel.add_instrument(found[0])
            await story(path)
        assert not Watched.inside, f"{Watched.inside} still goes on, and the lock is free"
        take_lock(path).release()

    trio.run(main)
    return found[0].steps


def test_a_store_call_is_never_abandoned_wherever_its_caller_is_cancelled(tmp_path: Path, monkeypatch):
    monkeypatch.setitem(Store.__init__.__kwdefaults__, "factory", Watched)
    monkeypatch.setattr(Watched, "met", [])
    steps = broken_off(tmp_path / "0.db", -1)
    assert steps > 20
    for n in range(1, steps + 1):
        broken_off(tmp_path / f"{n}.db", n)
        assert not Watched.met, f"cancelled before step {n}: {Watched.met}"


def test_this_machine_sees_two_calls_at_once(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(Watched, "met", [])
    connection = sqlite3.connect(tmp_path / "x.db", factory=Watched, check_same_thread=False, isolation_level=None)
    connection.execute("BEGIN")
    thread = threading.Thread(target=connection.execute, args=("COMMIT",))
    thread.start()
    while not Watched.inside:
        time.sleep(0.0001)
    connection.execute("SELECT 1")
    thread.join()
    connection.close()
    assert Watched.met == ["SELECT 1 during COMMIT"]
