"""Accept connections on all listeners and dispatch each to HTTP or NDJSON.

On the Unix socket a byte order mark is skipped, then the first byte that is not blank selects the protocol: ``{`` or ``[`` is NDJSON, a letter is HTTP.
Any other byte gets one error line, and the connection is closed.
"""

import logging
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

import trio

from sidecar.http import (
    Handler,
    IdleConnections,
    Limits,
    MemoryBudget,
    Request,
    Shutdown,
    serve,
    serve_connection,
    shortage,
)
from sidecar.observe import Telemetry
from sidecar.outbox import Outbox
from sidecar.receive.listeners import BoundSockets
from sidecar.receive.ndjson import BYTE_ORDER_MARK, serve_ndjson
from sidecar.receive.parse import EventParser
from sidecar.receive.responses import error_response
from sidecar.receive.routes import ClientMemory, Routes

__all__ = ["ERROR_LINE_S", "IngestServer", "serve_listeners"]

log = logging.getLogger(__name__)

# Open connections of a group of listeners, about 6 KB each; further clients wait in the kernel's queue. SPARE_DESCRIPTORS
# is the reserve for connections to PX, files and the control socket.
CONNECTIONS: Final = 10_500
SPARE_DESCRIPTORS: Final = 400
FEWEST_CONNECTIONS: Final = 16
# Of a Unix socket that was opened again: clients of the first one may still be there. At most this part of the descriptors.
REOPENED_CONNECTIONS: Final = 1_000
REOPENED_PART: Final = 8
# For the first bytes of a connection after the shutdown, which may be on their way; and for sending the error line.
FIRST_BYTES_S: Final = 1.0
ERROR_LINE_S: Final = 1.0
_BLANK: Final = b" \t\r\n"


async def serve_listeners(
    sockets: BoundSockets,
    handle_tcp: Callable[[Any], Awaitable[None]],
    handle_unix: Callable[[Any], Awaitable[None]],
    *,
    descriptors: int,
    shutdown: Shutdown,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve all listeners; return when ``shutdown`` is set and the last connection has ended.

    ``descriptors`` is the limit of open files (``raise_descriptor_limit``).
    """
    tcp = [_listener(listening) for listening in sockets.http]
    tls = [
        trio.SSLListener(_listener(listening), sockets.tls, https_compatible=True)
        for listening in sockets.https
        if sockets.tls
    ]
    unix = [_listener(listening) for listening in sockets.unix]
    groups = (("http", tcp, handle_tcp), ("https", tls, handle_tcp), ("unix", unix, handle_unix))
    served = [group for group in groups if group[1]]
    # Each group has its own share of the descriptors, so that many clients of one cannot exclude those of another. Clients
    # of the Unix socket are apps of this host: a quarter is plenty for them.
    weights = [1 if handle is handle_unix else 3 for *_, handle in served]
    async with trio.open_nursery() as nursery:
        for (kind, listeners, handle), weight in zip(served, weights, strict=True):
            max_connections = _share(descriptors, weight, sum(weights), at_most=CONNECTIONS)
            await nursery.start(
                partial(
                    serve,
                    listeners,
                    handle,
                    max_connections=max_connections,
                    shutdown=shutdown,
                    on_error=_log_connection_error,
                    close_listeners=kind not in sockets.inherited,
                )
            )
        task_status.started()


class IngestServer:
    """Serve connections until ``shutdown``; then answer all that was read."""

    def __init__(
        self,
        routes: Routes,
        parser: EventParser,
        outbox: Outbox,
        telemetry: Telemetry,
        memory: ClientMemory,
        *,
        max_request_bytes: int,
        shutdown: Shutdown,
        idle: IdleConnections | None = None,
    ) -> None:
        # Bound once, not for each connection.
        self._over_tcp, self._over_unix, self._refuse = routes.over_tcp, routes.over_unix, routes.refuse
        self._parser = parser
        self._outbox = outbox
        self._telemetry = telemetry
        self._max_request_bytes = max_request_bytes
        self._limits = Limits(max_body_bytes=max_request_bytes, lenient_coding=True)
        self._idle = idle
        self._shutdown = shutdown
        self._memory = memory

    async def serve_reopened(self, listening: socket.socket, *, descriptors: int) -> None:
        """Serve a Unix socket that had to be opened again, until ``shutdown``, beside the other listeners."""
        await serve(
            [_listener(listening)],
            self.handle_unix,
            max_connections=_share(descriptors, 1, REOPENED_PART, at_most=REOPENED_CONNECTIONS),
            shutdown=self._shutdown,
            on_error=_log_connection_error,
            close_listeners=True,
        )

    def handle_tcp(self, stream: trio.abc.Stream) -> Awaitable[None]:
        """Serve one TCP or TLS connection: HTTP."""
        return self._http(stream, self._over_tcp, b"", self._memory.tcp)

    async def handle_unix(self, stream: trio.abc.Stream) -> None:
        """Serve one connection on the Unix socket: HTTP or NDJSON."""
        first = await self._first_bytes(stream)
        if first[:1] in (b"{", b"["):
            await serve_ndjson(
                stream,
                self._parser,
                self._outbox,
                self._telemetry,
                first=first,
                max_line_bytes=self._max_request_bytes,
                budget=self._memory.unix,
                shutdown=self._shutdown,
            )
        elif first[:1].isalpha():
            await self._http(stream, self._over_unix, first, self._memory.unix)
        elif first:
            await self._refuse_protocol(stream)

    async def _refuse_protocol(self, stream: trio.abc.Stream) -> None:
        response = error_response("bad_json", "The data is neither NDJSON nor HTTP; begin with { or [, or send HTTP.")
        self._telemetry.request_refused(response.code, response.message)
        try:
            with trio.fail_after(ERROR_LINE_S):
                await stream.send_all(response.body + b"\n")
        except (trio.BrokenResourceError, trio.TooSlowError):
            pass  # the client disconnected, or does not read

    async def _first_bytes(self, stream: trio.abc.Stream) -> bytes:
        """Return the first bytes that are neither blank nor a byte order mark.

        Empty at the end of the stream, or a second after the shutdown.
        """
        first = b""
        with trio.CancelScope() as waiting:

            def limit_wait() -> None:
                waiting.deadline = trio.current_time() + FIRST_BYTES_S

            self._shutdown.subscribe(limit_wait)
            if self._shutdown.is_set():
                limit_wait()
            try:
                while data := await stream.receive_some(4096):
                    first = (first + data).lstrip(_BLANK)
                    while first.startswith(BYTE_ORDER_MARK):  # one for each empty file or line that was joined
                        first = first.removeprefix(BYTE_ORDER_MARK).lstrip(_BLANK)
                    if not BYTE_ORDER_MARK.startswith(first):  # nothing yet, or a mark that is not complete
                        return first
            except trio.BrokenResourceError:
                return b""
            finally:
                self._shutdown.unsubscribe(limit_wait)
        return first

    def _http(self, stream: trio.abc.Stream, handler: Handler, first: bytes, budget: MemoryBudget) -> Awaitable[None]:
        # Not async: 10,000 idle connections would hold a frame each for this function and for its caller.
        return serve_connection(
            stream,
            handler,
            limits=self._limits,
            first=first,
            shutdown=self._shutdown,
            refuse=self._refuse,
            on_error=_log_request_error,
            budget=budget,
            idle=self._idle,
        )


def _share(descriptors: int, weight: int, weights: int, *, at_most: int) -> int:
    """Return how many connections may be open for a part of the descriptors that are not kept for anything else."""
    return max(FEWEST_CONNECTIONS, min(at_most, (descriptors - SPARE_DESCRIPTORS) * weight // weights))


def _listener(listening: socket.socket) -> trio.SocketListener:
    return trio.SocketListener(trio.socket.from_stdlib_socket(listening))


def _log_connection_error(error: BaseException) -> None:
    if missing := shortage(error):
        log.error("Clients wait: %s.", missing)
        return
    log.error("A connection ended with an error: %r. This is a bug; report it.", error)


def _log_request_error(error: BaseException, request: Request) -> None:
    log.error("%s %s failed: %r. This is a bug; report it.", request.method, request.path[:100], error)
