"""Time: one of the four seams through which the world enters.

Rules
-----
* In-process waits use the monotonic clock (``trio.current_time()``); it has a random offset per run, so it is never
  stored, sent or compared across processes.
* Wall-clock time is used only for what is stored or sent, in integer milliseconds since the epoch (``…_ms``), and is
  clamped when it is read back: clocks step.
* ``CLOCK_BOOTTIME`` with the boot id is the one clock that survives a restart of the process and no step of the wall
  clock moves; the day quota counts by it within one boot.
"""

import time
from pathlib import Path
from typing import Protocol

import trio

__all__ = ["Clock", "SystemClock", "VirtualClock"]


class Clock(Protocol):
    """Where every room reads the time."""

    def monotonic_s(self) -> float:
        """Seconds for waiting; equal to ``trio.current_time()``."""
        ...

    def wall_ms(self) -> int:
        """Milliseconds since the epoch."""
        ...

    def boot_s(self) -> float:
        """Seconds since the host booted, suspend included."""
        ...

    def boot_id(self) -> str:
        """A text that is different after each boot of the host."""
        ...


class SystemClock:
    """The real clocks of this host."""

    def monotonic_s(self) -> float:
        return trio.current_time()

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def boot_s(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def boot_id(self) -> str:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


class VirtualClock:
    """All clocks driven by trio's (usually a ``MockClock``), with a wall clock that tests can step.

    ``wall_step_ms`` is added to the wall clock: set it to simulate an operator or NTP moving the time.
    """

    def __init__(
        self, *, start_wall_ms: int = 1_700_000_000_000, boot_id: str = "boot-1", started_s: float = 0.0
    ) -> None:
        self.wall_step_ms = 0
        self._start_wall_ms = start_wall_ms
        self._boot_id = boot_id
        self._started_s = started_s

    def monotonic_s(self) -> float:
        return trio.current_time()

    def wall_ms(self) -> int:
        return self._start_wall_ms + self.wall_step_ms + int((trio.current_time() - self._started_s) * 1000)

    def boot_s(self) -> float:
        return trio.current_time() - self._started_s + 1000.0

    def boot_id(self) -> str:
        return self._boot_id
