"""Computes how long a failed event waits before it is tried again, and when to give it up.

Theory
------
* **Back-off with full jitter.** After attempt *n* the wait is drawn uniformly from 0 to min(max, initial * 2^(n-1)), so
  that many events that failed together are not retried together. A Retry-After is obeyed where it is longer.
* **A wait is at most half as long as the failing so far** (and at least the initial one may be drawn). By attempts alone,
  a few quick failures lead to a wait that is longer than the error was. So a short error is noticed to be over soon
  after it is, and a long one is still tried rarely.
* **Failing events.** Transient failures never expire by count alone, or an outage would kill the backlog. A failure
  counts only if another event was delivered since the previous failure: 20 such failures over 24 hours mean that the
  event itself is at fault. The time is summed up between failures, and each gap counts two hours at most, so that
  neither an outage overnight nor a step of the wall clock can add up to a day.

See sidecar/deliver/README.md#destination.
"""

import msgspec

__all__ = ["RETRY_AFTER_MAX_S", "Failures", "delay_s"]

RETRY_AFTER_MAX_S = 3600.0
SHARE_OF_FAILING = 0.5
FAILING_COUNT = 20
FAILING_OVER_MS = 24 * 3_600_000
GAP_MAX_MS = 2 * 3_600_000


def delay_s(
    attempt: int,
    random: float,
    *,
    initial_s: float,
    max_s: float,
    failing_s: float,
    retry_after_s: float | None = None,
) -> float:
    """Return the seconds to wait after the ``attempt``-th failure in a row (from 1), with ``random`` from [0, 1).

    ``failing_s`` is the time since the first of these failures.
    """
    longest_s = min(max_s, max(initial_s, SHARE_OF_FAILING * failing_s))
    ceiling_s = min(longest_s, initial_s * 2.0 ** min(attempt - 1, 60))  # 60: keeps the power finite
    return max(random * ceiling_s, min(retry_after_s or 0.0, RETRY_AFTER_MAX_S))


class Failures(msgspec.Struct, frozen=True):
    """The failures of one event, stored with it; times are wall-clock milliseconds.

    ``count`` and ``over_ms`` are the failures that count and the time between them, ``last_ms`` is the last failure.
    """

    count: int = 0
    over_ms: int = 0
    last_ms: int = 0

    def after(self, now_ms: int, others_succeeded_ms: int | None) -> "Failures":
        """Return the record after a failure now; ``others_succeeded_ms`` is the last delivery of another event."""
        if others_succeeded_ms is None or (self.count and others_succeeded_ms <= self.last_ms):
            # Nothing else was delivered since: PX is at fault, not the event.
            return msgspec.structs.replace(self, last_ms=now_ms)
        gap_ms = min(max(0, now_ms - self.last_ms), GAP_MAX_MS) if self.count else 0
        return Failures(self.count + 1, self.over_ms + gap_ms, now_ms)

    def failing(self) -> bool:
        """Return whether the event itself is at fault (``dead: failing``)."""
        return self.count >= FAILING_COUNT and self.over_ms >= FAILING_OVER_MS
