"""Bytes in, requests out: HTTP/1.1 framing without any I/O.

Theory
------
``feed`` takes what a socket gave, in pieces of any size, and leaves complete requests in ``ready``, in order; how the
bytes were cut makes no difference. httptools (llhttp) does the syntax; the rules here are those it leaves open:

* The first thing that is wrong ends it: ``refused`` holds why, and all requests before it are still in ``ready``.
* Two answers to "where does the body end" are a way to smuggle a request past a proxy, so Content-Length together with
  Transfer-Encoding, two of either, any coding but ``chunked`` and several Host headers are refused (RFC 9112 3.2,
  6.1, 6.3).
* A request without Host is let through, whatever RFC 9112 3.2 says: whoever types one into nc leaves it out, and whether
  the host matters is for the handler to say.
* Memory is bounded: bodies by their limit, checked before they are kept; headers and trailers by what was fed since the
  message began, since httptools holds an unfinished header itself. Bodies are left as they came: ``coding.py``.
* ``Upgrade`` is ignored, as RFC 9110 7.8 allows (Java's client offers h2c with every first request). httptools would
  take the body of such a request for the other protocol, so it is given the head again without that header.
"""

from collections import deque
from enum import Enum
from functools import lru_cache
from typing import NoReturn

import httptools

from sidecar.http.message import Limits, Refused, Request, body_too_large

__all__ = ["Phase", "Reader"]

_WATCHED = frozenset({b"content-length", b"transfer-encoding", b"content-encoding", b"expect", b"host"})


class Phase(Enum):
    """What the reader is in the middle of."""

    IDLE = "between requests"
    HEAD = "in a request line or header"
    BODY = "in a body or trailer"


class _Stop(Exception):
    """Leaves httptools from within a callback; ``Reader.refused`` says why."""


class Reader:
    """The receiving half of one connection."""

    __slots__ = (
        "_body",
        "_body_follows",
        "_buffer",
        "_continue",
        "_encoding",
        "_head_bytes",
        "_headers",
        "_host",
        "_length",
        "_limits",
        "_parser",
        "_target",
        "_transfer",
        "_unfinished_bytes",
        "_version",
        "phase",
        "ready",
        "refused",
    )

    def __init__(self, limits: Limits) -> None:
        self.ready: deque[Request] = deque()
        self.refused: Refused | None = None
        self.phase = Phase.IDLE
        self._limits = limits
        self._parser = httptools.HttpRequestParser(self)
        self._unfinished_bytes = 0
        self._reset()

    def _reset(self) -> None:
        self._target = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._head_bytes = 0
        self._body = b""
        self._buffer: bytearray | None = None
        self._length: bytes | None = None
        self._transfer: bytes | None = None
        self._encoding: bytes | None = None
        self._host = False
        self._continue = False
        self._version = "1.1"
        self._body_follows = False

    def feed(self, data: bytes) -> None:
        """Read ``data``. Never raises for any bytes; after ``refused`` is set, bytes are thrown away."""
        if self.refused is not None:
            return
        self._unfinished_bytes += len(data)  # taken back by every callback that shows progress
        try:
            self._execute(data)
        except _Stop:
            return
        if self._unfinished_bytes > self._limits.max_header_bytes and self.phase is not Phase.IDLE:
            self.refused = self._headers_too_large()

    @property
    def body_bytes(self) -> int:
        """How much there is of a body that is not whole yet."""
        return len(self._body if self._buffer is None else self._buffer)

    def take_continue(self) -> bool:
        """Whether the client waits for ``100 Continue`` before it sends its body; true once per request."""
        if not self._continue or self.phase is not Phase.BODY or self.refused is not None:
            return False
        self._continue = False
        return True

    def _execute(self, data: bytes) -> None:
        while data:
            try:
                self._parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                data = data[upgrade.args[0] :]
                if self.phase is Phase.BODY:
                    data = self._head_without_upgrade() + data
            except httptools.HttpParserCallbackError as error:
                if isinstance(error.__context__, _Stop):
                    raise error.__context__ from None
                raise  # a mistake in this file, not in the bytes
            except httptools.HttpParserError as error:
                reason = str(error).rstrip(".") or type(error).__name__
                self._stop("bad_request", f"This is not an HTTP request: {reason}.", 400)

    def _head_without_upgrade(self) -> bytes:
        first = b"%b %b HTTP/%b\r\n" % (
            self._parser.get_method(),
            self._target,
            self._parser.get_http_version().encode(),
        )
        kept = (b"%b: %b\r\n" % header for header in self._headers if header[0] != b"upgrade")
        head = first + b"".join(kept) + b"\r\n"
        self._reset()
        return head

    def _stop(self, code: str, message: str, status: int) -> NoReturn:
        self.refused = Refused(code, message, status)
        raise _Stop

    def _headers_too_large(self) -> Refused:
        limits = self._limits
        what = f"the limit is {limits.max_header_bytes} bytes and {limits.max_headers} headers"
        return Refused("headers_too_large", f"The request has too many header bytes; {what}.", 431)

    # What httptools calls, in this order.

    def on_message_begin(self) -> None:
        """A request begins. What the last one has not touched is as it should be."""
        self._unfinished_bytes = 0
        self.phase = Phase.HEAD

    def on_url(self, url: bytes) -> None:
        """The request target, or a piece of it."""
        self._target = self._target + url if self._target else url

    def on_header(self, name: bytes, value: bytes) -> None:
        """A whole header or, behind a chunked body, a trailer."""
        self._head_bytes += len(name) + len(value) + 4
        if self.phase is Phase.BODY:
            return  # trailers are counted and dropped: no handler has a use for them
        name = name.lower()
        self._headers.append((name, value.rstrip()))
        if name in _WATCHED:
            self._watch(name, value)

    def _watch(self, name: bytes, value: bytes) -> None:
        if name == b"content-length":
            if self._length is not None:
                self._stop("bad_request", "The request has two Content-Length headers; send one.", 400)
            self._length = value
        elif name == b"host":
            if self._host:
                self._stop("bad_request", "The request has two Host headers; send one.", 400)
            self._host = True
        elif name == b"transfer-encoding":
            if self._transfer is not None or value.rstrip().lower() != b"chunked":
                self._stop("bad_request", "Only one Transfer-Encoding is understood: chunked.", 400)
            self._transfer = value
        elif name == b"content-encoding":
            self._encoding = value if self._encoding is None else self._encoding + b"," + value
        elif value.strip().lower() == b"100-continue":
            self._continue = True

    def on_headers_complete(self) -> None:
        """The blank line."""
        self.phase = Phase.BODY
        self._unfinished_bytes = 0
        limits = self._limits
        if self._head_bytes + len(self._target) > limits.max_header_bytes or len(self._headers) > limits.max_headers:
            self.refused = self._headers_too_large()
            raise _Stop
        version = self._version = self._parser.get_http_version()
        if version not in ("1.1", "1.0"):
            self._stop("bad_request", f"HTTP/{version} is not spoken here; use HTTP/1.1.", 400)
        if self._parser.should_upgrade():
            if self._parser.get_method() == b"CONNECT":
                self._stop("bad_request", "This is not a proxy; ask it for a path.", 400)
            self._body_follows = self._transfer is not None or self._length not in (None, b"0")
        if self._transfer is not None and (self._length is not None or version == "1.0"):
            self._stop("bad_request", "Transfer-Encoding cannot go with Content-Length or HTTP/1.0; send one.", 400)
        if self._length is not None and int(self._length) > limits.max_body_bytes:
            self._body_too_large()
        if version == "1.0":
            self._continue = False  # such a client does not know what 100 means (RFC 9110 10.1.1)

    def _body_too_large(self) -> NoReturn:
        self.refused = body_too_large(self._limits.max_body_bytes)
        raise _Stop

    def on_body(self, piece: bytes) -> None:
        """A piece of the body, de-chunked."""
        self._unfinished_bytes = 0
        self._continue = False
        if self._buffer is not None:
            if len(self._buffer) + len(piece) > self._limits.max_body_bytes:
                self._body_too_large()
            self._buffer += piece
        elif self._body:
            # From the second piece on one growing buffer: a list of tiny chunks would weigh many times their bytes.
            self._buffer = bytearray(self._body)
            self.on_body(piece)
        elif len(piece) > self._limits.max_body_bytes:
            self._body_too_large()
        else:
            self._body = piece

    def on_message_complete(self) -> None:
        """The request is whole."""
        if self._body_follows:
            return  # an upgrade was offered, and httptools left the body out: see _execute
        if self._head_bytes > self._limits.max_header_bytes:
            self.refused = self._headers_too_large()
            raise _Stop
        body = self._body if self._buffer is None else bytes(self._buffer)
        coding = b"" if self._encoding is None else self._encoding.strip().lower()
        path, query, host = _split_target(self._target)
        if host is not None:
            # The target's authority outranks the Host header (RFC 9112 3.2.2), so who checks Host must see it there.
            self._headers = [header for header in self._headers if header[0] != b"host"]
            self._headers.append((b"host", host))
        parser = self._parser
        method = _METHODS.get(parser.get_method()) or parser.get_method().decode("ascii")
        keep_alive = parser.should_keep_alive()
        self.ready.append(Request(method, path, query, self._headers, body, self._version, keep_alive, coding))
        self._reset()
        self.phase = Phase.IDLE


_METHODS = {method.encode(): method for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH")}


@lru_cache(maxsize=256)
def _split_target(target: bytes) -> tuple[str, str, bytes | None]:
    """Path, query and, for an absolute target, the authority. Clients send the same few targets: cached."""
    host = None
    if not target.startswith(b"/") and b"://" in target:
        authority, slash, rest = target.split(b"://", 1)[1].partition(b"/")
        host, target = authority.rpartition(b"@")[2], slash + rest or b"/"
    path, _, query = target.decode("latin-1").partition("?")
    return path, query, host
