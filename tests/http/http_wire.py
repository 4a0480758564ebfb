"""Helpers: one served connection over memory streams, raw bytes and h11 as its client."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import h11
import trio
import trio.testing

from sidecar.http import Limits, Request, Response, Stopping, serve_connection


class Served:
    """The client's end of a connection, and what the handler saw of it."""

    def __init__(self, stream: trio.abc.HalfCloseableStream) -> None:
        self.stream = stream
        self.requests: list[Request] = []
        self.errors: list[BaseException] = []
        self.stopping = Stopping()
        self.ended = trio.Event()

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def end(self) -> None:
        await self.stream.send_eof()

    async def rest(self) -> bytes:
        """All that the server sends until it closes."""
        received = b""
        while data := await self.stream.receive_some(65536):
            received += data
        return received

    async def until_quiet(self) -> bytes:
        """What the server has sent by the time nobody has anything left to do."""
        received = b""
        while True:
            await trio.testing.wait_all_tasks_blocked()
            with trio.CancelScope() as scope:
                scope.cancel()
                data = b""
                data = await self.stream.receive_some(65536)
            # A cancelled receive may still be preceded by buffered data; memory streams give none when cancelled.
            if scope.cancelled_caught or not data:
                return received
            received += data


async def echo(request: Request) -> Response:
    return Response(200, request.body, "application/octet-stream")


@asynccontextmanager
async def served(handler=echo, *, limits=None, first=b"", refuse=None, deadline=False) -> AsyncIterator[Served]:
    client_end, server_end = trio.testing.memory_stream_pair()
    client = Served(client_end)

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
            stopping=client.stopping,
            on_error=lambda error, request: client.errors.append(error),
            **options,
        )
        client.ended.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        yield client
        nursery.cancel_scope.cancel()


def answers(data: bytes, methods: tuple[bytes, ...] = (b"POST",) * 100) -> list[tuple[int, dict[bytes, bytes], bytes]]:
    """The answers in ``data`` as a strict client (h11) reads them: status, headers, body."""
    found = []
    connection = None
    for method in methods:
        if connection is None:
            connection = h11.Connection(h11.CLIENT)
            connection.receive_data(data)
            connection.receive_data(b"")
        headers = [("Host", "x")]
        connection.send(h11.Request(method=method, target="/", headers=headers))
        connection.send(h11.EndOfMessage())
        answer = _one_answer(connection)
        if answer is None:
            return found
        found.append(answer)
        if connection.their_state is not h11.DONE or connection.our_state is not h11.DONE:
            return found
        connection.start_next_cycle()
    return found


def _one_answer(connection: h11.Connection):
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
