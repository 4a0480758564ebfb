"""The events that wait for a commit: small requests first, large ones in slices.

Theory
------
A transaction of 7,000 rows, which is a request of 5 MiB, occupies the store's thread for 60 to 120 ms, and eight clients can
queue such requests without end. Another client's event would wait for all that are queued before it. So a request that is
larger than a slice is stored in several transactions, one slice in each, and is answered after the last. Between two slices
the small requests that have arrived are committed; while they keep coming, every second transaction has a slice.

Order: small requests keep theirs, and so do large ones. A large one begins after all small ones that were queued before it,
one of which may be its caller's. A caller with several requests under way names the one before (``behind``): a request behind
a large one waits for it.

If a slice cannot be stored, the caller gets the error, and the slices before it stay stored: a client that sends the request
again gets its events counted once, by their message ids. The space for all of it is asked for with the first slice, so a full
outbox refuses it as a whole.
"""

import copy
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Final

import trio

from sidecar.errors import SidecarError
from sidecar.outbox.capacity import ROW_BYTES
from sidecar.outbox.records import Accepted, NewEvent

__all__ = ["COMMIT_BYTES", "COMMIT_ROWS", "SLICE_BYTES", "SLICE_ROWS", "AcceptQueue", "WriteRequest"]

# Most rows, and bytes beyond the first request, of small requests in one transaction: about 20 ms of the store's thread.
COMMIT_ROWS: Final = 2_000
COMMIT_BYTES: Final = 2 * 2**20
# Most rows and bytes of a slice: about 5 ms of the store's thread.
SLICE_ROWS: Final = 500
SLICE_BYTES: Final = 2**19
# A bad event is a row of two tables, and its id is on a random page of a third: as slow as this many bytes.
BAD_ROW_BYTES: Final = 4 * 2**10


class WriteRequest:
    """A request to the store, and its result once ``done`` is set.

    ``sliced``: it is stored in several transactions, and begins after ``small_before`` small requests were taken.
    """

    __slots__ = ("done", "error", "payload", "result", "size_bytes", "sliced", "small_before")

    def __init__(self, payload: Any, size_bytes: int = 0) -> None:
        self.payload = payload
        self.size_bytes = size_bytes
        self.sliced = False
        self.small_before = 0
        self.done = trio.Event()
        self.result: Any = None
        self.error: Exception | None = None

    async def wait(self) -> Any:
        """Wait for the batch to end, then return the result or raise the error of this request.

        A cancelled caller loses the result, not the effect.
        """
        await self.done.wait()
        if self.error is not None:
            raise self.error
        return self.result


class AcceptQueue:
    """The accepts of the writer. ``take`` and ``finish`` are called in turns, around each batch."""

    def __init__(self) -> None:
        self._small: deque[WriteRequest] = deque()
        self._small_taken = 0
        # Of the first one, which is under way: how many of its events are stored, the outcome so far, and the slice that
        # is being stored.
        self._large: deque[WriteRequest] = deque()
        self._stored_events = 0
        self._outcome = Accepted(0, 0)
        self._slice: WriteRequest | None = None
        self._sliced_last = False

    def __len__(self) -> int:
        return len(self._small) + len(self._large)

    def __iter__(self) -> Iterator[WriteRequest]:
        yield from self._small
        yield from self._large

    def add(self, events: Sequence[NewEvent], behind: WriteRequest | None = None) -> WriteRequest:
        """Queue events, and return their request."""
        request = WriteRequest(events, sum([len(event.body) for event in events]) + ROW_BYTES * len(events))
        is_large = len(events) > SLICE_ROWS or (request.size_bytes > SLICE_BYTES and len(events) > 1)
        request.sliced = is_large or (behind is not None and behind.sliced and not behind.done.is_set())
        request.small_before = self._small_taken + len(self._small)
        (self._large if request.sliced else self._small).append(request)
        return request

    def take(self) -> list[WriteRequest]:
        """Return the requests of the next transaction; a slice of a large one stands for it."""
        small = self._take_small()
        may_begin = bool(self._large) and self._small_taken >= self._large[0].small_before
        self._sliced_last = may_begin and not (small and self._sliced_last)
        if not self._sliced_last:
            return small
        # The newest are refused where space is short: one that begins is behind what came before it, and one of which a part is
        # stored must not be refused.
        return [self._next_slice(), *small] if self._stored_events else [*small, self._next_slice()]

    def finish(self) -> None:
        """Take over the result of the slice that ``take`` returned; answer its request if that was the last, or failed."""
        part, self._slice = self._slice, None
        if part is None:
            return
        whole = self._large[0]
        if part.error is None:
            so_far, added = self._outcome, part.result
            repeats = [self._stored_events + position for position in added.repeats]
            self._outcome = Accepted(
                so_far.stored + added.stored, so_far.repeated + added.repeated, (*so_far.repeats, *repeats)
            )
            self._stored_events += len(part.payload)
            if self._stored_events < len(whole.payload):
                return
            whole.result = self._outcome
        else:
            whole.error = _partly(part.error, self._outcome.stored)
        self._large.popleft()
        self._stored_events, self._outcome = 0, Accepted(0, 0)
        whole.payload = ()  # its connection may keep the request, to name it as the one before
        whole.done.set()

    def _take_small(self) -> list[WriteRequest]:
        taken: list[WriteRequest] = []
        rows = size_bytes = 0
        while self._small:
            rows += len(self._small[0].payload)
            size_bytes += self._small[0].size_bytes
            # At least one is taken, or a request above the limits would never be.
            if taken and (rows > COMMIT_ROWS or size_bytes > COMMIT_BYTES):
                break
            taken.append(self._small.popleft())
        self._small_taken += len(taken)
        return taken

    def _next_slice(self) -> WriteRequest:
        whole, begin = self._large[0], self._stored_events
        end, size_bytes = begin, 0
        for event in whole.payload[begin : begin + SLICE_ROWS]:
            size_bytes += len(event.body) + (ROW_BYTES if event.bad is None else BAD_ROW_BYTES)
            if size_bytes > SLICE_BYTES and end > begin:
                break
            end += 1
        self._slice = WriteRequest(whole.payload[begin:end], 0 if begin else whole.size_bytes)
        return self._slice


def _partly(error: Exception, stored: int) -> Exception:
    """Return the error of a slice for its request, of which ``stored`` events are on disk."""
    if not stored or not isinstance(error, SidecarError):
        return error
    partly = copy.copy(error)
    partly.args = (
        f"{error} {stored:,} of its events are stored; if it is sent again, they are recognized by their messageId.",
    )
    return partly
