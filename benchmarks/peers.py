"""A peer beside px-sidecar: an OpenTelemetry Collector with a synced queue on disk, measured alternately in one run.

The collector is what a user would take instead: it accepts events as OTLP logs over HTTP, keeps them in `file_storage` with
fsync, and exports each request as one request. It makes no PX body and keeps no ceiling. Both deliver to the same stand-in,
which answers in 100 ms. If the collector cannot be built, the benchmark is skipped with the reason.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from statistics import median
from time import sleep
from typing import Any, NamedTuple

import msgspec
import trio

from benchmarks import collector
from benchmarks.load import Load, connect, request, run_load
from benchmarks.memory import remember
from benchmarks.results import Results
from benchmarks.rig import START_TIMEOUT_S, Rig, free_port, open_rig, split_cores, usage, wait_until
from sidecar.http import Request, Response, serve, serve_connection
from sidecar.sandbox.report import largest_window

__all__ = [
    "COLLECTOR",
    "SIDECAR",
    "Arrival",
    "Outcome",
    "Peer",
    "Values",
    "add_figures",
    "outcome",
    "run",
    "start_sink",
]

Report = Callable[[str], None]
NAME = "peers"
SIDECAR, COLLECTOR = "px-sidecar", "OTel Collector"

LATENCY_S = 0.1
PER_SECOND, OFFERED_PER_SECOND = 190, 150
BATCH, BATCH_CONNECTIONS, SINGLE_CONNECTIONS = 50, 4, 64
WARM_UP_S, SETTLED_S, DRAIN_TIMEOUT_S = 2.0, 2.0, 300.0
BATCHES = f"batches of {BATCH}, {BATCH_CONNECTIONS} connections"
SINGLES = f"single events, {SINGLE_CONNECTIONS} connections"
ALL_THERE = "all delivered after the error's end"
# The ratios of issue 23 to the collector, and the seconds after which all has to be delivered.
LEAST_RATIO = {BATCHES: 0.8, SINGLES: 2.5}
MOST_AFTER_ERROR_S = 18
MESSAGE_ID = re.compile(rb"[0-9a-f]{12}[0-9]{12}")


class Arrival(NamedTuple):
    """A request at the stand-in: seconds since the first one, the answer's status, and the message ids in its body."""

    at_s: float
    status: int
    ids: tuple[str, ...]


class Outcome(NamedTuple):
    """What became of events that were offered before, during and after an error."""

    all_there_s: float
    """From the end of the error to the first arrival of the last event."""
    busiest_second: int
    """Requests in any window of one second, refused ones included."""
    twice: int
    lost: int


class Peer(NamedTuple):
    """A program that is measured: its label in the figures, and the form of its load."""

    label: str
    form: str
    launch: Callable[[Rig, int, set[int] | None], subprocess.Popen[bytes]]
    """Start it with a port to deliver to, on these cores, without waiting for it. It listens on the rig's HTTP port."""


class _Size:
    """How much is measured; ``--quick`` only tests the benchmark."""

    def __init__(self, quick: bool) -> None:
        self.rounds, self.starts = (1, 1) if quick else (3, 5)
        self.seconds = 2.0 if quick else 20.0
        self.offered_s, self.error_s = (4.0, (1.0, 2.0)) if quick else (20.0, (5.0, 10.0))
        self.batches, self.singles = (1_000, 300) if quick else (200_000, 30_000)
        self.users = 1_000 if quick else 1_000_000


class Values:
    """The measured values: for each row and its unit, those of each peer."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], dict[str, list[float]]] = {}

    def add(self, what: str, unit: str, peer: Peer, value: float) -> None:
        self.rows.setdefault((what, unit), {}).setdefault(peer.label, []).append(value)


def run(results: Results, report: Report, quick: bool) -> None:
    """Measure all rows for both, alternately; only report the reason if the collector cannot be built."""
    try:
        program = collector.build(report)
    except collector.Skipped as reason:
        report(f"skipped: {reason}")
        results.series[NAME] = {"skipped": str(reason)}
        return
    peers = [Peer(SIDECAR, "http", _launch_sidecar), Peer(COLLECTOR, "otlp", partial(collector.launch, program))]
    size, values = _Size(quick), Values()
    with open_rig() as remembering:
        remember(remembering.outbox, size.users)
        for number in range(size.rounds):
            for name, measure in ROWS.items():
                # The order alternates, so that what the first one leaves behind does not always meet the same one.
                for peer in peers[:: -1 if number % 2 else 1]:
                    report(f"round {number + 1} of {size.rounds}, {name}: {peer.label}")
                    measure(peer, size, values, remembering.outbox)
    add_figures(results, values)


# Starting --------------------------------------------------------------------------------------------------------------


def _launch_sidecar(rig: Rig, px_port: int, on: set[int] | None) -> subprocess.Popen[bytes]:
    rig.configure(px_port=px_port, outbox='max_bytes = "64GiB"')
    return rig.launch_daemon(on=on)


def _start(rig: Rig, peer: Peer, px_port: int, on: set[int] | None = None) -> subprocess.Popen[bytes]:
    """Start a peer and wait until it accepts events. (The collector knows no /health and answers 404.)"""
    process = peer.launch(rig, px_port, on)
    rig.wait_for(process, rig.http_port, "/health", f"the start of {peer.label}")
    return process


# The stand-in that both deliver to --------------------------------------------------------------------------------------


def serve_sink(port: int, status: int, from_s: float, to_s: float) -> None:
    """Take events of either form until killed; answer with an error from ``from_s`` to ``to_s`` after the first request."""
    arrivals: list[Arrival] = []
    stored: set[str] = set()
    first_s = 0.0

    async def handler(request: Request) -> Response:
        nonlocal first_s
        if request.method == "GET":
            return Response(200, msgspec.json.encode(arrivals if request.path == "/arrivals" else len(stored)))
        first_s = first_s or time.monotonic()
        at_s = time.monotonic() - first_s
        answer = status if from_s <= at_s < to_s else 200
        arrivals.append(Arrival(at_s, answer, tuple(match.decode() for match in MESSAGE_ID.findall(request.body))))
        if answer == 200:
            stored.update(arrivals[-1].ids)
        await trio.sleep(LATENCY_S)
        return Response(answer, headers=(("Retry-After", "1"),) if answer != 200 else ())

    async def main() -> None:
        listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")
        await serve(listeners, lambda stream: serve_connection(stream, handler), max_connections=2_000)

    trio.run(main)


def start_sink(rig: Rig, status: int = 200, error_s: tuple[float, float] = (0.0, 0.0)) -> None:
    arguments = json.dumps([rig.sandbox_port, status, *error_s])
    process = rig.start(["-m", "benchmarks.peers", arguments], split_cores()[1])
    rig.wait_for(process, rig.sandbox_port, "/stored", "the start of the stand-in")


def _stored(rig: Rig) -> int:
    return int(rig.ask(rig.sandbox_port, "/stored")[1])


def outcome(arrivals: Sequence[Arrival], offered: int, error_end_s: float) -> Outcome:
    """Judge the requests of a run in which ``offered`` events were accepted."""
    first_s: dict[str, float] = {}
    stored = 0
    for arrival in arrivals:
        if arrival.status == 200:
            stored += len(arrival.ids)
            for message_id in arrival.ids:
                first_s.setdefault(message_id, arrival.at_s)
    return Outcome(
        all_there_s=max(first_s.values(), default=0.0) - error_end_s,
        busiest_second=largest_window([arrival.at_s for arrival in arrivals], 1.0),
        twice=stored - len(first_s),
        lost=offered - len(first_s),
    )


# The rows -------------------------------------------------------------------------------------------------------------


def _paced(peer: Peer, size: _Size, values: Values, _users: Path) -> None:
    """One event at a time at 190/s, while as many are delivered."""
    daemon_cores, other_cores = split_cores()
    with open_rig() as rig:
        start_sink(rig)
        process = _start(rig, peer, rig.sandbox_port, daemon_cores)
        load = Load(address=str(rig.http_port), form=peer.form, rate=PER_SECOND, events=int(PER_SECOND * WARM_UP_S))
        sent = run_load(load, on=other_cores).events
        before = usage(process.pid)
        load.events = int(PER_SECOND * size.seconds)
        measured = run_load(load, on=other_cores)
        used = usage(process.pid).since(before)
        wait_until(lambda: _stored(rig) == sent + load.events or sleep(0.2), DRAIN_TIMEOUT_S, "the delivery of all")
    what = f"{PER_SECOND}/s one by one, and delivered"
    values.add(f"{what}: CPU of an event", "ms", peer, 1000 * used.cpu_s / measured.events)
    values.add(f"{what}: the producer's call, median", "ms", peer, measured.p50_ms)
    values.add(f"{what}: the producer's call, 99th percentile", "ms", peer, measured.p99_ms)
    values.add(f"{what}: the producer's call, longest", "ms", peer, measured.max_ms)


def _ingest(peer: Peer, load: Load, outbox: Path | None = None) -> float:
    """Return the events per second of an unpaced load. Nothing listens where they would be delivered."""
    with open_rig() as rig:
        load.address, load.form = str(rig.http_port), peer.form
        if peer.label == SIDECAR and outbox is not None:
            rig.outbox.write_bytes(outbox.read_bytes())
            os.sync()  # or the copy would be written while the commits are measured
        process = _start(rig, peer, free_port())
        measured = run_load(load)
        if peer.label == SIDECAR:
            accepted = rig.status()["accepted"]
            assert accepted == load.events, f"{load.events} events were answered and {accepted} accepted"
        assert process.poll() is None, rig.log()[-800:]
    return measured.per_second


def _batches(peer: Peer, size: _Size, values: Values, _users: Path) -> None:
    load = Load(address="", batch=BATCH, connections=BATCH_CONNECTIONS, events=size.batches)
    values.add(BATCHES, "events/s", peer, _ingest(peer, load))


def _singles(peer: Peer, size: _Size, values: Values, users: Path) -> None:
    """Send an event of each remembered user in turn, so that no cache helps."""
    load = Load(address="", connections=SINGLE_CONNECTIONS, events=size.singles, users=size.users)
    values.add(SINGLES, "events/s", peer, _ingest(peer, load, users))


def _errors(peer: Peer, size: _Size, values: Values, _users: Path) -> None:
    """Offer 150/s while the stand-in answers errors with ``Retry-After: 1`` for a while."""
    daemon_cores, other_cores = split_cores()
    offered = int(OFFERED_PER_SECOND * size.offered_s)
    for status in (429, 503):
        with open_rig() as rig:
            start_sink(rig, status, size.error_s)
            _start(rig, peer, rig.sandbox_port, daemon_cores)
            load = Load(address=str(rig.http_port), form=peer.form, rate=OFFERED_PER_SECOND, events=offered)
            run_load(load, on=other_cores)
            with suppress(TimeoutError):  # missing events are one of the figures
                wait_until(lambda: _stored(rig) == offered or sleep(0.2), DRAIN_TIMEOUT_S, "the delivery of all")
            sleep(SETTLED_S)  # for what would come twice
            arrivals = msgspec.json.decode(rig.ask(rig.sandbox_port, "/arrivals")[1], type=list[Arrival])
        result = outcome(arrivals, offered, size.error_s[1])
        what = f"{OFFERED_PER_SECOND}/s for {size.offered_s:g} s, {status} from second {size.error_s[0]:g} to {size.error_s[1]:g}"
        values.add(f"{what}: {ALL_THERE}", "s", peer, result.all_there_s)
        values.add(f"{what}: busiest second", "requests", peer, result.busiest_second)
        values.add(f"{what}: delivered twice", "events", peer, result.twice)
        values.add(f"{what}: not delivered", "events", peer, result.lost)


def _starts(peer: Peer, size: _Size, values: Values, _users: Path) -> None:
    """Start with the events of the starts before, and send an event as soon as the port is open."""
    with open_rig() as rig:
        for number in range(size.starts):
            began_s = time.perf_counter()
            process = peer.launch(rig, free_port(), None)
            wait_until(lambda: _listens(rig), START_TIMEOUT_S, f"the start of {peer.label}")
            listening_s, cpu_s = time.perf_counter() - began_s, usage(process.pid).cpu_s
            with connect(str(rig.http_port)) as connection:
                connection.settimeout(START_TIMEOUT_S)
                connection.sendall(request(Load(address="", form=peer.form), number))
                answer = connection.recv(65536)
            assert b" 200 OK" in answer, answer
            values.add("start to listening", "s", peer, listening_s)
            values.add("start to listening: CPU", "s", peer, cpu_s)
            values.add("start to the answer to an event", "s", peer, time.perf_counter() - began_s)
            rig.stop(process)


def _listens(rig: Rig) -> bool:
    try:
        connect(str(rig.http_port)).close()
    except OSError:
        return False
    return True


ROWS = {"pace": _paced, "batches": _batches, "single events": _singles, "errors": _errors, "starts": _starts}


def add_figures(results: Results, values: Values) -> None:
    """Add two figures for each row: px-sidecar with the collector as its limit, and the collector."""
    for (what, unit), measured in values.rows.items():
        more: dict[str, Any] = {"limit": median(measured[COLLECTOR]), "of": f"{COLLECTOR}, file_storage with fsync"}
        if what in LEAST_RATIO:
            more["target"] = LEAST_RATIO[what]
        elif what.endswith(ALL_THERE):
            more = {"target": MOST_AFTER_ERROR_S, "bound": "most"}  # of the time itself, not of a ratio
        results.add(NAME, f"{SIDECAR}: {what}", measured[SIDECAR], unit, **more)
        results.add(NAME, f"{COLLECTOR}: {what}", measured[COLLECTOR], unit)


if __name__ == "__main__":
    serve_sink(*json.loads(sys.argv[1]))
