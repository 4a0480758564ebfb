"""Power cuts: compare the promises of an outbox with what a disk may have left of its files.

    python tests/machines/powerloss/powercut.py                          300 recorded cuts, half a minute
    python tests/machines/powerloss/powercut.py --cuts 5000 --seed 7     more cuts, of as many recordings as they need
    python tests/machines/powerloss/powercut.py --seed 7 --cut 1234.0    one cut again, as a failure prints it
    python tests/machines/powerloss/powercut.py --real 30                cuts of a real ext4 (root, loop device)

The recorded machine (``pl_record.py``, ``pl_disk.py``, ``pl_promises.py``) records an outbox under a seeded load once, and
then builds, for thousands of moments, what a power cut at that moment could have left. The real machine (``pl_real.py``)
shuts an ext4 down under a daemon with traffic.

``--durability process`` shows that both machines detect losses: answered events are lost then, as documented. A failure
prints the command that repeats it. Exit code: 0 all promises are kept; 1 otherwise.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "support"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from pl_disk import Disk, Remains
from pl_promises import Broken, Promises, check
from pl_real import real_rounds, why_not_possible
from pl_record import PROCESSES, Recording, cut_rng, in_memory, record

CUTS_PER_RECORDING = 1_000  # then a new recording is made


class Cut(NamedTuple):
    """One cut: its position in the recording, its number at that position, and what was unsynced."""

    at: int
    repetition: int
    moment: str


class Result(NamedTuple):
    """The result of some cuts: their number by kind, and the promises broken by which cut."""

    kinds: Counter[str]
    broken: list[tuple[Cut, str]]


def moments(recording: Recording) -> dict[str, list[int]]:
    """Return the positions to cut, by what is unsynced there."""
    disk = Disk()
    places: dict[str, list[int]] = {}
    for at, op in enumerate(recording.ops):
        if op.kind != "begin" and not (op.kind == "print" and at and recording.ops[at - 1].kind == "print"):
            places.setdefault(disk.moment(), []).append(at)
        _apply(disk, recording, at)
    return places


def choose(recording: Recording, cuts: int) -> list[Cut]:
    """Choose cuts: half of them anywhere, half spread evenly over the kinds of moments, so that rare ones occur."""
    rng, places = Random(recording.seed), moments(recording)
    all_places = [(at, moment) for moment, positions in places.items() for at in positions]
    repetitions: Counter[int] = Counter()
    chosen = []
    for number in range(cuts):
        if number % 2:
            at, moment = rng.choice(all_places)
        else:
            moment = sorted(places)[number // 2 % len(places)]
            at = rng.choice(places[moment])
        chosen.append(Cut(at, repetitions[at], moment))
        repetitions[at] += 1
    return sorted(chosen)


def remains_of(
    recording: Recording, cuts: list[Cut], ignored_syncs: tuple[str, ...] = ()
) -> Iterator[tuple[Cut, Remains, Promises]]:
    """Yield each cut, in order, with its remains and the promises made until then."""
    disk, promises, remaining = Disk(ignored_syncs), Promises(), iter(cuts)
    cut = next(remaining, None)
    for at, op in enumerate(recording.ops):
        while cut is not None and cut.at == at:
            yield cut, disk.cut(cut_rng(recording.seed, at, cut.repetition + 1)), promises
            cut = next(remaining, None)
        if cut is None:
            return
        promises.record(op)
        _apply(disk, recording, at)


def _apply(disk: Disk, recording: Recording, at: int) -> None:
    op = recording.ops[at]
    if op.kind == "cut":
        disk.load(disk.cut(cut_rng(recording.seed, at, 0)).files)
    else:
        disk.apply(op)


def run(recording: Recording, cuts: list[Cut], ignored_syncs: tuple[str, ...] = (), keep: Path | None = None) -> Result:
    """Cut, open and check; with ``keep`` the remains of the last cut are kept in that folder."""
    kinds: Counter[str] = Counter()
    broken: list[tuple[Cut, str]] = []
    with tempfile.TemporaryDirectory(prefix="pxs-", dir=in_memory()) as folder:
        for cut, remains, promises in remains_of(recording, cuts, ignored_syncs):
            kinds[f"{cut.moment}/{remains.outcome}"] += 1
            remains.write_to(Path(folder))
            if keep is not None:
                keep.mkdir(parents=True, exist_ok=True)
                remains.write_to(keep)
            try:
                check(Path(folder), promises)
            except Broken as error:
                broken.append((cut, f"{cut.moment}, {remains.outcome}: {error}"))
            except Exception as error:  # an outbox that does not open breaks every promise
                broken.append((cut, f"{cut.moment}, {remains.outcome}: {type(error).__name__}: {error}"))
    return Result(kinds, broken)


def command_for(recording: Recording, cut: Cut) -> str:
    """Return the command that repeats one cut."""
    more = f" --processes {recording.processes}" if recording.processes != PROCESSES else ""
    more += f" --durability {recording.durability}" if recording.durability != "disk" else ""
    return f"python tests/machines/powerloss/powercut.py --seed {recording.seed} --cut {cut.at}.{cut.repetition}{more}"


def report(recording: Recording, result: Result) -> str:
    """Return the first ten broken promises, each with the command that repeats it."""
    return "\n".join(f"{what}\n    to repeat it: {command_for(recording, cut)}" for cut, what in result.broken[:10])


def recorded_cuts(cuts: int, seed: int, processes: int, durability: str) -> int:
    """Make cuts, of as many recordings as they need; return the exit code."""
    total: Counter[str] = Counter()
    failed = 0
    started_s = time.monotonic()
    while cuts > 0:
        try:
            recording = record(seed, processes=processes, durability=durability)
        except Broken as error:
            print(
                f"{error}\n    to repeat it: python tests/machines/powerloss/powercut.py --seed {seed} --cuts 1",
                flush=True,
            )
            failed, seed, cuts = failed + 1, seed + 1, cuts - 1
            continue
        result = run(recording, choose(recording, min(cuts, CUTS_PER_RECORDING)))
        total += result.kinds
        failed += len(result.broken)
        if result.broken:
            print(report(recording, result), flush=True)
        done = sum(result.kinds.values())
        print(f"seed {seed}: {len(recording.ops)} calls, {done} cuts, {len(result.broken)} broken", flush=True)
        cuts -= done
        seed += 1
    figures = ", ".join(f"{kind} {number}" for kind, number in sorted(total.items()))
    print(f"{total.total()} cuts, {failed} broken, {time.monotonic() - started_s:.0f} s ({figures})")
    return 1 if failed else 0


def real_cuts(rounds: int, seed: int, durability: str) -> int:
    """Cut the power of a real file system; return the exit code."""
    if why := why_not_possible():
        print(f"skipped: {why}")
        return 0
    results, problem = real_rounds(rounds, seed, durability)
    lost = results[-1].lost
    problems = [cut.problems for cut in results if cut.problems] + ([problem] if problem else [])
    print(
        f"{rounds} real cuts: {results[-1].answered} answered, {lost} lost" + "".join(f"; {text}" for text in problems)
    )
    if lost or problems:
        more = f" --durability {durability}" if durability != "disk" else ""
        print(f"    to repeat it: python tests/machines/powerloss/powercut.py --real {rounds} --seed {seed}{more}")
    return 1 if lost or problems else 0


def repeat_one(text: str, seed: int, processes: int, durability: str, keep: Path | None) -> int:
    """Repeat one cut; return the exit code."""
    at, repetition = (int(part) for part in text.split("."))
    recording = record(seed, processes=processes, durability=durability)
    result = run(recording, [Cut(at, repetition, "again")], keep=keep)
    print("\n".join(what for _, what in result.broken) or "all promises are kept")
    return 1 if result.broken else 0


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cuts", type=int, default=300, help="number of recorded cuts")
    parser.add_argument("--seed", type=int, default=1, help="seed of the first recording")
    parser.add_argument("--processes", type=int, default=PROCESSES, help="number of processes in one recording")
    parser.add_argument("--durability", choices=["disk", "process"], default="disk", help="as in [outbox]")
    parser.add_argument("--cut", metavar="AT.TURN", help="repeat one cut of the recording of --seed")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="with --cut: keep the remains in this folder")
    parser.add_argument("--real", type=int, metavar="ROUNDS", help="cut the power of a real ext4 this often instead")
    arguments = parser.parse_args()
    if arguments.real:
        return real_cuts(arguments.real, arguments.seed, arguments.durability)
    if arguments.cut:
        return repeat_one(arguments.cut, arguments.seed, arguments.processes, arguments.durability, arguments.keep)
    return recorded_cuts(arguments.cuts, arguments.seed, arguments.processes, arguments.durability)


if __name__ == "__main__":
    sys.exit(main())
