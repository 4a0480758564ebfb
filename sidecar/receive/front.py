"""The front of the house: all listeners, each connection led to the protocol that it speaks.

On the Unix socket the first byte that is not blank decides: ``{`` or ``[`` begins NDJSON, a letter begins HTTP, and
anything else gets one line and the end.
"""

import logging
import socket
from functools import partial
from typing import Final

import trio

from sidecar.http import Handler, Limits, Places, Request, Stopping, serve, serve_connection
from sidecar.outbox import Outbox
from sidecar.receive.intake import Intake, refusal
from sidecar.receive.listeners import Opened
from sidecar.receive.ndjson import Crowd, serve_ndjson
from sidecar.receive.routes import Routes

__all__ = ["Front"]

log = logging.getLogger(__name__)

# Beyond these, clients wait in the kernel's queue. Descriptors are kept for lanes, files and the control socket.
CONNECTIONS: Final = 10_000
SPARE_DESCRIPTORS: Final = 400
# Of each way in, large and packed ones (and long lines): with 4 MiB each (outbox.max_request_bytes) 256 MiB, and more than a commit takes.
LARGE_BODIES: Final = 32
GOODBYE_S: Final = 1.0
_BLANK: Final = b" \t\r\n"


class Front:
    """Serves the listeners until ``stopping``; then accepts no more and answers what was read."""

    def __init__(
        self, routes: Routes, intake: Intake, outbox: Outbox, *, max_request_bytes: int, stopping: Stopping
    ) -> None:
        self._routes = routes
        self._intake = intake
        self._outbox = outbox
        self._max_request_bytes = max_request_bytes
        self._limits = Limits(max_body_bytes=max_request_bytes)
        self._stopping = stopping
        self._places_over_tcp, self._places_over_unix = Places(LARGE_BODIES), Places(LARGE_BODIES)
        self._crowd = Crowd(LARGE_BODIES)

    async def serve(
        self, opened: Opened, *, descriptors: int, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve; returns when ``stopping`` is set and the last connection has ended."""
        tcp = [_listener(one) for one in opened.http]
        tls = [
            trio.SSLListener(_listener(one), opened.tls, https_compatible=True) for one in opened.https if opened.tls
        ]
        unix = [_listener(one) for one in opened.unix]
        ways = [way for way in ((tcp, self.tcp), (tls, self.tcp), (unix, self.unix)) if way[0]]
        # Each way in has its own share, so that a crowd on one keeps nobody out of another.
        most = max(16, min(CONNECTIONS, descriptors - SPARE_DESCRIPTORS) // len(ways))
        async with trio.open_nursery() as nursery:
            for listeners, connection in ways:
                await nursery.start(
                    partial(serve, listeners, connection, max_connections=most, stopping=self._stopping, on_error=_tell)
                )
            task_status.started()

    async def tcp(self, stream: trio.abc.Stream) -> None:
        """Serve one TCP or TLS connection: HTTP."""
        await self._http(stream, self._routes.over_tcp, b"", self._places_over_tcp)

    async def unix(self, stream: trio.abc.Stream) -> None:
        """Serve one connection on the Unix socket: HTTP or NDJSON."""
        first = await self._first_bytes(stream)
        if first[:1] in (b"{", b"["):
            await serve_ndjson(
                stream,
                self._intake,
                self._outbox,
                first=first,
                max_line_bytes=self._max_request_bytes,
                crowd=self._crowd,
                stopping=self._stopping,
            )
        elif first[:1].isalpha():
            await self._http(stream, self._routes.over_unix, first, self._places_over_unix)
        elif first:
            self._intake.count("bad_json")
            said = refusal("bad_json", "This is neither JSON lines nor HTTP; begin with { or [, or speak HTTP.")
            try:
                with trio.fail_after(GOODBYE_S):
                    await stream.send_all(said.body + b"\n")
            except (trio.BrokenResourceError, trio.TooSlowError):
                pass  # it has gone, or does not read

    async def _first_bytes(self, stream: trio.abc.Stream) -> bytes:
        """What comes first, without blanks before it; empty if nothing did before the end, or soon after the stop."""
        with trio.CancelScope() as waiting:

            def stop() -> None:
                waiting.deadline = trio.current_time() + GOODBYE_S  # its first bytes may be on their way

            unsubscribe = self._stopping.subscribe(stop)
            if self._stopping.is_set():
                stop()
            try:
                while data := await stream.receive_some(4096):
                    if first := data.lstrip(_BLANK):
                        return bytes(first)
            except trio.BrokenResourceError:
                return b""
            finally:
                unsubscribe()
        return b""

    async def _http(self, stream: trio.abc.Stream, handler: Handler, first: bytes, places: Places) -> None:
        await serve_connection(
            stream,
            handler,
            limits=self._limits,
            first=first,
            stopping=self._stopping,
            refuse=self._routes.refuse,
            on_error=_tell_request,
            places=places,
        )


def _listener(one: socket.socket) -> trio.SocketListener:
    return trio.SocketListener(trio.socket.from_stdlib_socket(one))


def _tell(error: BaseException) -> None:
    log.error("A connection ended with an error: %r", error)


def _tell_request(error: BaseException, request: Request) -> None:
    log.error("%s %s failed: %r", request.method, request.path[:100], error)
