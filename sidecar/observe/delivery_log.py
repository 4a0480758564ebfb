"""The log lines about the state of delivery: the newest one always matches the state, however often it changes.

Rules
-----
* A stop is logged at once, with its reason. "Continues" is logged only after delivery has been open for a while: with a PX
  that answers half of the requests, or a host that has few descriptors, delivery stops and opens many times a second.
* The while doubles with each stop that follows soon after a "continues", up to a minute.
* While delivery stops again and again, one line a minute says how often, and the last cause.
* These lines are not subject to the suppression of repeats (``logs.RepeatFilter``): a stop that is held back as a repeat
  of the previous one would leave "continues" as the last line.
"""

import logging
from collections.abc import Callable
from typing import Final

__all__ = ["DeliveryLog"]

log = logging.getLogger(__name__)

STEADY_S: Final = 5.0
STEADY_MAX_S: Final = 60.0
UNSTEADY_EVERY_S: Final = 60.0
FORGET_S: Final = 300.0
ALWAYS: Final = {"always": True}


class DeliveryLog:
    """Turns the states of delivery into log lines. ``monotonic_s`` is the daemon's clock."""

    def __init__(self, monotonic_s: Callable[[], float]) -> None:
        self._now_s = monotonic_s
        self._state = self._logged = ("open", "")
        self._open_since_s: float | None = None  # while "continues" is not logged yet
        self._steady_s = STEADY_S
        self._continued_s = -FORGET_S
        self._written_s = 0.0
        self._stops = 0  # since the last line
        self._message = ""

    def state(self, state: str, reason: str, message: str) -> None:
        """Take the state after a reply of PX."""
        # Probing alternates with waiting or paused every few minutes: logging it would fill the log during an outage.
        if state == "probing" or (state, reason) == self._state:
            return
        before, self._state = self._state, (state, reason)
        now_s = self._now_s()
        if state == "open":
            self._open_since_s = now_s
            return
        self._open_since_s, self._message = None, message
        self._stops += before[0] == "open"
        another = reason != self._logged[1] and now_s - self._written_s >= STEADY_S
        if "open" in self._logged or "paused" in (state, self._logged[0]) or another:
            self._stopped(state, reason, now_s)

    def tick(self) -> None:
        """Write what has become due. Call it with each decision; a daemon makes one a second at least."""
        if self._open_since_s is None and self._stops < 2:
            return
        now_s = self._now_s()
        if self._open_since_s is not None and now_s - self._open_since_s >= self._steady_s:
            self._continues(now_s)
        elif self._stops > 1 and now_s - self._written_s >= UNSTEADY_EVERY_S:
            log.warning(
                "Delivery keeps stopping, %d times in the last %.0f s; the last cause: %s",
                self._stops,
                now_s - self._written_s,
                self._message,
                extra=ALWAYS,
            )
            self._stops, self._written_s = 0, now_s

    def _stopped(self, state: str, reason: str, now_s: float) -> None:
        # Soon after the last "continues": it was premature, wait longer for the next.
        soon = now_s - self._continued_s < FORGET_S
        if self._logged[0] == "open":
            self._steady_s = min(2 * self._steady_s, STEADY_MAX_S) if soon else STEADY_S
        level = logging.ERROR if state == "paused" else logging.WARNING
        log.log(level, "Delivery is %s: %s", state, self._message, extra=ALWAYS)
        self._logged, self._written_s, self._stops = (state, reason), now_s, 0

    def _continues(self, now_s: float) -> None:
        self._open_since_s = None
        if self._logged[0] != "open":
            log.info("Delivery to PX continues.", extra=ALWAYS)
            self._logged, self._written_s, self._continued_s = ("open", ""), now_s, now_s
        self._stops = 0
