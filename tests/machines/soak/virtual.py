"""The soak in virtual time: a day in minutes, the whole daemon without sockets and threads, judged like the real soak.

    python tests/machines/soak/virtual.py                   24 hours at 5 events per second, 14 minutes
    python tests/machines/soak/virtual.py --hours 2         a short run
    python tests/machines/soak/virtual.py --per-second 190  the real ceiling: a day is 16 million events and takes hours

Receive (the routes), outbox (a real file), mapping and deliver are unchanged; PX is a function that fails as
``soak.faults_at`` defines, with a cycle of an hour (of a sixth of a short run). It judges allocated memory blocks
(``sys.getallocatedblocks`` after a collection, which is exact, unlike resident memory), tasks, the file and the WAL.
Descriptors, latencies and threads need real time: ``soak.py`` judges them.
"""

import argparse
import fnmatch
import gc
import json
import logging
import sys
import tempfile
from pathlib import Path
from random import Random
from time import monotonic
from typing import Any

import msgspec
import trio
from trio.testing import MockClock

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[2])]

from soak import HIGH, LOW, compare_events, faults_at, number_of  # noqa: E402
from soak_judge import Bound, check_counts, trends  # noqa: E402
from soak_load import Expected, Ledger, make  # noqa: E402

from sidecar.clock import VirtualClock  # noqa: E402
from sidecar.config import load_text  # noqa: E402
from sidecar.control.pages import status_of  # noqa: E402
from sidecar.daemon import Seams, build, serve  # noqa: E402
from sidecar.http import Request  # noqa: E402
from sidecar.outbox import InlineRunner, Store  # noqa: E402
from sidecar.outbox.dead import DeadLetterFilter  # noqa: E402
from sidecar.px import AT_ONCE, Departure, NotSent, PxAnswer, Reply, Unknown  # noqa: E402
from sidecar.px import PxRequest as PxRequest  # noqa: E402
from sidecar.receive import ClientMemory, Routes  # noqa: E402

CYCLE_S = 3_600.0
CYCLES_AT_LEAST = 6
BATCH = 20
REPEATS = 0.1  # of the batches
SAMPLES_MIN, SAMPLES_MAX, SAMPLES_PER_HOUR = 32, 144, 6
DRAIN_S = 2 * 3_600.0
TIMEOUT_S = 10.0
JSON = "application/json"

BOUNDS = {
    "blocks": Bound(0.04, 4_000, ""),
    "tasks": Bound(0.0, 2.0, ""),
    "file_mb": Bound(0.10, 0.3, "MB"),
    "wal_mb": Bound(0.10, 0.3, "MB"),
}


class Px:
    """A network to a PX whose faults depend on the time. It stores one byte per arrived event."""

    def __init__(self, rng: Random, cycle_s: float) -> None:
        self.cycle_s = cycle_s
        self.arrived = bytearray()
        self.lanes = 0
        self.healthy = False
        self._rng = rng
        self._started_s = trio.current_time()

    def lane(self) -> "Px":
        self.lanes += 1
        return self

    async def aclose(self) -> None:
        """Do nothing: there is no connection."""

    async def send(self, request: PxRequest, departure: Departure = AT_ONCE) -> Reply:
        departure.left()
        faults = faults_at(trio.current_time() - self._started_s, self.cycle_s) if not self.healthy else {}
        body = json.loads(request.body)
        refusal = self._refusal(faults, body["identifyId"])
        if isinstance(refusal, Unknown):
            await trio.sleep(TIMEOUT_S)
            return refusal
        lost = False
        if refusal is None:
            number = number_of(body["eventId"])
            self.arrived.extend(bytes(max(0, number + 1 - len(self.arrived))))
            self.arrived[number] = min(255, self.arrived[number] + 1)
            lost = self._rng.random() < faults.get("dropped_answers", 0)
        await trio.sleep(0.04 + self._rng.random() * 0.06)
        if lost:
            return Unknown("the answer was lost")
        return refusal or PxAnswer(201, b"{}", content_type=JSON)

    def _refusal(self, faults: dict[str, Any], user: str) -> Reply | None:
        """Return the fault that prevents the processing of the request, or None."""
        if not faults:
            return None
        for outage in faults["outages"]:
            answers = {"refuse": NotSent("refused"), "503": PxAnswer(503), "hang": Unknown("no answer in time")}
            return answers[outage["how"]]
        if self._rng.random() < faults["hang"]:
            return Unknown("no answer in time")
        if self._rng.random() < faults["error_rate"]:
            after = faults["retry_after"].removeprefix("seconds:") or None
            return PxAnswer(faults["error_status"], b"{}", retry_after=after, content_type=JSON)
        if any(fnmatch.fnmatchcase(user, glob) for glob in faults["fail_users"]):
            return PxAnswer(faults["fail_status"], b"{}", content_type=JSON)
        return None


class VirtualSoak:
    """One run below ``folder``."""

    def __init__(self, folder: Path, hours: float, per_second: float, seed: int) -> None:
        self.length_s, self.per_second = hours * 3_600, per_second
        self.cycle_s = min(CYCLE_S, self.length_s / CYCLES_AT_LEAST)
        self.keep_s = self.cycle_s / 2
        self.rng = Random(seed)
        self.px = Px(Random(seed + 1), self.cycle_s)
        self.ledger = Ledger()
        self.dead = bytearray()
        self.samples: list[dict[str, float]] = []
        self.path = folder / "outbox.db"
        keep = f'"{self.keep_s:g}s"'
        self.daemon = build(
            load_text(
                '[px]\nproperty_key = "AP-XXXXXXXXXX-2"\n'
                f"[outbox]\nkeep_delivered = {keep}\nkeep_ids = {keep}\nkeep_dead = {keep}\n"
                f"[deliver]\nper_second = {per_second}\nper_day = 1_000_000_000\nretry_max = '20s'\n"
                '[identity]\nmax_users = 1000\n[mapping.fields]\neventId = "messageId"\n'
            ),
            Seams(
                store=Store(self.path, durability="process"),
                network=self.px,
                clock=VirtualClock(started_s=trio.current_time()),
                runner=InlineRunner(),
                random=Random(seed + 2),
            ),
        )
        self.routes = Routes(
            self.daemon.parser, self.daemon.outbox, self.daemon.telemetry, {}, ClientMemory(64 * 2**20)
        )

    async def run(self) -> dict[str, Any]:
        """Run to the end; return the counts."""
        stop = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, self.daemon, stop.wait)
            async with trio.open_nursery() as apps:
                apps.start_soon(self._sample)
                await self._send()
                apps.cancel_scope.cancel()
            self.px.healthy = True
            with trio.move_on_after(DRAIN_S):
                while self.daemon.store.pending():
                    await trio.sleep(60)
                    await self._record_dead()
            await self._record_dead()
            status = msgspec.to_builtins(status_of(await self.daemon.state.read()))
            stop.set()
        self.daemon.store.close()
        made = len(self.ledger.expectations)
        self.px.arrived.extend(bytes(made - len(self.px.arrived)))
        return {"status": status, **compare_events(self.ledger, self.dead, self.px.arrived)}

    async def _send(self) -> None:
        """Send above the ceiling for a tenth of a cycle, then below it until the backlog has drained, repeatedly."""
        started_s = trio.current_time()
        burst_until_s, factor = started_s + self.cycle_s / 10, HIGH
        last: tuple[float, dict[str, Any]] | None = None
        while (now_s := trio.current_time()) < started_s + self.length_s:
            drained = self.daemon.store.pending() < 100 + 4 * self.per_second
            if factor == HIGH and now_s >= burst_until_s and not drained:
                factor = LOW
            elif factor == LOW and drained:
                burst_until_s, factor = now_s + self.cycle_s / 10, HIGH
            made = [(number, *make(number, self.rng)) for number in (self.ledger.number() for _ in range(BATCH))]
            events = [event for _, event, _ in made]
            repeats = 0
            if last is not None and now_s - last[0] < self.keep_s / 3 and self.rng.random() < REPEATS:
                events.append(last[1])
                repeats = 1
            await self._post(events)
            self.ledger.answered([(number, expected) for number, _, expected in made], repeats, 0.0)
            last = next(((now_s, event) for _, event, expected in made if expected is Expected.SENT), None)
            await trio.sleep(BATCH / (factor * self.per_second))

    async def _post(self, events: list[dict[str, Any]]) -> None:
        body = json.dumps({"batch": events}).encode()
        response = await self.routes.over_unix(Request("POST", "/v1/batch", "", [], body, "1.1", True))
        if response.status != 200:
            self.ledger.failed(response.body)

    async def _sample(self) -> None:
        samples = max(SAMPLES_MIN, min(SAMPLES_MAX, round(SAMPLES_PER_HOUR * self.length_s / 3_600)))
        every_s = self.length_s / samples
        started_s = trio.current_time()
        for sample in range(1, samples + 1):
            await trio.sleep_until(started_s + sample * every_s)
            await self._record_dead()
            self.ledger.latencies_s()
            gc.collect()
            self.samples.append(
                {
                    "t_s": sample * every_s,
                    "blocks": sys.getallocatedblocks(),
                    "tasks": trio.lowlevel.current_statistics().tasks_living,
                    "file_mb": self.path.stat().st_size / 1e6,
                    "wal_mb": self.path.with_name("outbox.db-wal").stat().st_size / 1e6,
                    "pending": self.daemon.store.pending(),
                }
            )

    async def _record_dead(self) -> None:
        """Record dead events before retention deletes them."""
        self.dead.extend(bytes(len(self.ledger.expectations) - len(self.dead)))
        after: int | None = 0
        while after is not None:
            page = await self.daemon.admin.letters(DeadLetterFilter(), after=after)
            after = page["next"]
            for letter in page["letters"]:
                self.dead[number_of(letter["event"]["messageId"])] = 1


def soak(hours: float, per_second: float, seed: int) -> tuple[list[dict[str, float]], dict[str, Any]]:
    """Return the samples and the counts of a virtual run."""
    logging.getLogger("sidecar").setLevel(logging.ERROR)  # its warnings are the injected faults
    with tempfile.TemporaryDirectory(prefix="pxs-virtual-") as folder:

        async def main() -> tuple[list[dict[str, float]], dict[str, Any]]:
            run = VirtualSoak(Path(folder), hours, per_second, seed)
            return run.samples, await run.run()

        return trio.run(main, clock=MockClock(autojump_threshold=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--per-second", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    started_s = monotonic()
    samples, counts = soak(options.hours, options.per_second, options.seed)
    results = trends(samples, bounds=BOUNDS)
    violations = check_counts(counts)
    print("\n".join(str(trend) for trend in results))
    print("\n".join(f"counts: {violation}" for violation in violations) or "counts: exact")
    status = counts["status"]
    print(
        f"seed {options.seed}: {options.hours:g} hours in {monotonic() - started_s:.0f} s,"
        f" accepted={status['accepted']} delivered={status['delivered']} dropped={status['dropped']}"
        f" ambiguous={status['ambiguous']} duplicates={counts['duplicates']} lost={counts['lost']}"
    )
    sys.exit(0 if not violations and all(trend.flat for trend in results) else 1)


if __name__ == "__main__":
    main()
