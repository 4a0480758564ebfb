"""Mutation testing of the pure components: does a test fail for every small change of a decision?

    python tests/machines/mutation/mutate.py                          every mutant of every component
    python tests/machines/mutation/mutate.py bucket retry             every mutant of these components
    python tests/machines/mutation/mutate.py --sample 20 --seed 7     a sample, the same one for the same seed

A mutant (mutants.py) is tried (trial.py) against the unit tests of its component. It is killed if a test fails or the tests
exceed their processor time. Survivors are printed. A mutant that no test can distinguish from the original is listed in
equivalent.toml with the reason, and not tried. The exit code is 1 if fewer than ``--least`` per cent of the tried mutants
of any component are killed; with ``--sample``, of all components together.
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
from trial import LIMIT_FACTOR, MIN_LIMIT_S, try_quickly, try_thoroughly

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
MIN_PER_CENT = 90


class Component(NamedTuple):
    """Source files and the tests that must fail for a change of them, quick ones first."""

    sources: tuple[str, ...]
    tests: tuple[str, ...]


MAPPING = (
    "names",
    "values",
    "fields",
    "attributes",
    "people",
    "privacy",
    "peers",
    "explain",
    "dates",
    "filters",
    "idle_rules",
    "exports",
)
COMPONENTS = {
    "bucket": Component(("sidecar/deliver/bucket.py",), ("tests/deliver/test_bucket.py",)),
    "quota": Component(
        ("sidecar/deliver/quota.py",),
        tuple(f"tests/deliver/test_{name}.py" for name in ("quota_edges", "quota_reload", "quota", "clock_rule")),
    ),
    "retry": Component(("sidecar/deliver/retry.py",), ("tests/deliver/test_retry.py",)),
    "destination": Component(
        ("sidecar/deliver/destination.py",),
        ("tests/deliver/test_destination.py", "tests/deliver/test_destination_edges.py"),
    ),
    "order": Component(
        ("sidecar/deliver/order.py", "sidecar/deliver/attempt.py"),
        tuple(
            f"tests/deliver/test_{name}.py"
            for name in ("order_edges", "attempt", "order", "order_waiting", "order_after_restart")
        ),
    ),
    "dispatcher": Component(
        ("sidecar/deliver/dispatcher.py",),
        tuple(
            f"tests/deliver/test_{name}.py"
            for name in ("dispatcher", "dispatcher_edges", "rules_without_permission", "delivery_failures")
        ),
    ),
    "mapping": Component(
        tuple(sorted(str(path.relative_to(ROOT)) for path in (ROOT / "sidecar/mapping").glob("*.py"))),
        (
            *(f"tests/mapping/test_mapping_{name}.py" for name in MAPPING),
            *("tests/mapping/test_map_command.py", "tests/mapping/test_mapping_reference.py"),
            *("tests/mapping/test_mapping_datafly.py", "tests/mapping/test_mapping_invariants.py"),
        ),
    ),
    "answers": Component(("sidecar/px/answers.py",), ("tests/px/test_answers.py",)),
}


class Score(NamedTuple):
    """The outcome of the mutants of a component."""

    component: str
    tried: int
    killed: int
    by_time: int
    equivalent: int
    survivors: list[Mutant]


# --- a component ---


def equivalents() -> dict[str, dict[str, str]]:
    """Return path → name of the mutant → why no test can distinguish it from the original."""
    read: dict[str, dict[str, str]] = tomllib.loads(EQUIVALENT.read_text(encoding="utf-8"))
    return read


def stale_equivalents() -> list[str]:
    """Return the entries of equivalent.toml that no longer name a mutant."""
    return [
        f"{path} {name}"
        for path, names in equivalents().items()
        for name in names.keys() - {mutant.name for mutant in mutants_of(path)}
    ]


def score(name: str, chosen: list[Mutant], equivalent: int) -> Score:
    """Try the chosen mutants of a component. Raises RuntimeError if its tests fail without a mutant."""
    component = COMPONENTS[name]
    baseline = try_thoroughly(component.tests, component.sources[0], parse(component.sources[0]), 600, quiet=False)
    if baseline.killed:
        raise RuntimeError(f"the tests of {name} fail without a mutant")
    limit_s = MIN_LIMIT_S + LIMIT_FACTOR * baseline.cpu_s
    killed, by_time, survivors = 0, 0, []
    for mutant, quick in zip(chosen, try_quickly(component.tests, chosen, limit_s), strict=True):
        end = quick if quick.killed else try_thoroughly(component.tests, mutant.path, mutant.tree(), limit_s)
        killed += end.killed
        by_time += end.by_time
        if not end.killed:
            survivors.append(mutant)
            print(f"  survived: {mutant}", flush=True)
    return Score(name, len(chosen), killed, by_time, equivalent, survivors)


def choose(components: list[str], sample: int | None, seed: int) -> dict[str, tuple[list[Mutant], int]]:
    """Return the mutants to try per component, and the number of equivalent ones left out."""
    known = equivalents()
    chosen = {}
    for name in components:
        every = [mutant for path in COMPONENTS[name].sources for mutant in mutants_of(path)]
        distinguishable = [mutant for mutant in every if mutant.name not in known.get(mutant.path, {})]
        chosen[name] = (distinguishable, len(every) - len(distinguishable))
    if sample is not None:
        pool = [(name, mutant) for name, (distinguishable, _) in chosen.items() for mutant in distinguishable]
        picked = random.Random(seed).sample(pool, min(sample, len(pool)))
        chosen = {
            component: ([mutant for name, mutant in picked if name == component], chosen[component][1])
            for component in chosen
        }
    return {name: (mutants, equivalent) for name, (mutants, equivalent) in chosen.items() if mutants}


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "component", nargs="*", choices=[*COMPONENTS, []], help=f"one of {', '.join(COMPONENTS)}; default: all"
    )
    parser.add_argument("--sample", type=int, help="try this many mutants, chosen over all components")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--least", type=float, default=MIN_PER_CENT, help=f"per cent; default: {MIN_PER_CENT}")
    options = parser.parse_args()
    if stale := stale_equivalents():
        sys.exit("equivalent.toml names mutants that do not exist any more; update it:\n" + "\n".join(stale))
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    for library in LIBRARIES:
        importlib.import_module(library)
    assert not any(name.split(".")[0] == "sidecar" for name in sys.modules), (
        "sidecar is imported already: mutated modules would not be loaded"
    )
    started_s, scores = time.monotonic(), []
    for name, (chosen, equivalent) in choose(
        options.component or list(COMPONENTS), options.sample, options.seed
    ).items():
        done = score(name, chosen, equivalent)
        scores.append(done)
        by_time = f", {done.by_time} of them by time" if done.by_time else ""
        print(
            f"{name}: {done.killed} of {done.tried} killed ({100 * done.killed / done.tried:.1f} %){by_time}; "
            f"{done.equivalent} equivalent, not tried",
            flush=True,
        )
    killed, tried = sum(done.killed for done in scores), sum(done.tried for done in scores)
    print(f"all: {killed} of {tried} killed ({100 * killed / tried:.1f} %) in {time.monotonic() - started_s:.0f} s")
    rates = [100 * killed / tried] if options.sample else [100 * done.killed / done.tried for done in scores]
    return 0 if min(rates) >= options.least else 1


if __name__ == "__main__":
    sys.exit(main())
