"""The one synchronous place that decides what happens next to a pending event.

Theory
------
Around this object stands a thin shell (``shell.py``): it asks ``decide`` what to do now, does it, and tells what came of
it through ``replied``, ``settled``, ``loaded`` and so on. Nothing here waits, reads or writes; time is an argument.

The way of an event through it, with what each arrow waits for::

    file ──load──► ready ──decide──► sent ──replied──► settlement ──settled──► gone
                     ▲   leave to send: │   final answer      commit
                     │   destination,   │
                     │   quota, bucket, ├─ not sent, too fast ──► ready (the destination waits)
                     │   a free slot    ├─ unknown, later ──────► waiting, alone with its user ──due──► ready
                     └──────────────────┴─ suspicious refusal ──► held (destination decides: dead, or pending)

A *slot* is taken by each event that is sent and not yet settled by a commit; ``max_in_flight`` is their number, so it
bounds what a crash can repeat. The next event of the user does not wait for the commit, only for the answer.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Literal
from weakref import WeakValueDictionary

import msgspec

from sidecar.clock import Clock
from sidecar.config import Deliver
from sidecar.deliver.bucket import Bucket
from sidecar.deliver.destination import Destination, Outcome, Paused, Probe, Wait, What
from sidecar.deliver.order import QUEUE_MAX, Item, Order, Turn
from sidecar.deliver.prepared import Memory, Prepared, words_of
from sidecar.deliver.quota import Lease, Quota
from sidecar.deliver.retry import Failures, delay_s
from sidecar.deliver.steps import AsidePage, NextPage, Rest, Send, SetAside, Settle
from sidecar.events import decode_stored
from sidecar.mapping import Known, Mapper
from sidecar.outbox import PAGE_ROWS, Failure, Page, Remembered, Row, Settlement, State
from sidecar.outbox.lookup import name_of
from sidecar.px import Kind, Reply, Request, Verdict

__all__ = ["Dispatcher"]

FinalState = Literal[State.DELIVERED, State.DROPPED, State.DEAD]

FOREVER_S: Final = float("inf")
# The next page is fetched while so many users are still ready: more than a second of sending.
READY_LOW: Final = 256
ASIDE_ROWS: Final = QUEUE_MAX


class Dispatcher:
    """Decides; see the module. All times are monotonic seconds, but ``…_ms``, which are wall-clock milliseconds.

    ``product_of`` gives the property key of a source's number; ``random`` gives numbers from [0, 1).
    """

    def __init__(
        self,
        *,
        config: Deliver,
        mapper: Mapper,
        product_of: Callable[[int], str],
        bucket: Bucket,
        quota: Quota,
        destination: Destination,
        clock: Clock,
        random: Callable[[], float],
    ) -> None:
        self.config, self.mapper = config, mapper
        self.product_of = product_of
        self.bucket = bucket
        self.quota = quota
        self.destination = destination
        self.tally: Counter[str] = Counter()
        self.publish: Callable[[Item, Settlement], None] = lambda _item, _settlement: None
        self.last_delivered_ms: int | None = None
        self._clock = clock
        self._random = random
        window = QUEUE_MAX * (config.max_in_flight + READY_LOW) + PAGE_ROWS
        self._order = Order(by_user=config.order == "user", window=window)
        self._memories: WeakValueDictionary[tuple[str, str], Memory] = WeakValueDictionary()
        self._slots: set[int] = set()  # sent and not settled by a commit
        self._settling: dict[int, Memory | None] = {}  # keeps overlaid memory, until no page can be older than the file
        self._committed: list[int] = []
        self._under_way = 0
        self._held: dict[int, tuple[Item, Settlement]] = {}
        self._released: deque[int] = deque()
        self._probe: Item | None = None
        self._after_id = {True: 0, False: 0}
        self._page_is_stale = self._more_came = False  # told while a page is being read
        self._exhausted = {True: False, False: False}

    # What goes next -------------------------------------------------------------------------------------------------

    def decide(self, now_s: float) -> Send | Settle | Rest:
        """What is to be done now. To be asked again after each answer other than Rest."""
        if settled := self._release_held(now_s):
            return settled
        leave = self.destination.may_send(now_s)
        item = self._whose_turn(leave, now_s)
        if item is None:
            return Rest(self._something_due_s())
        until_s = self._leave_at_s(item, leave, now_s)
        if until_s > now_s:
            return Rest(min(until_s, self._something_due_s()))
        # Mapped in the moment it may leave, not before: during a wait mapping and memory may change, and it may grow old.
        if item.prepared is None and (settlement := self._prepare(item)):
            self._order.take(item)
            return self._finish(item, settlement)
        return self._send(item, now_s, probe=isinstance(leave, Probe))

    def _whose_turn(self, leave: object, now_s: float) -> Item | None:
        if not isinstance(leave, Probe) or len(self._slots) >= self.config.max_in_flight:
            return self._order.head(now_s)
        if self.destination.describe(now_s).state == "paused":
            return self._order.another(now_s, self._random())
        return self._order.oldest(now_s)

    def _leave_at_s(self, item: Item, leave: object, now_s: float) -> float:
        """When this item may be sent, by everybody who has a say in it."""
        if isinstance(leave, Wait):
            return leave.until_s
        if isinstance(leave, Paused):
            return leave.probe_at_s
        if len(self._slots) >= self.config.max_in_flight and item.id not in self._slots:
            return FOREVER_S
        return max(self.quota.ready_at_s(now_s, high=item.high), self._paced(now_s).ready_at_s(now_s))

    def _something_due_s(self) -> float:
        """When something changes by itself: an event is to be tried again, or held refusals are given up."""
        return min(self._order.next_due_s(), FOREVER_S if self._under_way else self.destination.tick_at_s())

    def _paced(self, now_s: float) -> Bucket:
        """The bucket at the pace that destination and quota want just now."""
        rate = min(self.config.host_per_second * self.destination.pace(now_s), self.quota.pace_per_s())
        if rate != self.bucket.per_second:
            self.bucket.set_rate(rate, now_s)
        return self.bucket

    def _send(self, item: Item, now_s: float, *, probe: bool) -> Send:
        self._order.take(item)
        self.bucket.take(now_s)
        self.quota.take(high=item.high)
        if probe:
            self.destination.probe_begun(now_s)
            self._probe = item
        self._slots.add(item.id)
        self._under_way += 1
        self.tally["requests"] += 1
        prepared: Prepared = item.prepared
        assert prepared.walk is not None
        return Send(item, prepared.walk.current)

    # Mapping --------------------------------------------------------------------------------------------------------

    def _prepare(self, item: Item) -> Settlement | None:
        """Map the event; the settlement if there is nothing to send for it."""
        row, memory = item.row, item.memory
        product = self.product_of(row.source)
        try:
            event = decode_stored(row.body)
        except msgspec.DecodeError as error:
            return self._settlement(item, State.DEAD, "mapping_error", detail=f"The stored event is damaged ({error}).")
        mapped = self.mapper.map(event, memory.known, property_key=product, received_ms=row.received_ms)
        item.prepared = Prepared(mapped, name_of(event), product, memory)
        self.tally["changed"] += bool(mapped.changes)
        if mapped.dropped is not None:
            return self._settlement(item, State.DROPPED, mapped.dropped)
        if mapped.dead is not None:
            return self._settlement(item, State.DEAD, mapped.dead, detail=mapped.detail)
        waited_ms = self._clock.wall_ms() - max(row.received_ms, row.retried_ms)
        if self.config.max_age and waited_ms > self.config.max_age * 1000:
            detail = "It was pending for longer than deliver.max_age."
            return self._settlement(item, State.DEAD, "too_old", detail=detail)
        return None

    def _settlement(
        self, item: Item, state: FinalState, reason: str = "", *, detail: str = "", status: int | None = None
    ) -> Settlement:
        prepared: Prepared | None = item.prepared
        remember = None
        if state is not State.DEAD and prepared and prepared.mapped.known is not None and item.row.user is not None:
            remember = Remembered(prepared.product, item.row.user, prepared.memory.settle(prepared).encode())
        payload = prepared.walk.current.body if state is State.DEAD and prepared and prepared.walk else b""
        return Settlement(
            *(item.id, item.high, state, reason, status, detail),
            attempts=item.attempts + (prepared is not None and prepared.walk is not None),
            first_failed_ms=item.row.failure.first_failed_ms if item.row.failure else 0,
            name=prepared.name if prepared else "",
            payload=payload,
            remember=remember,
        )

    # What came of it ------------------------------------------------------------------------------------------------

    def replied(self, item: Item, reply: Reply, now_s: float) -> list[Settle | Failure]:
        """Take in PX's reply to what ``decide`` had sent; returns what is to be written for it."""
        prepared: Prepared = item.prepared
        assert prepared.walk is not None
        self._under_way -= 1
        said = prepared.walk.after(reply, wall_ms=self._clock.wall_ms())
        probe = item is self._probe
        self._probe = None if probe else self._probe
        if isinstance(said, Request):
            self.destination.went_on(now_s, probe=probe)
            self._order.go_on(item)
            return []
        outcome = self.destination.on(said, event=item.id, user=item.row.user, now_s=now_s, probe=probe)
        self.tally[f"answered:{said.kind}"] += 1
        if outcome.day_spent:
            self.quota.treat_as_spent()
        for event_id in outcome.pending:
            self._to_the_queue(self._held.pop(event_id)[0])
        written: list[Settle | Failure] = [Settle(self._bury_held(event_id)) for event_id in outcome.dead]
        return written + self._after(item, said, outcome, now_s)

    def _after(self, item: Item, verdict: Verdict, outcome: Outcome, now_s: float) -> list[Settle | Failure]:
        """What becomes of the event itself."""
        match outcome.what:
            case What.DELIVERED:
                self.last_delivered_ms = self._clock.wall_ms()
                return [self._finish(item, self._settlement(item, State.DELIVERED, status=verdict.status))]
            case What.DEAD:
                return [self._finish(item, self._refusal(item, verdict, outcome.reason))]
            case What.HELD:
                self._slots.discard(item.id)  # PX refused it: sending it again after a crash repeats nothing
                self._held[item.id] = (item, self._refusal(item, verdict, "refused"))
                return []
            case What.AGAIN:
                self._to_the_queue(item)
                return []
            case What.RETRY:
                return [self._try_later(item, verdict, now_s)]

    def _refusal(self, item: Item, verdict: Verdict, reason: str) -> Settlement:
        return self._settlement(item, State.DEAD, reason, detail=words_of(verdict), status=verdict.status)

    def _to_the_queue(self, item: Item) -> None:
        """Its turn comes again, and its slot is free: nothing of this attempt is left."""
        self._forget_attempt(item)
        self._order.give_back(item)

    def _forget_attempt(self, item: Item) -> None:
        self._slots.discard(item.id)
        item.prepared.take_back()
        item.prepared = None

    def _try_later(self, item: Item, verdict: Verdict, now_s: float) -> Settle | Failure:
        """Back off, alone with its user; or, if others succeed and this one does not for a day, give it up."""
        now_ms = self._clock.wall_ms()
        before = item.row.failure
        failures = Failures(before.counted, before.over_ms, before.last_failed_ms) if before else Failures()
        failures = failures.after(now_ms, self.last_delivered_ms)
        self.tally["retries"] += 1
        ambiguous = verdict.kind is Kind.AMBIGUOUS
        self.tally["ambiguous"] += ambiguous
        if failures.failing():
            return self._finish(item, self._refusal(item, verdict, "failing"))
        item.attempts += 1
        first_ms = before.first_failed_ms if before else now_ms
        failure = Failure(
            item.id, item.attempts, first_ms, now_ms, failures.count, failures.over_ms, verdict.message, ambiguous
        )
        item.row = item.row._replace(failure=failure)
        self._forget_attempt(item)
        wait_s = delay_s(
            item.attempts,
            self._random(),
            initial_s=self.config.retry_initial,
            max_s=self.config.retry_max,
            retry_after_s=verdict.retry_after_s,
        )
        self._order.retry_at(item, now_s + wait_s)
        return failure

    def _finish(self, item: Item, settlement: Settlement) -> Settle:
        """The event has its final answer: its user goes on, its slot and memory stay taken until the commit."""
        prepared: Prepared | None = item.prepared
        if settlement.state is State.DEAD and prepared is not None:
            prepared.take_back()
        self._settling[item.id] = prepared.memory if prepared else None
        self._order.done(item)
        self.publish(item, settlement)
        return Settle(settlement)

    def _bury_held(self, event_id: int) -> Settlement:
        item, settlement = self._held.pop(event_id)
        return self._finish(item, settlement).settlement

    def _release_held(self, now_s: float) -> Settle | None:
        """A refusal that waited in vain for a delivery to clear it."""
        if self._held:
            self._released.extend(self.destination.tick(now_s, self._under_way))
        return Settle(self._bury_held(self._released.popleft())) if self._released else None

    def settled(self, settlements: Sequence[Settlement]) -> None:
        """These are committed: their slots are free."""
        for one in settlements:
            self._slots.discard(one.id)
            self._committed.append(one.id)

    # Feeding --------------------------------------------------------------------------------------------------------

    def start(self, aside: list[tuple[Turn, int]]) -> None:
        """Learn, before anything else, which users have rows set aside, and the first id of each."""
        self._order.mark_aside(aside)

    def wants(self) -> NextPage | AsidePage | SetAside | Lease | None:
        """What is to be fetched or written now, one thing at a time, so that nothing overtakes."""
        while self._committed:
            self._settling.pop(self._committed.pop(), None)
        if lease := self.quota.wants_lease():
            return lease
        if ids := self._order.to_set_aside():
            return SetAside(ids)
        room = self._order.room()
        if room >= ASIDE_ROWS and (aside := self._order.wants_aside()):
            return AsidePage(*aside, ASIDE_ROWS)
        if room < PAGE_ROWS or self._order.ready() >= READY_LOW:
            return None
        for high in (True, False):
            if not self._exhausted[high]:
                self._page_is_stale = self._more_came = False
                return NextPage(high, self._after_id[high], PAGE_ROWS)
        return None

    def loaded(self, high: bool, page: Page) -> bool:
        """A page that ``wants`` asked for; whether it held anybody who can go."""
        before = self._order.ready()
        for row, memory in self._rows(page):
            self._order.load(row, memory)
        if not self._page_is_stale:  # else it was rewound meanwhile: read on from there
            self._after_id[high] = page.rows[-1].id if page.rows else self._after_id[high]
            self._exhausted[high] = not (page.more or self._more_came)
        self._order.front_at(high, page.rows[-1].id if page.more else FOREVER_S)
        return self._order.ready() > before or not page.rows

    def loaded_aside(self, turn: Turn, page: Page) -> bool:
        """A page of rows that had been set aside."""
        self._order.load_aside(turn, self._rows(page), more=page.more)
        return True

    def _rows(self, page: Page) -> list[tuple[Row, Memory]]:
        """Its rows and their users' memory, without those that were answered and not yet committed when it was read."""
        known = {(one.property_key, one.user): one.known for one in page.known}
        return [(row, self._memory(row, known)) for row in page.rows if row.id not in self._settling]

    def _memory(self, row: Row, known: dict[tuple[str, str], bytes]) -> Memory:
        """The memory of the row's user: what is overlaid here is newer than what came with the page."""
        if row.user is None:
            return Memory(Known())
        key = (self.product_of(row.source), row.user)
        memory = self._memories.get(key)
        if memory is None:
            self._memories[key] = memory = Memory(Known.decode(known[key]) if key in known else Known())
        return memory

    def accepted(self) -> None:
        """There are new events in the file."""
        self._exhausted = {True: False, False: False}
        self._more_came = True

    def rewind(self, first_id: int) -> None:
        """Rows from ``first_id`` on are pending again (dead letters that are retried): read from there."""
        self._after_id = {high: min(after_id, first_id - 1) for high, after_id in self._after_id.items()}
        self._page_is_stale = True
        self.accepted()

    def withdraw(self, match: Callable[[Row], bool]) -> None:
        """Forget events that match and are not being sent, as if they had never been loaded: their rows are changed."""
        for item in self._order.withdraw(match):
            if item.prepared is not None:
                self._forget_attempt(item)

    def reconfigure(self, config: Deliver, mapper: Mapper) -> None:
        """From now on rates, the day's quota, retries and mapping are these; ``day`` and ``order`` need a restart."""
        self.config, self.mapper = config, mapper
        self.quota.reconfigure(config.host_per_day, pace=config.pace, reserve_for_high=config.reserve_for_high)
        px = self.destination
        px.per_second, px.initial_s, px.max_s = config.host_per_second, config.retry_initial, config.retry_max

    # What people ask ------------------------------------------------------------------------------------------------

    def in_flight(self) -> int:
        """How many events are sent and not yet settled by a commit."""
        return len(self._slots)

    def loaded_ids(self) -> frozenset[int]:
        """The events that are loaded here: nobody else may drop them."""
        return frozenset(self._order.items)

    def waiting(self) -> Iterator[Item]:
        """The events that failed and wait to be tried again, each with its user behind it."""
        return self._order.waiting()

    def under_way(self) -> int:
        """How many requests are out and not answered."""
        return self._under_way
