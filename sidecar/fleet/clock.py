"""The engine's clock as this host knows it: bounds, never a single guess.

An answer that was requested at ``sent_s``, arrived at ``received_s`` and says ``engine_s`` proves that the offset
(engine minus host) lies between ``engine_s - received_s`` and ``engine_s - sent_s``. Bounds of several answers are
intersected; with age they widen by the most that two clocks drift apart. A reading that fits no intersection means that
one of the two clocks was set: nothing that was computed with the old bounds may be used any longer.

A send is surely not early if the lower bound says that its time has come, and surely not late if the upper bound says
so. Hence no estimate is needed, and latency that is not symmetric does no harm.
"""

from typing import Final

__all__ = ["EngineClock"]

DRIFT: Final = 0.0005  # the most by which NTP slews a clock (adjtime); quartz drifts a tenth of it
ROUNDING_S: Final = 0.000_01


class EngineClock:
    """Bounds of the engine's clock. All host times are seconds of one clock that also runs while suspended."""

    def __init__(self, bounds: tuple[float, float, float] | None = None) -> None:
        self._bounds = bounds

    @property
    def bounds(self) -> tuple[float, float, float] | None:
        """The bounds of the offset and when they were computed, for a process after this one; None if nothing is known."""
        return self._bounds

    def read(self, sent_s: float, received_s: float, engine_s: float) -> bool:
        """Take a reading; return False if it contradicts the bounds: they are then those of this reading alone."""
        low_s, high_s = engine_s - received_s - ROUNDING_S, engine_s - sent_s + ROUNDING_S
        known = self._at(received_s)
        if known is None:
            self._bounds = (low_s, high_s, received_s)
            return True
        low, high = max(low_s, known[0]), min(high_s, known[1])
        self._bounds = (low, high, received_s) if low <= high else (low_s, high_s, received_s)
        return low <= high

    def forget(self) -> None:
        """Forget all readings."""
        self._bounds = None

    def uncertainty_s(self, now_s: float) -> float:
        """Return the distance of the bounds; infinity if nothing is known."""
        known = self._at(now_s)
        return float("inf") if known is None else known[1] - known[0]

    def earliest_s(self, now_s: float) -> float:
        """Return the engine's time at ``now_s`` if it is as early as it can be."""
        known = self._at(now_s)
        assert known is not None, "the engine's clock is not known"
        return now_s + known[0]

    def latest_s(self, now_s: float) -> float:
        """Return the engine's time at ``now_s`` if it is as late as it can be."""
        known = self._at(now_s)
        assert known is not None, "the engine's clock is not known"
        return now_s + known[1]

    def when_surely_s(self, engine_s: float) -> float:
        """Return when the engine's time is surely ``engine_s`` or later, unless another reading changes the bounds."""
        assert self._bounds is not None, "the engine's clock is not known"
        low, _, read_s = self._bounds
        # The lower bound sinks with the drift until then: solved for the moment at which it is reached.
        at_s = (engine_s - low - DRIFT * read_s) / (1 - DRIFT)
        return at_s if at_s >= read_s else engine_s - low

    def _at(self, now_s: float) -> tuple[float, float] | None:
        """Return the bounds of the offset, widened by the drift since they were computed."""
        if self._bounds is None:
            return None
        low, high, read_s = self._bounds
        drift_s = DRIFT * max(0.0, now_s - read_s)
        return low - drift_s, high + drift_s
