"""The leaky bucket: when the next request may be sent.

Theory
------
Two rules hold at once; a send is allowed when both allow it. With N = floor(per_second), interval T = 1 / N:

* **The log** is the promise. It holds the last N send times; send *i* comes at least one second after send *i* - N.
  So no half-open second [t, t + 1) ever holds more than N sends, whatever stalls, rates and callers do. The sum is
  rounded up by one unit in the last place, so that the promise also holds in exact arithmetic.
* **The grid** (GCRA) is the smoothness. Sends are due T apart; one that comes late may be caught up, but no more than
  ``TOLERANCE_S`` of it. So start, idle time and a stall are never followed by a burst.

A process that wakes up half as often needs a fifth less processor time for the same sends. So a caller who has to wait
is told to wait until as many sends are allowed as fall into ``GATHER_S``; they share one wake-up, as do their answers:
two at the default pace. It costs no pace and loosens neither rule, since a late send may be caught up.

Below one per second N is 1 and the window is 1 / per_second instead of a second. A fraction above one is cut off,
because 47.5 per second is kept in *every* second only by 47.

Across restarts
---------------
A process that starts cannot know what the one before sent. It assumes the worst that the rules allow: sends at full
pace, shifted late by the tolerance, until the moment of the start. With a = the part of a window before the start, the
old process sent at most (a + tolerance) / T + 1 in it, and the new one sends its *i*-th at start + tolerance + i * T or
later, hence fewer than (1 - a - tolerance) / T: together fewer than N + 1. The joined stream obeys the grid again, so
this holds for any number of restarts. Where both processes go to their limits, the first send of the one and a send of
the other are a window apart exactly, and rounding would decide: ``ROUNDING_S`` is added. The price: the first send comes
one interval and the tolerance after the start.
"""

import math
from collections import deque

__all__ = ["GATHER_S", "ROUNDING_S", "TOLERANCE_S", "Bucket"]

# Ten times the usual lateness of a wake-up (0 to 2 ms); four intervals at the default pace, so a stall is followed by
# four sends at once at most.
TOLERANCE_S = 0.020

# Well below the tolerance, so that a late wake-up can be caught up all the same.
GATHER_S = 0.008

# More than the sums of one window can lose: half a unit in the last place for each of its sends, 75 us at ten thousand
# a second on a machine that has been up for three years.
ROUNDING_S = 100e-6


class Bucket:
    """Allows ``floor(per_second)`` sends in any one second, smoothly. Times are monotonic seconds."""

    def __init__(self, per_second: float, started_s: float) -> None:
        self._set(per_second)
        latest_s = started_s + TOLERANCE_S + ROUNDING_S  # as if sent, see above
        self._due_s = latest_s + self._interval_s
        self._log = deque(latest_s - back * self._interval_s for back in reversed(range(self._limit)))

    def ready_at_s(self, now_s: float) -> float:
        """``now_s`` if a send is allowed now; else when to ask again, and as many as are gathered are allowed then."""
        return now_s if self._allowed_s() <= now_s else self._allowed_s(self._gathered)

    def take(self, now_s: float) -> None:
        """Record a send at ``now_s``, which must be allowed then."""
        assert now_s >= self._allowed_s(), (now_s, self._allowed_s())
        self._due_s = max(self._due_s, now_s) + self._interval_s
        self._log.append(now_s)
        while len(self._log) > self._limit:  # the dropped ones are a window older than this send
            self._log.popleft()

    def set_rate(self, per_second: float, now_s: float) -> None:
        """Change the pace from now on: no burst when it rises, no long wait for the old interval to pass."""
        self._set(per_second)
        self._due_s = min(self._due_s, now_s + TOLERANCE_S + self._interval_s)

    def _set(self, per_second: float) -> None:
        assert per_second > 0, per_second
        self.per_second = per_second
        self._limit = max(1, math.floor(per_second))
        self._window_s = max(1.0, 1 / per_second)
        self._interval_s = self._window_s / self._limit
        self._gathered = 1 + math.floor(GATHER_S / self._interval_s)

    def _allowed_s(self, sends: int = 1) -> float:
        """When so many sends are allowed in the same moment."""
        allowed_s = self._due_s + (sends - 1) * self._interval_s - TOLERANCE_S
        nth = len(self._log) - self._limit + sends - 1  # the send before which there is no room for the last of them
        if nth >= 0:
            allowed_s = max(allowed_s, math.nextafter(self._log[nth] + self._window_s, math.inf))
        return allowed_s
