"""The six ways in which apps send events: each sends some calls to the process and returns the answer.

The answer is the JSON object of the Segment routes; a way that gets several answers joins them. Raises ConnectionLost if
the connection ended before the answer.
"""

import gzip
import json
from collections.abc import Awaitable, Callable
from typing import Any

import trio
import trio.testing
from sim_process import ConnectionLost, Process

from sidecar.errors import SidecarError
from sidecar.http import Request
from sidecar.receive.responses import ParsedRequest, accepted_response, unavailable_response

__all__ = ["WAYS"]

Calls = list[dict[str, Any]]


async def _routed(process: Process, calls: Calls) -> dict[str, Any]:
    """Send a batch to the routes, without the HTTP server."""
    body = json.dumps({"batch": calls}).encode()
    response = await process.routes.over_unix(Request("POST", "/v1/batch", "", [], body, "1.1", True))
    return json.loads(response.body)


async def _http(process: Process, calls: Calls) -> dict[str, Any]:
    """Send a batch over an HTTP connection; compressed if it has an even number of calls."""
    body, head = json.dumps({"batch": calls}).encode(), ""
    if len(calls) % 2 == 0:
        body, head = gzip.compress(body, mtime=0), "Content-Encoding: gzip\r\n"
    return (await _over_http(process, [_request("batch", body, head)]))[0]


async def _singles(process: Process, calls: Calls) -> dict[str, Any]:
    """Send each call as a request of its own, pipelined on one connection."""
    return _join_answers(
        await _over_http(process, [_request(call["type"], json.dumps(call).encode()) for call in calls])
    )


def _request(route: str, body: bytes, head: str = "") -> bytes:
    length = f"Content-Length: {len(body)}\r\n"
    return f"POST /v1/{route} HTTP/1.1\r\nHost: x\r\n{head}{length}\r\n".encode() + body


async def _over_http(process: Process, requests: list[bytes]) -> list[dict[str, Any]]:
    answers = []

    async def read_answers(connection: "_Connection") -> None:
        for _ in requests:
            head = (await connection.read_until(b"\r\n\r\n")).lower()
            length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
            answers.append(json.loads(await connection.read_exactly(length)))

    await _over_stream(process, b"".join(requests), read_answers)
    return answers


async def _array(process: Process, calls: Calls) -> dict[str, Any]:
    """Send one NDJSON line that holds an array."""
    return (await _over_lines(process, [calls]))[0]


async def _lines(process: Process, calls: Calls) -> dict[str, Any]:
    """Send one NDJSON line per call, all before the first answer is read."""
    return _join_answers(await _over_lines(process, calls))


async def _over_lines(process: Process, lines: list[Any]) -> list[dict[str, Any]]:
    answers = []

    async def read_answers(connection: "_Connection") -> None:
        for _ in lines:
            answers.append(json.loads(await connection.read_until(b"\n")))

    await _over_stream(process, b"".join(json.dumps(line).encode() + b"\n" for line in lines), read_answers)
    return answers


def _join_answers(answers: list[dict[str, Any]]) -> dict[str, Any]:
    bad = [index for index, answer in enumerate(answers) if answer.get("code") == "bad_event"]
    done = [index for index, answer in enumerate(answers) if answer["success"] or index in bad]
    return {"success": len(done) == len(answers), "refused": [{"index": index} for index in bad], "done": done}


class _Connection:
    """The client side of a connection, with a read buffer."""

    def __init__(self, stream: trio.abc.ReceiveStream) -> None:
        self._stream, self._read = stream, b""

    async def read_until(self, end: bytes) -> bytes:
        while end not in self._read:
            await self._receive()
        part, _, self._read = self._read.partition(end)
        return part + end

    async def read_exactly(self, size: int) -> bytes:
        while len(self._read) < size:
            await self._receive()
        part, self._read = self._read[:size], self._read[size:]
        return part

    async def _receive(self) -> None:
        received = await self._stream.receive_some()
        if not received:
            raise ConnectionLost
        self._read += received


async def _serve(process: Process, stream: trio.abc.Stream) -> None:
    # Close the stream as the accept loop does: after a stop, the client of unread lines must see the end.
    async with stream:
        await process.server.handle_unix(stream)


async def _send_part_and_close(process: Process, part: bytes) -> None:
    """Send the first part of a conversation and close the connection, so that its answers are never read."""
    client, server = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_serve, process, server)
        await client.send_all(part)
        await client.aclose()
    process.world.coverage["broke off"] += 1


async def _over_stream(process: Process, data: bytes, read_answers: Callable[[_Connection], Awaitable[None]]) -> None:
    if len(data) % 4 == 0:
        await _send_part_and_close(process, data[: len(data) * 2 // 3])
    client, server = trio.testing.memory_stream_pair()
    gone = False
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_serve, process, server)
        await client.send_all(data)
        try:
            await read_answers(_Connection(client))
        except ConnectionLost:
            gone = True
        nursery.cancel_scope.cancel()
    if gone:
        raise ConnectionLost


async def _direct(process: Process, calls: Calls) -> dict[str, Any]:
    """Call parser and outbox directly, without a connection."""
    parsed = process.daemon.parser.parse(json.dumps({"batch": calls}).encode(), "batch", None, trusted=True)
    assert isinstance(parsed, ParsedRequest)
    try:
        accepted = await process.daemon.outbox.accept(parsed.events)
    except SidecarError as error:
        return json.loads(unavailable_response(error).body)
    return json.loads(accepted_response(parsed, accepted).body)


WAYS: dict[str, Callable[[Process, Calls], Awaitable[dict[str, Any]]]] = {
    "routed": _routed,
    "http": _http,
    "singles": _singles,
    "array": _array,
    "lines": _lines,
    "direct": _direct,
}
