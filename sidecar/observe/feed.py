"""The live feed behind ``px-sidecar tail``: rooms publish what happens, whoever watches gets it.

Rules
-----
* Publishing never waits and never fails. A room that would have to build a record looks at ``listeners`` first, so that
  nothing is spent while nobody watches.
* A reader that is too slow loses the newest records and is told how many, in their place: ``{"missed": n}``.
"""

from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import trio

__all__ = ["Feed"]

# Records hold an event's payload each: this many of the largest are 8 MiB.
QUEUE_RECORDS: Final = 256


class Feed:
    """One source and any number of readers. ``listeners`` is how many there are."""

    def __init__(self) -> None:
        self.listeners = 0
        self._readers: set[_Reader] = set()

    def publish(self, record: dict[str, Any]) -> None:
        """Give a record to all readers. They share the object: nobody may change it any more."""
        if self.listeners:
            for reader in self._readers:
                reader.put(record)

    @asynccontextmanager
    async def subscribe(self, capacity: int = QUEUE_RECORDS) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        """All records published from now on, as an endless iterator; ``capacity`` of them wait for a slow reader."""
        reader = _Reader(capacity)
        self._readers.add(reader)
        self.listeners = len(self._readers)
        try:
            yield reader
        finally:
            self._readers.discard(reader)
            self.listeners = len(self._readers)


class _Reader:
    """The queue of one reader, and how many records found no room in it since the last that did."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._waiting: deque[dict[str, Any]] = deque()
        self._missed = 0
        self._wake = trio.Event()

    def put(self, record: dict[str, Any]) -> None:
        if len(self._waiting) >= self._capacity:
            self._missed += 1
            return
        self._tell_missed()
        self._waiting.append(record)
        self._wake.set()

    def _tell_missed(self) -> None:
        if self._missed:
            self._waiting.append({"missed": self._missed})
            self._missed = 0

    def __aiter__(self) -> "_Reader":
        return self

    async def __anext__(self) -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        while not self._waiting:
            self._tell_missed()
            if not self._waiting:
                self._wake = trio.Event()
                await self._wake.wait()
        return self._waiting.popleft()
