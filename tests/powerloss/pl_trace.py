"""What a program did to the files of one folder, in order, from strace's log of it.

Theory
------
strace sees every call in the order in which the kernel did them, with all bytes written, and the program's own words
(``write`` to standard output) among them. So "was this said before or after that fsync" has an exact answer, and no
library stands between SQLite and what is recorded. Calls that change a file in a way not known here end the recording:
a machine that overlooks a write proves nothing.
"""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["NOT_KEPT", "Op", "parse", "strace_command"]

CALLS = (
    "openat,?open,?creat,close,?dup,?dup2,dup3,lseek,write,pwrite64,writev,pwritev,pwritev2,ftruncate,?truncate,fallocate,"
    "fsync,fdatasync,sync_file_range,?unlink,unlinkat,?rename,renameat,?renameat2,?link,linkat,copy_file_range,sendfile"
)
# Its pages change only a mapping, and SQLite makes it anew after a crash; no content matters of a lock or of a reserve.
NOT_KEPT = ("-shm", ".lock", ".reserve")

_CALL = re.compile(r"^(\w+)\((.*)\) += (-?\d+|\?)", re.DOTALL)
_RESUMED = re.compile(r"^<\.\.\. \w+ resumed>(.*)$", re.DOTALL)
_STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?')


class Op(NamedTuple):
    """One thing that happened.

    ``kind``: ``create``, ``unlink``, ``rename`` (``name`` to ``text``), ``write`` (``at``, ``data``), ``truncate`` (to
    ``at``), ``sync``, ``syncdir``, ``say`` (``text``), ``begin`` (a new process, ``text`` says how the one before ended),
    ``cut`` (the power went; ``text`` is the seed of what the disk was left with). ``sure`` is false for a call that a
    kill may have prevented.
    """

    kind: str
    name: str = ""
    at: int = 0
    data: bytes = b""
    text: str = ""
    sure: bool = True


def strace_command(log: Path, *, kill_at_write: int = 0) -> list[str]:
    """What to put before a command to have it recorded; with ``kill_at_write`` it is killed at that write to a file."""
    strace = shutil.which("strace")
    if strace is None:
        raise FileNotFoundError("strace is not installed")
    # The kernel's filter makes it three times as fast, but signals are not injected with it.
    how = ["-e", f"inject=pwrite64:signal=KILL:when={kill_at_write}"] if kill_at_write else ["--seccomp-bpf"]
    quiet = ["-qq", "-e", "signal=none", "-xx", "-s", "1000000"]
    return [strace, "-f", *quiet, "-e", f"trace={CALLS}", *how, "-o", str(log)]


def parse(log: Path, folder: Path) -> Iterator[Op]:
    """What happened to the files that stand in ``folder`` itself, and what was said on standard output."""
    reader = _Reader(folder)
    for name, arguments, result in _calls(log):
        yield from reader.read(name, arguments, result)


def _calls(log: Path) -> Iterator[tuple[str, str, int | None]]:
    """Name, arguments and result of each call, at the time when it ended; None for a result that nobody saw."""
    main = begun = ""
    with log.open(encoding="ascii") as lines:
        for line in lines:
            process, _, line = line.strip().partition(" ")
            main, line = main or process, line.lstrip()
            if process != main or line.startswith(("+++ ", "--- ")):  # a child's or a thread's, or how it ended
                continue
            if line.endswith("<unfinished ...>"):  # the next lines are of others, or there are none
                begun = line.removesuffix("<unfinished ...>").rstrip()
                continue
            if found := _RESUMED.match(line):
                line, begun = begun + found[1], ""
            found = _CALL.match(line)
            if found is None:
                raise ValueError(f"a line of strace's that is not understood: {line[:200]}")
            name, arguments, result = found.groups()
            yield name, arguments.removesuffix(" <unfinished ...>"), None if result == "?" else int(result)
    if begun:
        name, _, arguments = begun.partition("(")
        yield name, arguments.removesuffix(")"), None


class _Reader:
    """Follows the descriptors of the program, which does all of this in its main thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)
        self._files: dict[int, str] = {}
        self._position: dict[int, int] = {}

    def _name(self, path: str) -> str | None:
        """The file's name if it stands in the folder, "" for the folder itself, else None."""
        if path == self._folder:
            return ""
        head, _, name = path.rpartition("/")
        return name if head == self._folder and not name.endswith(NOT_KEPT) else None

    def read(self, call: str, arguments: str, result: int | None) -> Iterator[Op]:
        if result is not None and result < 0:
            return
        handle: Any = getattr(self, f"_{call}", None)
        if handle is not None:
            yield from handle(arguments, result)
        elif call in ("fsync", "fdatasync"):
            yield from self._synced(arguments, result)
        elif call in ("unlinkat", "renameat", "renameat2"):
            yield from getattr(self, f"_{call.removesuffix('2').removesuffix('at')}")(arguments, result)
        else:
            self._refuse(call, arguments)

    def _refuse(self, call: str, arguments: str) -> None:
        """A call that is not followed must not concern what is recorded."""
        first = arguments.split(",")[0].strip()
        named = any(self._name(path) is not None for path in _strings(arguments)) if '"' in arguments else False
        if named or (first.isdigit() and self._files.get(int(first))):
            raise ValueError(
                f"the program called {call}({arguments[:80]}) on a recorded file, which is not followed yet"
            )

    def _openat(self, arguments: str, result: int | None) -> Iterator[Op]:
        name = self._name(_strings(arguments)[0])
        if result is None or name is None:
            return
        self._files[result], self._position[result] = name, 0
        if name and "O_CREAT" in arguments:
            yield Op("create", name)
        if name and "O_TRUNC" in arguments:
            yield Op("truncate", name, 0)

    _open = _openat

    def _close(self, arguments: str, result: int | None) -> Iterator[Op]:
        self._files.pop(int(arguments), None)
        return iter(())

    def _lseek(self, arguments: str, result: int | None) -> Iterator[Op]:
        self._position[int(arguments.split(",")[0])] = result or 0
        return iter(())

    def _pwrite64(self, arguments: str, result: int | None) -> Iterator[Op]:
        name = self._files.get(int(arguments.split(",")[0]))
        if name:
            offset = int(arguments.rsplit(",", 1)[1])
            yield self._written(name, offset, arguments, result)

    def _write(self, arguments: str, result: int | None) -> Iterator[Op]:
        descriptor = int(arguments.split(",")[0])
        name = self._files.get(descriptor)
        if name:
            at = self._position[descriptor]
            self._position[descriptor] = at + (result or 0)
            yield self._written(name, at, arguments, result)
        elif descriptor == 1 and result is not None:
            yield Op("say", text=_bytes(arguments)[:result].decode())

    def _written(self, name: str, at: int, arguments: str, result: int | None) -> Op:
        data = _bytes(arguments)
        return Op("write", name, at, data if result is None else data[:result], sure=result is not None)

    def _ftruncate(self, arguments: str, result: int | None) -> Iterator[Op]:
        descriptor, length = (int(one) for one in arguments.split(","))
        if name := self._files.get(descriptor):
            yield Op("truncate", name, length, sure=result is not None)

    def _synced(self, arguments: str, result: int | None) -> Iterator[Op]:
        name = self._files.get(int(arguments))
        if name is not None and result is not None:
            yield Op("sync", name) if name else Op("syncdir")

    def _unlink(self, arguments: str, result: int | None) -> Iterator[Op]:
        if name := self._name(_strings(arguments)[0]):
            yield Op("unlink", name, sure=result is not None)

    def _rename(self, arguments: str, result: int | None) -> Iterator[Op]:
        old, new = (self._name(path) for path in _strings(arguments))
        if old and new:
            self._files = {one: new if name == old else name for one, name in self._files.items()}
            yield Op("rename", old, text=new, sure=result is not None)


def _bytes(arguments: str) -> bytes:
    start, end = arguments.index('"') + 1, arguments.rindex('"')
    if arguments[end + 1 :].startswith("..."):
        raise ValueError("strace left out a part of a write")
    return bytes.fromhex(arguments[start:end].replace("\\x", ""))


def _strings(arguments: str) -> list[str]:
    return [bytes.fromhex(text.replace("\\x", "")).decode() for text, _ in _STRING.findall(arguments)]
