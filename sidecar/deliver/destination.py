"""PX as the dispatcher sees it: one state machine that holds pace, waiting, outage and pause.

States, and what leads from one to the next (DESIGN 4)::

    open     ──cannot be reached; 10 of later or unknown in a row from 3 users──► waiting (back-off)
    open     ──429, or any Retry-After──► waiting (back-off or Retry-After) ──time──► open, at a lower pace
    open     ──wrong key, wrong region, firewall x 3 users, refused x 50 from 10 users──► paused (with a reason)
    waiting  ──time──► one probe may go: probing
    paused   ──5 minutes, a restart or `resume`──► one probe may go: probing
    probing  ──PX answered for itself──► open;  ──else──► back to waiting or paused
    any      ──`pause`──► paused by the operator, until `resume`; what was there before goes on beneath

A probe is one ordinary event, which the dispatcher chooses: the oldest in an outage; another user's each time in a
pause, since the oldest may be the one event that PX dislikes. A delivery opens also a pause that it did not probe.

What becomes of the event itself is the ``Outcome``:

==============  ====================================================================================================
delivered       it is settled; refusals that were held are settled with it
away, too_fast  again: it was not its fault, it keeps its place
wrong_*         again
ambiguous       retry: it backs off and its user waits; as ``later`` for the destination, since a PX that answers
                nobody would otherwise be sent the same events again and again
later           retry
firewall        retry, dead after three tries; three users in a row without a success pause instead
refused         held, see below
==============  ====================================================================================================

**Refusals are held on probation**, because it takes more than one answer to tell a bad event from a wrong property key.
They are settled dead by the next delivery, which in a healthy stream is milliseconds away and proves that key and
mapping are right, or once nothing more comes (``tick``: no request under way, no answer for a second). When 50 in a row
from 10 users or more were refused, delivery pauses. Each pause, whatever its reason, sends the held back to pending, and
refusals that arrive in it: a PX in doubt judges nobody. Of a longer run from fewer users only the newest 50 are held.

**Pace**: a 429 at full pace takes a tenth of it: requests that the network bunched by 50 ms are enough for one. An episode
of 429 before the pace is back halves it, down to a sixteenth, which is about what the day's quota allows all day long.
Every ten seconds that the destination stays open give a twentieth back. After ten minutes of 429 at the lowest pace
without a delivery the day counts as spent.
"""

import enum
import math
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

import msgspec

from sidecar.deliver.retry import delay_s
from sidecar.px.answers import Kind, Verdict

__all__ = ["Destination", "Leave", "Open", "Outcome", "Paused", "Probe", "State", "Status", "Wait", "What"]

PROBE_EVERY_S = 300.0
TROUBLE_COUNT, TROUBLE_USERS = 10, 3
FIREWALL_TRIES, FIREWALL_USERS = 3, 3
REFUSED_COUNT, REFUSED_USERS = 50, 10
QUIET_S = 1.0  # and at least three intervals of the pace
LOWEST_PACE, ONCE_TOO_FAST, TOO_FAST_AGAIN = 1 / 16, 0.9, 0.5
CLIMB, CLIMB_EVERY_S = 0.05, 10.0
LOWEST_PACE_FOR_S = 600.0
REMEMBERED_TRIES = 10_000  # events that a firewall blocked once or twice and that wait to be tried again

BY_OPERATOR = "operator"


class State(enum.StrEnum):
    """As `status` names them."""

    OPEN = "open"
    WAITING = "waiting"
    PROBING = "probing"
    PAUSED = "paused"


class Open(msgspec.Struct, frozen=True):
    """Send; ``pace`` is the share of the full rate, from 1/16 to 1."""

    pace: float


class Probe(msgspec.Struct, frozen=True):
    """Send one event; ``probe_begun`` before, ``on(…, probe=True)`` after. In a pause choose another user each time."""


class Wait(msgspec.Struct, frozen=True):
    """Send nothing before ``until_s``; infinity means until an answer arrives."""

    until_s: float


class Paused(msgspec.Struct, frozen=True):
    """Send nothing; ``message`` says what a person has to do, ``probe_at_s`` (or infinity) when a probe may go."""

    reason: str
    message: str
    probe_at_s: float


Leave = Open | Probe | Wait | Paused


class What(enum.Enum):
    """What becomes of the event that was answered."""

    DELIVERED = "delivered"
    DEAD = "dead"
    RETRY = "retry"
    AGAIN = "again"
    HELD = "held"


class Outcome(msgspec.Struct, frozen=True):
    """What becomes of the answered event, and of earlier ones that were held.

    ``reason`` is that of a dead event; ``dead`` are held events to be settled now as ``refused``; ``pending`` are held
    events that go back to their places; ``day_spent`` says that the quota should be treated as spent.
    """

    what: What
    reason: str = ""
    dead: tuple[int, ...] = ()
    pending: tuple[int, ...] = ()
    day_spent: bool = False


class Status(msgspec.Struct, frozen=True):
    """For `status`: times are monotonic seconds, ``message`` says what is wrong and what to do."""

    state: State
    since_s: float
    until_s: float | None
    reason: str
    message: str
    pace: float
    held: int


class Destination:
    """The state machine. ``random`` gives numbers from [0, 1); ``saved`` is what ``saved()`` gave in an earlier life.

    A pause is probed at once after a restart: the key may have been replaced. The three numbers can be set at any time.
    """

    def __init__(
        self,
        *,
        now_s: float,
        per_second: float,
        initial_s: float,
        max_s: float,
        random: Callable[[], float],
        saved: dict[str, Any] | None = None,
    ) -> None:
        saved = saved or {}
        self.per_second, self.initial_s, self.max_s, self._random = per_second, initial_s, max_s, random
        self._base = State.PAUSED if saved.get("reason") else State.OPEN
        self._probing = False
        self._since_s = self._until_s = now_s
        self._reason, self._message = str(saved.get("reason", "")), str(saved.get("message", ""))
        self._operator_since_s = now_s if saved.get("operator") else None
        self._attempts = 0
        self._pace, self._pace_since_s = min(1.0, max(LOWEST_PACE, float(saved.get("pace", 1.0)))), now_s
        self._lowest_since_s: float | None = None
        self._trouble, self._trouble_users = 0, set[str]()
        self._refused, self._refused_users = 0, set[str]()
        self._held: deque[int] = deque()
        self._answered_s = now_s
        self._firewall_users = set[str]()
        self._firewall_tries: OrderedDict[int, int] = OrderedDict()

    # --- may something be sent? ---

    def may_send(self, now_s: float) -> Leave:
        """What may be sent now."""
        if self._operator_since_s is not None:
            return Paused(BY_OPERATOR, "Delivery was paused; `px-sidecar resume` starts it again.", math.inf)
        if self._base is State.WAITING and self._reason == Kind.TOO_FAST and now_s >= self._until_s:
            self._open(now_s)
        if self._base is State.OPEN:
            return Open(self.pace(now_s))
        if not self._probing and now_s >= self._until_s:
            return Probe()
        until_s = math.inf if self._probing else self._until_s
        return Paused(self._reason, self._message, until_s) if self._base is State.PAUSED else Wait(until_s)

    def probe_begun(self, now_s: float) -> None:
        """The probe that ``may_send`` allowed is on its way; nothing else may go until its answer is told."""
        assert isinstance(self.may_send(now_s), Probe)
        self._probing = True

    def pace(self, now_s: float) -> float:
        """The share of the full rate."""
        steps = math.floor((now_s - self._pace_since_s) / CLIMB_EVERY_S) if self._base is State.OPEN else 0
        return min(1.0, self._pace + CLIMB * max(0, steps))

    # --- what did PX answer? ---

    def on(self, verdict: Verdict, *, event: int, user: str | None, now_s: float, probe: bool = False) -> Outcome:
        """Take in the verdict on ``event`` of ``user``. The answer to a probe is told with ``probe``."""
        self._probing = self._probing and not probe
        self._answered_s = now_s
        who = user or f"\0{event}"  # an event without a user is a user of its own
        match verdict.kind:
            case Kind.DELIVERED:
                outcome = self._delivered(event, now_s)
            case Kind.REFUSED:
                outcome = self._was_refused(event, who, verdict, now_s, probe=probe)
            case Kind.FIREWALL:
                outcome = self._met_firewall(event, who, verdict, now_s, probe=probe)
            case Kind.WRONG_KEY | Kind.WRONG_REGION:
                outcome = self._pause(verdict.kind, verdict.message, now_s, probe=probe)
            case Kind.TOO_FAST:
                outcome = self._too_fast(verdict, now_s, probe=probe)
            case Kind.AWAY:
                self._out(verdict, now_s, probe=probe)
                outcome = Outcome(What.AGAIN)
            case _:
                outcome = self._troubled(who, verdict, now_s, probe=probe)
        if verdict.retry_after_s and verdict.kind is not Kind.TOO_FAST and self._base is not State.PAUSED:
            self._wait(Kind.TOO_FAST, verdict.message, now_s, now_s + verdict.retry_after_s)
        return outcome

    def went_on(self, now_s: float, *, probe: bool) -> None:
        """PX answered for itself and knows the key: told for each answer that leads to the event's next request."""
        self._trouble = 0
        self._trouble_users.clear()
        if probe:
            self._attempts = 0
            self._open(now_s)

    def probe_lost(self, now_s: float) -> None:
        """The probe came to nothing: no event was there to send, or its sending was cancelled."""
        self._probing = False
        self._until_s = now_s + self.initial_s

    def _delivered(self, event: int, now_s: float) -> Outcome:
        held = tuple(self._held)
        self._held.clear()
        self._refused = self._attempts = self._trouble = 0
        self._refused_users, self._trouble_users, self._firewall_users = set(), set(), set()
        self._firewall_tries.pop(event, None)
        self._lowest_since_s = None
        if self._base is State.PAUSED or (self._base is State.WAITING and self._reason != Kind.TOO_FAST):
            self._open(now_s)
        return Outcome(What.DELIVERED, dead=held)

    def _was_refused(self, event: int, who: str, verdict: Verdict, now_s: float, *, probe: bool) -> Outcome:
        if self._base is State.PAUSED and (self._reason == Kind.REFUSED or not probe):
            return self._stay_paused(now_s, probe=probe)
        self.went_on(now_s, probe=probe)
        self._refused += 1
        _add(self._refused_users, who, REFUSED_USERS)
        if self._refused >= REFUSED_COUNT and len(self._refused_users) >= REFUSED_USERS:
            return self._pause(Kind.REFUSED, _refused_message(self._refused, verdict), now_s, probe=probe)
        self._held.append(event)
        oldest = (self._held.popleft(),) if len(self._held) > REFUSED_COUNT else ()
        return Outcome(What.HELD, dead=oldest)

    def _met_firewall(self, event: int, who: str, verdict: Verdict, now_s: float, *, probe: bool) -> Outcome:
        if self._base is State.PAUSED and self._reason == Kind.FIREWALL:
            return self._stay_paused(now_s, probe=probe)
        self.went_on(now_s, probe=probe)
        _add(self._firewall_users, who, FIREWALL_USERS)
        tries = self._firewall_tries.pop(event, 0) + 1
        if len(self._firewall_users) >= FIREWALL_USERS:
            self._firewall_tries.clear()
            return self._pause(Kind.FIREWALL, _firewall_message(verdict), now_s, probe=probe)
        if tries >= FIREWALL_TRIES:
            return Outcome(What.DEAD, "firewall")
        self._firewall_tries[event] = tries
        if len(self._firewall_tries) > REMEMBERED_TRIES:
            self._firewall_tries.popitem(last=False)
        return Outcome(What.RETRY)

    def _troubled(self, who: str, verdict: Verdict, now_s: float, *, probe: bool) -> Outcome:
        self._trouble += 1
        _add(self._trouble_users, who, TROUBLE_USERS)
        many = self._trouble >= TROUBLE_COUNT and len(self._trouble_users) >= TROUBLE_USERS
        if probe or many:
            self._out(verdict, now_s, probe=probe)
        return Outcome(What.RETRY)

    def _too_fast(self, verdict: Verdict, now_s: float, *, probe: bool) -> Outcome:
        if self._base is State.PAUSED:
            return self._stay_paused(now_s, probe=probe)
        until_s = now_s + (verdict.retry_after_s or 0.0)
        if self._base is State.WAITING and not probe:  # one of those that were under way: the same episode
            self._until_s = max(self._until_s, until_s)
            return Outcome(What.AGAIN)
        pace = self.pace(now_s)
        pace = max(LOWEST_PACE, pace * (ONCE_TOO_FAST if pace == 1.0 else TOO_FAST_AGAIN))
        self._wait(Kind.TOO_FAST, verdict.message, now_s, max(until_s, now_s + self._back_off_s()))
        self._pace = pace
        if pace > LOWEST_PACE or verdict.status != 429:
            return Outcome(What.AGAIN)
        self._lowest_since_s = now_s if self._lowest_since_s is None else self._lowest_since_s
        return Outcome(What.AGAIN, day_spent=now_s - self._lowest_since_s >= LOWEST_PACE_FOR_S)

    # --- changes of state ---

    def _open(self, now_s: float) -> None:
        self._base, self._since_s, self._reason, self._message = State.OPEN, now_s, "", ""
        self._pace_since_s = self._answered_s = now_s
        self._probing = False

    def _out(self, verdict: Verdict, now_s: float, *, probe: bool) -> None:
        if self._base is State.PAUSED:
            self._stay_paused(now_s, probe=probe)
        elif self._base is State.OPEN or probe:
            self._wait(verdict.kind, verdict.message, now_s, now_s + self._back_off_s())

    def _back_off_s(self) -> float:
        self._attempts += 1
        return delay_s(self._attempts, self._random(), initial_s=self.initial_s, max_s=self.max_s)

    def _wait(self, reason: str, message: str, now_s: float, until_s: float) -> None:
        self._pace = self.pace(now_s)
        if self._base is State.WAITING:
            until_s = max(until_s, self._until_s)
        else:
            self._base, self._since_s = State.WAITING, now_s
        self._until_s, self._reason, self._message = until_s, reason, message

    def _pause(self, reason: str, message: str, now_s: float, *, probe: bool) -> Outcome:
        if self._base is State.PAUSED and self._reason == reason:
            return self._stay_paused(now_s, probe=probe)
        self._pace = self.pace(now_s)
        if self._base is not State.PAUSED:
            self._base, self._since_s = State.PAUSED, now_s
        self._until_s, self._reason, self._message = now_s + PROBE_EVERY_S, reason, message
        pending = tuple(self._held)  # each of them may be the only one that is left for a probe
        self._held.clear()
        return Outcome(What.AGAIN, pending=pending)

    def _stay_paused(self, now_s: float, *, probe: bool) -> Outcome:
        self._until_s = now_s + PROBE_EVERY_S if probe else self._until_s
        return Outcome(What.AGAIN)

    # --- the held, the operator, and what people see ---

    def tick_at_s(self) -> float:
        """When ``tick`` has something to do, infinity for never."""
        if not self._held or self._operator_since_s is not None:
            return math.inf  # else behind a wait: a probe goes out there, if there is anything but the held
        return max(self._answered_s, self._until_s) + max(QUIET_S, 3 / (self.per_second * self._pace))

    def tick(self, now_s: float, under_way: int) -> tuple[int, ...]:
        """Held events to be settled dead as ``refused``, since with no request ``under_way`` no answer will come."""
        if under_way or now_s < self.tick_at_s():
            return ()
        held = tuple(self._held)
        self._held.clear()
        return held

    def pause(self, now_s: float) -> None:
        """`px-sidecar pause`: what is under way is finished, nothing else is sent."""
        self._operator_since_s = now_s if self._operator_since_s is None else self._operator_since_s

    def resume(self, now_s: float) -> None:
        """`px-sidecar resume`: lift the operator's pause; any other pause, and an outage, are probed at once."""
        self._operator_since_s = None
        self._answered_s = now_s
        if self._base is State.PAUSED or (self._base is State.WAITING and self._reason != Kind.TOO_FAST):
            self._until_s = now_s

    def saved(self) -> dict[str, Any]:
        """What survives a restart, as plain JSON values."""
        paused = {"reason": str(self._reason), "message": self._message} if self._base is State.PAUSED else {}
        return {"operator": self._operator_since_s is not None, "pace": self._pace, **paused}

    def describe(self, now_s: float) -> Status:
        """What `status` shows."""
        leave = self.may_send(now_s)
        pace, held = self.pace(now_s), len(self._held)
        if self._operator_since_s is not None and isinstance(leave, Paused):
            return Status(State.PAUSED, self._operator_since_s, None, BY_OPERATOR, leave.message, pace, held)
        state = State.PROBING if self._probing else self._base
        until_s = self._until_s if state in (State.WAITING, State.PAUSED) else None
        return Status(state, self._since_s, until_s, str(self._reason), self._message, pace, held)


def _add(users: set[str], who: str, enough: int) -> None:
    """Remember one more user, but no more than are needed to decide."""
    if len(users) < enough:
        users.add(who)


def _refused_message(count: int, verdict: Verdict) -> str:
    return (
        f"PX refused the last {count} events, of {REFUSED_USERS} users or more, and none is lost; check that property_key "
        f"matches your PX product and the mapping, then `px-sidecar resume`. The last answer: {verdict.message}"
    )


def _firewall_message(verdict: Verdict) -> str:
    return (
        f"PX's firewall blocked the events of {FIREWALL_USERS} users in a row; check that the key has the Write permission "
        f"and that this host's address is allowed, then `px-sidecar resume`. The last answer: {verdict.message}"
    )
