"""The ways in which apps bring events: each sends some calls to a life, and says what was answered.

The answer is that of the Segment routes, as a dict; a way that asks for several answers joins them. Raises Gone if the
connection ended before the answer was there.
"""

import gzip
import json
from collections.abc import Awaitable, Callable
from typing import Any

import trio
import trio.testing
from sim_life import Gone, Life

from sidecar.errors import SidecarError
from sidecar.http import Request

__all__ = ["WAYS"]

Calls = list[dict[str, Any]]


async def _routed(life: Life, calls: Calls) -> dict[str, Any]:
    """A batch, as the HTTP server hands it to its routes."""
    body = json.dumps({"batch": calls}).encode()
    response = await life.routes.over_unix(Request("POST", "/v1/batch", "", [], body, "1.1", True))
    return json.loads(response.body)


async def _http(life: Life, calls: Calls) -> dict[str, Any]:
    """A batch over a connection, zipped now and then."""
    body, head = json.dumps({"batch": calls}).encode(), ""
    if len(calls) % 2 == 0:
        body, head = gzip.compress(body, mtime=0), "Content-Encoding: gzip\r\n"
    return (await _over_http(life, [_request("batch", body, head)]))[0]


async def _singles(life: Life, calls: Calls) -> dict[str, Any]:
    """One call after the other over one connection, pipelined."""
    return _joined(await _over_http(life, [_request(call["type"], json.dumps(call).encode()) for call in calls]))


def _request(route: str, body: bytes, head: str = "") -> bytes:
    length = f"Content-Length: {len(body)}\r\n"
    return f"POST /v1/{route} HTTP/1.1\r\nHost: x\r\n{head}{length}\r\n".encode() + body


async def _over_http(life: Life, requests: list[bytes]) -> list[dict[str, Any]]:
    answers = []

    async def talk(connection: "_Connection") -> None:
        for _ in requests:
            head = (await connection.until(b"\r\n\r\n")).lower()
            length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
            answers.append(json.loads(await connection.exactly(length)))

    await _over_stream(life, b"".join(requests), talk)
    return answers


async def _array(life: Life, calls: Calls) -> dict[str, Any]:
    """A line with an array."""
    return (await _over_lines(life, [calls]))[0]


async def _lines(life: Life, calls: Calls) -> dict[str, Any]:
    """A line for each, all sent before the first answer is read."""
    return _joined(await _over_lines(life, calls))


async def _over_lines(life: Life, lines: list[Any]) -> list[dict[str, Any]]:
    answers = []

    async def talk(connection: "_Connection") -> None:
        for _ in lines:
            answers.append(json.loads(await connection.until(b"\n")))

    await _over_stream(life, b"".join(json.dumps(line).encode() + b"\n" for line in lines), talk)
    return answers


def _joined(answers: list[dict[str, Any]]) -> dict[str, Any]:
    bad = [index for index, answer in enumerate(answers) if answer.get("code") == "bad_event"]
    done = [index for index, answer in enumerate(answers) if answer["success"] or index in bad]
    return {"success": len(done) == len(answers), "refused": [{"index": index} for index in bad], "done": done}


class _Connection:
    """The client's end of a connection."""

    def __init__(self, stream: trio.abc.ReceiveStream) -> None:
        self._stream, self._read = stream, b""

    async def until(self, end: bytes) -> bytes:
        while end not in self._read:
            await self._more()
        found, _, self._read = self._read.partition(end)
        return found + end

    async def exactly(self, size: int) -> bytes:
        while len(self._read) < size:
            await self._more()
        found, self._read = self._read[:size], self._read[size:]
        return found

    async def _more(self) -> None:
        more = await self._stream.receive_some()
        if not more:
            raise Gone
        self._read += more


async def _serve(life: Life, stream: trio.abc.Stream) -> None:
    # As who accepts connections does: a stop leaves lines that were not read, and their client has to know.
    async with stream:
        await life.front.unix(stream)


async def _break_off(life: Life, part: bytes) -> None:
    """A connection that ends in the middle, with nobody left to read the answers to what was whole in it."""
    ours, theirs = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_serve, life, theirs)
        await ours.send_all(part)
        await ours.aclose()
    life.world.met["broke off"] += 1


async def _over_stream(life: Life, said: bytes, talk: Callable[[_Connection], Awaitable[None]]) -> None:
    if len(said) % 4 == 0:
        await _break_off(life, said[: len(said) * 2 // 3])
    ours, theirs = trio.testing.memory_stream_pair()
    gone = False
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_serve, life, theirs)
        await ours.send_all(said)
        try:
            await talk(_Connection(ours))
        except Gone:
            gone = True
        nursery.cancel_scope.cancel()
    if gone:
        raise Gone


async def _direct(life: Life, calls: Calls) -> dict[str, Any]:
    """Like a program that uses the rooms themselves."""
    opened = life.daemon.intake.open(json.dumps({"batch": calls}).encode(), "batch", None, trusted=True)
    try:
        accepted = await life.daemon.outbox.accept(opened.events)
    except SidecarError as error:
        return json.loads(life.daemon.intake.not_stored(error).body)
    return json.loads(life.daemon.intake.accepted(opened, accepted).body)


WAYS: dict[str, Callable[[Life, Calls], Awaitable[dict[str, Any]]]] = {
    "routed": _routed,
    "http": _http,
    "singles": _singles,
    "array": _array,
    "lines": _lines,
    "direct": _direct,
}
