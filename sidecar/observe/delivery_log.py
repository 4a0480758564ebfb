"""The log lines about the state of delivery, and of accepting: the newest one always matches the state, however often it changes.

Rules
-----
* A stop is logged at once, with its reason. "Continues" is logged only after delivery has been open for a while: with a PX
  that answers half of the requests, or a host that has few descriptors, delivery stops and opens many times a second.
* A pause that lasts is logged again when the answer to a probe says something else: an operator has changed something.
* The while doubles with each stop that follows soon after a "continues", up to a minute.
* While delivery stops again and again, one line a minute says how often, and the last cause.
* These lines are not subject to the suppression of repeats (``logs.RepeatFilter``): a stop that is held back as a repeat
  of the previous one would leave "continues" as the last line.
"""

import logging
from collections.abc import Callable
from typing import Final, NamedTuple

__all__ = ["ACCEPTING", "DELIVERY", "DeliveryLog", "Wording"]

log = logging.getLogger(__name__)

STEADY_S: Final = 5.0
STEADY_MAX_S: Final = 60.0
UNSTEADY_EVERY_S: Final = 60.0
FORGET_S: Final = 300.0
ALWAYS: Final = {"always": True}
BY_OPERATOR: Final = "operator"  # the reason of `px-sidecar pause`


class Wording(NamedTuple):
    """The lines about one thing; ``{}`` in ``stopped`` stands for the state."""

    stopped: str
    continues: str
    unsteady: str


DELIVERY: Final = Wording("Delivery is {}", "Delivery to PX continues.", "Delivery keeps stopping")
ACCEPTING: Final = Wording("Events are {}", "Events are accepted again.", "Accepting keeps stopping")


class DeliveryLog:
    """Turns states into log lines. ``monotonic_s`` is the daemon's clock; every state but ``open`` is a stop."""

    def __init__(self, monotonic_s: Callable[[], float], wording: Wording = DELIVERY) -> None:
        self._now_s = monotonic_s
        self._wording = wording
        self._state = self._logged = ("open", "")
        self._open_since_s: float | None = None  # while "continues" is not logged yet
        self._steady_s = STEADY_S
        self._continued_s = -FORGET_S
        self._written_s = 0.0
        self._stops = 0  # since the last line
        self._message = ""

    def state(self, state: str, reason: str, message: str) -> None:
        """Take the state as it is now."""
        # Probing alternates with waiting or paused every few minutes: logging it would fill the log during an outage.
        if state == "probing":
            return
        if (state, reason) == self._state:
            if state == "paused" and message != self._message and self._now_s() - self._written_s >= STEADY_S:
                self._message = message
                self._stopped(state, reason, self._now_s())
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
        is_another = self._open_since_s is None and self._state[1] != self._logged[1]
        if self._open_since_s is None and self._stops < 2 and not is_another:
            return
        now_s = self._now_s()
        if self._open_since_s is not None and now_s - self._open_since_s >= self._steady_s:
            self._continues(now_s)
        elif self._stops > 1 and now_s - self._written_s >= UNSTEADY_EVERY_S:
            log.warning(
                "%s, %d times in the last %.0f s; the last cause: %s",
                self._wording.unsteady,
                self._stops,
                now_s - self._written_s,
                self._message,
                extra=ALWAYS,
            )
            self._stops, self._written_s = 0, now_s
        elif is_another and now_s - self._written_s >= STEADY_S:
            self._stopped(*self._state, now_s)  # it came too soon after the last line, and has lasted

    def _stopped(self, state: str, reason: str, now_s: float) -> None:
        # Soon after the last "continues": it was premature, wait longer for the next.
        soon = now_s - self._continued_s < FORGET_S
        if self._logged[0] == "open":
            self._steady_s = min(2 * self._steady_s, STEADY_MAX_S) if soon else STEADY_S
        if reason == BY_OPERATOR:
            log.warning("%s", self._message, extra=ALWAYS)
        else:
            level = logging.WARNING if state == "waiting" else logging.ERROR
            log.log(level, "%s: %s", self._wording.stopped.format(state), self._message, extra=ALWAYS)
        self._logged, self._written_s, self._stops = (state, reason), now_s, 0

    def _continues(self, now_s: float) -> None:
        self._open_since_s = None
        if self._logged[0] != "open":
            log.info("%s", self._wording.continues, extra=ALWAYS)
            self._logged, self._written_s, self._continued_s = ("open", ""), now_s, now_s
        self._stops = 0
