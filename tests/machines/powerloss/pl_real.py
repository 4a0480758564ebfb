"""A real power cut: an ext4 on a loop device with a daemon under traffic, shut down by an ioctl.

``EXT4_IOC_SHUTDOWN`` without flushing the journal acts on a file system like a power cut: from that instant nothing
reaches the disk, and unsynced data is gone after the next mount. Then the daemon is killed, the file system is mounted
again (which replays its journal), a copy of the outbox is checked, and the daemon is started on it again. One file system
is used for all rounds, so that each round starts with the remains of the last cut.

It models lost caches; torn and reordered sectors are covered by the recorded machine.

Everything runs in its own mount and process namespaces. If this program is killed, the kernel also kills the daemon and
the sandbox, and removes the mount and its loop device with the namespace, so nothing remains.
"""

import fcntl
import os
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import closing
from itertools import count
from pathlib import Path
from random import Random
from typing import NamedTuple

from process_harness import ProcessHarness, wait_until

from sidecar.client import Client, NotAccepted

__all__ = ["Round", "real_rounds", "why_not_possible"]

EXT4_IOC_SHUTDOWN = 0x8004587D
NO_LOG_FLUSH = struct.pack("I", 2)
IMAGE_BYTES = 256 * 2**20
CLIENTS = 6
MAX_IN_FLIGHT = 32
PER_SECOND = 400
SLOW_PER_SECOND = 20  # with durability "process": so slow that most events are still undelivered when the power is cut
NAMESPACE_FOLDER = "PX_POWERLOSS_FOLDER"  # set inside the namespaces: the working folder


class Round(NamedTuple):
    """The result of one cut: events answered so far, how many of them are lost, and other problems."""

    answered: int
    lost: int
    problems: str


def why_not_possible() -> str | None:
    """Return why real cuts are not possible here, or None."""
    if os.geteuid() != 0:
        return "cutting the power of a real file system needs root"
    missing = [tool for tool in ("setpriv", "unshare", "mount", "umount", "mkfs.ext4") if shutil.which(tool) is None]
    if missing:
        return f"cutting the power of a real file system needs {', '.join(missing)}"
    script = 'dir=$(mktemp -d) && truncate -s 8M "$dir.img" && mkfs.ext4 -q "$dir.img" && mount -o loop "$dir.img" "$dir"; rc=$?'
    script += '; umount "$dir"; rmdir "$dir"; rm -f "$dir.img"; exit $rc'
    probe = subprocess.run(
        ["unshare", "--mount", "--pid", "--mount-proc", "--kill-child", "sh", "-c", script],
        capture_output=True,
        text=True,
        timeout=30,
    )
    return f"no ext4 can be mounted from a loop device here: {probe.stderr.strip()}" if probe.returncode else None


def real_rounds(rounds: int, seed: int, durability: str) -> tuple[list[Round], str]:
    """Cut one file system ``rounds`` times at seeded moments, printing a line for each, then deliver everything.

    Return the rounds, and the problems of the final delivery as text. The first call does not return: it runs this
    program again inside new namespaces and exits with its exit code.
    """
    if NAMESPACE_FOLDER not in os.environ:
        sys.exit(_run_in_namespaces())
    rig = _PowerCutRig(Path(os.environ[NAMESPACE_FOLDER]), seed, durability)
    try:
        return [rig.round(number) for number in range(rounds)], rig.deliver()
    finally:
        rig.end()


def _run_in_namespaces() -> int:
    """Run this program in new mount and process namespaces; return its exit code."""
    # If any of these is killed, its children are killed with it.
    command = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private"]
    command += ["--pid", "--mount-proc", "--kill-child", sys.executable, *sys.argv]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    with tempfile.TemporaryDirectory(prefix="pxs-") as folder:
        child = subprocess.Popen(command, env={**os.environ, NAMESPACE_FOLDER: folder})
        try:
            return child.wait()
        finally:
            child.kill()
            child.wait()


class _PowerCutRig:
    """The file system, the daemon on it, and its clients."""

    def __init__(self, folder: Path, seed: int, durability: str) -> None:
        self.rng = Random(seed)
        self.harness = ProcessHarness(folder)
        self.image, self.disk = folder / "image", folder / "disk"
        self.disk.mkdir()
        self.harness.outbox = self.disk / "outbox.db"
        self.answered: set[str] = set()
        self.sent: set[str] = set()
        self.numbers = count(1)
        self.rounds = 0
        with self.image.open("wb") as file:
            file.truncate(IMAGE_BYTES)
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(self.image)], check=True)
        self._mount()
        per_second = SLOW_PER_SECOND if durability == "process" else PER_SECOND
        config = self.harness.write_config(deliver=f"per_second = {per_second}\nmax_in_flight = {MAX_IN_FLIGHT}")
        text = config.read_text().replace("[outbox]", f'[outbox]\ndurability = "{durability}"')
        config.write_text(text)
        self.harness.start_sandbox("--per-second", "0", "--latency", "5ms", "--report-key", "eventId")

    def end(self) -> None:
        self.harness.end()
        subprocess.run(["umount", "--quiet", str(self.disk)], check=False)

    def _mount(self) -> None:
        subprocess.run(["mount", "-o", "loop", str(self.image), str(self.disk)], check=True)

    def round(self, number: int) -> Round:
        """Run traffic, cut the power in the middle, and inspect the remains."""
        daemon = self.harness.start_daemon()
        stop = threading.Event()
        clients = [threading.Thread(target=self._client, args=(stop,)) for _ in range(CLIENTS)]
        answered_before = len(self.answered)
        delivered_before = self.harness.report()["distinct"]
        for client in clients:
            client.start()
        time.sleep(0.15 + self.rng.random() * 0.6)
        if daemon.poll() is not None:
            raise AssertionError(self.harness.log("run"))
        descriptor = os.open(self.disk, os.O_RDONLY)
        stop.set()
        try:
            fcntl.ioctl(descriptor, EXT4_IOC_SHUTDOWN, NO_LOG_FLUSH)
        finally:
            os.close(descriptor)
        self.harness.kill(daemon)
        for client in clients:
            client.join()
        subprocess.run(["umount", str(self.disk)], check=True)
        self._mount()
        result = self._inspect()
        if result.answered == answered_before:
            raise AssertionError(
                f"no event was answered before the cut, so it proves nothing: {self.harness.log('run')}"
            )
        self.rounds += 1
        delivered = self.harness.report()["distinct"] - delivered_before
        figures = f"{result.answered} answered so far, {result.lost} lost; {delivered} delivered in this round"
        print(f"round {number}: {figures}{result.problems and '; ' + result.problems}", flush=True)
        return result

    def _client(self, stop: threading.Event) -> None:
        """Send one event after another until the power is cut.

        Events answered during the cut do not count. A real cut has no duration, but the ioctl takes milliseconds, in which
        ext4 reports new blocks as synced and then loses them: under load four events were answered 3 ms after the ioctl
        started and 0.3 ms before it returned.
        """
        with Client(str(self.harness.unix), timeout_s=2) as client:
            while not stop.is_set():
                number = next(self.numbers)
                text = f"m{number}"
                self.sent.add(text)
                try:
                    client.track(f"u{number % 50}", "Feature Used", {"pad": "x" * 200}, message_id=text)
                except (NotAccepted, OSError):
                    continue
                if not stop.is_set():
                    self.answered.add(text)

    def _inspect(self) -> Round:
        """Open a copy of the remains with SQLite, and compare it with the answers."""
        with tempfile.TemporaryDirectory(prefix="pxs-") as folder:
            for path in self.disk.glob("outbox.db*"):
                if not path.name.endswith((".reserve", ".lock", "-shm")):
                    shutil.copy(path, folder)
            with closing(sqlite3.connect(Path(folder) / "outbox.db")) as connection:
                integrity = connection.execute("PRAGMA integrity_check").fetchone()[0]
                stored: set[str] = set()
                counters: dict[str, int] = {}
                if connection.execute("PRAGMA user_version").fetchone()[0]:  # otherwise the schema itself is lost
                    bodies = connection.execute("SELECT json_extract(CAST(body AS TEXT), '$.messageId') FROM events")
                    stored = {text for (text,) in bodies}
                    counters = dict(connection.execute("SELECT name, value FROM counters"))
        counted = Counter[str]()
        for name, value in counters.items():
            counted[name.split(":")[0].split("_")[0]] += value
        problems = [f"it was reported as damaged: {path.name}" for path in self.disk.glob("*.damaged-*")]
        if integrity != "ok":
            problems.append(f"SQLite finds it damaged: {integrity}")
        if counted["accepted"] != sum(counted[state] for state in ("pending", "delivered", "dropped", "dead")):
            problems.append(f"the counters do not add up: {counters}")
        if counted["accepted"] != len(stored):
            problems.append(f"{counted['accepted']} were accepted, {len(stored)} are stored")
        if stored - self.sent:
            problems.append("it holds events that were never sent")
        return Round(len(self.answered), len(self.answered - stored), "; ".join(problems))

    def deliver(self) -> str:
        """Deliver the remains; return the problems of the whole run as text."""
        daemon = self.harness.start_daemon()
        wait_until(lambda: self.harness.status()["pending"] == 0, 120, what="the delivery of the remaining events")
        self.harness.stop(daemon)
        arrived = {event["eventId"] for event in self.harness.arrived()}
        duplicates = self.harness.report()["duplicates"]
        print(f"in the end: {len(arrived)} arrived, {duplicates} more than once", flush=True)
        problems = []
        if missing := len(self.answered - arrived):
            problems.append(f"{missing} answered events never arrived")
        if duplicates > self.rounds * MAX_IN_FLIGHT:
            problems.append(f"{duplicates} came twice, more than {self.rounds} cuts × {MAX_IN_FLIGHT} in flight")
        return "; ".join(problems)
