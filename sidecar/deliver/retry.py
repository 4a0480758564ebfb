"""How long to wait before trying again, and when to stop trying.

Theory
------
* **Back-off with full jitter**: after attempt *n* the wait is drawn evenly from 0 to min(max, initial * 2^(n-1)), so
  that many events that failed together do not come back together. A Retry-After is obeyed where it is longer.
* **Failing**: transient failures never expire by count alone, or an outage would kill the backlog. A failure counts
  only if another event was delivered since the one before it; an event with 20 of those over 24 hours is at fault
  itself. Time is summed up between failures and each gap counts at most two hours, so that neither a night's outage
  nor a step of the wall clock can make up a day.
"""

import msgspec

__all__ = ["RETRY_AFTER_MAX_S", "Failures", "delay_s"]

RETRY_AFTER_MAX_S = 3600.0
FAILING_COUNT = 20
FAILING_OVER_MS = 24 * 3_600_000
GAP_MAX_MS = 2 * 3_600_000


def delay_s(
    attempt: int, random: float, *, initial_s: float, max_s: float, retry_after_s: float | None = None
) -> float:
    """Seconds to wait after the ``attempt``-th failure in a row (from 1), with ``random`` from [0, 1)."""
    ceiling_s = min(max_s, initial_s * 2.0 ** min(attempt - 1, 60))
    return max(random * ceiling_s, min(retry_after_s or 0.0, RETRY_AFTER_MAX_S))


class Failures(msgspec.Struct, frozen=True):
    """What is remembered of an event that keeps failing; wall-clock milliseconds."""

    count: int = 0
    over_ms: int = 0
    last_ms: int = 0

    def after(self, now_ms: int, others_succeeded_ms: int | None) -> "Failures":
        """The record after one more failure now; ``others_succeeded_ms`` is when another event was last delivered."""
        if others_succeeded_ms is None or (self.count and others_succeeded_ms <= self.last_ms):
            return msgspec.structs.replace(self, last_ms=now_ms)
        gap_ms = min(max(0, now_ms - self.last_ms), GAP_MAX_MS) if self.count else 0
        return Failures(self.count + 1, self.over_ms + gap_ms, now_ms)

    def failing(self) -> bool:
        """Whether the event itself is at fault (``dead: failing``)."""
        return self.count >= FAILING_COUNT and self.over_ms >= FAILING_OVER_MS
