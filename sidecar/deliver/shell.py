"""The asynchronous shell around the dispatcher: it performs what is decided, and nothing else.

Three kinds of tasks in one nursery:

* ``_decide`` asks the dispatcher what to do now, hands requests to lanes and settlements to the outbox, or rests.
* ``_feed`` fetches what the dispatcher wants from the outbox: pages of the backlog, and leases of the day's quota. It
  is apart, because a page may have to wait for a commit, and sending must not.
* a ``_lane`` per open connection to PX sends one request at a time. Lanes are opened when a request finds none idle,
  the most recently used one is taken first, and those that nobody needed for a while close.

Stopping: ``stop`` ends the decisions; ``run`` returns once nothing is in flight, or when its deadline passes: then the
requests that are still out are cancelled, their events stay pending and are sent again by the next process.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, TypeVar

import trio

from sidecar.clock import Clock
from sidecar.deliver.dispatcher import Dispatcher
from sidecar.deliver.order import Item, Turn
from sidecar.deliver.quota import Lease
from sidecar.deliver.steps import AsidePage, NextPage, Rest, Send, SetAside, Settle
from sidecar.errors import SidecarError
from sidecar.outbox import Failure, Outbox, Settlement, Store
from sidecar.px import Lane, Network, Reply, Request

__all__ = ["Delivery"]

LANE_IDLE_S: Final = 30.0
# A look at the backlog that found only users who already wait is followed by a breath: there is no hurry then.
BREATH_S: Final = 0.02
DISK_BREATH_S: Final = 0.5
STEPS_PER_TURN: Final = 32
# Before the next event may go so soon nobody asks again: what a reply has changed can wait for it.
SOON_S: Final = 0.05

T = TypeVar("T")


class Delivery:
    """Delivers what the dispatcher decides, over lanes of ``network``, from and into ``outbox``.

    What others may set: ``on_step`` is called with every decision, ``on_reply`` with every reply of PX and the seconds
    it took, once the dispatcher has judged it, ``on_retry`` with every attempt that failed and is repeated.
    """

    def __init__(self, dispatcher: Dispatcher, outbox: Outbox, network: Network, clock: Clock) -> None:
        self.dispatcher = dispatcher
        self.network = network
        self.lanes_open = 0
        self.on_step: Callable[[], None] = lambda: None
        self.on_reply: Callable[[Reply, float], None] = lambda _reply, _took_s: None
        self.on_retry: Callable[[Item, Failure], None] = lambda _item, _failure: None
        self._outbox = outbox
        self._clock = clock
        self._idle: list[_LaneTask] = []
        self._decide_again = trio.Event()
        self._feed_again = trio.Event()
        self._stopping = False
        self._owed = 0  # settlements that are not committed
        self._goes_on_soon = False  # by itself
        outbox.on_settled = self._settled
        outbox.on_accepted = self._accepted

    def wake(self) -> None:
        """Something has changed that the dispatcher was told of: ask it again."""
        self._decide_again.set()
        self._feed_again.set()

    def _settled(self, settlements: Sequence[Settlement]) -> None:
        self._owed -= len(settlements)
        self.dispatcher.settled(settlements)
        self._feed_again.set()
        self._look_again()

    def _look_again(self) -> None:
        if self._stopping or not self._goes_on_soon:
            self._decide_again.set()

    def _accepted(self) -> None:
        self.dispatcher.accepted()
        self._feed_again.set()

    def stop(self) -> None:
        """Send nothing more; ``run`` returns when what is in flight has come back."""
        self._stopping = True
        self.wake()

    async def run(
        self, *, stop_timeout_s: float, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Deliver until ``stop``; then wait at most ``stop_timeout_s`` for what is in flight."""
        self.dispatcher.start(await self._read(_firsts_aside))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._feed)
            task_status.started()
            await self._decide(nursery)
            with trio.move_on_after(stop_timeout_s):
                while self.dispatcher.under_way() or self._owed:
                    await self._decide_again.wait()
                    self._decide_again = trio.Event()
            nursery.cancel_scope.cancel()

    async def _decide(self, nursery: trio.Nursery) -> None:
        steps = 0
        while not self._stopping:
            now_s = self._clock.monotonic_s()
            step = self.dispatcher.decide(now_s)
            self.on_step()
            steps += 1
            match step:
                case Send(item, request):
                    self._hand_over(nursery, item, request)
                case Settle(settlement):
                    self._settle(settlement, more_expected=True)
                case Rest(until_s):
                    steps = 0
                    self._goes_on_soon = until_s < now_s + SOON_S
                    if not self._goes_on_soon:
                        self._feed_again.set()
                    with trio.move_on_at(until_s):
                        await self._decide_again.wait()
                    self._decide_again = trio.Event()
                    self._goes_on_soon = False
            if steps == STEPS_PER_TURN:
                steps = 0
                self._feed_again.set()
                await trio.lowlevel.checkpoint()

    def _settle(self, settlement: Settlement, *, more_expected: bool) -> None:
        self._owed += 1
        self._outbox.settle(settlement, more_expected=more_expected)

    # Lanes ------------------------------------------------------------------------------------------------------

    def _hand_over(self, nursery: trio.Nursery, item: Item, request: Request) -> None:
        if self._idle:
            lane = self._idle.pop()
        else:
            lane = _LaneTask(self.network.lane())
            nursery.start_soon(self._lane, lane)
        lane.work = (item, request)
        lane.wake.set()

    async def _lane(self, lane: "_LaneTask") -> None:
        self.lanes_open += 1
        try:
            while await lane.has_work(self._idle):
                assert lane.work is not None
                item, request = lane.work
                sent_s = self._clock.monotonic_s()
                reply = await lane.lane.send(request)
                lane.work = None
                for written in self.dispatcher.replied(item, reply, self._clock.monotonic_s()):
                    if isinstance(written, Settle):
                        self._settle(written.settlement, more_expected=self.dispatcher.under_way() > 0)
                    else:
                        self._outbox.note_failure(written)
                        self.on_retry(item, written)
                self.on_reply(reply, self._clock.monotonic_s() - sent_s)
                self._idle.append(lane)
                self._look_again()
        finally:
            self.lanes_open -= 1
            await lane.lane.aclose()

    # Feeding ----------------------------------------------------------------------------------------------------

    async def _feed(self) -> None:
        while True:
            match self.dispatcher.wants():
                case NextPage(high, after_id, limit):
                    page = await self._read(partial(Store.page, high=high, after_id=after_id, limit=limit))
                    useful = self.dispatcher.loaded(high, page)
                case AsidePage((high, user) as turn, after_id, limit):
                    ask = partial(Store.aside_page, high=high, user=str(user), after_id=after_id, limit=limit)
                    useful = self.dispatcher.loaded_aside(turn, await self._read(ask))
                case SetAside(ids):
                    await self._set_aside(ids)
                    useful = True
                case Lease() as lease:
                    await self._save(lease)
                    useful = True
                case None:
                    await self._feed_again.wait()
                    self._feed_again = trio.Event()
                    continue
            self._decide_again.set()
            if not useful:
                with trio.move_on_after(BREATH_S):
                    await self._feed_again.wait()

    async def _read(self, call: Callable[[Store], T]) -> T:
        """Read, however often it fails: whether the disk is given up is for the outbox to say."""
        while True:
            try:
                return await self._outbox.read(call)
            except SidecarError:
                await trio.sleep(DISK_BREATH_S)

    async def _set_aside(self, ids: list[int]) -> None:
        """Mark rows as set aside; not before that is on disk may anything else be fetched."""
        while True:
            try:
                return await self._outbox.write(partial(_set_aside, ids))
            except SidecarError:
                # As with the quota: the outbox tells what is wrong, and the rows have to wait for it.
                await trio.sleep(DISK_BREATH_S)

    async def _save(self, lease: Lease) -> None:
        """Put a lease of the day's quota on disk, so that a crash can only count too much."""
        try:
            await self._outbox.write(partial(_save_lease, lease))
        except SidecarError:
            # The outbox says on its own surfaces what is wrong with the disk; the quota just asks again.
            self.dispatcher.quota.abandoned(lease)
            await trio.sleep(DISK_BREATH_S)
        else:
            self.dispatcher.quota.granted(lease)


def _firsts_aside(store: Store) -> list[tuple[Turn, int]]:
    return [((high, user), first_id) for high in (True, False) for user, first_id in store.first_aside(high=high)]


def _set_aside(ids: list[int], store: Store, _now_ms: int) -> None:
    store.set_aside(ids)


def _save_lease(lease: Lease, store: Store, _now_ms: int) -> None:
    store.save_quota(lease.rows, drop_before=lease.drop_before, replaces_all=lease.replaces_all)


class _LaneTask:
    """A lane with the one place where its next request is put."""

    __slots__ = ("lane", "wake", "work")

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.work: tuple[Item, Request] | None = None
        self.wake = trio.Event()

    async def has_work(self, idle: list["_LaneTask"]) -> bool:
        """Wait for the next request; False if none came for ``LANE_IDLE_S``: then the lane is no longer idle but gone."""
        while self.work is None:
            with trio.move_on_after(LANE_IDLE_S) as waiting:
                await self.wake.wait()
            if waiting.cancelled_caught and self.work is None:
                idle.remove(self)
                return False
        self.wake = trio.Event()
        return True
