"""Group commit: callers enqueue requests, and one task runs all queued requests in one transaction with one fsync.

Theory
------
A caller enqueues a request and waits. The writer takes everything that is queued, runs it in one transaction in the
store's thread, commits, and only then wakes the callers: an answer waits for the commit that holds its event, and no
longer. Requests that arrive while a commit runs form the next batch, so the more there is to do, the more one fsync
carries; a lone request is run at once. Large requests take several transactions (``accept_queue.py``).

Settlements are collected for up to ``SETTLE_DELAY_S`` as long as more are expected: their commit frees delivery slots
and bounds what a crash repeats, but no caller waits for a single one. They never fail: a settlement whose commit failed
stays queued and is part of the next batch.

Reads run after the commit of their batch, so that they see what is on disk and nothing else.

The outbox knows which pending events are *checked out* for delivery: an event is checked out in the same call that
reads its page, and released when its settlement is committed, when it is parked, or by ``release``. Checked-out events
are never dropped to free space.

Cancellation: a cancelled caller loses the answer, never the effect; a store call is never abandoned. The writer stops
last: ``stop`` lets it finish what is queued.
"""

import logging
from collections.abc import Callable, Collection, Container, Iterable, Sequence
from functools import partial
from typing import Any, Final, Protocol, TypeVar

import trio

from sidecar.clock import Clock
from sidecar.errors import SidecarError
from sidecar.mapping import Priority
from sidecar.observe import NullTelemetry, Telemetry
from sidecar.outbox.accept_queue import AcceptQueue, WriteRequest
from sidecar.outbox.capacity import Capacity
from sidecar.outbox.clock_trust import ClockTrust, load_clock_record
from sidecar.outbox.committer import Batch, Committer, Damaged, OutboxGone, StoreFailed
from sidecar.outbox.records import Accepted, Failure, NewEvent, Page, Row, Settlement
from sidecar.outbox.store import Store

__all__ = ["CommitListener", "InlineRunner", "NullListener", "Outbox", "Runner", "ThreadRunner"]

# Settlements are committed at the latest 50 ms after PX's answer; half of that is left for the commit itself.
SETTLE_DELAY_S: Final = 0.025
# A failed attempt is recorded within a second, in a commit of its own if there is no other.
FAILURE_DELAY_S: Final = 1.0
# A maintenance step waits for idle time, but no longer than this; less when the outbox is nearly full.
MAINTENANCE_PATIENCE_S: Final = 1.0
MAINTENANCE_PATIENCE_NEARLY_FULL_S: Final = 0.05
FAILURES_MAX: Final = 10
RETRY_MAX_S: Final = 5.0

T = TypeVar("T")

log = logging.getLogger(__name__)


class Runner(Protocol):
    """The place where store calls run: the seam that tests and the simulation replace."""

    async def run(self, call: Callable[[], T]) -> T:
        """Run ``call`` to its end, whatever is cancelled meanwhile, and return or raise what it does."""
        ...


class ThreadRunner:
    """Run store calls in a thread, one at a time.

    Without ``trio.to_thread``: its limiter, context and thread names cost a call 14 µs of 42, and its default limiter is
    shared with DNS look-ups, of which 40 that hang would delay a commit for seconds (sidecar/outbox/README.md#measurements).
    """

    def __init__(self) -> None:
        self._turn = trio.Lock()
        self._since_s = 0.0

    async def run(self, call: Callable[[], T]) -> T:
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            self._turn.acquire_nowait()  # `acquire` would pass through the scheduler
        except trio.WouldBlock:
            await self._turn.acquire()
        self._since_s = trio.current_time()
        try:
            return await _in_thread(call)
        finally:
            self._turn.release()

    def busy_s(self) -> float:
        """Return for how long the present call has run; 0 if there is none."""
        return trio.current_time() - self._since_s if self._turn.locked() else 0.0


async def _in_thread(call: Callable[[], T]) -> T:
    """Run ``call`` in a thread of trio's to its end: a store call is never abandoned, so no cancellation reaches it."""
    task, token = trio.lowlevel.current_task(), trio.lowlevel.current_trio_token()

    def deliver(result: Any) -> None:
        token.run_sync_soon(trio.lowlevel.reschedule, task, result)

    trio.lowlevel.start_thread_soon(call, deliver)
    result: T = await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED)
    return result


class InlineRunner:
    """Run store calls in the caller's task, for tests: during a call in a thread the virtual clock would jump ahead."""

    async def run(self, call: Callable[[], T]) -> T:
        await trio.lowlevel.checkpoint()
        return call()


class CommitListener(Protocol):
    """A receiver that is called after each commit, in trio's thread: delivery frees slots and reads new events."""

    def settled(self, settlements: Sequence[Settlement]) -> None:
        """These settlements are on disk."""
        ...

    def accepted(self, priorities: Collection[Priority]) -> None:
        """There may be new pending events of these classes on disk."""
        ...

    def read_with(self, priorities: Collection[Priority]) -> Callable[[Store], Page] | None:
        """Return a page to read after the commit of new events of these classes; ``page_read`` then follows."""
        ...

    def page_read(self, page: Page | None) -> None:
        """Take the page of ``read_with``, checked out; None if it was not read."""
        ...


class NullListener:
    """The listener of an outbox that nothing is delivered from."""

    def settled(self, settlements: Sequence[Settlement]) -> None:
        """Do nothing."""

    def accepted(self, priorities: Collection[Priority]) -> None:
        """Do nothing."""

    def read_with(self, priorities: Collection[Priority]) -> Callable[[Store], Page] | None:
        """Return None."""

    def page_read(self, page: Page | None) -> None:
        """Do nothing."""


class Outbox:
    """The asynchronous interface of the store: the one writer that all connections and the dispatcher share."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        capacity: Capacity,
        runner: Runner,
        *,
        telemetry: Telemetry | None = None,
        listener: CommitListener | None = None,
        clock_trust: ClockTrust | None = None,
    ) -> None:
        self.capacity = capacity
        self.clock_trust = clock_trust or ClockTrust(clock, load_clock_record(store))
        self._store = store
        self._clock = clock
        self._runner = runner
        self._telemetry = telemetry or NullTelemetry()
        self._listener = listener or NullListener()
        self._checked_out: set[int] = set()
        self._committer = Committer(store, capacity, self._checked_out, alive=self._report_alive)
        self._problem: str | None = None
        self.maintenance_took_s = 0.0  # the last step of housekeeping
        self._token: trio.lowlevel.TrioToken | None = None
        self._accepts = AcceptQueue()
        self._writes: list[WriteRequest] = []
        self._reads: list[WriteRequest] = []
        self._maintenance: list[WriteRequest] = []
        self._settlements: list[Settlement] = []
        self._failures: list[Failure] = []
        self._settle_by_s = float("inf")
        self._maintain_by_s = float("inf")
        self._retry_at_s = 0.0
        self._wake = trio.Event()
        self._stopping = False
        self._stopped = False
        self._failed_in_a_row = 0

    @property
    def counters(self) -> dict[str, int]:
        """The counters as of the last commit."""
        return dict(self._store.counters)

    @property
    def checked_out(self) -> frozenset[int]:
        """The ids of pending events that were read for delivery and are not settled, parked or released."""
        return frozenset(self._checked_out)

    @property
    def checked_out_now(self) -> Container[int]:
        """The same as a live collection: for a call in the store's thread, which asks whether an id is in it.

        An event is checked out in that thread, too. A copy that was made before the call lacks what was read since, which
        may be in flight already.
        """
        return self._checked_out

    @property
    def unrecorded_failures(self) -> tuple[Failure, ...]:
        """The failed attempts that wait for the next commit."""
        return tuple(self._failures)

    @property
    def rescuing(self) -> bool:
        """True while the file is gone from its path: only this process has its content."""
        return self._committer.rescuing

    @property
    def problem(self) -> str | None:
        """The reason why events cannot be stored at present, as a sentence; None if the last batch was stored."""
        if self._committer.rescuing:
            return f"The outbox {self._store.path} is gone from its path and is being put back; nothing is stored meanwhile."
        return self._problem

    # Requests ---------------------------------------------------------------------------------------------------

    async def accept(self, events: Sequence[NewEvent]) -> Accepted:
        """Store events; returns after the commit that holds them is on disk.

        Raises OutboxFull, DiskFull or StoreFailed, and then none of them is stored; of more than one slice
        (``accept_queue.py``) some may be. If the caller is cancelled they may be, too.
        """
        result: Accepted = await self.submit(events).wait()
        return result

    def submit(self, events: Sequence[NewEvent], *, behind: WriteRequest | None = None) -> WriteRequest:
        """Begin to store events: ``await request.wait()`` is what ``accept`` would do. Raises OutboxFull or DiskFull.

        They are stored after those of ``behind``, the caller's previous request, even if no caller waits for them any more.
        """
        # Refused before it is queued: a queued request holds its bodies in memory until the next commit.
        self.capacity.check()
        self._ensure_running()
        request = self._accepts.add(events, behind)
        self._wake.set()
        return request

    async def write(self, call: Callable[[Store, int], T]) -> T:
        """Run ``call(store, now_ms)`` inside a transaction of its own; returns its result after the commit.

        Raises what ``call`` raises, and then nothing of it was done; DiskFull or StoreFailed.
        """
        result: T = await self._ask(self._writes, WriteRequest(call))
        return result

    async def read(self, call: Callable[[Store], T]) -> T:
        """Run ``call(store)`` between transactions. Raises what ``call`` raises, or StoreFailed."""
        result: T = await self._ask(self._reads, WriteRequest(call))
        return result

    async def maintain(self, step: Callable[[Store, int], bool]) -> bool:
        """Run one step of housekeeping when nothing else is due; True if there is more to do at once.

        ``step(store, now_ms)`` runs inside a transaction. The reserve is allocated before it, and the WAL is copied
        into the file after it. Raises what is wrong with the disk.
        """
        patience_s = MAINTENANCE_PATIENCE_NEARLY_FULL_S if self.capacity.nearly_full else MAINTENANCE_PATIENCE_S
        # Under load there is always a batch to run. From this time on housekeeping goes first, or the disk would fill.
        self._maintain_by_s = self._clock.monotonic_s() + patience_s
        more: bool = await self._ask(self._maintenance, WriteRequest(step))
        return more

    async def _ask(self, queue: list[WriteRequest], request: WriteRequest) -> Any:
        self._enqueue(queue, request)
        return await request.wait()

    def _enqueue(self, queue: list[WriteRequest], request: WriteRequest) -> None:
        self._ensure_running()
        queue.append(request)
        self._wake.set()

    def _ensure_running(self) -> None:
        if self._stopped:
            raise self._committer.failure("the writer has stopped")

    # Delivery ---------------------------------------------------------------------------------------------------

    async def load_page(self, *, priority: Priority, after_id: int, limit: int) -> Page:
        """Check out the next pending events of a class. Raises StoreFailed."""
        return await self.read(
            partial(self._check_out, partial(Store.page, priority=priority, after_id=after_id, limit=limit))
        )

    async def load_parked_page(self, *, priority: Priority, user: str, after_id: int, limit: int) -> Page:
        """Check out the next parked events of one user. Raises StoreFailed."""
        call = partial(Store.parked_page, priority=priority, user=user, after_id=after_id, limit=limit)
        return await self.read(partial(self._check_out, call))

    async def load_rows(self, ids: Sequence[int]) -> list[Row]:
        """Read checked-out events again; those that are not pending any more are missing. Raises StoreFailed."""
        return await self.read(lambda store: store.rows(ids))

    def _check_out(self, call: Callable[[Store], Page], store: Store) -> Page:
        """Read a page and check its rows out in one call of the store's thread: no batch can run in between."""
        page = call(store)
        self._checked_out.update([row.id for row in page.rows])
        return page

    async def park(self, ids: Sequence[int]) -> None:
        """Mark pending events as parked and release them. On DiskFull or StoreFailed they stay checked out."""
        # In this order: a row that is released before its mark is on disk would be read as ready, past its user's retry.
        await self.write(lambda store, _now_ms: store.park(ids))
        self.release(ids)

    def release(self, ids: Iterable[int]) -> None:
        """Release checked-out events: they are not being delivered any more."""
        self._checked_out.difference_update(ids)

    def settle(self, settlement: Settlement, *, more_expected: bool) -> None:
        """Queue a settlement; the listener is called after its commit. Never blocks, never fails."""
        self._settlements.append(settlement)
        self._commit_within(SETTLE_DELAY_S if more_expected else 0.0)

    def record_failure(self, failure: Failure) -> None:
        """Queue a failed attempt for the next commit, within a second. Never blocks, never fails."""
        self._failures.append(failure)
        self._commit_within(FAILURE_DELAY_S)

    def _commit_within(self, delay_s: float) -> None:
        due_s = self._clock.monotonic_s() + delay_s
        if due_s < self._settle_by_s:
            self._settle_by_s = due_s
            self._wake.set()

    def stop(self) -> None:
        """Let ``run`` finish what is queued and return."""
        self._stopping = True
        self._wake.set()

    # The writer task --------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Commit until ``stop``; then commit what is queued and return.

        Raises StoreFailed after ``FAILURES_MAX`` batches in a row have failed, and Damaged at once if the file is
        damaged: the supervisor starts a new process. However it ends, no caller is left waiting.
        """
        self._token = trio.lowlevel.current_trio_token()
        try:
            while not (self._stopping and not self._has_work()):
                await self._next()
        finally:
            # A caller that waits for a writer that has ended would wait until its client gives up.
            self._stopped = True
            for request in (*self._accepts, *self._writes, *self._reads, *self._maintenance):
                request.error = self._committer.failure("the writer has stopped")
                request.done.set()

    def _report_alive(self) -> None:
        """Report, from the store's thread, that a long call makes progress."""
        if self._token is not None:
            self._token.run_sync_soon(self._telemetry.writer_alive, idempotent=True)

    def _has_work(self) -> bool:
        return bool(self._accepts or self._writes or self._reads or self._settlements or self._failures)

    async def _next(self) -> None:
        """Run the next batch or maintenance step, or wait until one is due."""
        now_s = self._clock.monotonic_s()
        if self._accepts or self._writes or self._reads or self._stopping:
            due_s = self._retry_at_s
        else:
            due_s = max(self._settle_by_s, self._retry_at_s)
        maintenance_s = self._retry_at_s if self._maintenance else float("inf")
        if due_s <= now_s and not (maintenance_s <= now_s and self._maintain_by_s <= now_s):
            await self._run_batch()
        elif maintenance_s <= now_s:
            await self._run_maintenance()
        else:
            until_s = min(due_s, maintenance_s)
            if until_s == float("inf"):
                await self._wake.wait()  # without a scope, which costs a lone event a fiftieth
            else:
                with trio.move_on_at(until_s):
                    await self._wake.wait()
            # Replaced after the wait, without a checkpoint in between: no request can set the old event unseen.
            self._wake = trio.Event()

    async def _run_batch(self) -> None:
        """Run everything that is queued in one call of the store's thread."""
        # All queues in one transaction: one sync is paid for everything that waits (group commit).
        batch = self._new_batch(with_rows=bool(self._accepts or self._settlements or self._failures))
        batch.accepts = self._accepts.take()
        batch.writes, self._writes[:] = self._writes[:], []
        batch.reads, self._reads[:] = self._reads[:], []
        batch.settlements, self._settlements = self._settlements, []
        batch.failures, self._failures = self._failures, []
        self._settle_by_s = float("inf")
        page = self._page_to_read(batch)
        started_s = self._clock.monotonic_s()
        try:
            problem = await self._commit(batch)
            took_s = self._clock.monotonic_s() - started_s
            events = sum([len(request.payload) for request in batch.accepts])
            if page is not None or events > 1:
                # Clients get their answers now: what delivery does with the page takes longer than an answer, and what they
                # send next belongs into one batch. Twice, since trio runs the tasks that are ready in either order.
                await trio.lowlevel.cancel_shielded_checkpoint()
                await trio.lowlevel.cancel_shielded_checkpoint()
        finally:
            # Also without a page: until then delivery loads nothing else.
            if page is not None:
                self._listener.page_read(page.result)
        if problem is None:
            self._announce(batch, took_s, loaded=page is not None and page.error is None)
        elif batch.accepts:
            self._listener.accepted(batch.priorities())  # a commit that reported an error may still be on disk

    async def _commit(self, batch: Batch) -> SidecarError | None:
        """Run a batch in the store's thread and end its callers' waits; return what was wrong with the disk.

        Raises what ends the writer; its callers get an error then.
        """
        try:
            problem = await self._runner.run(partial(self._committer.run_batch, batch))
        except BaseException as error:
            ended = self._committer.failure(f"the writer has ended: {type(error).__name__}")
            for request in batch.requests():
                request.error = request.error or ended
            raise
        finally:
            for request in batch.requests():
                request.done.set()
            self._accepts.finish()
        if batch.clock_recorded:
            self.clock_trust.recorded()
        if problem is not None:
            # In front of newer ones: two settlements of one event must reach the store in their order.
            self._settlements[:0] = batch.settlements
            # Settling twice changes nothing, but recording a failure twice counts it twice.
            if not batch.failures_committed:
                self._failures[:0] = batch.failures
            self._back_off(problem)
            return problem
        self._report_mended()
        self._failed_in_a_row = 0
        self._problem = None
        self._report_storing(None)
        return None

    def _page_to_read(self, batch: Batch) -> WriteRequest | None:
        """Add the page that delivery would ask for next to the batch: a call of its own costs as much as the commit."""
        call = self._listener.read_with(batch.priorities()) if batch.accepts else None
        if call is None:
            return None
        page = WriteRequest(partial(self._check_out, call))
        batch.reads.append(page)
        return page

    def _new_batch(self, *, with_rows: bool) -> Batch:
        # The record after the time: so it covers the segment that the time belongs to.
        now_ms = self._clock.wall_ms()
        return Batch(now_ms, self.clock_trust.record_due(self._store.counters["next_id"], with_rows=with_rows))

    def _report_storing(self, problem: SidecarError | None) -> None:
        """Report whether events can be stored, after a batch or a step that has ended with ``problem``."""
        error = self.capacity.refusal() if self.capacity.full else problem
        self._telemetry.storing(getattr(error, "code", "") or "disk_error" if error else "", str(error or ""))

    def _report_mended(self) -> None:
        while self._committer.repairs:
            log.error("%s", self._committer.repairs.pop(0))

    def _announce(self, batch: Batch, took_s: float, *, loaded: bool) -> None:
        """Report a committed batch; ``loaded``: delivery has its new events already."""
        stored = sum(request.result.stored for request in batch.accepts if request.error is None)
        if stored or batch.settlements:
            self._telemetry.committed(took_s, stored + len(batch.settlements))
        if batch.settlements:
            self.release([settlement.id for settlement in batch.settlements])
            self._listener.settled(batch.settlements)
        if stored and not loaded:
            self._listener.accepted(batch.priorities())

    def _back_off(self, problem: SidecarError) -> None:
        """Delay the next batch after a failure, longer each time; raise after ``FAILURES_MAX`` disk errors in a row.

        A full disk is waited for without limit: a restart would send again what is not settled. So is a file that is gone
        from its path: a restart would lose it.
        """
        self._failed_in_a_row += 1
        if isinstance(problem, Damaged):
            raise problem
        self._problem = str(problem)
        self._report_storing(problem)
        gone = isinstance(problem, OutboxGone)
        if self._failed_in_a_row >= FAILURES_MAX and isinstance(problem, StoreFailed) and not gone:
            raise StoreFailed(
                f"The outbox {self._store.path} failed {self._failed_in_a_row} times in a row; check its disk. {problem}"
            )
        now_s = self._clock.monotonic_s()
        self._retry_at_s = now_s + min(0.1 * 2 ** min(self._failed_in_a_row, 10), RETRY_MAX_S)
        if self._settlements or self._failures:
            self._settle_by_s = self._retry_at_s

    async def _run_maintenance(self) -> None:
        """Run one queued step of housekeeping."""
        request = self._maintenance.pop(0)
        batch = self._new_batch(with_rows=False)
        started_s = self._clock.monotonic_s()
        try:
            call = partial(self._committer.maintain, request.payload, batch)
            request.result, problem = await self._runner.run(call)
            request.error = problem
        except BaseException as error:
            request.error = self._committer.failure(f"the writer has ended: {type(error).__name__}")
            raise
        finally:
            self.maintenance_took_s = self._clock.monotonic_s() - started_s
            request.done.set()
        if batch.clock_recorded:
            self.clock_trust.recorded()
        self._report_mended()
        if problem is not None:
            self._back_off(problem)
        elif self._problem is None:  # else a batch has failed, and only a batch shows that it is over
            self._report_storing(None)
