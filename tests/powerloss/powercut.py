"""Power cuts: what an outbox promised is held against what a disk may have left of it.

    python tests/powerloss/powercut.py                          some hundred recorded cuts, half a minute
    python tests/powerloss/powercut.py --cuts 5000 --seed 7     more of them; new recordings as they are needed
    python tests/powerloss/powercut.py --seed 7 --cut 1234.0    one cut again, as a failure names it
    python tests/powerloss/powercut.py --real 30                real file systems whose power goes (root, loop device)

The recorded machine (``pl_record.py``, ``pl_disk.py``, ``pl_account.py``) plays an outbox under a seeded load once and
then builds, for thousands of moments, what a power cut at that moment could have left. The real machine
(``pl_real.py``) cuts the power of an ext4 under a daemon with traffic.

``--durability process`` shows that either machine sees what it is there to see: answered events are then lost, as the
configuration says. A failure prints the one command that repeats it. Exit status: 0 all was kept; 1 something was not.
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

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from pl_account import Account, Broken, check
from pl_disk import Disk, Left
from pl_real import cannot, real_rounds
from pl_record import LIVES, Recording, dice_of, in_memory, record

CUTS_OF_ONE = 1_000  # so many cuts are made of one recording, then a new one is played


class Cut(NamedTuple):
    """One cut: where in the recording, the how manieth there, and what it was in the middle of."""

    at: int
    turn: int
    moment: str


class Result(NamedTuple):
    """What came of some cuts: how many of which kind, and what was broken by which."""

    kinds: Counter[str]
    broken: list[tuple[Cut, str]]


def moments(recording: Recording) -> dict[str, list[int]]:
    """The places to cut, by what the disk is in the middle of."""
    disk = Disk()
    places: dict[str, list[int]] = {}
    for at, op in enumerate(recording.ops):
        if op.kind != "begin" and not (op.kind == "say" and at and recording.ops[at - 1].kind == "say"):
            places.setdefault(disk.moment(), []).append(at)
        _do(disk, recording, at)
    return places


def choose(recording: Recording, cuts: int) -> list[Cut]:
    """So many cuts: half of them anywhere, half shared evenly by the kinds of moments, so that the rare ones are met."""
    dice, places = Random(recording.seed), moments(recording)
    everywhere = [(at, moment) for moment, found in places.items() for at in found]
    turns: Counter[int] = Counter()
    chosen = []
    for number in range(cuts):
        if number % 2:
            at, moment = dice.choice(everywhere)
        else:
            moment = sorted(places)[number // 2 % len(places)]
            at = dice.choice(places[moment])
        chosen.append(Cut(at, turns[at], moment))
        turns[at] += 1
    return sorted(chosen)


def left_by(recording: Recording, cuts: list[Cut], deaf: tuple[str, ...] = ()) -> Iterator[tuple[Cut, Left, Account]]:
    """What each cut, in order, has left, and the account of what was promised until then."""
    disk, account, waiting = Disk(deaf), Account(), iter(cuts)
    cut = next(waiting, None)
    for at, op in enumerate(recording.ops):
        while cut is not None and cut.at == at:
            yield cut, disk.cut(dice_of(recording.seed, at, cut.turn + 1)), account
            cut = next(waiting, None)
        if cut is None:
            return
        account.hear(op)
        _do(disk, recording, at)


def _do(disk: Disk, recording: Recording, at: int) -> None:
    op = recording.ops[at]
    if op.kind == "cut":
        disk.load(disk.cut(dice_of(recording.seed, at, 0)).files)
    else:
        disk.do(op)


def run(recording: Recording, cuts: list[Cut], deaf: tuple[str, ...] = (), keep: Path | None = None) -> Result:
    """Cut, open and check; with ``keep`` what is left of the last cut stays in that folder."""
    kinds: Counter[str] = Counter()
    broken: list[tuple[Cut, str]] = []
    with tempfile.TemporaryDirectory(prefix="pxs-", dir=in_memory()) as folder:
        for cut, left, account in left_by(recording, cuts, deaf):
            kinds[f"{cut.moment}/{left.how}"] += 1
            left.write_to(Path(folder))
            if keep is not None:
                keep.mkdir(parents=True, exist_ok=True)
                left.write_to(keep)
            try:
                check(Path(folder), account)
            except Broken as error:
                broken.append((cut, f"{cut.moment}, {left.how}: {error}"))
            except Exception as error:  # a start that fails keeps no promise
                broken.append((cut, f"{cut.moment}, {left.how}: {type(error).__name__}: {error}"))
    return Result(kinds, broken)


def again(recording: Recording, cut: Cut) -> str:
    """The command that repeats one cut."""
    more = f" --lives {recording.lives}" if recording.lives != LIVES else ""
    more += f" --durability {recording.durability}" if recording.durability != "disk" else ""
    return f"python tests/powerloss/powercut.py --seed {recording.seed} --cut {cut.at}.{cut.turn}{more}"


def report(recording: Recording, result: Result) -> str:
    """What was broken, each with its command."""
    return "\n".join(f"{what}\n    to see it again: {again(recording, cut)}" for cut, what in result.broken[:10])


def recorded(cuts: int, seed: int, lives: int, durability: str) -> int:
    """Some cuts, of as many recordings as they need."""
    total: Counter[str] = Counter()
    failed = 0
    started_s = time.monotonic()
    while cuts > 0:
        try:
            recording = record(seed, lives=lives, durability=durability)
        except Broken as error:
            print(
                f"{error}\n    to see it again: python tests/powerloss/powercut.py --seed {seed} --cuts 1", flush=True
            )
            failed, seed, cuts = failed + 1, seed + 1, cuts - 1
            continue
        result = run(recording, choose(recording, min(cuts, CUTS_OF_ONE)))
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


def real(rounds: int, seed: int, durability: str) -> int:
    """Some cuts of a real file system."""
    if why := cannot():
        print(f"skipped: {why}")
        return 0
    found, wrong = real_rounds(rounds, seed, durability)
    lost = found[-1].lost
    bad = [one.wrong for one in found if one.wrong] + ([wrong] if wrong else [])
    print(f"{rounds} real cuts: {found[-1].answered} answered, {lost} lost" + "".join(f"; {one}" for one in bad))
    if lost or bad:
        more = f" --durability {durability}" if durability != "disk" else ""
        print(f"    to try it again: python tests/powerloss/powercut.py --real {rounds} --seed {seed}{more}")
    return 1 if lost or bad else 0


def one(text: str, seed: int, lives: int, durability: str, keep: Path | None) -> int:
    """One cut again."""
    at, turn = (int(part) for part in text.split("."))
    recording = record(seed, lives=lives, durability=durability)
    result = run(recording, [Cut(at, turn, "again")], keep=keep)
    print("\n".join(what for _, what in result.broken) or "all was kept")
    return 1 if result.broken else 0


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cuts", type=int, default=300, help="how many recorded cuts")
    parser.add_argument("--seed", type=int, default=1, help="of the first recording")
    parser.add_argument("--lives", type=int, default=LIVES, help="how many processes one recording is long")
    parser.add_argument("--durability", choices=["disk", "process"], default="disk", help="as in [outbox]")
    parser.add_argument("--cut", metavar="AT.TURN", help="one cut of the seed's recording again")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="with --cut: leave there what the cut left")
    parser.add_argument("--real", type=int, metavar="ROUNDS", help="cut the power of a real ext4 so often instead")
    arguments = parser.parse_args()
    if arguments.real:
        return real(arguments.real, arguments.seed, arguments.durability)
    if arguments.cut:
        return one(arguments.cut, arguments.seed, arguments.lives, arguments.durability, arguments.keep)
    return recorded(arguments.cuts, arguments.seed, arguments.lives, arguments.durability)


if __name__ == "__main__":
    sys.exit(main())
