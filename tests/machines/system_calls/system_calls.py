"""Every write, sync, truncation, allocation and read of the outbox's files fails once, at the system call.

    python tests/machines/system_calls/system_calls.py                every call with every error, six minutes
    python tests/machines/system_calls/system_calls.py --every 15     a fifteenth of them

The scripted day of ``outbox_day.py`` runs in a child process under ``strace``, which lets the n-th call of a kind on the
outbox's files fail with an error of the kernel. SQLite handles it with its real code, files and syncs. Faults of the calls
*to* SQLite are in ``tests/outbox``. A process that cannot start is started again, as systemd does.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
SUPPORT = HERE.parents[1] / "support"
sys.path[:0] = [str(SUPPORT), str(HERE.parents[2])]

from outbox_day import check_day  # noqa: E402

__all__ = ["FAULTS", "Fault", "can_trace", "faults_of_a_day", "try_fault"]

FILES = ("", "o.db", "o.db-wal", "o.db-journal", "o.db.reserve")  # the first is the folder, which is synced, too
FAULTS = {
    "pwrite64": ("EIO", "ENOSPC"),
    "fdatasync": ("EIO",),
    "ftruncate": ("EIO",),
    "fallocate": ("ENOSPC",),
    "pread64": ("EIO",),
}
LIMIT_S = 60
# The day in virtual time on real files; the last line of output holds the promises made.
CHILD = """
import json, sqlite3, sys
import trio, trio.testing
import sidecar.outbox.database, sidecar.outbox.capacity
from pathlib import Path
from outbox_day import Day
from sidecar.errors import SidecarError

sidecar.outbox.database.wal_bytes = sidecar.outbox.capacity.wal_bytes = lambda _folder: 65_536

async def main():
    try:
        day = Day(Path(sys.argv[1]), durability="disk")
    except (sqlite3.OperationalError, SidecarError) as error:
        sys.exit(f"AGAIN {error}")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(day.outbox.run)
        await day.run()
    day.store.connection.close()
    print(json.dumps({"answered": sorted(day.answered), "settled": day.settled}))

trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
"""


class Fault(NamedTuple):
    """The ``number``-th ``call`` (from 1) fails with ``error``."""

    call: str
    error: str
    number: int


def can_trace() -> bool:
    """Return whether strace is installed and may trace."""
    probe = ["strace", "-qq", "-e", "trace=none", "true"]
    return (
        shutil.which("strace") is not None and subprocess.run(probe, capture_output=True, check=False).returncode == 0
    )


def _run_child(folder: Path, log: Path, *strace: str) -> subprocess.CompletedProcess[str]:
    paths = [word for name in FILES for word in ("-P", str(folder / name))]
    command = ["strace", "-f", "-qq", "-o", str(log), *paths, *strace]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    environment |= {"PYTHONPATH": f"{SUPPORT}:{HERE.parents[2]}", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [*command, sys.executable, "-c", CHILD, str(folder / "o.db")],
        capture_output=True, text=True, timeout=LIMIT_S, env=environment, check=False,
    )  # fmt: skip


def calls_of_a_day(folder: Path) -> Counter[str]:
    """Return the number of calls of each kind in a day without faults."""
    log = folder / "strace.log"
    done = _run_child(folder, log, "-e", f"trace={','.join(FAULTS)}")
    _check(folder, done)
    named = (line.split(maxsplit=1)[1].partition("(")[0] for line in log.read_text().splitlines())
    return Counter(name for name in named if name in FAULTS)


def faults_of_a_day(every: int = 1) -> list[Fault]:
    """Return each call of the day with each of its errors; with ``every`` only each n-th of each kind."""
    with tempfile.TemporaryDirectory() as folder:
        calls = calls_of_a_day(Path(folder))
    return [
        Fault(call, error, number)
        for call, errors in FAULTS.items()
        for shift, error in enumerate(errors)
        for number in range(1 + (shift * every // 2) % every, calls[call] + 1, every)
    ]


def try_fault(fault: Fault) -> bool:
    """Run a day with this fault; return whether it was injected. Raises AssertionError if a promise is broken."""
    with tempfile.TemporaryDirectory() as name:
        folder, log = Path(name), Path(name) / "strace.log"
        inject = f"inject={fault.call}:error={fault.error}:when={fault.number}"
        done = _run_child(folder, log, "-e", f"trace={fault.call}", "-e", inject)
        if done.returncode and done.stderr.startswith("AGAIN"):
            done = _run_child(folder, folder / "again.log", "-e", "trace=none")
        _check(folder, done)
        return "INJECTED" in log.read_text()


def _check(folder: Path, done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stderr[-2000:]
    summary = json.loads(done.stdout)
    check_day(folder / "o.db", set(summary["answered"]), summary["settled"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, help="try only each n-th call")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    options = parser.parse_args()
    if not can_trace():
        sys.exit("strace cannot trace here; install it, and allow ptrace.")
    tried: Counter[str] = Counter()
    failed = 0

    def attempt(fault: Fault) -> tuple[Fault, bool, str | None]:
        try:
            return fault, try_fault(fault), None
        except AssertionError:  # often without a message
            return fault, True, traceback.format_exc(limit=-1)

    faults = faults_of_a_day(options.every)
    with ThreadPoolExecutor(options.jobs) as pool:
        for done, (fault, injected, failure) in enumerate(pool.map(attempt, faults), 1):
            tried[f"{fault.call} {fault.error}"] += injected
            if failure is not None:
                failed += 1
                print(f"{fault}: {failure}", flush=True)
            if done % 50 == 0:
                print(f"{done} of {len(faults)} faults, {failed} failed", flush=True)
    print(", ".join(f"{name}: {count}" for name, count in tried.items()) + f"; {failed} failed")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
