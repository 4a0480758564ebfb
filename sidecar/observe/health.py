"""Marks of progress: what ``/health`` and the systemd watchdog go by.

Theory
------
A process that runs may do nothing: the worst state of all, as it looks healthy (facts/field_lessons.md 3). So health is
not that something answers, but that each part has done a piece of its work lately. Two parts make the daemon: the
*dispatcher*, which ticks each time it decides, and the *writer*, through which a no-op is sent again and again.

Whether PX answers is no part of it: accepting events while PX is away is what this is for.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NoReturn

import trio

from sidecar.errors import SidecarError

__all__ = ["DISPATCHER", "WRITER", "Marks", "feed_watchdog", "prove"]

DISPATCHER: Final = "dispatcher"
WRITER: Final = "writer"


class Marks:
    """When each part last made progress. A part that never ticks counts from the making of this object."""

    def __init__(self, monotonic_s: Callable[[], float], parts: Sequence[str] = (DISPATCHER, WRITER)) -> None:
        self.monotonic_s = monotonic_s
        self._ticked_s = dict.fromkeys(parts, monotonic_s())

    def tick(self, part: str) -> None:
        """The part has made progress."""
        self._ticked_s[part] = self.monotonic_s()

    def ages_s(self, now_s: float) -> dict[str, float]:
        """Seconds since each part last made progress."""
        return {part: max(0.0, now_s - ticked_s) for part, ticked_s in self._ticked_s.items()}

    def late(self, now_s: float, limit_s: float) -> list[str]:
        """The parts without progress for longer than ``limit_s``."""
        return [part for part, age_s in self.ages_s(now_s).items() if age_s > limit_s]

    def healthy(self, now_s: float, limit_s: float) -> bool:
        """Whether all parts made progress within ``limit_s``."""
        return not self.late(now_s, limit_s)


async def prove(marks: Marks, part: str, work: Callable[[], Awaitable[object]], every_s: float) -> NoReturn:
    """Have a part do a piece of work every ``every_s`` and mark it each time that this comes to its end.

    Work that never ends, and work that ends with a SidecarError, is no progress. Other exceptions go through.
    """
    while True:
        try:
            await work()
        except SidecarError:
            pass  # the absence of the mark tells it; who failed has said why
        else:
            marks.tick(part)
        await trio.sleep(every_s)


async def feed_watchdog(marks: Marks, feed: Callable[[], object], *, limit_s: float, every_s: float) -> NoReturn:
    """Call ``feed`` every ``every_s`` while all parts make progress; when one does not, it is not called."""
    while True:
        if marks.healthy(marks.monotonic_s(), limit_s):
            feed()
        await trio.sleep(every_s)
