"""Hours at and above the ceiling with faults: do memory, file, WAL, descriptors and latency stay flat?

    python tests/machines/soak/soak.py --hours 2 --out FOLDER     run, judge, plot; exit 0 if everything passes
    python tests/machines/soak/soak.py --minutes 1 --out FOLDER   a short run (with wider bounds)
    python tests/machines/soak/soak.py --judge FOLDER             judge and plot a run again, even one that was cut off

The sandbox and the daemon are real processes; this process runs the apps. It writes ``FOLDER/run.ndjson`` line by line
(parameters, a sample every few seconds, the counts at the end), ``FOLDER/soak.png``, and the output of the processes to
``FOLDER/processes.log``. SIGTERM or SIGINT ends a run early, with its counts.

Load: 1.5 times the ceiling for a while, then half of it until the backlog has drained, so that the daemon delivers at the
ceiling nearly all the time while backlogs form and drain.

Faults come in cycles of ten minutes (of a sixth of a short run). Always: 40 to 100 ms latency, 1 % answers 503, 0.2 % lost
answers, some requests never answered. In a cycle: ten users fail for its first half (in every other cycle they are refused
and become dead); then an outage of half a minute, in turn refusing, answering 503 or hanging; later, in every other cycle,
a moment of 429. History, ids and dead letters are kept for half a cycle, so that all pruning reaches its steady state.
"""

import argparse
import importlib.util
import json
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[2])]

from soak_judge import judge, read_run  # noqa: E402
from soak_load import Expected, Ledger, Traffic  # noqa: E402

from benchmarks.rig import Rig, open_rig  # noqa: E402
from sidecar.control.client import DaemonClient  # noqa: E402

PER_SECOND = 190
HIGH, LOW = 1.5, 0.5
DRAINED_BELOW = 4 * PER_SECOND  # failing users keep some hundreds pending at any load
BURST_SHARE = 0.1  # of a cycle
CYCLE_S, SHORTEST_CYCLE_S = 600.0, 10.0
CYCLES_AT_LEAST = 6
SAMPLE_S = 5.0
SHORT_S = 1_200.0  # shorter runs sample more often and get wider bounds
SHORT_SLACK = 8.0
DRAIN_S = 300.0
DEAD_OVERLAP_MS = 120_000  # a refused event is on probation before it is dead, in an outage for long
MB = 1e6

OUTAGES = ("refuse", "503", "hang")


def faults_at(t_s: float, cycle_s: float) -> dict[str, Any]:
    """Return the faults in force at ``t_s``, as ``POST /sandbox/faults`` expects them."""
    cycle, at = divmod(t_s / cycle_s, 1)
    cycle = int(cycle)
    faults: dict[str, Any] = {
        "latency_s": 0.04,
        "jitter_s": 0.06,
        "error_rate": 0.01,
        "error_status": 503,
        "dropped_answers": 0.002,
        "hang": 0.0002,
        "fail_users": [f"u0{cycle % 10}?0"] if at < 0.5 else [],
        "fail_status": (503, 400)[cycle % 2],
        "outages": [],
        "retry_after": "",
    }
    if 0.5 <= at < 0.55:
        faults["outages"] = [{"how": OUTAGES[cycle % len(OUTAGES)]}]
    elif 0.7 <= at < 0.7 + 1 / 300 and cycle % 2 == 0:
        faults |= {"error_rate": 0.02, "error_status": 429, "retry_after": "seconds:1"}
    return faults


class Soak:
    """One run in a rig; its records go to ``out``."""

    def __init__(self, rig: Rig, out: Path, duration_s: float, seed: int, stopping: threading.Event) -> None:
        self.rig = rig
        self.duration_s = duration_s
        self.cycle_s = max(SHORTEST_CYCLE_S, min(CYCLE_S, duration_s / CYCLES_AT_LEAST))
        self.sample_s = SAMPLE_S if duration_s >= SHORT_S else max(0.5, duration_s / 60)
        self.keep_s = self.cycle_s / 2
        self.traffic = Traffic(
            address=f"127.0.0.1:{rig.http_port}",
            unix=str(rig.unix),
            seed=seed,
            pace=HIGH * PER_SECOND,
            repeat_within_s=self.keep_s / 3,
        )
        self.dead = bytearray()
        self._stopping = stopping
        self._dead_since_ms = 0
        self._burst_until_s: float | None = 0.0
        self._faults: dict[str, Any] = {}
        self._out = out
        self._last: tuple[float, int] | None = None

    def run(self) -> dict[str, Any]:
        keep = f"{self.keep_s:g}s"
        self.rig.configure(
            outbox=f'keep_delivered = "{keep}"\nkeep_ids = "{keep}"\nkeep_dead = "{keep}"',
            deliver=f"per_second = {PER_SECOND}\nper_day = 1_000_000_000\ntimeout = '10s'\nretry_max = '20s'\n"
            "[identity]\nmax_users = 1000",
        )
        # Without limits: on a busy host the sandbox reads late and sees more than 200 requests in a second; unintended
        # 429s would then lower the pace for most of the run. Its report has the largest second.
        self.rig.start_sandbox("--per-second", "0", "--per-day", "0")
        daemon = self.rig.start_daemon()
        self._write("run", seconds=self.duration_s, cycle_s=self.cycle_s, per_second=PER_SECOND, keep=keep)
        self._started_s = time.monotonic()
        self.traffic.start()
        next_s, record_dead_s = self.sample_s, self.cycle_s / 10
        while (now_s := self._now_s()) < self.duration_s and not (self._stopping.is_set() or self.traffic.errors):
            self._set_faults(faults_at(now_s, self.cycle_s))
            if now_s >= next_s:
                next_s += self.sample_s
                self._sample(daemon.pid, now_s)
            if now_s >= record_dead_s:
                record_dead_s += self.cycle_s / 10
                self._record_dead()
            time.sleep(0.2)
        self.traffic.stop()
        self._set_faults({})
        status = self._drained()
        self._record_dead()
        counts = self._count(status)
        self.rig.stop(daemon)
        return counts

    def _now_s(self) -> float:
        return time.monotonic() - self._started_s

    def _write(self, what: str, **fields: Any) -> None:
        with self._out.open("a") as out:
            out.write(json.dumps({"what": what, **fields}) + "\n")

    def _set_faults(self, faults: dict[str, Any]) -> None:
        if faults == self._faults:
            return
        self._faults = faults
        if faults:
            self.rig.faults(**faults)
        else:
            self.rig.ask(self.rig.sandbox_port, "/sandbox/faults", "DELETE")

    def _sample(self, pid: int, now_s: float) -> None:
        status = self.rig.status()
        self._adjust_pace(now_s, status["pending"])
        took_ms = sorted(1_000 * took_s for took_s in self.traffic.ledger.latencies_s())
        last_s, last_delivered = self._last or (0.0, 0)
        self._last = (now_s, status["delivered"])
        process = _process(pid)
        self._write(
            "sample",
            t_s=round(now_s, 2),
            rss_mb=process["rss_mb"],
            descriptors=process["descriptors"],
            threads=process["threads"],
            cpu_s=process["cpu_s"],
            file_mb=_size_mb(self.rig.outbox),
            wal_mb=_size_mb(self.rig.outbox.with_name("outbox.db-wal")),
            p50_ms=_percentile(took_ms, 0.5),
            p99_ms=_percentile(took_ms, 0.99),
            delivered_per_s=round((status["delivered"] - last_delivered) / (now_s - last_s), 2),
            **{
                name: status[name]
                for name in ("accepted", "pending", "delivered", "dropped", "dead", "repeated", "ambiguous", "retries")
            },
            **{name: status[name] for name in ("state", "pace", "in_flight", "lanes")},
            load_per_s=self.traffic.pace,
            failures=self.traffic.ledger.failures,
        )

    def _adjust_pace(self, now_s: float, pending: int) -> None:
        """Send above the ceiling for a while, then below it until the backlog has drained, repeatedly."""
        if self._burst_until_s is None:
            if pending < DRAINED_BELOW:
                self._burst_until_s = now_s + self.cycle_s * BURST_SHARE
                self.traffic.pace = HIGH * PER_SECOND
        elif now_s >= self._burst_until_s and pending >= DRAINED_BELOW:
            self._burst_until_s = None
            self.traffic.pace = LOW * PER_SECOND

    def _record_dead(self) -> None:
        """Record dead events before retention deletes them."""
        client = DaemonClient(str(self.rig.folder / "control.sock"))
        since_ms, self._dead_since_ms = self._dead_since_ms, int(time.time() * 1000) - DEAD_OVERLAP_MS
        self._grow_dead(len(self.traffic.ledger.expectations))
        after: int | None = 0
        while after is not None:
            page = client.get("/v1/dead", {"since_ms": since_ms, "after": after})
            after = page["next"]
            for letter in page["letters"]:
                number = number_of(letter["event"]["messageId"])
                self._grow_dead(number + 1)  # it may be newer than the ledger read above
                self.dead[number] = 1

    def _grow_dead(self, events: int) -> None:
        self.dead.extend(bytes(max(0, events - len(self.dead))))

    def _drained(self) -> dict[str, Any]:
        """Return the status when nothing is pending or after ``DRAIN_S``; record dead events in the meantime."""
        deadline_s = time.monotonic() + DRAIN_S
        while (status := self.rig.status())["pending"] and time.monotonic() < deadline_s:
            self._record_dead()
            time.sleep(0.5)
        return status

    def _count(self, status: dict[str, Any]) -> dict[str, Any]:
        arrived = bytearray(len(self.traffic.ledger.expectations))
        with _event_lines(self.rig) as lines:
            for line in lines:
                number = number_of(json.loads(line)["eventId"])
                arrived[number] = min(255, arrived[number] + 1)
        counts = {
            "status": {
                name: status[name]
                for name in (
                    "accepted", "pending", "delivered", "dropped", "dead", "repeated", "ambiguous", "retries",
                    "dropped_by_reason", "dead_by_reason",
                )
            },
            "sandbox": {
                name: value
                for name, value in self.rig.report().items()
                if name in ("requests", "by_status", "stored", "largest_second", "rate_per_s")
            },
            **compare_events(self.traffic.ledger, self.dead, arrived),
        }  # fmt: skip
        self._write("account", **counts)
        return counts


def compare_events(ledger: Ledger, dead: bytearray, arrived: bytearray) -> dict[str, Any]:
    """Compare ledger, dead events and arrivals event by event; return the counts."""
    lost: list[int] = []
    unexpected: list[int] = []
    for number, (expected, is_dead, times) in enumerate(zip(ledger.expectations, dead, arrived, strict=True)):
        if (expected == Expected.SENT and not times and not is_dead) or (expected == Expected.BAD and not is_dead):
            lost.append(number)
        elif times and (expected in (Expected.DROPPED, Expected.BAD) or is_dead):
            unexpected.append(number)
    return {
        "own": {
            "accepted": ledger.accepted(),
            "unanswered": ledger.expectations.count(Expected.UNKNOWN),
            "repeats": ledger.repeats,
            "failures": ledger.failures,
            "last_failure": ledger.last_failure,
        },
        "distinct": len(arrived) - arrived.count(0),
        "duplicates": sum(times - 1 for times in arrived if times > 1),
        "died": dead.count(1),
        "lost": len(lost),
        "lost_ids": lost[:20],
        "unexpected": len(unexpected),
        "unexpected_ids": unexpected[:20],
    }


@contextmanager
def _event_lines(rig: Rig) -> Iterator[Iterator[bytes]]:
    """Yield the events stored at the sandbox line by line: together they may be a gigabyte."""
    import urllib.request

    with urllib.request.urlopen(f"http://127.0.0.1:{rig.sandbox_port}/sandbox/events", timeout=120) as answer:
        yield iter(answer)


def number_of(message_id: str) -> int:
    return int(message_id.removeprefix("soak-"))


def _percentile(ordered: list[float], share: float) -> float | None:
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 2) if ordered else None


def _size_mb(path: Path) -> float:
    try:
        return round(path.stat().st_size / MB, 3)
    except FileNotFoundError:
        return 0.0


def _process(pid: int) -> dict[str, float]:
    folder = Path(f"/proc/{pid}")
    pairs = (line.partition(":") for line in (folder / "status").read_text().splitlines())
    status = {name: value.strip() for name, _, value in pairs}
    return {
        "rss_mb": round(int(status["VmRSS"].split()[0]) * 1024 / MB, 2),
        "threads": int(status["Threads"]),
        "descriptors": sum(1 for _ in (folder / "fd").iterdir()),
        "cpu_s": round(time.clock_gettime(~pid << 3 | 2), 2),
    }


def soak(out: Path, duration_s: float, seed: int, stopping: threading.Event) -> None:
    """Run for ``duration_s`` or until ``stopping`` is set; write everything to ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "run.ndjson").unlink(missing_ok=True)
    with open_rig() as rig:
        try:
            Soak(rig, out / "run.ndjson", duration_s, seed, stopping).run()
        finally:
            (out / "processes.log").write_text(rig.log())


def print_verdict(out: Path) -> bool:
    """Judge the run in ``out`` and print the verdict; return whether it passes."""
    run, samples, counts = read_run(out / "run.ndjson")
    short = run["seconds"] < SHORT_S
    lines, passed = judge(samples, counts, slack=SHORT_SLACK if short else 1.0)
    if counts is not None:
        status = counts["status"]
        figures = {name: status[name] for name in ("accepted", "delivered", "dropped", "dead", "repeated", "ambiguous")}
        figures |= {name: counts[name] for name in ("duplicates", "lost")}
        lines.append(" ".join(f"{name}={value}" for name, value in figures.items()))
    print("\n".join(lines), flush=True)
    return passed


def plot(out: Path) -> None:
    """Plot the run in ``out``; without matplotlib print how to plot it later, so that no long run is lost."""
    if importlib.util.find_spec("matplotlib") is None:
        print(
            f"Not plotted: matplotlib is not installed; run `pip install '.[bench]'`, then --judge {out}.",
            file=sys.stderr,
        )
        return
    from soak_plot import draw

    _, samples, _ = read_run(out / "run.ndjson")
    if samples:
        draw(samples, out / "soak.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=0.0)
    parser.add_argument("--minutes", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("soak-out"))
    parser.add_argument("--judge", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    if options.judge is None:
        duration_s = (options.hours * 60 + options.minutes or 1) * 60
        stopping = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stopping.set())
        soak(options.out, duration_s, options.seed, stopping)
    out = options.judge or options.out
    passed = print_verdict(out)
    plot(out)
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
