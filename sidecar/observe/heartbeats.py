"""Heartbeats: the time of each part's last progress, read by ``/health`` and the systemd watchdog.

Theory
------
A process can run, answer requests and still do none of its work, and it then looks healthy from outside
(sidecar/observe/README.md#heartbeats). Health is therefore not that something answers, but that each part has recently
completed a piece of work. There are two parts: the *dispatcher*, which beats with each decision, and the *writer*,
which beats each time a no-op transaction has passed through it.

Whether PX answers does not count: accepting events while PX is unreachable is the purpose of the daemon.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NoReturn

import trio

from sidecar.errors import SidecarError

__all__ = ["DISPATCHER", "WRITER", "Heartbeats", "feed_watchdog", "log_standstill", "probe"]

log = logging.getLogger(__name__)

DISPATCHER: Final = "dispatcher"
WRITER: Final = "writer"

STANDSTILL: Final = {
    WRITER: "The outbox has finished no write for %.0f s: its disk does not answer, and clients wait; check the disk.",
    DISPATCHER: "Delivery has decided nothing for %.0f s: this host has no processor time for it, or it is a bug.",
}


class Heartbeats:
    """The time of each part's last progress. A part that has not beaten yet counts from the creation of this object."""

    def __init__(self, monotonic_s: Callable[[], float], parts: Sequence[str] = (DISPATCHER, WRITER)) -> None:
        self.monotonic_s = monotonic_s
        self._beat_s = dict.fromkeys(parts, monotonic_s())

    def beat(self, part: str) -> None:
        """Record that the part has made progress now."""
        self._beat_s[part] = self.monotonic_s()

    def ages_s(self, now_s: float) -> dict[str, float]:
        """Return the seconds since each part's last progress."""
        return {part: max(0.0, now_s - beat_s) for part, beat_s in self._beat_s.items()}

    def late(self, now_s: float, limit_s: float) -> list[str]:
        """Return the parts that made no progress for longer than ``limit_s``."""
        return [part for part, age_s in self.ages_s(now_s).items() if age_s > limit_s]

    def healthy(self, now_s: float, limit_s: float) -> bool:
        """Return whether every part made progress within ``limit_s``."""
        return not self.late(now_s, limit_s)


async def probe(heartbeats: Heartbeats, part: str, work: Callable[[], Awaitable[object]], every_s: float) -> NoReturn:
    """Run ``work`` every ``every_s`` and beat for ``part`` each time it completes. Runs until cancelled.

    Work that hangs or raises SidecarError does not beat. Other exceptions propagate.
    """
    while True:
        try:
            await work()
        except SidecarError:
            pass  # the missing beat is the report; the writer has logged the reason
        else:
            heartbeats.beat(part)
        await trio.sleep(every_s)


async def feed_watchdog(
    heartbeats: Heartbeats, feed: Callable[[], object], *, limit_s: float, every_s: float
) -> NoReturn:
    """Call ``feed`` every ``every_s`` while all parts are within ``limit_s``, else skip it. Runs until cancelled.

    systemd ends the process after ``WatchdogSec`` without a call (sd_watchdog_enabled(3)).
    """
    while True:
        if heartbeats.healthy(heartbeats.monotonic_s(), limit_s):
            feed()
        await trio.sleep(every_s)


async def log_standstill(heartbeats: Heartbeats, *, limit_s: float, every_s: float) -> NoReturn:
    """Log when a part makes no progress within ``limit_s``, and when it does again. Runs until cancelled."""
    logged = set[str]()
    before: list[str] = []
    while True:
        late = heartbeats.late(heartbeats.monotonic_s(), limit_s)
        # Twice in a row: after the process was stopped for a while, each part is late until its next beat.
        for part in set(late).intersection(before) - logged:
            log.error(STANDSTILL[part], limit_s, extra={"always": True})
            logged.add(part)
        for part in logged.difference(late, before):
            log.info("The %s makes progress again.", part)
            logged.discard(part)
        before = late
        await trio.sleep(every_s)
