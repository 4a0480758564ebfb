"""The types that the server and a handler exchange: requests, responses, and the limits of both."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

import msgspec

__all__ = [
    "BUSY",
    "Handler",
    "Hangup",
    "Limits",
    "Raw",
    "Refusal",
    "Refuse",
    "Request",
    "Response",
    "body_too_large",
    "plain_refusal",
]


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes and times that one connection may use (sidecar/http/README.md#limits).

    A client that stays inside them occupies nothing but its own buffer.
    """

    max_header_bytes: int = 32 * 1024
    """Request line, headers and trailers: four times what common servers accept, and cheap to hold."""
    max_headers: int = 100
    """Header lines of a request: SDKs and proxies send fewer than 40."""
    max_body_bytes: int = 5 * 1024 * 1024
    """A body as received, and again after inflating it."""
    header_s: float = 10.0
    """The time from the first byte of a request to its blank line: one packet for every well-behaved client."""
    body_s: float = 30.0
    """The time from the blank line to the end of the body: 5 MiB at 175 kB/s."""
    large_s: float = 5.0
    """The time from the reservation of a large body to its end while others wait for one: a slow client must not keep the memory
    from them. Also for taking one answer of more than 64 KiB, which this process holds meanwhile."""
    idle_s: float = 120.0
    """Between two requests, and for taking an answer. Longer than the 60 to 75 s after which the connection pools of
    SDKs drop an idle connection, so that the client closes first and no request meets a closing socket."""
    lenient_coding: bool = False
    """True if the first bytes of a body say how it is encoded, whatever its Content-Encoding (``coding.py``)."""
    linger_s: float = 2.0
    """The time for a client to read the final response, while the bytes that it still sends are discarded. Closing at once would
    send a reset, and a reset can destroy the response before the client reads it (RFC 9112 9.6)."""


class Request(msgspec.Struct):
    """One complete request. A handler gets it de-chunked, inflated, and within the limits."""

    method: str
    path: str
    """The path as sent: not percent-decoded, repeated slashes kept, without the query."""
    query: str
    """The text after the ``?``, not decoded; empty if there is none."""
    headers: list[tuple[bytes, bytes]]
    """Headers in the order of arrival, names in lower case, values without surrounding blanks. Trailers are not included."""
    body: bytes
    http_version: str
    """``"1.1"`` or ``"1.0"``."""
    keep_alive: bool
    """True if the client accepts further requests on this connection."""
    coding: bytes = b""
    """The Content-Encoding that is still to be decoded, in lower case; empty when the handler gets the request."""

    def header(self, name: bytes) -> bytes | None:
        """Return the first value of the header ``name`` (in lower case), or None."""
        for key, value in self.headers:
            if key == name:
                return value
        return None


class Response(msgspec.Struct):
    """An answer. A streamed body (any async iterator of bytes) is sent chunk by chunk, then the connection closes.

    A streamed body that is an async generator is closed when it is finished or its client disconnects.
    """

    status: int = 200
    body: bytes | AsyncIterator[bytes] = b""
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()
    close: bool = False
    """Close the connection after this answer, and announce it with ``Connection: close``."""


class Hangup(msgspec.Struct, frozen=True):
    """Stands for an answer: close the connection; with ``reset``, so that the client sees a TCP reset."""

    reset: bool = False


class Raw(msgspec.Struct, frozen=True):
    """Stands for an answer: send exactly these bytes, at the pace of the iterator, then close. For injected faults."""

    parts: AsyncIterator[bytes]


class Refusal(msgspec.Struct, frozen=True):
    """The reason why nothing more is read from a connection: the arguments of ``Refuse``."""

    code: str
    message: str
    status: int


# For a request that does not fit into the memory for clients (``budget.py``): not the fault of this client.
BUSY: Final = Refusal("busy", "The server is busy with other requests; retry this one.", 503)


def body_too_large(max_body_bytes: int) -> Refusal:
    """Return the refusal of a body that exceeds the limit, as received or after inflating.

    ``Routes.refuse`` (sidecar/receive/routes.py) appends to its message which key raises the limit.
    """
    return Refusal("too_large", f"The body is larger than {max_body_bytes} bytes; send it in smaller parts.", 413)


Handler = Callable[[Request], Awaitable[Response | Hangup | Raw]]

Refuse = Callable[[str, str, int], Response]
"""``refuse(code, message, status)`` builds the answer to a request that never reaches the handler.

The codes, with the status that HTTP has for each: ``bad_request`` 400, ``too_large`` 413 (the body as received, or
inflated), ``headers_too_large`` 431, ``bad_encoding`` 400 (invalid gzip) or 415 (another Content-Encoding), ``timeout``
408 (header or body deadline), ``busy`` 503 (it did not fit into the memory for clients), ``internal`` 500 (the handler raised). The message is
one sentence for a person. The returned response may have another status. The connection closes after it in any case.
"""


def plain_refusal(code: str, message: str, status: int) -> Response:
    """Return a refusal as one line of text, for servers without a format of their own."""
    return Response(status, f"{code}: {message}\n".encode(), "text/plain; charset=utf-8")
