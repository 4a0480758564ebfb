"""Cost against the size of the backlog: a thousand, a hundred thousand, a million, ten million pending events.

Each file is built through the Store. Then the daemon starts on each of them in turn, several rounds, so that a noisy
neighbour meets all of them; last they are drained, at the default pace and, in rounds again, with the bucket opened
wide. *Ready* is the first good answer of ``/health``. The page cache is as a restart finds it: warm, unless the file is
larger than memory.
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
from benchmarks.rig import Rig, apart, free_port, open_rig, usage

__all__ = ["run"]

Say = Callable[[str], None]
NAME = "scale"
SIZES, QUICK_SIZES = (0, 1_000, 100_000, 1_000_000, 10_000_000), (0, 1_000, 3_000)
# With the bucket opened wide a thousand are gone before the clock runs.
OPEN_FROM = 100_000
DEAD = 1_000
ROUNDS = 5
OPEN_S = 6.0
OPEN_WIDE = "per_second = 10_000\nper_day = 100_000_000\nmax_in_flight = 1024"
MB = 1_000_000


def run(results: Results, say: Say, quick: bool) -> None:
    """Build all files, then go through the sizes in turn, so that they are measured on the same machine."""
    sizes = QUICK_SIZES if quick else SIZES
    found: dict[int, dict[str, list[float]]] = {size: defaultdict(list) for size in sizes}
    with ExitStack() as stack:
        rigs = {size: stack.enter_context(open_rig()) for size in sizes}
        for size, rig in rigs.items():
            say(f"building {size:,} pending events")
            run_limit("filled", str(rig.outbox), size, 0, min(size, DEAD))
            found[size]["file"].append(rig.outbox.stat().st_size / MB)
        for number in range(1 if quick else ROUNDS):
            for size, rig in rigs.items():
                say(f"{size:,} pending, starts and answers, round {number + 1}")
                _start(rig, found[size])
        for size, rig in rigs.items():
            if size:
                say(f"{size:,} pending, drained at the default pace")
                rig.start_sandbox("--latency", "5ms", "--per-second", "0", "--per-day", "0", on=apart()[1])
                seconds = 1.0 if quick else min(10.0, 0.8 * size / 190)
                rate, resident = _drain(rig, seconds, "", apart()[0])
                found[size]["drain"].append(rate)
                found[size]["drain rss"].append(resident)
        for number in range(0 if quick else ROUNDS):
            for size, rig in rigs.items():
                if size >= OPEN_FROM:
                    say(f"{size:,} pending, drained with the bucket opened wide, round {number + 1}")
                    rate, resident = _drain(rig, OPEN_S, OPEN_WIDE, apart()[0])
                    found[size]["open drain"].append(rate)
                    found[size]["open drain rss"].append(resident)
    _report(results, {size: {name: median(all_) for name, all_ in figures.items()} for size, figures in found.items()})


def _start(rig: Rig, figures: dict[str, list[float]]) -> None:
    """Start to ready, memory a second later, and how long it takes to ask."""
    rig.configure(px_port=free_port(), outbox='max_bytes = "64GiB"')
    began_s = time.monotonic()
    daemon = rig.start_daemon(on=apart()[0])
    figures["ready"].append(time.monotonic() - began_s)
    sleep(1.0)
    figures["rss"].append(usage(daemon.pid).resident_bytes / MB)
    figures["status"].append(_takes(rig.status))
    figures["status verb"].append(_takes(lambda: _verb(rig, "status")))
    figures["dead list verb"].append(_takes(lambda: _verb(rig, "dead", "list")))
    rig.stop(daemon)


def _drain(rig: Rig, seconds: float, deliver: str, mine: set[int]) -> tuple[float, float]:
    """Events per second between first and last arrival within so many seconds, and the memory at the end."""
    rig.configure(deliver=deliver, outbox='max_bytes = "64GiB"')
    rig.ask(rig.sandbox_port, "/sandbox/reset", "POST")
    daemon = rig.start_daemon(on=mine)
    sleep(seconds)
    report, resident = rig.report(), usage(daemon.pid).resident_bytes / MB
    rig.stop(daemon)
    return report["rate_per_s"], resident


def _takes(call: Callable[[], Any]) -> float:
    """Milliseconds of one call."""
    began_s = time.monotonic()
    call()
    return 1000 * (time.monotonic() - began_s)


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
