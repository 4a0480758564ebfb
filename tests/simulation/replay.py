"""Runs the simulation from the command line.

python tests/simulation/replay.py SEED            one seed again, with its log, and shrunk if it fails
python tests/simulation/replay.py --seeds 100000  seeds from --first on, until one fails
"""

import argparse
import logging
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import msgspec
from sim_account import check
from sim_scenario import Scenario, draw
from sim_shrink import shrink
from sim_world import simulate

IN_MEMORY = Path("/dev/shm")


def run(scenario: Scenario) -> tuple[list[str], BaseException | None]:
    """Run a scenario in a folder of its own."""
    logging.getLogger("sidecar").setLevel(logging.CRITICAL + 1)
    with tempfile.TemporaryDirectory(dir=IN_MEMORY if IN_MEMORY.is_dir() else None) as folder:
        return simulate(scenario, Path(folder), check)


def failure(seed: int) -> str | None:
    """Run a seed; None if all is well, else what was wrong and how to see it again."""
    _, error = run(draw(seed))
    if error is None:
        return None
    return f"seed {seed}: {error!r}\nto see it again: python tests/simulation/replay.py {seed}"


def replay(seed: int) -> int:
    """Run a seed with its log; shrink it if it fails."""
    scenario = draw(seed)
    lines, error = run(scenario)
    if error is not None:
        scenario = shrink(scenario, lambda smaller: run(smaller)[1])
        lines, error = run(scenario)
        print(msgspec.json.format(msgspec.json.encode(scenario)).decode())
    print("\n".join(lines))
    if error is None:
        print(f"seed {seed}: all is well")
        return 0
    import traceback

    traceback.print_exception(error)
    return 1


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seed", type=int, nargs="?")
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--keep-going", action="store_true", help="go on after a failure")
    asked = parser.parse_args()
    if asked.seed is not None:
        return replay(asked.seed)
    began_s, failed = time.monotonic(), 0
    for count, seed in enumerate(range(asked.first, asked.first + asked.seeds), 1):
        wrong = failure(seed)
        if wrong is not None:
            failed += 1
            print(wrong, flush=True)
            if not asked.keep_going:
                break
        if count % 1000 == 0:
            print(f"{count} seeds, {count / (time.monotonic() - began_s):.1f}/s", flush=True)
    print(f"{count} seeds from {asked.first}, {failed} failed, {count / (time.monotonic() - began_s):.1f} seeds/s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
