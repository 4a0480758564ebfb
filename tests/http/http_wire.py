"""One served connection over memory streams, with raw bytes and h11 as its client."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import h11
import trio
import trio.testing

from sidecar.http import IdleConnections, Limits, Request, Response, Shutdown, serve_connection


class ServedConnection:
    """The client's end of a connection, and the requests that its handler received."""

    def __init__(self, stream: trio.StapledStream, server_end: trio.StapledStream) -> None:
        self.stream = stream
        self.server_end = server_end
        self.received = b""
        self.server_closed = trio.Event()
        self.requests: list[Request] = []
        self.errors: list[BaseException] = []
        self.shutdown = Shutdown()
        self.ended = trio.Event()

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def end(self) -> None:
        await self.stream.send_eof()

    async def pump(self) -> None:
        """Receive what the server sends until it closes."""
        try:
            while data := await self.stream.receive_some(65536):
                self.received += data
        except trio.BrokenResourceError:
            pass
        except trio.ClosedResourceError:
            pass  # the test closed its own end
        self.server_closed.set()

    async def rest(self) -> bytes:
        """Return all that the server sends until it closes."""
        await self.server_closed.wait()
        return self._take()

    async def until_quiet(self) -> bytes:
        """Return what the server has sent once all tasks are blocked."""
        await trio.testing.wait_all_tasks_blocked()
        return self._take()

    async def send_repeatedly(self, data: bytes, every_s: float) -> None:
        """Send ``data`` every ``every_s`` seconds until the server closes."""
        try:
            while True:
                await self.send(data)
                await trio.sleep(every_s)
        except trio.BrokenResourceError:
            return

    def _take(self) -> bytes:
        taken, self.received = self.received, b""
        return taken


def post(body=b"", *headers: bytes, version: bytes = b"1.1", method: bytes = b"POST") -> bytes:
    lines = [method + b" /p HTTP/" + version, b"Host: x", b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


async def echo(request: Request) -> Response:
    return Response(200, request.body, "application/octet-stream")


@asynccontextmanager
async def served(
    handler=echo,
    *,
    limits=None,
    first=b"",
    refuse=None,
    budget=None,
    idle: IdleConnections | None = None,
) -> AsyncIterator[ServedConnection]:
    client_end, server_end = trio.testing.memory_stream_pair()
    client = ServedConnection(client_end, server_end)

    async def recording(request: Request):
        client.requests.append(request)
        return await handler(request)

    async def run() -> None:
        options = {"refuse": refuse} if refuse else {}
        await serve_connection(
            server_end,
            recording,
            limits=limits or Limits(),
            first=first,
            shutdown=client.shutdown,
            on_error=lambda error, request: client.errors.append(error),
            budget=budget,
            idle=idle,
            **options,
        )
        client.ended.set()

    async with trio.open_nursery() as nursery:
        if idle is not None:
            nursery.start_soon(idle.run)
        nursery.start_soon(run)
        nursery.start_soon(client.pump)
        yield client
        nursery.cancel_scope.cancel()


def answers(data: bytes, methods: tuple[bytes, ...] = (b"POST",) * 100) -> list[tuple[int, dict[bytes, bytes], bytes]]:
    """Parse the answers in ``data`` as a strict client (h11) reads them: status, headers, body."""
    parsed = []
    if not data:
        return parsed
    connection = h11.Connection(h11.CLIENT)
    connection.receive_data(data)
    connection.receive_data(b"")
    for method in methods:
        headers = [("Host", "x")]
        connection.send(h11.Request(method=method, target="/", headers=headers))
        connection.send(h11.EndOfMessage())
        answer = _next_answer(connection)
        if answer is None:
            return parsed
        parsed.append(answer)
        if connection.trailing_data == (b"", True):
            return parsed
        if connection.their_state is not h11.DONE or connection.our_state is not h11.DONE:
            return parsed
        connection.start_next_cycle()
    return parsed


def _next_answer(connection: h11.Connection):
    status, headers, body = 0, {}, b""
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Response):
            status, headers = event.status_code, dict(event.headers)
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            return status, headers, body
        elif isinstance(event, h11.ConnectionClosed) or event in (h11.NEED_DATA, h11.PAUSED):
            return None
