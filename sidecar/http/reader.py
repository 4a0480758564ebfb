"""HTTP/1.1 framing without I/O: bytes in, requests out.

Theory
------
``feed`` takes what a socket gave, in pieces of any size, and appends complete requests to ``ready``, in order. How the
bytes were cut makes no difference. httptools (llhttp) parses the syntax; the rules here are those that it leaves open:

* The first error ends the connection: ``refused`` holds the reason, and all requests before it are still in ``ready``.
* A request whose end two parsers may see at different bytes can smuggle a second request past a proxy. Therefore
  Content-Length together with Transfer-Encoding, two of either, any coding but ``chunked`` and several Host headers are
  refused (RFC 9112 3.2, 6.1, 6.3, 11.2).
* A request without Host is accepted, although RFC 9112 3.2 asks for 400: requests that are typed into nc lack it. The
  handler decides whether the host matters.
* Memory is bounded: a body by its limit, checked before the bytes are kept; headers and trailers by the bytes fed since
  the message began, because httptools holds an unfinished header itself. Bodies stay encoded: see ``coding.py``.
* ``Upgrade`` is ignored, as RFC 9110 7.8 allows (Java's client offers h2c with each first request). httptools would
  take the body of such a request for bytes of the new protocol, so the head is parsed again without that header.
"""

import re
from enum import Enum
from functools import lru_cache
from typing import Any, Final, NoReturn

import httptools

from sidecar.http.message import Limits, Refusal, Request, body_too_large

__all__ = ["Phase", "Reader"]

# The scheme and the authority of an absolute target; a query may follow the authority at once (RFC 3986 3.2).
_ABSOLUTE: Final = re.compile(rb"[^/?]*://([^/?]*)")
_SHORT_TARGET_BYTES: Final = 256
_FRAMING_HEADERS = frozenset({b"content-length", b"transfer-encoding", b"content-encoding", b"expect", b"host"})


# What a request occupies beside its body: the objects of its line and of a few headers.
REQUEST_BYTES: Final = 2_000


class Phase(Enum):
    """The part of a request that the next byte belongs to."""

    IDLE = "between requests"
    HEAD = "in a request line or header"
    BODY = "in a body or trailer"


class _ParsingRefused(Exception):
    """Leaves httptools from within a callback; ``Reader.refused`` holds the reason."""


class Reader:
    """The receiving half of one connection."""

    __slots__ = (
        "_begun_in_bytes",
        "_body",
        "_buffer",
        "_content_encoding",
        "_content_length",
        "_expects_continue",
        "_fed_bytes",
        "_head_bytes",
        "_headers",
        "_host_seen",
        "_limits",
        "_parser",
        "_skipped_body",
        "_target",
        "_transfer_encoding",
        "_unfinished_bytes",
        "_version",
        "phase",
        "ready",
        "refused",
    )

    def __init__(self, limits: Limits) -> None:
        self.ready: list[Request] = []
        self.refused: Refusal | None = None
        self.phase = Phase.IDLE
        self._limits = limits
        # There only while a request arrives: it is a sixth of what a connection costs that sends nothing.
        self._parser: Any = None
        self._unfinished_bytes = self._fed_bytes = self._begun_in_bytes = 0
        self._reset()

    def _reset(self) -> None:
        """Clear the state of one message."""
        self._target = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._head_bytes = 0
        self._body = b""
        self._buffer: bytearray | None = None
        self._content_length: bytes | None = None
        self._transfer_encoding: bytes | None = None
        self._content_encoding: bytes | None = None
        self._host_seen = False
        self._expects_continue = False
        self._version = "1.1"
        self._skipped_body = False

    def feed(self, data: bytes) -> None:
        """Parse ``data``. Never raises, whatever the bytes; once ``refused`` is set, bytes are discarded."""
        if self.refused is not None or not data:
            return
        if self._parser is None:
            self._parser = httptools.HttpRequestParser(self)
        # Reset by each callback that shows progress. What remains is a header or chunk line that httptools holds.
        self._unfinished_bytes += len(data)
        self._fed_bytes = len(data)
        try:
            self._parse(data)
        except _ParsingRefused:
            return
        if self.phase is Phase.IDLE and self.ready and self.ready[-1].keep_alive:
            self._parser = None  # after the last request of a connection it stays, and refuses what follows
        if self._unfinished_bytes > self._limits.max_header_bytes and self.phase is not Phase.IDLE:
            self.refused = self._headers_too_large()

    @property
    def body_bytes(self) -> int:
        """Bytes received of a body that is not complete yet."""
        return len(self._body if self._buffer is None else self._buffer)

    @property
    def reservable_bytes(self) -> int:
        """Bytes to reserve for the body that is being read: as announced, else the limit; with space to inflate it."""
        limit = self._limits.max_body_bytes
        size_bytes = limit if self._content_length is None else int(self._content_length)
        return size_bytes + limit if self._is_encoded() else size_bytes

    def _is_encoded(self) -> bool:
        first = self._body if self._buffer is None else self._buffer
        return self._content_encoding is not None or (self._limits.lenient_coding and first[:1] in (b"\x1f", b"\x78"))

    @property
    def unfinished_bytes(self) -> int:
        """About the bytes that an incomplete request occupies: its headers cost several objects each."""
        # httptools does not report where in a piece the request begins: all of that piece counts until the head is complete.
        begun_bytes = self._begun_in_bytes if self.phase is Phase.HEAD else 0
        return begun_bytes + self._unfinished_bytes + 2 * self._head_bytes + len(self._target) + self.body_bytes

    @property
    def held_bytes(self) -> int:
        """About the bytes that all requests here occupy: complete ones, and the incomplete one."""
        complete = sum([len(request.body) + REQUEST_BYTES for request in self.ready])
        return complete if self.phase is Phase.IDLE else complete + self.unfinished_bytes + REQUEST_BYTES

    def discard(self, why: Refusal) -> None:
        """Drop all requests and refuse what follows."""
        self.ready.clear()
        self._reset()
        self.refused = why

    def close(self) -> None:
        """Let go of the parser, whose callbacks refer to this object; nothing can be fed any more."""
        self._parser = None

    def take_continue(self) -> bool:
        """Return whether the client waits for ``100 Continue`` before it sends its body; True once per request."""
        if not self._expects_continue or self.phase is not Phase.BODY or self.refused is not None:
            return False
        self._expects_continue = False
        return True

    def _parse(self, data: bytes) -> None:
        while data:
            try:
                self._parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                # httptools stops after the head. Continue with the bytes that it did not parse; if a body follows,
                # parse the head again without Upgrade, so that httptools reads the body by its framing.
                data = data[upgrade.args[0] :]
                if self.phase is Phase.BODY:
                    data = self._head_without_upgrade() + data
            except httptools.HttpParserCallbackError as error:
                if isinstance(error.__context__, _ParsingRefused):
                    raise error.__context__ from None
                raise  # a defect of this file, not of the bytes
            except httptools.HttpParserError as error:
                reason = str(error).rstrip(".") or type(error).__name__
                self._refuse("bad_request", f"The request is not valid HTTP: {reason}; send HTTP/1.1.", 400)

    def _head_without_upgrade(self) -> bytes:
        first = b"%b %b HTTP/%b\r\n" % (
            self._parser.get_method(),
            self._target,
            self._parser.get_http_version().encode(),
        )
        kept = (b"%b: %b\r\n" % header for header in self._headers if header[0] != b"upgrade")
        head = first + b"".join(kept) + b"\r\n"
        # Of its own: after a head with "Connection: close", or of HTTP/1.0, the first one takes nothing more.
        self._parser = httptools.HttpRequestParser(self)
        self._reset()
        return head

    def _refuse(self, code: str, message: str, status: int) -> NoReturn:
        self.refused = Refusal(code, message, status)
        raise _ParsingRefused

    def _headers_too_large(self) -> Refusal:
        limits = self._limits
        allowed = f"at most {limits.max_headers} headers in {limits.max_header_bytes} bytes"
        return Refusal("headers_too_large", f"The headers of the request are too large; send {allowed}.", 431)

    # Callbacks of httptools, in the order in which it calls them.

    def on_message_begin(self) -> None:
        """Begin a request. ``_reset`` has cleared the state after the previous one."""
        self._unfinished_bytes = 0
        self._begun_in_bytes = self._fed_bytes
        self.phase = Phase.HEAD

    def on_url(self, url: bytes) -> None:
        """Append a piece of the request target."""
        self._target = self._target + url if self._target else url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a complete header or, after a chunked body, count a trailer."""
        self._head_bytes += len(name) + len(value) + 4  # ": " and the line end
        if self.phase is Phase.BODY:
            return  # trailers are dropped: no handler uses them, and they must not override headers (RFC 9110 6.5.1)
        name = name.lower()
        self._headers.append((name, value.rstrip()))
        if name in _FRAMING_HEADERS:
            self._check_framing_header(name, value)

    def _check_framing_header(self, name: bytes, value: bytes) -> None:
        """Record a header that frames the message; refuse what two parsers could read in two ways."""
        if name == b"content-length":
            if self._content_length is not None:
                self._refuse("bad_request", "The request has two Content-Length headers; send one.", 400)
            self._content_length = value
        elif name == b"host":
            if self._host_seen:
                self._refuse("bad_request", "The request has two Host headers; send one.", 400)
            self._host_seen = True
        elif name == b"transfer-encoding":
            if self._transfer_encoding is not None or value.rstrip().lower() != b"chunked":
                self._refuse("bad_request", "The Transfer-Encoding is not supported; send chunked, once.", 400)
            self._transfer_encoding = value
        elif name == b"content-encoding":
            # Joined as RFC 9110 5.2 says: two headers "gzip" become "gzip,gzip", which is refused like any unknown one.
            self._content_encoding = value if self._content_encoding is None else self._content_encoding + b"," + value
        elif value.strip().lower() == b"100-continue":
            self._expects_continue = True

    def on_headers_complete(self) -> None:
        """Check the head at its blank line: its size, its version, and where the body ends."""
        self.phase = Phase.BODY
        self._unfinished_bytes = 0
        limits = self._limits
        if self._head_bytes + len(self._target) > limits.max_header_bytes or len(self._headers) > limits.max_headers:
            self.refused = self._headers_too_large()
            raise _ParsingRefused
        version = self._version = self._parser.get_http_version()
        if version not in ("1.1", "1.0"):
            self._refuse("bad_request", f"HTTP/{version} is not supported; use HTTP/1.1.", 400)
        if self._parser.should_upgrade():
            if self._parser.get_method() == b"CONNECT":
                self._refuse("bad_request", "CONNECT is not supported, this is not a proxy; request a path.", 400)
            self._skipped_body = self._transfer_encoding is not None or self._content_length not in (None, b"0")
        if self._transfer_encoding is not None and (self._content_length is not None or version == "1.0"):
            self._refuse(
                "bad_request", "Transfer-Encoding cannot go with Content-Length or HTTP/1.0; send one of them.", 400
            )
        if self._content_length is not None and int(self._content_length) > limits.max_body_bytes:
            self._refuse_body()  # before the body is read: a client that sent Expect never sends it
        if version == "1.0":
            self._expects_continue = False  # an HTTP/1.0 client does not know 100 (RFC 9110 10.1.1)

    def _refuse_body(self) -> NoReturn:
        self.refused = body_too_large(self._limits.max_body_bytes)
        raise _ParsingRefused

    def on_body(self, piece: bytes) -> None:
        """Append a piece of the body, already de-chunked; the limit is checked before the piece is kept."""
        self._unfinished_bytes = 0
        self._expects_continue = False  # the client did not wait
        if self._buffer is not None:
            if len(self._buffer) + len(piece) > self._limits.max_body_bytes:
                self._refuse_body()
            self._buffer += piece
        elif self._body:
            # From the second piece on, one growing buffer: a list of tiny chunks would take many times their bytes.
            self._buffer = bytearray(self._body)
            self.on_body(piece)
        elif len(piece) > self._limits.max_body_bytes:
            self._refuse_body()
        else:
            self._body = piece  # most bodies arrive in one piece and are never copied

    def on_message_complete(self) -> None:
        """Append the complete request to ``ready``."""
        if self._skipped_body:
            return  # an upgrade was offered, and httptools skipped the body: _parse reads the message again
        if self._head_bytes > self._limits.max_header_bytes:  # again, because trailers have been added
            self.refused = self._headers_too_large()
            raise _ParsingRefused
        body = self._body if self._buffer is None else bytes(self._buffer)
        coding = b"" if self._content_encoding is None else self._content_encoding.strip().lower()
        path, query, host = _split_target(self._target)
        if host is not None:
            # The target's authority outranks the Host header (RFC 9112 3.2.2): a check of Host must see the authority.
            self._headers = [header for header in self._headers if header[0] != b"host"]
            self._headers.append((b"host", host))
        parser = self._parser
        method = _METHODS.get(parser.get_method()) or parser.get_method().decode("ascii")
        keep_alive = parser.should_keep_alive()
        self.ready.append(Request(method, path, query, self._headers, body, self._version, keep_alive, coding))
        self._reset()
        self.phase = Phase.IDLE


_METHODS = {method.encode(): method for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH")}


def _split_target(target: bytes) -> tuple[str, str, bytes | None]:
    """Return the path, the query and, for an absolute target (RFC 9112 3.2.2), the authority."""
    # Only short ones are kept: 256 of the longest would hold 16 MB that no client accounts for.
    return _split_short(target) if len(target) <= _SHORT_TARGET_BYTES else _split(target)


def _split(target: bytes) -> tuple[str, str, bytes | None]:
    host = None
    if (absolute := _ABSOLUTE.match(target)) is not None:
        host = absolute[1].rpartition(b"@")[2]
        target = target[absolute.end() :]
        target = target if target.startswith(b"/") else b"/" + target
    path, _, query = target.decode("latin-1").partition("?")
    return path, query, host


_split_short = lru_cache(maxsize=256)(_split)  # clients repeat a few targets
