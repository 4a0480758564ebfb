"""Telemetry: the protocol that the working packages report to, and its implementations.

The packages that receive, store and deliver events get a ``Telemetry`` in their constructors and report each fact when
it occurs. They do not know its readers and never wait for them: every method returns at once and never raises.
``DaemonTelemetry`` feeds metrics, heartbeats, log lines and the live feed, ``NullTelemetry`` discards everything,
and ``RecordingTelemetry`` keeps it for tests.
"""

from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, Protocol

import msgspec

from sidecar.clock import Clock
from sidecar.observe.delivery_log import ACCEPTING, DeliveryLog
from sidecar.observe.feed import AcceptedEvent, EventOutcome, Feed, Redact, accepted_record, outcome_record
from sidecar.observe.heartbeats import DISPATCHER, WRITER, Heartbeats
from sidecar.observe.metrics import Metrics
from sidecar.observe.sample import LiveSample
from sidecar.observe.series import Series
from sidecar.units import iso_utc

__all__ = ["DaemonTelemetry", "NullTelemetry", "Problem", "Rate", "RecordingTelemetry", "Refusals", "Telemetry"]


RATE_WINDOW_S: Final = 10


KEPT: Final = 50


class Refusals:
    """Counts by code since the start, and the newest messages. A message is that of the answer, so it holds no secret."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._newest: deque[dict[str, str]] = deque(maxlen=KEPT)

    def add(self, at: str, code: str, message: str) -> None:
        """Count a refusal at a time (ISO 8601)."""
        self._counts[code] += 1
        self._newest.append({"at": at, "code": code, "message": message})

    def describe(self) -> dict[str, Any]:
        """Return ``{"counts", "newest"}``; the newest come first."""
        return {"counts": dict(self._counts), "newest": list(reversed(self._newest))}


class Telemetry(Protocol):
    """Receiver of everything that the working packages report."""

    def request_refused(self, code: str, message: str = "") -> None:
        """A request, a line or an event of a batch was answered with ``code`` instead of success.

        ``message`` is that of the answer; empty for an event of a batch, which is stored as dead.
        """
        ...

    def request_answered(self, seconds: float) -> None:
        """An ingest request was answered, ``seconds`` after its last byte was read."""
        ...

    def events_accepted(self, events: Sequence[AcceptedEvent]) -> None:
        """These events are on disk."""
        ...

    def committed(self, seconds: float, rows: int) -> None:
        """A transaction that wrote ``rows`` events is on disk; it took ``seconds``, fsync included."""
        ...

    def writer_alive(self) -> None:
        """The writer makes progress with a call that takes long."""
        ...

    def decided(self) -> None:
        """The dispatcher has made a decision, so it makes progress."""
        ...

    def event_changed(self) -> None:
        """The mapping cut, replaced or left out a value of an event."""
        ...

    def event_without_account(self) -> None:
        """A custom event was delivered without an account."""
        ...

    def px_answered(self, status: int, seconds: float) -> None:
        """PX answered a request with this status, ``seconds`` after sending began."""
        ...

    def px_not_sent(self) -> None:
        """A request to PX could not be sent."""
        ...

    def px_unknown(self) -> None:
        """A request to PX was sent and no answer could be read."""
        ...

    def storing(self, code: str, problem: str) -> None:
        """The writer has run a batch or a step: events can be stored, or ``code`` and ``problem`` say why not."""
        ...

    def destination(self, state: str, reason: str, message: str) -> None:
        """The state of delivery after a reply of PX or an operator's call. The same state and reason count as one."""
        ...

    def attempt_failed(self, outcome: EventOutcome) -> None:
        """An attempt failed, and the event will be sent again."""
        ...

    def event_settled(self, outcome: EventOutcome) -> None:
        """An event has reached its final state, which the next commit stores."""
        ...


class NullTelemetry:
    """Discard everything."""

    def request_refused(self, code: str, message: str = "") -> None: ...
    def request_answered(self, seconds: float) -> None: ...
    def events_accepted(self, events: Sequence[AcceptedEvent]) -> None: ...
    def committed(self, seconds: float, rows: int) -> None: ...
    def writer_alive(self) -> None: ...
    def decided(self) -> None: ...
    def storing(self, code: str, problem: str) -> None: ...
    def event_changed(self) -> None: ...
    def event_without_account(self) -> None: ...
    def px_answered(self, status: int, seconds: float) -> None: ...
    def px_not_sent(self) -> None: ...
    def px_unknown(self) -> None: ...
    def destination(self, state: str, reason: str, message: str) -> None: ...
    def attempt_failed(self, outcome: EventOutcome) -> None: ...
    def event_settled(self, outcome: EventOutcome) -> None: ...


class RecordingTelemetry(NullTelemetry):
    """Keep everything that was reported, for tests."""

    def __init__(self) -> None:
        self.refused: list[str] = []
        self.answered_s: list[float] = []
        self.accepted: list[AcceptedEvent] = []
        self.commits: list[int] = []
        self.decisions = 0
        self.changed = 0
        self.px: list[int | str] = []
        self.states: list[tuple[str, str]] = []
        self.storable: list[str] = []  # the codes of ``storing``, each change once
        self.failed: list[EventOutcome] = []
        self.settled: list[EventOutcome] = []

    def request_refused(self, code: str, message: str = "") -> None:  # noqa: ARG002
        self.refused.append(code)

    def request_answered(self, seconds: float) -> None:
        self.answered_s.append(seconds)

    def events_accepted(self, events: Sequence[AcceptedEvent]) -> None:
        self.accepted.extend(events)

    def committed(self, seconds: float, rows: int) -> None:  # noqa: ARG002
        self.commits.append(rows)

    def decided(self) -> None:
        self.decisions += 1

    def event_changed(self) -> None:
        self.changed += 1

    def px_answered(self, status: int, seconds: float) -> None:  # noqa: ARG002
        self.px.append(status)

    def px_not_sent(self) -> None:
        self.px.append("not_sent")

    def px_unknown(self) -> None:
        self.px.append("unknown")

    def storing(self, code: str, problem: str) -> None:  # noqa: ARG002
        if not self.storable or self.storable[-1] != code:
            self.storable.append(code)

    def destination(self, state: str, reason: str, message: str) -> None:  # noqa: ARG002
        self.states.append((state, reason))

    def attempt_failed(self, outcome: EventOutcome) -> None:
        self.failed.append(outcome)

    def event_settled(self, outcome: EventOutcome) -> None:
        self.settled.append(outcome)


class Problem(msgspec.Struct, frozen=True):
    """The newest problem, with its time (ISO 8601, UTC); it may be over."""

    when: str
    message: str


class Rate:
    """Occurrences per second over the last ten whole seconds."""

    def __init__(self, now_s: float) -> None:
        self._started_s = int(now_s)
        self._seconds: deque[list[int]] = deque()

    def add(self, now_s: float) -> None:
        """Count one occurrence."""
        second = int(now_s)
        if not self._seconds or self._seconds[-1][0] != second:
            self._seconds.append([second, 0])
            # At most one entry per second of the window stays, however many events there are.
            while self._seconds[0][0] < second - RATE_WINDOW_S:
                self._seconds.popleft()
        self._seconds[-1][1] += 1

    def per_second(self, now_s: float) -> float:
        """Return the average over the window without the current second; over its age while the process is younger."""
        second = int(now_s)
        occurrences = sum(count for at, count in self._seconds if second - RATE_WINDOW_S <= at < second)
        return occurrences / min(RATE_WINDOW_S, max(1, second - self._started_s))


class TelemetryStatistics(NamedTuple):
    """This process's figures for status: deliveries per second, changed events, those without an account, the newest problem, requests to PX."""

    delivered_per_s: float
    changed: int
    without_account: int
    last_problem: Problem | None
    requests: int


class DaemonTelemetry(NullTelemetry):
    """Metrics, heartbeats, log lines and the live feed of one daemon.

    ``redact`` returns the privacy rules in force. The live feed shows an event only after applying them.
    """

    def __init__(self, clock: Clock, redact: Callable[[], Redact], *, version: str) -> None:
        self.metrics = Metrics(version=version)
        self.heartbeats = Heartbeats(clock.monotonic_s)
        self.feed = Feed()
        self.refusals = Refusals()
        self.sample = LiveSample(redact)
        self.series = Series(clock.wall_ms())
        self._requests = 0
        self._clock = clock
        self._redact = redact
        self._rate = Rate(clock.monotonic_s())
        self._changed = 0
        self._without_account = 0
        self._delivery_log = DeliveryLog(clock.monotonic_s)
        self._accepting_log = DeliveryLog(clock.monotonic_s, ACCEPTING)
        self._last_problem: Problem | None = None

    def statistics(self) -> TelemetryStatistics:
        """Return the figures that status shows."""
        rate = self._rate.per_second(self._clock.monotonic_s())
        return TelemetryStatistics(rate, self._changed, self._without_account, self._last_problem, self._requests)

    def request_refused(self, code: str, message: str = "") -> None:
        self.metrics.refused(code)
        if not message:
            return
        at = iso_utc(self._clock.wall_ms())
        self.refusals.add(at, code, message)
        if self.feed.listeners:
            self.feed.publish({"at": at, "what": "refused", "reason": code, "detail": message})

    def request_answered(self, seconds: float) -> None:
        self.metrics.answer_seconds.observe(seconds)

    def events_accepted(self, events: Sequence[AcceptedEvent]) -> None:
        self.metrics.accepted(events)
        if self.feed.listeners:
            now_ms, redact = self._clock.wall_ms(), self._redact()
            for event in events:
                self.feed.publish(accepted_record(event, redact, now_ms))
        if self.sample.listening:
            now_ms = self._clock.wall_ms()
            for event in events:
                self.sample.accepted(event, now_ms)

    def committed(self, seconds: float, rows: int) -> None:
        self.metrics.committed(seconds, rows)

    def writer_alive(self) -> None:
        self.heartbeats.beat(WRITER)

    def decided(self) -> None:
        self.heartbeats.beat(DISPATCHER)
        self._delivery_log.tick()

    def event_changed(self) -> None:
        self._changed += 1

    def event_without_account(self) -> None:
        self._without_account += 1

    def px_answered(self, status: int, seconds: float) -> None:
        self._requests += 1
        self.metrics.px_answered(status, seconds)

    def px_not_sent(self) -> None:
        self.metrics.px_not_sent()

    def px_unknown(self) -> None:
        self._requests += 1
        self.metrics.px_unknown()

    def storing(self, code: str, problem: str) -> None:
        self._accepting_log.state("refused" if code else "open", code, problem)
        self._accepting_log.tick()

    def destination(self, state: str, reason: str, message: str) -> None:
        self._delivery_log.state(state, reason, message)

    def attempt_failed(self, outcome: EventOutcome) -> None:
        self._publish(outcome)

    def event_settled(self, outcome: EventOutcome) -> None:
        self.metrics.settled(outcome, self._clock.wall_ms())
        if outcome.what == "delivered":
            self._rate.add(self._clock.monotonic_s())
        elif outcome.what == "dead":
            message = f"Event {outcome.event_id} is dead ({outcome.reason}): {outcome.detail}"
            self._last_problem = Problem(iso_utc(self._clock.wall_ms()), message)
        self._publish(outcome)

    def problem(self, problem: Problem) -> None:
        """Record the newest problem. It stays visible after it is over."""
        self._last_problem = problem

    def _publish(self, outcome: EventOutcome) -> None:
        if self.feed.listeners:
            self.feed.publish(outcome_record(outcome, self._clock.wall_ms()))
        if self.sample.listening:
            self.sample.outcome(outcome, self._clock.wall_ms())
