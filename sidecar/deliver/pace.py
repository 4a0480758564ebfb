"""The pace that PX accepts: found from its 429s, and kept just below.

Theory
------
PX says when requests come too fast (429) and never how many it takes. A 429 may mean a limit that is lower than ours, for
hours, or a hiccup that is over in seconds. Three rules serve both:

* **An episode lowers the pace once.** It begins with a 429 and lasts until a success: what is refused meanwhile, and each
  probe of one unbroken error, says nothing new about the pace.
* **What is delivered raises it.** After as many deliveries as the pace takes in a second the next step is made; steps
  double, so that the ceiling is reached again within ten seconds from anywhere, unless PX refuses again. Deliveries and
  not time: a pace that is not used is not tried either.
* **Refused again, it holds.** A 429 on the way up, or soon after, is taken for a limit. The new pace is what was delivered
  in the last second if that is clearly less than the refused pace: for a limiter that counts, it is the limit. Else
  (a limiter that saves up for bursts) it is the last pace that has held (but at least half of
  the refused one), or ``JUST_BELOW`` the refused one.
* **It tries ever more rarely.** A pace is kept for ``HOLD_S`` and for ``DELIVERED_PER_REFUSAL`` deliveries for each
  refusal of the last try, so that tries cost little even at one request a second. While the refused pace is far above, the
  next try goes half way there. After that the pace climbs freely, since the limit may have been lifted; the wait before
  that doubles with each time that fails, up to ``HOLD_MAX_S``.

The lowest pace is about one request per second. See sidecar/deliver/README.md#destination.
"""

from collections import deque
from collections.abc import Callable
from typing import Final

__all__ = ["LOWEST_PER_S", "Pace"]

LOWEST_PER_S: Final = 0.95  # one a second, with a margin for the network's jitter
FIRST_CUT: Final = 0.9  # of the refused pace, at the first 429: it may be a short error
JUST_BELOW: Final = 0.95  # of the refused pace: the new pace; what was delivered counts as the limit if it is less
CLIMB_BACK: Final = 0.5  # of the refused pace: no cut to a pace that has held is deeper
MARGIN: Final = 0.97  # of what was delivered: the network's jitter
DEEPEST_CUT: Final = 0.25  # what was delivered in a second may be little because little was offered
STEP: Final = 0.02  # of the pace, at least one request per second
HOLD_S, HOLD_MAX_S = 10.0, 60.0  # how long a pace is kept before the next try; the longest after tries that failed
# Before the next try: deliveries for each refusal of the last one, or this time.
DELIVERED_PER_REFUSAL, PAID_AFTER_S = 75, 90.0
STEADY_S: Final = 5.0  # a pace that was not refused for this long has held
FORGET_S: Final = 10.0  # at the ceiling without a refusal


class Pace:
    """Requests per second that PX accepts, at most ``ceiling()``. Pure: times are monotonic seconds.

    ``share`` is the saved share of the ceiling of an earlier process.
    """

    def __init__(self, ceiling: Callable[[], float], now_s: float, share: float = 1.0) -> None:
        self._ceiling = ceiling
        self._per_s = max(self._lowest(), ceiling() * share)
        self._since_s = now_s  # when the pace in force began
        self._carried = 0  # deliveries since then
        self._step = 0.0
        self._recent: deque[float] = deque()  # deliveries of the last second
        self._limited = share < 1.0  # a refusal is remembered
        self._holding = False
        self._trying = False  # the pace in force has not carried much yet
        # What was delivered when the last refusal came, if the limiter counts; else the refused pace.
        self._believed_limit: float | None = None
        self._held: float | None = None  # a pace that was used for a while without a refusal
        self._hold_s = HOLD_S
        self._refusals = 0  # of the last episode

    def per_second(self) -> float:
        """Return the pace in force."""
        return min(self._per_s, self._ceiling())

    def share(self) -> float:
        """Return the pace as a share of the ceiling, above 0 and at most 1."""
        return min(1.0, self._per_s / self._ceiling())

    def delivered(self, now_s: float) -> None:
        """Take a delivery at ``now_s``."""
        self._recent.append(now_s)
        self._drop_old(now_s)
        self._carried += 1
        age_s = now_s - self._since_s
        if self._per_s >= self._ceiling():
            if self._limited and age_s >= FORGET_S:
                self._limited, self._holding, self._held, self._hold_s = False, False, None, HOLD_S
        elif not self._holding:
            if self._carried >= self._per_s:
                self._raise(now_s)
        else:
            if age_s >= STEADY_S and self._carried >= 0.8 * STEADY_S * self._per_s and self._held != self._per_s:
                self._held, self._hold_s, self._trying = self._per_s, HOLD_S, False
            half_way = self._half_way()
            kept = age_s >= (HOLD_S if half_way else self._hold_s)
            # A limit that fell far refuses all that is on its way: those refusals were not the cost of a try.
            paid = self._carried >= DELIVERED_PER_REFUSAL * self._refusals or age_s >= PAID_AFTER_S
            if kept and paid:
                self._try(half_way, now_s)

    def refused(self, now_s: float, *, new_episode: bool) -> None:
        """Take a 429 at ``now_s``; only the first one of an episode lowers the pace."""
        self._refusals += 1
        if not new_episode:
            return
        self._refusals = 1
        refused = self.per_second()
        if not self._limited:
            self._limited = True
            self._set(FIRST_CUT * refused, now_s)
            return
        self._drop_old(now_s)
        delivered = max(len(self._recent), DEEPEST_CUT * refused)
        counts = delivered < JUST_BELOW * refused
        if self._held is None or self._held >= refused:
            self._held, self._hold_s = None, HOLD_S
            lower = MARGIN * delivered if counts else JUST_BELOW * refused
        else:
            counts = counts and self._trying
            # A climb that began far below has passed through paces that carried a second each.
            lower = MARGIN * delivered if counts else max(self._held, CLIMB_BACK * refused)
            self._hold_s = self._hold_s if self._holding else min(2 * self._hold_s, HOLD_MAX_S)
        self._set(lower, now_s)
        self._believed_limit = delivered if counts else refused
        self._holding, self._trying = True, False

    def reopened(self, now_s: float) -> None:
        """Restart the count after a wait: nothing was tried during it."""
        self._since_s, self._carried = now_s, 0

    def _half_way(self) -> float | None:
        """Return the pace half way to the believed limit; None if that is near or nothing is known."""
        limit = self._believed_limit
        if limit is None or limit - self._per_s <= max(1.0, (1 - JUST_BELOW) * limit):
            return None
        return (self._per_s + limit) / 2

    def _try(self, half_way: float | None, now_s: float) -> None:
        self._trying = True
        if half_way is not None:
            self._set(half_way, now_s)
        else:
            self._holding, self._believed_limit = False, None
            self._raise(now_s)

    def _raise(self, now_s: float) -> None:
        step = max(1.0, STEP * self._per_s, 2 * self._step)
        self._set(min(self._per_s + step, self._ceiling()), now_s)
        self._step = step

    def _set(self, per_s: float, now_s: float) -> None:
        self._per_s = max(self._lowest(), per_s)
        self._since_s, self._carried, self._step = now_s, 0, 0.0

    def _lowest(self) -> float:
        return min(LOWEST_PER_S, self._ceiling())

    def _drop_old(self, now_s: float) -> None:
        while self._recent and self._recent[0] <= now_s - 1.0:
            self._recent.popleft()
