"""Alternatives doing the same work: which events are lost, what blocks the app, how fast a backlog drains.

Two scenarios for each, with PX answering in 100 ms:

*outage*  The app calls at a steady rate; then PX is unavailable (connections refused) for a minute.
*crash*   The app calls at a steady rate and is killed with ``kill -9``, the sidecar with it; then it is started again and
          sends the events on disk.

*Lost* are events whose call had returned and that neither arrived nor are still on disk. The SDK speaks Segment's protocol,
not PX's, so it sends to a stand-in for Segment that is unavailable for the same time.
"""

import json
import os
import signal
import subprocess
from collections.abc import Callable
from statistics import median
from time import sleep

import msgspec

from benchmarks.apps import Work, left_on_disk
from benchmarks.results import Results, percentile
from benchmarks.rig import Rig, free_port, open_rig, wait_until

__all__ = ["run"]

Report = Callable[[str], None]
NAME = "alternatives"
LABELS = {
    "sdk": "Segment SDK, sending straight",
    "naive": "a table and a loop with httpx",
    "persist_queue": "persist-queue and the same loop",
    "sidecar": "px-sidecar",
}
PER_SECOND = 50
BEFORE_S = 2.0


class _Scenario:
    """One alternative, with PX or the stand-in for Segment."""

    def __init__(self, rig: Rig, kind: str) -> None:
        self.rig, self.kind = rig, kind
        self.port = free_port() if kind == "sdk" else rig.sandbox_port
        self.daemon: subprocess.Popen[bytes] | None = None
        self.px = self.start_px()
        if kind == "sidecar":
            rig.configure()
            self.daemon = rig.start_daemon()

    def start_px(self) -> subprocess.Popen[bytes]:
        if self.kind != "sdk":
            return self.rig.start_sandbox("--latency", "100ms", "--state", str(self.rig.folder / "px.log"))
        process = self.rig.start(
            ["-m", "benchmarks.apps", "segment", str(self.port), str(self.rig.folder / "segment.log")]
        )
        wait_until(lambda: self._segment_answers(), 20, "the start of the stand-in for Segment")
        return process

    def _segment_answers(self) -> bool:
        try:
            return self.rig.ask(self.port, "/")[0] == 200
        except OSError:
            return False

    def start_app(self, events: int, timeout_s: float) -> subprocess.Popen[bytes]:
        work = Work(
            url=f"http://127.0.0.1:{self.port}", unix=str(self.rig.unix), folder=str(self.rig.folder),
            per_second=PER_SECOND, events=events, prefix=os.urandom(4).hex(), timeout_s=timeout_s,
        )  # fmt: skip
        return self.rig.start(["-m", "benchmarks.apps", self.kind, msgspec.json.encode(work).decode()])

    def calls(self) -> dict[str, float]:
        """Return the events whose call has returned, with the milliseconds of the call."""
        lines = (self.rig.folder / "called.ndjson").read_text().splitlines()
        return dict(json.loads(line) for line in lines)

    def arrived(self) -> list[str]:
        if self.kind == "sdk":
            path = self.rig.folder / "segment.log"
            return path.read_text().split() if path.exists() else []
        return [str(entry.messageId) for entry in self.rig.arrivals()]

    def lost(self) -> tuple[int, int, int]:
        """Return the numbers of events lost, arrived twice, and still on disk."""
        arrived, on_disk = self.arrived(), left_on_disk(self.kind, str(self.rig.folder))
        lost = self.calls().keys() - set(arrived) - on_disk
        return len(lost), len(arrived) - len(set(arrived)), len(on_disk)

    def exit_wait_s(self) -> float:
        """Return how many seconds the app waited at its exit; queues on disk do not make it wait."""
        path = self.rig.folder / "leaving"
        return float(path.read_text()) if path.exists() else 0.0

    def drained(self) -> bool:
        return self.daemon is None or self.rig.status()["pending"] == 0


def run(results: Results, report: Report, quick: bool) -> None:
    """Run both scenarios for each alternative."""
    for kind in LABELS:
        _outage(results, report, kind, away_s=3 if quick else 60)
        _crash(results, report, kind, seconds=1 if quick else 5)


def _outage(results: Results, report: Report, kind: str, away_s: float) -> None:
    report(f"{LABELS[kind]}: PX is away for {away_s:g} s")
    events = int(PER_SECOND * (BEFORE_S + away_s / 3))
    with open_rig() as rig:
        scenario = _Scenario(rig, kind)
        app = scenario.start_app(events, timeout_s=BEFORE_S + away_s + 20)
        sleep(BEFORE_S)
        rig.stop(scenario.px, signal.SIGKILL)
        sleep(away_s)
        scenario.px = scenario.start_px()
        app.wait(300)
        wait_until(scenario.drained, 300, "an empty backlog")
        took_ms = list(scenario.calls().values())
        lost, repeated, on_disk = scenario.lost()
        exit_wait_s = scenario.exit_wait_s()
    assert len(took_ms) == events, f"{len(took_ms)} of {events} calls returned: {LABELS[kind]}"
    label = LABELS[kind]
    note = f"of {events:,}" + (f"; {on_disk:,} still on disk {20 + BEFORE_S:g} s later" if on_disk else "")
    results.add(NAME, f"{label}: lost in an outage of {away_s:g} s", lost, "events", note=note)
    results.add(NAME, f"{label}: arrived twice, outage", repeated, "events")
    results.add(NAME, f"{label}: a call of the app, median", median(took_ms), "ms")
    results.add(NAME, f"{label}: a call of the app, 99th percentile", percentile(took_ms, 0.99), "ms")
    results.add(NAME, f"{label}: the app's exit during the outage waits", exit_wait_s, "s")


def _crash(results: Results, report: Report, kind: str, seconds: float) -> None:
    report(f"{LABELS[kind]}: crash")
    with open_rig() as rig:
        scenario = _Scenario(rig, kind)
        app = scenario.start_app(100_000, timeout_s=0)
        wait_until(lambda: (rig.folder / "called.ndjson").exists(), 20, "the app's first call")
        sleep(seconds)
        rig.stop(app, signal.SIGKILL)
        before = len(scenario.arrived())
        if scenario.daemon is not None:
            rig.stop(scenario.daemon, signal.SIGKILL)
            scenario.daemon = rig.start_daemon()
        if kind in ("naive", "persist_queue"):
            scenario.start_app(0, timeout_s=seconds).wait(60)
        wait_until(scenario.drained, 60, "an empty backlog")
        sleep(0.5)
        lost, repeated, on_disk = scenario.lost()
        calls = len(scenario.calls())
    note = f"of {calls:,}; {before:,} had arrived before the crash, {on_disk:,} are still on disk {seconds:g} s later"
    results.add(NAME, f"{LABELS[kind]}: lost in a crash", lost, "events", note=note)
    results.add(NAME, f"{LABELS[kind]}: arrived twice, crash", repeated, "events")
    results.add(NAME, f"{LABELS[kind]}: reached PX while the app made {PER_SECOND} calls/s", before / seconds, "/s")
