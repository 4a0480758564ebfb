"""Room on the disk: when to refuse events, when to take them again, and how settlement works on a full disk.

Two ceilings, one answer each:

``outbox_full``  the rows take ``max_bytes``. Refused above the high water, taken again below the low water; history
                 goes first.
``disk_full``    the file system has no room. Then SQLite cannot even delete (facts: ``field_lessons.md`` M12), so a
                 reserve file is given up at once: settlements go on in its room, and space comes back as they do.
                 Events are taken again once the reserve could be laid by anew.
"""

import errno
import os
from pathlib import Path

from sidecar.errors import SidecarError
from sidecar.units import show_size

__all__ = ["DiskFull", "OutboxFull", "Room"]

HIGH_WATER = 0.98
LOW_WATER = 0.95
RESERVE_BYTES = 8 * 2**20


class Refused(SidecarError):
    """The event cannot be made durable now; the client should come again after ``retry_after_s``."""

    code = ""
    retry_after_s = 10


class OutboxFull(Refused):
    """The outbox has reached ``outbox.max_bytes``."""

    code = "outbox_full"


class DiskFull(Refused):
    """The file system that holds the outbox has no room."""

    code = "disk_full"


class Room:
    """How much room the outbox at ``path`` may take, and whether it is used up: ``full`` says why, or None."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.full: str | None = None
        self._path = path
        self._reserve = path.with_name(path.name + ".reserve")
        self._reserve_bytes = min(RESERVE_BYTES, max_bytes // 16)

    def check(self) -> None:
        """Raise OutboxFull or DiskFull while there is no room."""
        if self.full == "outbox_full":
            raise OutboxFull(
                f"The outbox holds {show_size(self.max_bytes)}, all it may (outbox.max_bytes); events are refused until some are delivered."
            )
        if self.full == "disk_full":
            raise DiskFull(
                f"The disk of {self._path.parent} is full; make room there, events are taken again by themselves."
            )

    def measure(self, used_bytes: int) -> None:
        """Learn how much the rows take now."""
        if self.full is None and used_bytes > self.max_bytes * HIGH_WATER:
            self.full = "outbox_full"
        elif self.full == "outbox_full" and used_bytes < self.max_bytes * LOW_WATER:
            self.full = None

    def disk_is_full(self) -> None:
        """A write has failed for lack of room: give up the reserve, refuse events."""
        self.full = "disk_full"
        self._reserve.unlink(missing_ok=True)

    def lay_by(self) -> None:
        """Make the reserve if it is not there; where that succeeds a full disk has become usable again."""
        if self.full != "disk_full" and self._reserve.exists():
            return
        try:
            descriptor = os.open(self._reserve, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, max(self._reserve_bytes, 1))
            finally:
                os.close(descriptor)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            self.disk_is_full()
            return
        if self.full == "disk_full":
            self.full = None
