"""Run the simulation from the command line.

python tests/machines/simulation/replay.py SEED                      one seed with its log; shrunk if it fails
python tests/machines/simulation/replay.py --seeds 1000000 --jobs 2  seeds from --first on, until one fails

What a seed contains, and where it is implemented
--------------------------------------------------
=========================  ============================================================================================
the whole daemon           ``Process`` (``sim_process.py``): receive, outbox, mapping, deliver unchanged, and its start
in-memory network          ``FakeNetwork`` in ``Process``; connections of apps: ``sim_clients.py``, six ways
virtual time, seeded       ``JumpingClock`` and ``_seeded`` (``sim_run.py``)
store calls inline         ``Runner`` (``sim_process.py``)
a model of PX              ``Px`` (``sim_px.py``)
producers                  ``_traffic`` (``sim_draw.py``); some give up, some send an event again
restarts                   ``do_restart`` (``sim_world.py``), some with a second signal; ``do_reboot``: another boot
crashes                    ``do_crash``: between two steps of any task, or within a commit or checkpoint: the committed data and
                           a random prefix of the rest (``Files.torn`` in ``sim_disk.py``)
slow disks                 ``do_slow_disk``, ``Runner``
commit errors              ``do_disk_error``, ``Disk``: full, busy, I/O error, I/O error after the commit; also elsewhere
PX faults                  ``NOT_PROCESSED`` and ``Px.answer``: refused connection, hang, late, drip, reset before and after,
                           garbage, 429, Retry-After of every form, 401, 403 with JSON and HTML, 3xx, 4xx, 404, 5xx
clock steps                ``do_clock``: seconds, an hour, a day, both ways; ``do_wrong_clock`` and ``do_reboot``: for a while
freezes                    ``do_freeze``: the clocks of the host go on, that of the loop stands still
files taken away           ``do_file_fault``, ``Disk.take_files``: the outbox or its log removed, the outbox replaced by a copy
configuration reloads      ``_reload`` (``sim_operator.py``): rate, slots, retries, day, people; and invalid configurations
replays                    ``_retry_dead``; also discard, forget, pause; ``export_pending``
too little space           ``_padded`` (``sim_draw.py``): events refused, or the oldest dropped
retention                  ``StorageLimits`` (``sim_scenario.py``): history, ids, letters and users kept for seconds
several apps               ``_with_apps`` (``sim_draw.py``): two keys and products, the same users
readers                    ``_read``: status, events, letters, deliveries, the live feed
four states                ``_check_counters``, ``_check_outcomes`` (``sim_check.py``); nothing answered is lost:
                           ``_check_accepted``; deleted rows: ``_LEDGER`` (``sim_disk.py``)
duplicates recognized      ``_check_stored_again``
ceiling, quota             ``_check_pace``, ``_check_day``
order per user             ``_check_order``
few duplicates             ``_check_repeats``
memory bounded             ``_check_loaded`` (``sim_monitor.py``); memory of users: ``_check_memory``
replay and shrinking       ``failure``, ``replay``, ``sim_shrink.py``
every kind occurs          ``test_simulation.py``
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

BLOCK = 50  # seeds per task of a worker process
REPORT_EVERY_S = 30.0
# Workers run without garbage collection (it would cost a tenth of the time) and leak about a quarter of a MiB per run, so
# they are replaced after this many blocks.
BLOCKS_PER_PROCESS = 40


def failure(seed: int, coverage: Counter[str] | None = None) -> str | None:
    """Run a seed; return None, or the error and the command that repeats it. ``coverage`` is increased by the run's."""
    outcome = run(draw(seed))
    if coverage is not None:
        coverage.update(outcome.coverage)
    if outcome.error is None:
        return None
    return f"seed {seed}: {outcome.error!r}\nto repeat it: python tests/machines/simulation/replay.py {seed}"


def replay(seed: int) -> int:
    """Run a seed and print its log; shrink it if it fails. Return the exit code."""
    scenario = draw(seed)
    outcome = run(scenario)
    if outcome.error is not None:
        scenario = shrink(scenario, lambda smaller: run(smaller).error)
        outcome = run(scenario)
        print(msgspec.json.format(msgspec.json.encode(scenario)).decode())
    print("\n".join(outcome.lines))
    if outcome.error is None:
        print(f"seed {seed}: passed")
        return 0
    traceback.print_exception(outcome.error)
    return 1


def _run_block(seeds: range) -> tuple[int, list[str]]:
    return len(seeds), [failures for seed in seeds if (failures := failure(seed)) is not None]


def search(first: int, seeds: int, jobs: int, *, keep_going: bool) -> int:
    """Run many seeds in ``jobs`` processes; return 1 if one failed."""
    started_s = reported_s = time.monotonic()
    count = failed = 0

    def summary() -> str:
        rate = count / (time.monotonic() - started_s)
        return f"{count} of {seeds} seeds from {first}, {failed} failed, {rate:.1f} seeds/s"

    blocks = (range(start, min(start + BLOCK, first + seeds)) for start in range(first, first + seeds, BLOCK))
    with multiprocessing.get_context("spawn").Pool(jobs, gc.disable, maxtasksperchild=BLOCKS_PER_PROCESS) as pool:
        for size, failures in pool.imap_unordered(_run_block, blocks):
            count, failed = count + size, failed + len(failures)
            for message in failures:
                print(message, flush=True)
            if failures and not keep_going:
                break
            if time.monotonic() - reported_s > REPORT_EVERY_S:
                reported_s = time.monotonic()
                print(summary(), flush=True)
    print(summary())
    return 1 if failed else 0


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seed", type=int, nargs="?", help="repeat this seed")
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the seeds")
    parser.add_argument("--keep-going", action="store_true", help="continue after a failure")
    options = parser.parse_args()
    if options.seed is not None:
        return replay(options.seed)
    return search(options.first, options.seeds, options.jobs, keep_going=options.keep_going)


if __name__ == "__main__":
    sys.exit(main())
