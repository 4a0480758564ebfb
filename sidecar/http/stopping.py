"""The word "stop", which reaches every connection without a task waiting for it in each."""

from collections.abc import Callable

__all__ = ["Stopping"]


class Stopping:
    """A flag that is set once and then tells everybody who subscribed.

    Setting it never blocks and never cancels a handler: idle connections close, accept loops end, and a request that
    has begun to arrive is finished.
    """

    def __init__(self) -> None:
        self._is_set = False
        self._subscribers: dict[object, Callable[[], None]] = {}

    def is_set(self) -> bool:
        """Whether ``set`` was called."""
        return self._is_set

    def set(self) -> None:
        """Stop. Calling it again does nothing."""
        if self._is_set:
            return
        self._is_set = True
        for tell in list(self._subscribers.values()):
            tell()

    def subscribe(self, tell: Callable[[], None]) -> Callable[[], None]:
        """Have ``tell`` called by ``set``; returns the function that ends the subscription."""
        key = object()
        self._subscribers[key] = tell
        return lambda: self._subscribers.pop(key, None) and None
