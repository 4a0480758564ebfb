"""What was taken in and waits for its commit, in bytes of what it became: however small it came, it is bounded.

What is there may go beyond the bound, by what one client brings at a time. Then no HTTP request is opened, and nothing
more is read from an NDJSON connection that waits for a commit itself.
"""

from typing import Final

import trio

__all__ = ["Held"]

# More than a commit takes. How long a client waits for room before it is told to come again.
HELD_MAX_BYTES: Final = 64 * 2**20
HELD_S: Final = 30.0


class Held:
    """The bytes of all that shares it; whoever has something in it tells when there is more of it, or less."""

    def __init__(self) -> None:
        self.bytes = 0
        self._waited_for: trio.Event | None = None

    def is_full(self) -> bool:
        """Whether whoever comes next has to wait before more is taken in."""
        return self.bytes > HELD_MAX_BYTES

    async def room(self) -> bool:
        """Wait until it is full no more; False if it is for ``HELD_S``."""
        with trio.move_on_after(HELD_S) as waiting:
            while self.is_full():
                if self._waited_for is None:
                    self._waited_for = trio.Event()
                await self._waited_for.wait()
        return not waiting.cancelled_caught

    def more(self, size_bytes: int) -> None:
        """So much more waits, or less."""
        self.bytes += size_bytes
        if self._waited_for is not None and not self.is_full():
            self._waited_for.set()
            self._waited_for = None
