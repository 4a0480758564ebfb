"""Group commit: who shares a transaction, who waits for what, what failures cost, and how it ends."""

import sqlite3
from random import Random

import pytest
import trio
import trio.testing
from outbox_files import NOW_MS, Faults, accept, check_account, copied, delivered, event, pending_ids

from sidecar.clock import VirtualClock
from sidecar.outbox import (
    DiskFull,
    Failure,
    InlineRunner,
    Keeper,
    NewEvent,
    Outbox,
    OutboxFull,
    Room,
    Store,
    StoreFailed,
    ThreadRunner,
)
from sidecar.outbox.writer import COMMIT_BYTES, FAILURES_MAX, SETTLE_DELAY_S


class SlowRunner:
    """Every trip takes ``took_s`` of virtual time; counts them."""

    def __init__(self, took_s=0.0):
        self.took_s = took_s
        self.trips = 0

    async def run(self, call):
        self.trips += 1
        await trio.sleep(self.took_s)
        return call()


class Rig:
    """An outbox that runs in ``nursery`` until the test ends, and what it told."""

    def __init__(self, path, *, runner=None, max_bytes=2**30, when_full="refuse", faults=None):
        factory = faults.factory() if faults else sqlite3.Connection
        self.store = Store(path, durability="process", factory=factory)
        self.room = Room(path, max_bytes, when_full=when_full)
        self.runner = runner or InlineRunner()
        self.outbox = Outbox(self.store, VirtualClock(start_wall_ms=NOW_MS), self.room, self.runner)
        self.settled = []
        self.commits = []
        self.told_of_new = 0
        self.outbox.on_settled = lambda settlements: self.settled.append([one.id for one in settlements])
        self.outbox.on_commit = lambda _took_s, rows: self.commits.append(rows)
        self.outbox.on_accepted = self._accepted

    def _accepted(self):
        self.told_of_new += 1


@pytest.fixture
def make_rig(tmp_path):
    """Makes rigs, and closes their files when the test is over."""
    made = []

    def make(**how):
        made.append(Rig(tmp_path / "o.db", **how))
        return made[-1]

    yield make
    for rig in made:
        rig.store.connection.close()


@pytest.fixture
async def rig(make_rig, nursery, autojump_clock):
    rig = make_rig()
    nursery.start_soon(rig.outbox.run)
    yield rig
    rig.outbox.stop()
    await trio.testing.wait_all_tasks_blocked()
    check_account(rig.store)


async def accept_and_note(outbox, events, log, what):
    await outbox.accept(events)
    log.append((what, trio.current_time()))


# --- Sharing commits ----------------------------------------------------------------------------------------------


async def test_a_lone_accept_is_committed_at_once(rig, autojump_clock, tmp_path):
    started = trio.current_time()
    assert await rig.outbox.accept([event(1), event(2), event(1)]) == (2, 1)
    assert trio.current_time() == started
    assert rig.commits == [2]
    assert rig.told_of_new == 1
    crashed = Store(copied(rig.store.path, tmp_path / "crash"))
    assert pending_ids(crashed) == [1, 2]
    crashed.close()


async def test_accepts_that_arrive_during_a_commit_share_the_next(make_rig, nursery, autojump_clock):
    rig = make_rig(runner=SlowRunner(0.1))
    nursery.start_soon(rig.outbox.run)
    log, start = [], trio.current_time()
    nursery.start_soon(accept_and_note, rig.outbox, [event(0)], log, 0)
    await trio.sleep(0.05)
    for number in range(1, 6):
        nursery.start_soon(accept_and_note, rig.outbox, [event(number)], log, number)
    await trio.sleep(0.3)
    assert rig.commits == [1, 5]
    assert sorted((what, round(when - start, 3)) for what, when in log) == [(0, 0.1), *((n, 0.2) for n in range(1, 6))]
    rig.outbox.stop()


async def test_a_commit_is_bounded_in_rows_and_bytes(make_rig, nursery, autojump_clock):
    rig = make_rig(runner=SlowRunner(0.1))
    nursery.start_soon(rig.outbox.run)
    log = []
    nursery.start_soon(accept_and_note, rig.outbox, [event("first")], log, 0)
    await trio.sleep(0.05)
    for number in range(4):
        big = event(number, padding=COMMIT_BYTES // 2 - 10_000)
        nursery.start_soon(accept_and_note, rig.outbox, [big], log, 0)
        await trio.testing.wait_all_tasks_blocked()
    await trio.sleep(1)
    assert rig.commits == [1, 2, 2]
    many = [event(f"{n}-b") for n in range(3000)]
    nursery.start_soon(accept_and_note, rig.outbox, [event("second")], log, 0)
    await trio.sleep(0.05)
    for part in (many[:2000], many[2000:], [event("c")] * 2001):
        nursery.start_soon(accept_and_note, rig.outbox, part, log, 0)
        await trio.testing.wait_all_tasks_blocked()
    await trio.sleep(1)
    assert rig.commits[3:] == [1, 3000, 1]
    rig.outbox.stop()


async def test_settlements_gather_for_a_moment_and_are_told_once_committed(rig, autojump_clock):
    await rig.outbox.accept([event(n) for n in range(1, 6)])
    for number in range(1, 4):
        rig.outbox.settle(delivered(number), more_expected=True)
        await trio.sleep(0.005)
    assert rig.settled == []
    await trio.sleep(SETTLE_DELAY_S)
    assert rig.settled == [[1, 2, 3]]
    assert rig.store.counters["delivered"] == 3


async def test_a_settlement_is_committed_within_its_delay_though_others_keep_coming(rig, autojump_clock):
    await rig.outbox.accept([event(n) for n in range(1, 50)])
    for number in range(1, 50):
        rig.outbox.settle(delivered(number), more_expected=True)
        await trio.sleep(0.002)
    assert rig.settled[0] == list(range(1, 14))
    await trio.sleep(1)


async def test_the_last_settlement_does_not_wait(rig, autojump_clock):
    await rig.outbox.accept([event(1), event(2)])
    rig.outbox.settle(delivered(1), more_expected=True)
    rig.outbox.settle(delivered(2), more_expected=False)
    await trio.testing.wait_all_tasks_blocked()
    assert rig.settled == [[1, 2]]


async def test_settlements_ride_along_with_an_accept(rig, autojump_clock):
    await rig.outbox.accept([event(1)])
    rig.outbox.settle(delivered(1), more_expected=True)
    await rig.outbox.accept([event(2)])
    assert rig.settled == [[1]]
    assert rig.commits == [1, 2]


async def test_a_failed_attempt_is_remembered_within_a_second_without_company(rig, autojump_clock):
    """Found by reading: it waited for the next commit, and a crash on a quiet host lost the event's patience."""
    await rig.outbox.accept([event(1)])
    rig.outbox.note_failure(Failure(1, 1, NOW_MS, NOW_MS, 1, 0, "PX answered 503"))
    await trio.sleep(1.1)
    assert rig.store.page(high=False, after_id=0).rows[0].failure.detail == "PX answered 503"


async def test_reads_see_what_the_same_trip_committed(make_rig, nursery, autojump_clock):
    rig = make_rig()
    results = []

    async def read():
        results.append(await rig.outbox.read(pending_ids))

    nursery.start_soon(read)
    nursery.start_soon(rig.outbox.accept, [event(1)])
    await trio.testing.wait_all_tasks_blocked()
    nursery.start_soon(rig.outbox.run)
    await trio.testing.wait_all_tasks_blocked()
    assert results == [[1]]
    rig.outbox.stop()


async def test_a_write_is_a_transaction_of_its_own(rig, autojump_clock):
    with pytest.raises(KeyError):
        await rig.outbox.write(lambda store, _now_ms: store.set_meta("a", "1") or {}["nothing"])
    assert await rig.outbox.write(lambda store, now_ms: store.set_meta("b", "2") or now_ms) == NOW_MS
    assert await rig.outbox.read(lambda store: (store.get_meta("a"), store.get_meta("b"))) == (None, "2")


async def test_an_error_of_a_call_goes_to_who_asked_and_nobody_else(rig, autojump_clock):
    """Found by reading: an error of any other kind than three ended the writer, and with it the daemon."""
    with pytest.raises(ZeroDivisionError):
        await rig.outbox.read(lambda _store: 1 / 0)
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        await rig.outbox.write(lambda store, _now_ms: store.connection.execute("SELECT * FROM nobody"))
    assert (await rig.outbox.accept([event(1)])).stored == 1


async def test_an_event_that_cannot_be_stored_costs_no_other(rig, autojump_clock):
    """Found by reading: text that is no Unicode ended the writer; whoever sent it would send it again."""
    odd = NewEvent(0, False, "\ud800", "odd", b"{}")
    answers = {}

    async def send(what, events):
        try:
            answers[what] = await rig.outbox.accept(events)
        except UnicodeEncodeError as error:
            answers[what] = error

    async with trio.open_nursery() as senders:
        for number in range(3):
            senders.start_soon(send, number, [event(number)])
        senders.start_soon(send, "odd", [event(7), odd])
    assert [answers[number].stored for number in range(3)] == [1, 1, 1]
    assert isinstance(answers["odd"], UnicodeEncodeError)
    assert len(pending_ids(rig.store)) == 3


# --- Cancellation and the end ---------------------------------------------------------------------------------------


async def test_who_is_cancelled_loses_the_answer_and_not_the_effect(make_rig, nursery, autojump_clock):
    rig = make_rig(runner=SlowRunner(0.1))
    nursery.start_soon(rig.outbox.run)
    with trio.move_on_after(0.05) as scope:
        await rig.outbox.accept([event(1)])
    assert scope.cancelled_caught
    assert await rig.outbox.accept([event(2), event(1)]) == (1, 1)
    rig.outbox.stop()


async def test_stop_commits_what_is_there_and_returns(make_rig, autojump_clock):
    rig = make_rig(runner=SlowRunner(0.1))
    log = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rig.outbox.run)
        nursery.start_soon(accept_and_note, rig.outbox, [event(1), event(2)], log, "first")
        await trio.sleep(0.05)
        nursery.start_soon(accept_and_note, rig.outbox, [event(3)], log, "second")
        rig.outbox.settle(delivered(1), more_expected=True)
        rig.outbox.note_failure(Failure(2, 1, NOW_MS, NOW_MS, 1, 0, "503"))
        rig.outbox.stop()
    assert [what for what, _ in log] == ["first", "second"]
    assert rig.settled == [[1]]
    assert [row.failure is not None for row in rig.store.page(high=False, after_id=0).rows] == [True, False]


async def test_nobody_waits_for_a_writer_that_has_stopped(rig, autojump_clock):
    rig.outbox.stop()
    await trio.testing.wait_all_tasks_blocked()
    with pytest.raises(StoreFailed, match="has stopped"):
        await rig.outbox.accept([event(1)])


@pytest.mark.parametrize("delay_s", [0.0, 0.05])
async def test_nobody_waits_for_a_writer_that_was_cancelled(make_rig, nursery, autojump_clock, delay_s):
    rig = make_rig(runner=SlowRunner(0.1))
    ended = []

    async def send():
        try:
            await rig.outbox.accept([event(1)])
        except StoreFailed as error:
            ended.append(error)

    with trio.CancelScope() as scope:
        nursery.start_soon(send)

        async def cancel():
            await trio.sleep(delay_s)
            scope.cancel()

        nursery.start_soon(cancel)
        await rig.outbox.run()
    await trio.testing.wait_all_tasks_blocked()
    assert len(ended) == 1


async def test_a_thread_runs_one_call_at_a_time(tmp_path):
    store = Store(tmp_path / "o.db", durability="process")
    outbox = Outbox(store, VirtualClock(), Room(store.path, 2**30), ThreadRunner())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outbox.run)
        async with trio.open_nursery() as senders:
            for number in range(50):
                senders.start_soon(outbox.accept, [event(f"{number}-{n}") for n in range(5)])
        outbox.stop()
    assert store.counters["accepted"] == 250
    check_account(store)
    store.close()


async def test_cancelling_at_any_moment_leaves_the_account_exact(tmp_path):
    """In a real thread and real time: the call is never abandoned, whatever happens to who asked."""
    store = Store(tmp_path / "o.db", durability="process")
    outbox = Outbox(store, VirtualClock(), Room(store.path, 2**30), ThreadRunner())
    random = Random(1)

    async def send(number):
        with trio.move_on_after(random.uniform(0, 0.004)):
            await outbox.accept([event(f"{number}-{n}") for n in range(3)])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(outbox.run)
        for _ in range(10):
            async with trio.open_nursery() as senders:
                for number in range(30):
                    senders.start_soon(send, number)
        answers = [await outbox.accept([event(f"{number}-{n}") for n in range(3)]) for number in range(30)]
        outbox.stop()
    assert {answer.stored for answer in answers} <= {0, 3}
    assert store.counters["accepted"] == len(pending_ids(store)) == 90
    check_account(store)
    store.close()


# --- Housekeeping ---------------------------------------------------------------------------------------------------


async def test_housekeeping_runs_while_there_is_nothing_else(rig, autojump_clock):
    keeper = Keeper(delivered_ms=2000, ids_ms=1000, dead_ms=1000, max_users=5)
    rig.outbox.keep = keeper.step
    await rig.outbox.accept([event(1)])
    rig.outbox.settle(delivered(1), more_expected=False)
    await trio.sleep(5)
    assert rig.store.connection.execute("SELECT count(*) FROM events").fetchone() == (0,)
    assert rig.store.path.with_name("o.db.reserve").exists()


async def test_housekeeping_gets_its_turn_under_constant_load(make_rig, nursery, autojump_clock):
    rig = make_rig(runner=SlowRunner(0.01))
    kept = []
    rig.outbox.keep = lambda _store, now_ms: kept.append(now_ms) or False
    nursery.start_soon(rig.outbox.run)

    async def load(who):
        for number in range(1000):
            await rig.outbox.accept([event(f"{who}-{number}")])

    async with trio.open_nursery() as loads:
        for who in range(2):
            loads.start_soon(load, who)
    assert 4 <= len(kept) <= 10
    rig.outbox.stop()


# --- Room ---------------------------------------------------------------------------------------------------------


async def fill(outbox, *, start=0):
    """Accept until refused; returns how many were accepted."""
    for number in range(start, start + 100_000, 20):
        try:
            await outbox.accept([event(n, padding=1000) for n in range(number, number + 20)])
        except OutboxFull:
            return number - start
    raise AssertionError("never full")


async def test_a_full_outbox_refuses_and_takes_again_by_itself(make_rig, nursery, autojump_clock):
    rig = make_rig(max_bytes=2**20)
    keeper = Keeper(delivered_ms=10**9, ids_ms=10**9, dead_ms=10**9, max_users=5)
    rig.outbox.keep = lambda store, now_ms: keeper.step(store, now_ms, hurry=rig.outbox.short)
    nursery.start_soon(rig.outbox.run)
    taken = await fill(rig.outbox)
    assert taken > 500
    assert rig.outbox.full == "outbox_full"
    assert rig.store.used_bytes() <= 2**20
    with pytest.raises(OutboxFull, match="1 MiB"):
        await rig.outbox.accept([event("x")])
    for number in range(1, 101):
        rig.outbox.settle(delivered(number), more_expected=True)
    await trio.sleep(3)
    assert rig.outbox.full is None
    assert await fill(rig.outbox, start=taken) >= 20
    assert rig.store.pending() == rig.store.counters["accepted"] - 100
    check_account(rig.store)
    rig.outbox.stop()


async def test_history_never_costs_an_event(make_rig, nursery, autojump_clock):
    """Found by reading: events were refused while the outbox was full of bodies of delivered ones."""
    rig = make_rig(max_bytes=2**20)
    nursery.start_soon(rig.outbox.run)
    for number in range(0, 5000, 20):
        answer = await rig.outbox.accept([event(n, padding=1000) for n in range(number, number + 20)])
        assert answer.stored == 20
        for event_id in range(number + 1, number + 21):
            rig.outbox.settle(delivered(event_id), more_expected=True)
    assert rig.store.used_bytes() <= 2**20
    rig.outbox.stop()


async def test_the_oldest_make_room_where_that_is_wanted(make_rig, nursery, autojump_clock):
    rig = make_rig(max_bytes=2**20, when_full="drop_oldest")
    rig.outbox.protected = lambda: {1, 5}
    nursery.start_soon(rig.outbox.run)
    for number in range(0, 3000, 20):
        await rig.outbox.accept([event(n, padding=1000) for n in range(number, number + 20)])
    assert rig.outbox.full is None
    assert rig.store.used_bytes() <= 2**20
    check_account(rig.store)
    assert rig.store.counters["dropped:outbox_full"] > 1000
    left = pending_ids(rig.store)
    assert left[:2] == [1, 5]
    assert left[2:] == list(range(left[2], 3001))
    rig.outbox.stop()


async def test_a_row_is_protected_as_soon_as_its_page_is_read(make_rig, nursery, autojump_clock, monkeypatch):
    """Found by reading: the next trip took its list of protected rows before the reader could name his."""
    monkeypatch.setattr("sidecar.outbox.writer.COMMIT_ROWS", 5)  # there is always a next trip at once
    monkeypatch.setattr("sidecar.outbox.overflow.STEP_ROWS", 10)  # and it drops something
    rig = make_rig(max_bytes=2**20, when_full="drop_oldest")
    loaded, dropped = set(), set()
    rig.outbox.protected = lambda: loaded
    nursery.start_soon(rig.outbox.run)

    async def flood(who):
        for number in range(0, 500, 5):
            await rig.outbox.accept([event(f"{who}-{n}", padding=1000) for n in range(number, number + 5)])

    async def deliver():
        while True:
            page = await rig.outbox.read(lambda store: store.page(high=False, after_id=0, limit=2))
            loaded.update(row.id for row in page.rows)
            await trio.lowlevel.checkpoint()
            left = await rig.outbox.read(pending_ids)
            dropped.update(loaded.difference(left))
            for event_id in loaded:
                rig.outbox.settle(delivered(event_id), more_expected=False)
            await rig.outbox.read(lambda _store: None)
            loaded.clear()

    async with trio.open_nursery() as loads:
        loads.start_soon(deliver)
        async with trio.open_nursery() as floods:
            for who in range(6):
                floods.start_soon(flood, who)
        loads.cancel_scope.cancel()
    assert rig.store.counters["dropped:outbox_full"] > 200
    assert dropped == set()
    rig.outbox.stop()


async def test_a_request_that_never_fits_is_refused_alone(make_rig, nursery, autojump_clock):
    rig = make_rig(max_bytes=2**20, when_full="drop_oldest")
    nursery.start_soon(rig.outbox.run)
    with pytest.raises(OutboxFull):
        await rig.outbox.accept([event("big", padding=2**21)])
    assert (await rig.outbox.accept([event(1)])).stored == 1
    rig.outbox.stop()


# --- Failures -------------------------------------------------------------------------------------------------------


async def test_a_disk_that_fails_for_good_ends_the_writer_and_whoever_waits(make_rig, autojump_clock):
    faults = Faults()
    rig = make_rig(faults=faults)
    await_errors = []

    async def send():
        with pytest.raises(StoreFailed) as caught:
            await rig.outbox.accept([event(1)])
        await_errors.append(caught.value)

    async def run():
        with pytest.raises(StoreFailed, match=f"failed {FAILURES_MAX} times in a row") as caught:
            await rig.outbox.run()
        assert caught.value.exit_code == 1

    faults.armed, faults.fail_at, faults.for_ever = True, 0, True
    started = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        nursery.start_soon(send)
        rig.outbox.settle(delivered(1), more_expected=False)
    assert len(await_errors) == 1
    assert 10 < trio.current_time() - started < 60


async def test_a_locked_file_is_waited_for(make_rig, nursery, autojump_clock):
    faults = Faults()
    rig = make_rig(faults=faults)
    nursery.start_soon(rig.outbox.run)
    await rig.outbox.accept([event(1)])
    faults.armed, faults.fail_at, faults.for_ever, faults.code = True, 0, True, sqlite3.SQLITE_BUSY
    with pytest.raises(StoreFailed, match="send it again"):
        await rig.outbox.accept([event(2)])
    rig.outbox.settle(delivered(1), more_expected=False)
    await trio.sleep(1)
    assert rig.settled == []
    faults.armed = False
    await trio.sleep(2)
    assert rig.settled == [[1]]
    assert (await rig.outbox.accept([event(2)])).stored == 1
    rig.outbox.stop()


async def test_a_failed_attempt_was_counted_twice_when_the_disk_failed_after_it_was_noted(rig, autojump_clock):
    """Seed 1564: what an operator asked failed in the same trip, and the attempt was noted once more by the next."""
    await rig.outbox.accept([event(1)])
    rig.outbox.note_failure(Failure(1, 1, NOW_MS, NOW_MS, 1, 0, "cut off", ambiguous=True))

    def fail(_store, _now_ms):
        raise Faults().error()

    with pytest.raises(StoreFailed):
        await rig.outbox.write(fail)
    await trio.sleep(60)
    assert (await rig.outbox.accept([event(2)])).stored == 1
    assert (rig.store.counters["retries"], rig.store.counters["ambiguous"]) == (1, 1)


async def test_a_full_disk_is_waited_for_however_long_it_lasts(make_rig, nursery, autojump_clock, monkeypatch):
    """Found by reading: after ten failures the daemon ended, and its restart sent again what was not settled."""
    faults = Faults()
    rig = make_rig(faults=faults)
    nursery.start_soon(rig.outbox.run)
    await rig.outbox.accept([event(1)])
    monkeypatch.setattr(rig.room, "free_bytes", lambda: 0)
    faults.armed, faults.fail_at, faults.for_ever, faults.code = True, 0, True, sqlite3.SQLITE_FULL
    rig.outbox.settle(delivered(1), more_expected=False)
    await trio.sleep(3600)
    with pytest.raises(DiskFull):
        await rig.outbox.accept([event(2)])
    faults.armed = False
    await trio.sleep(10)
    assert rig.settled == [[1]]
    with pytest.raises(DiskFull):
        await rig.outbox.accept([event(2)])
    monkeypatch.undo()
    await trio.sleep(10)
    assert (await rig.outbox.accept([event(2)])).stored == 1
    rig.outbox.stop()


async def test_an_error_of_housekeeping_is_not_passed_over(make_rig, nursery, autojump_clock):
    """Found by reading: an I/O error there was swallowed, and one of the reserve ended the writer without a word."""
    faults = Faults()
    rig = make_rig(faults=faults)
    connection = rig.store.connection
    nursery.start_soon(rig.outbox.run)
    await rig.outbox.accept([event(1)])
    faults.armed, faults.fail_at = True, 0
    await trio.sleep(3)
    assert rig.store.connection is not connection  # it was reopened
    assert accept(rig.store, [event(1)]).repeated == 1
    rig.outbox.stop()
