"""The time of idle connections: all wait equally long, so that one task can end them in the order in which they began.

A deadline of each connection's own scope would move twice with every request, a twenty-fifth of what the request costs.
"""

from typing import Final

import trio

__all__ = ["IdleConnections"]


class IdleConnections:
    """Cancel the scopes of connections that were idle for ``idle_s`` seconds."""

    def __init__(self, idle_s: float) -> None:
        self._idle_s: Final = idle_s
        # Always added at the end, and with the same wait: the first one is the first to end.
        self._deadlines: dict[trio.CancelScope, float] = {}

    def add(self, scope: trio.CancelScope) -> None:
        """Cancel ``scope`` in ``idle_s`` seconds, unless it is removed before. It must not be here yet."""
        self._deadlines[scope] = trio.current_time() + self._idle_s

    def remove(self, scope: trio.CancelScope) -> None:
        """Leave ``scope`` alone; nothing happens if it is not here."""
        self._deadlines.pop(scope, None)

    def __contains__(self, scope: trio.CancelScope) -> bool:
        return scope in self._deadlines

    async def run(self) -> None:
        """End each connection when its time is up, until cancelled. A wake-up per ``idle_s`` is enough when none ends."""
        while True:
            now_s = trio.current_time()
            overdue = []
            for scope, deadline_s in self._deadlines.items():
                if deadline_s > now_s:
                    break
                overdue.append(scope)
            for scope in overdue:
                self.remove(scope)
                scope.cancel()
            # Whatever is added during the sleep ends later than the first one of now.
            await trio.sleep_until(next(iter(self._deadlines.values()), now_s + self._idle_s))
