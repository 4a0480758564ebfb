"""Programs that read the outbox file and so keep its write-ahead log from being used again.

A reader holds a shared POSIX lock on one of the bytes 123 to 127 of the index of the log (``-shm``), which a checkpoint
respects (https://www.sqlite.org/walformat.html#wal_locks). Linux lists all locks in /proc/locks (proc_locks(5)), so that
the reader is found without opening any of the files.
"""

import os
from pathlib import Path
from typing import Final

from sidecar.units import show_size

__all__ = ["LOG_NORMAL", "describe_log", "readers_in"]

_READ_LOCKS: Final = range(123, 128)
LOG_NORMAL: Final = (
    2  # times the size at which the log is copied into the file: it is cut to that when it is used again
)


def readers_in(table: str, inode: int, device: str) -> list[int]:
    """Return the processes that read an outbox, by the text of /proc/locks.

    ``inode`` and ``device`` (``major:minor`` in hexadecimal) are those of the index. Process 0 is one outside of this
    container.
    """
    readers = set()
    for line in table.splitlines():
        columns = line.replace("->", " ").split()
        if len(columns) < 8 or columns[1] != "POSIX" or columns[3] != "READ":
            continue
        if columns[5] == f"{device}:{inode}" and columns[6].isdecimal() and int(columns[6]) in _READ_LOCKS:
            readers.add(int(columns[4]))
    return sorted(readers)


def describe_log(path: Path, log_bytes: int, copied_at_bytes: int) -> str:
    """Return a sentence about a log that has grown too large, with the programs that cause it; empty if it has not."""
    if log_bytes <= LOG_NORMAL * copied_at_bytes:
        return ""
    names = [_name_of(pid) for pid in _readers_of(path) if pid != os.getpid()]
    readers = ", ".join(names) or "another program"
    return (
        f"The log of the outbox has grown to {show_size(log_bytes)}, because {readers} keeps reading the outbox; end that "
        "program: the log counts against outbox.max_bytes."
    )


def _readers_of(path: Path) -> list[int]:
    try:
        index = path.with_name(path.name + "-shm").stat()
        table = Path("/proc/locks").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return readers_in(table, index.st_ino, f"{os.major(index.st_dev):02x}:{os.minor(index.st_dev):02x}")


def _name_of(pid: int) -> str:
    try:
        name = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return "a program of another container" if pid <= 0 else f"process {pid}"
    return f"{name} (pid {pid})"
