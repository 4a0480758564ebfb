"""The soak in virtual time: a day in minutes, the whole daemon but its sockets and threads, judged like the real one.

    python tests/soak/virtual.py                   24 hours at 5 a second, some minutes
    python tests/soak/virtual.py --hours 2         a short one
    python tests/soak/virtual.py --per-second 190  the real ceiling: a day is 16 million events and takes hours

Receive (the routes), outbox (a real file), mapping and deliver are as they are; PX is a function that fails as
``soak.faults_at`` says, with a cycle of an hour (of a sixth of a short run). What is judged are live blocks of memory (``sys.getallocatedblocks``
after a collection: exact, where the resident memory of a real process is not), tasks, the file and the WAL. What real
time alone can show (descriptors, latencies, threads) is what ``soak.py`` is for.
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
sys.path[:0] = [str(HERE), str(HERE.parent.parent)]

from soak import HIGH, LOW, faults_at, number_of, reckon  # noqa: E402
from soak_judge import Bound, account_faults, trends  # noqa: E402
from soak_load import Fate, Ledger, make  # noqa: E402

from sidecar.clock import VirtualClock  # noqa: E402
from sidecar.config import load_text  # noqa: E402
from sidecar.daemon import Daemon  # noqa: E402
from sidecar.http import Request  # noqa: E402
from sidecar.outbox import InlineRunner, Store  # noqa: E402
from sidecar.outbox.dead import Which  # noqa: E402
from sidecar.px import Answer, NotSent, Reply, Unknown  # noqa: E402
from sidecar.px import Request as PxRequest  # noqa: E402
from sidecar.receive import Routes  # noqa: E402

CYCLE_S = 3_600.0
CYCLES_AT_LEAST = 6
BATCH = 20
REPEATS = 0.1  # of the batches
FEWEST_SAMPLES, MOST_SAMPLES, SAMPLES_AN_HOUR = 32, 144, 6
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
    """A network to a PX that fails by the clock. Of what arrives it keeps one byte an event."""

    def __init__(self, dice: Random, cycle_s: float) -> None:
        self.cycle_s = cycle_s
        self.arrived = bytearray()
        self.lanes = 0
        self.healthy = False
        self._dice = dice
        self._begun_s = trio.current_time()

    def lane(self) -> "Px":
        self.lanes += 1
        return self

    async def aclose(self) -> None:
        """There is no connection."""

    async def send(self, request: PxRequest) -> Reply:
        faults = faults_at(trio.current_time() - self._begun_s, self.cycle_s) if not self.healthy else {}
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
            lost = self._dice.random() < faults.get("dropped_answers", 0)
        await trio.sleep(0.04 + self._dice.random() * 0.06)
        if lost:
            return Unknown("the answer was lost")
        return refusal or Answer(201, b"{}", content_type=JSON)

    def _refusal(self, faults: dict[str, Any], user: str) -> Reply | None:
        """What keeps the request from being processed, if anything does."""
        if not faults:
            return None
        for outage in faults["outages"]:
            away = {"refuse": NotSent("refused"), "503": Answer(503), "hang": Unknown("no answer in time")}
            return away[outage["how"]]
        if self._dice.random() < faults["hang"]:
            return Unknown("no answer in time")
        if self._dice.random() < faults["error_rate"]:
            after = faults["retry_after"].removeprefix("seconds:") or None
            return Answer(faults["error_status"], b"{}", retry_after=after, content_type=JSON)
        if any(fnmatch.fnmatchcase(user, glob) for glob in faults["fail_users"]):
            return Answer(faults["fail_status"], b"{}", content_type=JSON)
        return None


class VirtualSoak:
    """One run below ``folder``."""

    def __init__(self, folder: Path, hours: float, per_second: float, seed: int) -> None:
        self.length_s, self.per_second = hours * 3_600, per_second
        self.cycle_s = min(CYCLE_S, self.length_s / CYCLES_AT_LEAST)
        self.keep_s = self.cycle_s / 2
        self.dice = Random(seed)
        self.px = Px(Random(seed + 1), self.cycle_s)
        self.ledger = Ledger()
        self.dead = bytearray()
        self.samples: list[dict[str, float]] = []
        self.path = folder / "outbox.db"
        keep = f'"{self.keep_s:g}s"'
        self.daemon = Daemon(
            load_text(
                '[px]\nproperty_key = "AP-XXXXXXXXXX-2"\n'
                f"[outbox]\nkeep_delivered = {keep}\nkeep_ids = {keep}\nkeep_dead = {keep}\n"
                f"[deliver]\nper_second = {per_second}\nper_day = 1_000_000_000\nretry_max = '20s'\n"
                '[identity]\nmax_users = 1000\n[mapping.fields]\neventId = "messageId"\n'
            ),
            store=Store(self.path, durability="process"),
            network=self.px,
            clock=VirtualClock(started_s=trio.current_time()),
            runner=InlineRunner(),
            random=Random(seed + 2),
        )
        self.routes = Routes(self.daemon.intake, self.daemon.outbox, {})

    async def run(self) -> dict[str, Any]:
        """Live through it; the account."""
        stop = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.daemon.run, stop.wait)
            async with trio.open_nursery() as apps:
                apps.start_soon(self._sample_on)
                await self._send_on()
                apps.cancel_scope.cancel()
            self.px.healthy = True
            with trio.move_on_after(DRAIN_S):
                while self.daemon.store.pending():
                    await trio.sleep(60)
                    await self._harvest()
            await self._harvest()
            status = msgspec.to_builtins(await self.daemon.desk.status())
            stop.set()
        self.daemon.store.close()
        made = len(self.ledger.fates)
        self.px.arrived.extend(bytes(made - len(self.px.arrived)))
        return {"status": status, **reckon(self.ledger, self.dead, self.px.arrived)}

    async def _send_on(self) -> None:
        """Above the ceiling for a tenth of a cycle, then below it until the backlog has drained, and so on."""
        begun_s = trio.current_time()
        burst_until_s, factor = begun_s + self.cycle_s / 10, HIGH
        last: tuple[float, dict[str, Any]] | None = None
        while (now_s := trio.current_time()) < begun_s + self.length_s:
            drained = self.daemon.store.pending() < 100 + 4 * self.per_second
            if factor == HIGH and now_s >= burst_until_s and not drained:
                factor = LOW
            elif factor == LOW and drained:
                burst_until_s, factor = now_s + self.cycle_s / 10, HIGH
            made = [(number, *make(number, self.dice)) for number in (self.ledger.number() for _ in range(BATCH))]
            events = [event for _, event, _ in made]
            repeats = 0
            if last is not None and now_s - last[0] < self.keep_s / 3 and self.dice.random() < REPEATS:
                events.append(last[1])
                repeats = 1
            await self._post(events)
            self.ledger.answered([(number, fate) for number, _, fate in made], repeats, 0.0)
            last = next(((now_s, event) for _, event, fate in made if fate is Fate.SENT), None)
            await trio.sleep(BATCH / (factor * self.per_second))

    async def _post(self, events: list[dict[str, Any]]) -> None:
        body = json.dumps({"batch": events}).encode()
        response = await self.routes.over_unix(Request("POST", "/v1/batch", "", [], body, "1.1", True))
        if response.status != 200:
            self.ledger.failed(response.body)

    async def _sample_on(self) -> None:
        samples = max(FEWEST_SAMPLES, min(MOST_SAMPLES, round(SAMPLES_AN_HOUR * self.length_s / 3_600)))
        every_s = self.length_s / samples
        begun_s = trio.current_time()
        for sample in range(1, samples + 1):
            await trio.sleep_until(begun_s + sample * every_s)
            await self._harvest()
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

    async def _harvest(self) -> None:
        """Note who is dead, before dead letters are given up."""
        self.dead.extend(bytes(len(self.ledger.fates) - len(self.dead)))
        after: int | None = 0
        while after is not None:
            page = await self.daemon.desk.archive.letters(Which(), after=after)
            after = page["next"]
            for letter in page["letters"]:
                self.dead[number_of(letter["event"]["messageId"])] = 1


def soak(hours: float, per_second: float, seed: int) -> tuple[list[dict[str, float]], dict[str, Any]]:
    """The samples and the account of a virtual run."""
    logging.getLogger("sidecar").setLevel(logging.ERROR)  # its warnings are the faults that were asked for
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
    began_s = monotonic()
    samples, account = soak(options.hours, options.per_second, options.seed)
    found = trends(samples, bounds=BOUNDS)
    faults = account_faults(account)
    print("\n".join(str(one) for one in found))
    print("\n".join(f"account: {fault}" for fault in faults) or "account: exact")
    status = account["status"]
    print(
        f"seed {options.seed}: {options.hours:g} hours in {monotonic() - began_s:.0f} s,"
        f" accepted={status['accepted']} delivered={status['delivered']} dropped={status['dropped']}"
        f" ambiguous={status['ambiguous']} duplicates={account['duplicates']} lost={account['lost']}"
    )
    sys.exit(0 if not faults and all(one.flat for one in found) else 1)


if __name__ == "__main__":
    main()
