"""Plants bugs, one at a time, into a copy of the source, and shows which machine finds each.

    python tests/planted/plant.py              every bug, until the first machine has found it
    python tests/planted/plant.py NAME --all   one bug, every machine

A bug is a change of the source text that must still fit: if it does not, the source has moved on and the bug is to be
planted anew. A machine is one command; it finds a bug if it fails with the bug and not without it.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
SEEDS = 600
LIMIT_S = 400

MACHINES = {
    "simulation": ("tests/simulation/replay.py", "--seeds", str(SEEDS)),
    "broken off": ("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/simulation/test_cancellation.py"),
    "store calls": ("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/simulation/test_store_calls.py"),
}


class Bug(NamedTuple):
    """``before`` becomes ``after`` in ``path``; ``finder`` is the machine that is asked first."""

    name: str
    path: str
    before: str
    after: str
    finder: str = "simulation"


class Found(NamedTuple):
    """What a machine said: the line that names the failure, and how long it took."""

    machine: str
    what: str
    took_s: float


BUGS = (
    Bug(
        "answer before commit",
        "sidecar/outbox/writer.py",
        "        started_s = self._clock.monotonic_s()\n        try:\n            problem = await",
        "        started_s = self._clock.monotonic_s()\n"
        "        for note in work.accepts:\n"
        "            note.answer = Accepted(len(note.what), 0)\n"
        "            note.done.set()\n"
        "        try:\n            problem = await",
    ),
    Bug(
        "settle before the answer",
        "sidecar/deliver/shell.py",
        "                reply = await lane.lane.send(request)\n",
        "                from sidecar.outbox import State\n\n"
        "                self._settle(Settlement(item.id, item.high, State.DELIVERED, status=201), more_expected=True)\n"
        "                reply = await lane.lane.send(request)\n",
    ),
    Bug(
        "bucket that starts full",
        "sidecar/deliver/bucket.py",
        "        latest_s = started_s + TOLERANCE_S + ROUNDING_S",
        "        latest_s = started_s - self._window_s",
    ),
    Bug(
        "a lock released on cancellation",
        "sidecar/outbox/runner.py",
        "        return await trio.to_thread.run_sync(call, limiter=self._limiter)\n",
        "        try:\n"
        "            return await trio.to_thread.run_sync(call, limiter=self._limiter, abandon_on_cancel=True)\n"
        "        except trio.Cancelled:\n"
        "            self._limiter = trio.CapacityLimiter(1)\n"
        "            raise\n",
        "store calls",
    ),
    Bug(
        "order lost on retry",
        "sidecar/deliver/order.py",
        "        queue = self._queues[item.turn]\n        while len(queue) > 1:\n",
        "        queue, turn = self._queues[item.turn], item.turn\n"
        "        queue.popleft()\n"
        "        self._next_of(turn, queue)\n"
        "        item.turn = (item.high, -item.id)\n"
        "        self._queues[item.turn] = queue = deque([item])\n"
        "        while len(queue) > 1:\n",
    ),
    Bug(
        "mapped when its turn comes",
        "sidecar/deliver/dispatcher.py",
        "        until_s = self._leave_at_s(item, leave, now_s)\n",
        "        if item.prepared is None and (settlement := self._prepare(item)):\n"
        "            self._order.take(item)\n"
        "            return self._finish(item, settlement)\n"
        "        until_s = self._leave_at_s(item, leave, now_s)\n",
    ),
    Bug(
        "a lease used before it is in the file",
        "sidecar/deliver/shell.py",
        "            await self._outbox.write(partial(_save_lease, lease))\n"
        "        except SidecarError:\n"
        "            # The outbox says on its own surfaces what is wrong with the disk; the quota just asks again.\n"
        "            self.dispatcher.quota.abandoned(lease)\n",
        "            self.dispatcher.quota.granted(lease)\n"
        "            self._decide_again.set()\n"
        "            return await self._outbox.write(partial(_save_lease, lease))\n"
        "        except SidecarError:\n"
        "            pass\n",
    ),
    Bug(
        "a pause that a restart forgets",
        "sidecar/deliver/destination.py",
        'return {"operator": self._operator_since_s is not None,',
        'return {"operator": False,',
    ),
    Bug(
        "the reserve for high events is used by all",
        "sidecar/deliver/quota.py",
        "        wait_s = self._wait_s(self.per_day if high else self._normal_limit)\n",
        "        wait_s = self._wait_s(self.per_day)\n",
    ),
)


def copy_source(to: Path) -> None:
    """What the machines need, and nothing that a run has left behind."""
    ignore = shutil.ignore_patterns("__pycache__", ".*_cache")
    for name in ("sidecar", "tests/simulation"):
        shutil.copytree(ROOT / name, to / name, ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", to / "pyproject.toml")


def plant(bug: Bug, source: Path) -> None:
    """Change the source. Raises ValueError if the bug does not fit it exactly once."""
    path = source / bug.path
    text = path.read_text(encoding="utf-8")
    if text.count(bug.before) != 1:
        raise ValueError(f"the bug “{bug.name}” does not fit {bug.path} any more; plant it anew")
    path.write_text(text.replace(bug.before, bug.after), encoding="utf-8")


def ask(machine: str, source: Path) -> Found | None:
    """Run a machine on a copy of the source; what it found."""
    began_s = time.monotonic()
    # A source with a bug in it is not what coverage is to measure.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    environment |= {"PYTHONPATH": str(source), "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, *MACHINES[machine]],
        cwd=source,
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    if done.returncode == 0:
        return None
    said = (done.stdout + done.stderr).strip()
    telling = [
        line for line in said.splitlines() if "Error(" in line or line.lstrip("E |+").startswith("AssertionError")
    ]
    if done.returncode != 1 or not telling:
        raise RuntimeError(f"the machine “{machine}” is broken:\n{said[-3000:]}")
    return Found(machine, telling[0].strip()[:200], time.monotonic() - began_s)


def look_for(bug: Bug | None, machines: list[str]) -> list[Found]:
    """Plant a bug (or none) in a fresh copy and ask machines, until one has found it; all that were asked first."""
    found: list[Found] = []
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder)
        copy_source(source)
        if bug is not None:
            plant(bug, source)
        for machine in machines:
            if said := ask(machine, source):
                found.append(said)
    return found


def machines_for(bug: Bug, *, every: bool) -> list[str]:
    """The machines to ask, the one that should know first."""
    return [bug.finder, *(one for one in MACHINES if one != bug.finder)] if every else [bug.finder]


def main() -> int:
    """The command; 0 only if every bug was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", choices=[bug.name for bug in BUGS])
    parser.add_argument("--all", action="store_true", help="ask every machine")
    asked = parser.parse_args()
    missed = 0
    for bug in BUGS:
        if asked.name in (None, bug.name):
            found = look_for(bug, machines_for(bug, every=asked.all))
            missed += not found
            print(f"{bug.name}: {'found' if found else 'NOT FOUND'}", flush=True)
            for machine, what, took_s in found:
                print(f"    by {machine} in {took_s:.1f} s: {what}", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
