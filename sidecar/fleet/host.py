"""One host of a fleet as a pure state machine: which call comes next, and when a request may be sent.

States and transitions::

    joining ──first answer──► sharing ──no answer──► quiet ──its lease is surely over──► alone
                                 ▲                     │                                   │ the engine is back
                                 └───────answer────────┴───────────── rejoining ◄──────────┘

* **joining**: the engine has not answered, and no promise of an earlier process may be used. Nothing is sent. With such a
  promise (sidecar/fleet/record.py) a process begins in **quiet**.
* **sharing**: requests leave at the slots that the engine handed out.
* **quiet**: a call was not answered. Slots that are held are used up, then nothing is sent until the engine has surely
  ended the lease of the last call: ``TIMEOUT_S`` until that call could take effect, ``LEASE_S``, and ``CAP_S`` until the
  last slot of others at the old rate has passed.
* **alone**: requests leave at the pace that the engine has promised, in turn with other lone hosts.
* **rejoining**: a call is out, or the engine's clock was set and the old slots of others must pass first.

Rules, each with the failure that it prevents, are in sidecar/fleet/README.md#rules. Time is an argument: seconds of a
clock that also runs while the host is suspended.
"""

import enum
import math
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec

from sidecar.fleet.clock import EngineClock
from sidecar.fleet.record import FleetRecord, Restored
from sidecar.fleet.wire import Answer, Granted, ScriptCall, pack_minutes, restored_grant
from sidecar.mapping import Priority

__all__ = ["Demand", "FleetHost", "FleetLimits", "FleetState", "FleetStatus", "Hello", "Process"]

HORIZON_S: Final = 0.5  # how far ahead slots are handed out while few hosts wait
LEASE_S: Final = 5.0
TIMEOUT_S: Final = 0.5  # of one call
CAP_S: Final = 1.5  # no slot lies further ahead
GUARD_S: Final = CAP_S + TIMEOUT_S  # an engine that forgot its slots hands out none before the old ones have passed
EARLY_S: Final = 0.05  # a call that arrives before its issue shows that the engine's clock was set
MARGIN_S: Final = 0.1  # for the uncertainty of the clock, in waits of seconds
HEARTBEAT_S: Final = 2.0
# A slot may be used up to this long after its time; so a second holds at most 1.025 times the rate.
LATEST_S: Final = 0.025
MOST_UNCERTAIN_S: Final = 0.022
COALESCE_S: Final = 0.008
ROUNDING_S: Final = 0.000_1  # a turn that is computed twice must not move away by the rounding of its sums
HELLO_EVERY_S, HELLO_TRIES, HELLO_SLOWLY_S = 0.05, 10, 1.0
RETRY_S: Final = (0.1, 0.25)  # before asking again when no slot was free
SPENT_S: Final = 2.0
REFUSED_S: Final = 5.0
# After this many calls in a row without an answer a host does not call again before it has been alone for a while: each
# such call may have prolonged its lease, and so brings silence. The time doubles from the first to the last.
UNANSWERED_CALLS: Final = 3
ALONE_BETWEEN_S: Final = (10.0, 60.0)
RECORD_AGAIN_S: Final = 600.0  # the recorded bounds of the engine's clock widen by 0.3 s in this time
DAY_S: Final = 86_400
DAY_MINUTES: Final = 1440
GOLDEN: Final = (math.sqrt(5) - 1) / 2
MICRO: Final = 1_000_000


class FleetState(enum.StrEnum):
    """The states, named as `fleet status` shows them."""

    JOINING = "joining"
    SHARING = "sharing"
    QUIET = "quiet"
    ALONE = "alone"
    REJOINING = "rejoining"


class FleetLimits(NamedTuple):
    """The limits of the subscription; all hosts of a fleet must have the same. ``identity`` names product and region."""

    per_second: float
    per_day: int
    reserve_for_high: float
    day: str
    spread: bool
    identity: str
    forget_s: float


class Process(NamedTuple):
    """The caller: the outbox (``member``), its start number, this process (``nonce``), and the host's name."""

    member: str
    start: int
    nonce: str
    host: str


class Demand(NamedTuple):
    """The number of requests that could leave now, by class: users with a ready event, not the backlog."""

    high: int = 0
    normal: int = 0
    low: int = 0


class Hello(NamedTuple):
    """Ask the engine for its run id and its time; has no effect there."""


class FleetStatus(NamedTuple):
    """The state that `fleet status` and `status` show. Rates are per second; ``problem`` is one sentence or empty."""

    state: FleetState
    problem: str
    members: int
    absent: int
    rate: float
    alone: float
    used: int
    held: int
    uncertainty_s: float
    epoch: str
    late_slots: int
    granted: int
    calls: int
    clone: bool


class _Slot(NamedTuple):
    """A time to send, in seconds of the engine's clock; ``minute`` is where it is booked."""

    at_s: float
    high_only: bool
    minute: int


class FleetHost:
    """See the module. ``limits`` returns the configuration in force; ``restored`` is what the outbox remembers."""

    def __init__(self, process: Process, limits: Callable[[], FleetLimits], restored: Restored | None = None) -> None:
        self.process = process
        self.pace = 1.0  # the destination's: after a 429 it goes with each call, and the smallest one holds for all
        self.draining = False
        self.problem = ""
        self._limits = limits
        self._record, self._own, now_s = restored or Restored(FleetRecord(), {}, -math.inf)
        self._clock = EngineClock(self._record.bounds)
        self._first_reading = True
        self._run = ""
        self._greeted = False
        self._hellos = 0
        self._next_hello_s = self._next_call_s = -math.inf
        self._silent_until_s = -math.inf
        self._uncertain_since_s: float | None = None
        self._slots: deque[_Slot] = deque()
        self._goal = 0
        self._promise = self._record.promise if self._record.bounds else 0
        self._last: Granted | None = restored_grant(self._record) if self._promise else None
        self._out: ScriptCall | None = None
        # Of the last call that may have had effects: an earlier process may have issued one just before this one began.
        self._issued_s = self._issued_before_s = now_s if self._promise else -math.inf
        self._answered_s = self._record.answered_s if self._promise else -math.inf
        self._turn_s = self._last_turn_s = -math.inf  # the engine's time of the next and the last turn of a lone host
        self._history: dict[int, int] = {}
        self._returned: dict[int, int] = {}
        self._lone: dict[int, int] = dict(self._record.lone)
        self._inherited = self._record.lone  # sent alone by earlier processes and not reported yet
        self._lone_report: tuple[int, dict[int, int]] = (0, {})
        self._late = self._granted = self._calls = self._unanswered = 0
        self._join_next = True
        self._clone = False  # another process has the same outbox

    # Permission to send -----------------------------------------------------------------------------------------------

    def ready_at_s(self, now_s: float, priority: Priority) -> float:
        """Return ``now_s`` if a request may leave now, else when to ask again; infinity: not before the next answer."""
        self._drop_late(now_s)
        index = self._usable(priority)
        if index is not None:
            return max(now_s, self._due_s(index, now_s))
        return self._lone_at_s(now_s, priority)

    def take(self, now_s: float, priority: Priority) -> tuple[float, int | None]:
        """Count a request that leaves now, and return until when it may leave, and the minute of its slot if it has one.

        ``ready_at_s`` must allow it (AssertionError otherwise).
        """
        assert self.ready_at_s(now_s, priority) <= now_s, "the fleet does not allow a request now"
        index = self._usable(priority)
        if index is None:
            self._last_turn_s = self._turn_s
            minute = int(self._clock.latest_s(now_s) // 60)
            self._lone[minute] = self._lone.get(minute, 0) + 1
            return now_s + LATEST_S / 2, None
        slot = self._slots[index]
        del self._slots[index]
        self._own[slot.minute] = self._own.get(slot.minute, 0) + 1
        return now_s + max(0.0, slot.at_s + LATEST_S - self._clock.latest_s(now_s)), slot.minute

    def give_back(self, minute: int) -> None:
        """Give back a slot of this minute that was taken and not used: its request was late."""
        self._own[minute] = max(0, self._own.get(minute, 0) - 1)  # forgotten after a freeze of a day
        self._return(minute)

    def _usable(self, priority: Priority) -> int | None:
        """Return the index of the first slot for this class; slots after the normal part of the day are for high ones."""
        for index, slot in enumerate(self._slots):
            if priority is Priority.HIGH or not slot.high_only:
                return index
        return None

    def _due_s(self, index: int, now_s: float) -> float:
        due_s = self._clock.when_surely_s(self._slots[index].at_s)
        if due_s <= now_s or self._clock.uncertainty_s(now_s) > LATEST_S - 2 * COALESCE_S:
            return due_s
        # Slots that are due almost together share one wake-up, as in the local bucket.
        latest_s = due_s
        for slot in list(self._slots)[index + 1 : index + 1 + 16]:
            next_s = self._clock.when_surely_s(slot.at_s)
            if next_s > due_s + COALESCE_S:
                break
            latest_s = next_s
        return latest_s

    def _drop_late(self, now_s: float) -> None:
        """Drop slots whose time has passed: they are never caught up, a thawed host would send them all at once."""
        while self._slots and self._clock.latest_s(now_s) > self._slots[0].at_s + LATEST_S:
            self._return(self._slots.popleft().minute)
            self._late += 1

    def _return(self, minute: int) -> None:
        """Have the next call give a slot of this minute back."""
        self._returned[minute] = self._returned.get(minute, 0) + 1

    def _drop_all_slots(self) -> None:
        while self._slots:
            self._return(self._slots.popleft().minute)

    def _lone_at_s(self, now_s: float, priority: Priority) -> float:
        """Return the next turn of this host while it is alone; infinity if nothing is promised, or the day may be spent."""
        if not self._promise or now_s > self._answered_s + self._limits().forget_s - LEASE_S:
            return math.inf
        if self._record.lone_since is None and now_s >= self._quiet_until_s():
            return math.inf  # recorded first: the next process must know that requests may have been sent alone
        if self._day_may_be_spent(now_s, priority):
            return math.inf
        start_s = max(now_s, self._quiet_until_s())
        interval_s = MICRO / self._promise
        # Turns are points of the engine's clock, at a phase of this host's own: so lone hosts do not send together.
        offset_s = (self._clock.earliest_s(now_s) + self._clock.latest_s(now_s)) / 2 - now_s
        phase = (self._last.number * GOLDEN) % 1 if self._last else 0.0
        turn = math.ceil((start_s + offset_s - LATEST_S / 2) / interval_s - phase)
        # Measured between turns, not between sends: a send that was late must not cost the next turn.
        if (turn + phase) * interval_s < self._last_turn_s + interval_s / 2:
            turn += 1
        self._turn_s = (turn + phase) * interval_s
        at_s = self._turn_s - offset_s
        return now_s if at_s <= now_s + ROUNDING_S else at_s

    def _day_may_be_spent(self, now_s: float, priority: Priority) -> bool:
        """True if the fleet may have used its day, by what this host knew last.

        Until this host was surely absent the others may have sent at the whole rate; since then the engine sets aside this
        host's part of what was left, as if all hosts were alone. Minutes that leave the day are not given back meanwhile.
        """
        limits, quiet_until_s = self._limits(), self._quiet_until_s()
        used = self._last.used if self._last else 0
        used += math.ceil(limits.per_second * (quiet_until_s - self._answered_s))
        used += math.ceil(self._most_alone(limits) * max(0.0, now_s - quiet_until_s) / MICRO)
        return used >= (limits.per_day if priority is Priority.HIGH else self._normal_day(limits))

    @staticmethod
    def _normal_day(limits: FleetLimits) -> int:
        return limits.per_day - math.floor(limits.per_day * limits.reserve_for_high)

    def _quiet_until_s(self) -> float:
        """Return when the engine has surely ended the lease of the last call, and the last slots at its rate have passed."""
        return self._issued_s + TIMEOUT_S + LEASE_S + CAP_S + MARGIN_S

    # What to ask ------------------------------------------------------------------------------------------------------

    def next_action(self, now_s: float, demand: Demand) -> Hello | ScriptCall | float:
        """Return what to send to the engine now, or until when to wait. One request at a time."""
        if not self._greeted or not self._clock_is_known(now_s):
            return self._next_hello_s if now_s < self._next_hello_s else Hello()
        if now_s < self._next_call_s:
            return self._next_call_s
        wanted = self._wanted(now_s, demand)
        if self._call_is_due(now_s, wanted):
            return self._call(now_s, wanted)
        until_s = self._issued_s + HEARTBEAT_S
        return min(until_s, self._silent_until_s) if now_s < self._silent_until_s else until_s

    def may_call(self, now_s: float, priority: Priority) -> bool:
        """Return whether a request of this class that waits can make a call due, so that the connection has to wake up."""
        if not self._greeted or self._out or now_s < self._next_call_s or not self._clock_is_known(now_s):
            return False
        held = len(self._slots)
        waiting = Demand(held + 1) if priority is Priority.HIGH else Demand(normal=held + 1)
        return self._call_is_due(now_s, self._wanted(now_s, waiting))

    def _call_is_due(self, now_s: float, wanted: Demand) -> bool:
        return self._join_next or now_s >= self._issued_s + HEARTBEAT_S or self._needs_slots(wanted)

    def _clock_is_known(self, now_s: float) -> bool:
        """True if sends can be timed; an engine that stays too far away is not called, so that the lease ends."""
        if self._clock.uncertainty_s(now_s) <= MOST_UNCERTAIN_S:
            self._uncertain_since_s = None
            return True
        self._uncertain_since_s = self._uncertain_since_s or now_s
        return False

    def _wanted(self, now_s: float, demand: Demand) -> Demand:
        if now_s < self._silent_until_s:
            return Demand()
        return Demand(sum(demand)) if self.draining else demand

    def _needs_slots(self, wanted: Demand) -> bool:
        held = len(self._slots)
        return sum(wanted) > held and (2 * held <= self._goal or wanted.high > held)

    def _call(self, now_s: float, wanted: Demand) -> ScriptCall:
        limits = self._limits()
        join = self._join_next
        self._out = ScriptCall(
            "join" if join else "ask",
            *self.process,
            self._run,
            int((self._clock.earliest_s(now_s) - EARLY_S) * MICRO),
            int((self._clock.latest_s(now_s) + TIMEOUT_S) * MICRO),
            int(limits.per_second * MICRO),
            limits.per_day,
            self._normal_day(limits),
            limits.day,
            int(limits.spread),
            limits.identity,
            int(HORIZON_S * MICRO),
            int(LEASE_S * MICRO),
            int(CAP_S * MICRO),
            int(GUARD_S * MICRO),
            int(limits.forget_s * MICRO),
            self._most_alone(limits),
            self._last.epoch if self._last else "",
            max(self._promise, self._record.promise),  # the ledger must not shrink before the record has
            self._last.total if self._last else 0,
            *wanted,
            len(self._slots),
            pack_minutes(self._returned),
            *self._report_lone(),
            max(1, math.floor(1000 * self.pace)),
            pack_minutes(self._history) if join else "",
            pack_minutes(self._own) if join else "",
        )
        self._returned = {}  # given back at most once: a call without an answer may have had its effects
        self._issued_before_s, self._issued_s = self._issued_s, now_s
        self._calls += 1
        return self._out

    @staticmethod
    def _most_alone(limits: FleetLimits) -> int:
        """Return what all hosts together may send alone each second: what spends the day evenly, within the ceiling."""
        return int(min(limits.per_second, limits.per_day / DAY_S) * MICRO)

    def _report_lone(self) -> tuple[int, str]:
        """Return the lone sends under a number of their own: the same report is counted once, however often it is sent."""
        number, sends = self._lone_report
        if not sends and self._lone:
            self._lone_report = (number + 1, self._lone)
            self._lone = {}
        return self._lone_report[0], pack_minutes(self._lone_report[1])

    def can_leave(self, now_s: float, run: str | None = None) -> bool:
        """Return whether slots and promise can be given back now, to the process ``run`` of the engine: not if it is away."""
        return bool(self._last and self._greeted and run in (None, self._run) and self._clock_is_known(now_s))

    def leave(self, now_s: float) -> ScriptCall:
        """Return the call that gives slots and promise back at the end of the process; ``can_leave`` must allow it.

        A call may be out whose connection the end of the process has closed.
        """
        self.call_failed()
        assert not self._record.promise, "the record must be emptied before the promise is given back"
        self._drop_all_slots()
        self._promise = 0
        return self._call(now_s, Demand())._replace(op="leave")

    # The record -------------------------------------------------------------------------------------------------------

    def wanted_record(self, now_s: float, boot_id: str) -> FleetRecord | None:
        """Return what to write to the outbox now, and then to pass to ``recorded``; None if nothing is to be written."""
        known = self._record
        alone = self.state(now_s) is FleetState.ALONE and self._promise > 0
        record = self._present_record(now_s, boot_id, now_s if alone and known.lone_since is None else None)
        old = record.answered_s >= known.answered_s + RECORD_AGAIN_S
        written = ("promise", "epoch", "number", "lone", "lone_since")
        changed = any(getattr(record, name) != getattr(known, name) for name in written)
        return record if changed or old else None

    def leaving_record(self, now_s: float, boot_id: str) -> FleetRecord:
        """Return what to write before the promise is given back."""
        return msgspec.structs.replace(self._present_record(now_s, boot_id, None), promise=0)

    def recorded(self, record: FleetRecord) -> None:
        """Take note that a record is written."""
        self._record = record

    def _present_record(self, now_s: float, boot_id: str, lone_since: float | None) -> FleetRecord:
        last, since = self._last, self._record.lone_since if lone_since is None else lone_since
        if self.state(now_s) is FleetState.SHARING and not self._lone and not self._lone_report[1]:
            since = None  # all of it is reported
        return FleetRecord(
            boot_id,
            last.epoch if last else "",
            last.total if last else 0,
            last.number if last else 0,
            self._promise,
            self._answered_s if last else 0.0,
            last.used if last else 0,
            self._clock.bounds,
            self._inherited,
            since,
        )

    # Answers ----------------------------------------------------------------------------------------------------------

    def hello_answered(self, sent_s: float, received_s: float, engine_us: int, run: str) -> None:
        """Take the answer to a hello."""
        self._read_clock(sent_s, received_s, engine_us)
        if run != self._run:
            self._run, self._join_next = run, True
            self._unanswered, self._next_call_s = 0, received_s  # it is not the process that gave no answers
        self._greeted = True
        self._hellos += 1
        known = self._clock_is_known(received_s)
        slowly = self._hellos > HELLO_TRIES
        self._next_hello_s = received_s + (HELLO_SLOWLY_S if slowly else HELLO_EVERY_S)
        if known:
            self._hellos = 0
        elif slowly:
            took_ms = 1000 * (received_s - sent_s)
            self.problem = (
                f"The fleet's engine is too far away: an answer takes {took_ms:.0f} ms, at most 25 ms can be used; use "
                "an engine in the region of these hosts."
            )

    def disconnected(self, now_s: float, problem: str) -> None:
        """Take note that the connection is gone; the next one begins with hellos."""
        self.call_failed()
        self._greeted = False
        self._hellos = 0
        self._next_hello_s = now_s
        self.problem = problem

    def call_failed(self) -> None:
        """Take note that a call has no answer: it may have had its effects, or not."""
        if self._out is None:
            return
        self._out = None
        self._unanswered += 1
        if self._unanswered >= UNANSWERED_CALLS:
            shortest_s, longest_s = ALONE_BETWEEN_S
            alone_s = min(longest_s, shortest_s * 2.0 ** min(8, self._unanswered - UNANSWERED_CALLS))
            self._next_call_s = self._quiet_until_s() + alone_s

    def call_refused(self, now_s: float, problem: str) -> None:
        """Take an error of the engine that proves that the call had no effect."""
        self._out = None
        self._without_effect()
        self._next_call_s = now_s + REFUSED_S
        self.problem = problem

    def answered(self, sent_s: float, received_s: float, answer: Answer) -> None:
        """Take the answer to a call."""
        call, self._out = self._out, None
        assert call is not None, "an answer without a call"
        self._unanswered = 0
        steady = self._read_clock(sent_s, received_s, answer.now)
        match answer.outcome:
            case "ok" if answer.granted is not None:
                self._take_grant(call, sent_s, received_s, answer.granted, steady=steady)
            case "join":
                self._without_effect()
                self._join_next = True
            case "late":
                self._without_effect()
                self._next_call_s = received_s + RETRY_S[0]
            case "differ":
                self._without_effect()
                self._next_call_s = received_s + REFUSED_S
                self.problem = _difference(answer.details)
            case "clone" | "older":
                # The promise belongs to the other process now.
                self._promise, self._clone = 0, True
                self._drop_all_slots()
                self._next_call_s = received_s + REFUSED_S
                self.problem = _twin(answer.details[0], self.process.host)

    def _without_effect(self) -> None:
        self._issued_s = self._issued_before_s

    def _read_clock(self, sent_s: float, received_s: float, engine_us: int) -> bool:
        """Take a reading; return False if no slot may be computed with it, since old slots of others must pass first."""
        fresh, self._first_reading = self._first_reading, False
        steady = self._clock.read(sent_s, received_s, engine_us / MICRO)
        if fresh or not steady:
            self._drop_all_slots()
            self._silent_until_s = received_s + CAP_S
        return steady and received_s >= self._silent_until_s

    def _take_grant(
        self, call: ScriptCall, sent_s: float, received_s: float, granted: Granted, *, steady: bool
    ) -> None:
        if self._last is None or granted.epoch != self._last.epoch:
            self._history = {}
        self._history.update(granted.history)
        self._forget_minutes(max(granted.history, default=0))
        self._last, self._promise = granted, granted.promise
        self._answered_s, self._join_next, self._clone, self.problem = sent_s, False, False, ""
        for minute, count in self._lone_report[1].items():
            self._own[minute] = self._own.get(minute, 0) + count
        self._lone_report, self._inherited = (self._lone_report[0], {}), {}
        self._granted += granted.slots
        for number in range(granted.slots):
            slot = _Slot((granted.first + number * granted.step) / MICRO, granted.high_only, granted.minute)
            if steady:
                self._slots.append(slot)
            else:
                self._return(slot.minute)
        self._goal = len(self._slots)
        refused = granted.slots == 0 and call.high + call.normal + call.low > call.held
        self._next_call_s = self._retry_s(received_s, granted) if refused else received_s

    def _retry_s(self, now_s: float, granted: Granted) -> float:
        """Return when to ask again after an answer without a slot; spread, so that hosts do not ask together."""
        if granted.used >= self._limits().per_day:
            return now_s + SPENT_S
        low_s, high_s = RETRY_S
        return now_s + low_s + (high_s - low_s) * ((granted.number + self._calls) * GOLDEN % 1)

    def _forget_minutes(self, minute: int) -> None:
        for minutes in (self._history, self._own):
            for old in [at for at in minutes if at < minute - DAY_MINUTES - 2]:
                del minutes[old]

    # Status -----------------------------------------------------------------------------------------------------------

    def state(self, now_s: float) -> FleetState:
        """Return the state at this moment."""
        if self._last is None:
            return FleetState.JOINING
        # While a call is out the answer before it counts, as long as this one is not late.
        in_time = self._out is not None and now_s < self._issued_s + TIMEOUT_S
        issued_s = self._issued_before_s if in_time else self._issued_s
        if self._answered_s >= issued_s and now_s < issued_s + LEASE_S:
            return FleetState.REJOINING if now_s < self._silent_until_s else FleetState.SHARING
        if now_s < self._quiet_until_s():
            return FleetState.REJOINING if in_time else FleetState.QUIET
        return FleetState.ALONE

    def status(self, now_s: float) -> FleetStatus:
        """Return what the operator sees."""
        last = self._last
        return FleetStatus(
            self.state(now_s),
            self.problem,
            last.members if last else 0,
            last.absent if last else 0,
            last.rate / MICRO if last else 0.0,
            self._promise / MICRO,
            last.used if last else 0,
            len(self._slots),
            self._clock.uncertainty_s(now_s),
            last.epoch if last else "",
            self._late,
            self._granted,
            self._calls,
            self._clone,
        )


def _difference(details: tuple[str, ...]) -> str:
    """Return the sentence for hosts that do not agree: key, both values, and the host that set the other one."""
    what, theirs, ours, host = details
    if what == "identity":
        what = "the PX region or key (px.region, px.api_key)"
        values = "differs"
    else:
        if what == "per_second":
            theirs, ours = (f"{int(text) / MICRO:g}" for text in (theirs, ours))
        what, values = f"deliver.{what}", f"is {ours} here and {theirs} there"
    return (
        f"This host was not joined to the fleet: {what} {values}, at {host or 'another host'}; give all hosts of one "
        "fleet.name the same limits and PX subscription, or this one another name."
    )


def _twin(other: str, host: str) -> str:
    """Return the sentence for a cloned outbox."""
    return (
        f"Another process ({other or 'unknown host'}) has joined the fleet with the same outbox as this one ({host}): a "
        "copied disk or a restored backup. Stop one of them, and start it again with an empty outbox.path."
    )
