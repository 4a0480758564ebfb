"""Counts over time, in memory: the last ten minutes for each second, and the last 24 hours for each minute.

A fixed ring of numbers for each series, about 100 kB together, whatever the load. It starts empty with the process: the
counters in the outbox file are the account of what happened, this is a picture of how it looked.
"""

from array import array
from collections.abc import Mapping
from typing import Any, Final

__all__ = ["COUNTERS", "GAUGES", "Series"]

SECONDS: Final = 600
MINUTES: Final = 1440
BACK: Final = 10
COUNTERS: Final = ("accepted", "delivered", "dropped", "dead", "requests")
"""Numbers in each step, from totals that only grow."""
GAUGES: Final = ("pending",)
"""The value at the end of each step."""


class Series:
    """Both rings. ``record`` is called about once a second with totals since the start of the process."""

    def __init__(self, now_ms: int) -> None:
        self._seconds = _Ring(1, SECONDS, now_ms // 1000)
        self._minutes = _Ring(60, MINUTES, now_ms // 1000)
        self._last: Mapping[str, int] | None = None

    def record(self, now_ms: int, totals: Mapping[str, int]) -> None:
        """Add what was counted since the call before, and set the gauges, at the present step.

        A total that shrinks counts as unchanged: replayed dead letters leave their state. A clock that was set back
        adds to the newest step, by more than ``BACK`` steps it empties the ring.
        """
        last, self._last = self._last or totals, dict(totals)
        added = {name: max(0, totals[name] - last[name]) for name in COUNTERS}
        for ring in (self._seconds, self._minutes):
            ring.move_to(now_ms // 1000)
            ring.add(added, {name: totals[name] for name in GAUGES})

    def as_dict(self) -> dict[str, Any]:
        """Return ``{"seconds", "minutes"}``: for each the start (epoch seconds), the step, and a list per series.

        The present step, which is not over, is left out.
        """
        return {"seconds": self._seconds.as_dict(), "minutes": self._minutes.as_dict()}


class _Ring:
    """``length`` steps of ``step_s`` seconds; the newest is at ``_end``."""

    def __init__(self, step_s: int, length: int, now_s: int) -> None:
        self._step_s = step_s
        self._length = length
        self._first = self._end = now_s // step_s
        self._values = {name: array("q", bytes(8 * length)) for name in (*COUNTERS, *GAUGES)}

    def move_to(self, now_s: int) -> None:
        """Make the step of ``now_s`` the newest. Steps in between are empty, their gauges hold the last value."""
        step = now_s // self._step_s
        gap = min(step - self._end, self._length)
        newest = {name: self._values[name][self._end % self._length] for name in GAUGES}
        if self._end - step > BACK:  # kept, it would hide all steps before its newest
            self._first = self._end = step
            for values in self._values.values():
                values[step % self._length] = 0
        if step - self._end > self._length:  # after a suspend or a clock that jumped: nothing of the ring is left
            self._first = self._end = step - self._length
        for _ in range(gap):
            self._end += 1
            at = self._end % self._length
            for name, values in self._values.items():
                values[at] = newest.get(name, 0)

    def add(self, added: Mapping[str, int], gauges: Mapping[str, int]) -> None:
        at = self._end % self._length
        for name, count in added.items():
            self._values[name][at] += count
        for name, value in gauges.items():
            self._values[name][at] = value

    def as_dict(self) -> dict[str, Any]:
        start = max(self._first, self._end - self._length + 1)
        steps = [step % self._length for step in range(start, self._end)]
        lists = {name: [values[at] for at in steps] for name, values in self._values.items()}
        return {"start_s": start * self._step_s, "step_s": self._step_s, **lists}
