"""A small HTTP/1.1 client for one request to a local server, over any trio stream: the answer as a whole, or as it arrives.

For processes of this project that speak to each other over Unix sockets. It builds the request from checked parts, so
that nothing that a caller passes can become a second request (RFC 9112 11.2).
"""

import re
from collections.abc import AsyncIterator
from typing import Final

import httptools
import trio

__all__ = ["ClientResponse", "ProtocolError", "open_response"]

_READ_BYTES: Final = 64 * 1024
_TARGET: Final = re.compile(r"/[!-~]*")
_METHOD: Final = re.compile(r"[A-Z]{1,16}")


class ProtocolError(Exception):
    """The server's answer is not HTTP, or ended too early."""


class _Events:
    """Callbacks for httptools while it parses one answer."""

    def __init__(self) -> None:
        self.content_type = ""
        self.has_head = self.is_complete = self.has_end = False
        self.parts: list[bytes] = []

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"content-type":
            self.content_type = value.decode("latin-1")
        # Without a length and without chunks a body ends with its connection (RFC 9112 6.3).
        self.has_end |= name.lower() in (b"content-length", b"transfer-encoding")

    def on_headers_complete(self) -> None:
        self.has_head = True

    def on_body(self, body: bytes) -> None:
        self.parts.append(body)

    def on_message_complete(self) -> None:
        self.is_complete = True


class ClientResponse:
    """An answer whose head has arrived. Read it with ``read`` or ``chunks``; closing it closes the stream."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._events = _Events()
        self._parser = httptools.HttpResponseParser(self._events)
        self.status = 0

    @property
    def content_type(self) -> str:
        """The Content-Type of the answer, empty if it has none."""
        return self._events.content_type

    async def receive_head(self) -> None:
        """Wait for status and headers. Raises ProtocolError."""
        while not self._events.has_head:
            if not await self._receive():
                raise ProtocolError("The server closed the connection before its answer.")
        self.status = self._parser.get_status_code()

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body as it arrives. Raises ProtocolError for a body that ends too early."""
        while True:
            if self._events.parts:
                parts, self._events.parts = self._events.parts, []
                yield b"".join(parts)
            elif self._events.is_complete:
                return
            elif not await self._receive():
                if self._events.has_end:
                    raise ProtocolError("The server closed the connection in the middle of its answer.")
                return

    async def read(self, max_bytes: int) -> bytes:
        """Return the whole body. Raises ProtocolError if it is longer than ``max_bytes``, or ends too early."""
        body = bytearray()
        async for part in self.chunks():
            body += part
            if len(body) > max_bytes:
                raise ProtocolError(f"The answer is longer than {max_bytes} bytes.")
        return bytes(body)

    async def aclose(self) -> None:
        """Close the stream, at once."""
        await trio.aclose_forcefully(self._stream)

    async def _receive(self) -> bool:
        try:
            data = await self._stream.receive_some(_READ_BYTES)
        except trio.BrokenResourceError:
            data = b""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            if data:
                raise ProtocolError(f"The answer is not HTTP ({error}).") from None
        return bool(data)


async def open_response(
    stream: trio.abc.Stream, method: str, target: str, *, body: bytes = b"", host: str = "px-sidecar"
) -> ClientResponse:
    """Send one request on ``stream`` and return its answer once the head has arrived; the caller closes it.

    Raises ValueError for a method or target that does not fit into a request line, and ProtocolError or OSError for a
    server that does not answer. The stream is closed on an error.
    """
    if not _METHOD.fullmatch(method) or not _TARGET.fullmatch(target):
        raise ValueError(f"not a request line: {method[:20]!r} {target[:80]!r}")
    head = f"{method} {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    response = ClientResponse(stream)
    try:
        await stream.send_all(head.encode("ascii") + body)
        await response.receive_head()
    except BaseException:
        await response.aclose()
        raise
    return response
