"""Each call of SQLite in a scripted day of an outbox fails once, in every way it can.

After each run the file is opened again. Then every answered event is stored, once; every reported settlement is in the
file and was reported once; counters and rows agree.
"""

import shutil
import sqlite3
import tempfile
from pathlib import Path

import pytest
import trio
import trio.testing
from outbox_day import Day, check_day
from outbox_files import IN_MEMORY, Faults, copied, event, pending_ids

from sidecar.clock import VirtualClock
from sidecar.outbox import Capacity, InlineRunner, Outbox, Store
from sidecar.outbox.database import open_database

FAILURES = [
    (sqlite3.SQLITE_FULL, False),
    pytest.param(sqlite3.SQLITE_IOERR, False, marks=pytest.mark.whole),
    (sqlite3.SQLITE_IOERR_FSYNC, True),  # reported after the call was done: the data may be on disk or not
    pytest.param(sqlite3.SQLITE_BUSY, False, marks=pytest.mark.whole),
    pytest.param(sqlite3.SQLITE_CORRUPT, True, marks=pytest.mark.whole),
]


@pytest.fixture
def folder(monkeypatch):
    """A folder in memory where possible: hundreds of outboxes are created, and none has to be durable."""
    monkeypatch.setattr("sidecar.outbox.capacity.wal_bytes", lambda _folder: 65_536)  # a small reserve
    with tempfile.TemporaryDirectory(dir=IN_MEMORY if IN_MEMORY.is_dir() else None) as name:
        yield Path(name)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    path = tmp_path_factory.mktemp("template") / "o.db"
    open_database(path, durability="process").close()
    return path


async def one_day(folder, template, faults):
    folder.mkdir()
    shutil.copy(template, folder / "o.db")
    day = Day(folder / "o.db", durability="process", factory=faults.factory())
    faults.armed = True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(day.outbox.run)
        await day.run()
    faults.armed = False
    day.store.connection.close()
    return day


async def test_a_day_without_faults_passes_all_checks(folder, template, autojump_clock):
    day = await one_day(folder / "day", template, Faults())
    check_day(day.store.path, day.answered, day.settled)


@pytest.mark.parametrize(("code", "after"), FAILURES)
async def test_no_single_failed_call_loses_or_repeats_anything(folder, template, autojump_clock, code, after):
    reference = Faults()
    await one_day(folder / "reference", template, reference)
    assert len(reference.calls) > 80
    for number in range(len(reference.calls)):
        faults = Faults()
        faults.fail_at, faults.code, faults.after = number, code, after
        try:
            day = await one_day(folder / str(number), template, faults)
            check_day(day.store.path, day.answered, day.settled)
        except BaseException as error:
            error.add_note(f"call number {number} failed: {faults.calls[number] if number < len(faults.calls) else ''}")
            raise


@pytest.mark.parametrize(
    ("code", "length"),
    [(sqlite3.SQLITE_FULL, 3), (sqlite3.SQLITE_FULL, 40), (sqlite3.SQLITE_IOERR, 3), (sqlite3.SQLITE_IOERR, 8)],
)
async def test_a_series_of_failed_calls_loses_nothing(folder, template, autojump_clock, code, length):
    for start in range(0, 80, 9):
        faults = Faults()
        faults.code = code
        faults.fail_at, faults.last = start, start + length
        day = await one_day(folder / str(start), template, faults)
        check_day(day.store.path, day.answered, day.settled)


async def test_a_crash_right_after_any_answer_loses_nothing(tmp_path, autojump_clock):
    """The files at the moment of each answer hold what was answered: nothing waits for a later commit."""
    store = Store(tmp_path / "o.db", durability="process")
    outbox = Outbox(store, VirtualClock(), Capacity(store.path, 2**30), InlineRunner())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outbox.run)
        for number in range(20):
            await outbox.accept([event(number), event(f"{number}b")])
            crashed = Store(copied(store.path, tmp_path / str(number)), durability="process")
            assert crashed.counters["accepted"] == len(pending_ids(crashed)) == 2 * number + 2
            crashed.close()
        outbox.stop()
    store.close()
