"""Runs the simulation from the command line.

python tests/simulation/replay.py SEED                      one seed again, with its log, and shrunk if it fails
python tests/simulation/replay.py --seeds 1000000 --jobs 2  seeds from --first on, until one fails

What a seed gives, and where it is made
---------------------------------------
=========================  ============================================================================================
the whole daemon           ``Life`` (``sim_life.py``): receive, outbox, mapping, deliver as they are, and how it starts
in-memory network          ``FakeNetwork`` in ``Life``; connections of apps: ``sim_clients.py``, six ways
virtual time, seeded       ``JumpingClock`` and ``_seeded`` (``sim_run.py``)
store calls inline         ``Runner`` (``sim_life.py``)
a model of PX              ``Px`` (``sim_px.py``)
producers                  ``_traffic`` (``sim_draw.py``); some lose patience, some send again what was sent
restarts                   ``do_restart`` (``sim_world.py``), with a second signal; ``do_reboot``: another boot
crashes                    ``do_crash``: between two steps of any task, or in a commit or checkpoint: what was committed and
                           a random prefix of the rest (``Files.torn`` in ``sim_disk.py``)
slow disks                 ``do_slow_disk``, ``Runner``
commit errors              ``do_disk_error``, ``Disk``: full, busy, I/O error, I/O error after the commit; also elsewhere
PX faults                  ``NOT_PROCESSED`` and ``Px.answer``: refused connection, hang, late, drip, reset before and after,
                           garbage, 429, Retry-After of every form, 401, 403 with JSON and HTML, 3xx, 4xx, 404, 5xx
clock steps                ``do_clock``: seconds, an hour, a day, both ways
configuration reloads      ``_reload`` (``sim_operator.py``): rate, slots, retries, the day, people; and configurations with a mistake
replays                    ``_retry_dead``; beside it discarding, forgetting a user, pausing; ``carry_away``
too little room            ``_padded`` (``sim_draw.py``): events refused, or the oldest dropped
history, ids, letters,     ``Keeping`` (``sim_scenario.py``): kept for seconds, so that all leave and some come again
users that leave
several apps               ``_of_apps`` (``sim_draw.py``): two keys and products, the same users
people who look            ``_look``: status, events, letters, what was delivered, the live feed
four states                ``_check_counters``, ``_check_outcomes`` (``sim_account.py``); nothing answered is lost:
                           ``_check_accepted``; nor what was deleted: ``_GONE`` (``sim_disk.py``)
repeats recognised         ``_check_stored_again``
ceiling, quota             ``_check_pace``, ``_check_day``
order per user             ``_check_order``
few duplicates             ``_check_repeats``
memory bounded             ``_check_loaded``; what is remembered of users: ``_check_memory``
one command, shrunk        ``failure``, ``replay``, ``sim_shrink.py``
each kind does occur       ``test_simulation.py``
=========================  ============================================================================================
"""

import argparse
import gc
import multiprocessing
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import msgspec
from sim_draw import draw
from sim_run import run
from sim_shrink import shrink

BLOCK = 50  # seeds that a process gets at a time
TELL_EVERY_S = 30.0
# What runs leave behind is never collected, only given back when its process ends: that is soon enough (a run leaves a
# quarter of a MiB), and looking for it costs as much as a tenth of the runs.
BLOCKS_PER_PROCESS = 40


def failure(seed: int, met: Counter[str] | None = None) -> str | None:
    """Run a seed; None if all is well, else what was wrong and how to see it again. ``met`` grows by what it met."""
    done = run(draw(seed))
    if met is not None:
        met.update(done.met)
    if done.error is None:
        return None
    return f"seed {seed}: {done.error!r}\nto see it again: python tests/simulation/replay.py {seed}"


def replay(seed: int) -> int:
    """Run a seed with its log; shrink it if it fails."""
    scenario = draw(seed)
    done = run(scenario)
    if done.error is not None:
        scenario = shrink(scenario, lambda smaller: run(smaller).error)
        done = run(scenario)
        print(msgspec.json.format(msgspec.json.encode(scenario)).decode())
    print("\n".join(done.lines))
    if done.error is None:
        print(f"seed {seed}: all is well")
        return 0
    traceback.print_exception(done.error)
    return 1


def _block(seeds: range) -> tuple[int, list[str]]:
    return len(seeds), [wrong for seed in seeds if (wrong := failure(seed)) is not None]


def search(first: int, seeds: int, jobs: int, *, keep_going: bool) -> int:
    """Run many seeds, in ``jobs`` processes at a time; 1 if one failed."""
    began_s = told_s = time.monotonic()
    count = failed = 0

    def so_far() -> str:
        rate = count / (time.monotonic() - began_s)
        return f"{count} of {seeds} seeds from {first}, {failed} failed, {rate:.1f} seeds/s"

    blocks = (range(at, min(at + BLOCK, first + seeds)) for at in range(first, first + seeds, BLOCK))
    with multiprocessing.get_context("spawn").Pool(jobs, gc.disable, maxtasksperchild=BLOCKS_PER_PROCESS) as pool:
        for size, wrong in pool.imap_unordered(_block, blocks):
            count, failed = count + size, failed + len(wrong)
            for said in wrong:
                print(said, flush=True)
            if wrong and not keep_going:
                break
            if time.monotonic() - told_s > TELL_EVERY_S:
                told_s = time.monotonic()
                print(so_far(), flush=True)
    print(so_far())
    return 1 if failed else 0


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seed", type=int, nargs="?", help="one seed again")
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the seeds")
    parser.add_argument("--keep-going", action="store_true", help="go on after a failure")
    asked = parser.parse_args()
    if asked.seed is not None:
        return replay(asked.seed)
    return search(asked.first, asked.seeds, asked.jobs, keep_going=asked.keep_going)


if __name__ == "__main__":
    sys.exit(main())
