"""The dispatcher: the one synchronous place that decides what happens next to a pending event.

Theory
------
A thin loop surrounds this object (``delivery_loop.py``): it asks ``decide`` what to do now, does it, and reports the
results through ``replied``, ``settled``, ``loaded`` and so on. Nothing here waits, reads or writes. Time is an
argument, and the configuration in force is read from ``LiveSettings`` at each decision.

The path of an event, with the condition of each arrow::

    outbox ──load──► ready ──decide──► sent ──replied──► settlement ──settled──► gone
                       ▲  permission: │   final answer      commit
                       │  destination,│
                       │  quota, pace,├─ not sent, too fast ──► ready (the destination waits)
                       │  a free slot ├─ unknown, later ──────► waiting, together with its user ──due──► ready
                       └──────────────┴─ refused ─────────────► on probation (the destination decides: dead or pending)

A *slot* is taken by each event that is sent and not yet settled by a commit. ``max_in_flight`` bounds the slots, and so
what a crash can repeat. The next event of the user waits only for the answer, not for the commit.

See sidecar/deliver/README.md#order and the sections after it.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Final, Literal
from weakref import WeakValueDictionary

import msgspec

from sidecar.clock import Clock
from sidecar.config import DeliverConfig
from sidecar.deliver.actions import (
    DispatcherStatistics,
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
from sidecar.deliver.attempt import Attempt, UserMemory, dead_letter_detail, is_older, outcome_of
from sidecar.deliver.destination import Destination, Disposition, Open, Outcome, Paused, Permission, Probe, Wait
from sidecar.deliver.limiter import SendLimiter
from sidecar.deliver.order import QUEUE_MAX, LoadedEvent, QueueKey, UserQueues
from sidecar.deliver.quota import DailyCaps, Lease
from sidecar.deliver.retry import Failures, delay_s
from sidecar.deliver.sweep import RuleJudge, RuleSweep
from sidecar.events import decode_stored, name_of, shape_error
from sidecar.mapping import PRIORITIES, CustomEvent, Known, LiveSettings, Priority
from sidecar.observe import Telemetry
from sidecar.outbox import PAGE_ROWS, ClockTrust, EventState, Failure, Page, Remembered, Row, Settlement, hashed_values
from sidecar.px import Kind, PxAnswer, PxRequest, Reply, Verdict

__all__ = ["Dispatcher"]

FinalState = Literal[EventState.DELIVERED, EventState.DROPPED, EventState.DEAD]

FOREVER_S: Final = float("inf")
# The next page is loaded when fewer users than this are ready: more than a second of sending at the default pace.
READY_LOW: Final = 256
# Committed events that are forgotten at once; fewer wait for the next page, which forgets them anyway.
COMMITTED_MAX: Final = 256
LONG_WAIT_S: Final = 1.0
JUDGED_AT_ONCE: Final = 64  # about 2 ms
PARKED_ROWS: Final = QUEUE_MAX
PEOPLE_HOLD_MS: Final = 60_000


class Dispatcher:
    """Decides; see the module. All times are monotonic seconds, except ``…_ms``, which are wall-clock milliseconds.

    ``random`` returns numbers from [0, 1).
    """

    def __init__(
        self,
        *,
        settings: LiveSettings,
        telemetry: Telemetry,
        limiter: SendLimiter,
        destination: Destination,
        clock: Clock,
        random: Callable[[], float],
        caps: DailyCaps | None = None,
        clock_trust: ClockTrust | None = None,
    ) -> None:
        self.limiter = limiter
        self._clock_trust = clock_trust or ClockTrust(clock)
        self._caps = caps or DailyCaps()
        self.destination = destination
        self._settings = settings
        self._telemetry = telemetry
        self._clock = clock
        self._random = random
        self._last_delivered_ms: int | None = None
        self._others_delivered_ms: int | None = None  # the same on the steady clock, which ages are counted by
        self._window = QUEUE_MAX * (self._config.max_in_flight + READY_LOW) + PAGE_ROWS
        self._queues = UserQueues(by_user=self._config.order == "user", window=self._window)
        self._memories: WeakValueDictionary[tuple[str, str], UserMemory] = WeakValueDictionary()
        self._slots: set[int] = set()  # sent and not settled by a commit
        # Settled and not committed: keeps the overlaid memory alive while a page may be older than the commit, and such
        # rows from being loaded again.
        self._settling: dict[int, UserMemory | None] = {}
        self._committed: list[int] = []
        self._under_way = 0
        self._on_probation: dict[int, tuple[LoadedEvent, Settlement]] = {}
        self._expired: deque[int] = deque()  # their probation is over; each is settled by a decision of its own
        self._probe: LoadedEvent | None = None
        self._after_id = dict.fromkeys(PRIORITIES, 0)
        # Set while a page is being read: then its last id is not where to read on, or its end is not the backlog's end.
        self._page_is_stale = False
        self._accepted_meanwhile: set[Priority] = set()  # since the last page of the class was asked for
        self._exhausted = dict.fromkeys(PRIORITIES, False)
        self._judge = RuleJudge(settings)
        self._sweep, self._stalled = RuleSweep(self._judge), False

    @property
    def _config(self) -> DeliverConfig:
        return self._settings.now.config.deliver

    def statistics(self) -> DispatcherStatistics:
        """Return the state at this moment."""
        return DispatcherStatistics(
            frozenset(self._slots),
            self._under_way,
            len(self._on_probation),
            self._last_delivered_ms,
            self._window,
            self._queues.statistics(),
        )

    @property
    def has_requests_out(self) -> bool:
        """True while a request is out and not answered."""
        return self._under_way > 0

    # What goes next -------------------------------------------------------------------------------------------------

    def decide(self, now_s: float) -> Send | Settle | WaitUntil:
        """Return what to do now. Ask again at once after ``Send`` and ``Settle``."""
        if settled := self._settle_expired(now_s):
            return settled
        permission = self.destination.may_send(now_s)
        event = self._next_event(permission, now_s)
        if event is None:
            return WaitUntil(self._next_change_s())
        until_s = self._may_send_at_s(event, permission, now_s)
        if until_s > now_s:
            # What a rule drops needs no permission to send. A short wait is not worth mapping twice: one for the pace, and an
            # infinite one, which is for a lease or a slot.
            self._stalled = is_long = now_s + LONG_WAIT_S < until_s < FOREVER_S or isinstance(permission, Wait | Paused)
            if is_long and (by_rule := self._settle_by_rule(now_s)):
                return by_rule
            return WaitUntil(min(until_s, self._next_change_s()))
        # Mapped only now that it may be sent: during a wait the mapping and memory may change, and max_age may pass.
        if event.attempt is None and (settlement := self._map(event) or self._take_cap(event)):
            self._queues.take(event)
            return self._finish(event, settlement)
        return self._send(event, now_s, probe=isinstance(permission, Probe))

    def _next_event(self, permission: Permission, now_s: float) -> LoadedEvent | None:
        # With all slots taken no probe can be sent: only an event that holds a slot may send its next request.
        if not isinstance(permission, Probe) or len(self._slots) >= self._config.max_in_flight:
            return self._queues.head(now_s)
        if self.destination.describe(now_s).state == "paused":
            return self._queues.any_ready(now_s, self._random())
        return self._queues.oldest(now_s)

    def demand(self, now_s: float) -> tuple[int, ...]:
        """Return how many requests could leave now in each class, in the order of ``PRIORITIES``, if pace and quota allowed.

        Users with an event at the head of their queue count, not the backlog; free slots bound them.
        """
        permission = self.destination.may_send(now_s)
        ready = self._queues.ready_by_class()
        if isinstance(permission, Probe):
            return tuple(1 if count and not sum(ready[:at]) else 0 for at, count in enumerate(ready))
        left = self._config.max_in_flight - len(self._slots) if isinstance(permission, Open) else 0
        wanted = []
        for count in ready:
            wanted.append(min(count, max(0, left)))
            left -= wanted[-1]
        return tuple(wanted)

    def _may_send_at_s(self, event: LoadedEvent, permission: Permission, now_s: float) -> float:
        """Return when destination, slots and limiter allow this event; infinity if another event comes first."""
        if isinstance(permission, Wait):
            return permission.until_s
        if isinstance(permission, Paused):
            return permission.probe_at_s
        if len(self._slots) >= self._config.max_in_flight and event.id not in self._slots:
            return FOREVER_S
        allowed_s = self.limiter.ready_at_s(now_s, priority=event.priority, pace=self.destination.pace())
        # A clock that is not set dates what has no timestamp: it is given some minutes to be set.
        return max(allowed_s, now_s + self._clock_trust.delivery_waits_s())

    def _next_change_s(self) -> float:
        """Return when something changes by itself: a retry is due, or probation expires."""
        # With a request under way probation cannot expire: its answer wakes the loop. A time that has passed would
        # make the loop spin.
        return min(self._queues.next_due_s(), FOREVER_S if self._under_way else self.destination.probation_ends_s())

    def _send(self, event: LoadedEvent, now_s: float, *, probe: bool) -> Send:
        # Pace, quota and slot are taken before the request leaves: every try counts, answered or not.
        self._queues.take(event)
        self.limiter.take(now_s, priority=event.priority)
        renews_key = probe and self.destination.doubts_key
        if probe:
            self.destination.probe_started(now_s)
            self._probe = event
        self._slots.add(event.id)
        self._under_way += 1
        attempt: Attempt = event.attempt
        assert attempt.calls is not None
        return Send(event, attempt.calls.current, renews_key)

    def _settle_by_rule(self, now_s: float) -> Settle | WaitUntil | None:
        """Settle the next loaded event that a rule drops; None if there is none.

        Only what depends on the event alone is dropped here, since events before it are not settled. A decision maps few
        events and asks for the next one at once, so that other tasks run in between.
        """
        settings = self._settings.now
        mapped = 0
        for event in self._queues.events.values():
            if event.judged_by is settings or event.out or event.due_s or event.attempt is not None:
                continue
            if mapped == JUDGED_AT_ONCE:
                return WaitUntil(now_s)
            mapped += 1
            if (reason := self._judge.drops(event)) is not None:
                self._queues.discard(event)
                return Settle(self._drop_unqueued(event, reason))
        return None

    def _take_cap(self, event: LoadedEvent) -> Settlement | None:
        """Take the event's place under ``per_day`` of its name; return its settlement if none is left."""
        cap = event.attempt.mapped.cap
        if cap is None or event.cap is not None:
            return None
        event.cap = self._caps.take(cap, self._clock_trust.steady_ms())
        return None if event.cap else self._settlement(event, EventState.DROPPED, "capped")

    # Mapping --------------------------------------------------------------------------------------------------------

    def _map(self, event: LoadedEvent) -> Settlement | None:
        """Map the event; return its settlement if there is nothing to send for it."""
        row, memory, settings = event.row, event.memory, self._settings.now
        product = settings.product_of(row.source)
        try:
            call, hashed = decode_stored(row.body), hashed_values(row.hashed)
        except msgspec.DecodeError as error:
            return self._settlement(
                event, EventState.DEAD, "mapping_error", detail=f"The stored event is damaged ({error})."
            )
        if row.retried_ms and (bad := shape_error(call)) is not None:  # a retry makes no event of it
            return self._settlement(event, EventState.DEAD, "bad_event", detail=bad)
        mapped = settings.mapper.map(
            *(call, memory.known),
            property_key=product,
            received_ms=self._clock_trust.receipt_ms(row.received_ms),
            account=row.account,
            hashed=hashed,
        )
        event.attempt = Attempt(mapped, name_of(call), product, memory)
        if mapped.changes:
            self._telemetry.event_changed()
        if mapped.dropped is not None:
            return self._settlement(event, EventState.DROPPED, mapped.dropped)
        if mapped.dead is not None:
            return self._settlement(event, EventState.DEAD, mapped.dead, detail=mapped.detail)
        if self._config.max_age and is_older(row, self._config.max_age, self._clock_trust):
            detail = "It was pending for longer than deliver.max_age."
            return self._settlement(event, EventState.DEAD, "too_old", detail=detail)
        return None

    def _settlement(
        self, event: LoadedEvent, state: FinalState, reason: str = "", *, detail: str = "", status: int | None = None
    ) -> Settlement:
        attempt: Attempt | None = event.attempt
        remember = None
        # A dead event changes no memory: PX never learned what it says.
        if state is not EventState.DEAD and attempt and attempt.mapped.known is not None and event.row.user is not None:
            remember = Remembered(attempt.product, event.row.user, attempt.memory.settle(attempt).encode())
        sent = attempt.calls if attempt and event.out else None  # nothing of an event that is too old, or above its cap
        return Settlement(
            *(event.id, event.priority, state, reason, status, detail),
            attempts=event.attempts + (sent is not None),
            first_failed_ms=event.row.failure.first_failed_ms if event.row.failure else 0,
            name=attempt.name if attempt else "",
            payload=sent.current.body if sent and state is EventState.DEAD else b"",
            remember=remember,
            cap=None if state is EventState.DROPPED else event.cap,
        )

    # Results --------------------------------------------------------------------------------------------------------

    def replied(self, event: LoadedEvent, reply: Reply, now_s: float) -> list[Settle | Failure]:
        """Take the reply to a request that ``decide`` sent; return what is to be written to the outbox."""
        attempt: Attempt = event.attempt
        assert attempt.calls is not None
        self._under_way -= 1
        step = attempt.calls.after(reply, wall_ms=self._clock.wall_ms())
        probe = event is self._probe
        self._probe = None if probe else self._probe
        if isinstance(step, PxRequest):
            # The event keeps its slot and goes before all others: an older event could wait for just this slot.
            absent = isinstance(reply, PxAnswer) and reply.status == 404
            self.destination.sequence_continued(now_s, probe=probe, absent=absent)
            self._queues.put_first(event)
            return []
        outcome = self.destination.on_verdict(step, event=event.id, user=event.row.user, now_s=now_s, probe=probe)
        if outcome.day_spent:
            self.limiter.treat_day_as_spent()
        for event_id in outcome.pending:  # a pause has begun: it judges no event
            self._requeue(self._on_probation.pop(event_id)[0])
        written: list[Settle | Failure] = [Settle(self._settle_refused(event_id)) for event_id in outcome.dead]
        return written + self._dispose(event, step, outcome, now_s)

    def _dispose(self, event: LoadedEvent, verdict: Verdict, outcome: Outcome, now_s: float) -> list[Settle | Failure]:
        """Settle, requeue, hold or retry the answered event."""
        match outcome.disposition:
            case Disposition.DELIVERED:
                self._last_delivered_ms = self._clock.wall_ms()
                self._others_delivered_ms = self._clock_trust.steady_ms()
                sent = event.attempt.mapped.intents[-1]
                if isinstance(sent, CustomEvent) and "accountId" not in sent.body:
                    self._telemetry.event_without_account()
                return [self._finish(event, self._settlement(event, EventState.DELIVERED, status=verdict.status))]
            case Disposition.DEAD:
                return [self._finish(event, self._refusal(event, verdict, outcome.reason))]
            case Disposition.ON_PROBATION:
                # PX refused it, so sending it again after a crash repeats nothing: it needs no slot.
                self._slots.discard(event.id)
                self._on_probation[event.id] = (event, self._refusal(event, verdict, "refused"))
                return []
            case Disposition.REQUEUE:
                self._requeue(event)
                return []
            case Disposition.RETRY:
                return [self._retry_later(event, verdict, now_s)]

    def _refusal(self, event: LoadedEvent, verdict: Verdict, reason: str) -> Settlement:
        detail = dead_letter_detail(verdict)
        return self._settlement(event, EventState.DEAD, reason, detail=detail, status=verdict.status)

    def _requeue(self, event: LoadedEvent) -> None:
        """Make the event ready again, free its slot, and drop everything of this attempt."""
        self._drop_attempt(event)
        self._queues.requeue(event)

    def _drop_attempt(self, event: LoadedEvent) -> None:
        self._slots.discard(event.id)
        event.attempt.roll_back()
        event.attempt = None

    def _retry_later(self, event: LoadedEvent, verdict: Verdict, now_s: float) -> Settle | Failure:
        """Let the event and its user back off; settle it as dead if it failed for a day while others succeeded."""
        now_ms = self._clock_trust.steady_ms()
        before = event.row.failure
        failures = Failures(before.counted, before.over_ms, before.last_failed_ms) if before else Failures()
        failures = failures.after(now_ms, self._others_delivered_ms)
        if failures.failing():
            return self._finish(event, self._refusal(event, verdict, "failing"))
        event.attempts += 1
        # Stored with the event, so that neither the back-off nor the count of failures starts again after a restart.
        failure = Failure(
            event.id,
            event.attempts,
            before.first_failed_ms if before else now_ms,
            now_ms,
            failures.count,
            failures.over_ms,
            verdict.message,
            verdict.kind is Kind.AMBIGUOUS,
        )
        self._telemetry.attempt_failed(
            outcome_of(event, "retry", failure.attempts, detail=failure.detail, failure=failure)
        )
        event.row = event.row._replace(failure=failure)
        is_people = event.attempt.mapped.intents and not isinstance(event.attempt.mapped.intents[-1], CustomEvent)
        self._drop_attempt(event)
        wait_s = delay_s(
            event.attempts,
            self._random(),
            initial_s=self._config.retry_initial,
            max_s=self._config.retry_max,
            failing_s=(now_ms - failure.first_failed_ms) / 1000,
            retry_after_s=verdict.retry_after_s,
        )
        # What an event says does not depend on the people calls before it, so they hold its user up for a minute at most.
        if is_people and now_ms + wait_s * 1000 - failure.first_failed_ms > PEOPLE_HOLD_MS:
            self._queues.release_user(event)
        self._queues.retry_at(event, now_s + wait_s)
        return failure

    def _finish(self, event: LoadedEvent, settlement: Settlement, *, queued: bool = True) -> Settle:
        """Finish the event: its user's next event becomes ready; its slot and memory stay taken until the commit.

        ``queued`` is false for one that was taken out of its queue already.
        """
        attempt: Attempt | None = event.attempt
        if settlement.state is EventState.DEAD and attempt is not None:
            attempt.roll_back()
        self._caps.give_back(event.cap if settlement.state is EventState.DROPPED else None)
        # Until the commit a page may still hold this row, and memory that is older than this event's change.
        self._settling[event.id] = attempt.memory if attempt else None
        if queued:
            self._queues.done(event)
        self._telemetry.event_settled(
            outcome_of(
                event,
                settlement.state.name.lower(),
                settlement.attempts,
                reason=settlement.reason,
                status=settlement.status,
                detail=settlement.detail,
            )
        )
        return Settle(settlement)

    def _settle_refused(self, event_id: int) -> Settlement:
        event, settlement = self._on_probation.pop(event_id)
        return self._finish(event, settlement).settlement

    def _settle_expired(self, now_s: float) -> Settle | None:
        """Settle the oldest event whose probation has expired; None if there is none."""
        if self._on_probation:
            self._expired.extend(self.destination.expire_probation(now_s, self._under_way))
        return Settle(self._settle_refused(self._expired.popleft())) if self._expired else None

    def settled(self, settlements: Sequence[Settlement]) -> None:
        """Free the slots of these settlements: they are committed."""
        for settlement in settlements:
            self._slots.discard(settlement.id)
            self._committed.append(settlement.id)

    # Loading --------------------------------------------------------------------------------------------------------

    def start(self, parked: list[tuple[QueueKey, int]]) -> None:
        """Take over, before anything else, the users with parked rows and the first id of each."""
        self._queues.mark_parked(parked)

    def wants(self) -> LoadPage | LoadParked | LoadRows | SweepPage | SweepParked | SettleRows | Park | Lease | None:
        """Return what to load or write now. One action at a time: a newer event must not overtake an older one."""
        self._forget_committed()
        # First the lease, on which sends wait. Rows are marked as parked before any page: it would lack them otherwise.
        if lease := self.limiter.wants_lease():
            return lease
        if self._queues.parking() and (settled := self._settle_parking()):
            return settled
        if ids := self._queues.to_park():
            return Park(ids)
        if ids := self._queues.to_reload():
            return LoadRows(ids)
        capacity = self._queues.capacity()
        if capacity >= PARKED_ROWS and (parked := self._queues.wants_parked()):
            return LoadParked(*parked, PARKED_ROWS)
        if capacity < PAGE_ROWS:
            return self._wants_sweep()
        for priority in PRIORITIES:
            # By class: a backlog that may not be sent must not keep out a higher class that may use the reserve.
            if not self._exhausted[priority] and self._queues.ready(priority) < READY_LOW:
                return self._next_page(priority)
        return self._wants_sweep()

    def _wants_sweep(self) -> SweepPage | SweepParked | None:
        held_back = self._queues.has_parked() and (self._stalled or self._queues.has_waiting())
        loaded = (self._settings.now, self._after_id, self._exhausted)
        return self._sweep.wants(*loaded, stalled=self._stalled, parked=held_back)

    def swept(self, wanted: SweepPage | SweepParked, page: Page) -> list[Settlement]:
        """Take a page that ``wants`` asked for; return the settlements of what a rule drops."""
        loaded = self._queues.events  # parked rows that were read back stay marked in the outbox
        return [
            self._drop_unqueued(LoadedEvent(row, (wanted.priority, row.user or row.id), None), reason)
            for row, reason in self._sweep.dropped(wanted, page)
            if row.id not in self._settling and row.id not in loaded
        ]

    def _drop_unqueued(self, event: LoadedEvent, reason: str) -> Settlement:
        return self._finish(event, self._settlement(event, EventState.DROPPED, reason), queued=False).settlement

    def _settle_parking(self) -> SettleRows | None:
        """Settle what a rule drops of the rows that are about to be parked; None if no more is to be judged.

        Only while they are held back: if the head of their queue is sent soon, each would be mapped twice.
        """
        if not (self._stalled or self._queues.has_waiting()):
            self._sweep.parked_unjudged()
            return None
        unjudged = self._judge.unjudged(self._queues.parking())[:JUDGED_AT_ONCE]
        dropped = [(event, reason) for event in unjudged if (reason := self._judge.drops(event)) is not None]
        self._queues.cancel_parking([event for event, _ in dropped])
        return SettleRows([self._drop_unqueued(event, reason) for event, reason in dropped]) if unjudged else None

    def loaded(self, priority: Priority, page: Page) -> bool:
        """Take a page that ``wants`` asked for; return whether it was useful: empty, or some user became ready."""
        before = self._queues.ready()
        for row, memory in self._rows(page):
            self._queues.load(row, memory)
        if not self._page_is_stale:  # else ``rewind`` has set where to read on
            self._after_id[priority] = page.rows[-1].id if page.rows else self._after_id[priority]
            self._exhausted[priority] = not (page.more or priority in self._accepted_meanwhile)
        # Without more rows the read position has passed all of the backlog: every parked row may be read back.
        self._queues.read_up_to(priority, page.rows[-1].id if page.more else FOREVER_S)
        return self._queues.ready() > before or not page.rows

    def loaded_parked(self, key: QueueKey, page: Page) -> list[int]:
        """Take a page of rows that had been parked; return the ids of those that came too early and are read again."""
        self._queues.load_parked(key, self._rows(page), more=page.more)
        return [row.id for row in page.rows if row.id not in self._queues.events and row.id not in self._settling]

    def reloaded(self, ids: list[int], rows: list[Row]) -> bool:
        """Take rows that ``wants`` asked for again; return True."""
        self._queues.reloaded(ids, {row.id: row for row in rows})
        return True

    def _rows(self, page: Page) -> list[tuple[Row, UserMemory]]:
        """Return rows with their users' memory, except rows that were settled and not committed at the time of reading."""
        known = {(remembered.property_key, remembered.user): remembered.known for remembered in page.known}
        return [(row, self._memory(row, known)) for row in page.rows if row.id not in self._settling]

    def _memory(self, row: Row, known: dict[tuple[str, str], bytes]) -> UserMemory:
        """Return the memory of the row's user; one that is loaded is newer than the one that came with the page."""
        if row.user is None:
            return UserMemory(Known())
        key = (self._settings.now.product_of(row.source), row.user)
        # Weak references: a memory lives as long as a loaded or settling event of its user, so memory is bounded.
        memory = self._memories.get(key)
        if memory is None:
            self._memories[key] = memory = UserMemory(Known.decode(known[key]) if key in known else Known())
        return memory

    def accepted(self, priorities: Collection[Priority] = PRIORITIES) -> None:
        """Continue to read the backlog of these classes: there are new events in the outbox."""
        self._exhausted |= dict.fromkeys(priorities, False)
        # A page that is being read may lack them: its end is then not the end of the backlog.
        self._accepted_meanwhile.update(priorities)
        self._sweep.accepted()

    def page_with(self, priorities: Collection[Priority]) -> LoadPage | None:
        """Return the page to read right after the commit of new events of these classes, for ``loaded``.

        None unless it is all that ``wants`` would ask for: the backlog is read up to its end, the events are of one
        class, and nothing has to be parked or read back before. A lease may wait for the next call of ``wants``.
        """
        if len(priorities) != 1 or not all(self._exhausted.values()) or self._queues.must_load_other():
            return None
        (priority,) = priorities
        if self._queues.capacity() < PAGE_ROWS or self._queues.ready(priority) >= READY_LOW:
            return None
        return self._next_page(priority)

    def can_load(self, priorities: Collection[Priority]) -> bool:
        """Return True if a page of one of these classes would be loaded, if there were one."""
        return self._queues.capacity() >= PAGE_ROWS and any(self._queues.ready(each) < READY_LOW for each in priorities)

    def has_to_load(self) -> bool:
        """Return True if ``wants`` has more to do than to lease, or many committed events to forget."""
        return (
            not all(self._exhausted.values()) or self._queues.must_load_other() or len(self._committed) >= COMMITTED_MAX
        )  # with all read there is nothing to sweep

    def _next_page(self, priority: Priority) -> LoadPage:
        # Only here, between two pages: a page that was read before a commit must still find its row in ``_settling``.
        self._forget_committed()
        self._page_is_stale = False
        self._accepted_meanwhile.discard(priority)
        return LoadPage(priority, self._after_id[priority], PAGE_ROWS)

    def _forget_committed(self) -> None:
        while self._committed:
            self._settling.pop(self._committed.pop(), None)

    def rewind(self, first_id: int) -> None:
        """Read the backlog again from ``first_id``: later rows may be pending again, such as retried dead letters."""
        self._after_id = {priority: min(after_id, first_id - 1) for priority, after_id in self._after_id.items()}
        # A page that is being read began at the old position, and must not set the new one.
        self._page_is_stale = True
        self.accepted()

    def withdraw(self, match: Callable[[Row], bool]) -> list[int]:
        """Unload matching events that are not being sent, because their rows are about to change; return their ids."""
        gone = self._queues.withdraw(match)
        for event in gone:
            if event.attempt is not None:
                self._drop_attempt(event)
            self._caps.give_back(event.cap)
            event.judged_by = self._settings.now  # by the caller, which changes the row
        return [event.id for event in gone]

    def waiting(self) -> Iterator[LoadedEvent]:
        """Iterate over the events that failed and wait for a retry, each with its user behind it."""
        return self._queues.waiting()
