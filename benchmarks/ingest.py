"""How fast events become durable: each interface next to its limit, alternately and several times.

Daemon, load and limits are separate processes. Nothing listens at PX while events come in, because delivery would add the
same small load everywhere; one figure shows batches during delivery. Batches may use all cores: the daemon's second
thread is its store, as in the limit. For single events the daemon, and the server that stores nothing, run on the first
core and the load on the others.
"""

from collections.abc import Callable
from typing import Any

from benchmarks.limits import run_limit
from benchmarks.load import Load, Measured, run_load
from benchmarks.results import Results
from benchmarks.rig import Rig, cores, free_port, open_rig, split_cores, wait_until

__all__ = ["run"]

Report = Callable[[str], None]
NAME = "ingest"
BATCH, BATCH_CONNECTIONS, SINGLE_CONNECTIONS = 100, 8, 64


class _Size:
    """How much is sent; ``--quick`` only tests the benchmark."""

    def __init__(self, quick: bool) -> None:
        self.repeats = 1 if quick else 3
        self.batches = 5_000 if quick else 200_000
        self.singles = 1_000 if quick else 50_000
        self.alone = 100 if quick else 2_000
        self.history = 5_000 if quick else 1_000_000


def run(results: Results, report: Report, quick: bool) -> None:
    """Measure all interfaces."""
    size = _Size(quick)
    for durability in ("disk", "process"):
        for history in (0, size.history):
            _batches(results, report, size, durability, history)
    _beside_delivery(results, report, size)
    _singles(results, report, size)
    _one_at_a_time(results, report, size)


def _reset_outbox(rig: Rig, history: int, master: str, **configure: Any) -> None:
    """Prepare an outbox with ``history`` delivered events, and the configuration, without a daemon."""
    rig.delete_outbox()
    if history:
        rig.outbox.write_bytes((rig.folder / master).read_bytes())
    rig.configure(px_port=configure.pop("px_port", None) or free_port(), **configure)


def _through_daemon(rig: Rig, load: Load, on: set[int] | None = None, load_on: set[int] | None = None) -> Measured:
    """Start the daemon, send, check the number of accepted events, stop it."""
    daemon = rig.start_daemon(on=on)
    before = rig.status()["accepted"]
    measured = run_load(load, on=load_on)
    accepted = rig.status()["accepted"] - before
    rig.stop(daemon)
    assert accepted == load.events, f"{load.events} events were answered and {accepted} accepted"
    return measured


def _batches(results: Results, report: Report, size: _Size, durability: str, history: int) -> None:
    past = f"a history of {history:,} ids" if history else "an empty history"
    report(f"batches of {BATCH}, {durability}, {past}")
    tcp: list[float] = []
    ndjson: list[float] = []
    limit: list[float] = []
    with open_rig() as rig:
        if history:
            run_limit("filled", str(rig.folder / "master.db"), 0, history, 0)
        transports = ((tcp, str(rig.http_port), "http"), (ndjson, str(rig.unix), "ndjson"))
        for _ in range(size.repeats):
            _reset_outbox(rig, history, "master.db")
            limit.append(run_limit("group_commit", str(rig.outbox), size.batches, BATCH, BATCH_CONNECTIONS, durability))
            for rates, address, form in transports:
                _reset_outbox(rig, history, "master.db", outbox=f'durability = "{durability}"\nmax_bytes = "64GiB"')
                load = Load(address=address, form=form, batch=BATCH, connections=BATCH_CONNECTIONS, events=size.batches)
                rates.append(_through_daemon(rig, load).per_second)
    of = "the same rows by Outbox.accept, without HTTP and JSON"
    targeted = {"target": 0.8} if durability == "disk" else {}
    what = f"batches of {BATCH}, {durability}, {past}"
    limited: dict[str, Any] = {"limit": sorted(limit)[len(limit) // 2], "of": of}
    results.add(NAME, f"HTTP {what}", tcp, "events/s", **limited, **targeted)
    results.add(NAME, f"NDJSON {what}", ndjson, "events/s", **limited)


def _beside_delivery(results: Results, report: Report, size: _Size) -> None:
    report("batches, with delivery beside them")
    rates: list[float] = []
    for _ in range(size.repeats):
        with open_rig() as rig:
            _reset_outbox(rig, 0, "", px_port=rig.sandbox_port, outbox='max_bytes = "64GiB"')
            rig.start_sandbox("--latency", "100ms")
            load = Load(address=str(rig.http_port), batch=BATCH, connections=BATCH_CONNECTIONS, events=size.batches)
            rates.append(_through_daemon(rig, load).per_second)
    results.add(NAME, f"HTTP batches of {BATCH}, disk, while delivering 190/s", rates, "events/s")


def _singles(results: Results, report: Report, size: _Size) -> None:
    """Measure 64 connections with one event per request."""
    daemon_cores, other_cores = split_cores()
    rates: dict[str, list[float]] = {}
    spreads: dict[str, list[float]] = {}
    busy: list[float] = []

    def measure(name: str, measured: Measured) -> None:
        rates.setdefault(name, []).append(measured.per_second)
        spreads[name] = measured.spread_ms

    for _ in range(size.repeats):
        report(f"single events, {SINGLE_CONNECTIONS} connections")
        with open_rig() as rig:
            for parse_events in (False, True):
                port = free_port()
                server = rig.start(
                    ["-m", "benchmarks.limits", "serve_nothing", f"[{port}, {int(parse_events)}]"], on=daemon_cores
                )
                wait_until(lambda port=port: _listens(rig, port), 20, "the server that stores nothing")
                load = Load(address=str(port), connections=SINGLE_CONNECTIONS, events=size.singles)
                measured = run_load(load, on=other_cores)
                measure("judged" if parse_events else "nothing", measured)
                busy.append(measured.cpu_s / measured.seconds)
                rig.stop(server)
            for transport, durability, address, form in (
                ("HTTP", "disk", str(rig.http_port), "http"),
                ("HTTP", "process", str(rig.http_port), "http"),
                ("HTTP on the Unix socket", "disk", str(rig.unix), "http"),
                ("NDJSON", "disk", str(rig.unix), "ndjson"),
            ):
                _reset_outbox(rig, 0, "", outbox=f'durability = "{durability}"')
                load = Load(address=address, form=form, connections=SINGLE_CONNECTIONS, events=size.singles)
                measure(f"{transport}, {durability}", _through_daemon(rig, load, daemon_cores, other_cores))
            _reset_outbox(rig, 0, "")
            load = Load(address=str(rig.http_port), connections=SINGLE_CONNECTIONS, events=size.singles)
            measure("HTTP, both cores", _through_daemon(rig, load))
            _reset_outbox(rig, 0, "")
            load = Load(address=str(rig.unix), form="ndjson", ahead=200, events=size.singles)
            measure("ahead", _through_daemon(rig, load, daemon_cores, other_cores))
    baseline = sorted(rates["nothing"])[len(rates["nothing"]) // 2]
    where = {True: "daemon and load on a core each", False: "one core for all processes"}[len(cores()) > 1]
    limited: dict[str, Any] = {"limit": baseline, "of": "a server on the same parser that stores nothing"}
    for name, values in rates.items():
        if ", " in name:
            targeted = {"target": 0.4} if name == "HTTP, disk" else {}
            label = f"single events, {SINGLE_CONNECTIONS} connections, {name}"
            results.add(NAME, label, values, "events/s", **limited, **targeted, note=where)
    results.add(NAME, "single events, NDJSON, 1 connection, 200 lines ahead", rates["ahead"], "events/s", **limited)
    results.add(
        NAME, "the server that judges events and stores nothing", rates["judged"], "events/s", **limited, note=where
    )
    results.add(NAME, "processor share of the load generator, at that server", busy, "of 1 core")
    results.series["ingest_latency_ms"] = spreads


def _listens(rig: Rig, port: int) -> bool:
    try:
        return rig.ask(port, "/")[0] == 200
    except OSError:
        return False


def _one_at_a_time(results: Results, report: Report, size: _Size) -> None:
    """Measure one connection with one event at a time: the median answer next to one bare commit."""
    report("one event, one connection")
    p50: dict[str, list[float]] = {}
    p99: list[float] = []
    bare: list[float] = []
    spreads: dict[str, list[float]] = {}
    with open_rig() as rig:
        for _ in range(size.repeats):
            rig.delete_outbox()
            bare.append(run_limit("bare_commits", str(rig.outbox), size.alone))
            for transport, address, form in (
                ("HTTP", str(rig.http_port), "http"),
                ("HTTP on the Unix socket", str(rig.unix), "http"),
                ("NDJSON", str(rig.unix), "ndjson"),
            ):
                _reset_outbox(rig, 0, "")
                measured = _through_daemon(rig, Load(address=address, form=form, events=size.alone))
                p50.setdefault(transport, []).append(measured.p50_ms)
                spreads[transport] = measured.spread_ms
                if transport == "HTTP":
                    p99.append(measured.p99_ms)
    limited: dict[str, Any] = {"limit": sorted(bare)[len(bare) // 2], "of": "one bare fsynced SQLite commit"}
    for transport, values in p50.items():
        targeted = {"target": 3.0, "bound": "most"} if transport == "HTTP" else {}
        results.add(NAME, f"one event, one connection, {transport}: median answer", values, "ms", **limited, **targeted)
    results.add(NAME, "one event, one connection, HTTP: 99th percentile", p99, "ms")
    results.series["answer_latency_ms"] = spreads
