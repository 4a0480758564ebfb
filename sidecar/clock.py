"""Time: one of the seams through which the outside world enters (``sidecar.daemon.Seams``).

Rules
-----
* Waits inside the process use the monotonic clock (``trio.current_time()``). It has a random offset per run and does not
  count suspend, so it is never stored, sent or compared across processes
  (https://trio.readthedocs.io/en/stable/reference-core.html#time-and-timeouts).
* The wall clock is used only for what is stored or sent, in integer milliseconds since the epoch (``…_ms``). Stored
  values are clamped when they are read back, because clocks step.
* **Time that the process did not run counts for no deadline.** After SIGSTOP, a suspended VM or a starved processor every
  deadline would have passed: each request in flight would be given up and sent again, and clients refused, although
  their answers and requests have arrived meanwhile. ``FreezeClock``, the trio clock of the daemon, leaves such time out.
  It is never ahead of real time, so whatever holds for a second of it (a ceiling) also holds for a real second. What
  must count real time (the age of a connection, send times that other hosts rely on) uses ``boot_s``.
* ``CLOCK_BOOTTIME`` together with the boot id is the only clock that survives a restart of the process and that no step
  of the wall clock moves (clock_gettime(2)). The day quota counts by it within one boot.
"""

import time
import uuid
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Final, Protocol

import trio

__all__ = ["RELEASED_MS", "Clock", "FreezeClock", "SystemClock", "VirtualClock", "boot_s"]

# 2026-01-01: no release of this program is older, so a wall clock that shows an earlier time is wrong.
RELEASED_MS: Final = 1_767_225_600_000

# A longer gap between two readings than was asked for means that the process did not run. A busy loop reads the clock
# many times a second; garbage collection and large bodies stay far below this.
FREEZE_S: Final = 1.0
# The loop wakes at least this often, so that a freeze during a long sleep is noticed, too.
LONGEST_SLEEP_S: Final = 1.0

# macOS has neither; there CLOCK_MONOTONIC also counts from the boot, and without the time in suspend.
_BOOT_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
_BOOT_ID_FILE: Final = Path("/proc/sys/kernel/random/boot_id")
_PROCESS_ID: Final = f"process-{uuid.uuid4()}"


def boot_s() -> float:
    """Return seconds since the host booted, suspend included: the age of things outside, such as connections."""
    return time.clock_gettime(_BOOT_CLOCK)


class Clock(Protocol):
    """The source of time for the whole daemon."""

    @property
    def released_ms(self) -> int:
        """A time that the wall clock cannot truly show: it is before this program was released."""
        ...

    def monotonic_s(self) -> float:
        """Return seconds for waiting; equal to ``trio.current_time()``."""
        ...

    def wall_ms(self) -> int:
        """Return milliseconds since the epoch."""
        ...

    def boot_s(self) -> float:
        """Return seconds since the host booted, suspend included."""
        ...

    def boot_id(self) -> str:
        """Return a text that differs after each boot of the host."""
        ...


class FreezeClock(trio.abc.Clock):
    """A clock for ``trio.run`` that stands still while the process does not run.

    trio reads what has arrived before it looks at deadlines, and reads this clock only then: the first reading after a
    freeze removes it. Of each freeze up to ``LONGEST_SLEEP_S`` + ``FREEZE_S`` may count as time.
    """

    def __init__(self, real_s: Callable[[], float] = time.perf_counter) -> None:
        self._real_s = real_s
        # As trio's own clock: a random start, so that code cannot rely on a particular one.
        self._offset_s = Random().uniform(10_000, 1_000_000)  # noqa: S311
        self._read_s = 0.0
        self._sleep_s = 0.0

    def start_clock(self) -> None:
        """Begin to watch for freezes."""
        self._read_s = self._real_s()

    def current_time(self) -> float:
        """Return seconds without the time of freezes."""
        real_s = self._real_s()
        over_s = real_s - self._read_s - self._sleep_s
        if over_s > FREEZE_S:
            self._offset_s -= over_s
        self._read_s, self._sleep_s = real_s, 0.0
        return real_s + self._offset_s

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """Return how long the loop may sleep."""
        sleep_s = min(max(0.0, deadline - self.current_time()), LONGEST_SLEEP_S)
        self._sleep_s = sleep_s
        return sleep_s


class SystemClock:
    """The clocks of this host."""

    released_ms = RELEASED_MS

    def __init__(self) -> None:
        self._boot_id = ""

    def monotonic_s(self) -> float:
        return trio.current_time()

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def boot_s(self) -> float:
        return boot_s()

    def boot_id(self) -> str:
        # Read once: while descriptors are used up, the boot must not seem to be another one.
        if not self._boot_id:
            try:
                self._boot_id = _BOOT_ID_FILE.read_text(encoding="ascii").strip()
            except OSError:
                # Not Linux. A text of this process's own makes readers of stored times use the wall clock, as after a boot.
                self._boot_id = _PROCESS_ID
        return self._boot_id


class VirtualClock:
    """All clocks derived from trio's clock (usually a ``MockClock``), with a wall clock that tests can step.

    ``wall_step_ms`` is added to the wall clock: set it to simulate an operator or NTP changing the time. At ``started_s``
    the host has been up for ``booted_s``: longer than an hour, so that its clock is believed (sidecar/outbox/README.md#clock).
    """

    released_ms = 1_600_000_000_000

    def __init__(
        self,
        *,
        start_wall_ms: int = 1_700_000_000_000,
        boot_id: str = "boot-1",
        started_s: float = 0.0,
        booted_s: float = 10_000.0,
    ) -> None:
        self.wall_step_ms = 0
        self._booted_s = booted_s
        self._start_wall_ms = start_wall_ms
        self._boot_id = boot_id
        self._started_s = started_s

    def monotonic_s(self) -> float:
        return trio.current_time()

    def wall_ms(self) -> int:
        return self._start_wall_ms + self.wall_step_ms + int((trio.current_time() - self._started_s) * 1000)

    def boot_s(self) -> float:
        return trio.current_time() - self._started_s + self._booted_s

    def boot_id(self) -> str:
        return self._boot_id
