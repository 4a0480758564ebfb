"""What passes between the server and a handler: requests, responses, and the limits of both."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

import msgspec
import trio

__all__ = [
    "BUSY",
    "Handler",
    "Hangup",
    "Limits",
    "Places",
    "Raw",
    "Refuse",
    "Refused",
    "Request",
    "Response",
    "body_too_large",
    "plain_refusal",
]


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What one connection may ask of us. A client inside all of them holds nothing but its own buffer."""

    max_header_bytes: int = 32 * 1024
    """Request line, headers and trailers: four times what the common servers take, and cheap to hold."""
    max_headers: int = 100
    """Header lines of a request: what SDKs and proxies send is below 40."""
    max_body_bytes: int = 4 * 1024 * 1024
    """A body as received, and again after inflating it."""
    header_s: float = 10.0
    """From the first byte of a request to its blank line: one packet for every honest client."""
    body_s: float = 30.0
    """From the blank line to the end of the body: 4 MiB at 140 kB/s."""
    large_s: float = 5.0
    """The same from where a large body gets its place (``Places``): who is slow must not keep others from it. Also for
    taking one answer of more than 64 KiB, which is ours to hold meanwhile."""
    idle_s: float = 120.0
    """Between two requests, and for taking an answer. Longer than the 60 to 75 s after which SDKs' own pools let an
    idle connection go, so that closing it is theirs and no request meets a closing socket."""
    linger_s: float = 2.0
    """For a client to read our last answer while what it still sends is thrown away. Closing at once would send a
    reset, and the reset can destroy the answer before it is read."""


class Places:
    """What bounds the memory of all connections that share it: each of both kinds has ``count`` places.

    ``large`` are bodies of ``LARGE_BYTES`` and more, from there to their answer; ``packed`` those that have to be
    inflated, whatever their size, from that to the answer: who has such a place is served, and cannot be slow.
    """

    LARGE_BYTES: Final = 64 * 1024

    def __init__(self, count: int) -> None:
        self.large = trio.CapacityLimiter(count)
        self.packed = trio.CapacityLimiter(count)


class Request(msgspec.Struct):
    """One complete request. A handler's is whole, de-chunked and inflated, and within the limits."""

    method: str
    path: str
    """As sent: not percent-decoded, slashes not folded, without the query."""
    query: str
    """What follows the ``?``, not decoded; empty without one."""
    headers: list[tuple[bytes, bytes]]
    """In the order of arrival, names in lower case, values without surrounding blanks. Trailers are not in it."""
    body: bytes
    http_version: str
    """``"1.1"`` or ``"1.0"``."""
    keep_alive: bool
    """Whether the client is ready for another request on this connection."""
    coding: bytes = b""
    """The Content-Encoding that is still to be undone, in lower case; empty once the handler has it."""

    def header(self, name: bytes) -> bytes | None:
        """The first value of the header ``name`` (in lower case), or None."""
        for key, value in self.headers:
            if key == name:
                return value
        return None


class Response(msgspec.Struct):
    """An answer. A streamed body (any async iterator of bytes) goes out chunk by chunk, then the connection closes.

    A streamed body that is an async generator is closed when its client goes away or it is finished.
    """

    status: int = 200
    body: bytes | AsyncIterator[bytes] = b""
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()
    close: bool = False
    """Close the connection after this answer, and say so in it."""


class Hangup(msgspec.Struct, frozen=True):
    """In place of an answer: close the connection without one; with ``reset`` so that the client sees a TCP reset."""

    reset: bool = False


class Raw(msgspec.Struct, frozen=True):
    """In place of an answer: exactly these bytes, at the pace the iterator gives them, then the end. For faults."""

    parts: AsyncIterator[bytes]


class Refused(msgspec.Struct, frozen=True):
    """Why nothing more is read from a connection: the arguments of ``Refuse``."""

    code: str
    message: str
    status: int


BUSY: Final = Refused("busy", "The server is busy with the requests of others; send this one again.", 503)
"""Of a request that came in time and waited for us in vain."""


def body_too_large(max_body_bytes: int) -> Refused:
    """Of a body as received, and as inflated."""
    return Refused("too_large", f"The body is larger than {max_body_bytes} bytes; send it in smaller parts.", 413)


Handler = Callable[[Request], Awaitable[Response | Hangup | Raw]]

Refuse = Callable[[str, str, int], Response]
"""``refuse(code, message, status)`` words the answer to a request that never reaches the handler.

The codes, with HTTP's own status for each: ``bad_request`` 400, ``too_large`` 413 (body, also once inflated),
``headers_too_large`` 431, ``bad_encoding`` 400 (a gzip body that is none) or 415 (another Content-Encoding),
``timeout`` 408 (header or body deadline), ``internal`` 500 (the handler raised). The message is one sentence for a
person; the returned response may have another status; the connection is closed after it in any case.
"""


def plain_refusal(code: str, message: str, status: int) -> Response:
    """The refusal of a server that has no wording of its own: one line of text."""
    return Response(status, f"{code}: {message}\n".encode(), "text/plain; charset=utf-8")
