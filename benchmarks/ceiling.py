"""Delivery against the ceiling: the share of the allowed pace, its evenness, and the pace without the limit.

A backlog is built, the daemon starts on it, and the sandbox's log has the time of each arrival. The daemon runs on the
first core, the sandbox on the others. The ceiling is ``deliver.per_second``, 190 by default.
"""

from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from statistics import median
from time import sleep

from benchmarks.limits import run_limit
from benchmarks.load import Load, run_load
from benchmarks.results import Results, percentile, spread
from benchmarks.rig import Rig, open_rig, split_cores, usage, wait_until
from sidecar.sandbox.journal import LogEntry
from sidecar.sandbox.report import largest_window

__all__ = ["run"]

Report = Callable[[str], None]
NAME = "ceiling"
PER_SECOND = 190
SEEN_BY_RECEIVER = 1.05
OPEN_PER_SECOND = 10_000
LATENCIES_MS = (5, 100, 500)


def run(results: Results, report: Report, quick: bool) -> None:
    """Measure the default pace with a backlog, the latency below the ceiling, and the pace without the limit."""
    for latency_ms in LATENCIES_MS:
        _backlog(results, report, latency_ms, seconds=3 if quick else 60)
    for latency_ms in LATENCIES_MS:
        _trickle(results, report, latency_ms, seconds=2 if quick else 20)
    for latency_ms in LATENCIES_MS:
        _open(results, report, latency_ms, events=500 if quick else 20_000)


def _arrivals(rig: Rig, count: int, timeout_s: float, *, not_before_s: float = 0.0) -> list[LogEntry]:
    """Wait until ``count`` events have arrived and return the log; no event may arrive twice.

    The sandbox is not queried in the meantime: arrivals queue up while it answers, which would distort the measurement.
    """
    sleep(not_before_s)
    wait_until(lambda: rig.status()["pending"] == 0 or sleep(0.3), timeout_s, f"the delivery of {count} events")
    arrived = rig.arrivals()
    ids = {entry.messageId for entry in arrived}
    assert len(ids) == count == len(arrived), f"{len(arrived)} arrivals of {len(ids)} events, {count} expected"
    return arrived


def _backlog(results: Results, report: Report, latency_ms: int, seconds: int) -> None:
    report(f"{seconds} s of backlog, PX answers in {latency_ms} ms")
    count = PER_SECOND * seconds
    daemon_cores, other_cores = split_cores()
    with open_rig() as rig:
        run_limit("filled", str(rig.outbox), count, 0, 0)
        rig.configure()
        rig.start_sandbox("--latency", f"{latency_ms}ms", on=other_cores)
        rig.start_daemon(on=daemon_cores)
        arrived = _arrivals(rig, count, seconds * 1.5 + 30, not_before_s=seconds - 2)
        refused = rig.report()["by_status"].get("429", 0)
    times_s = [entry.arrival_s for entry in arrived]
    rate = (count - 1) / (times_s[-1] - times_s[0])
    gaps_ms = [1000 * (later - earlier) for earlier, later in pairwise(times_s)]
    label = f"{seconds} s of backlog, 1,000 users, PX {latency_ms} ms"
    results.add(
        NAME, f"{label}: delivered", rate, "/s", limit=PER_SECOND, of="deliver.per_second", target=0.995,
        note="between first and last arrival",
    )  # fmt: skip
    results.add(
        NAME, f"{label}: largest second", largest_window(times_s, 1.0), "requests", limit=PER_SECOND,
        of="deliver.per_second", target=SEEN_BY_RECEIVER, bound="most", note="any window of one second in PX's log",
    )  # fmt: skip
    results.add(NAME, f"{label}: refused by PX as too fast (200/s)", refused, "requests")
    interval_ms = 1000 / PER_SECOND
    jitter_ms = [abs(gap - interval_ms) for gap in gaps_ms]
    results.add(NAME, f"{label}: jitter of arrivals, median", median(jitter_ms), "ms")
    results.add(NAME, f"{label}: jitter of arrivals, 99th percentile", percentile(jitter_ms, 0.99), "ms")
    results.series[f"rate_{latency_ms}"] = _per_second(times_s)
    results.series[f"gaps_ms_{latency_ms}"] = spread(gaps_ms)


def _per_second(times_s: list[float]) -> list[int]:
    """Return the arrivals in each whole second since the first."""
    counted = Counter(int(time_s - times_s[0]) for time_s in times_s)
    return [counted[second] for second in range(max(counted))]


def _trickle(results: Results, report: Report, latency_ms: int, seconds: int) -> None:
    """Below the ceiling: measure the time from the answer to the app until the event is at PX."""
    report(f"from acceptance to PX at 100 events/s, PX answers in {latency_ms} ms")
    count = 100 * seconds
    daemon_cores, other_cores = split_cores()
    with open_rig() as rig:
        rig.configure()
        rig.start_sandbox("--latency", f"{latency_ms}ms", on=other_cores)
        rig.start_daemon(on=daemon_cores)
        # Several users, each in order.
        measured = run_load(Load(address=str(rig.http_port), rate=100, events=count), on=other_cores)
        arrived = _arrivals(rig, count, seconds + 30)
    # An event may reach PX before its answer reaches the app: both wait for the same commit.
    waited_ms = [1000 * (entry.arrival_s - measured.answered[str(entry.messageId)]) for entry in arrived]
    label = f"from the app's answer to PX, 100/s, PX {latency_ms} ms"
    results.add(NAME, f"{label}: median", median(waited_ms), "ms")
    results.add(NAME, f"{label}: 99th percentile", percentile(waited_ms, 0.99), "ms")
    results.series[f"acceptance_to_px_ms_{latency_ms}"] = spread(waited_ms)


def _open(results: Results, report: Report, latency_ms: int, events: int) -> None:
    """Measure the pace of one process without the limit."""
    report(f"the bucket opened wide, PX answers in {latency_ms} ms")
    daemon_cores, other_cores = split_cores()
    with open_rig() as rig:
        run_limit("filled", str(rig.outbox), events, 0, 0)
        rig.configure(deliver=f"per_second = {OPEN_PER_SECOND}\nper_day = 100_000_000\nmax_in_flight = 1024")
        rig.start_sandbox("--latency", f"{latency_ms}ms", "--per-second", "0", "--per-day", "0", on=other_cores)
        daemon = rig.start_daemon(on=daemon_cores)
        before = usage(daemon.pid)
        arrived = _arrivals(rig, events, 120)
        used = usage(daemon.pid).since(before)
    times_s = [entry.arrival_s for entry in arrived]
    span_s = times_s[-1] - times_s[0]
    results.add(
        NAME, f"bucket opened wide, 1,024 in flight, PX {latency_ms} ms", (events - 1) / span_s, "/s",
        limit=200, of="the 200/s that PX allows", note=f"{100 * used.cpu_s / span_s:.0f} % of the daemon's core",
    )  # fmt: skip
