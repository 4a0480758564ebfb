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
from outbox_files import IN_MEMORY, NOW_MS, Faults, check_account, copied, dead, delivered, dropped, event, pending_ids

from sidecar.clock import VirtualClock
from sidecar.errors import SidecarError
from sidecar.outbox import Failure, InlineRunner, Keeper, Outbox, Remembered, Room, Store
from sidecar.outbox.database import open_database

FAILURES = [
    (sqlite3.SQLITE_FULL, False),
    (sqlite3.SQLITE_IOERR, False),
    (sqlite3.SQLITE_IOERR_FSYNC, True),  # reported after the work was done: the kernel may have it, or not
    (sqlite3.SQLITE_BUSY, False),
    (sqlite3.SQLITE_CORRUPT, True),
]


class Day:
    """A scripted day. What was promised to whom is noted as it happens."""

    def __init__(self, path, faults):
        self.path = path
        self.store = Store(path, durability="process", factory=faults.factory())
        self.outbox = Outbox(self.store, VirtualClock(start_wall_ms=NOW_MS), Room(path, 2**30), InlineRunner())
        self.store.ids._newest_max = 4  # so that ids move to their table in the middle of the day
        keeper = Keeper(delivered_ms=2000, ids_ms=10**9, dead_ms=10**9, max_users=1)
        self.outbox.keep = keeper.step
        self.answered = set()
        self.settled = []
        self.outbox.on_settled = lambda settlements: self.settled.extend(one.id for one in settlements)

    async def send(self, *numbers, bad=None):
        """As an SDK does: again and again until it is answered."""
        for _ in range(300):
            try:
                await self.outbox.accept([event(n, bad=bad) for n in numbers])
            except SidecarError:
                await trio.sleep(1)
            else:
                self.answered.update(numbers)
                return
        raise AssertionError(f"{numbers} were never answered")

    async def ask(self, call, what):
        for _ in range(300):
            try:
                return await call(what)
            except SidecarError:
                await trio.sleep(1)
        raise AssertionError(f"{what} was never done")

    async def run(self):
        await self.send(1, 2, 3)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.send, 4, 5)
            nursery.start_soon(self.send, 6)
            nursery.start_soon(self.send, 7)
        page = await self.ask(self.outbox.read, lambda store: store.page(high=False, after_id=0))
        first, second, third, fourth, *_ = (row.id for row in page.rows)
        self.outbox.note_failure(Failure(second, 1, NOW_MS, NOW_MS, 1, 0, "503"))
        self.outbox.settle(delivered(first, remember=Remembered("AP", "u1", b"a")), more_expected=True)
        self.outbox.settle(dropped(second), more_expected=True)
        await self.send(8, bad="it is bad")
        await self.send(1, 9)
        await self.ask(self.outbox.write, lambda store, _now_ms: store.set_meta("paused", "yes"))
        self.outbox.settle(dead(third), more_expected=True)
        self.outbox.settle(delivered(fourth, remember=Remembered("AP", "u2", b"b")), more_expected=False)
        await trio.sleep(6)  # history is pruned, ids move, the reserve is laid by
        await self.send(10)
        for _ in range(100):
            if len(self.settled) == 4:
                break
            await trio.sleep(1)
        self.outbox.stop()

    def check(self):
        """The file as it is, opened by somebody else."""
        store = Store(self.path, durability="process")
        check_account(store)
        assert self.answered == set(range(1, 11))
        assert store.counters["accepted"] == 10
        assert sorted(self.settled) == sorted(set(self.settled))
        assert len(self.settled) == 4
        assert (store.counters["delivered"], store.counters["dropped:unmapped"]) == (2, 1)
        assert (store.counters["dead:refused"], store.counters["dead:bad_event"]) == (1, 1)
        assert len(pending_ids(store)) == 5
        assert store.get_meta("paused") == "yes"
        with store.transaction():
            again = store.accept([[event(n) for n in range(1, 11)]], NOW_MS)[0]
        assert again.repeated == 10
        store.close()


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
    day = Day(folder / "o.db", faults)
    faults.armed = True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(day.outbox.run)
        await day.run()
    faults.armed = False
    day.store.connection.close()
    return day


async def test_without_a_fault_the_day_ends_well(folder, template, autojump_clock):
    day = await one_day(folder / "day", template, Faults())
    day.check()


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
            day.check()
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
        day.check()


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
