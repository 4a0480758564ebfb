"""Accept connections before the outbox is open, so that a restart refuses no client.

Opening the outbox takes a moment, or minutes if it has to be recovered. Clients that connect meanwhile wait for it, as they
would in the queue of the kernel, but for ``WAIT_S`` at most: then they are answered 503 ``busy``, which every SDK repeats.
A GET (``/health``) is answered 503 ``starting`` at once: a monitor asks for the state and should not wait for another one.
Nothing that a client sends is read before: what waits for a TLS handshake or in a socket's buffer costs this process no
memory.
"""

import socket
from collections.abc import Awaitable
from typing import Any, Final

import trio

from sidecar.events import encode
from sidecar.http import BUSY, Limits, MemoryBudget, Request, Response, Shutdown, serve_connection
from sidecar.receive.listeners import BoundSockets
from sidecar.receive.responses import error_response
from sidecar.receive.server import ERROR_LINE_S, IngestServer, serve_listeners

__all__ = ["StartingServer"]

WAIT_S: Final = 5.0
RETRY_AFTER_S: Final = 5
_STARTING: Final = "the daemon is starting: the outbox is being opened"
_NO_BYTES_OF_EITHER: Final = b"\xef\xbb\xbf \t\r\n"  # a byte order mark and blanks
# Requests are read only to be refused.
_MEMORY_BYTES: Final = 8 * 2**20


class StartingServer:
    """Serve the listeners from the start on; ``open`` leads all connections to the server of the running daemon."""

    def __init__(self) -> None:
        self.shutdown = Shutdown()
        self.ended = trio.Event()
        self._server: IngestServer | None = None
        self.opened = trio.Event()
        self._memory = MemoryBudget(_MEMORY_BYTES)

    def open(self, server: IngestServer) -> None:
        """Lead connections to ``server``, including those that wait."""
        self._server = server
        self.opened.set()

    async def serve(
        self, sockets: BoundSockets, *, descriptors: int, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve until ``shutdown`` is set and the last connection has ended; then set ``ended``."""
        await serve_listeners(
            sockets,
            self._handle_tcp,
            self._handle_unix,
            descriptors=descriptors,
            shutdown=self.shutdown,
            task_status=task_status,
        )
        self.ended.set()

    def _handle_tcp(self, stream: Any) -> Awaitable[None]:
        # Not async, as `IngestServer.handle_tcp`.
        return self._handle_early(stream) if self._server is None else self._server.handle_tcp(stream)

    async def _handle_early(self, stream: Any) -> None:
        if await self._server_in_time(stream) is None:
            await self._first_bytes(stream)
        if self._server is not None:
            await self._server.handle_tcp(stream)
        else:
            await self._refuse(stream)

    async def _handle_unix(self, stream: Any) -> None:
        first = b""
        if await self._server_in_time(stream) is None:
            first = await self._first_bytes(stream)
        if self._server is not None:
            await self._server.handle_unix(stream)
        elif first.lstrip(_NO_BYTES_OF_EITHER)[:1] in (b"{", b"["):
            with trio.move_on_after(ERROR_LINE_S):
                await stream.send_all(error_response(BUSY.code, BUSY.message, 503, RETRY_AFTER_S).body + b"\n")
        else:
            await self._refuse(stream)

    async def _server_in_time(self, stream: Any) -> IngestServer | None:
        """Wait for the server; return None after ``WAIT_S``, and at once for a GET."""
        if self._server is not None:
            return self._server
        async with trio.open_nursery() as nursery:

            async def look() -> None:
                if await _peek(stream, 4) == b"GET ":
                    nursery.cancel_scope.cancel()

            nursery.start_soon(look)
            with trio.move_on_after(WAIT_S):
                await self.opened.wait()
            nursery.cancel_scope.cancel()
        return self._server

    async def _first_bytes(self, stream: Any) -> bytes:
        """Return the first bytes; empty if the outbox opens before them, or the daemon stops."""
        first = b""
        async with trio.open_nursery() as nursery:

            async def look() -> None:
                nonlocal first
                first = await _peek(stream, 64)
                nursery.cancel_scope.cancel()

            self.shutdown.subscribe(nursery.cancel_scope.cancel)
            try:
                if self.shutdown.is_set():
                    nursery.cancel_scope.cancel()
                nursery.start_soon(look)
                await self.opened.wait()
                nursery.cancel_scope.cancel()
            finally:
                self.shutdown.unsubscribe(nursery.cancel_scope.cancel)
        return first

    async def _refuse(self, stream: Any) -> None:
        await serve_connection(
            stream, _answer, limits=Limits(), shutdown=self.shutdown, refuse=_busy, budget=self._memory
        )


async def _peek(stream: Any, count: int) -> bytes:
    """Return the first bytes without reading them; empty for a stream that cannot be looked into (TLS)."""
    if not isinstance(stream, trio.SocketStream):
        return b""
    try:
        return await stream.socket.recv(count, socket.MSG_PEEK)
    except OSError:
        return b""  # the client has gone, which serving the connection finds out, too


async def _answer(request: Request) -> Response:
    if request.method == "GET":
        body = {"healthy": False, "problems": ["starting"], "delivering": False, "reasons": [_STARTING]}
        return Response(503, encode(body), headers=(("Retry-After", "1"),), close=True)
    return _busy(BUSY.code, BUSY.message, BUSY.status)


def _busy(_code: str, _message: str, _status: int) -> Response:
    """Answer 503 whatever is wrong with the request: the running daemon decides about it when it is repeated."""
    answer = error_response(BUSY.code, BUSY.message, 503, RETRY_AFTER_S)
    return Response(503, answer.body, headers=(("Retry-After", str(RETRY_AFTER_S)),), close=True)
