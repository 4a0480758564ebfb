"""One connection: read requests, call the handler, send the answers, repeat.

Rules
-----
* One task and one cancel scope per connection; no timer, task or nursery per request. The scope's deadline is moved
  instead, and what every request would move it for, the time of an idle connection, is kept by ``IdleConnections`` where
  there is one. While the handler runs there is no deadline and nothing is read: a client that disconnects does not cancel
  the commit of its events. Its answer is dropped when it cannot be written.
* A cancelled scope is never used to call the handler. Bytes may arrive in the same instant as a deadline or a
  shutdown, and the handler would be cancelled at its first checkpoint.
* Requests that have arrived are handled before reading again, and their answers are sent in one piece.
* A shutdown ends idle connections at once, except those that have not sent anything yet. Such a client was accepted,
  its request is on its way, and it should get an answer. It has ``_FIRST_BYTE_S`` for its first byte. A client that does
  not read has ``_STOP_S`` for each piece of its answers.
* What the connection holds for longer than one step of its loop is counted in the ``MemoryBudget``. A large body is
  reserved before it is read further, and before an encoded one is inflated to a large size. A request that does not fit
  in time is answered 503, not 408: the server was slow, not the client. So is one that is ended early, because
  others wait for its memory.
* An evicted connection drops what it has read, and ends with a 503 where the client can still read one.
* The server always lingers when it ends a connection: answer, half-close, discard what still arrives for a bounded
  time, close. The client then reads the answer instead of a reset (RFC 9112 9.6).
"""

import math
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

import trio

from sidecar.http.accept import IdleConnections, Shutdown
from sidecar.http.budget import LARGE_BYTES, BudgetExceeded, Holder, MemoryBudget, in_slices
from sidecar.http.coding import decode_body, needs_decoding
from sidecar.http.fast_path import fast_path
from sidecar.http.message import (
    BUSY,
    Handler,
    Hangup,
    Limits,
    Raw,
    Refusal,
    Refuse,
    Request,
    Response,
    plain_refusal,
)
from sidecar.http.reader import Phase, Reader
from sidecar.http.writer import CONTINUE, LAST_CHUNK, chunk, encode, encode_head

__all__ = ["serve_connection"]

_READ_BYTES: Final = 64 * 1024
# Pipelined answers are collected up to this size before they are sent.
_FLUSH_BYTES: Final = 64 * 1024
# An answer of more bytes that waits for its client counts as held: smaller ones fit into the socket's buffer.
_COUNTED_BYTES: Final = 4 * 1024
# For the first byte of a connection that was accepted just before a shutdown.
_FIRST_BYTE_S: Final = 1.0
# For taking a piece of an answer after a shutdown: a client that does not read must not hold up the end of the process.
_STOP_S: Final = 10.0
# What arrives while lingering is discarded at this pace: each read takes what a pause has let pile up. Reading at once
# would cost a wake-up for each packet of a client that sends without end.
_DISCARD_BYTES: Final = 512 * 1024
_DISCARD_PAUSE_S: Final = 0.02
# For closing a stream: a TLS goodbye may have to wait for a client that does not read.
_CLOSE_S: Final = 1.0
_TIMED_OUT: Final = Refusal("timeout", "The rest of the request did not arrive in time; send the request again.", 408)

_GONE = (trio.BrokenResourceError, trio.ClosedResourceError)

OnError = Callable[[BaseException, Request], None]


def serve_connection(
    stream: trio.abc.Stream,
    handler: Handler,
    *,
    limits: Limits | None = None,
    first: bytes = b"",
    shutdown: Shutdown | None = None,
    refuse: Refuse = plain_refusal,
    on_error: OnError | None = None,
    budget: MemoryBudget | None = None,
    idle: IdleConnections | None = None,
) -> Awaitable[None]:
    """Serve requests on ``stream`` until either side ends the connection, then close the stream.

    ``first``: bytes that were already read from the stream (kept as long as the connection: read few). ``shutdown``:
    once set, an idle connection is closed at once, one that has not sent anything after a second, and a request of
    which any byte was read is finished and answered with ``Connection: close``; a client that does not take an answer is
    disconnected after ten seconds. ``refuse`` builds the answers to
    requests that never reach the handler. ``on_error`` gets each Exception that the handler raises; the client gets
    ``refuse("internal", …, 500)``. ``budget`` is shared by all connections whose memory is bounded together; without
    it there is no such bound. ``idle`` ends the idle ones of many connections after ``limits.idle_s``, and has to run;
    without it each has a deadline of its own.

    Raises nothing because of what a client sends or fails to send. Cancellation closes the stream and may interrupt the
    handler.
    """
    # Not async: 10,000 idle connections would hold a coroutine more each.
    limits, shutdown = limits or Limits(), shutdown or Shutdown()
    connection = _Connection(stream, handler, limits, shutdown, refuse, on_error, budget, idle)
    return connection.run(first)


class _Connection:
    """The state of ``serve_connection``."""

    __slots__ = (
        "_budget",
        "_final_response",
        "_handler",
        "_holder",
        "_idle",
        "_interruptible",
        "_lingers",
        "_nothing_received",
        "_on_error",
        "_receive_some",
        "_refuse",
        "_reserved_at_s",
        "_reserved_bytes",
        "_scope",
        "_send_all",
        "_sending",
        "_shutdown",
        "limits",
        "reader",
        "stream",
    )

    def __init__(
        self,
        stream: trio.abc.Stream,
        handler: Handler,
        limits: Limits,
        shutdown: Shutdown,
        refuse: Refuse,
        on_error: OnError | None,
        budget: MemoryBudget | None,
        idle: IdleConnections | None,
    ) -> None:
        self.stream = stream
        self._receive_some, self._send_all, _ = fast_path(stream)
        self.limits = limits
        self.reader = Reader(limits)
        self._handler = handler
        self._shutdown = shutdown
        self._refuse = refuse
        self._on_error = on_error
        self._budget = budget
        self._idle = idle
        self._holder = Holder(self._evict)
        self._reserved_bytes = 0
        self._reserved_at_s = 0.0
        self._scope = trio.CancelScope()
        # True only while waiting for the client or for a reservation: only then may a shutdown cancel the scope.
        self._interruptible = False
        self._sending = False
        self._nothing_received = True
        self._final_response = b""
        self._lingers = False

    async def run(self, first: bytes) -> None:
        """Serve until the connection ends; then linger if the server ended it, and close the stream."""
        self._nothing_received = not first
        self.reader.feed(first)
        self._shutdown.subscribe(self._on_shutdown)
        try:
            again = True
            while again:
                again = False
                # A new scope for each round: in a cancelled one the handler would be cancelled at its first checkpoint.
                with trio.CancelScope() as self._scope:
                    try:
                        again = await self._serve_requests()
                    finally:
                        if self._idle is not None:
                            self._idle.remove(self._scope)
            # Cancelled while reading, not while sending: the client can still read a refusal.
            if self._scope.cancelled_caught and self._interruptible:
                if self.reader.refused is not None:
                    self._prepare_refusal(self.reader.refused)  # evicted
                elif self.reader.phase is not Phase.IDLE:
                    # The deadline passed in the middle of a request: while waiting for the client, or for a reservation.
                    self._prepare_refusal(_TIMED_OUT if self._is_too_slow() else BUSY)
            if self._lingers:
                self.reader.close()
                self.reader = Reader(self.limits)  # free the unfinished body before its bytes are given back
                self._give_back()
                await self._linger()
        except _GONE:
            pass  # the client disconnected: there is nothing left to answer
        finally:
            self._shutdown.unsubscribe(self._on_shutdown)
            self._give_back()
            # Break the reference cycles: the connection is then freed here and leaves nothing to the garbage collector.
            self.reader.close()
            self._holder.evict = _nothing
            with trio.move_on_after(_CLOSE_S):
                await self.stream.aclose()

    def _evict(self) -> None:
        """Drop all requests and end: others need the memory. What is being handled is stored and answered first."""
        self.reader.discard(BUSY)
        # Never while a handler runs: its events are being committed, and its client is owed the answer.
        if self._interruptible or self._sending:
            self._scope.cancel()

    def _on_shutdown(self) -> None:
        if not self._interruptible or self.reader.phase is not Phase.IDLE:
            self._hurry_sending()
            return  # a request is being read or handled: the loop sees the shutdown after its answer
        # Closed now, the client could not know whether its request, which is on the way, was read.
        if self._nothing_received:
            self._scope.deadline = min(self._scope.deadline, trio.current_time() + _FIRST_BYTE_S)
        else:
            self._scope.cancel()

    def _hurry_sending(self) -> None:
        """Shorten the time for the answer that is being sent, if any: a handler has no deadline, and gets none."""
        is_timed = self._scope.deadline != math.inf or (self._idle is not None and self._scope in self._idle)
        if is_timed and not self._interruptible:
            self._scope.deadline = min(self._scope.deadline, trio.current_time() + _STOP_S)

    async def _serve_requests(self) -> bool:
        """Serve until the connection ends (False), or until the scope was cancelled as bytes arrived (True).

        True asks the caller for a fresh scope: the requests in those bytes must not be handled in a cancelled one.
        """
        reader = self.reader
        scope = self._scope
        receive_some = self._receive_some
        phase = None
        while True:
            if reader.ready:
                if not await self._answer_ready():
                    return False
                phase = Phase.IDLE  # sending the answers has set that deadline
            if reader.refused is not None:
                self._prepare_refusal(reader.refused)
                return False
            # The deadline moves only when the phase changes: a client cannot extend it by sending single bytes.
            if reader.phase is not phase:
                phase = reader.phase
                self._start_deadline(phase)
            if reader.take_continue():
                await self._send_all(CONTINUE)
            if phase is Phase.IDLE and self._shutdown.is_set():
                if not self._nothing_received:
                    return False
                scope.deadline = trio.current_time() + _FIRST_BYTE_S
            # Until the read returns, a shutdown, an eviction or the deadline may cancel: nothing is lost here.
            self._interruptible = True
            if self._must_reserve():
                if not await self._reserve(reader.reservable_bytes):
                    self._prepare_refusal(BUSY)
                    return False
                scope.deadline = self._deadline_s(phase)  # however long the wait was
            # Most connections are idle and hold nothing: they do not touch the budget.
            holds = self._budget is not None and (phase is not Phase.IDLE or self._holder.bytes)
            if holds and not self._hold(0 if self._reserved_bytes else reader.held_bytes):
                continue  # the one that was evicted is this connection
            data = await receive_some(_READ_BYTES)
            self._interruptible = self._nothing_received = False
            if not data:
                return False
            reader.feed(bytes(data))
            del data  # up to 64 KiB that an idle connection would keep
            # The bytes came in the same instant as the cancellation. They are kept, and handled in a new scope.
            if scope.cancel_called:
                return True

    def _start_deadline(self, phase: Phase) -> None:
        """Give the client its time: for the part of a request that begins now, or to be idle and take a small answer."""
        self._stop_deadline()
        if phase is Phase.IDLE and self._idle is not None and not self._shutdown.is_set():
            self._idle.add(self._scope)
        else:
            self._scope.deadline = self._deadline_s(phase)

    def _stop_deadline(self) -> None:
        """Set no time, for what the client is not to blame for: a handler would be cancelled in the middle of a commit."""
        if self._idle is not None:
            self._idle.remove(self._scope)
        if self._scope.deadline != math.inf:  # to change it costs ten times as much as to look at it
            self._scope.deadline = math.inf

    def _deadline_s(self, phase: Phase) -> float:
        """Return the time by which the part of a request that begins now must have arrived."""
        limits = self.limits
        if phase is Phase.IDLE:
            idle_s = min(limits.idle_s, _STOP_S) if self._shutdown.is_set() else limits.idle_s
            return trio.current_time() + idle_s
        # From the reservation on: the wait for it was not the client's fault.
        if self._reserved_bytes and self._budget is not None:
            return self._reserved_at_s + (limits.large_s if self._budget.is_contended() else limits.body_s)
        return trio.current_time() + (limits.header_s if phase is Phase.HEAD else limits.body_s)

    def _hurry(self) -> None:
        """Shorten the time for a large body: others wait for its memory."""
        if self._interruptible:
            self._scope.deadline = min(self._scope.deadline, self._reserved_at_s + self.limits.large_s)

    def _is_too_slow(self) -> bool:
        """Return whether the client took longer than it may when no other client waits."""
        if self._reserved_bytes:
            return trio.current_time() >= self._reserved_at_s + self.limits.body_s
        # Large and without a reservation: it waited for memory, so the server was slow.
        return not self._must_reserve()

    def _hold(self, size_bytes: int) -> bool:
        """Count what lasts longer than a step of the loop; return False if this connection is evicted for it."""
        if self._budget is not None:
            self._budget.hold(self._holder, size_bytes)
        return self.reader.refused is None

    def _must_reserve(self) -> bool:
        """Return whether memory has to be reserved before more of the body is read."""
        if self._budget is None or self._reserved_bytes or self.reader.phase is not Phase.BODY:
            return False
        return self.reader.body_bytes >= LARGE_BYTES

    async def _reserve(self, size_bytes: int) -> bool:
        """Wait for memory for a large body; return False if too many wait already."""
        if self._budget is None:
            return True
        self._hold(0)  # from here on it is bounded with the bodies that wait
        try:
            await self._budget.reserve(size_bytes, self._hurry)
        except BudgetExceeded:
            return False
        self._reserved_bytes += size_bytes
        self._reserved_at_s = trio.current_time()
        return True

    def _give_back(self) -> None:
        if self._budget is not None:
            self._budget.hold(self._holder, 0)
            if self._reserved_bytes:
                self._budget.release(self._reserved_bytes, self._hurry)
                self._reserved_bytes = 0

    async def _decode(self, request: Request) -> Refusal | None:
        """Decode the body, one large body at a time in the whole process; return a refusal if that is impossible.

        What inflates to a small size is done at once. Anything else needs a reservation first.
        """
        limit = self.limits.max_body_bytes
        work = decode_body(request, limit, lenient=self.limits.lenient_coding)
        try:
            next(work)
        except StopIteration as end:
            refused: Refusal | None = end.value
            return refused
        # The scope has no deadline while requests are handled, so this wait needs one of its own.
        with trio.move_on_after(self.limits.body_s):
            if not self._reserved_bytes and not await self._reserve(limit):
                return BUSY
            return await in_slices(work, None if self._budget is None else self._budget.working)
        return BUSY

    async def _answer_ready(self) -> bool:
        """Handle all requests that have arrived; return False if the connection is to end."""
        ready = self.reader.ready
        handler = self._handler
        out = b""
        keep_alive = True
        self._stop_deadline()
        while ready and keep_alive:
            request = ready.pop(0)
            if (ready or self.reader.phase is not Phase.IDLE) and self._budget is not None:
                self._hold(len(out) + self.reader.held_bytes)  # while this one is handled, the others wait
            if (
                needs_decoding(request, lenient=self.limits.lenient_coding)
                and (refused := await self._decode(request)) is not None
            ):
                # The client matches answers to requests by their order: those before the refusal go first.
                await self._send(out)
                self._prepare_refusal(refused)
                return False
            try:
                response = await handler(request)
                keep_alive, answer = self._encode(request, response)
            except Exception as error:  # the server survives any defect of a handler, and on_error reports it
                response = self._internal_error(error, request)
                keep_alive, answer = self._encode(request, response)
            out += answer
            if self._reserved_bytes:
                # Handled: the client may take its time for the answer, but must not hold the memory of its body.
                request.body = b""
                self._give_back()
            if type(response) is not Response or type(response.body) is not bytes:
                await self._send(out)
                await self._send_special(request, response)
                return False
            if len(out) > _FLUSH_BYTES:
                await self._send(out, large=len(answer) > _FLUSH_BYTES)
                self._stop_deadline()
                out = b""
        # The client wanted to keep the connection, so its next request may be on its way: linger, or it gets a reset.
        self._lingers = not keep_alive and request.keep_alive
        await self._send(out)
        return keep_alive

    def _encode(self, request: Request, response: Response | Hangup | Raw) -> tuple[bool, bytes]:
        """Return whether the connection stays open after this answer, and its bytes (only the head of a stream)."""
        if type(response) is not Response:
            return False, b""
        version = request.http_version
        if type(response.body) is not bytes:
            return False, encode_head(response, http_version=version)
        keep_alive = request.keep_alive and not response.close and not self._is_last()
        return keep_alive, encode(
            response, keep_alive=keep_alive, http_version=version, head_only=request.method == "HEAD"
        )

    def _is_last(self) -> bool:
        """Return whether a shutdown ends the connection here: no byte of a further request has been read."""
        return self._shutdown.is_set() and not self.reader.ready and self.reader.phase is Phase.IDLE

    async def _send(self, data: bytes, *, large: bool = False) -> None:
        """Send ``data`` and set the deadline for it; with empty ``data``, only the deadline of an idle connection."""
        if large:
            self._scope.deadline = trio.current_time() + self.limits.large_s
        else:
            self._start_deadline(Phase.IDLE)
        if not data:
            return
        if self._budget is None or len(data) < _COUNTED_BYTES:
            await self._send_all(data)
            return
        # Counted before it is known whether the client reads; only small answers skip this.
        self._sending = True
        self._hold(len(data) + self.reader.held_bytes)
        await self._send_all(data)
        self._sending = False
        self._hold(self.reader.held_bytes)

    def _internal_error(self, error: Exception, request: Request) -> Response:
        if self._on_error is not None:
            self._on_error(error, request)
        response = self._refuse("internal", "The server failed to handle this request; see its log.", 500)
        response.close = True
        return response

    async def _send_special(self, request: Request, response: Response | Hangup | Raw) -> None:
        """Send what is not a plain response: a stream, raw bytes, or nothing."""
        if isinstance(response, Hangup):
            if response.reset:
                _reset_on_close(self.stream)
        elif isinstance(response, Raw):
            await self._send_stream(request, response.parts, _unchanged)
        else:
            assert not isinstance(response.body, bytes)
            if request.method == "HEAD":
                await _aclose(response.body)
            elif request.http_version == "1.0":
                await self._send_stream(request, response.body, _unchanged)
            elif await self._send_stream(request, response.body, chunk):
                # Only a complete stream gets its last chunk: the client sees that a cut one is incomplete.
                await self._send(LAST_CHUNK)
                self._lingers = request.keep_alive

    async def _send_stream(self, request: Request, parts: AsyncIterator[bytes], wrap: Callable[[bytes], bytes]) -> bool:
        """Send the parts as the iterator yields them, then close it.

        Returns True if all were sent; False if the client disconnected, a shutdown began, or the iterator raised.
        """
        finished = False
        nursery = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._cancel_on_disconnect, nursery.cancel_scope)
                # A live feed does not end by itself, and a shutdown must not wait for it.
                self._shutdown.subscribe(nursery.cancel_scope.cancel)
                self._stop_deadline()
                # The iterator may wait as long as it likes; only the sending of a part has a deadline.
                async for part in parts:
                    if part:  # an empty chunk would end the body
                        await self._send(wrap(part))
                        self._stop_deadline()
                finished = True
                nursery.cancel_scope.cancel()
        except* _GONE:
            pass  # the client disconnected in the middle of a part
        except* Exception as errors:
            if self._on_error is not None:
                self._on_error(errors, request)
        finally:
            if nursery is not None:
                self._shutdown.unsubscribe(nursery.cancel_scope.cancel)
            with trio.move_on_after(_CLOSE_S, shield=True):
                await _aclose(parts)
        return finished

    async def _cancel_on_disconnect(self, scope: trio.CancelScope) -> None:
        """Cancel ``scope`` at the client's end of file: a stream without parts never writes, and would never notice."""
        try:
            while await self.stream.receive_some(_READ_BYTES):
                pass  # requests after a stream are not answered: the connection closes after it
        except _GONE:
            pass
        scope.cancel()

    def _prepare_refusal(self, refused: Refusal) -> None:
        response = self._refuse(refused.code, refused.message, refused.status)
        self._final_response = encode(response, keep_alive=False, http_version="1.1", head_only=False)
        self._lingers = True

    async def _linger(self) -> None:
        """Send the final response, half-close, and discard what arrives until the client closes or time is up."""
        with trio.move_on_after(self.limits.linger_s):
            if self._final_response:
                await self.stream.send_all(self._final_response)
            if isinstance(self.stream, trio.abc.HalfCloseableStream):
                await self.stream.send_eof()
            while await self.stream.receive_some(_DISCARD_BYTES):  # noqa: ASYNC110 - it waits for bytes, then for more
                await trio.sleep(_DISCARD_PAUSE_S)


def _nothing() -> None:
    """Do nothing: the connection has ended."""


def _unchanged(part: bytes) -> bytes:
    return part


async def _aclose(parts: AsyncIterator[bytes]) -> None:
    aclose = getattr(parts, "aclose", None)  # async generators have it, other iterators need not
    if aclose is not None:
        await aclose()


def _reset_on_close(stream: trio.abc.Stream) -> None:
    """Make closing a TCP socket send a reset (SO_LINGER with time 0); other streams just close."""
    if isinstance(stream, trio.SocketStream) and stream.socket.family != socket.AF_UNIX:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
