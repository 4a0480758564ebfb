"""Cost against the size of the backlog: a thousand, a hundred thousand, a million, ten million pending events.

Each file is built through the Store, then the daemon starts on it, twice: at the default pace and with the bucket
opened wide. *Ready* is the first good answer of ``/health``. The page cache is as a restart finds it: warm, unless the
file is larger than memory.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median
from time import sleep
from typing import Any

from benchmarks.limits import run_limit
from benchmarks.results import Results
from benchmarks.rig import Rig, apart, free_port, open_rig, usage

__all__ = ["run"]

Say = Callable[[str], None]
NAME = "scale"
SIZES, QUICK_SIZES = (0, 1_000, 100_000, 1_000_000, 10_000_000), (0, 1_000, 3_000)
# With the bucket opened wide a thousand are gone before the clock runs.
OPEN_FROM = 100_000
DEAD = 1_000
STARTS = 5
MB = 1_000_000


def run(results: Results, say: Say, quick: bool) -> None:
    """Measure each size; the smallest is what the others are compared with."""
    found: dict[int, dict[str, float]] = {}
    for size in QUICK_SIZES if quick else SIZES:
        say(f"building {size:,} pending events")
        with open_rig() as rig:
            run_limit("filled", str(rig.outbox), size, 0, min(size, DEAD))
            say(f"{size:,} pending")
            found[size] = _measure(rig, size, quick)
    _report(results, found)


def _measure(rig: Rig, size: int, quick: bool) -> dict[str, float]:
    mine, theirs = apart()
    seconds = 1.0 if quick else 10.0
    figures = {"file": rig.outbox.stat().st_size / MB}
    rig.configure(px_port=free_port(), outbox='max_bytes = "64GiB"')
    starts: list[float] = []
    for _ in range(1 if quick else STARTS):
        began_s = time.monotonic()
        daemon = rig.start_daemon(on=mine)
        starts.append(time.monotonic() - began_s)
        sleep(0.5)
        rig.stop(daemon)
    figures["ready"] = median(starts)
    daemon = rig.start_daemon(on=mine)
    sleep(1.0)
    figures["rss"] = usage(daemon.pid).resident_bytes / MB
    figures["status"] = _takes(lambda: rig.status(), 1 if quick else 20)
    figures["status verb"] = _takes(lambda: _verb(rig, "status"), 1 if quick else 3)
    figures["dead list verb"] = _takes(lambda: _verb(rig, "dead", "list"), 1 if quick else 3)
    rig.stop(daemon)
    if size:
        rig.start_sandbox("--latency", "5ms", "--per-second", "0", "--per-day", "0", on=theirs)
        figures["drain"], figures["drain rss"] = _drain(rig, min(seconds, 0.8 * size / 190), "", mine)
    if size >= OPEN_FROM:
        open_wide = "per_second = 10_000\nper_day = 100_000_000\nmax_in_flight = 1024"
        figures["open drain"], figures["open drain rss"] = _drain(rig, seconds, open_wide, mine)
    return figures


def _drain(rig: Rig, seconds: float, deliver: str, mine: set[int]) -> tuple[float, float]:
    """Events per second between first and last arrival within so many seconds, and the memory at the end."""
    rig.configure(deliver=deliver, outbox='max_bytes = "64GiB"')
    rig.ask(rig.sandbox_port, "/sandbox/reset", "POST")
    daemon = rig.start_daemon(on=mine)
    sleep(seconds)
    report, resident = rig.report(), usage(daemon.pid).resident_bytes / MB
    rig.stop(daemon)
    return report["rate_per_s"], resident


def _takes(call: Callable[[], Any], times: int) -> float:
    """Milliseconds of one call, the median."""
    took_ms = []
    for _ in range(times):
        began_s = time.monotonic()
        call()
        took_ms.append(1000 * (time.monotonic() - began_s))
    return median(took_ms)


def _verb(rig: Rig, *arguments: str) -> None:
    command = [sys.executable, "-m", "sidecar", *arguments, "--json", "--config", str(rig.folder / "config.toml")]
    subprocess.run(command, check=True, capture_output=True, timeout=60)


def _report(results: Results, found: dict[int, dict[str, float]]) -> None:
    largest = max(found)
    smallest_drain = min(size for size in found if size)
    opened = [size for size, figures in found.items() if "open drain" in figures]
    for size, figures in found.items():
        label, is_largest = f"{size:,} pending" if size else "empty", size == largest
        compared: dict[str, Any] = {"target": 1.2, "bound": "most"} if is_largest else {}
        if size:
            compared |= {"limit": found[0]["ready"], "of": "an empty outbox"}
        results.add(NAME, f"{label}: start to ready", figures["ready"], "s", **compared)
        compared = {"target": 70.0, "bound": "most"} if is_largest else {}
        results.add(NAME, f"{label}: resident memory", figures["rss"], "MB", **compared)
        if "drain" in figures:
            compared = {"target": 0.98} if is_largest else {}
            of = {"limit": found[smallest_drain]["drain"], "of": f"{smallest_drain:,} pending"}
            results.add(NAME, f"{label}: drain rate, default pace", figures["drain"], "/s", **of, **compared)
            compared = {"target": 70.0, "bound": "most"} if is_largest else {}
            results.add(NAME, f"{label}: resident memory while draining", figures["drain rss"], "MB", **compared)
        if "open drain" in figures:
            compared = {"target": 0.98} if is_largest else {}
            of = {"limit": found[opened[0]]["open drain"], "of": f"{opened[0]:,} pending"}
            results.add(NAME, f"{label}: drain rate, bucket opened wide", figures["open drain"], "/s", **of, **compared)
        results.add(NAME, f"{label}: GET /status", figures["status"], "ms")
        results.add(NAME, f"{label}: px-sidecar status", figures["status verb"], "ms", note="a new process each time")
        results.add(
            NAME, f"{label}: px-sidecar dead list", figures["dead list verb"], "ms", note="a new process each time"
        )
        results.add(NAME, f"{label}: size of the file", figures["file"], "MB")
    results.series["scale"] = {str(size): figures for size, figures in found.items()}
