"""What Prometheus reads at ``GET /metrics``.

Theory
------
Three kinds of numbers, by where the truth is:

* What the outbox file counts (accepted, delivered, dropped, dead, pending) and what is the case just now (pace, quota,
  lanes) comes from a ``Snapshot`` that the daemon gives when somebody asks. So it survives restarts, agrees with
  ``px-sidecar status``, and costs nothing between two scrapes.
* What only this process knows (requests refused, answers of PX, durations) is counted here, by rooms that write to it.
* What the kernel knows of the process (memory, CPU, descriptors) has prometheus_client's usual ``process_`` names.

Counting is adding to a plain number: all rooms write from trio's thread, so no locks are needed, and the duration of an
answer costs a tenth of what prometheus_client's own histogram takes (0.14 and 1.4 µs), at tens of thousands of answers a second.

Rules
-----
* A name says what is counted and in which unit; what only grows ends in ``_total``. The number of dead letters is a
  gauge: they can be replayed or discarded.
* A label takes its values from a closed list, all of which are there from the start; what is not on the list is counted
  as ``other``. No event name, user, address or key ever becomes a label.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Final

import msgspec
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

__all__ = ["CONTENT_TYPE", "DEAD_REASONS", "DESTINATION_STATES", "DROPPED_REASONS", "Durations", "Metrics", "Snapshot"]

# The text format that every Prometheus and every agent reads; our names need nothing of the newer ones.
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

PREFIX: Final = "px_sidecar_"
OTHER: Final = "other"

DROPPED_REASONS: Final = (
    *("no_user", "unmapped", "mapped_to_nothing", "remembered", "not_supported"),
    *("opted_out", "outbox_full", "discarded", "moved", "forgotten", "damaged"),
)
DEAD_REASONS: Final = ("bad_event", "refused", "firewall", "too_old", "failing", "mapping_error")
DESTINATION_STATES: Final = ("open", "waiting", "probing", "paused")
FULL_CODES: Final = ("outbox_full", "disk_full")
REFUSAL_CODES: Final = (*("bad_json", "too_large", "bad_event", "unknown_write_key"), *FULL_CODES)
PX_ANSWERS: Final = ("1xx", "2xx", "3xx", "4xx", "429", "5xx", "not_sent", "unknown")

LOCAL_BOUNDS_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
REMOTE_BOUNDS_S: Final = (0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 30.0)


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """How things are at one moment, as the daemon sees them.

    ``counters`` are the outbox's own: ``accepted``, ``repeated``, ``delivered``, ``dropped:REASON``, ``dead:REASON``,
    ``pending_high``, ``pending_normal``, ``ambiguous``, ``retries``. ``destination`` is one of ``DESTINATION_STATES``; ``full`` is the code with
    which events are refused just now, or None; ``set_aside`` tells that at this start a damaged outbox file was set
    aside.
    """

    counters: Mapping[str, int]
    destination: str
    oldest_pending_age_s: float = 0.0
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
    set_aside: bool = False


class Durations:
    """A histogram of seconds. For one thread."""

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
        """How many durations were counted."""
        return sum(self._counts)

    def family(self, name: str, about: str) -> Metric:
        """The histogram as prometheus_client writes it."""
        bounds = [*map(repr, self._bounds_s), "+Inf"]
        cumulative = map(float, accumulate(self._counts))
        return HistogramMetricFamily(PREFIX + name, about, list(zip(bounds, cumulative, strict=True)), self._sum_s)


class Metrics(Collector):
    """All metrics of one daemon. ``snapshot`` is set by the daemon; until then only what is counted here is shown."""

    def __init__(self, *, version: str) -> None:
        self.snapshot: Callable[[], Snapshot] | None = None
        self.answer_seconds = Durations(LOCAL_BOUNDS_S)
        self.commit_seconds = Durations(LOCAL_BOUNDS_S)
        self.px_request_seconds = Durations(REMOTE_BOUNDS_S)
        self._version = version
        self._refused = dict.fromkeys((*REFUSAL_CODES, OTHER), 0)
        self._px_answers = dict.fromkeys((*PX_ANSWERS, OTHER), 0)
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    # What rooms tell ------------------------------------------------------------------------------------------

    def refused(self, code: str) -> None:
        """A request for taking events was answered with ``code`` in place of success."""
        self._refused[code if code in self._refused else OTHER] += 1

    def px_answered(self, status: int, took_s: float) -> None:
        """PX answered a request with this status after so many seconds, counted from the begin of sending."""
        answer = "429" if status == 429 else f"{status // 100}xx"
        self._px_answers[answer if answer in self._px_answers else OTHER] += 1
        self.px_request_seconds.observe(took_s)

    def px_not_sent(self) -> None:
        """A request to PX could not be sent."""
        self._px_answers["not_sent"] += 1

    def px_unknown(self) -> None:
        """A request to PX was sent and no answer could be read: it may be repeated, and PX may have it twice."""
        self._px_answers["unknown"] += 1

    def committed(self, took_s: float, rows: int) -> None:
        """The outbox is done with a trip to its file; one in which no rows were written is not counted."""
        if rows:
            self.commit_seconds.observe(took_s)

    # What is asked --------------------------------------------------------------------------------------------

    def render(self) -> bytes:
        """The text for ``GET /metrics``, to be sent as ``CONTENT_TYPE``."""
        return generate_latest(self._registry)

    def describe(self) -> list[Metric]:
        """Nothing in advance: prometheus_client need not ask for a snapshot when this is registered."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All families but those of the process, with one snapshot for all."""
        yield _labelled("build_info", "The running version.", "version", {self._version: 1})
        yield from self._counted_here()
        if self.snapshot is not None:
            snapshot = self.snapshot()
            yield from _events(snapshot.counters)
            yield from _delivery(snapshot)
            yield from _disk(snapshot)

    def _counted_here(self) -> Iterator[Metric]:
        about = "Requests for taking events that were refused, by code."
        yield _labelled("refused_requests_total", about, "code", self._refused)
        about = "Requests to PX by what came of them: class of the status (429 apart), or no readable answer."
        yield _labelled("px_requests_total", about, "answer", self._px_answers)
        yield _plain("commits_total", "Transactions of the outbox that are on disk.", self.commit_seconds.count)
        yield self.commit_seconds.family("commit_seconds", "How long a commit takes, fsync included.")
        yield self.answer_seconds.family("answer_seconds", "From the last byte of a request to its answer.")
        yield self.px_request_seconds.family("px_request_seconds", "From the begin of sending to the answer of PX.")


def _events(counters: Mapping[str, int]) -> Iterator[Metric]:
    """What the outbox counts: accepted = pending + delivered + dropped + dead."""
    for name, about in (
        ("accepted", "Events answered with success and stored."),
        ("repeated", "Events that had been accepted before, recognised by their messageId."),
        ("delivered", "Events that PX has confirmed."),
    ):
        yield _plain(f"{name}_events_total", about, counters.get(name, 0))
    about = "Requests to PX that were sent and whose answer is unknown; each may have become a duplicate."
    yield _plain("ambiguous_requests_total", about, counters.get("ambiguous", 0))
    yield _plain("retries_total", "Attempts that failed and are repeated.", counters.get("retries", 0))
    dropped = _by_reason(counters, "dropped", DROPPED_REASONS)
    yield _labelled("dropped_events_total", "Events with nothing to send, by reason.", "reason", dropped)
    about = "Dead letters that are kept, by reason; `px-sidecar dead list` shows them."
    yield _labelled("dead_events", about, "reason", _by_reason(counters, "dead", DEAD_REASONS))
    pending = {name: counters.get(f"pending_{name}", 0) for name in ("high", "normal")}
    yield _labelled("pending_events", "Accepted events that wait for delivery, by class.", "class", pending)


def _by_reason(counters: Mapping[str, int], state: str, reasons: Sequence[str]) -> dict[str, int]:
    found = dict.fromkeys((*reasons, OTHER), 0)
    for name, count in counters.items():
        if name.startswith(f"{state}:"):
            reason = name.partition(":")[2]
            found[reason if reason in found else OTHER] += count
    return found


def _delivery(snapshot: Snapshot) -> Iterator[Metric]:
    for name, about, value in (
        ("oldest_pending_age_seconds", "Age of the oldest pending event.", snapshot.oldest_pending_age_s),
        ("changed_events", "Events of which the mapping cut or replaced something, since the start.", snapshot.changed),
        ("in_flight_events", "Events sent to PX and not settled yet.", snapshot.in_flight),
        ("pace_requests_per_second", "The pace that PX allows at the moment.", snapshot.pace_per_second),
        ("ceiling_requests_per_second", "The pace that is never exceeded.", snapshot.ceiling_per_second),
        ("quota_used_requests", "Requests of the day that are spent.", snapshot.quota_used),
        ("quota_limit_requests", "Requests that the day has.", snapshot.quota_limit),
        ("quota_reserve_requests", "Those of them that only events of the class high may use.", snapshot.quota_reserve),
        ("lanes_open", "Connections to PX.", snapshot.lanes_open),
        ("lanes_in_use", "Connections to PX that carry a request.", snapshot.lanes_in_use),
        (
            "paused",
            "1 while delivery is paused, by an operator or by an answer of PX.",
            snapshot.destination == "paused",
        ),
        ("last_delivery_timestamp_seconds", "When PX last confirmed an event.", snapshot.last_delivered_ms / 1000),
    ):
        yield _plain(name, about, value)
    states = {state: int(snapshot.destination == state) for state in DESTINATION_STATES}
    yield _labelled("destination_state", "1 for the state that delivery is in.", "state", states)


def _disk(snapshot: Snapshot) -> Iterator[Metric]:
    for name, about, value in (
        ("outbox_bytes", "Room that the events take in the outbox.", snapshot.outbox_bytes),
        ("outbox_limit_bytes", "Room that they may take (outbox.max_bytes).", snapshot.outbox_limit_bytes),
        ("wal_bytes", "Size of the write-ahead log beside the outbox.", snapshot.wal_bytes),
        ("outbox_set_aside", "1 if a damaged outbox was set aside at this start.", snapshot.set_aside),
    ):
        yield _plain(name, about, value)
    full = {code: int(snapshot.full == code) for code in FULL_CODES}
    yield _labelled("full", "1 while events are refused for lack of room, by code.", "code", full)


def _plain(name: str, about: str, value: float) -> Metric:
    family = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
    return family(PREFIX + name, about, value=value)


def _labelled(name: str, about: str, label: str, values: Mapping[str, float]) -> Metric:
    family: CounterMetricFamily | GaugeMetricFamily
    family = (CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily)(
        PREFIX + name, about, labels=[label]
    )
    for key, value in values.items():
        family.add_metric([key], value)
    return family
