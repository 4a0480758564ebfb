"""A damaged outbox whose recovery is interrupted: by a power cut at every call, and by a disk that is full from a call on.

A child process opens a damaged outbox, which recovers it, under strace. For every position in the recorded calls the
machine builds what a power cut there could leave (``pl_disk.py``), opens that as the next start does, and compares it with
an undisturbed recovery. For the full disk the child runs again for every call that takes space: from that call on all of
them fail with ENOSPC, and the next start has space again.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from random import Random
from typing import NamedTuple

from outbox_damage import fill
from pl_disk import Disk
from pl_promises import Broken
from pl_record import ROOT
from pl_trace import Op, parse, strace_command

from sidecar.outbox import open_outbox
from sidecar.outbox.operations import add_audit
from sidecar.outbox.pages import PAGE_BYTES, Pages
from sidecar.outbox.recovery import damage_in

__all__ = [
    "TAKE_SPACE",
    "Recovered",
    "calls_of",
    "check_recovered",
    "cut_recovery",
    "fill_disk_at",
    "make_damaged",
    "space_taken",
]

NAME = "outbox.db"
TAKE_SPACE = ("pwrite64", "write", "fallocate")
PROGRAM = """
import sys
from pathlib import Path
from sidecar.errors import SidecarError
from sidecar.outbox import open_outbox
try:
    open_outbox(Path(sys.argv[1]), durability="disk").connection.close()
except SidecarError as error:
    sys.exit(f"AGAIN {error}")
"""


class Recovered(NamedTuple):
    """What a recovery gives: the rows, the counters and the metadata."""

    rows: list[tuple[object, ...]]
    counters: dict[str, int]
    meta: dict[str, str]


def make_damaged(folder: Path) -> Recovered:
    """Make a damaged outbox in ``folder``; return what an undisturbed recovery makes of it."""
    store = fill(folder / "made.db")
    with store.transaction():
        store.set_meta("destination", '{"operator":true}')
        add_audit(store, 1, "root", "pause", "")
    with closing(store.connection):
        for suffix in ("", "-wal"):
            shutil.copy(folder / f"made.db{suffix}", folder / f"{NAME}{suffix}")
    for leftover in folder.glob("made.db*"):
        leftover.unlink()
    pages = Pages(folder / NAME)
    in_the_file_only = [number for number in range(30, pages.count) if number not in pages.wal_offsets]
    pages.close()
    with (folder / NAME).open("r+b") as file:
        file.seek((in_the_file_only[0] - 1) * PAGE_BYTES)
        file.write(Random(1).randbytes(PAGE_BYTES))
    assert damage_in(folder / NAME)
    (folder / f"{NAME}.reserve").write_bytes(b"r" * 4096)
    undisturbed = folder.with_name(f"{folder.name}-undisturbed")
    shutil.copytree(folder, undisturbed)
    return _read(undisturbed)


def _read(folder: Path) -> Recovered:
    store = open_outbox(folder / NAME, durability="process")
    with closing(store.connection):
        rows = store.connection.execute("SELECT * FROM events ORDER BY id").fetchall()
        meta = dict(store.connection.execute("SELECT name, value FROM meta WHERE name != 'damage'"))
        return Recovered(rows, {name: value for name, value in store.counters.items() if value}, meta)


def check_recovered(folder: Path, original: bytes, expected: Recovered) -> None:
    """Open the outbox as the next start does. Raises Broken if it is not as an undisturbed recovery leaves it."""
    found = _read(folder)
    for name in Recovered._fields:
        if getattr(found, name) != getattr(expected, name):
            raise Broken(f"the {name} are not those of an undisturbed recovery")
    kept = [path for path in folder.glob(f"{NAME}.damaged-*") if not path.name.endswith("-wal")]
    if [path.read_bytes() for path in kept] != [original]:
        raise Broken(f"the damaged file is not kept as it was: {[path.name for path in kept]}")
    if left := [path.name for path in folder.iterdir() if ".recover" in path.name]:
        raise Broken(f"left over: {left}")


def _run(folder: Path, log: Path, *strace: str) -> subprocess.CompletedProcess[str]:
    environ = {"PATH": os.environ.get("PATH", ""), "PYTHONHASHSEED": "0", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*(strace or strace_command(log)), sys.executable, "-B", "-c", PROGRAM, str(folder / NAME)],
        capture_output=True, text=True, env=environ, timeout=120, check=False,
    )  # fmt: skip


def calls_of(folder: Path) -> list[Op]:
    """Recover the outbox in the folder under strace; return the recorded calls."""
    log = folder.with_name(f"{folder.name}.log")
    ended = _run(folder, log)
    assert ended.returncode == 0, ended.stderr
    return list(parse(log, folder))


def cut_recovery(ops: list[Op], files: dict[str, bytes], folder: Path, *, every: int = 1) -> Iterator[tuple[int, str]]:
    """Write to the folder what cuts leave, one after another; yield the position and the outcome.

    One position in ``every`` is cut, and every one that is not a write or is the last of its writes.
    """
    disk = Disk()
    disk.load(files)
    for at, op in enumerate(ops):
        if at % every == 0 or op.kind != "write" or ops[at - 1].kind != "write":
            remains = disk.cut(Random(f"recovery/{at}"))
            remains.write_to(folder)
            yield at, remains.outcome
        disk.apply(op)


def space_taken(folder: Path, call: str) -> int:
    """Return how many calls that take space a recovery of the outbox in ``folder`` makes; works on a copy."""
    copy = folder.with_name(f"{folder.name}-{call}")
    shutil.copytree(folder, copy)
    log = copy.with_name(f"{copy.name}.log")
    _run(copy, log, *_on_files(copy, log), "-e", f"trace={call}")
    return sum(f"{call}(" in line for line in log.read_text().splitlines())


def fill_disk_at(folder: Path, call: str, number: int) -> str | None:
    """Recover with every such call failing for lack of space from the given one on; return the error, None if none."""
    log = folder.with_name(f"{folder.name}.log")
    inject = ("-e", f"trace={call}", "-e", f"inject={call}:error=ENOSPC:when={number}+")
    ended = _run(folder, log, *_on_files(folder, log), *inject)
    if ended.returncode == 0:
        return None
    assert ended.stderr.startswith("AGAIN"), ended.stderr
    return ended.stderr.removeprefix("AGAIN ").strip()


def _on_files(folder: Path, log: Path) -> list[str]:
    names = ("", NAME, f"{NAME}-wal", f"{NAME}.recovering", f"{NAME}.recovering-wal", f"{NAME}.recover-new")
    paths = [word for name in names for word in ("-P", str(folder / name))]
    return ["strace", "-f", "-qq", "-o", str(log), *paths]
