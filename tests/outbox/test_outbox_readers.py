"""A program that keeps reading the outbox is named, and the log that it lets grow counts."""

import sqlite3
import subprocess
import sys
import time
from contextlib import asynccontextmanager, closing

import pytest
import trio
from outbox_files import accept, event

from sidecar.clock import VirtualClock
from sidecar.outbox import Capacity, InlineRunner, Outbox, OutboxFull, Store
from sidecar.outbox.readers import describe_log, readers_in

LOCKS = """\
1: POSIX  ADVISORY  READ 10496 fe:00:10126244 124 124
2: POSIX  ADVISORY  READ 10496 fe:00:10126244 128 128
3: POSIX  ADVISORY  READ 77 fe:00:10126244 128 128
4: POSIX  ADVISORY  WRITE 78 fe:00:10126244 120 120
5: POSIX  ADVISORY  READ 79 fe:01:10126244 124 124
6: FLOCK  ADVISORY  READ 80 fe:00:10126244 124 124
7: POSIX  ADVISORY  READ 0 fe:00:10126244 123 127
7: -> POSIX  ADVISORY  READ 81 fe:00:10126244 127 127
8: POSIX
"""
READER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
connection.execute("BEGIN")
connection.execute("SELECT count(*) FROM events").fetchone()
print("reading", flush=True)
sys.stdin.read()
"""


def test_closing_waits_for_no_reader(tmp_path):
    """It waited for five seconds, which a stop after its timeout took for a disk that hangs, and ended with an error."""
    store = Store(tmp_path / "o.db")
    with closing(sqlite3.connect(store.path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM events").fetchone()
        accept(store, [event("new")])
        began_s = time.monotonic()
        store.close()
        assert time.monotonic() - began_s < 2


def test_readers_are_found_in_the_table_of_locks():
    assert readers_in(LOCKS, 10126244, "fe:00") == [0, 81, 10496]
    assert readers_in("", 1, "fe:00") == []


@pytest.fixture
def small_log(monkeypatch):
    for module in ("database", "capacity"):
        monkeypatch.setattr(f"sidecar.outbox.{module}.wal_bytes", lambda _folder: 65_536)


def test_a_program_that_keeps_reading_is_named(tmp_path, small_log):
    store = Store(tmp_path / "o.db")
    accept(store, [event(0)])
    command = [sys.executable, "-c", READER, str(store.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as reader:
        assert reader.stdout.readline() == b"reading\n"
        for number in range(1, 100):
            accept(store, [event(number, padding=3000)])
        log_bytes = store.path.with_name("o.db-wal").stat().st_size
        sentence = describe_log(store.path, log_bytes, 65_536)
        assert f"(pid {reader.pid}) keeps reading the outbox" in sentence
        reader.stdin.close()
    store.close()
    assert describe_log(store.path, 131_072, 65_536) == ""


@asynccontextmanager
async def running(outbox):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outbox.run)
        yield
        outbox.stop()


@pytest.mark.parametrize("when_full", ["refuse", "drop_oldest"])
async def test_a_log_that_cannot_be_used_again_counts(tmp_path, small_log, autojump_clock, when_full):
    """A reader let the log grow to three times max_bytes. With drop_oldest nothing is dropped: it would not help."""
    store = Store(tmp_path / "o.db")
    capacity = Capacity(store.path, 2**20, when_full=when_full)
    outbox = Outbox(store, VirtualClock(started_s=0), capacity, InlineRunner())
    reader = sqlite3.connect(store.path)
    try:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM events").fetchone()
        async with running(outbox):
            number = 0
            while capacity.full is None and number < 2_000:
                number += 1
                await outbox.accept([event(number)])
            with pytest.raises(OutboxFull, match="another program keeps reading"):
                await outbox.accept([event("refused")])
            assert store.path.with_name("o.db-wal").stat().st_size < 2**20 + 3 * 65_536
            assert store.counters["dropped:outbox_full"] == 0
            await outbox.maintain(lambda _store, _now_ms: False)
            assert capacity.full == "outbox_full"
            assert store.connection.execute("PRAGMA busy_timeout").fetchone()[0] > 0
            reader.rollback()
            # Without a write in between: while events are refused there may be none.
            for _ in range(2):
                await outbox.maintain(lambda _store, _now_ms: False)
            assert capacity.full is None
            await outbox.accept([event("after")])
    finally:
        reader.close()
    store.close()
