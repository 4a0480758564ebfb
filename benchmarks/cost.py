"""Cost: processor time per event, memory, wake-ups when idle, bytes written.

All figures are read from /proc for the whole daemon with all threads. Processes are pinned to cores as in ``ceiling``.
"""

from collections.abc import Callable
from statistics import median
from time import sleep

from benchmarks.limits import run_limit
from benchmarks.load import Load, run_load
from benchmarks.results import Results
from benchmarks.rig import free_port, open_rig, split_cores, usage, wait_until

__all__ = ["run"]

Report = Callable[[str], None]
NAME = "cost"
PER_SECOND, LATENCY_MS = 190, 100
MB = 1_000_000
SETTLE_S = 2.0


def run(results: Results, report: Report, quick: bool) -> None:
    """Measure delivering, idling and accepting."""
    _delivering(results, report, rounds=1 if quick else 3, seconds=2 if quick else 20)
    _idle(results, report, seconds=1 if quick else 20)
    _accepting(results, report, quick)


def _delivering(results: Results, report: Report, rounds: int, seconds: float) -> None:
    """Deliver 190/s from a backlog, and alternately run the bare transport at the same pace to the same sandbox."""
    daemon_cores, other_cores = split_cores()
    whole_ms: list[float] = []
    alone_ms: list[float] = []
    written: list[float] = []
    resident: list[float] = []
    for _ in range(rounds):
        report(f"processor time of delivering {PER_SECOND}/s, PX answers in {LATENCY_MS} ms")
        with open_rig() as rig:
            run_limit("filled", str(rig.outbox), int(PER_SECOND * (seconds + 2 * SETTLE_S)), 0, 0)
            rig.configure()
            rig.start_sandbox("--latency", f"{LATENCY_MS}ms", "--per-second", "0", on=other_cores)
            daemon = rig.start_daemon(on=daemon_cores)
            sleep(SETTLE_S)
            before, arrived = usage(daemon.pid), rig.report()["stored"]
            sleep(seconds)
            arrived = rig.report()["stored"] - arrived
            used = usage(daemon.pid).since(before)
            rig.stop(daemon)
            whole_ms.append(1000 * used.cpu_s / arrived)
            written.append(used.written_bytes / arrived)
            resident.append(used.resident_bytes / MB)
            url = f"http://127.0.0.1:{rig.sandbox_port}"
            alone_ms.append(run_limit("transport_alone", url, PER_SECOND, seconds, on=daemon_cores)["cpu_ms"])
    results.add(
        NAME, f"CPU per delivered event, whole process, {PER_SECOND}/s, PX {LATENCY_MS} ms", whole_ms, "ms",
        limit=median(alone_ms), of="httpx.AsyncHTTPTransport alone, same pace, same sandbox", target=1.0, bound="most",
    )  # fmt: skip
    results.add(NAME, "disk bytes written per delivered event", written, "B")
    results.add(NAME, f"resident memory while delivering {PER_SECOND}/s", resident, "MB")


def _idle(results: Results, report: Report, seconds: float) -> None:
    report("idle")
    with open_rig() as rig:
        rig.configure(scheme="https", px_port=free_port())  # as with the real PX: certificates are loaded
        daemon = rig.start_daemon()
        sleep(SETTLE_S)
        before = usage(daemon.pid)
        sleep(seconds)
        used = usage(daemon.pid).since(before)
    results.add(NAME, "resident memory, idle", used.resident_bytes / MB, "MB", target=50, bound="most")
    results.add(
        NAME, "wake-ups per second, idle", used.switches / seconds, "/s", note="context switches of all threads"
    )
    results.add(NAME, "processor, idle", 100 * used.cpu_s / seconds, "% of a core")
    results.add(NAME, "disk bytes written per second, idle", used.written_bytes / seconds, "B/s")


def _accepting(results: Results, report: Report, quick: bool) -> None:
    scale = 50 if quick else 1
    loads = (
        ("in batches of 100", Load(address="", batch=100, connections=8, events=200_000 // scale)),
        ("alone, 64 connections", Load(address="", connections=64, events=50_000 // scale)),
        ("alone, 1 connection", Load(address="", connections=1, events=2_000 // scale)),
    )
    peak = 0.0
    for name, load in loads:
        report(f"accepting {name}")
        with open_rig() as rig:
            rig.configure(px_port=free_port())
            daemon = rig.start_daemon()
            before = usage(daemon.pid)
            load.address = str(rig.http_port)
            run_load(load)
            # The checkpoint of the next second writes the content of the WAL again; count it.
            wait_until(lambda load=load: rig.status()["accepted"] == load.events, 10, "the account of all events")
            sleep(SETTLE_S)
            used = usage(daemon.pid).since(before)
        peak = max(peak, used.peak_bytes / MB)
        results.add(NAME, f"CPU per accepted event, {name}", 1e6 * used.cpu_s / load.events, "µs")
        results.add(
            NAME, f"disk bytes written per accepted event of 330 B, {name}", used.written_bytes / load.events, "B"
        )
    results.add(NAME, "resident memory, peak under ingest load", peak, "MB")
