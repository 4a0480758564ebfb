"""The asynchronous loop around the dispatcher: it performs the decisions and makes none.

Three kinds of tasks in one nursery:

* ``_decide`` asks the dispatcher what to do now, hands requests to lanes and settlements to the outbox, or waits.
* ``_load`` loads and writes what the dispatcher asks for: pages of the backlog, and leases of the day's quota. It is a
  task of its own, because a page may have to wait for a commit, and sending must not.
* ``_lane``, one per open connection to PX, sends one request at a time. A lane is opened when a request finds none
  idle; the most recently used one is taken first, and lanes that were idle for ``LANE_IDLE_S`` are closed.

Stopping: ``stop`` ends the decisions. ``run`` returns once nothing is in flight, or when its deadline passes: then the
requests that are still out are cancelled, their events stay pending, and the next process sends them again.

See sidecar/deliver/README.md#lanes.
"""

from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial
from typing import Final, TypeVar

import trio

from sidecar.clock import Clock
from sidecar.deliver.actions import (
    LoadPage,
    LoadParked,
    LoadRows,
    Park,
    Send,
    Settle,
    SettleRows,
    SweepPage,
    SweepParked,
    WaitUntil,
)
from sidecar.deliver.dispatcher import Dispatcher
from sidecar.deliver.limiter import SendLimiter
from sidecar.deliver.order import QueueKey
from sidecar.deliver.quota import Lease
from sidecar.errors import SidecarError
from sidecar.mapping import PRIORITIES, Priority
from sidecar.observe import Telemetry
from sidecar.outbox import Outbox, Page, Row, Settlement, Store
from sidecar.px import AT_ONCE, Departure, Lane, Network, NotSent, PxAnswer, Reply

__all__ = ["Delivery", "DeliverySignals", "LimitedDeparture"]

LANE_IDLE_S: Final = 30.0
# A page of the backlog that made no user ready is followed by this wait: no send depends on the next page.
IDLE_BACKOFF_S: Final = 0.02
DISK_BACKOFF_S: Final = 0.5
# While nothing may be sent, new events are swept together this often; a call to the store for each would double its cost.
SWEEP_PAUSE_S: Final = 1.0
# A page of which no rule dropped anything is followed by this wait: the next one is likely to be like it, and reading and
# judging pages without a pause would take a tenth of what events on their way in have.
SWEEP_BACKOFF_S: Final = 0.05
STEPS_PER_CHECKPOINT: Final = 32
# While the next decision is due within this time, replies and commits do not wake the loop: it takes up their changes
# then. Otherwise each of them would cost a wake-up and a decision that can only wait.
SOON_S: Final = 0.05

T = TypeVar("T")


class DeliverySignals:
    """Wakes delivery after commits of the outbox and after changes in the dispatcher.

    The outbox gets it as its ``CommitListener`` and ``Delivery`` as its signals, so that neither holds callbacks of the
    other.
    """

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._decide_again = trio.Event()
        self._load_again = trio.Event()
        self._stopping = False
        self._decides_soon = False
        self._uncommitted = 0
        # One page at a time: a newer one must not overtake an older one.
        self._loading = False
        self._turned_away = False
        self._waits_to_sweep = False
        self._page_class = Priority.NORMAL  # of the page of ``read_with``

    # Events -----------------------------------------------------------------------------------------------------

    def settled(self, settlements: Sequence[Settlement]) -> None:
        """Free the slots of these settlements: they are on disk."""
        # The loading task drops committed rows from memory, and decisions may have waited for a free slot.
        self._uncommitted -= len(settlements)
        self._dispatcher.settled(settlements)
        self._load_if_due()
        self.wake_decisions()

    def accepted(self, priorities: Collection[Priority]) -> None:
        """Load new events: there may be some on disk."""
        self._dispatcher.accepted(priorities)
        if not self._waits_to_sweep or self._dispatcher.can_load(priorities):
            self._load_again.set()

    def read_with(self, priorities: Collection[Priority]) -> Callable[[Store], Page] | None:
        """Return the page of these new events, unless something else is being loaded or has to be loaded before."""
        if self._loading or self._stopping or (wanted := self._dispatcher.page_with(priorities)) is None:
            return None
        self._loading, self._page_class = True, wanted.priority
        return partial(Store.page, priority=wanted.priority, after_id=wanted.after_id, limit=wanted.limit)

    def page_read(self, page: Page | None) -> None:
        """Take the page of ``read_with``."""
        self._loading = False
        if page is None:
            self._dispatcher.accepted([self._page_class])
        else:
            self._dispatcher.loaded(self._page_class, page)
            self.wake_decisions(now=True)
        self._load_if_due()

    def _load_if_due(self) -> None:
        """Wake the loading task if it was turned away, or if there is something to load."""
        if self._turned_away or self._dispatcher.has_to_load():
            self._load_again.set()

    def begin_loading(self) -> bool:
        """Return False while a page of ``read_with`` is being read; else none is read until ``end_loading``."""
        self._turned_away = self._loading  # what it was woken for, such as a lease, is still to be done
        if self._loading:
            return False
        self._loading = True
        return True

    def end_loading(self) -> None:
        """Allow pages of ``read_with`` again."""
        self._loading = False

    def wake(self) -> None:
        """Wake decisions and loading after a change in the dispatcher."""
        self._decide_again.set()
        self._load_again.set()

    def stop(self) -> None:
        """End the decisions; nothing more is sent."""
        self._stopping = True
        self.wake()

    # For the loop -----------------------------------------------------------------------------------------------

    @property
    def stopping(self) -> bool:
        """True once ``stop`` was called."""
        return self._stopping

    @property
    def uncommitted(self) -> int:
        """The settlements that were handed to the outbox and are not on disk."""
        return self._uncommitted

    def settling(self) -> None:
        """Count one more settlement that was handed to the outbox."""
        self._uncommitted += 1

    def wake_decisions(self, *, now: bool = False) -> None:
        """Wake the decisions; without ``now`` only if they do not wake by themselves within ``SOON_S``."""
        if now or self._stopping or not self._decides_soon:
            self._decide_again.set()

    def wake_loading(self) -> None:
        """Wake the loading task."""
        self._load_again.set()

    async def wait_for_decision(self, until_s: float, now_s: float) -> None:
        """Wait until ``until_s``, or until something has changed."""
        self._decides_soon = until_s < now_s + SOON_S
        if not self._decides_soon:
            # There is time now, and the wait may be for a lease or a page that only the loading task can bring.
            self._load_again.set()
        with trio.move_on_at(until_s):
            await self._decide_again.wait()
        # A new event before the decision: a change that comes while the loop decides must wake the next wait.
        self._decide_again = trio.Event()
        self._decides_soon = False

    async def wait_for_change(self) -> None:
        """Wait until something has changed."""
        await self._decide_again.wait()
        self._decide_again = trio.Event()

    async def wait_for_loading(self) -> None:
        """Wait until there may be something to load or write."""
        await self._load_again.wait()
        self._load_again = trio.Event()

    async def wait_to_sweep(self, until_s: float) -> None:
        """Wait until ``until_s``, or until there may be something else to load or write than new events to sweep."""
        self._waits_to_sweep = True
        with trio.move_on_at(until_s):
            await self._load_again.wait()
        self._waits_to_sweep = False
        self._load_again = trio.Event()

    async def pause_loading(self, at_most_s: float) -> None:
        """Wait ``at_most_s``, or until there may be something to load or write."""
        with trio.move_on_after(at_most_s):
            await self._load_again.wait()


class Delivery:
    """Performs the dispatcher's decisions: loads from and settles in ``outbox``, sends over lanes of ``network``.

    ``renew_key`` reads the API key again; it is awaited before each probe while PX answers 401 or 403.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        signals: DeliverySignals,
        outbox: Outbox,
        network: Network,
        clock: Clock,
        telemetry: Telemetry,
        renew_key: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._renew_key = renew_key
        self.dispatcher = dispatcher
        self.ended = trio.Event()  # nothing is sent any more, and what was answered is settled
        self.lanes_open = 0
        self._signals = signals
        self._outbox = outbox
        self.network = network
        self._clock = clock
        self._telemetry = telemetry
        self._idle: list[_LaneTask] = []
        self._sweep_again_s = 0.0

    def wake(self) -> None:
        """Wake decisions and loading after a change in the dispatcher or the settings."""
        self._signals.wake()

    @property
    def is_stopping(self) -> bool:
        """True once ``stop`` was called."""
        return self._signals.stopping

    def stay_awake(self) -> None:
        """Wake the dispatcher: its next decision is a heartbeat. After ``stop`` it decides nothing, so this call is one."""
        self.wake()
        if self.is_stopping:
            self._telemetry.decided()

    def stop(self) -> None:
        """Send nothing more; ``run`` returns when the requests in flight are answered and settled."""
        self._signals.stop()

    def withdraw(self, match: Callable[[Row], bool]) -> None:
        """Unload matching events that are not being sent: their rows are about to change."""
        self._outbox.release(self.dispatcher.withdraw(match))
        self.wake()

    def rewind(self, first_id: int) -> None:
        """Read the backlog again from ``first_id``: rows from there on may be pending again."""
        self.dispatcher.rewind(first_id)
        self.wake()

    async def run(
        self, *, stop_timeout_s: float, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Deliver until ``stop``; then wait at most ``stop_timeout_s`` for the requests in flight.

        On cancellation every event is either pending or settled; the next process sends the ones in flight again.
        """
        self.dispatcher.start(await self._until_done(partial(self._outbox.read, _first_parked)))
        if self.dispatcher.destination.operator_paused:  # of an earlier process; no reply will report it
            self.report_state(self._clock.monotonic_s())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._load)
            task_status.started()
            await self._decide(nursery)
            # Answers are settled and committed before the end, so that the next process does not send them again.
            with trio.move_on_after(stop_timeout_s):
                while self.dispatcher.has_requests_out or self._signals.uncommitted:
                    await self._signals.wait_for_change()
            nursery.cancel_scope.cancel()
        self.ended.set()

    async def _decide(self, nursery: trio.Nursery) -> None:
        # Counts decisions since the last checkpoint: a burst of settlements must not keep other tasks from running.
        steps = 0
        while not self._signals.stopping:
            now_s = self._clock.monotonic_s()
            action = self.dispatcher.decide(now_s)
            self._telemetry.decided()
            steps += 1
            match action:
                case Send():
                    self._hand_over(nursery, action, now_s)
                case Settle(settlement):
                    self._settle(settlement, more_expected=True)
                case WaitUntil(until_s):
                    steps = 0
                    await self._signals.wait_for_decision(until_s, now_s)
            if steps == STEPS_PER_CHECKPOINT:
                steps = 0
                self._signals.wake_loading()
                await trio.lowlevel.checkpoint()

    def _settle(self, settlement: Settlement, *, more_expected: bool) -> None:
        self._signals.settling()
        self._outbox.settle(settlement, more_expected=more_expected)

    def _settle_all(self, settlements: Sequence[Settlement]) -> bool:
        for settlement in settlements:
            self._settle(settlement, more_expected=True)
        return bool(settlements)

    # Lanes ------------------------------------------------------------------------------------------------------

    def _hand_over(self, nursery: trio.Nursery, send: Send, now_s: float) -> None:
        if self._idle:
            lane = self._idle.pop()  # the most recently used: the others become idle long enough to be closed
        else:
            lane = _LaneTask(self.network.lane())
            nursery.start_soon(self._lane, lane)
        lane.work = send
        lane.departure = LimitedDeparture(self.dispatcher.limiter, self._clock, now_s)
        lane.wake.set()

    async def _lane(self, lane: "_LaneTask") -> None:
        self.lanes_open += 1
        try:
            while await lane.has_work(self._idle):
                assert lane.work is not None
                event, request, renews_key = lane.work
                if renews_key and self._renew_key is not None:
                    await self._renew_key()
                sent_s = self._clock.monotonic_s()
                reply = await lane.lane.send(request, lane.departure)
                lane.work = None
                now_s = self._clock.monotonic_s()
                # Settled only after the answer: an earlier settlement would lose the event in a crash.
                for written in self.dispatcher.replied(event, reply, now_s):
                    if isinstance(written, Settle):
                        self._settle(written.settlement, more_expected=self.dispatcher.has_requests_out)
                    else:
                        self._outbox.record_failure(written)
                self._report(reply, now_s - sent_s, now_s)
                self._idle.append(lane)
                self._signals.wake_decisions()
        finally:
            # On cancellation nothing is settled: the event stays pending, and PX may or may not have it.
            self.lanes_open -= 1
            await lane.lane.aclose()

    def _report(self, reply: Reply, took_s: float, now_s: float) -> None:
        """Report a reply, and the state of delivery after it."""
        match reply:
            case PxAnswer(status=status):
                self._telemetry.px_answered(status, took_s)
            case NotSent():
                self._telemetry.px_not_sent()
            case _:
                self._telemetry.px_unknown()
        self.report_state(now_s)

    def report_state(self, now_s: float) -> None:
        """Report the state of delivery: after a reply, and after an operator's pause or resume."""
        status_now = self.dispatcher.destination.describe(now_s)
        self._telemetry.destination(status_now.state, status_now.reason, status_now.message)

    # Loading ----------------------------------------------------------------------------------------------------

    async def _load(self) -> None:
        while True:
            if not self._signals.begin_loading():
                await self._signals.wait_for_loading()
                continue
            match self.dispatcher.wants():
                case LoadPage(priority, after_id, limit):
                    load = partial(self._outbox.load_page, priority=priority, after_id=after_id, limit=limit)
                    useful = self.dispatcher.loaded(priority, await self._until_done(load))
                case LoadParked((priority, user) as key, after_id, limit):
                    load = partial(
                        self._outbox.load_parked_page, priority=priority, user=str(user), after_id=after_id, limit=limit
                    )
                    # Checked out without being held, a row could be neither forgotten nor discarded.
                    self._outbox.release(self.dispatcher.loaded_parked(key, await self._until_done(load)))
                    useful = True
                case SweepPage() if (again_s := self._sweep_again_s) > self._clock.monotonic_s():
                    self._signals.end_loading()
                    await self._signals.wait_to_sweep(again_s)
                    continue
                case SweepPage() | SweepParked() as wanted:
                    # Not checked out: nothing of it is delivered.
                    page = await self._until_done(partial(self._outbox.read, partial(_swept_page, wanted)))
                    useful = self._settle_all(self.dispatcher.swept(wanted, page))
                    if isinstance(wanted, SweepPage) and not (useful and page.more):
                        pause_s = SWEEP_BACKOFF_S if page.more else SWEEP_PAUSE_S
                        self._sweep_again_s = self._clock.monotonic_s() + pause_s
                case SettleRows(settlements):
                    self._settle_all(settlements)
                    useful = True
                case LoadRows(ids):
                    useful = self.dispatcher.reloaded(ids, await self._until_done(partial(self._outbox.load_rows, ids)))
                case Park(ids):
                    # Nothing else is loaded before this is on disk: the next page would lack these rows, and a newer
                    # event could overtake them.
                    await self._until_done(partial(self._outbox.park, ids))
                    useful = True
                case Lease() as lease:
                    await self._save(lease)
                    useful = True
                case None:
                    self._signals.end_loading()
                    await self._signals.wait_for_loading()
                    continue
            self._signals.end_loading()
            self._signals.wake_decisions(now=True)
            if not useful:
                await self._signals.pause_loading(IDLE_BACKOFF_S)

    async def _until_done(self, call: Callable[[], Awaitable[T]]) -> T:
        """Repeat ``call`` until it succeeds; the outbox decides when to give up the disk.

        A page that cannot be read must not end delivery: requests in flight still have to be settled.
        """
        while True:
            try:
                return await call()
            except SidecarError:
                await trio.sleep(DISK_BACKOFF_S)

    async def _save(self, lease: Lease) -> None:
        """Write a lease of the day's quota to disk, and only then grant it: a crash can only over-count."""
        try:
            await self._outbox.write(partial(_save_lease, lease))
        except SidecarError:
            # The outbox reports the error of the disk; the quota asks for another lease.
            self.dispatcher.limiter.abandoned(lease)
            await trio.sleep(DISK_BACKOFF_S)
        else:
            self.dispatcher.limiter.granted(lease)


def _swept_page(wanted: SweepPage | SweepParked, store: Store) -> Page:
    if isinstance(wanted, SweepParked):
        return store.parked_rows(priority=wanted.priority, after=wanted.after, limit=wanted.limit)
    # A rule that drops an event without the events before it asks for no memory.
    return store.page(priority=wanted.priority, after_id=wanted.after_id, limit=wanted.limit, with_memory=False)


def _first_parked(store: Store) -> list[tuple[QueueKey, int]]:
    return [
        ((priority, user), first_id)
        for priority in PRIORITIES
        for user, first_id in store.first_parked(priority=priority)
    ]


def _save_lease(lease: Lease, store: Store, _now_ms: int) -> None:
    store.save_quota(lease.rows, drop_before=lease.drop_before, replaces_all=lease.replaces_all)


class LimitedDeparture:
    """The departure of one request, granted at ``granted_s``: asks the limiter again if its lane is ready too late."""

    __slots__ = ("_clock", "_granted_s", "_limiter")

    def __init__(self, limiter: SendLimiter, clock: Clock, granted_s: float) -> None:
        self._limiter, self._clock, self._granted_s = limiter, clock, granted_s

    def due_s(self) -> float:
        self._granted_s = self._limiter.regrant(self._granted_s, self._clock.monotonic_s())
        return self._granted_s

    def left(self) -> None:
        self._limiter.departed(self._granted_s, self._clock.monotonic_s())


class _LaneTask:
    """A lane, and the next request that it is to send."""

    __slots__ = ("departure", "lane", "wake", "work")

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.work: Send | None = None
        self.departure: Departure = AT_ONCE
        self.wake = trio.Event()

    async def has_work(self, idle: list["_LaneTask"]) -> bool:
        """Wait for the next request; return False if none came for ``LANE_IDLE_S``, and take the lane off ``idle``."""
        while self.work is None:
            with trio.move_on_after(LANE_IDLE_S) as waiting:
                await self.wake.wait()
            # A request may have been handed over at the moment of the timeout: it must still be sent.
            if waiting.cancelled_caught and self.work is None:
                idle.remove(self)
                return False
        self.wake = trio.Event()
        return True
