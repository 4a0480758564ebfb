"""The ordinary day: one event at a time at 1 to 190 a second, while as many are delivered.

What an app notices of it (the time of a call), what the host pays for it (processor, syncs, bytes written), next to one
synced SQLite commit at the same pace in the same minute. Processes are pinned to cores as in ``ceiling``.
"""

import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import sleep
from typing import Any

from benchmarks.limits import run_limit
from benchmarks.load import Load, Measured, run_load
from benchmarks.results import Results
from benchmarks.rig import Rig, open_rig, split_cores, usage, wait_until

__all__ = ["run"]

Report = Callable[[str], None]
NAME = "day"
PER_SECOND, QUIET_PER_SECOND, LATENCY_MS = 190, 5, 100
PACES = (1, QUIET_PER_SECOND, 50, PER_SECOND)
WARM_UP_S = 2.0
# What was delivered last is settled, and a quiet moment has passed.
SETTLED_S = 2.5
KIB = 1024


def run(results: Results, report: Report, quick: bool) -> None:
    """Measure the call and its cost at each pace, and what a lone event writes."""
    rounds, seconds = (1, 2.0) if quick else (3, 20.0)
    for per_second in (PER_SECOND,) if quick else PACES:
        _at_pace(results, report, per_second, rounds, seconds)
    _writes(results, report, rounds, seconds)


@contextmanager
def _daemon(rig: Rig) -> Iterator[int]:
    """Yield the process id of a daemon that delivers to a sandbox."""
    daemon_cores, other_cores = split_cores()
    rig.configure()
    rig.start_sandbox("--latency", f"{LATENCY_MS}ms", "--per-second", "0", on=other_cores)
    daemon = rig.start_daemon(on=daemon_cores)
    yield daemon.pid
    status = rig.status()
    assert status["accepted"] == status["delivered"] + status["pending"], status
    rig.stop(daemon)


def _paced(rig: Rig, form: str, per_second: float, seconds: float) -> Measured:
    """Send on one connection, one event after the other's answer. Returns without the first moments."""
    address = str(rig.http_port) if form == "http" else str(rig.unix)
    load = Load(address=address, form=form, rate=per_second, events=max(2, int(per_second * seconds)))
    return run_load(load, on=split_cores()[1])


def _at_pace(results: Results, report: Report, per_second: int, rounds: int, seconds: float) -> None:
    found: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        found.setdefault(name, []).append(value)

    for _ in range(rounds):
        report(f"{per_second} events a second, one by one, PX answers in {LATENCY_MS} ms")
        with open_rig() as rig:
            bare = run_limit("paced_commits", str(rig.folder / "bare.db"), per_second, seconds, on=split_cores()[0])
            for name in ("cpu_ms", "p50_ms", "p99_ms"):
                note(f"bare {name}", bare[name])
            with _daemon(rig) as pid:
                for form in ("http", "ndjson"):
                    _paced(rig, form, max(per_second, 20), WARM_UP_S)
                    before = usage(pid)
                    measured = _paced(rig, form, per_second, seconds)
                    used = usage(pid).since(before)
                    note(f"{form} p50", measured.p50_ms)
                    note(f"{form} p99", measured.p99_ms)
                    note(f"{form} longest", measured.max_ms)
                    note(f"{form} in and out", 1000 * used.cpu_s / measured.events)
                    note(f"{form} switches", used.switches / measured.events)
                wait_until(lambda: rig.status()["pending"] == 0, 60, "the delivery of all events")
                _pause(rig)
                for form in ("http", "ndjson"):
                    before = usage(pid)
                    measured = _paced(rig, form, per_second, seconds)
                    note(f"{form} in", 1000 * usage(pid).since(before).cpu_s / measured.events)
    _add(results, per_second, found)


def _pause(rig: Rig) -> None:
    command = ["-m", "sidecar", "pause", "--control", str(rig.folder / "control.sock")]
    assert rig.start(command).wait(30) == 0, rig.log()


def _add(results: Results, per_second: int, found: dict[str, list[float]]) -> None:
    of = "one synced SQLite commit at that pace"
    at = f"{per_second}/s one by one"
    for form, called in (("http", "HTTP"), ("ndjson", "NDJSON")):
        for name, label, unit, limit, target in (
            ("in", "CPU of taking in an event", "ms", "cpu_ms", 2.5),
            ("p50", "the caller's median, while delivering", "ms", "p50_ms", 2.0),
            ("p99", "the caller's 99th percentile, while delivering", "ms", "p99_ms", 3.0),
            ("longest", "the caller's longest call, while delivering", "ms", "", None),
            ("in and out", "CPU of an event, in and out", "ms", "", None),
            ("switches", "context switches of an event, in and out", "", "", None),
        ):
            more: dict[str, Any] = {}
            if limit:
                more = {"limit": median(found[f"bare {limit}"]), "of": of}
                if per_second == PER_SECOND:
                    more |= {"target": target, "bound": "most"}
            results.add(NAME, f"{called}, {at}: {label}", found[f"{form} {name}"], unit, **more)


def _writes(results: Results, report: Report, rounds: int, seconds: float) -> None:
    """Count what a lone event writes: accepted and settled it is two commits, and the reserve for everything else is small."""
    written: list[float] = []
    synced: list[float] = []
    for _ in range(rounds):
        report(f"{QUIET_PER_SECOND} events a second: syncs and bytes written")
        with open_rig() as rig, _daemon(rig) as pid:
            _paced(rig, "http", QUIET_PER_SECOND, WARM_UP_S)
            sleep(SETTLED_S)
            before = usage(pid)
            with _count_syncs(pid, rig.folder) as count:
                events = _paced(rig, "http", QUIET_PER_SECOND, seconds).events
                sleep(SETTLED_S)
            written.append(usage(pid).since(before).written_bytes / events / KIB)
            if count:
                synced.append(count[0] / events)
    at = f"{QUIET_PER_SECOND}/s one by one, delivered"
    results.add(NAME, f"{at}: written of an event", written, "KiB", target=30, bound="most")
    if synced:
        results.add(NAME, f"{at}: syncs of an event", synced, "", target=2.1, bound="most")


@contextmanager
def _count_syncs(pid: int, folder: Path) -> Iterator[list[int]]:
    """Count the syncs of a process with strace(1); the list stays empty without it, and is filled at the end."""
    count: list[int] = []
    if shutil.which("strace") is None:
        yield count
        return
    log = folder / "syncs.log"
    command = ["strace", "-f", "-qq", "-e", "trace=fsync,fdatasync", "-o", str(log), "-p", str(pid)]
    tracer = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    sleep(0.5)
    try:
        yield count
    finally:
        tracer.send_signal(signal.SIGINT)
        tracer.wait(10)
    # A call that another thread interrupts takes two lines; the second one says "resumed".
    lines = log.read_text().splitlines()
    count.append(sum("sync(" in line for line in lines))
