"""A leaky bucket: computes when the next request may be sent.

Theory
------
Two rules hold at once; a send is allowed when both allow it. With N = floor(per_second) and the interval T = 1 / N:

* **The log** guarantees the ceiling. It holds the last N send times; send *i* comes at least one second after send
  *i* - N. So no half-open second [t, t + 1) holds more than N sends, whatever stalls, rate changes and callers do. The
  sum is rounded up by one unit in the last place, so that the guarantee also holds in exact arithmetic.
* **The grid** (GCRA) smooths the stream. Sends are due T apart. A late send may be caught up, but by ``TOLERANCE_S`` at
  most. So neither a start nor idle time nor a stall is followed by a burst.

Wake-ups are coalesced: a process that wakes up half as often needs a fifth less CPU time for the same sends. A caller
that has to wait gets the time at which all sends that fall into ``COALESCE_S`` are allowed (two at the default pace).
They share one wake-up, and so do their answers. This costs no throughput and loosens neither rule, since a late send
may be caught up.

Below one per second N is 1 and the window is 1 / per_second instead of one second. A fraction above one is cut off:
47.5 per second can be kept in *every* second only by sending 47. A pace below the ceiling (after a 429, or spread over the
day) is only a wider grid, of any interval: 6.65 per second is a send every 150 ms, and a PX that takes 7 is used to 95 %.
A host with a fixed share of the limits is *spaced* instead: N = ceil(per_second) sends in a window of N / per_second,
which is a second or longer. It uses all of its share, and no second holds more than N. Cutting off would cost 50 hosts of 190 per second a fifth (3 of 3.8 each).

What is counted is the moment at which a request leaves. Between the decision and that moment a lane may have to connect,
and requests that waited for connections would leave together. So a grant holds for ``DEPARTURE_S``: a request that is later
gives its place back and gets another (``regrant``), and ``departed`` puts the real moment into the log.

Across restarts
---------------
A new process does not know what the previous one sent. It assumes the worst that the rules allow: sends at full pace,
shifted late by the tolerance, until the moment of the start. (Tolerance here is the sum of ``TOLERANCE_S`` and
``DEPARTURE_S``.) Let a be the part of a window before the start. The old process sent at most (a + tolerance) / T + 1
requests in it. The new one sends its *i*-th request at start + tolerance + i * T or later, hence fewer than
(1 - a - tolerance) / T: together fewer than N + 1. The joined stream obeys the grid
again, so this holds for any number of restarts. If both processes use their limits fully, the first send of the one and
a send of the other are exactly a window apart, and rounding would decide; ``ROUNDING_S`` is added. The price: the first
send comes one interval and the tolerance after the start.

See sidecar/deliver/README.md#pace.
"""

import math
from bisect import bisect_right
from collections import deque

__all__ = ["COALESCE_S", "DEPARTURE_S", "ROUNDING_S", "TOLERANCE_S", "Bucket"]

# Ten times the usual lateness of a wake-up (0 to 2 ms). Four intervals at the default pace, so that a stall is followed
# by four immediate sends at most.
TOLERANCE_S = 0.020

# For handing a request to its lane and writing it; a lane that has to connect is later.
DEPARTURE_S = 0.010

# Well below the tolerance, so that a late wake-up can still be caught up.
COALESCE_S = 0.008

# More than the sums of one window can lose: half a unit in the last place for each of its sends, 75 us at ten thousand
# a second on a machine that has been up for three years.
ROUNDING_S = 100e-6


class Bucket:
    """Allows ``floor(per_second)`` sends in any one second, smoothly. Times are monotonic seconds.

    ``started_s`` is the start of this process: what an earlier process may have sent until then is counted in.
    ``spaced``: this is one of several hosts with a fixed share; see the module.
    """

    def __init__(self, per_second: float, started_s: float, *, spaced: bool = False) -> None:
        self.spaced = spaced
        self._set_ceiling(per_second)
        self._set(per_second)
        # The log starts full, as if a previous process had sent at full pace until now. An empty log would allow the
        # ceiling twice within one second around a restart.
        latest_s = started_s + TOLERANCE_S + DEPARTURE_S + ROUNDING_S
        self._begun_s = latest_s  # the grid's first place
        self._due_s = latest_s + self._interval_s
        self._log = deque(latest_s - back * self._interval_s for back in reversed(range(self._limit)))

    def ready_at_s(self, now_s: float) -> float:
        """Return ``now_s`` if a send is allowed now, else when to ask again; all coalesced sends are allowed then."""
        return now_s if self._allowed_s() <= now_s else self._allowed_s(self._coalesced)

    def take(self, now_s: float) -> None:
        """Record a send at ``now_s``, which must be allowed then (AssertionError otherwise)."""
        assert now_s >= self._allowed_s(), (now_s, self._allowed_s())
        self._place(now_s)

    def regrant(self, granted_s: float, now_s: float) -> float:
        """Return when a request that was granted ``granted_s`` and has not left may leave.

        That is ``granted_s`` itself while it is at most ``DEPARTURE_S`` old; else its place is given back and another one
        is taken, whose time is returned. Pass that time the next time.
        """
        if now_s <= granted_s + DEPARTURE_S:
            return granted_s
        self.give_back(granted_s)
        again_s = max(now_s, self._allowed_s())
        self._place(again_s)
        return again_s

    def give_back(self, granted_s: float) -> None:
        """Free the place of a request that was granted ``granted_s`` and has not left."""
        self._remove(granted_s)
        if granted_s >= self._begun_s:  # else the grid has restarted since, and the place is not part of it
            self._due_s -= self._interval_s

    def departed(self, granted_s: float, now_s: float) -> None:
        """Record that the request that was granted ``granted_s`` has left at ``now_s``."""
        self._remove(granted_s)
        self._add(now_s)

    def _place(self, at_s: float) -> None:
        if at_s >= self._due_s:
            self._due_s = self._begun_s = at_s
        self._due_s += self._interval_s
        self._add(at_s)

    def _add(self, at_s: float) -> None:
        if self._log and at_s < self._log[-1]:  # another request was granted a later place
            self._log.insert(bisect_right(self._log, at_s), at_s)
        else:
            self._log.append(at_s)
        while len(self._log) > self._limit:  # the dropped entries are a window older than the newest send
            self._log.popleft()

    def _remove(self, at_s: float) -> None:
        if at_s in self._log:  # else it was dropped: it is more than a window old
            self._log.remove(at_s)

    def set_rate(self, per_second: float, now_s: float, *, ceiling: float | None = None, spaced: bool = False) -> None:
        """Change the pace from now on: no burst when it rises, and no long wait for the old interval to pass.

        A pace below ``ceiling`` is kept on average, as a grid of any interval; only the ceiling is kept in every second.
        """
        self.spaced = spaced
        self._set_ceiling(per_second if ceiling is None else ceiling)
        self._set(per_second)
        # The log keeps its entries: the ceiling holds across a change of pace, too.
        self._due_s = min(self._due_s, now_s + TOLERANCE_S + self._interval_s)

    def _set_ceiling(self, ceiling: float) -> None:
        assert ceiling > 0, ceiling
        self._limit = max(1, math.ceil(ceiling) if self.spaced else math.floor(ceiling))
        self._window_s = max(1.0, self._limit / ceiling if self.spaced else 1 / ceiling)

    def _set(self, per_second: float) -> None:
        assert per_second > 0, per_second
        self.per_second = per_second
        self._interval_s = max(self._window_s / self._limit, 1 / per_second)
        self._coalesced = 1 + math.floor(COALESCE_S / self._interval_s)

    def _allowed_s(self, sends: int = 1) -> float:
        """Return when ``sends`` requests are allowed at the same moment."""
        allowed_s = self._due_s + (sends - 1) * self._interval_s - TOLERANCE_S
        nth = len(self._log) - self._limit + sends - 1  # the last of them must be a window later than this send
        if nth >= 0:
            # Rounded up: a sum that is rounded down would put N + 1 sends into one exact second.
            allowed_s = max(allowed_s, math.nextafter(self._log[nth] + self._window_s, math.inf))
        return allowed_s
