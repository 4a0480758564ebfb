"""A fleet: 1, 2, 4 and 8 daemons under one ceiling, next to the same daemons with ``deliver.hosts``; a simulation to 200.

All daemons have backlog; the sandbox's log has the time of each arrival. The engine is the redis-server or valkey-server
that is installed, on a Unix socket. Load and daemons share all cores: with eight daemons there is none to spare. The
simulation is the one of tests/machines/fleet: the real script and the real state machine, simulated time.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import sleep
from typing import Any, NamedTuple

from benchmarks.limits import run_limit
from benchmarks.load import Load, run_load
from benchmarks.results import Results
from benchmarks.rig import Rig, Usage, open_rig, usage, wait_until
from sidecar.sandbox.report import largest_window

__all__ = ["run"]

Report = Callable[[str], None]
NAME = "fleet"
PER_SECOND = 190
HOSTS = (1, 2, 4, 8)
SIMULATED_HOSTS = (1, 2, 4, 8, 20, 60, 200)
# An engine that knows nothing sets the promises of hosts that it does not know aside for its first ten seconds.
SETTLE_S = 13.0
START_S = 60.0
MOST_RECEIVED = 199


def run(results: Results, report: Report, quick: bool) -> None:
    """Measure each number of hosts in a fleet and with ``deliver.hosts``, then simulate more."""
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        raise RuntimeError("The benchmark of the fleet needs redis-server or valkey-server; install one of them.")
    curves: dict[str, dict[str, dict[str, float]]] = {"real": {}, "simulated": {}}
    for hosts in HOSTS[1:2] if quick else HOSTS:
        curves["real"][str(hosts)] = _busy(results, report, program, hosts, quick=quick)
        _one_event(results, report, program, hosts, events=10 if quick else 200)
    for hosts in SIMULATED_HOSTS[:2] if quick else SIMULATED_HOSTS:
        report(f"simulating {hosts} hosts")
        curves["simulated"][str(hosts)] = _simulated(hosts)
    results.series["fleet"] = curves


class _Measured(NamedTuple):
    """What a number of daemons did in a window of time."""

    largest: int
    rate: float
    shares: list[float]
    cpu_ms: float
    calls: float
    resident_mb: float


@contextmanager
def _hosts(hosts: int, lines: str, pending: int) -> Iterator[tuple[list[Rig], list[int]]]:
    """Start the sandbox of the first rig and a daemon in each; return the rigs and the daemons' process ids."""
    with _rigs(hosts) as rigs:
        for rig in rigs:
            if pending:
                run_limit("filled", str(rig.outbox), pending, 0, 0)
            rig.configure(deliver=lines, px_port=rigs[0].sandbox_port)
        rigs[0].start_sandbox("--latency", "50ms")
        yield rigs, [rig.start_daemon().pid for rig in rigs]


@contextmanager
def _rigs(count: int) -> Iterator[list[Rig]]:
    if not count:
        yield []
        return
    with open_rig() as rig, _rigs(count - 1) as others:
        yield [rig, *others]


@contextmanager
def _engine(program: str) -> Iterator[str]:
    """Start the engine; return the lines of the configuration that join it."""
    with open_rig() as rig:
        path = rig.folder / "engine.sock"
        options = ("--unixsocket", str(path), "--port", "0", "--save", "", "--dir", str(rig.folder))
        with subprocess.Popen([program, *options], stdout=subprocess.DEVNULL) as process:
            try:
                wait_until(path.exists, START_S, "the engine's start")
                yield f'[fleet]\nurl = "unix://{path}"\nname = "bench"'
            finally:
                process.kill()


def _busy(results: Results, report: Report, program: str, hosts: int, *, quick: bool) -> dict[str, float]:
    seconds, settle_s = (2, 1.0) if quick else (20, SETTLE_S)
    report(f"{hosts} busy hosts with deliver.hosts = {hosts}")
    static = _window(hosts, f"hosts = {hosts}", seconds, settle_s, fleet=False)
    report(f"{hosts} busy hosts in a fleet")
    with _engine(program) as lines:
        fleet = _window(hosts, lines, seconds, settle_s, fleet=True)
    label = f"{hosts} busy hosts" if hosts > 1 else "1 busy host"
    results.add(
        NAME, f"{label}: used", fleet.rate, "/s", limit=PER_SECOND, of="deliver.per_second", target=0.99,
        note=f"deliver.hosts = {hosts}: {static.rate:.1f}/s, largest second {static.largest}",
    )  # fmt: skip
    results.add(
        NAME, f"{label}: largest second at the receiver", fleet.largest, "requests", target=MOST_RECEIVED, bound="most"
    )
    mean = sum(fleet.shares) / hosts
    least, most = min(fleet.shares) / mean, max(fleet.shares) / mean
    results.add(NAME, f"{label}: smallest share against the mean", least, "×", target=0.9)
    results.add(NAME, f"{label}: largest share against the mean", most, "×", target=1.1, bound="most")
    results.add(NAME, f"{label}: calls to the engine", fleet.calls, "/s", target=100, bound="most")
    results.add(
        NAME, f"{label}: CPU per event", fleet.cpu_ms, "ms", limit=static.cpu_ms,
        of="the same daemons without a fleet, at the same pace",
    )  # fmt: skip
    results.add(NAME, f"{label}: resident memory of a host", fleet.resident_mb, "MB", target=50, bound="most")
    used = 100 * fleet.rate / PER_SECOND
    return {"used": used, "largest": fleet.largest, "least": least, "most": most, "calls": fleet.calls}


def _window(hosts: int, lines: str, seconds: int, settle_s: float, *, fleet: bool) -> _Measured:
    """Return what the daemons do in ``seconds`` after they have settled."""
    pending = int(PER_SECOND * (settle_s + seconds + 10))
    with _hosts(hosts, lines, pending) as (rigs, pids):
        if fleet:
            wait_until(lambda: _all_share(rigs), START_S, "that all hosts share")
        sleep(settle_s)
        before = [_counts(rig, pid) for rig, pid in zip(rigs, pids, strict=True)]
        from_index = rigs[0].report()["requests"]
        sleep(seconds)
        after = [_counts(rig, pid) for rig, pid in zip(rigs, pids, strict=True)]
        times_s = [entry.arrival_s for entry in rigs[0].arrivals()]
    sent = [later[0] - earlier[0] for earlier, later in zip(before, after, strict=True)]
    used: list[Usage] = [later[2].since(earlier[2]) for earlier, later in zip(before, after, strict=True)]
    calls = sum(later[1] - earlier[1] for earlier, later in zip(before, after, strict=True))
    window = [time_s for time_s in times_s[from_index:] if time_s < times_s[from_index] + seconds]
    return _Measured(
        largest_window(times_s, 1.0),
        len(window) / seconds,
        [float(count) for count in sent],
        1000 * sum(each.cpu_s for each in used) / sum(sent),
        calls / seconds,
        median(each.resident_bytes for each in used) / 1e6,
    )


def _all_share(rigs: list[Rig]) -> bool:
    sleep(0.2)
    return all(rig.status()["fleet"]["state"] == "sharing" for rig in rigs)


def _counts(rig: Rig, pid: int) -> tuple[int, int, Usage]:
    status = rig.status()
    return int(status["delivered"]), int((status["fleet"] or {"calls": 0})["calls"]), usage(pid)


def _one_event(results: Results, report: Report, program: str, hosts: int, events: int) -> None:
    """Measure the time from the answer to the app until the event is at PX, for one event at a time in an idle fleet."""
    report(f"one event at a time, {hosts} idle hosts")
    alone = _latency_ms(hosts, f"hosts = {hosts}", events, fleet=False)
    with _engine(program) as lines:
        fleet = _latency_ms(hosts, lines, events, fleet=True)
    label = f"{hosts} idle hosts" if hosts > 1 else "1 idle host"
    results.add(
        NAME, f"{label}: added to the latency of one event, median", max(0.0, median(fleet) - median(alone)), "ms",
        note=f"from the app's answer to PX: {median(fleet):.1f} ms in a fleet, {median(alone):.1f} ms without",
    )  # fmt: skip


def _latency_ms(hosts: int, lines: str, events: int, *, fleet: bool) -> list[float]:
    with _hosts(hosts, lines, 0) as (rigs, _):
        if fleet:
            wait_until(lambda: _all_share(rigs), START_S, "that all hosts share")
        sleep(2.0)
        measured = run_load(Load(address=str(rigs[0].http_port), rate=10, events=events))
        wait_until(lambda: rigs[0].status()["pending"] == 0 or sleep(0.2), 30, "the delivery of all events")
        arrived = rigs[0].arrivals()
    return [1000 * (entry.arrival_s - measured.answered[str(entry.messageId)]) for entry in arrived]


def _simulated(hosts: int) -> dict[str, float]:
    """Return the figures of a simulated fleet in which every host has backlog."""
    folder = str(Path(__file__).resolve().parents[1] / "tests/machines/fleet")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    from fleet_engine import EngineClient, EngineServer  # type: ignore[import-not-found]
    from fleet_world import FleetWorld  # type: ignore[import-not-found]

    from_s, until_s = 13.0, 24.0
    with open_rig() as rig, EngineServer(rig.folder) as server:
        client: Any = EngineClient(server.path)
        world: Any = FleetWorld(client, hosts)
        world.run(from_s)
        calls = world.engine.calls
        world.run(until_s)
        counts, rate = world.by_host(from_s, until_s), world.rate(from_s, until_s)
        mean = sum(counts) / hosts
        client.close()
    return {
        "used": 100 * rate / PER_SECOND,
        "largest": world.largest_second(0.010),
        "least": min(counts) / mean,
        "most": max(counts) / mean,
        "calls": (world.engine.calls - calls) / (until_s - from_s),
    }
