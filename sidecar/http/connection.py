"""One connection: read, hand to the handler, answer, again.

Rules
-----
* One task and one cancel scope per connection, no timer, no task and no nursery per request; the scope's deadline is
  moved instead. While the handler runs there is no deadline, and nothing is read: a client that goes away does not
  cancel what is being committed for it, its answer is dropped when it cannot be written.
* A scope that was cancelled is never used to call the handler: bytes may arrive in the same instant as a deadline or a
  stop, and the handler would be cancelled at its first checkpoint.
* Requests that are already there are handled before reading again, and their answers go out in one piece.
* A stop ends idle connections at once, but not one that has said nothing yet: its request is on its way, from a client
  that was not refused and so should be answered. It has ``_FRESH_S`` for its first byte.
* Large and packed bodies need a place (``Places``), so that what a crowd can make us hold is bounded: without one a
  large body is not read on, and a packed one not inflated. Who gets none by the body's deadline is told that we are busy
  (503), and not that he was slow: he was not.
* Any end that we choose lingers: answer, half-close, throw away what still comes for a bounded time, close. The client
  then reads the answer instead of a reset.
"""

import math
import socket
import struct
from collections.abc import AsyncIterator, Callable
from typing import Final

import trio

from sidecar.http.coding import decode_body
from sidecar.http.message import (
    BUSY,
    Handler,
    Hangup,
    Limits,
    Places,
    Raw,
    Refuse,
    Refused,
    Request,
    Response,
    plain_refusal,
)
from sidecar.http.reader import Phase, Reader
from sidecar.http.stopping import Stopping
from sidecar.http.transport import short_way
from sidecar.http.writer import CONTINUE, LAST_CHUNK, chunk, encode, encode_head

__all__ = ["serve_connection"]

_READ_BYTES = 64 * 1024
_FLUSH_BYTES = 64 * 1024
_FRESH_S = 1.0
_NOT_IN_TIME: Final = Refused("timeout", "The rest of the request did not come in time.", 408)

_GONE = (trio.BrokenResourceError, trio.ClosedResourceError)

OnError = Callable[[BaseException, Request], None]


async def serve_connection(
    stream: trio.abc.Stream,
    handler: Handler,
    *,
    limits: Limits | None = None,
    first: bytes = b"",
    stopping: Stopping | None = None,
    refuse: Refuse = plain_refusal,
    on_error: OnError | None = None,
    places: Places | None = None,
) -> None:
    """Serve requests on ``stream`` until either side ends it; then the stream is closed.

    ``first``: bytes that were already read from it (kept as long as the connection: read few). ``stopping``: once set,
    an idle connection is closed at once, one that has said nothing yet after a second, and a request of which any byte
    was read is finished and answered with ``Connection: close``. ``on_error`` is told what the handler raised (any
    Exception); the client gets ``refuse("internal", …, 500)``. Nothing a client sends or fails to send raises here.
    ``places`` is shared by all connections whose memory is bounded together; without it, it is not.
    Cancellation closes the stream and may interrupt the handler.
    """
    connection = _Connection(stream, handler, limits or Limits(), stopping or Stopping(), refuse, on_error, places)
    try:
        await connection.run(first)
    except _GONE:
        pass  # the client went away: there is nobody to tell
    finally:
        with trio.move_on_after(1):  # a TLS goodbye may have to wait for a peer that does not read
            await stream.aclose()


class _Connection:
    """The state of ``serve_connection``."""

    __slots__ = (
        "_fresh",
        "_handler",
        "_interruptible",
        "_last_words",
        "_lingers",
        "_on_error",
        "_places",
        "_receive_some",
        "_refuse",
        "_scope",
        "_send_all",
        "_stopping",
        "_taken",
        "limits",
        "reader",
        "stream",
    )

    def __init__(
        self,
        stream: trio.abc.Stream,
        handler: Handler,
        limits: Limits,
        stopping: Stopping,
        refuse: Refuse,
        on_error: OnError | None,
        places: Places | None,
    ) -> None:
        self.stream = stream
        self._receive_some, self._send_all = short_way(stream)
        self.limits = limits
        self.reader = Reader(limits)
        self._handler = handler
        self._stopping = stopping
        self._refuse = refuse
        self._on_error = on_error
        self._places = places
        self._taken: list[trio.CapacityLimiter] = []
        self._scope = trio.CancelScope()
        self._interruptible = False
        self._fresh = True
        self._last_words = b""
        self._lingers = False

    async def run(self, first: bytes) -> None:
        self._fresh = not first
        self.reader.feed(first)
        unsubscribe = self._stopping.subscribe(self._stop)
        try:
            again = True
            while again:
                again = False
                with trio.CancelScope() as self._scope:
                    again = await self._talk()
            if self._scope.cancelled_caught and self._interruptible and self.reader.phase is not Phase.IDLE:
                self._refusal(_NOT_IN_TIME if self._missing_place() is None else BUSY)
            if self._lingers:
                self.reader = Reader(self.limits)  # the body that will not be whole is let go, and so are its places
                self._leave_places()
                await self._linger()
        finally:
            unsubscribe()
            self._leave_places()

    def _stop(self) -> None:
        if not self._interruptible or self.reader.phase is not Phase.IDLE:
            return
        if self._fresh:
            self._scope.deadline = min(self._scope.deadline, trio.current_time() + _FRESH_S)
        else:
            self._scope.cancel()

    async def _talk(self) -> bool:
        """Converse until the end; True to be called again in a fresh scope."""
        reader = self.reader
        scope = self._scope
        receive_some = self._receive_some
        phase = None
        while True:
            if reader.ready:
                if not await self._answer_ready():
                    return False
                phase = Phase.IDLE  # answering has set that deadline
            if reader.refused is not None:
                self._refusal(reader.refused)
                return False
            if reader.phase is not phase:
                phase = reader.phase
                scope.deadline = trio.current_time() + self._patience_s(phase)
            if reader.take_continue():
                await self._send_all(CONTINUE)
            if phase is Phase.IDLE and self._stopping.is_set():
                if not self._fresh:
                    return False
                scope.deadline = trio.current_time() + _FRESH_S
            self._interruptible = True
            if (place := self._missing_place()) is not None:
                await self._take(place)
                scope.deadline = trio.current_time() + self.limits.large_s  # however long we kept it waiting
            data = await receive_some(_READ_BYTES)
            self._interruptible = self._fresh = False
            if not data:
                return False
            reader.feed(bytes(data))
            del data  # up to 64 KiB that an idle connection would hold on to
            if scope.cancel_called:
                return True

    def _patience_s(self, phase: Phase) -> float:
        if phase is Phase.IDLE:
            return self.limits.idle_s
        return self.limits.header_s if phase is Phase.HEAD else self.limits.body_s

    def _missing_place(self) -> trio.CapacityLimiter | None:
        """Where the body that is being read needs a place before it is read on; None if it may be."""
        if self._places is None or self._taken or self.reader.phase is not Phase.BODY:
            return None
        return self._places.large if self.reader.body_bytes >= Places.LARGE_BYTES else None

    async def _take(self, places: trio.CapacityLimiter) -> None:
        await places.acquire_on_behalf_of(self)
        self._taken.append(places)

    def _leave_places(self) -> None:
        while self._taken:
            self._taken.pop().release_on_behalf_of(self)

    async def _decoded(self, request: Request) -> Refused | None:
        """Undo the body's coding once there is a place for it; or what it is refused with."""
        with trio.move_on_after(self.limits.body_s):
            if self._places:
                await self._take(self._places.packed)
            return decode_body(request, self.limits.max_body_bytes)
        return BUSY

    async def _answer_ready(self) -> bool:
        """Handle all requests that are there; False when the connection is to end."""
        ready = self.reader.ready
        handler = self._handler
        out = b""
        keep_alive = True
        self._scope.deadline = math.inf
        while ready and keep_alive:
            request = ready.popleft()
            if request.coding and (refused := await self._decoded(request)) is not None:
                await self._send(out)
                self._refusal(refused)
                return False
            try:
                response = await handler(request)
                keep_alive, answer = self._encoded(request, response)
            except Exception as error:  # the server outlives any mistake of a handler; the callback makes it known
                response = self._failed(error, request)
                keep_alive, answer = self._encoded(request, response)
            out += answer
            if self._taken:
                request.body = b""  # the answer may wait long for a client that does not read
                self._leave_places()
            if type(response) is not Response or type(response.body) is not bytes:
                await self._send(out)
                await self._answer_specially(request, response)
                return False
            if len(out) > _FLUSH_BYTES:
                await self._send(out, large=len(answer) > _FLUSH_BYTES)
                self._scope.deadline = math.inf
                out = b""
        self._lingers = not keep_alive and request.keep_alive  # it may be sending the next one already
        await self._send(out)
        return keep_alive

    def _encoded(self, request: Request, response: Response | Hangup | Raw) -> tuple[bool, bytes]:
        """Whether the connection goes on after this answer, and its bytes; of a streamed one, the head."""
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
        """Whether a stop ends the connection here: no further request of it has been read, not even in part."""
        return self._stopping.is_set() and not self.reader.ready and self.reader.phase is Phase.IDLE

    async def _send(self, data: bytes, *, large: bool = False) -> None:
        patience_s = self.limits.large_s if large else self.limits.idle_s
        self._scope.deadline = trio.current_time() + patience_s
        if data:
            await self._send_all(data)

    def _failed(self, error: Exception, request: Request) -> Response:
        if self._on_error is not None:
            self._on_error(error, request)
        response = self._refuse("internal", "The server failed at this request; its log says why.", 500)
        response.close = True
        return response

    async def _answer_specially(self, request: Request, response: Response | Hangup | Raw) -> None:
        if isinstance(response, Hangup):
            if response.reset:
                _reset_on_close(self.stream)
        elif isinstance(response, Raw):
            await self._stream_out(request, response.parts, _as_is)
        else:
            assert not isinstance(response.body, bytes)
            if request.method == "HEAD":
                await _aclose(response.body)
            elif request.http_version == "1.0":
                await self._stream_out(request, response.body, _as_is)
            elif await self._stream_out(request, response.body, chunk):
                await self._send(LAST_CHUNK)
                self._lingers = request.keep_alive

    async def _stream_out(self, request: Request, parts: AsyncIterator[bytes], wrap: Callable[[bytes], bytes]) -> bool:
        """Send the parts as they come; True if all were sent; False if the client left, we stop, or it failed."""
        finished = False
        unsubscribe = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._cancel_when_gone, nursery.cancel_scope)
                unsubscribe = self._stopping.subscribe(nursery.cancel_scope.cancel)
                self._scope.deadline = math.inf
                async for part in parts:
                    if part:
                        await self._send(wrap(part))
                        self._scope.deadline = math.inf
                finished = True
                nursery.cancel_scope.cancel()
        except* _GONE:
            pass  # the client left in the middle of a part
        except* Exception as errors:
            if self._on_error is not None:
                self._on_error(errors, request)
        finally:
            if unsubscribe is not None:
                unsubscribe()
            with trio.move_on_after(1, shield=True):
                await _aclose(parts)
        return finished

    async def _cancel_when_gone(self, scope: trio.CancelScope) -> None:
        """A stream may be silent for long; its client's end of file is the only news of its leaving."""
        try:
            while await self.stream.receive_some(_READ_BYTES):
                pass  # requests behind a stream are not answered: the connection closes after it
        except _GONE:
            pass
        scope.cancel()

    def _refusal(self, refused: Refused) -> None:
        response = self._refuse(refused.code, refused.message, refused.status)
        self._last_words = encode(response, keep_alive=False, http_version="1.1", head_only=False)
        self._lingers = True

    async def _linger(self) -> None:
        with trio.move_on_after(self.limits.linger_s):
            if self._last_words:
                await self.stream.send_all(self._last_words)
            if isinstance(self.stream, trio.abc.HalfCloseableStream):
                await self.stream.send_eof()
            while await self.stream.receive_some(_READ_BYTES):
                pass


def _as_is(part: bytes) -> bytes:
    return part


async def _aclose(parts: AsyncIterator[bytes]) -> None:
    aclose = getattr(parts, "aclose", None)  # async generators have it, other iterators need not
    if aclose is not None:
        await aclose()


def _reset_on_close(stream: trio.abc.Stream) -> None:
    """Make closing a TCP socket send a reset; other streams have no such thing and just close."""
    if isinstance(stream, trio.SocketStream) and stream.socket.family != socket.AF_UNIX:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
