"""Parse a log of strace into the operations of a program on the files of one folder, in order.

Theory
------
strace reports every call in the order in which the kernel executed it, with all bytes written, and the program's output
(``write`` to standard output) among them. So it is exact whether a line was printed before or after an fsync, and no
library stands between SQLite and the recording. A call that changes a recorded file in an unknown way ends the recording:
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
# SQLite rebuilds -shm after a crash; the contents of lock and reserve do not matter.
NOT_KEPT = ("-shm", ".lock", ".reserve")

_CALL = re.compile(r"^(\w+)\((.*)\) += (-?\d+|\?)", re.DOTALL)
_RESUMED = re.compile(r"^<\.\.\. \w+ resumed>(.*)$", re.DOTALL)
_STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?')


class Op(NamedTuple):
    """One operation.

    ``kind``: ``create``, ``unlink``, ``rename`` (``name`` to ``text``), ``write`` (``at``, ``data``), ``truncate`` (to
    ``at``), ``sync``, ``syncdir``, ``print`` (``text``), ``begin`` (process number ``text`` starts), ``cut`` (a power cut).
    ``certain`` is false for a call that a kill may have prevented.
    """

    kind: str
    name: str = ""
    at: int = 0
    data: bytes = b""
    text: str = ""
    certain: bool = True


def strace_command(log: Path, *, kill_at_write: int = 0) -> list[str]:
    """Return the command prefix that records a program; ``kill_at_write`` kills it at that write to a file."""
    strace = shutil.which("strace")
    if strace is None:
        raise FileNotFoundError("strace is not installed")
    # The seccomp filter makes recording three times as fast, but strace injects no signals with it.
    options = ["-e", f"inject=pwrite64:signal=KILL:when={kill_at_write}"] if kill_at_write else ["--seccomp-bpf"]
    quiet = ["-qq", "-e", "signal=none", "-xx", "-s", "1000000"]
    return [strace, "-f", *quiet, "-e", f"trace={CALLS}", *options, "-o", str(log)]


def parse(log: Path, folder: Path) -> Iterator[Op]:
    """Yield the operations on files directly in ``folder``, and the lines printed on standard output."""
    reader = _Reader(folder)
    for name, arguments, result in _calls(log):
        yield from reader.read(name, arguments, result)


def _calls(log: Path) -> Iterator[tuple[str, str, int | None]]:
    """Yield name, arguments and result of each call when it ended; None for a result that was not reported."""
    main = unfinished = ""
    with log.open(encoding="ascii") as lines:
        for line in lines:
            process, _, line = line.strip().partition(" ")
            main, line = main or process, line.lstrip()
            if process != main or line.startswith(("+++ ", "--- ")):  # of a child or thread, or an exit status
                continue
            if line.endswith("<unfinished ...>"):  # its end follows later, or never
                unfinished = line.removesuffix("<unfinished ...>").rstrip()
                continue
            if match := _RESUMED.match(line):
                line, unfinished = unfinished + match[1], ""
            match = _CALL.match(line)
            if match is None:
                raise ValueError(f"unknown line of strace: {line[:200]}")
            name, arguments, result = match.groups()
            yield name, arguments.removesuffix(" <unfinished ...>"), None if result == "?" else int(result)
    if unfinished:
        name, _, arguments = unfinished.partition("(")
        yield name, arguments.removesuffix(")"), None


class _Reader:
    """Tracks the descriptors of the program, which makes all calls in its main thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)
        self._files: dict[int, str] = {}
        self._position: dict[int, int] = {}

    def _name(self, path: str) -> str | None:
        """Return the name of a file in the folder, "" for the folder itself, else None."""
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
            self._reject_if_recorded(call, arguments)

    def _reject_if_recorded(self, call: str, arguments: str) -> None:
        """Raise ValueError if an unsupported call concerns a recorded file."""
        first = arguments.split(",")[0].strip()
        named = any(self._name(path) is not None for path in _strings(arguments)) if '"' in arguments else False
        if named or (first.isdigit() and self._files.get(int(first))):
            raise ValueError(
                f"the program called {call}({arguments[:80]}) on a recorded file; pl_trace.py does not support that call"
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
            yield Op("print", text=_bytes(arguments)[:result].decode())

    def _written(self, name: str, at: int, arguments: str, result: int | None) -> Op:
        data = _bytes(arguments)
        return Op("write", name, at, data if result is None else data[:result], certain=result is not None)

    def _ftruncate(self, arguments: str, result: int | None) -> Iterator[Op]:
        descriptor, length = (int(part) for part in arguments.split(","))
        if name := self._files.get(descriptor):
            yield Op("truncate", name, length, certain=result is not None)

    def _synced(self, arguments: str, result: int | None) -> Iterator[Op]:
        name = self._files.get(int(arguments))
        if name is not None and result is not None:
            yield Op("sync", name) if name else Op("syncdir")

    def _unlink(self, arguments: str, result: int | None) -> Iterator[Op]:
        if name := self._name(_strings(arguments)[0]):
            yield Op("unlink", name, certain=result is not None)

    def _rename(self, arguments: str, result: int | None) -> Iterator[Op]:
        old, new = (self._name(path) for path in _strings(arguments))
        if old and new:
            self._files = {descriptor: new if name == old else name for descriptor, name in self._files.items()}
            yield Op("rename", old, text=new, certain=result is not None)


def _bytes(arguments: str) -> bytes:
    start, end = arguments.index('"') + 1, arguments.rindex('"')
    if arguments[end + 1 :].startswith("..."):
        raise ValueError("strace left out a part of a write")
    return bytes.fromhex(arguments[start:end].replace("\\x", ""))


def _strings(arguments: str) -> list[str]:
    return [bytes.fromhex(text.replace("\\x", "")).decode() for text, _ in _STRING.findall(arguments)]
