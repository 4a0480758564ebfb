"""The pace of full garbage collections: they may hold up all connections for a small share of the time only.

Theory
------
A full collection looks at every object: 300 ms with 10,000 connections, in which no client is answered. CPython begins one
whenever a quarter more objects have outlived the younger generations (https://docs.python.org/3/library/gc.html#gc.set_threshold),
which many connections that come and go cause every second. Nothing in the daemon depends on them: connections are freed
as they end, because they leave no reference cycles. So after a full collection the next one waits for 200 times as long as it
took, and then CPython's own rule decides again: an idle process collects nothing.
"""

import gc
import time
from collections.abc import Callable
from typing import Any, Final

__all__ = ["SHARE", "CollectionPace"]

# Of the time, at most, that full collections take.
SHARE: Final = 0.005
_NEVER: Final = 1_000_000


class CollectionPace:
    """A callback for ``gc.callbacks`` that keeps full collections apart."""

    def __init__(
        self,
        now_s: Callable[[], float] = time.perf_counter,
        set_threshold: Callable[[int, int, int], object] = gc.set_threshold,
    ) -> None:
        self._now_s = now_s
        self._set_threshold = set_threshold
        self._younger, self._middle, self._full = gc.get_threshold()
        self._started_s = self._not_before_s = 0.0
        self._waiting = False

    def __call__(self, phase: str, info: dict[str, Any]) -> None:
        """Note the beginning or the end of a collection."""
        generation = info["generation"]
        if generation == 0:
            return  # there are very many
        if phase == "start":
            self._started_s = self._now_s()
        elif generation == 2:
            now_s = self._now_s()
            self._not_before_s = now_s + (now_s - self._started_s) / SHARE
            self._waiting = True
            self._set_threshold(self._younger, self._middle, _NEVER)
        elif self._waiting and self._now_s() >= self._not_before_s:
            self._waiting = False
            self._set_threshold(self._younger, self._middle, self._full)
