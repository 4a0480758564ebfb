"""Plant bugs, one at a time, into a copy of the source, and report which machine finds each.

    python tests/machines/planted/plant.py              every bug, with the machine that should find it
    python tests/machines/planted/plant.py NAME --all   one bug, every machine

A bug is a replacement of source text. If the text no longer occurs exactly once, the source has changed and the bug must
be updated. A machine is one command; it finds a bug if it fails with the bug and passes without it.
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

ROOT = Path(__file__).resolve().parents[3]
SEEDS = 600
TIMEOUT_S = 400

MACHINES = {
    "simulation": ("tests/machines/simulation/replay.py", "--seeds", str(SEEDS)),
    "cancellation": (
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "tests/machines/simulation/test_cancellation.py",
    ),
    "store calls": (
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "tests/machines/simulation/test_store_calls.py",
    ),
    # One freeze, in the last round.
    "kill storm": ("tests/machines/kill_storm/storm.py", "--rounds", "5", "--seed", "1"),
}


def _tests(*paths: str) -> tuple[str, ...]:
    return ("-m", "pytest", "-q", "-x", "--no-cov", "-p", "no:cacheprovider", *paths)


MACHINES |= {
    "files": _tests(
        "tests/outbox/test_outbox_gone.py", "tests/outbox/test_outbox_rescue.py", "tests/outbox/test_outbox_lock.py"
    ),
    "readers": _tests("tests/outbox/test_outbox_readers.py"),
    "recovery": _tests("tests/machines/powerloss/test_recovery_cuts.py"),
    "sockets": _tests("tests/receive/test_socket_watch.py"),
    "log": _tests("--timeout=20", "tests/observe/test_log_queue.py"),
    "hung disk": _tests("tests/process/test_hung_disk.py"),
    "requests": _tests("tests/outbox/test_accept_queue.py", "tests/http/test_http_budget.py"),
    "waiting": _tests("tests/deliver/test_order_waiting.py"),
    "delivery log": _tests("tests/observe/test_delivery_log.py"),
    "steps": _tests("tests/outbox/test_outbox_steps.py"),
    "connections": _tests("tests/px/test_odd_answers.py"),
    "views": _tests("tests/control/test_control_read.py"),
}


class Bug(NamedTuple):
    """``before`` becomes ``after`` in ``path``; ``finder`` is the machine that should find it."""

    name: str
    path: str
    before: str
    after: str
    finder: str = "simulation"


class Finding(NamedTuple):
    """The failure that a machine reported, and its duration."""

    machine: str
    what: str
    took_s: float


BUGS = (
    Bug(
        "answer before commit",
        "sidecar/outbox/writer.py",
        "        started_s = self._clock.monotonic_s()\n        try:\n            problem = await",
        "        started_s = self._clock.monotonic_s()\n"
        "        for request in batch.accepts:\n"
        "            request.result = Accepted(len(request.payload), 0)\n"
        "            request.done.set()\n"
        "        try:\n            problem = await",
    ),
    Bug(
        "settle before the answer",
        "sidecar/deliver/delivery_loop.py",
        "                reply = await lane.lane.send(request, lane.departure)\n",
        "                from sidecar.outbox import EventState, Settlement\n\n"
        "                early = Settlement(event.id, event.priority, EventState.DELIVERED, status=201)\n"
        "                self._settle(early, more_expected=True)\n"
        "                reply = await lane.lane.send(request, lane.departure)\n",
    ),
    Bug(
        "bucket that starts full",
        "sidecar/deliver/bucket.py",
        "        latest_s = started_s + TOLERANCE_S + DEPARTURE_S + ROUNDING_S",
        "        latest_s = started_s - self._window_s",
    ),
    Bug(
        "a lock released on cancellation",
        "sidecar/outbox/writer.py",
        "            return await _in_thread(call)\n",
        "            return await trio.to_thread.run_sync(call, abandon_on_cancel=True)\n",
        "store calls",
    ),
    Bug(
        "order lost on retry",
        "sidecar/deliver/order.py",
        "        self._park_behind(self._queues[event.key], 1)\n",
        "        queue, key = self._queues[event.key], event.key\n"
        "        queue.popleft()\n"
        "        self._advance(key, queue)\n"
        "        event.key = (event.priority, -event.id)\n"
        "        self._queues[event.key] = deque([event])\n"
        "        self._park_behind(self._queues[event.key], 1)\n",
    ),
    Bug(
        "mapped when its turn comes",
        "sidecar/deliver/dispatcher.py",
        "        until_s = self._may_send_at_s(event, permission, now_s)\n",
        "        if event.attempt is None and (settlement := self._map(event)):\n"
        "            self._queues.take(event)\n"
        "            return self._finish(event, settlement)\n"
        "        until_s = self._may_send_at_s(event, permission, now_s)\n",
    ),
    Bug(
        "a lease used before it is in the file",
        "sidecar/deliver/delivery_loop.py",
        "            await self._outbox.write(partial(_save_lease, lease))\n"
        "        except SidecarError:\n"
        "            # The outbox reports the error of the disk; the quota asks for another lease.\n"
        "            self.dispatcher.limiter.abandoned(lease)\n",
        "            self.dispatcher.limiter.granted(lease)\n"
        "            self._signals.wake_decisions(now=True)\n"
        "            return await self._outbox.write(partial(_save_lease, lease))\n"
        "        except SidecarError:\n"
        "            pass\n",
    ),
    Bug(
        "a pause that a restart forgets",
        "sidecar/deliver/destination.py",
        'saved: dict[str, Any] = {"operator": self._operator_since_s is not None,',
        'saved: dict[str, Any] = {"operator": False,',
    ),
    Bug(
        "the reserve for high events is used by all",
        "sidecar/deliver/quota.py",
        "        return self.per_day if priority is Priority.HIGH else self._normal_limit\n",
        "        return self.per_day\n",
    ),
    Bug(
        "a clock that is believed at once",
        "sidecar/outbox/clock_trust.py",
        "self._boot_ms - self._since_boot_ms >= HOUR_MS",
        "self._boot_ms - self._since_boot_ms >= 0",
    ),
    Bug(
        "an answer although the file is gone",
        "sidecar/outbox/committer.py",
        "        if lost := self._ensure_in_place():\n            _fail(",
        "        if lost := None:\n            _fail(",
    ),
    Bug(
        "a replaced file is overwritten",
        "sidecar/outbox/rescue.py",
        "        if file not in (None, self._file):\n",
        "        if False:\n",
    ),
    Bug(
        "a request that is given up after SIGSTOP",
        "sidecar/deliver/delivery_loop.py",
        "                reply = await lane.lane.send(request, lane.departure)\n",
        "                from sidecar.px import Unknown\n\n"
        "                boot_s = self._clock.boot_s()\n"
        "                reply = await lane.lane.send(request, lane.departure)\n"
        "                if self._clock.boot_s() - boot_s > 3:\n"
        '                    reply = Unknown("no answer in time")\n',
        "kill storm",
    ),
    Bug(
        "a freeze counts for the deadline of a request",
        "sidecar/deliver/delivery_loop.py",
        "                reply = await lane.lane.send(request, lane.departure)\n",
        "                from sidecar.px import Unknown\n\n"
        "                boot_s = self._clock.boot_s()\n"
        "                reply = await lane.lane.send(request, lane.departure)\n"
        "                if self._clock.boot_s() - boot_s > 40:\n"
        '                    reply = Unknown("no answer in time")\n',
    ),
    Bug(
        "an empty outbox made by reopening",
        "sidecar/outbox/committer.py",
        "            in_place = self._watch.in_place()\n",
        "            in_place = True\n",
        "files",
    ),
    Bug(
        "an end that loses the only copy",
        "sidecar/outbox/writer.py",
        "        gone = isinstance(problem, OutboxGone)\n",
        "        gone = False\n",
        "files",
    ),
    Bug(
        "a lock on the lock file alone",
        "sidecar/outbox/lock.py",
        '            raise _not_locked(self.path, error, "") from None\n',
        "            return\n",
        "files",
    ),
    Bug(
        "a recovery that is renamed before it is synced",
        "sidecar/outbox/salvage.py",
        "        os.fsync(descriptor)\n",
        "        pass\n",
        "recovery",
    ),
    Bug(
        "half a recovery that stays on the full disk",
        "sidecar/outbox/recovery.py",
        "            _remove_database(new)  # half a copy is of no use, and would keep the disk full\n",
        "            pass\n",
        "recovery",
    ),
    Bug(
        "a log that counts for nothing",
        "sidecar/outbox/committer.py",
        "        self._capacity.measure(used_bytes, self._watch.log_bytes)\n",
        "        self._capacity.measure(used_bytes)\n",
        "readers",
    ),
    Bug(
        "a vanished socket that stays closed",
        "sidecar/receive/socket_watch.py",
        "        if found is not None:\n",
        "        if found is not None or ours is not None:\n",
        "sockets",
    ),
    Bug(
        "a log that waits for its reader",
        "sidecar/observe/log_queue.py",
        "            self._queue.put_nowait(text)\n",
        "            self._queue.put(text)\n",
        "log",
    ),
    Bug(
        "health that believes a hung disk for long",
        "sidecar/control/pages.py",
        "UNHEALTHY_AFTER_S = 5.0\n",
        "UNHEALTHY_AFTER_S = 15.0\n",
        "hung disk",
    ),
    Bug(
        "small requests behind a large one",
        "sidecar/outbox/accept_queue.py",
        "        (self._large if request.sliced else self._small).append(request)\n",
        "        self._large.append(request)\n",
        "requests",
    ),
    Bug(
        "requests that wait with what they expand to",
        "sidecar/http/budget.py",
        "            work.close()\n",
        "            return await in_slices(work, self.working), False\n",
        "requests",
    ),
    Bug(
        "connections that are garbage",
        "sidecar/http/connection.py",
        "            self._holder.evict = _nothing\n",
        "",
        "requests",
    ),
    Bug(
        "users that wait fill the window",
        "sidecar/deliver/order.py",
        "        self._bytes -= size_bytes\n        if self._waiting_bytes",
        "        if self._waiting_bytes",
        "waiting",
    ),
    Bug(
        "a log whose last line is not the state",
        "sidecar/observe/delivery_log.py",
        '            log.info("%s", self._wording.continues, extra=ALWAYS)\n',
        "",
        "delivery log",
    ),
    Bug(
        "a step that is bounded by rows alone",
        "sidecar/outbox/backlog.py",
        "        if len(settlements) == PAGE_ROWS or changed_bytes >= CHANGED_BYTES:\n",
        "        if len(settlements) == PAGE_ROWS:\n",
        "steps",
    ),
    Bug(
        "a connection to PX that is never renewed",
        "sidecar/px/connection.py",
        "LIFE_S * self._random.uniform(0.75, 1.0)",
        "LIFE_S * 100",
        "connections",
    ),
    Bug(
        "a page for apps that names users",
        "sidecar/control/pages.py",
        "        return Response(200, msgspec.json.encode(public_view(status_of(await reader.read()))))\n",
        "        return Response(200, msgspec.json.encode(status_of(await reader.read())))\n",
        "views",
    ),
)


def copy_source(to: Path) -> None:
    """Copy what the machines need, without caches."""
    ignore = shutil.ignore_patterns("__pycache__", ".*_cache")
    for name in (
        "sidecar",
        "tests/machines/kill_storm",
        "tests/machines/simulation",
        "tests/machines/powerloss",
        *(
            f"tests/{package}"
            for package in ("control", "deliver", "http", "observe", "outbox", "process", "px", "receive")
        ),
        "tests/support",
    ):
        shutil.copytree(ROOT / name, to / name, ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", to / "pyproject.toml")


def plant(bug: Bug, source: Path) -> None:
    """Change the source. Raises ValueError if the bug does not fit it exactly once."""
    path = source / bug.path
    text = path.read_text(encoding="utf-8")
    if text.count(bug.before) != 1:
        raise ValueError(f"the bug “{bug.name}” does not fit {bug.path} any more; update it in plant.py")
    path.write_text(text.replace(bug.before, bug.after), encoding="utf-8")


def run_machine(machine: str, source: Path) -> Finding | None:
    """Run a machine on a copy of the source; return its finding, or None if it passes. Raises RuntimeError."""
    started_s = time.monotonic()
    # Coverage must not measure a source with a planted bug.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    environment |= {"PYTHONPATH": str(source), "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, *MACHINES[machine]],
        cwd=source,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    if done.returncode == 0:
        return None
    output = (done.stdout + done.stderr).strip()
    messages = [
        line
        for line in output.splitlines()
        if "Error(" in line
        or "came twice" in line
        or line.lstrip("E |+").startswith("AssertionError")
        or line.startswith("FAILED tests/")
    ]
    if done.returncode != 1 or not messages:
        raise RuntimeError(f"the machine “{machine}” failed without an assertion:\n{output[-3000:]}")
    return Finding(machine, messages[0].strip()[:200], time.monotonic() - started_s)


def find(bug: Bug | None, machines: list[str]) -> list[Finding]:
    """Plant a bug (or none) in a fresh copy and run the machines; return their findings."""
    findings: list[Finding] = []
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder)
        copy_source(source)
        if bug is not None:
            plant(bug, source)
        for machine in machines:
            if output := run_machine(machine, source):
                findings.append(output)
    return findings


def machines_for(bug: Bug, *, every: bool) -> list[str]:
    """Return the machines to run: the one that should find the bug, with ``every`` all others after it."""
    return [bug.finder, *(machine for machine in MACHINES if machine != bug.finder)] if every else [bug.finder]


def main() -> int:
    """Run the command; return 0 only if every bug was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", choices=[bug.name for bug in BUGS])
    parser.add_argument("--all", action="store_true", help="run every machine")
    options = parser.parse_args()
    missed = 0
    for bug in BUGS:
        if options.name in (None, bug.name):
            findings = find(bug, machines_for(bug, every=options.all))
            missed += not findings
            print(f"{bug.name}: {'found' if findings else 'NOT FOUND'}", flush=True)
            for machine, what, took_s in findings:
                print(f"    by {machine} in {took_s:.1f} s: {what}", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
