"""A lane's own connection to PX: one ``httpcore`` HTTP/1.1 connection over a stream of this module.

Theory
------
* **One connection, no pool.** ``httpcore.AsyncHTTP11Connection`` is the engine that httpx uses; its pool and httpx's
  layers above cost as much again and do nothing for a sender with one origin. Both classes are public API.
* **One write per request.** httpcore writes head and body separately. ``WireStream`` collects them until the answer is
  read, so that a request is one system call and one segment, and its departure is one moment.
* **The moment of departure** counts against the ceiling (sidecar/deliver/README.md#pace). The stream asks
  ``Departure.due_s`` right before the write, when the connection is there, and reports ``left`` right after it.
* **The status line decides.** PX answers 201 or 204 after it has taken the event. What follows may be cut off or broken
  (an illegal header line, two lengths, an unknown coding, bytes after the body): h11 refuses such an answer as a whole
  (https://www.rfc-editor.org/rfc/rfc9112#section-6.3), but sending the event again would repeat it for as long as the
  server answers so. The stream keeps the first bytes received, and ``read_leniently`` reads them if h11 cannot. Such a
  connection is closed.
* **Bytes after the body** would be taken for the answer to the next request. A connection is reused only if what was
  received ends exactly where the answer does.
* **A connection lives at most ``LIFE_S``.** Under load a connection would otherwise live for days, and a change of DNS
  would never be followed. Lives are spread, so that lanes opened together are not renewed together. Ages are measured
  with ``CLOCK_BOOTTIME``: they pass while the process is stopped or the host suspended.
* **Idle connections** are not reused after 4 s, time in suspend included. Of the common servers, Node.js closed them
  earliest, after 5 s, until it changed to 65 s (https://github.com/nodejs/node/commit/e470c74a6c). If a server closes while
  a request is on its way, the outcome is unknown, not "not sent": the server may have read it.
* **Frozen process.** When a stopped process runs again, the deadline of its requests has passed and their answers have
  arrived. Reading the answer first is the loop's work (``sidecar.clock.FreezeClock``); here an answer that arrived in one
  piece is taken without another checkpoint, so that no deadline can come between.
"""

import errno
import re
import resource
import select
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator, Sequence
from random import Random
from typing import Any, Final

import httpcore
import trio

from sidecar.clock import boot_s
from sidecar.http.fast_path import fast_path
from sidecar.px.answers import NotSent, PxAnswer, Reply, Unknown
from sidecar.px.network import AT_ONCE, Departure, wait_until_due
from sidecar.px.requests import PxRequest

__all__ = [
    "BODY_MAX_BYTES",
    "ConnectFailed",
    "DirectLane",
    "WireStream",
    "causes_of",
    "ends_exactly",
    "innermost_text",
    "read_leniently",
    "says_delivered",
]

BODY_MAX_BYTES: Final = 64 * 1024  # of an answer
KEEPALIVE_S: Final = 4.0
LIFE_S: Final = 60.0
CLOSE_TIMEOUT_S: Final = 2.0
# For what follows the status line of a delivery: worth reading only to keep the connection.
REST_S: Final = 2.0
KEPT_BYTES: Final = BODY_MAX_BYTES + 16 * 1024  # of an answer as received; its head may take 16 KiB

# Any version, and blanks as RFC 9112 section 4 lets a lenient recipient read them: h11 refuses such a line.
_STATUS = re.compile(rb"(?i)\s*HTTP/\d(?:\.\d)?[ \t]+([1-9][0-9][0-9])(?=[ \t\r\n])")
_BLANK_LINE = re.compile(rb"\r?\n\r?\n")
_CONNECTING = re.compile(r"Error connecting to \('(.+?)', (\d+)[^)]*\)")  # trio's words
_DELIVERED = (201, 204)

Headers = Sequence[tuple[bytes, bytes]]


class ConnectFailed(Exception):
    """No connection could be made; ``reply`` says why. Nothing of the request has left."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply)
        self.reply = reply


class WireStream(httpcore.AsyncNetworkStream):
    """The network stream below httpcore: one write per request, and a copy of what was received.

    ``begin`` starts an exchange. ``sent`` is true once a byte of the request may have left.
    """

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._receive_some, self._send_all, _ = fast_path(stream)
        self._outgoing = bytearray()
        self._departure: Departure = AT_ONCE
        self._scope = trio.CancelScope()
        self._status: int | None = None
        self._closed = False
        self.received = bytearray()
        self.sent = False

    def begin(self, departure: Departure, scope: trio.CancelScope) -> None:
        """Start an exchange within ``scope``, whose deadline is shortened once the rest of the answer matters little."""
        self._outgoing.clear()
        self._departure, self._scope, self._status = departure, scope, None
        self.received = bytearray()
        self.sent = False

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002
        """Collect; ``read`` sends everything in one piece."""
        self._outgoing += buffer

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002
        """Send what was collected, then receive."""
        if self._outgoing:
            await self._flush()
        if self._closed:
            raise httpcore.ReadError("the connection was closed here")
        try:
            data = bytes(await self._receive_some(max_bytes))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise httpcore.ReadError(str(error)) from error
        # Bounded: a peer that sends without end must not fill memory. Beyond it the connection is not used again.
        if len(self.received) < KEPT_BYTES:
            self.received += data
            if self._status is None:
                self._note_status()
        return data

    def _note_status(self) -> None:
        found = final_status(self.received)
        if found is not None:
            self._status = found[0]
            # Delivered: a server that then stalls must not hold the user's next event for the whole timeout.
            if self._status in _DELIVERED:
                self._scope.deadline = min(self._scope.deadline, trio.current_time() + REST_S)

    async def _flush(self) -> None:
        # After connecting and after the request is complete: nothing but the system call lies between permission and departure.
        await wait_until_due(self._departure)
        data = bytes(self._outgoing)
        self._outgoing.clear()
        # Before the call: a cancelled or failed write may have sent a part, and the outcome is unknown from here on.
        self.sent = True
        try:
            await self._send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            # The server may have answered early and closed: what it said is still to be read.
            pass
        finally:
            # Also after a failure: a part may have left, and the ceiling counts it.
            self._departure.left()

    async def aclose(self) -> None:
        """Close without waiting for the peer."""
        self._closed = True
        await self._stream.aclose()

    def get_extra_info(self, info: str) -> Any:
        """Answer httpcore's question before a reuse: is there anything to read, such as the end of the connection?"""
        if info != "is_readable":
            return None
        # The socket is asked, not the TLS layer, which would have to read to know.
        stream = self._stream.transport_stream if isinstance(self._stream, trio.SSLStream) else self._stream
        if not isinstance(stream, trio.SocketStream):
            return False
        poll = select.poll()
        poll.register(stream.socket.fileno(), select.POLLIN)
        return bool(poll.poll(0))


class DirectLane:
    """One connection to PX, opened by the first request and kept while its state is known.

    ``dial`` opens a stream or raises ConnectFailed. ``headers`` returns what is sent with each request to ``origin``.
    ``mask`` hides secrets in what the peer sends. ``timeout_s`` bounds one attempt. ``age_clock_s`` measures
    the age of a connection.
    """

    def __init__(
        self,
        dial: Callable[[], Awaitable[trio.abc.Stream]],
        origin: httpcore.URL,
        headers: Callable[[], Headers],
        *,
        timeout_s: float,
        mask: Callable[[bytes], bytes],
        age_clock_s: Callable[[], float] = boot_s,
    ) -> None:
        self._dial, self._origin, self._headers = dial, origin, headers
        self._timeout_s, self._mask, self._age_clock_s = timeout_s, mask, age_clock_s
        self._random = Random()  # noqa: S311 - spreads work, protects nothing
        self._urls: dict[str, httpcore.URL] = {}
        self._connection: httpcore.AsyncHTTP11Connection | None = None
        self._wire: WireStream | None = None
        self._renew_at_s = self._idle_until_s = 0.0
        self._busy = False

    def __repr__(self) -> str:
        connection = "no connection" if self._connection is None else "a connection"
        host = self._origin.host.decode()
        return f"<DirectLane to {host}, {'busy' if self._busy else 'idle'}, {connection}>"

    async def send(self, request: PxRequest, departure: Departure = AT_ONCE) -> Reply:
        """Send one request; see ``Lane``. A concurrent second call is a bug of the caller and fails an assertion."""
        assert not self._busy, "a lane carries one request at a time"
        # Not reusable until the exchange has ended well, wherever it may be interrupted.
        self._busy, reusable = True, False
        exchange = _Http11Exchange()
        try:
            with trio.move_on_after(self._timeout_s) as scope:
                reusable = await self._run(request, departure, exchange, scope)
                self._idle_until_s = self._age_clock_s() + KEEPALIVE_S
            return self._reply(exchange)
        except ConnectFailed as failed:
            return failed.reply
        finally:
            # Also after a cancellation from outside: a connection with half an exchange on it must not be used again.
            if not reusable:
                await self.aclose()
            self._busy = False

    async def aclose(self) -> None:
        """Close the connection; see ``Lane``. Shielded and bounded by 2 s, since it also runs during a cancellation."""
        # Forgotten before the close, which may be cut off: the next request must not find it.
        connection, self._connection, self._wire = self._connection, None, None
        if connection is not None:
            with trio.move_on_after(CLOSE_TIMEOUT_S, shield=True):
                await connection.aclose()

    async def _run(
        self, request: PxRequest, departure: Departure, exchange: "_Http11Exchange", scope: trio.CancelScope
    ) -> bool:
        """Send the request and record the progress in ``exchange``. Return whether the connection is reusable."""
        connection, wire = await self._connected()
        exchange.wire = wire
        wire.begin(departure, scope)
        try:
            response = await connection.handle_async_request(self._request(request))
            exchange.response = response
            async for part in response.aiter_stream():
                exchange.body += part
                # Leaving the loop would abandon httpcore's generators half-way. With the stream closed, the next read
                # fails instead, and all of them end in order.
                if len(exchange.body) > BODY_MAX_BYTES:
                    await wire.aclose()
            await response.aclose()
        except (httpcore.NetworkError, httpcore.ProtocolError) as error:
            exchange.error = error
            return False
        exchange.complete = True
        return connection.is_idle() and ends_exactly(wire.received, response.status, response.headers)

    async def _connected(self) -> tuple[httpcore.AsyncHTTP11Connection, WireStream]:
        if self._connection is not None and self._wire is not None:
            # httpcore counts idle time without that of a suspended host, during which the server may have closed.
            usable_until_s = min(self._renew_at_s, self._idle_until_s)
            if self._age_clock_s() < usable_until_s and not self._connection.has_expired():
                return self._connection, self._wire
            await self.aclose()
        # The fields are set after the dial: a cancellation in it leaves the lane without a connection, not with half of one.
        self._wire = WireStream(await self._dial())
        # Spread over a quarter of the life: lanes that were opened together must not be renewed together.
        self._renew_at_s = self._age_clock_s() + LIFE_S * self._random.uniform(0.75, 1.0)
        self._connection = httpcore.AsyncHTTP11Connection(self._origin.origin, self._wire, KEEPALIVE_S)
        return self._connection, self._wire

    def _request(self, request: PxRequest) -> httpcore.Request:
        url = self._urls.get(request.path)
        if url is None:
            origin = self._origin
            if len(self._urls) > 64:  # people calls have a path for each user
                self._urls.clear()
            url = self._urls[request.path] = httpcore.URL(
                scheme=origin.scheme, host=origin.host, port=origin.port, target=request.path.encode("ascii")
            )
        if request.method == "GET":
            return httpcore.Request(request.method, url, headers=self._headers())
        headers = [*self._headers(), (b"Content-Length", b"%d" % len(request.body))]
        return httpcore.Request(request.method, url, headers=headers, content=request.body)

    def _reply(self, exchange: "_Http11Exchange") -> Reply:
        # The order matters: once there is a status, neither an error nor the deadline changes the outcome.
        wire, response = exchange.wire, exchange.response
        # A status that httpcore has read, then one that only this module could read, then none.
        if response is not None:
            body = bytes(exchange.body[:BODY_MAX_BYTES])
            return self._answer(response.status, response.headers, body, complete=exchange.complete)
        if wire is not None and (answer := read_leniently(bytes(wire.received))) is not None:
            return self._answer(*answer, complete=False)
        # The departure is recorded before the first byte can leave, so this is certain.
        if wire is not None and not wire.sent and exchange.error is None:
            return NotSent(f"no permission within {self._timeout_s:g} s", held=True)
        if wire is None or not wire.sent:
            return NotSent(f"no connection within {self._timeout_s:g} s")
        if exchange.error is None:
            return Unknown(f"no answer within {self._timeout_s:g} s")
        return Unknown(self._mask(_describe(exchange.error).encode()).decode())

    def _answer(self, status: int, headers: Headers, body: bytes, *, complete: bool) -> PxAnswer:
        wanted: dict[bytes, bytes] = {}
        for name, value in headers:
            if name.lower() in (b"retry-after", b"content-type"):
                wanted.setdefault(name.lower(), self._mask(value))
        retry_after = wanted.get(b"retry-after")
        return PxAnswer(
            status,
            self._mask(body),
            None if retry_after is None else retry_after.decode("latin-1"),
            wanted.get(b"content-type", b"").decode("latin-1"),
            not complete,
        )


class _Http11Exchange:
    """The progress of one exchange. It lives outside of the exchanging code, which the deadline may end anywhere."""

    __slots__ = ("body", "complete", "error", "response", "wire")

    def __init__(self) -> None:
        self.wire: WireStream | None = None
        self.response: httpcore.Response | None = None
        self.error: Exception | None = None
        self.body = bytearray()
        self.complete = False


def final_status(received: bytes | bytearray) -> tuple[int, int] | None:
    """Return the status after all informational answers, and where in its line it stands; None while there is none."""
    at = 0
    while (line := _STATUS.match(received, at)) is not None:
        status = int(line[1])
        # 103 and the like announce an answer. 101 ends HTTP on the connection, so nothing follows it.
        if status >= 200 or status == 101:
            return status, line.start(1)
        end = _BLANK_LINE.search(received, line.end())
        if end is None:
            return None
        at = end.end()
    return None


def says_delivered(received: bytes | bytearray) -> bool:
    """Return whether the status line has arrived and says that the event is delivered, whatever follows it."""
    found = final_status(received)
    return found is not None and found[0] in _DELIVERED


def read_leniently(received: bytes) -> tuple[int, Headers, bytes] | None:
    """Return status, headers and body of an answer that is broken or cut off after its status line; None without one.

    Lines that are not headers are skipped; the body is everything after the first blank line, as it was received.
    """
    found = final_status(received)
    if found is None:
        return None
    status, at = found
    end = _BLANK_LINE.search(received, at)
    head, body = (received[at:], b"") if end is None else (received[at : end.start()], received[end.end() :])
    lines = (line.partition(b":") for line in head.split(b"\n")[1:])
    return status, [(name.strip(), value.strip()) for name, colon, value in lines if colon], body[:BODY_MAX_BYTES]


def ends_exactly(received: bytes | bytearray, status: int, raw_headers: Headers) -> bool:
    """Return whether nothing was received after the answer; bytes there would be taken for the next answer."""
    found = final_status(received)
    end = _BLANK_LINE.search(received, found[1]) if found else None
    if end is None or len(received) >= KEPT_BYTES:  # there may have been more than what is kept
        return False
    body = received[end.end() :]
    headers = {name.lower(): value for name, value in raw_headers}
    # No body, whatever its headers say (RFC 9110 section 15.3.5).
    if status == 204:
        return not body
    if b"transfer-encoding" in headers:
        # The first blank line must be the end of the last chunk. One within a chunk's data only costs a connection.
        return body.endswith(b"0\r\n\r\n") and body.find(b"\r\n\r\n") == len(body) - 4
    length = headers.get(b"content-length", b"")
    return length.isdigit() and len(body) == int(length)


def causes_of(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and what caused it, outermost first; of a group the first member."""
    cause: BaseException | None = error
    while isinstance(cause, Exception):
        if isinstance(cause, ExceptionGroup):
            cause = cause.exceptions[0]
        else:
            yield cause
            cause = cause.__cause__ or cause.__context__  # httpcore cuts the chain of causes; the contexts remain


def innermost_text(error: BaseException) -> str:
    """Return the text of the innermost cause that has one, as one line, without what only Python's users can read."""
    texts = [text for text in map(_own_text, causes_of(error)) if text]
    return " ".join(texts[-1].split())[:200] if texts else ""


def _own_text(error: BaseException) -> str:
    """Return the text of an error alone; of one of the system without its number."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return _CONNECTING.sub(r"\1 port \2", text)


def not_connected(error: BaseException, host: str) -> NotSent:
    """Return why there is no connection to ``host``, and what to do about it, by the error that prevented it."""
    causes = list(causes_of(error))
    text = innermost_text(error)
    why = f"connect error: {'' if host in text else f'{host}: '}{text}"
    if any(isinstance(cause, OSError) and cause.errno in (errno.EMFILE, errno.ENFILE) for cause in causes):
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        why = f"this host has no file descriptor left for another connection, the limit is {limit}"
        return NotSent(why, "raise LimitNOFILE in the unit, or `ulimit -n`")
    if any(isinstance(cause, socket.gaierror) for cause in causes):
        return NotSent(why, "check that name, and the name resolution (DNS) of this host")
    if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in causes):
        return NotSent(why, "check the clock of this host, and set px.ca_file if a proxy of your network inspects TLS")
    if any(isinstance(cause, ssl.SSLError) for cause in causes):
        return NotSent(why, "what answers there does not speak TLS as PX does; check px.base_url and px.proxy")
    return NotSent(why)


def _describe(error: Exception) -> str:
    """Return the error as one line: its kind, and its text or that of the cause."""
    text = " ".join((str(error) or str(error.__cause__ or "")).split())[:200]
    kind = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(error).__name__).lower()
    return f"{kind}: {text}" if text else kind
