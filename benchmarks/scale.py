"""Cost by size of the backlog: a thousand, a hundred thousand, a million, ten million pending events.

Each file is built through the Store. The daemon starts on each of them in turn for several rounds, so that other load on
the machine affects all of them. Then they are drained at the default pace and, again in rounds, without the limit on the
pace. *Ready* is the first good answer of ``/health``. The page cache is as after a restart of the daemon: warm, unless the
file is larger than memory.
"""

import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from statistics import median
from time import sleep
from typing import Any

from benchmarks.limits import run_limit
from benchmarks.results import Results
from benchmarks.rig import Rig, free_port, open_rig, split_cores, usage

__all__ = ["run"]

Report = Callable[[str], None]
NAME = "scale"
SIZES, QUICK_SIZES = (0, 1_000, 100_000, 1_000_000, 10_000_000), (0, 1_000, 3_000)
# Without the limit, a thousand events are delivered before the measurement starts.
OPEN_FROM = 100_000
DEAD = 1_000
ROUNDS = 5
OPEN_S = 6.0
OPEN_WIDE = "per_second = 10_000\nper_day = 100_000_000\nmax_in_flight = 1024"
MB = 1_000_000


def run(results: Results, report: Report, quick: bool) -> None:
    """Build all files, then measure the sizes in turn, so that all see the same machine."""
    sizes = QUICK_SIZES if quick else SIZES
    figures_by_size: dict[int, dict[str, list[float]]] = {size: defaultdict(list) for size in sizes}
    with ExitStack() as stack:
        rigs = {size: stack.enter_context(open_rig()) for size in sizes}
        for size, rig in rigs.items():
            report(f"building {size:,} pending events")
            run_limit("filled", str(rig.outbox), size, 0, min(size, DEAD))
            figures_by_size[size]["file"].append(rig.outbox.stat().st_size / MB)
        for number in range(1 if quick else ROUNDS):
            for size, rig in rigs.items():
                report(f"{size:,} pending, starts and answers, round {number + 1}")
                _start(rig, figures_by_size[size])
        for size, rig in rigs.items():
            if size:
                report(f"{size:,} pending, drained at the default pace")
                rig.start_sandbox("--latency", "5ms", "--per-second", "0", "--per-day", "0", on=split_cores()[1])
                seconds = 1.0 if quick else min(10.0, 0.8 * size / 190)
                rate, resident = _drain(rig, seconds, "", split_cores()[0])
                figures_by_size[size]["drain"].append(rate)
                figures_by_size[size]["drain rss"].append(resident)
        for number in range(0 if quick else ROUNDS):
            for size, rig in rigs.items():
                if size >= OPEN_FROM:
                    report(f"{size:,} pending, drained with the bucket opened wide, round {number + 1}")
                    rate, resident = _drain(rig, OPEN_S, OPEN_WIDE, split_cores()[0])
                    figures_by_size[size]["open drain"].append(rate)
                    figures_by_size[size]["open drain rss"].append(resident)
    _report(
        results,
        {size: {name: median(all_) for name, all_ in figures.items()} for size, figures in figures_by_size.items()},
    )


def _start(rig: Rig, figures: dict[str, list[float]]) -> None:
    """Measure start to ready, memory a second later, and the duration of status calls."""
    rig.configure(px_port=free_port(), outbox='max_bytes = "64GiB"')
    started_s = time.monotonic()
    daemon = rig.start_daemon(on=split_cores()[0])
    figures["ready"].append(time.monotonic() - started_s)
    sleep(1.0)
    figures["rss"].append(usage(daemon.pid).resident_bytes / MB)
    figures["status"].append(_duration_ms(rig.status))
    figures["status verb"].append(_duration_ms(lambda: _verb(rig, "status")))
    figures["dead list verb"].append(_duration_ms(lambda: _verb(rig, "dead", "list")))
    rig.stop(daemon)


def _drain(rig: Rig, seconds: float, deliver: str, daemon_cores: set[int]) -> tuple[float, float]:
    """Return events per second between first and last arrival within ``seconds``, and the memory at the end in MB."""
    rig.configure(deliver=deliver, outbox='max_bytes = "64GiB"')
    rig.ask(rig.sandbox_port, "/sandbox/reset", "POST")
    daemon = rig.start_daemon(on=daemon_cores)
    sleep(seconds)
    report, resident = rig.report(), usage(daemon.pid).resident_bytes / MB
    rig.stop(daemon)
    return report["rate_per_s"], resident


def _duration_ms(call: Callable[[], Any]) -> float:
    """Return the milliseconds of one call."""
    started_s = time.monotonic()
    call()
    return 1000 * (time.monotonic() - started_s)


def _verb(rig: Rig, *arguments: str) -> None:
    command = [sys.executable, "-m", "sidecar", *arguments, "--json", "--config", str(rig.folder / "config.toml")]
    subprocess.run(command, check=True, capture_output=True, timeout=60)


def _report(results: Results, figures_by_size: dict[int, dict[str, float]]) -> None:
    largest = max(figures_by_size)
    smallest_drain = min(size for size in figures_by_size if size)
    open_sizes = [size for size, figures in figures_by_size.items() if "open drain" in figures]
    for size, figures in figures_by_size.items():
        label, is_largest = f"{size:,} pending" if size else "empty", size == largest
        target: dict[str, Any] = {"target": 1.2, "bound": "most"} if is_largest else {}
        if size:
            target |= {"limit": figures_by_size[0]["ready"], "of": "an empty outbox"}
        results.add(NAME, f"{label}: start to ready", figures["ready"], "s", **target)
        target = {"target": 70.0, "bound": "most"} if is_largest else {}
        results.add(NAME, f"{label}: resident memory", figures["rss"], "MB", **target)
        if "drain" in figures:
            target = {"target": 0.98} if is_largest else {}
            of = {"limit": figures_by_size[smallest_drain]["drain"], "of": f"{smallest_drain:,} pending"}
            results.add(NAME, f"{label}: drain rate, default pace", figures["drain"], "/s", **of, **target)
            target = {"target": 70.0, "bound": "most"} if is_largest else {}
            results.add(NAME, f"{label}: resident memory while draining", figures["drain rss"], "MB", **target)
        if "open drain" in figures:
            target = {"target": 0.98} if is_largest else {}
            of = {"limit": figures_by_size[open_sizes[0]]["open drain"], "of": f"{open_sizes[0]:,} pending"}
            results.add(NAME, f"{label}: drain rate, bucket opened wide", figures["open drain"], "/s", **of, **target)
        results.add(NAME, f"{label}: GET /status", figures["status"], "ms")
        results.add(NAME, f"{label}: px-sidecar status", figures["status verb"], "ms", note="a new process each time")
        results.add(
            NAME, f"{label}: px-sidecar dead list", figures["dead list verb"], "ms", note="a new process each time"
        )
        results.add(NAME, f"{label}: size of the file", figures["file"], "MB")
    results.series["scale"] = {str(size): figures for size, figures in figures_by_size.items()}
