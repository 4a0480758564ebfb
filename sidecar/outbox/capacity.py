"""Capacity: when events are refused, when they are accepted again, and how settlement works on a full disk.

Two limits, each with its own code in the answer:

``outbox_full``  the rows take ``outbox.max_bytes``. History is deleted first. Then events are refused until the rows
                 take less than the low-water mark, or the oldest pending events are dropped (``overflow.py``).
``disk_full``    the file system is full. SQLite then cannot even delete (sidecar/outbox/README.md#measurements), so a
                 reserve file is removed at once: settlements use its space, and free space as they are committed.
                 Events are accepted again once the reserve has been allocated again with a margin.

The reserve is 1.5 times the size to which the WAL grows: everything in the WAL can be copied into the file, and then
the WAL is used again from its beginning. So a full disk never stops settlement, however long it lasts.
"""

import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal

from sidecar.errors import SidecarError
from sidecar.outbox.database import wal_bytes
from sidecar.outbox.readers import LOG_NORMAL
from sidecar.units import show_size

__all__ = ["RESERVE", "Capacity", "DiskFull", "OutboxFull", "StorageUnavailable"]

# Shares of ``max_bytes``. Accepting stops at the first and starts again below the second: the distance keeps a full
# outbox from alternating between refusing and accepting.
HIGH_WATER: Final = 0.98
LOW_WATER: Final = 0.95
# Above this share history is pruned whatever its age, so that it never costs an event.
NEARLY_FULL_WATER: Final = 0.90
# Bytes of a row beside its body: its columns, two index entries, its message id.
ROW_BYTES: Final = 120
RESERVE: Final = ".reserve"  # appended to the outbox's name


class StorageUnavailable(SidecarError):
    """The event cannot be made durable now; the client should retry after ``retry_after_s``."""

    code = ""
    retry_after_s = 10


class OutboxFull(StorageUnavailable):
    """The outbox has reached ``outbox.max_bytes``."""

    code = "outbox_full"


class DiskFull(StorageUnavailable):
    """The file system of the outbox is full."""

    code = "disk_full"


class Capacity:
    """The disk space that the outbox at ``path`` may take, and whether it is used up.

    ``full`` is the code of the limit that is reached, or None. ``nearly_full`` becomes true a little earlier.
    """

    def __init__(self, path: Path, max_bytes: int, *, when_full: Literal["refuse", "drop_oldest"] = "refuse") -> None:
        self.max_bytes = max_bytes
        self.drop_oldest = when_full == "drop_oldest"
        self.full: str | None = None
        self.nearly_full = False
        self.log_copied_at_bytes = wal_bytes(path.parent)
        self.reserve_bytes = self.log_copied_at_bytes * 3 // 2
        self._by_log = False
        self._folder = path.parent
        self._reserve = path.with_name(path.name + RESERVE)

    @property
    def full_by_log(self) -> bool:
        """True while events are refused because of the size of the log alone."""
        return self.full == "outbox_full" and self._by_log

    def check(self) -> None:
        """Raise OutboxFull or DiskFull while events are refused."""
        if self.full is not None:
            raise self.refusal()

    def refusal(self) -> "OutboxFull | DiskFull":
        """Return the error for events that are refused because of ``full``."""
        return self._disk_full() if self.full == "disk_full" else self._outbox_full()

    def refuse(self) -> OutboxFull:
        """Return the error for an event that does not fit; refuse all from now on, unless the oldest are dropped."""
        if self.full is None and not self.drop_oldest:
            self.full = "outbox_full"
        return self._outbox_full()

    def _outbox_full(self) -> OutboxFull:
        if self._by_log:
            return OutboxFull(
                f"The outbox has reached outbox.max_bytes ({show_size(self.max_bytes)}) with its log, which grows because "
                "another program keeps reading the outbox; `px-sidecar status` names it: end it, and events are accepted again."
            )
        return OutboxFull(
            f"The outbox has reached outbox.max_bytes ({show_size(self.max_bytes)}); "
            "events are refused until some are delivered, or dropped with `px-sidecar events discard`, or the limit is raised."
        )

    def _disk_full(self) -> DiskFull:
        return DiskFull(f"The disk of {self._folder} is full; free some space there, and events are accepted again.")

    def surplus(self, used_bytes: int, more_bytes: int) -> int:
        """Return how many bytes ``more_bytes`` would exceed the high-water mark by; zero or less if they fit."""
        return used_bytes + more_bytes - int(self.max_bytes * HIGH_WATER)

    def measure(self, used_bytes: int, log_bytes: int = 0) -> None:
        """Update ``full`` and ``nearly_full`` from the bytes that the rows and the log take now.

        Of the log only what exceeds its normal size counts. Deleting rows does not make the log smaller, so nothing is
        dropped for it: events are refused.
        """
        excess_bytes = max(0, log_bytes - LOG_NORMAL * self.log_copied_at_bytes)
        total_bytes = used_bytes + excess_bytes
        self.nearly_full = used_bytes > self.max_bytes * NEARLY_FULL_WATER
        # What the log alone has filled is usable again once the log is back, without the distance that rows need.
        log_is_back = self._by_log and not excess_bytes
        self._by_log = bool(excess_bytes) and used_bytes <= self.max_bytes * HIGH_WATER
        if self.full is None and total_bytes > self.max_bytes and (self._by_log or not self.drop_oldest):
            self.full = "outbox_full"
        elif self.full == "outbox_full" and (log_is_back or total_bytes < self.max_bytes * LOW_WATER):
            self.full = None

    def release_reserve(self) -> DiskFull:
        """Remove the reserve and refuse events because the disk is full; return the error to raise."""
        self.full = "disk_full"
        self.remove_reserve()
        return self._disk_full()

    def remove_reserve(self) -> None:
        """Give the space of the reserve back, if that is possible; housekeeping allocates it again."""
        with suppress(OSError):  # the error of the disk that led here is what is reported
            self._reserve.unlink(missing_ok=True)

    def has_fewer_bytes(self, wanted_bytes: int) -> bool:
        """Return True if fewer bytes are free; False if the file system does not say: it has another problem then."""
        try:
            return self.free_bytes() < wanted_bytes
        except OSError:
            return False

    def free_bytes(self) -> int:
        """Return the bytes that this process may still use on the file system. Raises OSError."""
        facts = os.statvfs(self._folder)
        return facts.f_bavail * facts.f_frsize

    def allocate_reserve(self) -> None:
        """Allocate the reserve if it is missing; on success a full disk counts as usable again.

        Raises OSError if the folder cannot be used for another reason than a full disk.
        """
        if self.full != "disk_full" and self._has_reserve():
            return
        # The margin keeps the reserve from taking the last bytes: the next write would fail and release it again.
        needed_bytes = self.reserve_bytes + self.reserve_bytes // 4
        if self.free_bytes() < needed_bytes or not self._allocate():
            self.release_reserve()
        elif self.full == "disk_full":
            self.full = None

    def _has_reserve(self) -> bool:
        # The size counts, not the existence: a crash between creating and allocating leaves an empty file.
        try:
            return self._reserve.stat().st_size >= self.reserve_bytes
        except FileNotFoundError:
            return False

    def _allocate(self) -> bool:
        """Allocate the blocks of the reserve; False if there is not enough space. Raises any other OSError."""
        try:
            descriptor = os.open(self._reserve, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                _allocate_blocks(descriptor, self.reserve_bytes)
            finally:
                os.close(descriptor)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            return False
        return True


def _allocate_blocks(descriptor: int, size_bytes: int) -> None:
    """Give the file blocks for ``size_bytes``: a sparse file would reserve nothing. Raises OSError."""
    if allocate := getattr(os, "posix_fallocate", None):
        allocate(descriptor, 0, size_bytes)
        return
    block = bytes(2**20)  # macOS: written
    for offset in range(0, size_bytes, len(block)):
        os.pwrite(descriptor, block[: size_bytes - offset], offset)
