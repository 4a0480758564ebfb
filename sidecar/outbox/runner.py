"""Where store calls run: in a thread of their own, or, under virtual time, on the spot."""

from collections.abc import Callable
from typing import Protocol, TypeVar

import trio

__all__ = ["InlineRunner", "Runner", "ThreadRunner"]

T = TypeVar("T")


class Runner(Protocol):
    """Where store calls run: the seam that tests and the simulation replace."""

    async def run(self, call: Callable[[], T]) -> T:
        """Run ``call`` to its end, whatever is cancelled meanwhile, and return or raise what it does."""
        ...


class ThreadRunner:
    """In a thread, one call at a time, with a limiter of its own.

    The default limiter is shared with name look-ups, and 40 hanging look-ups would hold the store up for seconds
    (facts: ``field_lessons.md`` M16).
    """

    def __init__(self) -> None:
        self._limiter = trio.CapacityLimiter(1)

    async def run(self, call: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(call, limiter=self._limiter)


class InlineRunner:
    """On the spot, for tests under virtual time: a thread would let the mock clock run away."""

    async def run(self, call: Callable[[], T]) -> T:
        await trio.lowlevel.checkpoint()
        return call()
