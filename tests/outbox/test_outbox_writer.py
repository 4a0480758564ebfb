"""The writer: group commit, cancellation, housekeeping, limits of space, and failures of the disk."""

import sqlite3
from functools import partial
from random import Random

import pytest
import trio
import trio.testing
from msgspec import structs
from outbox_files import (
    NOW_MS,
    Faults,
    RecordingListener,
    accept,
    check_counters,
    copied,
    delivered,
    event,
    pending_ids,
    raiser,
    sqlite_error,
)

from sidecar.clock import VirtualClock
from sidecar.mapping import Priority
from sidecar.observe import RecordingTelemetry
from sidecar.outbox import (
    Capacity,
    DiskFull,
    Failure,
    InlineRunner,
    NewEvent,
    Outbox,
    OutboxFull,
    Retention,
    Store,
    StoreFailed,
    ThreadRunner,
)
from sidecar.outbox.accept_queue import COMMIT_BYTES, SLICE_ROWS
from sidecar.outbox.housekeeping import repeat_step
from sidecar.outbox.writer import FAILURES_MAX, SETTLE_DELAY_S


class SlowRunner:
    """Runs each store call after ``took_s`` of virtual time, and counts the calls."""

    def __init__(self, took_s=0.0):
        self.took_s = took_s
        self.calls = 0

    async def run(self, call):
        self.calls += 1
        await trio.sleep(self.took_s)
        return call()


class WriterHarness:
    """An outbox on a file of its own, with a recording listener and recording telemetry."""

    def __init__(self, path, *, runner=None, max_bytes=2**30, when_full="refuse", faults=None):
        factory = faults.factory() if faults else sqlite3.Connection
        self.store = Store(path, durability="process", factory=factory)
        self.capacity = Capacity(path, max_bytes, when_full=when_full)
        self.runner = runner or InlineRunner()
        self.telemetry = RecordingTelemetry()
        self.listener = RecordingListener()
        self.outbox = Outbox(
            self.store,
            VirtualClock(start_wall_ms=NOW_MS),
            self.capacity,
            self.runner,
            telemetry=self.telemetry,
            listener=self.listener,
        )

    @property
    def settled(self):
        return self.listener.settlements

    @property
    def commits(self):
        return self.telemetry.commits


@pytest.fixture
def make_harness(tmp_path):
    """Make harnesses, and close their files at the end of the test."""
    made = []

    def make(**how):
        made.append(WriterHarness(tmp_path / "o.db", **how))
        return made[-1]

    yield make
    for harness in made:
        harness.store.connection.close()


@pytest.fixture
async def harness(make_harness, nursery, autojump_clock):
    harness = make_harness()
    nursery.start_soon(harness.outbox.run)
    yield harness
    harness.outbox.stop()
    await trio.testing.wait_all_tasks_blocked()
    check_counters(harness.store)


async def accept_and_log(outbox, events, log, label):
    await outbox.accept(events)
    log.append((label, trio.current_time()))


# --- Sharing commits ----------------------------------------------------------------------------------------------


async def test_a_lone_accept_is_committed_at_once(harness, autojump_clock, tmp_path):
    started = trio.current_time()
    assert await harness.outbox.accept([event(1), event(2), event(1)]) == (2, 1, (2,))
    assert trio.current_time() == started
    crashed = Store(copied(harness.store.path, tmp_path / "crash"))
    assert pending_ids(crashed) == [1, 2]
    await trio.testing.wait_all_tasks_blocked()
    assert (harness.commits, harness.listener.arrivals) == ([2], 1)
    crashed.close()


async def test_a_page_is_read_in_the_call_that_commits_its_events(make_harness, nursery, autojump_clock):
    """Read in a call of its own it cost as much as the commit, and each class that had no new event was read, too."""
    calls = []

    class CountingRunner(InlineRunner):
        async def run(self, call):
            calls.append(call)
            return await super().run(call)

    harness = make_harness(runner=CountingRunner())
    nursery.start_soon(harness.outbox.run)
    harness.listener.reads = partial(Store.page, priority=Priority.NORMAL, after_id=0, limit=10)
    await harness.outbox.accept([event(1), event(2)])
    await trio.testing.wait_all_tasks_blocked()
    assert (harness.listener.pages, harness.listener.arrivals, len(calls)) == ([[1, 2]], 0, 1)
    assert harness.outbox.checked_out == {1, 2}


async def test_a_page_that_was_not_read_is_reported(make_harness, nursery, autojump_clock):
    harness = make_harness()
    nursery.start_soon(harness.outbox.run)
    harness.listener.reads = raiser(sqlite_error(sqlite3.SQLITE_IOERR))
    assert await harness.outbox.accept([event(1)]) == (1, 0, ())
    await trio.testing.wait_all_tasks_blocked()
    assert (harness.listener.pages, harness.listener.arrivals) == ([None], 1)


async def test_accepts_that_arrive_during_a_commit_share_the_next(make_harness, nursery, autojump_clock):
    harness = make_harness(runner=SlowRunner(0.1))
    nursery.start_soon(harness.outbox.run)
    log, start = [], trio.current_time()
    nursery.start_soon(accept_and_log, harness.outbox, [event(0)], log, 0)
    await trio.sleep(0.05)
    for number in range(1, 6):
        nursery.start_soon(accept_and_log, harness.outbox, [event(number)], log, number)
    await trio.sleep(0.3)
    assert harness.commits == [1, 5]
    assert sorted((what, round(when - start, 3)) for what, when in log) == [(0, 0.1), *((n, 0.2) for n in range(1, 6))]
    harness.outbox.stop()


async def test_a_commit_is_bounded_in_rows_and_bytes(make_harness, nursery, autojump_clock):
    harness = make_harness(runner=SlowRunner(0.1))
    nursery.start_soon(harness.outbox.run)
    log = []
    nursery.start_soon(accept_and_log, harness.outbox, [event("first")], log, 0)
    await trio.sleep(0.05)
    for number in range(4):
        big = event(number, padding=COMMIT_BYTES // 2 - 10_000)
        nursery.start_soon(accept_and_log, harness.outbox, [big], log, 0)
        await trio.testing.wait_all_tasks_blocked()
    await trio.sleep(1)
    assert harness.commits == [1, 2, 2]
    many = [event(f"{n}-b") for n in range(6000)]
    nursery.start_soon(accept_and_log, harness.outbox, [event("second")], log, 0)
    await trio.sleep(0.05)
    for begin in range(0, 6000, SLICE_ROWS):
        part = many[begin : begin + SLICE_ROWS]
        nursery.start_soon(accept_and_log, harness.outbox, part, log, 0)
        await trio.testing.wait_all_tasks_blocked()
    await trio.sleep(1)
    assert harness.commits[3:] == [1, 2000, 2000, 2000]
    harness.outbox.stop()


async def test_a_small_request_waits_for_a_slice_not_for_a_large_request(make_harness, nursery, autojump_clock):
    """Eight clients with batches of 5 MiB held up another one's event for as long as two such batches took."""
    harness = make_harness(runner=SlowRunner(0.1))
    nursery.start_soon(harness.outbox.run)
    log, start = [], trio.current_time()
    for label in ("large", "another"):
        events = [event(f"{label}-{n}") for n in range(5 * SLICE_ROWS)]
        nursery.start_soon(accept_and_log, harness.outbox, events, log, label)
        await trio.testing.wait_all_tasks_blocked()
    await trio.sleep(0.05)
    nursery.start_soon(accept_and_log, harness.outbox, [event("small")], log, "small")
    await trio.sleep(2)
    assert [(label, round(when_s - start, 3)) for label, when_s in log] == [
        ("small", 0.2),
        ("large", 0.6),
        ("another", 1.1),
    ]
    harness.outbox.stop()


async def test_a_large_request_that_fails_midway_says_what_is_stored(make_harness, nursery, autojump_clock):
    faults = Faults()
    harness = make_harness(runner=SlowRunner(0.1), faults=faults)
    nursery.start_soon(harness.outbox.run)
    events = [event(n) for n in range(2 * SLICE_ROWS)]
    request = harness.outbox.submit(events)
    await trio.sleep(0.15)
    faults.armed, faults.fail_at = True, 0
    with pytest.raises(StoreFailed, match=r"send the request again\. 500 of its events are stored"):
        await request.wait()
    assert await harness.outbox.accept(events) == (SLICE_ROWS, SLICE_ROWS, tuple(range(SLICE_ROWS)))
    harness.outbox.stop()


async def test_settlements_are_collected_and_reported_once_committed(harness, autojump_clock):
    await harness.outbox.accept([event(n) for n in range(1, 6)])
    for number in range(1, 4):
        harness.outbox.settle(delivered(number), more_expected=True)
        await trio.sleep(0.005)
    assert harness.settled == []
    await trio.sleep(SETTLE_DELAY_S)
    assert harness.settled == [[1, 2, 3]]
    assert harness.store.counters["delivered"] == 3


async def test_a_settlement_is_committed_within_its_delay(harness, autojump_clock):
    await harness.outbox.accept([event(n) for n in range(1, 50)])
    for number in range(1, 50):
        harness.outbox.settle(delivered(number), more_expected=True)
        await trio.sleep(0.002)
    assert harness.settled[0] == list(range(1, 14))
    await trio.sleep(1)


async def test_the_last_settlement_does_not_wait(harness, autojump_clock):
    await harness.outbox.accept([event(1), event(2)])
    harness.outbox.settle(delivered(1), more_expected=True)
    harness.outbox.settle(delivered(2), more_expected=False)
    await trio.testing.wait_all_tasks_blocked()
    assert harness.settled == [[1, 2]]


async def test_a_caller_is_answered_before_delivery_gets_the_page(make_harness, nursery, autojump_clock):
    harness = make_harness()
    harness.listener.reads = partial(Store.page, priority=Priority.NORMAL, after_id=0)
    nursery.start_soon(harness.outbox.run)
    for number in range(20):  # trio runs ready tasks in either order
        await harness.outbox.accept([event(number)])
        assert len(harness.listener.pages) == number
        await trio.testing.wait_all_tasks_blocked()
        assert len(harness.listener.pages) == number + 1


async def test_settlements_are_committed_with_an_accept(harness, autojump_clock):
    await harness.outbox.accept([event(1)])
    harness.outbox.settle(delivered(1), more_expected=True)
    await harness.outbox.accept([event(2)])
    await trio.testing.wait_all_tasks_blocked()
    assert harness.settled == [[1]]
    assert harness.commits == [1, 2]


async def test_a_failed_attempt_is_stored_within_a_second(harness, autojump_clock):
    """It once waited for the next commit, and a crash on a quiet host lost the attempt."""
    await harness.outbox.accept([event(1)])
    harness.outbox.record_failure(Failure(1, 1, NOW_MS, NOW_MS, 1, 0, "PX answered 503"))
    await trio.sleep(1.1)
    assert harness.store.page(priority=Priority.NORMAL, after_id=0).rows[0].failure.detail == "PX answered 503"


async def test_reads_see_the_commit_of_their_batch(make_harness, nursery, autojump_clock):
    harness = make_harness()
    results = []

    async def read():
        results.append(await harness.outbox.read(pending_ids))

    nursery.start_soon(read)
    nursery.start_soon(harness.outbox.accept, [event(1)])
    await trio.testing.wait_all_tasks_blocked()
    nursery.start_soon(harness.outbox.run)
    await trio.testing.wait_all_tasks_blocked()
    assert results == [[1]]
    harness.outbox.stop()


async def test_a_write_is_a_transaction_of_its_own(harness, autojump_clock):
    with pytest.raises(KeyError):
        await harness.outbox.write(lambda store, _now_ms: store.set_meta("a", "1") or {}["nothing"])
    assert await harness.outbox.write(lambda store, now_ms: store.set_meta("b", "2") or now_ms) == NOW_MS
    assert await harness.outbox.read(lambda store: (store.get_meta("a"), store.get_meta("b"))) == (None, "2")


async def test_an_error_of_a_call_goes_to_its_caller_only(harness, autojump_clock):
    """An error of any kind but three once ended the writer, and with it the daemon."""
    with pytest.raises(ZeroDivisionError):
        await harness.outbox.read(lambda _store: 1 / 0)
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        await harness.outbox.write(lambda store, _now_ms: store.connection.execute("SELECT * FROM unknown"))
    assert (await harness.outbox.accept([event(1)])).stored == 1


async def test_an_event_that_cannot_be_stored_affects_no_other(harness, autojump_clock):
    """Text that is not valid Unicode once ended the writer, and the client sent it again after each restart."""
    odd = NewEvent(0, False, "\ud800", "odd", b"{}")
    answers = {}

    async def send(what, events):
        try:
            answers[what] = await harness.outbox.accept(events)
        except UnicodeEncodeError as error:
            answers[what] = error

    async with trio.open_nursery() as senders:
        for number in range(3):
            senders.start_soon(send, number, [event(number)])
        senders.start_soon(send, "odd", [event(7), odd])
    assert [answers[number].stored for number in range(3)] == [1, 1, 1]
    assert isinstance(answers["odd"], UnicodeEncodeError)
    assert len(pending_ids(harness.store)) == 3


# --- Cancellation and the end ---------------------------------------------------------------------------------------


async def test_a_cancelled_caller_loses_the_answer_not_the_effect(make_harness, nursery, autojump_clock):
    harness = make_harness(runner=SlowRunner(0.1))
    nursery.start_soon(harness.outbox.run)
    with trio.move_on_after(0.05) as scope:
        await harness.outbox.accept([event(1)])
    assert scope.cancelled_caught
    assert await harness.outbox.accept([event(2), event(1)]) == (1, 1, (1,))
    harness.outbox.stop()


async def test_stop_commits_what_is_queued_and_returns(make_harness, autojump_clock):
    harness = make_harness(runner=SlowRunner(0.1))
    log = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(harness.outbox.run)
        nursery.start_soon(accept_and_log, harness.outbox, [event(1), event(2)], log, "first")
        await trio.sleep(0.05)
        nursery.start_soon(accept_and_log, harness.outbox, [event(3)], log, "second")
        harness.outbox.settle(delivered(1), more_expected=True)
        harness.outbox.record_failure(Failure(2, 1, NOW_MS, NOW_MS, 1, 0, "503"))
        harness.outbox.stop()
    assert [what for what, _ in log] == ["first", "second"]
    assert harness.settled == [[1]]
    assert [row.failure is not None for row in harness.store.page(priority=Priority.NORMAL, after_id=0).rows] == [
        True,
        False,
    ]


async def test_a_stopped_writer_refuses_requests(harness, autojump_clock):
    harness.outbox.stop()
    await trio.testing.wait_all_tasks_blocked()
    with pytest.raises(StoreFailed, match="has stopped"):
        await harness.outbox.accept([event(1)])


@pytest.mark.parametrize("delay_s", [0.0, 0.05])
async def test_a_cancelled_writer_fails_waiting_callers(make_harness, nursery, autojump_clock, delay_s):
    harness = make_harness(runner=SlowRunner(0.1))
    ended = []

    async def send():
        try:
            await harness.outbox.accept([event(1)])
        except StoreFailed as error:
            ended.append(error)

    with trio.CancelScope() as scope:
        nursery.start_soon(send)

        async def cancel():
            await trio.sleep(delay_s)
            scope.cancel()

        nursery.start_soon(cancel)
        await harness.outbox.run()
    await trio.testing.wait_all_tasks_blocked()
    assert len(ended) == 1


async def test_a_thread_runs_one_call_at_a_time(tmp_path):
    store = Store(tmp_path / "o.db", durability="process")
    outbox = Outbox(store, VirtualClock(), Capacity(store.path, 2**30), ThreadRunner())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outbox.run)
        async with trio.open_nursery() as senders:
            for number in range(50):
                senders.start_soon(outbox.accept, [event(f"{number}-{n}") for n in range(5)])
        outbox.stop()
    assert store.counters["accepted"] == 250
    check_counters(store)
    store.close()


async def test_cancelling_at_any_moment_keeps_the_counters_exact(tmp_path):
    """In a real thread and real time: a call is never abandoned, even if its caller is cancelled."""
    store = Store(tmp_path / "o.db", durability="process")
    outbox = Outbox(store, VirtualClock(), Capacity(store.path, 2**30), ThreadRunner())
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
    check_counters(store)
    store.close()


# --- Housekeeping ---------------------------------------------------------------------------------------------------


async def test_housekeeping_runs_while_idle(harness, nursery, autojump_clock):
    retention = Retention(delivered_ms=2000, ids_ms=1000, dead_ms=1000, max_users=5)
    nursery.start_soon(repeat_step, harness.outbox, retention.prune_step)
    await harness.outbox.accept([event(1)])
    harness.outbox.settle(delivered(1), more_expected=False)
    await trio.sleep(5)
    assert harness.store.connection.execute("SELECT count(*) FROM events").fetchone() == (0,)
    assert harness.store.path.with_name("o.db.reserve").exists()


async def test_housekeeping_runs_under_constant_load(make_harness, nursery, autojump_clock):
    harness = make_harness(runner=SlowRunner(0.01))
    steps = []
    nursery.start_soon(harness.outbox.run)
    nursery.start_soon(repeat_step, harness.outbox, lambda _store, now_ms: steps.append(now_ms) or False)

    async def load(sender):
        for number in range(1000):
            await harness.outbox.accept([event(f"{sender}-{number}")])

    async with trio.open_nursery() as loads:
        for sender in range(2):
            loads.start_soon(load, sender)
    assert 4 <= len(steps) <= 10
    harness.outbox.stop()


# --- Capacity -----------------------------------------------------------------------------------------------------


async def fill(outbox, *, start=0):
    """Accept until refused; return the number of accepted events."""
    for number in range(start, start + 100_000, 20):
        try:
            await outbox.accept([event(n, padding=1000) for n in range(number, number + 20)])
        except OutboxFull:
            return number - start
    raise AssertionError("never full")


async def test_a_full_outbox_refuses_and_later_accepts_again(make_harness, nursery, autojump_clock):
    harness = make_harness(max_bytes=2**20)
    retention = Retention(delivered_ms=10**9, ids_ms=10**9, dead_ms=10**9, max_users=5)
    nursery.start_soon(harness.outbox.run)
    nursery.start_soon(
        repeat_step, harness.outbox, lambda store, now_ms: retention.prune_step(store, now_ms, hurry=True)
    )
    taken = await fill(harness.outbox)
    assert taken > 500
    assert harness.outbox.capacity.full == "outbox_full"
    assert harness.store.used_bytes() <= 2**20
    with pytest.raises(OutboxFull, match="1 MiB"):
        await harness.outbox.accept([event("x")])
    for number in range(1, 101):
        harness.outbox.settle(delivered(number), more_expected=True)
    await trio.sleep(3)
    assert harness.outbox.capacity.full is None
    assert await fill(harness.outbox, start=taken) >= 20
    assert harness.store.pending() == harness.store.counters["accepted"] - 100
    assert harness.telemetry.storable[:3] == ["", "outbox_full", ""]  # what the log says
    check_counters(harness.store)
    harness.outbox.stop()


async def test_history_is_deleted_before_events_are_refused(make_harness, nursery, autojump_clock):
    """Events were once refused while the outbox was full of delivered events."""
    harness = make_harness(max_bytes=2**20)
    nursery.start_soon(harness.outbox.run)
    for number in range(0, 5000, 20):
        answer = await harness.outbox.accept([event(n, padding=1000) for n in range(number, number + 20)])
        assert answer.stored == 20
        for event_id in range(number + 1, number + 21):
            harness.outbox.settle(delivered(event_id), more_expected=True)
    assert harness.store.used_bytes() <= 2**20
    harness.outbox.stop()


async def test_drop_oldest_drops_pending_events_not_checked_out(make_harness, nursery, autojump_clock):
    harness = make_harness(max_bytes=2**20, when_full="drop_oldest")
    nursery.start_soon(harness.outbox.run)
    await harness.outbox.accept([event(n, padding=1000) for n in range(20)])
    page = await harness.outbox.load_page(priority=Priority.NORMAL, after_id=0, limit=20)
    harness.outbox.release({row.id for row in page.rows} - {1, 5})
    for number in range(20, 3000, 20):
        await harness.outbox.accept([event(n, padding=1000) for n in range(number, number + 20)])
    assert harness.outbox.capacity.full is None
    assert harness.store.used_bytes() <= 2**20
    check_counters(harness.store)
    assert harness.store.counters["dropped:outbox_full"] > 1000
    left = pending_ids(harness.store)
    assert left[:2] == [1, 5]
    assert left[2:] == list(range(left[2], 3001))
    harness.outbox.stop()


async def test_a_row_is_protected_as_soon_as_its_page_is_read(make_harness, nursery, autojump_clock, monkeypatch):
    """The next batch once took its list of protected rows before the reader had registered those of its page."""
    monkeypatch.setattr("sidecar.outbox.accept_queue.COMMIT_ROWS", 5)  # so there is always a next batch
    monkeypatch.setattr("sidecar.outbox.overflow.STEP_ROWS", 10)  # which drops events
    harness = make_harness(max_bytes=2**20, when_full="drop_oldest")
    dropped = set()
    nursery.start_soon(harness.outbox.run)

    async def flood(sender):
        for number in range(0, 500, 5):
            await harness.outbox.accept([event(f"{sender}-{n}", padding=1000) for n in range(number, number + 5)])

    async def deliver():
        while True:
            page = await harness.outbox.load_page(priority=Priority.NORMAL, after_id=0, limit=2)
            loaded = {row.id for row in page.rows}
            left = await harness.outbox.read(pending_ids)
            dropped.update(loaded.difference(left))
            for event_id in loaded:
                harness.outbox.settle(delivered(event_id), more_expected=False)
            await harness.outbox.read(lambda _store: None)

    async with trio.open_nursery() as loads:
        loads.start_soon(deliver)
        async with trio.open_nursery() as floods:
            for sender in range(6):
                floods.start_soon(flood, sender)
        loads.cancel_scope.cancel()
    assert harness.store.counters["dropped:outbox_full"] > 200
    assert dropped == set()
    harness.outbox.stop()


async def test_a_request_that_never_fits_is_refused_alone(make_harness, nursery, autojump_clock):
    harness = make_harness(max_bytes=2**20, when_full="drop_oldest")
    nursery.start_soon(harness.outbox.run)
    with pytest.raises(OutboxFull):
        await harness.outbox.accept([event("big", padding=2**21)])
    assert (await harness.outbox.accept([event(1)])).stored == 1
    harness.outbox.stop()


async def test_a_request_that_is_stored_alone_has_no_error(make_harness, nursery, autojump_clock):
    """It was refused for want of space beside another, which SQLite cannot store; it answered 503 and was stored."""
    harness = make_harness(max_bytes=2**20)
    unstorable = structs.replace(event(1, padding=700_000), user="\ud800")
    first, second = harness.outbox.submit([unstorable]), harness.outbox.submit([event(2, padding=500_000)])
    nursery.start_soon(harness.outbox.run)
    with pytest.raises(UnicodeEncodeError):
        await first.wait()
    assert (await second.wait()).stored == 1
    harness.outbox.stop()


# --- Failures -------------------------------------------------------------------------------------------------------


async def test_a_disk_that_keeps_failing_ends_writer_and_callers(make_harness, autojump_clock):
    faults = Faults()
    harness = make_harness(faults=faults)
    await_errors = []

    async def send():
        with pytest.raises(StoreFailed) as caught:
            await harness.outbox.accept([event(1)])
        await_errors.append(caught.value)

    async def run():
        with pytest.raises(StoreFailed, match=f"failed {FAILURES_MAX} times in a row") as caught:
            await harness.outbox.run()
        assert caught.value.exit_code == 1

    faults.armed, faults.fail_at, faults.permanent = True, 0, True
    started = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        nursery.start_soon(send)
        harness.outbox.settle(delivered(1), more_expected=False)
    assert len(await_errors) == 1
    assert 10 < trio.current_time() - started < 60


async def test_a_locked_file_is_waited_for(make_harness, nursery, autojump_clock):
    faults = Faults()
    harness = make_harness(faults=faults)
    nursery.start_soon(harness.outbox.run)
    await harness.outbox.accept([event(1)])
    faults.armed, faults.fail_at, faults.permanent, faults.code = True, 0, True, sqlite3.SQLITE_BUSY
    with pytest.raises(StoreFailed, match="send the request again"):
        await harness.outbox.accept([event(2)])
    harness.outbox.settle(delivered(1), more_expected=False)
    await trio.sleep(1)
    assert harness.settled == []
    faults.armed = False
    await trio.sleep(2)
    assert harness.settled == [[1]]
    assert (await harness.outbox.accept([event(2)])).stored == 1
    harness.outbox.stop()


async def test_a_failed_attempt_is_counted_once_if_a_later_call_fails(harness, autojump_clock):
    """A write in the same batch failed, and the next batch stored the attempt once more (simulation, seed 1564)."""
    await harness.outbox.accept([event(1)])
    harness.outbox.record_failure(Failure(1, 1, NOW_MS, NOW_MS, 1, 0, "cut off", ambiguous=True))

    def fail(_store, _now_ms):
        raise Faults().error()

    with pytest.raises(StoreFailed):
        await harness.outbox.write(fail)
    await trio.sleep(60)
    assert (await harness.outbox.accept([event(2)])).stored == 1
    assert (harness.store.counters["retries"], harness.store.counters["ambiguous"]) == (1, 1)


async def test_a_full_disk_is_waited_for_without_limit(make_harness, nursery, autojump_clock, monkeypatch):
    """After ten failures the daemon once ended, and after its restart unsettled events were sent again."""
    faults = Faults()
    harness = make_harness(faults=faults)
    nursery.start_soon(harness.outbox.run)
    nursery.start_soon(repeat_step, harness.outbox, lambda _store, _now_ms: False)
    await harness.outbox.accept([event(1)])
    monkeypatch.setattr(harness.capacity, "free_bytes", lambda: 0)
    faults.armed, faults.fail_at, faults.permanent, faults.code = True, 0, True, sqlite3.SQLITE_FULL
    harness.outbox.settle(delivered(1), more_expected=False)
    await trio.sleep(3600)
    with pytest.raises(DiskFull):
        await harness.outbox.accept([event(2)])
    faults.armed = False
    await trio.sleep(10)
    assert harness.settled == [[1]]
    with pytest.raises(DiskFull):
        await harness.outbox.accept([event(2)])
    monkeypatch.undo()
    await trio.sleep(10)
    assert (await harness.outbox.accept([event(2)])).stored == 1
    harness.outbox.stop()


async def test_an_error_in_housekeeping_reopens_the_file(make_harness, nursery, autojump_clock):
    """An I/O error in a step was once swallowed, and one of the reserve ended the writer without a message."""
    faults = Faults()
    harness = make_harness(faults=faults)
    connection = harness.store.connection
    nursery.start_soon(harness.outbox.run)
    await harness.outbox.accept([event(1)])
    faults.armed, faults.fail_at = True, 0
    nursery.start_soon(repeat_step, harness.outbox, lambda _store, _now_ms: False)
    await trio.sleep(3)
    assert harness.store.connection is not connection  # it was reopened
    assert accept(harness.store, [event(1)]).repeated == 1
    harness.outbox.stop()
