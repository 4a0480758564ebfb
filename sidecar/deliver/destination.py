"""PX as the dispatcher sees it: one state machine for pace, waiting, outage and pause.

States and transitions::

    open     ──not reachable; 10 of later or ambiguous in a row from 3 users──► waiting (back-off)
    open     ──429, or any Retry-After──► waiting (back-off or Retry-After; a 429 also lowers the pace)
    open     ──wrong key, wrong region, firewall x 3 users, refused x 50 from 10 users──► paused (with a reason)
    waiting  ──time──► one probe is allowed: probing
    paused   ──5 minutes, a restart or `resume`──► one probe is allowed: probing
    probing  ──PX itself answered──► open;  ──else──► back to waiting or paused
    any      ──`pause`──► paused by the operator until `resume`; the state beneath continues to change

A probe is one ordinary event, chosen by the dispatcher: the oldest event in an outage; a random user's event in a
pause, since the oldest may be the one that PX refuses. A delivery opens a pause even if it was not the probe.

The ``Outcome`` says what becomes of the answered event:

==============  ====================================================================================================
delivered       it is settled; refusals on probation are settled with it
away            requeue: the event is not at fault and keeps its position
too_fast, wait  requeue; retry if it was the probe, so that the next probe is another event
held            requeue; PX was not asked, so nothing else changes
wrong_*         requeue
ambiguous       retry: it backs off and its user waits. For the destination it counts as ``later``, since otherwise a
                PX that accepts requests and never answers would be sent the same events again and again
later           retry
firewall        retry, dead after three tries; three users in a row without a success pause instead
refused         on probation, see below
==============  ====================================================================================================

**Probation.** One answer cannot tell a bad event from a wrong property key. So refused events are held, and settled as
dead by the next delivery: in a healthy stream it is milliseconds away and proves that key and mapping are right. They
are also settled once no answer can come any more (``expire_probation``: no request under way, no answer for a second).
When 50 in a row from 10 users or more were refused, delivery pauses. Each pause, whatever its reason, sends the events on
probation back to pending, and the refusals that arrive during it: while PX itself is in doubt, no event is judged. Of a
longer run from fewer users only the newest 50 are held; older ones are dead.

**Pace** after a 429: see ``pace.py``. One unbroken run of 429s is one episode, whatever probes are refused meanwhile. After
ten minutes of it without a delivery the day counts as spent.

See sidecar/deliver/README.md#destination; answers are classified by sidecar/px/README.md#answers.
"""

import enum
import math
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

import msgspec

from sidecar.config import DeliverConfig
from sidecar.deliver.pace import Pace
from sidecar.deliver.retry import delay_s
from sidecar.px.answers import Kind, Verdict

__all__ = [
    "Destination",
    "DestinationState",
    "DestinationStatus",
    "Disposition",
    "Open",
    "Outcome",
    "Paused",
    "Permission",
    "Probe",
    "Wait",
]

PROBE_EVERY_S = 300.0
# Counts alone do not tell a bad event from a bad destination: one user's events may all be bad. Hence the users.
OUTAGE_COUNT, OUTAGE_USERS = 10, 3
FIREWALL_TRIES, FIREWALL_USERS = 3, 3
REFUSED_COUNT, REFUSED_USERS = 50, 10
PROBATION_S = 1.0  # and at least three intervals of the pace
DAY_SPENT_AFTER_S = 600.0  # of 429 without a delivery
FIREWALL_MEMORY = 10_000  # events that a firewall blocked once or twice and that wait for a retry

BY_OPERATOR = "operator"


class DestinationState(enum.StrEnum):
    """The states, named as `status` shows them."""

    OPEN = "open"
    WAITING = "waiting"
    PROBING = "probing"
    PAUSED = "paused"


class Open(msgspec.Struct, frozen=True):
    """Send; ``pace`` is the share of the full rate, above 0 and at most 1."""

    pace: float


class Probe(msgspec.Struct, frozen=True):
    """Send one event: call ``probe_started`` before and ``on_verdict(…, probe=True)`` after it.

    In a pause choose another user each time: one user's event may be refused for itself.
    """


class Wait(msgspec.Struct, frozen=True):
    """Send nothing before ``until_s``; infinity means until an answer arrives."""

    until_s: float


class Paused(msgspec.Struct, frozen=True):
    """Send nothing before a probe at ``probe_at_s`` (or infinity); ``message`` says what the operator has to do."""

    reason: str
    message: str
    probe_at_s: float


Permission = Open | Probe | Wait | Paused


class Disposition(enum.Enum):
    """The next step for the answered event.

    ``REQUEUE``: the event is not at fault; it is ready again, and nothing is stored. ``RETRY``: a failed attempt is stored
    with the event, and its user backs off. ``ON_PROBATION``: held (**Probation** above).
    """

    DELIVERED = "delivered"
    DEAD = "dead"
    RETRY = "retry"
    REQUEUE = "requeue"
    ON_PROBATION = "on_probation"


class Outcome(msgspec.Struct, frozen=True):
    """The next step for the answered event, and for earlier ones on probation.

    ``reason`` is that of a dead event; ``dead`` are events on probation to be settled now as ``refused``; ``pending``
    are events on probation to be requeued; ``day_spent`` says that the day's quota counts as spent.
    """

    disposition: Disposition
    reason: str = ""
    dead: tuple[int, ...] = ()
    pending: tuple[int, ...] = ()
    day_spent: bool = False


class DestinationStatus(msgspec.Struct, frozen=True):
    """The destination as `status` shows it.

    Times are monotonic seconds; ``message`` says what is wrong and what to do; ``on_probation`` counts events.
    """

    state: DestinationState
    since_s: float
    until_s: float | None
    reason: str
    message: str
    pace: float
    on_probation: int


class Destination:
    """The state machine. Pure: time is an argument, nothing is read or written.

    ``config`` returns the rates and back-off in force, ``random`` numbers from [0, 1); ``saved`` is what ``saved()``
    returned in an earlier process. A pause is probed at once after a restart: the key may have been replaced.
    """

    def __init__(
        self,
        *,
        now_s: float,
        config: Callable[[], DeliverConfig],
        random: Callable[[], float],
        saved: dict[str, Any] | None = None,
    ) -> None:
        saved = saved or {}
        self._config, self._random = config, random
        # The state beneath an operator's pause and a probe: open, waiting or paused.
        self._base = DestinationState.PAUSED if saved.get("reason") else DestinationState.OPEN
        self._probing = False
        self._until_s = now_s  # a pause of an earlier process is probed at once
        # But it lasts since it began: `status` says since when.
        self._since_s = min(now_s, float(saved.get("since_s", now_s)))
        self._reason, self._cause = str(saved.get("reason", "")), str(saved.get("message", ""))
        self._last_try = ""  # the answer to the newest probe of a pause, if it says something else than the cause
        operator_since_s = min(now_s, float(saved.get("operator_since_s", now_s)))
        self._operator_since_s = operator_since_s if saved.get("operator") else None
        self._attempts, self._outage_since_s = 0, now_s
        self._opens_by_time = False  # the wait ends without a probe
        self._pace = Pace(lambda: config().host_per_second, now_s, min(1.0, max(0.0, float(saved.get("pace", 1.0)))))
        self._too_fast_since_s: float | None = None  # the first 429 of the episode
        self._failures, self._failure_users = 0, set[str]()
        self._refused, self._refused_users = 0, set[str]()
        self._on_probation: deque[int] = deque()  # event ids, oldest first
        self._answered_s = now_s
        self._firewall_users = set[str]()
        self._firewall_tries: OrderedDict[int, int] = OrderedDict()

    # --- permission to send ---

    def may_send(self, now_s: float) -> Permission:
        """Return what may be sent now."""
        if self._operator_since_s is not None:
            return Paused(BY_OPERATOR, "Delivery was paused; `px-sidecar resume` starts it again.", math.inf)
        if self._base is DestinationState.WAITING and self._opens_by_time and now_s >= self._until_s:
            self._reopen(now_s)
        if self._base is DestinationState.OPEN:
            return Open(self.pace())
        if not self._probing and now_s >= self._until_s:
            return Probe()
        until_s = math.inf if self._probing else self._until_s
        return (
            Paused(self._reason, self._message(), until_s) if self._base is DestinationState.PAUSED else Wait(until_s)
        )

    def may_send_before(self, until_s: float, now_s: float) -> bool:
        """Return whether something may be sent before ``until_s``, unless an answer changes that; False in a pause."""
        match self.may_send(now_s):
            case Wait(opens_s):
                return opens_s < until_s
            case Paused():
                return False
        return True

    def probe_started(self, now_s: float) -> None:
        """Record that the probe which ``may_send`` allowed is sent; nothing else is allowed until its answer."""
        assert isinstance(self.may_send(now_s), Probe)
        self._probing = True

    def pace(self) -> float:
        """Return the share of the full rate."""
        return self._pace.share()

    # --- answers ---

    def on_verdict(
        self, verdict: Verdict, *, event: int, user: str | None, now_s: float, probe: bool = False
    ) -> Outcome:
        """Take the verdict on ``event`` of ``user``; ``probe`` marks the answer to a probe."""
        self._probing = self._probing and not probe
        if verdict.kind is Kind.HELD:
            return Outcome(Disposition.REQUEUE)
        self._answered_s = now_s
        user = user or f"\0{event}"  # an event without a user counts as a user of its own
        match verdict.kind:
            case Kind.DELIVERED:
                outcome = self._on_delivered(event, now_s, probe=probe)
            case Kind.REFUSED:
                outcome = self._on_refused(event, user, verdict, now_s, probe=probe)
            case Kind.FIREWALL:
                outcome = self._on_firewall(event, user, verdict, now_s, probe=probe)
            case Kind.WRONG_KEY | Kind.WRONG_REGION:
                outcome = self._on_wrong(verdict, now_s, probe=probe)
            case Kind.TOO_FAST | Kind.WAIT:
                outcome = self._on_asked_to_wait(verdict, now_s, probe=probe)
            case Kind.AWAY:
                self._start_outage(verdict, now_s, probe=probe)
                outcome = Outcome(Disposition.REQUEUE)
            case _:
                outcome = self._on_failure(user, verdict, now_s, probe=probe)
        # PX may ask to wait in any answer, even in a 2xx. A pause keeps its own time of the next probe.
        asked = verdict.kind in (Kind.TOO_FAST, Kind.WAIT)
        if verdict.retry_after_s and not asked and self._base is not DestinationState.PAUSED:
            self._wait(Kind.WAIT, verdict.message, now_s, now_s + verdict.retry_after_s)
            # After a delivery PX needs no probe, and there may be no event left for one.
            self._opens_by_time = verdict.kind is Kind.DELIVERED
        return outcome

    def sequence_continued(self, now_s: float, *, probe: bool, accepted: bool = False, absent: bool = False) -> None:
        """Take an answer that leads to the event's next request: PX itself answered, and it accepts the key.

        ``accepted``: it did what an errand asked for, which ends an episode of 429s as a delivery does. ``absent``: the
        answer was 404, which a host that is not PX gives, too.
        """
        if accepted:
            self._too_fast_since_s = None
        self._failures = 0
        self._failure_users.clear()
        if probe and absent and self._base is DestinationState.PAUSED and self._reason == Kind.WRONG_REGION:
            self._probing, self._until_s = False, now_s  # the next request of this event is the probe
        elif probe:
            self._attempts = 0
            self._reopen(now_s)

    def probe_abandoned(self, now_s: float) -> None:
        """Give up a probe without an answer: there was no event to send, or sending was cancelled."""
        self._probing = False
        # An answer that came meanwhile may have asked for a longer wait.
        self._until_s = max(self._until_s, now_s + self._config().retry_initial)

    def _on_delivered(self, event: int, now_s: float, *, probe: bool) -> Outcome:
        confirmed = tuple(self._on_probation)
        self._on_probation.clear()
        self._refused = self._attempts = self._failures = 0
        self._refused_users, self._failure_users, self._firewall_users = set(), set(), set()
        self._firewall_tries.pop(event, None)
        # A delivery of a request that was under way neither shortens a wait that PX asked for nor ends its episode.
        if (
            probe
            or self._base is DestinationState.PAUSED
            or (self._base is DestinationState.WAITING and not self._asked)
        ):
            self._reopen(now_s)
        if self._base is DestinationState.OPEN:
            self._too_fast_since_s = None
        self._pace.delivered(now_s)
        return Outcome(Disposition.DELIVERED, dead=confirmed)

    def _on_refused(self, event: int, user: str, verdict: Verdict, now_s: float, *, probe: bool) -> Outcome:
        if self._base is DestinationState.PAUSED and (self._reason == Kind.REFUSED or not probe):
            # Under way when the pause began, or its probe: while PX is in doubt, no event is judged.
            return self._stay_paused(verdict, now_s, probe=probe)
        self.sequence_continued(now_s, probe=probe)
        self._refused += 1
        _add(self._refused_users, user, REFUSED_USERS)
        if self._refused >= REFUSED_COUNT and len(self._refused_users) >= REFUSED_USERS:
            return self._pause(Kind.REFUSED, _refused_message(self._refused, verdict), now_s)
        self._on_probation.append(event)
        # Bounded: a long run of bad events from few users must neither pause delivery nor fill memory.
        oldest = (self._on_probation.popleft(),) if len(self._on_probation) > REFUSED_COUNT else ()
        return Outcome(Disposition.ON_PROBATION, dead=oldest)

    def _on_firewall(self, event: int, user: str, verdict: Verdict, now_s: float, *, probe: bool) -> Outcome:
        if self._base is DestinationState.PAUSED and self._reason == Kind.FIREWALL:
            return self._stay_paused(verdict, now_s, probe=probe)
        self.sequence_continued(now_s, probe=probe)
        _add(self._firewall_users, user, FIREWALL_USERS)
        tries = self._firewall_tries.pop(event, 0) + 1
        if len(self._firewall_users) >= FIREWALL_USERS:
            # Not this event's content but the key or the host's address is blocked: earlier tries do not count.
            self._firewall_tries.clear()
            return self._pause(Kind.FIREWALL, _firewall_message(verdict), now_s)
        if tries >= FIREWALL_TRIES:
            return Outcome(Disposition.DEAD, "firewall")
        self._firewall_tries[event] = tries
        if len(self._firewall_tries) > FIREWALL_MEMORY:
            self._firewall_tries.popitem(last=False)
        return Outcome(Disposition.RETRY)

    def _on_wrong(self, verdict: Verdict, now_s: float, *, probe: bool) -> Outcome:
        """Pause for a wrong key or region. Of a pause that lasts the newest answer is shown: 401 may have become 403."""
        if self._base is not DestinationState.PAUSED or self._reason != verdict.kind:
            return self._pause(verdict.kind, verdict.message, now_s)
        outcome = self._stay_paused(verdict, now_s, probe=probe)
        if probe:
            self._cause, self._last_try = verdict.message, ""
        return outcome

    def _on_failure(self, user: str, verdict: Verdict, now_s: float, *, probe: bool) -> Outcome:
        self._failures += 1
        _add(self._failure_users, user, OUTAGE_USERS)
        outage = self._failures >= OUTAGE_COUNT and len(self._failure_users) >= OUTAGE_USERS
        if probe or outage:
            self._start_outage(verdict, now_s, probe=probe)
        return Outcome(Disposition.RETRY)

    def _on_asked_to_wait(self, verdict: Verdict, now_s: float, *, probe: bool) -> Outcome:
        if self._base is DestinationState.PAUSED:
            return self._stay_paused(verdict, now_s, probe=probe)
        if verdict.kind is Kind.TOO_FAST:
            self._pace.refused(now_s, new_episode=self._too_fast_since_s is None)
            self._too_fast_since_s = now_s if self._too_fast_since_s is None else self._too_fast_since_s
        until_s = now_s + (verdict.retry_after_s or 0.0)
        if self._base is DestinationState.WAITING and not probe:  # under way when the episode began
            if verdict.retry_after_s and until_s > self._until_s:
                self._wait(verdict.kind, verdict.message, now_s, until_s)  # a delivery must not end it
            self._until_s = max(self._until_s, until_s)
            return Outcome(Disposition.REQUEUE)
        self._wait(verdict.kind, verdict.message, now_s, max(until_s, now_s + self._next_back_off_s(now_s)))
        since_s = self._too_fast_since_s if verdict.kind is Kind.TOO_FAST else None
        # A probe backs off by itself, too: PX may answer so to this event alone, which as the oldest would be each next probe.
        next_step = Disposition.RETRY if probe else Disposition.REQUEUE
        return Outcome(next_step, day_spent=since_s is not None and now_s - since_s >= DAY_SPENT_AFTER_S)

    # --- transitions ---

    def _reopen(self, now_s: float) -> None:
        self._base, self._since_s, self._reason = DestinationState.OPEN, now_s, ""
        self._cause = self._last_try = ""
        self._answered_s = now_s
        self._probing = self._opens_by_time = False
        self._pace.reopened(now_s)

    @property
    def _asked(self) -> bool:
        """True if PX itself asked for the present wait."""
        return self._reason in (Kind.TOO_FAST, Kind.WAIT)

    def _start_outage(self, verdict: Verdict, now_s: float, *, probe: bool) -> None:
        if self._base is DestinationState.PAUSED:
            self._stay_paused(verdict, now_s, probe=probe)
        elif self._base is DestinationState.OPEN or probe:
            # Here alone: the sentence is also the answer to verbs that ask PX about something else than events.
            kept = " Events are kept and retried." if verdict.kind is Kind.AWAY else ""
            self._wait(verdict.kind, verdict.message + kept, now_s, now_s + self._next_back_off_s(now_s))

    def _next_back_off_s(self, now_s: float) -> float:
        if self._attempts == 0:
            self._outage_since_s = now_s
        self._attempts += 1
        config = self._config()
        return delay_s(
            self._attempts,
            self._random(),
            initial_s=config.retry_initial,
            max_s=config.retry_max,
            failing_s=now_s - self._outage_since_s,
        )

    def _wait(self, reason: str, message: str, now_s: float, until_s: float) -> None:
        self._opens_by_time = False
        if self._base is DestinationState.WAITING:
            # A shorter wait never shortens a longer one that PX asked for.
            until_s = max(until_s, self._until_s)
        else:
            self._base, self._since_s = DestinationState.WAITING, now_s
        self._until_s, self._reason, self._cause, self._last_try = until_s, reason, message, ""

    def _pause(self, reason: str, message: str, now_s: float) -> Outcome:
        if self._base is not DestinationState.PAUSED:
            self._base, self._since_s = DestinationState.PAUSED, now_s
        self._until_s, self._reason = now_s + PROBE_EVERY_S, reason
        self._cause, self._last_try = message, ""
        # Requeued, not kept: any of them may be the only event that is left for a probe.
        pending = tuple(self._on_probation)
        self._on_probation.clear()
        return Outcome(Disposition.REQUEUE, pending=pending)

    def _stay_paused(self, verdict: Verdict, now_s: float, *, probe: bool) -> Outcome:
        if probe:
            self._until_s = now_s + PROBE_EVERY_S
            # The cause stays: this answer does not show that it is gone. But an operator who has changed something sees by it
            # what is wrong now.
            self._last_try = "" if verdict.message in self._cause else verdict.message
        return Outcome(Disposition.REQUEUE)

    @property
    def doubts_key(self) -> bool:
        """True while PX answers 401 or 403: another key may be what ends it."""
        return self._base is DestinationState.PAUSED and self._reason in (Kind.WRONG_KEY, Kind.FIREWALL)

    @property
    def operator_paused(self) -> bool:
        """True while the operator has paused delivery."""
        return self._operator_since_s is not None

    # --- probation, the operator, status ---

    def probation_ends_s(self) -> float:
        """Return when ``expire_probation`` has something to do; infinity for never."""
        if not self._on_probation or self._operator_since_s is not None:
            return math.inf
        # Not before the end of a wait: its probe, if there is an event besides these, may deliver and confirm them.
        quiet_s = max(PROBATION_S, 3 / self._pace.per_second())
        return max(self._answered_s, self._until_s) + quiet_s

    def expire_probation(self, now_s: float, under_way: int) -> tuple[int, ...]:
        """Return the events to be settled dead as ``refused``: no request is ``under_way``, so no answer can come."""
        if under_way or now_s < self.probation_ends_s():
            return ()
        expired = tuple(self._on_probation)
        self._on_probation.clear()
        return expired

    def pause(self, now_s: float) -> None:
        """Pause by the operator (`px-sidecar pause`): requests under way are finished, nothing else is sent."""
        self._operator_since_s = now_s if self._operator_since_s is None else self._operator_since_s

    def resume(self, now_s: float) -> None:
        """Lift the operator's pause (`px-sidecar resume`); any other pause, and an outage, are probed at once.

        A wait that PX asked for is not shortened.
        """
        if self._operator_since_s is not None and self._base is DestinationState.OPEN:
            self._since_s = now_s  # nothing was sent meanwhile, so it is not open since before the pause
        self._operator_since_s = None
        self.probe_at_once(now_s)

    def probe_at_once(self, now_s: float) -> None:
        """Probe a pause or an outage now, and not when its time has come; an operator's pause stays."""
        self._answered_s = now_s
        if self._base is DestinationState.PAUSED or (self._base is DestinationState.WAITING and not self._asked):
            self._until_s = now_s

    def saved(self) -> dict[str, Any]:
        """Return what survives a restart, as plain JSON values. Those in ``_s`` are monotonic seconds of this process."""
        saved: dict[str, Any] = {"operator": self._operator_since_s is not None, "pace": self._pace.share()}
        if self._operator_since_s is not None:
            saved["operator_since_s"] = self._operator_since_s
        if self._base is DestinationState.PAUSED:
            saved |= {"reason": str(self._reason), "message": self._cause, "since_s": self._since_s}
        return saved

    def describe(self, now_s: float) -> DestinationStatus:
        """Return the state that `status` shows; an operator's pause hides the state beneath it."""
        permission = self.may_send(now_s)
        pace, on_probation = self.pace(), len(self._on_probation)
        if self._operator_since_s is not None and isinstance(permission, Paused):
            return DestinationStatus(
                DestinationState.PAUSED,
                self._operator_since_s,
                None,
                BY_OPERATOR,
                permission.message,
                pace,
                on_probation,
            )
        state = DestinationState.PROBING if self._probing else self._base
        until_s = self._until_s if state in (DestinationState.WAITING, DestinationState.PAUSED) else None
        return DestinationStatus(state, self._since_s, until_s, str(self._reason), self._message(), pace, on_probation)

    def _message(self) -> str:
        """Return what is wrong and what to do; in a pause also what the newest probe has shown since."""
        return f"{self._cause} The last try: {self._last_try}" if self._last_try else self._cause


def _add(users: set[str], user: str, enough: int) -> None:
    """Add a user, but keep no more of them than a decision needs."""
    if len(users) < enough:
        users.add(user)


def _refused_message(count: int, verdict: Verdict) -> str:
    return (
        f"PX refused the last {count} events, of {REFUSED_USERS} users or more, and none is lost; check the mapping "
        "and that px.property_key matches your PX product, then `px-sidecar reload` and `px-sidecar resume`; a changed "
        f"px.property_key needs a restart instead. The last answer: {verdict.message}"
    )


def _firewall_message(verdict: Verdict) -> str:
    return (
        f"PX's firewall blocked the events of {FIREWALL_USERS} users in a row; check that the key has the Write "
        f"permission and that this host's address is allowed, then `px-sidecar resume`. The last answer: {verdict.message}"
    )
