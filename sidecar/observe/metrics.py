"""Prometheus metrics, served at ``GET /metrics``.

Theory
------
The numbers come from three sources:

* The counters of the outbox file (accepted, delivered, dropped, dead, pending) and the present state (pace, quota,
  lanes) come from a ``Snapshot`` that the daemon passes with each scrape. They survive restarts, agree with
  ``px-sidecar status``, and cost nothing between scrapes.
* Facts that only this process knows (refused requests, answers of PX, durations) are counted here.
* Facts that the kernel knows about the process (memory, CPU, descriptors) have prometheus_client's ``process_`` names.

Counting adds to a plain number. Everything is counted in trio's thread, so that locks are not needed. Observing a
duration takes 0.14 µs instead of the 1.4 µs of prometheus_client's histogram, which matters at tens of thousands of
answers per second.

Rules (https://prometheus.io/docs/practices/naming/)
-----
* A name states what is counted and its unit. Numbers that only grow end in ``_total``. The number of dead letters is a
  gauge, because they can be replayed or discarded.
* A label takes its values from a closed list, and each value is exported from the start. Anything not on the list is
  counted as ``other``. Users, addresses and keys are never labels. Event names and sources are labels of one metric each, the
  first ``NAMES_MAX`` and ``SOURCES_MAX`` of this process; all others are counted as ``other``.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from operator import attrgetter
from typing import TYPE_CHECKING, Final, cast

import msgspec

from sidecar.events import decode_or_empty, name_of

if TYPE_CHECKING:  # loaded by the first scrape: many hosts have none, and every start would wait for it
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric
    from prometheus_client.registry import Collector

    from sidecar.observe.feed import AcceptedEvent, EventOutcome

__all__ = [
    "CONTENT_TYPE",
    "DEAD_REASONS",
    "DESTINATION_STATES",
    "DROPPED_REASONS",
    "Durations",
    "FleetSnapshot",
    "Metrics",
    "Snapshot",
]

# The text format that every Prometheus and agent reads. The metrics here use no feature of the newer formats.
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

PREFIX: Final = "px_sidecar_"
OTHER: Final = "other"

DROPPED_REASONS: Final = (
    *("no_user", "unmapped", "mapped_to_nothing", "remembered", "not_supported"),
    *("opted_out", "outbox_full", "discarded", "moved", "forgotten", "damaged"),
    *("filtered", "sampled", "capped", "no_consent", "suppressed"),
)
DEAD_REASONS: Final = ("bad_event", "refused", "firewall", "too_old", "failing", "mapping_error")
DESTINATION_STATES: Final = ("open", "waiting", "probing", "paused")
FLEET_STATES = ("joining", "sharing", "quiet", "alone", "rejoining")
FULL_CODES: Final = ("outbox_full", "disk_full")
REFUSAL_CODES: Final = (*("bad_json", "too_large", "bad_event", "unknown_write_key"), *FULL_CODES, "disk_error", "busy")
PX_ANSWERS: Final = ("1xx", "2xx", "3xx", "4xx", "429", "5xx", "not_sent", "unknown")

LOCAL_BOUNDS_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
CLASSES: Final = ("high", "normal", "low")
OUTCOMES: Final = ("accepted", "delivered", "dropped", "dead")
_ACCEPTED, _DEAD = OUTCOMES.index("accepted"), OUTCOMES.index("dead")
_labels = attrgetter("kind", "name", "source", "bad")
NAMES_MAX: Final = 100
SOURCES_MAX: Final = 20
# Different labels of accepted events that are kept until a scrape: most daemons have fewer names.
LABELS_MAX: Final = 100
NAME_CHARS: Final = 100

REMOTE_BOUNDS_S: Final = (0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 30.0)

# From a delivery at once to a backlog of three days.
DELIVERY_BOUNDS_S: Final = (
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 43200.0, 86400.0, 259200.0),
)


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """The daemon's state at one moment.

    ``counters`` are those of the outbox: ``accepted``, ``repeated``, ``delivered``, ``dropped:REASON``,
    ``dead:REASON``, ``pending_high``, ``pending_normal``, ``pending_low``, ``ambiguous``, ``retries``. ``destination`` is one of
    ``DESTINATION_STATES``. ``full`` is the code with which events are refused at this moment, or None. ``set_aside`` is
    true if a damaged outbox file was set aside at this start.
    """

    counters: Mapping[str, int]
    destination: str
    oldest_pending_age_s: float = 0.0
    oldest_age_s_by_class: Mapping[str, float] = {}
    pace_per_second: float = 0.0
    ceiling_per_second: float = 0.0
    quota_used: int = 0
    quota_limit: int = 0
    quota_reserve: int = 0
    in_flight: int = 0
    lanes_open: int = 0
    lanes_in_use: int = 0
    wal_bytes: int = 0
    outbox_bytes: int = 0
    outbox_limit_bytes: int = 0
    full: str | None = None
    last_delivered_ms: int = 0
    changed: int = 0
    without_account: int = 0
    set_aside: bool = False
    fleet: "FleetSnapshot | None" = None


class FleetSnapshot(msgspec.Struct, frozen=True):
    """This host in its fleet: ``state`` is one of ``FLEET_STATES``; ``problem`` is true while something is wrong."""

    state: str
    problem: bool
    members: int
    absent: int
    rate: float
    alone: float
    used: int
    slots_granted: int
    slots_late: int
    calls: int
    clone: bool = False


class Durations:
    """A histogram of durations in seconds. Not thread-safe."""

    __slots__ = ("_bounds_s", "_counts", "_sum_s")

    def __init__(self, bounds_s: Sequence[float]) -> None:
        self._bounds_s = bounds_s
        self._counts = [0] * (len(bounds_s) + 1)
        self._sum_s = 0.0

    def observe(self, seconds: float) -> None:
        """Count one duration."""
        self._counts[bisect_left(self._bounds_s, seconds)] += 1
        self._sum_s += seconds

    @property
    def count(self) -> int:
        """The number of durations counted."""
        return sum(self._counts)

    def family(self, name: str, about: str) -> "Metric":
        """Return the histogram as a metric family of prometheus_client, whose buckets are cumulative."""
        from prometheus_client.core import HistogramMetricFamily

        return HistogramMetricFamily(PREFIX + name, about, self.buckets(), self.sum_s)

    def buckets(self) -> list[tuple[str, float]]:
        """Return upper bound and cumulative count of each bucket."""
        return list(zip([*map(repr, self._bounds_s), "+Inf"], map(float, accumulate(self._counts)), strict=True))

    @property
    def sum_s(self) -> float:
        """The sum of all durations counted."""
        return self._sum_s


class Tally:
    """Outcomes counted by a label whose values are not known in advance: the first ``limit`` of them, and ``other``."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._counts: dict[str, list[int]] = {OTHER: [0] * len(OUTCOMES)}

    def add(self, value: str, outcome: int, number: int = 1) -> None:
        """Count ``number`` of them; ``outcome`` is its place in ``OUTCOMES``."""
        counts = self._counts.get(value)
        if counts is None:
            counts = self._counts[OTHER]
            if len(self._counts) <= self._limit:
                counts = self._counts[value] = [0] * len(OUTCOMES)
        counts[outcome] += number

    def family(self, name: str, about: str, label: str) -> "Metric":
        """Return the counters as a metric family of prometheus_client."""
        from prometheus_client.core import CounterMetricFamily

        family = CounterMetricFamily(PREFIX + name, about, labels=[label, "outcome"])
        for value, counts in self._counts.items():
            for outcome, count in zip(OUTCOMES, counts, strict=True):
                family.add_metric([value, outcome], count)
        return family


class Metrics:
    """All metrics of one daemon: the numbers counted here, and those of a snapshot. A collector of prometheus_client."""

    def __init__(self, *, version: str) -> None:
        self._snapshot: Snapshot | None = None
        self.answer_seconds = Durations(LOCAL_BOUNDS_S)
        self.commit_seconds = Durations(LOCAL_BOUNDS_S)
        self.px_request_seconds = Durations(REMOTE_BOUNDS_S)
        self._delivery_seconds = {name: Durations(DELIVERY_BOUNDS_S) for name in CLASSES}
        self._by_name, self._by_source = Tally(NAMES_MAX), Tally(SOURCES_MAX)
        self._accepted: dict[tuple[str, str, int, str | None], int] = {}  # by `_labels`, not in the tallies yet
        self._version = version
        self._refused = dict.fromkeys((*REFUSAL_CODES, OTHER), 0)
        self._px_answers = dict.fromkeys((*PX_ANSWERS, OTHER), 0)

    # Counting -------------------------------------------------------------------------------------------------

    def refused(self, code: str) -> None:
        """An ingest request was answered with ``code`` instead of success."""
        self._refused[code if code in self._refused else OTHER] += 1

    def accepted(self, events: "Iterable[AcceptedEvent]") -> None:
        """These events are on disk."""
        accepted = self._accepted
        for labels in map(_labels, events):
            accepted[labels] = accepted.get(labels, 0) + 1
        if len(accepted) > LABELS_MAX:
            self._tally_accepted()

    def _tally_accepted(self) -> None:
        """Add up the accepted events by name and source: seldom, because each request would pay for it."""
        for (kind, name, source, bad), number in self._accepted.items():
            # As for outcomes: the name of a page is data of the app, which a rule may hide.
            label = (name if kind == "track" else kind)[:NAME_CHARS]
            for outcome in (_ACCEPTED,) if bad is None else (_ACCEPTED, _DEAD):
                self._by_name.add(label, outcome, number)
                self._by_source.add(str(source), outcome, number)
        self._accepted.clear()

    def settled(self, outcome: "EventOutcome", now_ms: float) -> None:
        """An event has reached its final state."""
        if outcome.what not in OUTCOMES:
            return
        place = OUTCOMES.index(outcome.what)
        self._by_name.add(name_of(decode_or_empty(outcome.body))[:NAME_CHARS], place)
        self._by_source.add(str(outcome.source), place)
        if outcome.what == "delivered" and outcome.received_ms:
            # A clock that was set back would make it negative.
            self._delivery_seconds[outcome.priority].observe(max(0.0, (now_ms - outcome.received_ms) / 1000))

    def px_answered(self, status: int, took_s: float) -> None:
        """PX answered a request with this status, ``took_s`` seconds after sending began."""
        answer = "429" if status == 429 else f"{status // 100}xx"
        self._px_answers[answer if answer in self._px_answers else OTHER] += 1
        self.px_request_seconds.observe(took_s)

    def px_not_sent(self) -> None:
        """A request to PX could not be sent."""
        self._px_answers["not_sent"] += 1

    def px_unknown(self) -> None:
        """A request to PX was sent and no answer could be read. It is retried, so PX may store the event twice."""
        self._px_answers["unknown"] += 1

    def committed(self, took_s: float, rows: int) -> None:
        """A transaction of the outbox is on disk. It is not counted without rows: then it did not wait for the disk."""
        if rows:
            self.commit_seconds.observe(took_s)

    # Rendering ------------------------------------------------------------------------------------------------

    def render(self, snapshot: Snapshot | None = None) -> bytes:
        """Return the body of ``GET /metrics``; without a snapshot it has only what is counted here."""
        from prometheus_client import generate_latest

        self._snapshot = snapshot
        return generate_latest(self._registry)

    @cached_property
    def _registry(self) -> "CollectorRegistry":
        from prometheus_client import CollectorRegistry, ProcessCollector

        registry = CollectorRegistry()
        # A collector by its methods: the base class would be loaded at the start.
        registry.register(cast("Collector", self))
        ProcessCollector(registry=registry)
        return registry

    def describe(self) -> "list[Metric]":
        """Return nothing, so that prometheus_client does not call ``collect``, without a snapshot, to register this."""
        return []

    def collect(self) -> "Iterator[Metric]":
        """Yield all families except ``process_``, from one snapshot so that they are consistent."""
        yield _labelled("build_info", "The running version.", "version", {self._version: 1})
        yield from self._counted_here()
        if self._snapshot is not None:
            snapshot = self._snapshot
            yield from _events(snapshot.counters)
            yield from _delivery(snapshot)
            yield from _fleet(snapshot)
            yield from _disk(snapshot)

    def _counted_here(self) -> "Iterator[Metric]":
        about = "Ingest requests that were refused, by code."
        yield _labelled("refused_requests_total", about, "code", self._refused)
        about = "Requests to PX by result: class of the status (429 apart), or no readable answer."
        yield _labelled("px_requests_total", about, "answer", self._px_answers)
        yield _plain(
            "commits_total", "Transactions of the outbox that wrote rows and are on disk.", self.commit_seconds.count
        )
        self._tally_accepted()
        about = "Events since the start by name as sent (of other calls: the type), and outcome; names beyond the first 100 are other."
        yield self._by_name.family("events_by_name_total", about, "event")
        about = "Events since the start by number of the [[source]] in the outbox, 0 without one, and outcome."
        yield self._by_source.family("events_by_source_total", about, "source")
        yield self._delivery_family()
        yield self.commit_seconds.family("commit_seconds", "Duration of a commit, fsync included.")
        yield self.answer_seconds.family("answer_seconds", "Time from the last byte of a request to its answer.")
        yield self.px_request_seconds.family(
            "px_request_seconds", "Time from the start of sending to the answer of PX."
        )

    def _delivery_family(self) -> "Metric":
        from prometheus_client.core import HistogramMetricFamily

        about = "Time from accepting an event to its delivery, by class."
        family = HistogramMetricFamily(f"{PREFIX}delivery_seconds", about, labels=["class"])
        for name, durations in self._delivery_seconds.items():
            family.add_metric([name], durations.buckets(), durations.sum_s)
        return family


def _events(counters: Mapping[str, int]) -> "Iterator[Metric]":
    """The outbox's counters. Invariant: accepted = pending + delivered + dropped + dead."""
    for name, about in (
        ("accepted", "Events that were stored and answered with success."),
        ("repeated", "Events whose messageId was accepted before, and that were not stored again."),
        ("delivered", "Events that PX answered with 2xx."),
    ):
        yield _plain(f"{name}_events_total", about, counters.get(name, 0))
    about = "Requests to PX that were sent and got no readable answer; each may have caused a duplicate."
    yield _plain("ambiguous_requests_total", about, counters.get("ambiguous", 0))
    yield _plain("retries_total", "Failed attempts that are retried.", counters.get("retries", 0))
    dropped = _by_reason(counters, "dropped", DROPPED_REASONS)
    yield _labelled(
        "dropped_events_total", "Events that were not sent because of a rule, by reason.", "reason", dropped
    )
    about = "Stored dead letters, by reason; `px-sidecar dead list` shows them."
    yield _labelled("dead_events", about, "reason", _by_reason(counters, "dead", DEAD_REASONS))
    pending = {name: counters.get(f"pending_{name}", 0) for name in CLASSES}
    yield _labelled("pending_events", "Accepted events that are not settled yet, by class.", "class", pending)


def _by_reason(counters: Mapping[str, int], state: str, reasons: Sequence[str]) -> dict[str, int]:
    counts = dict.fromkeys((*reasons, OTHER), 0)
    for name, count in counters.items():
        if name.startswith(f"{state}:"):
            reason = name.partition(":")[2]
            counts[reason if reason in counts else OTHER] += count
    return counts


def _delivery(snapshot: Snapshot) -> "Iterator[Metric]":
    for name, about, value in (
        ("oldest_pending_age_seconds", "Age of the oldest pending event.", snapshot.oldest_pending_age_s),
        (
            "changed_events",
            "Events whose mapping cut, replaced or left out a value, since the start.",
            snapshot.changed,
        ),
        (
            "accountless_events",
            "Custom events delivered without an account since the start: apps behind a load balancer send context.groupId.",
            snapshot.without_account,
        ),
        ("in_flight_events", "Events sent to PX and not settled by a commit yet.", snapshot.in_flight),
        (
            "pace_requests_per_second",
            "Pace in force: the ceiling, or less after a 429 or with pace = spread.",
            snapshot.pace_per_second,
        ),
        (
            "ceiling_requests_per_second",
            "Ceiling of the pace: deliver.per_second, divided by deliver.hosts.",
            snapshot.ceiling_per_second,
        ),
        ("quota_used_requests", "Requests used of the day's quota.", snapshot.quota_used),
        ("quota_limit_requests", "The day's quota: deliver.per_day, divided by deliver.hosts.", snapshot.quota_limit),
        ("quota_reserve_requests", "Part of the quota that only high-priority events may use.", snapshot.quota_reserve),
        ("lanes_open", "Connections to PX.", snapshot.lanes_open),
        ("lanes_in_use", "Connections to PX with a request under way.", snapshot.lanes_in_use),
        (
            "paused",
            "1 while delivery is paused, by an operator or after an answer of PX.",
            snapshot.destination == "paused",
        ),
        ("last_delivery_timestamp_seconds", "Time of the last delivery.", snapshot.last_delivered_ms / 1000),
    ):
        yield _plain(name, about, value)
    oldest = {name: snapshot.oldest_age_s_by_class.get(name, 0.0) for name in CLASSES}
    about = "Age of the oldest pending event of each class, without users whose events keep failing; 0 without one."
    yield _labelled("oldest_pending_by_class_age_seconds", about, "class", oldest)
    states = {state: int(snapshot.destination == state) for state in DESTINATION_STATES}
    yield _labelled("destination_state", "1 for the present state of delivery, else 0.", "state", states)


def _fleet(snapshot: Snapshot) -> "Iterator[Metric]":
    """Yield nothing without a fleet."""
    fleet = snapshot.fleet
    if fleet is None:
        return
    for name, about, value in (
        ("fleet_problem", "1 while this host is not joined, or its engine does not answer.", fleet.problem),
        ("fleet_clone", "1 while another process of the fleet has the same outbox, else 0.", fleet.clone),
        ("fleet_members", "Hosts that are connected to the fleet's engine.", fleet.members),
        ("fleet_absent", "Hosts that are away and hold a promise.", fleet.absent),
        ("fleet_rate_requests_per_second", "Rate that the connected hosts share.", fleet.rate),
        ("fleet_alone_requests_per_second", "What this host may send while the engine is away.", fleet.alone),
        (
            "fleet_used_requests",
            "Requests of all hosts in this day, with what is set aside for absent ones.",
            fleet.used,
        ),
        ("fleet_slots_total", "Slots that this host got.", fleet.slots_granted),
        ("fleet_slots_late_total", "Slots that passed unused.", fleet.slots_late),
        ("fleet_calls_total", "Calls to the engine.", fleet.calls),
    ):
        yield _plain(name, about, value)
    states = {state: int(fleet.state == state) for state in FLEET_STATES}
    yield _labelled("fleet_state", "1 for the present state of this host in its fleet, else 0.", "state", states)


def _disk(snapshot: Snapshot) -> "Iterator[Metric]":
    for name, about, value in (
        ("outbox_bytes", "Bytes that events use in the outbox.", snapshot.outbox_bytes),
        ("outbox_limit_bytes", "Bytes that events may use (outbox.max_bytes).", snapshot.outbox_limit_bytes),
        ("wal_bytes", "Size of the outbox's write-ahead log.", snapshot.wal_bytes),
        ("outbox_set_aside", "1 if a damaged outbox was set aside at this start.", snapshot.set_aside),
    ):
        yield _plain(name, about, value)
    full = {code: int(snapshot.full == code) for code in FULL_CODES}
    yield _labelled("full", "1 while events are refused for lack of space, by code.", "code", full)


def _plain(name: str, about: str, value: float) -> "Metric":
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    family = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
    return family(PREFIX + name, about, value=value)


def _labelled(name: str, about: str, label: str, values: Mapping[str, float]) -> "Metric":
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    family: CounterMetricFamily | GaugeMetricFamily
    family = (CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily)(
        PREFIX + name, about, labels=[label]
    )
    for key, value in values.items():
        family.add_metric([key], value)
    return family
