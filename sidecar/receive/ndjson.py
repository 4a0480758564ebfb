"""NDJSON on the Unix socket: a line is an event or an array of events; each line gets one line back, in order.

Theory
------
Two tasks share a connection. One reads lines, parses them and submits their events to the outbox at once, so that a
client that writes without reading benefits from group commit. The other waits for the commit of each line in order and
sends its response right after it.

The memory of one connection is bounded: events that are not committed yet, which only the disk can delay, and responses
that the client has not read. Responses are kept as bare bytes, so that a client may write some 30,000 lines before it
reads; beyond that nothing more is read from it. A client that neither takes a response nor writes for ``SEND_S`` is
disconnected. After a client has disconnected, the lines that it had written are still read and stored, without answers.
A connection ends after the commit of its last line, also without a client: until then its events are counted.

A line that is too long is answered at its end; its bytes are not kept.

The memory of all connections together is bounded too (``MemoryBudget``): a long line is reserved before it is read
further, each for a short time if others wait; unfinished lines and responses that are not read count as held. While too many bytes wait
for the disk, each connection waits for its own commits before more is read from it. Long lines are parsed one at a time,
in slices.
"""

import logging
import math
from collections import deque
from collections.abc import Callable, Generator
from functools import partial
from typing import Final

import trio

from sidecar.errors import SidecarError
from sidecar.http import BUSY, LARGE_BYTES, BudgetExceeded, Holder, MemoryBudget, Shutdown, at_once, in_slices
from sidecar.http.fast_path import FastPath, fast_path
from sidecar.observe import Telemetry
from sidecar.outbox import Outbox, WriteRequest
from sidecar.receive.parse import EventParser, parsed_bytes
from sidecar.receive.responses import (
    NOTHING_TO_STORE,
    IngestResponse,
    ParsedRequest,
    accepted_response,
    error_response,
    unavailable_response,
)

__all__ = ["BYTE_ORDER_MARK", "LineParser", "serve_ndjson"]

log = logging.getLogger(__name__)

# Reading from a client stops while more lines than this wait for their commit, more bytes of events are in them, or more
# bytes of responses are unread; one read may exceed each.
PENDING_LINES_MAX: Final = 1_000
PENDING_BYTES_MAX: Final = 4 * 2**20
UNREAD_BYTES_MAX: Final = 2**20
# How long a client may take to read a piece of its responses, counted from its last write; and to read all of them
# after a shutdown.
SEND_S: Final = 30.0
STOP_S: Final = 10.0
_SEND_BYTES: Final = 64 * 1024
# More bytes of responses than this count as held; fewer fit into the socket's buffer.
COUNTED_BYTES: Final = 4 * 1024
# Thousands of tiny lines fit into one read; judging them must not delay other connections.
_READ_BYTES: Final = 16 * 1024
# What a read of fewer commas holds is judged at once: they bound the number of its events, also in arrays.
_MANY_COMMAS: Final = 256

# How long a client may wait for memory for a long line, and how long it may then take for the rest of it; if others wait
# for the memory, LONG_LINE_S.
WAIT_S: Final = 30.0
LONG_LINE_S: Final = 5.0

_TOO_SLOW: Final = error_response("timeout", f"The line did not end within {WAIT_S:.0f} s; send it again.", 408)
_BUSY: Final = error_response(BUSY.code, BUSY.message, BUSY.status)
_GONE = (trio.BrokenResourceError, trio.ClosedResourceError)

# Some writers of text begin with it (.NET's StreamWriter); it is not part of the JSON (RFC 8259 8.1).
BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"

PendingResponse = IngestResponse | tuple[ParsedRequest, WriteRequest]


async def serve_ndjson(
    stream: trio.abc.Stream,
    parser: EventParser,
    outbox: Outbox,
    telemetry: Telemetry,
    *,
    first: bytes,
    max_line_bytes: int,
    budget: MemoryBudget,
    shutdown: Shutdown,
) -> None:
    """Serve one connection until its end; ``first`` are bytes that were already read. The caller closes the stream.

    Once ``shutdown`` is set nothing more is read; the lines that were read are stored and answered. An idle connection
    has no deadline. Raises nothing because of what a client sends or fails to send. Cancellation loses responses, not
    events: submitted events are committed by the outbox.
    """
    fast = fast_path(stream)
    queue = ResponseQueue(fast, telemetry, budget)
    lines = LineParser(parser, outbox, max_line_bytes)
    unsubscribe = _nothing
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(queue.flush, nursery)
            try:
                await _Reading(fast, lines, queue, budget, shutdown).run(first)
            except _GONE:
                pass  # the client disconnected in the middle of a line: what was whole is stored
            except trio.TooSlowError:
                queue.add([_TOO_SLOW])
            except BudgetExceeded:
                queue.add([_BUSY])
                # An evicted client that reads gets its answers; one that does not read has none coming.
                queue.send_within(STOP_S)
            # The nursery now waits for flush: each line that was read gets its response, unless the deadline passes.
            lines.drop_unfinished()
            queue.count_unfinished(0)
            queue.end()
            unsubscribe = _limit_at_shutdown(shutdown, nursery.cancel_scope)
    finally:
        unsubscribe()
        queue.release()


def _limit_at_shutdown(shutdown: Shutdown, scope: trio.CancelScope) -> Callable[[], None]:
    """Give ``scope`` at most ``STOP_S`` from the shutdown on, also if that is set already; return how to call this off."""

    def limit() -> None:
        scope.deadline = min(scope.deadline, trio.current_time() + STOP_S)

    # A client that ended its side before the shutdown may read slowly for minutes: looking once is not enough.
    shutdown.subscribe(limit)
    if shutdown.is_set():
        limit()
    return partial(shutdown.unsubscribe, limit)


class _Reading:
    """Read and submit the lines of one connection."""

    def __init__(
        self,
        stream: FastPath,
        lines: "LineParser",
        queue: "ResponseQueue",
        budget: MemoryBudget,
        shutdown: Shutdown,
    ) -> None:
        self._stream = stream
        self._lines = lines
        self._queue = queue
        self._budget = budget
        self._shutdown = shutdown

    async def run(self, first: bytes) -> None:
        """Read until the end of the stream or the shutdown.

        Raises TooSlowError if a long line takes too long, BudgetExceeded if there is no memory for it, others need that,
        or this connection was evicted.
        """
        await self._submit(first)
        with trio.CancelScope() as reading:
            self._shutdown.subscribe(reading.cancel)
            self._queue.on_eviction(reading.cancel)
            try:
                if self._shutdown.is_set():
                    reading.cancel()
                more = True
                while more:
                    await self._queue.wait_for_capacity()
                    self._queue.count_unfinished(self._lines.unfinished_bytes)
                    more = await (
                        self._read_some() if self._lines.unfinished_bytes < LARGE_BYTES else self._read_long_line()
                    )
            finally:
                self._shutdown.unsubscribe(reading.cancel)
        if self._queue.evicted:
            raise BudgetExceeded

    async def _read_some(self) -> bool:
        """Read once; return False at the end of the stream."""
        data = await self._stream.receive_some(_READ_BYTES)
        if data:
            await self._submit(bytes(data))
        else:
            # Shielded: what was read is stored, even if a shutdown begins while it is parsed.
            with trio.CancelScope(shield=True):
                self._queue.add(await in_slices(self._lines.end(), self._working(0)))
        return bool(data)

    async def _submit(self, data: bytes) -> None:
        if (responses := self._lines.feed_at_once(data)) is not None:
            self._queue.add(responses)
            return
        # Only where a line ends: its turn may be seconds away beside large bodies, and to append bytes is no work.
        working = self._working(len(data)) if b"\n" in data else None
        with trio.CancelScope(shield=True):
            self._queue.add(await in_slices(self._lines.feed(data), working))

    def _working(self, more_bytes: int) -> trio.Lock | None:
        """Return the lock for work on large bodies if a long line may end here."""
        return self._budget.working if self._lines.unfinished_bytes + more_bytes >= LARGE_BYTES else None

    async def _read_long_line(self) -> bool:
        """Read the rest of a long line once there is memory for it and its events; return False at the end of the stream.

        Raises TooSlowError or BudgetExceeded, as ``run`` does.
        """
        self._queue.count_unfinished(0)  # from here on it is bounded with the bodies that wait
        size_bytes = self._lines.max_bytes
        scope = trio.CancelScope()
        may_take_s = math.inf

        def hurry() -> None:  # others wait
            scope.deadline = min(scope.deadline, may_take_s - WAIT_S + LONG_LINE_S)

        with trio.move_on_after(WAIT_S) as waiting:
            await self._budget.reserve(size_bytes, hurry)
        if waiting.cancelled_caught:
            raise BudgetExceeded
        try:
            # Its events count beside all others from its end on. Wait for that space with the reservation, so that what
            # was read of the line stays bounded, and before the client's time begins: this wait is not the client's.
            await self._budget.wait_for_large_space()
            may_take_s = scope.deadline = trio.current_time() + WAIT_S
            if self._budget.is_contended():
                hurry()
            with scope:
                more, seen_bytes = True, 0
                while more and self._lines.unfinished_bytes > seen_bytes:  # fewer: it has ended, or became too long
                    seen_bytes = self._lines.unfinished_bytes
                    more = await self._read_some()
        finally:
            self._budget.release(size_bytes, hurry)
        if scope.cancelled_caught:
            raise trio.TooSlowError if trio.current_time() >= may_take_s else BudgetExceeded
        return more


class ResponseQueue:
    """The responses to one client's lines, in order: bytes that are ready, then lines whose commit is pending."""

    def __init__(self, stream: FastPath, telemetry: Telemetry, budget: MemoryBudget) -> None:
        self._stream = stream
        self._telemetry = telemetry
        self._budget = budget
        self._holder = Holder(self._evict)
        self._unfinished_bytes = 0
        self._cancel_reading: Callable[[], None] = _nothing
        self.evicted = False
        self._ready = bytearray()
        self._pending: deque[PendingResponse] = deque()
        self._pending_bytes = 0
        self._ended = self._gone = self._is_sending = self._is_settling = False
        self._start_settling: Callable[[], None] = _nothing
        self._changed = trio.Event()
        self._sending = trio.CancelScope()
        self._send_until_s = math.inf

    def add(self, responses: list[PendingResponse]) -> None:
        """Queue the responses to what the client just wrote, and give it more time to read."""
        if self._is_sending:
            self._sending.deadline = self._send_deadline()
        if not responses:
            return
        for response in responses:
            if isinstance(response, IngestResponse):
                self._report(response)
            else:
                for entry in response[0].refused:  # beside others that were submitted
                    self._telemetry.request_refused(entry["code"])
        self._pending.extend(responses)
        for response in responses:
            self._account(response)
        self._settle_soon()
        self._change()

    def on_eviction(self, cancel_reading: Callable[[], None]) -> None:
        """Have ``cancel_reading`` called when others need the memory held here, or the client does not read in time."""
        self._cancel_reading = cancel_reading

    def count_unfinished(self, size_bytes: int) -> None:
        """Count the bytes of a line that has not ended, beside the responses that are not read."""
        if size_bytes != self._unfinished_bytes:
            self._unfinished_bytes = size_bytes
            self._hold()

    def _hold(self, *, progress: bool = False) -> None:
        size_bytes = self._unfinished_bytes + len(self._ready)
        if size_bytes != self._holder.bytes:
            self._budget.hold(self._holder, size_bytes, progress=progress)

    def _evict(self) -> None:
        """Stop reading, and give up on a client that does not read: its lines are stored, its responses are lost."""
        self.evicted = True
        self._cancel_reading()
        if self._ready:
            self._gone = True
            self._ready.clear()
            self._sending.cancel()

    def send_within(self, seconds: float) -> None:
        """Drop the responses that the client has not read in that time."""
        self._send_until_s = trio.current_time() + seconds
        self._sending.deadline = self._send_deadline()

    def _send_deadline(self) -> float:
        return min(trio.current_time() + SEND_S, self._send_until_s)

    def end(self) -> None:
        """Announce that nothing more will be added, so that ``flush`` ends once the queue is empty."""
        self._ended = True
        self._change()

    def release(self) -> None:
        """Give back what is held of the shared budget; call it when the connection has ended.

        Lines are pending only after a cancellation, by the shutdown: nothing more is read then.
        """
        while self._pending:
            self._account(self._pending.popleft(), -1)
        self._budget.hold(self._holder, 0)
        self._holder.evict = self._cancel_reading = self._start_settling = _nothing  # reference cycles

    async def wait_for_capacity(self) -> None:
        """Wait until the pending and unread bytes allow more to be read from the client."""
        while True:
            first = self._first_pending()
            if first is not None and (
                len(self._pending) > PENDING_LINES_MAX
                or self._pending_bytes > PENDING_BYTES_MAX
                or self._budget.is_full()
            ):
                # Wait for an own commit, not for the budget: other connections may hold it until their clients read.
                await first.done.wait()
            elif len(self._ready) > UNREAD_BYTES_MAX:
                await self._changed.wait()
            else:
                if len(self._ready) > COUNTED_BYTES:
                    self._hold()
                return

    async def flush(self, nursery: trio.Nursery) -> None:
        """Send responses until ``end`` and the commit of the last line, also if the client disconnects or does not read.

        Lines that are committed together are answered in one piece, but no response waits for the commit of a later
        line.
        """
        self._start_settling = partial(nursery.start_soon, self._settle)
        while True:
            first = self._first_pending()
            if self._ready:
                await self._send()
            elif first is not None:
                # Without a client, too: the outbox holds the events until their commit, so the budget counts them.
                await first.done.wait()
            elif self._ended:
                return
            else:
                await self._changed.wait()

    async def _send(self) -> None:
        """Send a piece of the ready responses; drop them all if the client does not take it in time or is gone."""
        if len(self._ready) > COUNTED_BYTES:
            self._hold()
        # A copy, because other tasks append to the buffer during the send.
        piece = bytes(self._ready[:_SEND_BYTES])
        try:
            sent = self._stream.send_now(piece)
            taken = sent == len(piece) or await self._send_slowly(piece[sent:])
        except _GONE:
            self._drop_responses()  # reading continues to the end of the stream
            return
        if not taken:
            self._cancel_reading()  # the client does not read: stop reading from it, too
            self._drop_responses()
            return
        del self._ready[: len(piece)]
        self._hold(progress=True)
        self._change()

    async def _send_slowly(self, piece: bytes) -> bool:
        """Send to a client that does not read at once; return False if it takes too long, or its memory is needed."""
        try:
            with trio.move_on_at(self._send_deadline()) as self._sending:
                self._is_sending = True
                self._settle_soon()
                await self._stream.send_all(piece)
        finally:
            self._is_sending = False
        return not self._sending.cancelled_caught

    def _settle_soon(self) -> None:
        """Have lines that are committed during a send settled; the send may last as long as the client likes.

        Otherwise their events would count until then, and other connections wait for the space to read long lines.
        """
        if self._is_sending and self._pending and not self._is_settling:
            self._is_settling = True
            self._start_settling()

    async def _settle(self) -> None:
        while self._is_sending and (first := self._first_pending()) is not None:
            if len(self._ready) > COUNTED_BYTES:
                self._hold()
            await first.done.wait()
        self._is_settling = False

    def _drop_responses(self) -> None:
        """Drop the responses that are ready, and each that becomes ready from here on."""
        self._gone = True
        self._ready.clear()
        self._hold()
        self._change()

    def _first_pending(self) -> WriteRequest | None:
        """Turn finished lines into ready bytes; return the write request of the first line that is not finished."""
        pending = self._pending
        while pending:
            first = pending[0]
            if not isinstance(first, IngestResponse) and not first[1].done.is_set():
                return first[1]  # responses keep the order of the lines: nothing after it is ready
            response = self._finish(first)
            self._account(pending.popleft(), -1)
            if not self._gone:
                self._ready += response.body
                self._ready += b"\n"
        return None

    def _finish(self, pending: PendingResponse) -> IngestResponse:
        """Return the response to a line whose commit has succeeded or failed."""
        if isinstance(pending, IngestResponse):
            return pending
        parsed, write = pending
        if write.error is None:
            self._telemetry.events_accepted(write.result.stored_of(parsed.events))
            return accepted_response(parsed, write.result)
        if isinstance(write.error, SidecarError):
            response = unavailable_response(write.error)
        else:  # not raised: the lines after this one need their responses, too
            log.error("A line could not be stored: %r. This is a bug; report it.", write.error)
            response = error_response("internal", "The server failed to store this line; see its log.", 500)
        self._report(response)
        return response

    def _report(self, response: IngestResponse) -> None:
        if response.code:
            self._telemetry.request_refused(response.code, response.message)

    def _account(self, response: PendingResponse, sign: int = 1) -> None:
        """Count what a line holds until its commit; with -1, stop counting it."""
        if isinstance(response, IngestResponse):
            more_bytes, large = sign * len(response.body), False
        else:
            more_bytes, large = sign * parsed_bytes(*response), response[0].large
        self._pending_bytes += more_bytes
        self._budget.add(more_bytes, large=large)

    def _change(self) -> None:
        """Wake both tasks; each checks the state again."""
        self._changed.set()
        self._changed = trio.Event()


def _nothing() -> None:
    """Do nothing: there is nothing to cancel yet."""


class LineParser:
    """Cut bytes into lines and submit them. Holds at most one unfinished line, and nothing of a line that is too long."""

    def __init__(self, parser: EventParser, outbox: Outbox, max_bytes: int) -> None:
        self._parser = parser
        self._outbox = outbox
        self.max_bytes = max_bytes
        self._rest = bytearray()
        self._skipping = False
        self._large: WriteRequest | None = None  # the last request, if it is stored in several transactions

    @property
    def unfinished_bytes(self) -> int:
        """Bytes held of a line that has not ended."""
        return len(self._rest)

    def drop_unfinished(self) -> None:
        """Drop the line that has not ended: nothing more is read."""
        self._rest.clear()

    def feed(self, data: bytes) -> Generator[None, None, list[PendingResponse]]:
        """Submit the lines that end in ``data`` and return their responses; yield after each slice of a long line."""
        *whole, rest = data.split(b"\n")
        responses = []
        for part in whole:
            if (response := (yield from self._end_line(part))) is not None:
                responses.append(response)
        self._keep(rest)
        return responses

    def feed_at_once(self, data: bytes) -> list[PendingResponse] | None:
        """Submit as ``feed`` does, without the cost of slices; None, and nothing is done, if one might not be enough."""
        if self.unfinished_bytes + len(data) >= LARGE_BYTES or data.count(b",") + data.count(b"\n") >= _MANY_COMMAS:
            return None
        return at_once(self.feed(data))

    def end(self) -> Generator[None, None, list[PendingResponse]]:
        """Submit what is left at the end of the stream as a line, and return its response, if any."""
        response = yield from self._end_line(b"")
        return [] if response is None else [response]

    def _keep(self, part: bytes) -> None:
        if self._skipping or len(self._rest) + len(part) > self.max_bytes:
            self._skipping = True  # until the line ends; its bytes are not kept
            self._rest.clear()
        else:
            self._rest += part

    def _end_line(self, part: bytes) -> Generator[None, None, PendingResponse | None]:
        self._keep(part)
        line, skipped = bytes(self._rest).strip(), self._skipping
        while line.startswith(BYTE_ORDER_MARK):  # joined files have one in the middle
            line = line.removeprefix(BYTE_ORDER_MARK).strip()
        self._rest.clear()
        self._skipping = False
        if skipped:
            return error_response(
                "too_large",
                f"The line is longer than {self.max_bytes:,} bytes (outbox.max_request_bytes); send less per line.",
            )
        return (yield from self._submit(line)) if line else None

    def _submit(self, line: bytes) -> Generator[None, None, PendingResponse]:
        parsed = yield from self._parser.steps(line, None, None, trusted=True)
        if isinstance(parsed, IngestResponse):
            return parsed
        if not parsed.events:
            return NOTHING_TO_STORE
        try:
            write = self._outbox.submit(parsed.events, behind=self._large)
        except SidecarError as error:
            return unavailable_response(error)
        self._large = write if write.sliced else None
        # A shorter one may have ended within a read, without the wait of large ones; as a small one it holds up others.
        return parsed._replace(large=True) if len(line) >= LARGE_BYTES + _READ_BYTES else parsed, write
