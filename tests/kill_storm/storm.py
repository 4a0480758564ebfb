"""Real processes under real traffic, killed with ``kill -9`` at random moments, again and again.

    python tests/kill_storm/storm.py                       20 rounds, half a minute
    python tests/kill_storm/storm.py --rounds 1000         the long one
    python tests/kill_storm/storm.py --rounds 50 --seed 7  the same moments again, as far as processes allow
    python tests/kill_storm/storm.py --faults              PX fails too: errors, lost answers, answers that are no HTTP

A round: traffic runs, the daemon is killed, in every fourth round the sandbox too, and what was killed starts again. In
every third round the daemon is killed again, up to three times, before it has said that it is there: as it reads its
configuration, recovers the file or begins to send.
Traffic is an app with the real Segment SDK over HTTP, and this package's own client over the Unix socket, which knows
of every event whether it was answered.

What is held against it (DESIGN 1)
----------------------------------
* Nothing is lost: every event that was answered, and every event that the SDK did not report as failed, is at PX.
* The account of the daemon is exact, and agrees with what PX has.
* What comes twice had come before in a life that was killed, and of each life no more comes twice than was in flight at
  its kill: what the daemon says is in flight a moment before, and what arrived at PX after that moment (of a life that
  was killed as it began: all that it sent). So the bound is
  what was really under way, a dozen or two, and not only ``max_in_flight``. Where PX loses answers, beside these no more
  comes twice than answers were counted as lost.
* First arrivals of each user are in the order of the calls.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]

from stage import Stage, get_json, is_ok, wait_until  # noqa: E402

from sidecar.client import Client, NotAccepted  # noqa: E402

MAX_IN_FLIGHT = 128
USERS = 40
PAUSE_S = 0.012  # together with the SDK's about 100 events a second: below the ceiling, so that a storm can end
FAULTS = ("--error-rate", "0.03", "--drop-answers", "0.01", "--garbage", "0.01")
LOG_PAGE = 10_000
LAST_MOMENT_S = 0.1  # between the look at what is in flight and the kill, at most
MOST_SINCE = 64  # what can arrive in that time, on a busy machine
START_S = 0.8  # a start is over by then, most of the time


class Outcome(NamedTuple):
    """What a storm came to."""

    kills: int
    at_start: int
    """How many of the kills met a daemon that had not said yet that it is there."""
    answered: int
    arrived: int
    lost: list[str]
    duplicates: list[int]
    """By kill: what arrived again of what had last arrived in the life that it ended."""
    in_flight: list[int]
    """By kill: what was in flight."""
    repeats: int
    """What arrived twice in one life."""
    forgiven: int
    """How many answers of PX were lost, of which each may make one arrive twice."""
    disorder: int
    account: dict[str, Any]
    took_s: float

    def complaints(self) -> list[str]:
        """What must not be, in words; empty if all is well."""
        counted = {name: self.account[name] for name in ("pending", "delivered", "dropped", "dead")}
        wrong = []
        if self.lost:
            wrong.append(f"{len(self.lost)} events were lost: {self.lost[:10]}")
        if self.account["accepted"] != sum(counted.values()):
            wrong.append(f"the account is not exact: {self.account}")
        if counted["delivered"] != self.arrived:
            wrong.append(f"{counted['delivered']} count as delivered, {self.arrived} are at PX")
        kills = list(zip(self.duplicates, self.in_flight, strict=True))
        if self.repeats + sum(max(0, twice - allowed) for twice, allowed in kills) > self.forgiven:
            for number, (twice, allowed) in enumerate(kills):
                if twice > allowed:
                    wrong.append(f"{twice} came twice after kill {number}, {allowed} were in flight")
            if self.repeats:
                wrong.append(f"{self.repeats} came twice without a kill between, {self.forgiven} answers were lost")
        if max(self.in_flight, default=0) > MAX_IN_FLIGHT + MOST_SINCE:
            wrong.append(f"{max(self.in_flight)} were in flight, {MAX_IN_FLIGHT} may be")
        if self.disorder:
            wrong.append(f"{self.disorder} events overtook an earlier one of their user")
        return wrong


class Caller(threading.Thread):
    """An app with our own client: ``answered`` are the numbers that were answered with success, in order."""

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
                continue  # the same number again: nobody said that it is stored
            self.answered.append(number)
            number += 1

    def end(self) -> None:
        self._ending.set()
        if self.is_alive():
            self.join()
        self._client.close()


class Arrivals:
    """The sandbox's log, read on from where the last look ended."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._read = 0
        self.numbers: dict[str, list[int]] = defaultdict(list)
        self.seen: dict[str, int] = {}  # the life of the daemon in which it arrived last
        self.twice: Counter[int] = Counter()  # by that life, what arrived again in a later one
        self.repeats = 0

    def look(self, life: int, since_s: float) -> int:
        """Take in what has arrived since the last look, all from one life; how much of it not before ``since_s``."""
        late = 0
        while True:
            url = f"{self._stage.sandbox_url}/sandbox/log?start={self._read}&limit={LOG_PAGE}"
            entries = get_json(url)["entries"]
            if not entries:
                return late
            self._read += len(entries)
            for entry in entries:
                late += entry["arrival_s"] >= since_s
                if entry["stored"]:
                    self._arrived(entry["messageId"], life)

    def _arrived(self, message_id: str, life: int) -> None:
        before = self.seen.get(message_id)
        self.seen[message_id] = life
        if before is None:
            kind, number = message_id.split("-")
            self.numbers[f"{kind}{int(number) % USERS}"].append(int(number))
        elif before == life:
            self.repeats += 1
        else:
            self.twice[before] += 1

    def disorder(self) -> int:
        """How many arrived after a later one of their user."""
        return sum(later < earlier for numbers in self.numbers.values() for earlier, later in pairwise(numbers))


def storm(folder: Path, rounds: int, seed: int, say: Any = lambda _line: None, *, faults: bool = False) -> Outcome:
    """So many rounds; what came of them. Raises AssertionError if a process does not come back."""
    stage, dice, began_s = Stage(folder), random.Random(seed), time.monotonic()
    state = ("--state", str(folder / "px.log"), "--latency", "100ms", "--jitter", "50ms", *(FAULTS if faults else ()))
    caller = Caller(stage.unix)
    try:
        stage.write_config()
        sandbox, daemon = stage.start_sandbox(*state), stage.start_daemon()
        app = subprocess.Popen(
            [sys.executable, str(HERE / "storm_app.py"), f"http://{stage.http}", str(USERS)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        stage.processes.append(app)
        arrivals, in_flight, at_start = Arrivals(stage), [], 0
        caller.start()
        for number in range(rounds):
            time.sleep(dice.uniform(0.1, 1.0))
            both = number % 4 == 3
            victims = [daemon, sandbox] if both else [daemon]
            dice.shuffle(victims)
            asked_s, flying = time.clock_gettime(time.CLOCK_BOOTTIME), stage.status()["in_flight"]
            time.sleep(dice.uniform(0, LAST_MOMENT_S))
            for victim in victims:
                stage.kill(victim)
            if both:
                sandbox = stage.start_sandbox(*state)
            in_flight.append(flying + arrivals.look(len(in_flight), asked_s))
            for _ in range(dice.randint(1, 3) if number % 3 == 2 else 0):
                at_start += kill_as_it_starts(stage, dice.uniform(0, START_S))
                in_flight.append(arrivals.look(len(in_flight), 0.0))
            daemon = stage.start_daemon()
            if number % 20 == 19:
                say(
                    f"{number + 1} of {rounds} rounds, {len(arrivals.seen):,} events at PX, {arrivals.twice.total()} twice"
                )
        caller.end()
        # After some failures in a row the SDK's pauses double without a bound.
        said = json.loads(app.communicate(timeout=600 + rounds)[0])
        wait_until(lambda: stage.status()["pending"] == 0, 60 + rounds, what="an empty backlog")
        arrivals.look(len(in_flight), 0.0)
        owed = {f"own-{number}" for number in caller.answered}
        owed |= {f"sdk-{number}" for number in range(said["made"])} - set(said["failed"])
        status, took_s = stage.status(), time.monotonic() - began_s
    finally:
        caller.end()
        stage.end()
    lost = sorted(owed - arrivals.seen.keys())
    duplicates = [arrivals.twice[life] for life in range(len(in_flight))]
    return Outcome(
        len(in_flight), at_start, len(owed), len(arrivals.seen), lost, duplicates, in_flight, arrivals.repeats,
        status["ambiguous"] if faults else 0, arrivals.disorder(), status, took_s,
    )  # fmt: skip


def kill_as_it_starts(stage: Stage, after_s: float) -> bool:
    """Start the daemon and kill it after that time; whether it had not begun to accept by then."""
    daemon = stage.start("run", "--config", str(stage.folder / "config.toml"))
    time.sleep(after_s)
    accepts = is_ok(f"http://{stage.http}/health")
    stage.kill(daemon)
    return not accepts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--faults", action="store_true", help="PX fails too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="px-sidecar-storm-") as folder:
        outcome = storm(
            Path(folder), options.rounds, options.seed, lambda line: print(line, flush=True), faults=options.faults
        )
    print(
        f"seed {options.seed}: kills={outcome.kills} at_start={outcome.at_start} answered={outcome.answered} arrived={outcome.arrived}"
        f" lost={len(outcome.lost)} duplicates={sum(outcome.duplicates)} most={max(outcome.duplicates)}"
        f" in_flight={sum(outcome.in_flight)} repeats={outcome.repeats} lost_answers={outcome.forgiven}"
        f" disorder={outcome.disorder} in {outcome.took_s:.0f} s"
    )
    if complaints := outcome.complaints():
        sys.exit("\n".join(complaints))


if __name__ == "__main__":
    main()
