"""A disk that may forget: what a power cut can leave of the files whose history is known.

Theory
------
What was in a file at the end of its last fsync is there. Of what came after it, anything may be: the cache writes back
in its own order, and the power goes in the middle. So a cut chooses for each file

* which of the later writes have arrived: none, all, the first few, or any of them, whole or torn at a sector of 512 or
  4096 bytes (within a sector a write is whole or not there, and leaves its neighbours alone: what SQLite calls
  "powersafe overwrite" and assumes by default);
* how long the file is: as long as it was after any of the later calls; what no write has filled reads as zeros, and at
  its end, where a file system does not journal data, sometimes as whatever stood there before.

A name (a file made, removed, renamed) is there once the folder was fsynced; of the later changes the first few are
there, in order, because every journaling file system writes its metadata so. That an fsync of a new file makes its name
durable too is so on Linux's file systems but is not promised, and is not assumed here.

The index of the log (``-shm``) is left as nothing, zeros or garbage: no one syncs it, and SQLite makes it anew.
"""

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

from pl_trace import Op

__all__ = ["HOWS", "Disk", "Left"]

HOWS = ("none", "all", "prefix", "subset", "torn")
INDEX_BYTES = 32 * 1024


class File:
    """The bytes that are safe, and the calls since, in order."""

    def __init__(self, data: bytes = b"") -> None:
        self.safe = bytearray(data)
        self.later: list[Op] = []

    def now(self) -> bytearray:
        """What a reader sees while the power is on."""
        data = bytearray(self.safe)
        for op in self.later:
            _apply(data, op)
        return data

    def sync(self) -> None:
        self.safe, self.later = self.now(), []


class Left(NamedTuple):
    """What a cut left: a name for it, and the files."""

    how: str
    files: dict[str, bytes]

    def write_to(self, folder: Path) -> None:
        """Make the folder hold these files and no others."""
        for path in folder.iterdir():
            path.unlink()
        for name, data in self.files.items():
            (folder / name).write_bytes(data)


class Disk:
    """The folder. ``deaf`` names files whose fsync does nothing: the disk that lies, for tests of this machine itself."""

    def __init__(self, deaf: tuple[str, ...] = ()) -> None:
        self._deaf = deaf
        self._safe: dict[str, File] = {}  # the names that are safe
        self._names: dict[str, File] = {}
        self._later: list[dict[str, File]] = []  # what the names were after each change since

    def do(self, op: Op) -> None:
        """Let something happen, as the recording says that it did."""
        match op.kind:
            case "create" if op.name not in self._names:
                self._rename({**self._names, op.name: File()})
            case "unlink":
                self._rename({name: file for name, file in self._names.items() if name != op.name})
            case "rename":
                names = {name: file for name, file in self._names.items() if name != op.name}
                self._rename({**names, op.text: self._names[op.name]})
            case "write" | "truncate":
                self._names[op.name].later.append(op)
            case "sync" if op.name not in self._deaf:
                self._names[op.name].sync()
            case "syncdir":
                self._safe, self._later = self._names, []

    def _rename(self, names: dict[str, File]) -> None:
        self._names = names
        self._later.append(names)

    def now(self) -> dict[str, bytes]:
        """The files as a reader sees them while the power is on."""
        return {name: bytes(file.now()) for name, file in self._names.items()}

    def load(self, files: dict[str, bytes]) -> None:
        """Begin with these files, safe: the host has booted."""
        self._names = {name: File(data) for name, data in files.items() if not name.endswith("-shm")}
        self._safe, self._later = self._names, []

    def moment(self) -> str:
        """What the disk is in the middle of."""
        if self._later:
            return "names"
        waiting = {name for name, file in self._names.items() if file.later}
        if not waiting:
            return "rest"
        return "commit" if all(name.endswith("-wal") for name in waiting) else "checkpoint"

    def cut(self, dice: Random) -> Left:
        """The power goes now."""
        how = dice.choice(HOWS)
        kept = {"none": 0, "all": len(self._later)}.get(how, dice.randint(0, len(self._later)))
        names = self._later[kept - 1] if kept else self._safe
        files = {name: _left_of(file, how, dice) for name, file in sorted(names.items())}
        index = dice.choice((b"", bytes(INDEX_BYTES), dice.randbytes(INDEX_BYTES)))
        return Left(how, files | ({"outbox.db-shm": index} if index else {}))


def _left_of(file: File, how: str, dice: Random) -> bytes:
    """What is left of one file. A cut that is not sure of its last call has it among those that may be missing."""
    number = len(file.later)
    first = dice.randint(0, number)
    share = dice.random()
    sector = dice.choice((512, 4096))
    junk = dice.random() < 0.25
    data, lengths = bytearray(file.safe), [len(file.safe)]
    for at, op in enumerate(file.later):
        end = op.at + len(op.data)
        lengths.append(op.at if op.kind == "truncate" else max(lengths[-1], end))
        if how == "all" or (how == "prefix" and at < first) or (how in ("subset", "torn") and dice.random() < share):
            _apply(data, op)
        elif how == "torn" and op.kind == "write" and dice.random() < 0.5:
            for part in _sectors(op, sector):
                if dice.random() < 0.5:
                    _apply(data, part)
    length = {"none": lengths[0], "all": lengths[-1], "prefix": lengths[first]}.get(how, dice.choice(lengths))
    if length > len(data):
        missing = length - len(data)
        data.extend(dice.randbytes(missing) if junk else bytes(missing))
    return bytes(data[:length])


def _sectors(op: Op, sector: int) -> Iterator[Op]:
    """A write in parts that end where a sector ends."""
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
