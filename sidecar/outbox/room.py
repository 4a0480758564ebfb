"""Room on the disk: when to refuse events, when to take them again, and how settlement works on a full disk.

Two ceilings, one answer each:

``outbox_full``  the rows take ``max_bytes``. History makes room first; then events are refused, until the rows take
                 less than the low water (or the oldest events go, see ``overflow.py``).
``disk_full``    the file system has no room. Then SQLite cannot even delete (facts: ``field_lessons.md`` M12), so a
                 reserve file is given up at once: settlements go on in its room, and space comes back as they do.
                 Events are taken again once the reserve could be laid by anew, with a little to spare.

The reserve is half as large again as the WAL grows: whatever the WAL holds can be copied into the file, and then the
WAL is used from its beginning again. So a full disk never stops settlement, however long it lasts.
"""

import errno
import os
from pathlib import Path
from typing import Final, Literal

from sidecar.errors import SidecarError
from sidecar.outbox.database import wal_bytes
from sidecar.units import show_size

__all__ = ["DiskFull", "OutboxFull", "Refused", "Room"]

HIGH_WATER: Final = 0.98
LOW_WATER: Final = 0.95
# From here on history goes whatever its age, so that it never costs an event.
SHORT_WATER: Final = 0.90
# What a row takes beside its body: its columns, two index entries, its message id.
ROW_BYTES: Final = 120


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
    """How much room the outbox at ``path`` may take, and whether it is used up.

    ``full`` says why events are refused, or is None; ``short`` is true from a little before that on.
    """

    def __init__(self, path: Path, max_bytes: int, *, when_full: Literal["refuse", "drop_oldest"] = "refuse") -> None:
        self.max_bytes = max_bytes
        self.drop_oldest = when_full == "drop_oldest"
        self.full: str | None = None
        self.short = False
        self._folder = path.parent
        self._reserve = path.with_name(path.name + ".reserve")
        self._reserve_bytes = wal_bytes(path.parent) * 3 // 2

    def check(self) -> None:
        """Raise OutboxFull or DiskFull while there is no room."""
        if self.full == "outbox_full":
            raise self._outbox_full()
        if self.full == "disk_full":
            raise self._disk_full()

    def refuse(self) -> OutboxFull:
        """There is no room for an event: the error to answer with. Others are refused too, until there is."""
        if self.full is None and not self.drop_oldest:
            self.full = "outbox_full"
        return self._outbox_full()

    def _outbox_full(self) -> OutboxFull:
        return OutboxFull(
            f"The outbox holds {show_size(self.max_bytes)}, all it may (outbox.max_bytes); "
            "events are refused until some are delivered."
        )

    def _disk_full(self) -> DiskFull:
        return DiskFull(f"The disk of {self._folder} is full; make room there, events are taken again by themselves.")

    def surplus(self, used_bytes: int, more_bytes: int) -> int:
        """How many bytes too many there would be with ``more_bytes``; nothing or less if they fit."""
        return used_bytes + more_bytes - int(self.max_bytes * HIGH_WATER)

    def measure(self, used_bytes: int) -> None:
        """Learn how much the rows take now."""
        self.short = used_bytes > self.max_bytes * SHORT_WATER
        if self.full is None and used_bytes > self.max_bytes and not self.drop_oldest:
            self.full = "outbox_full"
        elif self.full == "outbox_full" and used_bytes < self.max_bytes * LOW_WATER:
            self.full = None

    def give_up_reserve(self) -> DiskFull:
        """A write has failed for lack of room: give up the reserve and refuse events, with the error returned."""
        self.full = "disk_full"
        self._reserve.unlink(missing_ok=True)
        return self._disk_full()

    def free_bytes(self) -> int:
        """What the file system has left for this process."""
        facts = os.statvfs(self._folder)
        return facts.f_bavail * facts.f_frsize

    def lay_by(self) -> None:
        """Make the reserve if it is not there; where that succeeds a full disk has become usable again.

        Raises OSError if the folder cannot be used for another reason than lack of room.
        """
        if self.full != "disk_full" and self._has_reserve():
            return
        enough = self._reserve_bytes + self._reserve_bytes // 4
        if self.free_bytes() < enough or not self._allocate():
            self.give_up_reserve()
        elif self.full == "disk_full":
            self.full = None

    def _has_reserve(self) -> bool:
        try:
            return self._reserve.stat().st_size >= self._reserve_bytes
        except FileNotFoundError:
            return False

    def _allocate(self) -> bool:
        try:
            descriptor = os.open(self._reserve, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, self._reserve_bytes)
            finally:
                os.close(descriptor)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            return False
        return True
