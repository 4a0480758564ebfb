"""Real processes under real traffic, killed repeatedly with ``kill -9`` at random moments.

    python tests/machines/kill_storm/storm.py                       20 rounds, half a minute
    python tests/machines/kill_storm/storm.py --rounds 1000         the long run
    python tests/machines/kill_storm/storm.py --rounds 50 --seed 7  the same moments again, as far as scheduling allows
    python tests/machines/kill_storm/storm.py --faults              PX fails, too: errors, lost answers, answers that are not HTTP

A round: traffic runs, the daemon is killed (in every fourth round the sandbox, too), and the killed processes start
again. In every fifth round the daemon is stopped (``SIGSTOP``) for longer than it waits for an answer of PX, and continued:
PX has answered meanwhile, and nothing may be sent again. In every third round the daemon is killed again up to three times during its start: while it reads its
configuration, recovers the file or sends the first events. The traffic is an app with the real Segment SDK over HTTP, and
this package's client over the Unix socket, which knows of every event whether it was answered.

Checks
------
* No event is lost: every answered event, and every event that the SDK did not report as failed, is at PX.
* The counters of the daemon add up, and agree with PX.
* A duplicate was sent by a process that was killed, and no process has more duplicates than events in flight at its kill:
  those it reported a moment before plus those that arrived after that moment (for a process killed during its start: all
  it sent). This bound is a dozen or two, much tighter than ``max_in_flight``. If PX loses answers, each counted lost answer
  allows one more duplicate.
* First arrivals of each user are in the order of the calls.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1] / "support"), str(HERE.parents[2])]

from process_harness import ProcessHarness, get_json, is_ok, wait_until  # noqa: E402

from sidecar.client import Client, NotAccepted  # noqa: E402

MAX_IN_FLIGHT = 128
USERS = 40
PAUSE_S = 0.012  # with the SDK about 100 events a second: below the ceiling, so that the backlog drains
FAULTS = ("--error-rate", "0.03", "--drop-answers", "0.01", "--garbage", "0.01")
LOG_PAGE = 10_000
KILL_DELAY_S = 0.1  # longest time between reading in_flight and the kill
PER_SECOND = 190
ARRIVALS_MAX = 64  # requests that can arrive in that time on a busy machine
# Time without an answer after which the daemon gives a request up, and how long it is stopped.
TIMEOUT_S, FREEZE_S = 3, 5.0
KILL_WITHIN_STARTS = 1.5  # a kill of a starting daemon comes after at most this many times the length of a start


class Outcome(NamedTuple):
    """The result of a storm."""

    kills: int
    at_start: int
    """Kills of a daemon that had not finished its start."""
    answered: int
    arrived: int
    lost: list[str]
    duplicates: list[int]
    """Per kill: events of the killed process that arrived again later."""
    in_flight: list[int]
    """Per kill: events in flight."""
    repeats: int
    """Events that arrived twice from one process."""
    lost_answers: int
    """Answers of PX that were lost; each may cause one duplicate."""
    disorder: int
    account: dict[str, Any]
    took_s: float
    freezes: int = 0
    """Freezes with requests in flight."""
    delays_s: tuple[float, ...] = ()
    """Per kill: the time from reading in_flight to the kill, long on a busy machine."""

    def violations(self) -> list[str]:
        """Return one sentence per violation; empty if all checks pass."""
        counted = {name: self.account[name] for name in ("pending", "delivered", "dropped", "dead")}
        sentences = []
        if self.lost:
            sentences.append(f"{len(self.lost)} events were lost: {self.lost[:10]}")
        if self.account["accepted"] != sum(counted.values()):
            sentences.append(f"the counters do not add up: {self.account}")
        if counted["delivered"] != self.arrived:
            sentences.append(f"{counted['delivered']} are counted as delivered, {self.arrived} are at PX")
        kills = list(zip(self.duplicates, self.in_flight, strict=True))
        if self.repeats + sum(max(0, repeated - allowed) for repeated, allowed in kills) > self.lost_answers:
            for number, (repeated, allowed) in enumerate(kills):
                if repeated > allowed:
                    sentences.append(f"{repeated} events came twice after kill {number}, {allowed} were in flight")
            if self.repeats:
                sentences.append(
                    f"{self.repeats} events came twice without a kill in between, {self.lost_answers} answers were lost"
                )
        for were, delay_s in zip_longest(self.in_flight, self.delays_s, fillvalue=0):
            if were > MAX_IN_FLIGHT + ARRIVALS_MAX + PER_SECOND * delay_s:
                sentences.append(f"{were} were in flight, {MAX_IN_FLIGHT} allowed")
        if self.disorder:
            sentences.append(f"{self.disorder} events overtook an earlier one of their user")
        return sentences


class ClientApp(threading.Thread):
    """An app that uses ``sidecar.client``: ``answered`` holds the numbers answered with success, in order."""

    def __init__(self, unix: Path) -> None:
        super().__init__(daemon=True)
        self.answered: list[int] = []
        self._client = Client(str(unix), timeout_s=1.0)
        self._ending = threading.Event()

    def run(self) -> None:
        number = 0
        while not self._ending.wait(PAUSE_S):
            try:
                self._client.track(f"c{number % USERS}", "Feature Used", {"n": number}, message_id=f"own-{number}")
            except NotAccepted:
                continue  # not confirmed as stored: send the same number again
            self.answered.append(number)
            number += 1

    def end(self) -> None:
        self._ending.set()
        if self.is_alive():
            self.join()
        self._client.close()


class Arrivals:
    """The sandbox's log, read incrementally."""

    def __init__(self, harness: ProcessHarness) -> None:
        self._harness = harness
        self._read = 0
        self.numbers: dict[str, list[int]] = defaultdict(list)
        self.seen: dict[str, int] = {}  # the daemon process from which it arrived last
        self.repeated: Counter[int] = Counter()  # per process: its events that arrived again from a later one
        self.repeats = 0

    def read_new(self, process: int, since_s: float) -> int:
        """Read new entries, all of one process; return how many arrived at or after ``since_s``."""
        late = 0
        while True:
            url = f"{self._harness.sandbox_url}/sandbox/log?start={self._read}&limit={LOG_PAGE}"
            entries = get_json(url)["entries"]
            if not entries:
                return late
            self._read += len(entries)
            for entry in entries:
                late += entry["arrival_s"] >= since_s
                if entry["stored"]:
                    self._record(entry["messageId"], process)

    def _record(self, message_id: str, process: int) -> None:
        before = self.seen.get(message_id)
        self.seen[message_id] = process
        if before is None:
            kind, number = message_id.split("-")
            self.numbers[f"{kind}{int(number) % USERS}"].append(int(number))
        elif before == process:
            self.repeats += 1
        else:
            self.repeated[before] += 1

    def disorder(self) -> int:
        """Return how many events arrived after a later event of their user."""
        return sum(later < earlier for numbers in self.numbers.values() for earlier, later in pairwise(numbers))


def storm(folder: Path, rounds: int, seed: int, report: Any = lambda _line: None, *, faults: bool = False) -> Outcome:
    """Run the rounds and return the result. Raises AssertionError if a process does not start again."""
    harness, rng, started_s = ProcessHarness(folder), random.Random(seed), time.monotonic()
    state = ("--state", str(folder / "px.log"), "--latency", "100ms", "--jitter", "50ms", *(FAULTS if faults else ()))
    client_app = ClientApp(harness.unix)
    try:
        harness.write_config(deliver=f'timeout = "{TIMEOUT_S}s"')
        sandbox = harness.start_sandbox(*state)
        started_s = time.monotonic()
        daemon = harness.start_daemon()
        start_s = time.monotonic() - started_s  # measured, as a fixed time misses the start on a fast machine
        app = subprocess.Popen(
            [sys.executable, str(HERE / "storm_app.py"), f"http://{harness.http}", str(USERS)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        harness.processes.append(app)
        arrivals, in_flight, at_start, freezes = Arrivals(harness), [], 0, 0
        delays_s: list[float] = []
        client_app.start()
        for number in range(rounds):
            time.sleep(rng.uniform(0.1, 1.0))
            if number % 5 == 4:
                freezes += freeze(harness, daemon)
            kill_sandbox = number % 4 == 3
            victims = [daemon, sandbox] if kill_sandbox else [daemon]
            rng.shuffle(victims)
            read_s, in_flight_then = time.clock_gettime(time.CLOCK_BOOTTIME), harness.status()["in_flight"]
            time.sleep(rng.uniform(0, KILL_DELAY_S))
            for victim in victims:
                harness.kill(victim)
            delays_s.append(time.clock_gettime(time.CLOCK_BOOTTIME) - read_s)
            if kill_sandbox:
                sandbox = harness.start_sandbox(*state)
            in_flight.append(in_flight_then + arrivals.read_new(len(in_flight), read_s))
            for _ in range(rng.randint(1, 3) if number % 3 == 2 else 0):
                read_s = time.clock_gettime(time.CLOCK_BOOTTIME)
                at_start += kill_as_it_starts(harness, rng.uniform(0, KILL_WITHIN_STARTS * start_s))
                in_flight.append(arrivals.read_new(len(in_flight), 0.0))
                delays_s.append(time.clock_gettime(time.CLOCK_BOOTTIME) - read_s)
            daemon = harness.start_daemon()
            if number % 20 == 19:
                report(
                    f"{number + 1} of {rounds} rounds, {len(arrivals.seen):,} events at PX, {arrivals.repeated.total()} twice"
                )
        client_app.end()
        # After failures in a row the SDK doubles its pauses without a limit.
        summary = json.loads(app.communicate(timeout=600 + rounds)[0])
        wait_until(lambda: harness.status()["pending"] == 0, 60 + rounds, what="an empty backlog")
        arrivals.read_new(len(in_flight), 0.0)
        expected = {f"own-{number}" for number in client_app.answered}
        expected |= {f"sdk-{number}" for number in range(summary["made"])} - set(summary["failed"])
        status, took_s = harness.status(), time.monotonic() - started_s
    finally:
        client_app.end()
        harness.end()
    lost = sorted(expected - arrivals.seen.keys())
    duplicates = [arrivals.repeated[process] for process in range(len(in_flight))]
    return Outcome(
        len(in_flight), at_start, len(expected), len(arrivals.seen), lost, duplicates, in_flight, arrivals.repeats,
        status["ambiguous"] if faults else 0, arrivals.disorder(), status, took_s, freezes,
        tuple(delays_s),
    )  # fmt: skip


def freeze(harness: ProcessHarness, daemon: "subprocess.Popen[bytes]") -> bool:
    """Stop the daemon for ``FREEZE_S`` and let it continue; return whether requests were in flight."""
    in_flight = harness.status()["in_flight"]
    daemon.send_signal(signal.SIGSTOP)
    time.sleep(FREEZE_S)
    daemon.send_signal(signal.SIGCONT)
    wait_until(lambda: is_ok(f"http://{harness.http}/health"), what="an answer after the freeze")
    time.sleep(TIMEOUT_S / 2)  # so that what is sent again arrives before the next kill explains it
    return bool(in_flight)


def kill_as_it_starts(harness: ProcessHarness, after_s: float) -> bool:
    """Start the daemon and kill it after ``after_s``; return whether it was still starting."""
    daemon = harness.start("run", "--config", str(harness.folder / "config.toml"))
    time.sleep(after_s)
    accepts = is_ok(f"http://{harness.http}/health")
    harness.kill(daemon)
    return not accepts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--faults", action="store_true", help="let PX fail, too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="px-sidecar-storm-") as folder:
        outcome = storm(
            Path(folder), options.rounds, options.seed, lambda line: print(line, flush=True), faults=options.faults
        )
    print(
        f"seed {options.seed}: kills={outcome.kills} at_start={outcome.at_start} answered={outcome.answered} arrived={outcome.arrived}"
        f" lost={len(outcome.lost)} duplicates={sum(outcome.duplicates)} most={max(outcome.duplicates)}"
        f" in_flight={sum(outcome.in_flight)} repeats={outcome.repeats} lost_answers={outcome.lost_answers}"
        f" ambiguous={outcome.account['ambiguous']} disorder={outcome.disorder} freezes={outcome.freezes} in {outcome.took_s:.0f} s"
    )
    if violations := outcome.violations():
        sys.exit("\n".join(violations))


if __name__ == "__main__":
    main()
