"""Every call of SQLite fails once, for all of them in a scripted day of an outbox, in every way it can.

After each run the file is opened anew, and: whoever was answered finds his events there, once; nobody was told of a
settlement that is not in the file, or twice; counters and rows agree.
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
from sidecar.outbox import InlineRunner, Outbox, Room, Store
from sidecar.outbox.database import open_database

FAILURES = [
    (sqlite3.SQLITE_FULL, False),
    (sqlite3.SQLITE_IOERR, False),
    (sqlite3.SQLITE_IOERR_FSYNC, True),  # reported after the work was done: the kernel may have it, or not
    (sqlite3.SQLITE_BUSY, False),
    (sqlite3.SQLITE_CORRUPT, True),
]


@pytest.fixture
def folder(monkeypatch):
    """In memory where there is such a place: hundreds of outboxes are made, and none of them has to last."""
    monkeypatch.setattr("sidecar.outbox.room.wal_bytes", lambda _folder: 65_536)  # a small reserve
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


async def test_without_a_fault_the_day_ends_well(folder, template, autojump_clock):
    day = await one_day(folder / "day", template, Faults())
    check_day(day.store.path, day.answered, day.settled)


@pytest.mark.parametrize(("code", "after"), FAILURES)
async def test_no_single_failed_call_loses_or_doubles_anything(folder, template, autojump_clock, code, after):
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
            error.add_note(
                f"the call that failed was number {number}: {faults.calls[number] if number < len(faults.calls) else ''}"
            )
            raise


@pytest.mark.parametrize(
    ("code", "length"),
    [(sqlite3.SQLITE_FULL, 3), (sqlite3.SQLITE_FULL, 40), (sqlite3.SQLITE_IOERR, 3), (sqlite3.SQLITE_IOERR, 8)],
)
async def test_a_bad_spell_loses_nothing(folder, template, autojump_clock, code, length):
    for start in range(0, 80, 9):
        faults = Faults()
        faults.code = code
        faults.fail_at, faults.last = start, start + length
        day = await one_day(folder / str(start), template, faults)
        check_day(day.store.path, day.answered, day.settled)


async def test_a_crash_right_after_any_answer_loses_nothing(tmp_path, autojump_clock):
    """The files as they are at each answer hold what was answered: nothing waits for a later commit."""
    store = Store(tmp_path / "o.db", durability="process")
    outbox = Outbox(store, VirtualClock(), Room(store.path, 2**30), InlineRunner())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outbox.run)
        for number in range(20):
            await outbox.accept([event(number), event(f"{number}b")])
            crashed = Store(copied(store.path, tmp_path / str(number)), durability="process")
            assert crashed.counters["accepted"] == len(pending_ids(crashed)) == 2 * number + 2
            crashed.close()
        outbox.stop()
    store.close()
