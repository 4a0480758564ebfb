"""Mutation testing of the pure rooms: does a test fail for every small change of what decides?

    python tests/mutation/mutate.py                          every mutant of every room
    python tests/mutation/mutate.py bucket retry             every mutant of these rooms
    python tests/mutation/mutate.py --sample 20 --seed 7     some of them, the same ones for the same seed

A mutant (mutants.py) is tried (trial.py) against the unit tests of its room. It is killed if a test fails or if the
tests would not end. Who survives is named; where no test can tell it from the original, it is listed in equivalent.toml
with the reason and not tried. Ends with 1 where fewer than ``--least`` per cent of the mutants that a test can tell
were killed; of a sample, over all rooms together.
"""

import argparse
import importlib
import os
import random
import sys
import time
import tomllib
from pathlib import Path
from typing import NamedTuple

from mutants import ROOT, Mutant, mutants_of, parse
from trial import AT_LEAST_S, TIMES_AS_LONG, swift, thorough

EQUIVALENT = Path(__file__).with_name("equivalent.toml")
LIBRARIES = (
    "hypothesis",
    "trio",
    "msgspec",
    "httpx",
    "httptools",
    "prometheus_client",
    "sqlite_utils",
    "click",
    "rich",
)
LEAST = 90


class Room(NamedTuple):
    """Source files, and the tests that are to notice a change of them, quick ones first."""

    sources: tuple[str, ...]
    tests: tuple[str, ...]


MAPPING = ("edges", "names", "values", "fields", "attributes", "people", "privacy", "peers")
ROOMS = {
    "bucket": Room(("sidecar/deliver/bucket.py",), ("tests/deliver/test_bucket.py",)),
    "quota": Room(
        ("sidecar/deliver/quota.py",),
        ("tests/deliver/test_quota_edges.py", "tests/deliver/test_quota_reload.py", "tests/deliver/test_quota.py"),
    ),
    "retry": Room(("sidecar/deliver/retry.py",), ("tests/deliver/test_retry.py",)),
    "breaker": Room(
        ("sidecar/deliver/destination.py",),
        ("tests/deliver/test_destination.py", "tests/deliver/test_destination_edges.py"),
    ),
    "ordering": Room(
        ("sidecar/deliver/order.py", "sidecar/deliver/prepared.py"),
        tuple(f"tests/deliver/test_{name}.py" for name in ("order_edges", "prepared", "order", "order_after_restart")),
    ),
    "dispatcher": Room(
        ("sidecar/deliver/dispatcher.py",),
        tuple(f"tests/deliver/test_{name}.py" for name in ("dispatcher", "dispatcher_edges", "found_by_simulation")),
    ),
    "mapping": Room(
        tuple(sorted(str(path.relative_to(ROOT)) for path in (ROOT / "sidecar/mapping").glob("*.py"))),
        (
            *(f"tests/mapping/test_mapping_{name}.py" for name in MAPPING),
            *("tests/mapping/test_map_command.py", "tests/mapping/test_mapping_reference.py"),
            *("tests/mapping/test_seed.py", "tests/mapping/test_mapping_properties.py"),
        ),
    ),
    "answers": Room(("sidecar/px/answers.py",), ("tests/px/test_answers.py",)),
}


class Score(NamedTuple):
    """What became of the mutants of a room."""

    room: str
    tried: int
    killed: int
    by_time: int
    equivalent: int
    survivors: list[Mutant]


# --- a room ---


def equivalents() -> dict[str, dict[str, str]]:
    """Path → name of the mutant → why no test can tell it from the original."""
    read: dict[str, dict[str, str]] = tomllib.loads(EQUIVALENT.read_text(encoding="utf-8"))
    return read


def misfits() -> list[str]:
    """Entries of equivalent.toml that fit no mutant any more."""
    return [
        f"{path} {name}"
        for path, names in equivalents().items()
        for name in names.keys() - {mutant.name for mutant in mutants_of(path)}
    ]


def score(name: str, chosen: list[Mutant], equivalent: int) -> Score:
    """Try the chosen mutants of a room. Raises RuntimeError where the tests fail without any."""
    room = ROOMS[name]
    without = thorough(room.tests, room.sources[0], parse(room.sources[0]), 600, quiet=False)
    if without.killed:
        raise RuntimeError(f"the tests of {name} fail without a mutant")
    limit_s = AT_LEAST_S + TIMES_AS_LONG * without.cpu_s
    killed, by_time, survivors = 0, 0, []
    for mutant, at_first in zip(chosen, swift(room.tests, chosen, limit_s), strict=True):
        end = at_first if at_first.killed else thorough(room.tests, mutant.path, mutant.tree(), limit_s)
        killed += end.killed
        by_time += end.by_time
        if not end.killed:
            survivors.append(mutant)
            print(f"  survived: {mutant}", flush=True)
    return Score(name, len(chosen), killed, by_time, equivalent, survivors)


def choose(rooms: list[str], sample: int | None, seed: int) -> dict[str, tuple[list[Mutant], int]]:
    """The mutants to try by room, and how many equivalent ones were left out."""
    known = equivalents()
    chosen = {}
    for name in rooms:
        every = [mutant for path in ROOMS[name].sources for mutant in mutants_of(path)]
        telling = [mutant for mutant in every if mutant.name not in known.get(mutant.path, {})]
        chosen[name] = (telling, len(every) - len(telling))
    if sample is not None:
        pool = [(name, mutant) for name, (telling, _) in chosen.items() for mutant in telling]
        picked = random.Random(seed).sample(pool, min(sample, len(pool)))
        chosen = {room: ([one for name, one in picked if name == room], chosen[room][1]) for room in chosen}
    return {name: one for name, one in chosen.items() if one[0]}


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("room", nargs="*", choices=[*ROOMS, []], help=f"one of {', '.join(ROOMS)}; default: all")
    parser.add_argument("--sample", type=int, help="try so many mutants, chosen over all rooms")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--least", type=float, default=LEAST, help=f"per cent; default: {LEAST}")
    asked = parser.parse_args()
    if lost := misfits():
        sys.exit("equivalent.toml names mutants that are none any more:\n" + "\n".join(lost))
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    for library in LIBRARIES:
        importlib.import_module(library)
    assert not any(name.split(".")[0] == "sidecar" for name in sys.modules), "the mutants would not be imported"
    began_s, scores = time.monotonic(), []
    for name, (chosen, equivalent) in choose(asked.room or list(ROOMS), asked.sample, asked.seed).items():
        done = score(name, chosen, equivalent)
        scores.append(done)
        by_time = f", {done.by_time} of them by time" if done.by_time else ""
        print(
            f"{name}: {done.killed} of {done.tried} killed ({100 * done.killed / done.tried:.1f} %){by_time}; "
            f"{done.equivalent} equivalent, not tried",
            flush=True,
        )
    killed, tried = sum(one.killed for one in scores), sum(one.tried for one in scores)
    print(f"all: {killed} of {tried} killed ({100 * killed / tried:.1f} %) in {time.monotonic() - began_s:.0f} s")
    rates = [100 * killed / tried] if asked.sample else [100 * one.killed / one.tried for one in scores]
    return 0 if min(rates) >= asked.least else 1


if __name__ == "__main__":
    sys.exit(main())
