"""A model of a disk that loses unsynced data: what a power cut can leave of files whose history is known.

Theory
------
The content of a file at the end of its last fsync is safe. Of later writes anything may be on disk, because the cache
writes back in its own order and the power fails at any moment. A cut therefore chooses for each file

* which of the later writes are on disk: none, all, the first few, or any of them, complete or torn at a sector of 512 or
  4096 bytes (within a sector a write is atomic and leaves its neighbors unchanged: "powersafe overwrite", which SQLite
  assumes by default, https://www.sqlite.org/psow.html);
* the length of the file: that after any of the later calls. Unwritten ranges read as zeros, and at the end of the file, on
  file systems that do not journal data, sometimes as garbage.

A name (a file created, deleted, renamed) is safe once the folder is fsynced. Of later changes the first few are on disk, in
order, because journaling file systems write metadata in order. Linux file systems also make the name of a new file durable
when the file is fsynced, but that is not guaranteed and not assumed here.

The index of the log (``-shm``) is left empty, zeroed or as garbage: it is never synced, and SQLite rebuilds it.
"""

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

from pl_trace import Op

__all__ = ["OUTCOMES", "Disk", "Remains"]

OUTCOMES = ("none", "all", "prefix", "subset", "torn")
INDEX_BYTES = 32 * 1024


class File:
    """The synced content, and the later operations in order."""

    def __init__(self, data: bytes = b"") -> None:
        self.synced = bytearray(data)
        self.unsynced: list[Op] = []

    def now(self) -> bytearray:
        """Return what a reader sees while the power is on."""
        data = bytearray(self.synced)
        for op in self.unsynced:
            _apply(data, op)
        return data

    def sync(self) -> None:
        self.synced, self.unsynced = self.now(), []


class Remains(NamedTuple):
    """The files that a cut left, and the kind of loss."""

    outcome: str
    files: dict[str, bytes]

    def write_to(self, folder: Path) -> None:
        """Replace the content of the folder by these files."""
        for path in folder.iterdir():
            path.unlink()
        for name, data in self.files.items():
            (folder / name).write_bytes(data)


class Disk:
    """A folder on the disk. ``ignored_syncs`` names files whose fsync has no effect, for tests of this machine itself."""

    def __init__(self, ignored_syncs: tuple[str, ...] = ()) -> None:
        self._ignored_syncs = ignored_syncs
        self._synced_names: dict[str, File] = {}  # the synced names
        self._names: dict[str, File] = {}
        self._unsynced_names: list[dict[str, File]] = []  # the names after each later change

    def apply(self, op: Op) -> None:
        """Apply a recorded operation."""
        match op.kind:
            case "create" if op.name not in self._names:
                self._rename({**self._names, op.name: File()})
            case "unlink":
                self._rename({name: file for name, file in self._names.items() if name != op.name})
            case "rename":
                names = {name: file for name, file in self._names.items() if name != op.name}
                self._rename({**names, op.text: self._names[op.name]})
            case "write" | "truncate":
                self._names[op.name].unsynced.append(op)
            case "sync" if op.name not in self._ignored_syncs:
                self._names[op.name].sync()
            case "syncdir":
                self._synced_names, self._unsynced_names = self._names, []

    def _rename(self, names: dict[str, File]) -> None:
        self._names = names
        self._unsynced_names.append(names)

    def now(self) -> dict[str, bytes]:
        """Return the files as a reader sees them while the power is on."""
        return {name: bytes(file.now()) for name, file in self._names.items()}

    def load(self, files: dict[str, bytes]) -> None:
        """Start with these files, all synced, as after a boot."""
        self._names = {name: File(data) for name, data in files.items() if not name.endswith("-shm")}
        self._synced_names, self._unsynced_names = self._names, []

    def moment(self) -> str:
        """Return what is unsynced: ``names``, a ``commit`` (only the log), a ``checkpoint``, or ``rest`` (nothing)."""
        if self._unsynced_names:
            return "names"
        waiting = {name for name, file in self._names.items() if file.unsynced}
        if not waiting:
            return "rest"
        return "commit" if all(name.endswith("-wal") for name in waiting) else "checkpoint"

    def cut(self, rng: Random) -> Remains:
        """Return what a power cut now leaves."""
        outcome = rng.choice(OUTCOMES)
        arrived = {"none": 0, "all": len(self._unsynced_names)}.get(outcome, rng.randint(0, len(self._unsynced_names)))
        names = self._unsynced_names[arrived - 1] if arrived else self._synced_names
        files = {name: _remains_of(file, outcome, rng) for name, file in sorted(names.items())}
        index = rng.choice((b"", bytes(INDEX_BYTES), rng.randbytes(INDEX_BYTES)))
        return Remains(outcome, files | ({"outbox.db-shm": index} if index else {}))


def _remains_of(file: File, outcome: str, rng: Random) -> bytes:
    """Return the remaining content of one file."""
    number = len(file.unsynced)
    first = rng.randint(0, number)
    share = rng.random()
    sector = rng.choice((512, 4096))
    garbage = rng.random() < 0.25
    data, lengths = bytearray(file.synced), [len(file.synced)]
    for at, op in enumerate(file.unsynced):
        end = op.at + len(op.data)
        lengths.append(op.at if op.kind == "truncate" else max(lengths[-1], end))
        if (
            outcome == "all"
            or (outcome == "prefix" and at < first)
            or (outcome in ("subset", "torn") and rng.random() < share)
        ):
            _apply(data, op)
        elif outcome == "torn" and op.kind == "write" and rng.random() < 0.5:
            for part in _sectors(op, sector):
                if rng.random() < 0.5:
                    _apply(data, part)
    length = {"none": lengths[0], "all": lengths[-1], "prefix": lengths[first]}.get(outcome, rng.choice(lengths))
    if length > len(data):
        missing = length - len(data)
        data.extend(rng.randbytes(missing) if garbage else bytes(missing))
    return bytes(data[:length])


def _sectors(op: Op, sector: int) -> Iterator[Op]:
    """Split a write at sector boundaries."""
    at, end = op.at, op.at + len(op.data)
    while at < end:
        until = min(end, (at // sector + 1) * sector)
        yield op._replace(at=at, data=op.data[at - op.at : until - op.at])
        at = until


def _apply(data: bytearray, op: Op) -> None:
    if op.kind == "truncate":
        if op.at < len(data):
            del data[op.at :]
        else:
            data.extend(bytes(op.at - len(data)))
        return
    if op.at > len(data):
        data.extend(bytes(op.at - len(data)))
    data[op.at : op.at + len(op.data)] = op.data
