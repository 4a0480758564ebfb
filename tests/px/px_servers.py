"""Loopback servers for misbehavior on purpose: raw trio sockets, no HTTP library."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio

from sidecar.config import PxConfig, Secret
from sidecar.px import PxRequest
from sidecar.px.transport import HttpxNetwork

KEY = "key-1234567890-secret"
EVENT = PxRequest("POST", "/v1/events/custom", b'{"eventName":"Feature Used"}')
CREATED = b"HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"

Handler = Callable[[trio.SocketStream], Awaitable[None]]


class LoopbackServer:
    """A server on a loopback port. ``requests`` holds the bytes of each request that it has read."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.requests: list[bytes] = []
        self.connections = 0

    def network(self, timeout_s: float = 5.0, **px: str) -> HttpxNetwork:
        url = px.pop("base_url", f"http://127.0.0.1:{self.port}")
        return HttpxNetwork(PxConfig(base_url=url, **px), Secret(KEY), timeout_s)


@asynccontextmanager
async def serving(
    handle: Callable[[trio.SocketStream, LoopbackServer], Awaitable[None]],
) -> AsyncIterator[LoopbackServer]:
    """Serve each connection with ``handle`` until the block ends. A disconnected client ends its handler quietly."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    server = LoopbackServer(listeners[0].socket.getsockname()[1])

    async def serve_one(stream: trio.SocketStream) -> None:
        server.connections += 1
        async with stream:
            try:
                await handle(stream, server)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # the lane closed first, which several tests are about

    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, serve_one, listeners)
        yield server
        nursery.cancel_scope.cancel()


async def read_request(stream: trio.SocketStream, server: LoopbackServer) -> bytes:
    """Read one request with its body; return nothing at the end of the connection."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = await stream.receive_some()
        if not more:
            return b""
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    length = next((int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0)
    while len(body) < length:
        body += await stream.receive_some()
    server.requests.append(head + b"\r\n\r\n" + body)
    return server.requests[-1]


def answering(data: bytes) -> Callable[[trio.SocketStream, LoopbackServer], Awaitable[None]]:
    """Return a handler that answers every request with ``data``."""

    async def handle(stream: trio.SocketStream, server: LoopbackServer) -> None:
        while await read_request(stream, server):
            await stream.send_all(data)

    return handle


def answer(status: str, body: bytes = b"", headers: bytes = b"") -> bytes:
    """Return a response as bytes."""
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n%s\r\n%s" % (status.encode(), len(body), headers, body)
