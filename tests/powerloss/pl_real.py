"""A real power cut: an ext4 on a loop device, a daemon with traffic on it, and the kernel told to forget.

``EXT4_IOC_SHUTDOWN`` without flushing the journal is what a cut is to a file system: from that instant nothing reaches
the disk, and what was not fsynced is gone after the next mount. The daemon is killed then, the file system mounted
again (its journal replayed), what is left of the outbox is copied and looked at, and the daemon started on it again.
One file system goes through all rounds, so that each begins with what the last cut left.

It models lost caches; torn and reordered sectors are the recorded machine's part.

All of it runs in namespaces of its own for mounts and processes. If this is killed so are the daemon and the sandbox,
with them the mount is gone, and a device made by ``mount -o loop`` with that: however this ends, none is left behind.
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

from stage import Stage, wait_until

from sidecar.client import Client, NotAccepted

__all__ = ["Round", "cannot", "real_rounds"]

EXT4_IOC_SHUTDOWN = 0x8004587D
NO_LOG_FLUSH = struct.pack("I", 2)
IMAGE_BYTES = 256 * 2**20
CLIENTS = 6
MAX_IN_FLIGHT = 32
PER_SECOND = 400
APART = "PX_POWERLOSS_APART"  # the folder to work in, set in the namespaces of its own


class Round(NamedTuple):
    """What one cut found: events answered until it, those among them that are lost, and what else was wrong."""

    answered: int
    lost: int
    wrong: str


def cannot() -> str | None:
    """Why no real power can be cut here, or None."""
    if os.geteuid() != 0:
        return "cutting the power of a real file system needs root"
    missing = [tool for tool in ("setpriv", "unshare", "mount", "umount", "mkfs.ext4") if shutil.which(tool) is None]
    if missing:
        return f"cutting the power of a real file system needs {', '.join(missing)}"
    script = 'dir=$(mktemp -d) && truncate -s 8M "$dir.img" && mkfs.ext4 -q "$dir.img" && mount -o loop "$dir.img" "$dir"; rc=$?'
    script += '; umount "$dir"; rmdir "$dir"; rm -f "$dir.img"; exit $rc'
    tried = subprocess.run(
        ["unshare", "--mount", "--pid", "--mount-proc", "--kill-child", "sh", "-c", script],
        capture_output=True,
        text=True,
        timeout=30,
    )
    return f"no ext4 can be mounted from a loop device here: {tried.stderr.strip()}" if tried.returncode else None


def real_rounds(rounds: int, seed: int, durability: str) -> tuple[list[Round], str]:
    """So many cuts of one file system, at moments of the seed's dice; prints a line for each.

    Then everything is delivered; the text says what is wrong with that, or is empty. Does not return where it was called
    first: this program begins anew in namespaces of its own, and ends as it does there.
    """
    if APART not in os.environ:
        sys.exit(_apart())
    bench = _Bench(Path(os.environ[APART]), seed, durability)
    try:
        return [bench.round(number) for number in range(rounds)], bench.deliver()
    finally:
        bench.end()


def _apart() -> int:
    """Run this program anew in namespaces of its own for mounts and processes; how it ended."""
    # Whichever of these is killed, what it has started is killed with it.
    command = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private"]
    command += ["--pid", "--mount-proc", "--kill-child", sys.executable, *sys.argv]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    with tempfile.TemporaryDirectory(prefix="pxs-") as folder:
        child = subprocess.Popen(command, env={**os.environ, APART: folder})
        try:
            return child.wait()
        finally:
            child.kill()
            child.wait()


class _Bench:
    """The file system, the daemon on it, and its clients."""

    def __init__(self, folder: Path, seed: int, durability: str) -> None:
        self.dice = Random(seed)
        self.stage = Stage(folder)
        self.image, self.disk = folder / "image", folder / "disk"
        self.disk.mkdir()
        self.stage.outbox = self.disk / "outbox.db"
        self.answered: set[str] = set()
        self.asked: set[str] = set()
        self.numbers = count(1)
        self.rounds = 0
        with self.image.open("wb") as file:
            file.truncate(IMAGE_BYTES)
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(self.image)], check=True)
        self._mount()
        config = self.stage.write_config(deliver=f"per_second = {PER_SECOND}\nmax_in_flight = {MAX_IN_FLIGHT}")
        text = config.read_text().replace("[outbox]", f'[outbox]\ndurability = "{durability}"')
        config.write_text(text)
        self.stage.start_sandbox("--per-second", "0", "--latency", "5ms", "--report-key", "eventId")

    def end(self) -> None:
        self.stage.end()
        subprocess.run(["umount", "--quiet", str(self.disk)], check=False)

    def _mount(self) -> None:
        subprocess.run(["mount", "-o", "loop", str(self.image), str(self.disk)], check=True)

    def round(self, number: int) -> Round:
        """Traffic, a cut in the middle of it, and what is left."""
        daemon = self.stage.start_daemon()
        stop = threading.Event()
        clients = [threading.Thread(target=self._client, args=(stop,)) for _ in range(CLIENTS)]
        answered_before = len(self.answered)
        delivered_before = self.stage.report()["distinct"]
        for client in clients:
            client.start()
        time.sleep(0.15 + self.dice.random() * 0.6)
        if daemon.poll() is not None:
            raise AssertionError(self.stage.log("run"))
        descriptor = os.open(self.disk, os.O_RDONLY)
        stop.set()
        try:
            fcntl.ioctl(descriptor, EXT4_IOC_SHUTDOWN, NO_LOG_FLUSH)
        finally:
            os.close(descriptor)
        self.stage.kill(daemon)
        for client in clients:
            client.join()
        subprocess.run(["umount", str(self.disk)], check=True)
        self._mount()
        result = self._look()
        if result.answered == answered_before:
            raise AssertionError(
                f"nothing was answered before the cut, so that it proves nothing: {self.stage.log('run')}"
            )
        self.rounds += 1
        delivered = self.stage.report()["distinct"] - delivered_before
        figures = f"{result.answered} answered until now, {result.lost} lost; {delivered} delivered in this round"
        print(f"round {number}: {figures}{result.wrong and '; ' + result.wrong}", flush=True)
        return result

    def _client(self, stop: threading.Event) -> None:
        """Ask for one event after the other until the power goes.

        What was answered while it went does not count: a cut has no duration, but the call that plays it takes
        milliseconds, in which ext4 says of a file's new blocks that they are synced and forgets them. Found under load:
        four events, answered 3 ms after that call had begun and 0.3 ms before it returned.
        """
        with Client(str(self.stage.unix), timeout_s=2) as client:
            while not stop.is_set():
                number = next(self.numbers)
                text = f"m{number}"
                self.asked.add(text)
                try:
                    client.track(f"u{number % 50}", "Feature Used", {"pad": "x" * 200}, message_id=text)
                except (NotAccepted, OSError):
                    continue
                if not stop.is_set():
                    self.answered.add(text)

    def _look(self) -> Round:
        """Open a copy of what is left as SQLite does, and hold it against the answers."""
        with tempfile.TemporaryDirectory(prefix="pxs-") as folder:
            for path in self.disk.glob("outbox.db*"):
                if not path.name.endswith((".reserve", ".lock", "-shm")):
                    shutil.copy(path, folder)
            with closing(sqlite3.connect(Path(folder) / "outbox.db")) as connection:
                verdict = connection.execute("PRAGMA integrity_check").fetchone()[0]
                there: set[str] = set()
                counters: dict[str, int] = {}
                if connection.execute("PRAGMA user_version").fetchone()[0]:  # else even the schema is lost
                    found = connection.execute("SELECT json_extract(CAST(body AS TEXT), '$.messageId') FROM events")
                    there = {text for (text,) in found}
                    counters = dict(connection.execute("SELECT name, value FROM counters"))
        kept = Counter[str]()
        for name, value in counters.items():
            kept[name.split(":")[0].split("_")[0]] += value
        wrong = [f"it was taken for damaged: {path.name}" for path in self.disk.glob("*.damaged-*")]
        if verdict != "ok":
            wrong.append(f"SQLite finds it damaged: {verdict}")
        if kept["accepted"] != sum(kept[one] for one in ("pending", "delivered", "dropped", "dead")):
            wrong.append(f"the account does not add up: {counters}")
        if kept["accepted"] != len(there):
            wrong.append(f"{kept['accepted']} were accepted, {len(there)} are there")
        if there - self.asked:
            wrong.append("events that were never sent")
        return Round(len(self.answered), len(self.answered - there), "; ".join(wrong))

    def deliver(self) -> str:
        """Deliver what is left; what is wrong with the whole account then, or nothing."""
        daemon = self.stage.start_daemon()
        wait_until(lambda: self.stage.status()["pending"] == 0, 120, what="the delivery of what was left")
        self.stage.stop(daemon)
        arrived = {event["eventId"] for event in self.stage.arrived()}
        twice = self.stage.report()["duplicates"]
        print(f"in the end: {len(arrived)} arrived, {twice} more than once", flush=True)
        wrong = []
        if missing := len(self.answered - arrived):
            wrong.append(f"{missing} answered events never arrived")
        if twice > self.rounds * MAX_IN_FLIGHT:
            wrong.append(f"{twice} came twice, more than {self.rounds} cuts × {MAX_IN_FLIGHT} in flight")
        return "; ".join(wrong)
