"""Lanes through a proxy: the only place that uses httpx, which knows tunnels and the credentials of proxies.

Theory
------
* **The transport is used and not the client**: ``httpx.AsyncClient`` adds cookies, redirects, environment proxies and
  header merging for nearly twice the processor time.
* **Sent or not sent.** httpcore asks for the body's bytes once the headers are written. Whatever fails before they are
  handed over, such as a proxy that closes the connection instead of answering CONNECT, no server can have a complete
  request.
* **The status line decides**, as in ``connection.py``: the bytes of PX's answer are kept, and read leniently if h11 refuses
  them. The proxy's own answer to CONNECT comes before the last TLS layer and is never taken for one of PX.
* The rest is as in ``connection.py``: one connection, one deadline.
"""

import re
import ssl
from collections.abc import AsyncIterator, Callable, Iterable
from functools import lru_cache
from typing import Any

import httpcore
import httpx
import trio

from sidecar.clock import boot_s
from sidecar.config.schema import LABEL_RULE, can_be_looked_up
from sidecar.errors import ConfigError
from sidecar.px.answers import NotSent, PxAnswer, Reply, Unknown
from sidecar.px.connection import (
    BODY_MAX_BYTES,
    CLOSE_TIMEOUT_S,
    KEEPALIVE_S,
    KEPT_BYTES,
    LIFE_S,
    REST_S,
    Headers,
    causes_of,
    ends_exactly,
    innermost_text,
    not_connected,
    read_leniently,
    says_delivered,
)
from sidecar.px.network import AT_ONCE, Departure, wait_until_due
from sidecar.px.requests import PxRequest

__all__ = ["HttpxLane", "Proxy"]

Received = Callable[[bytes], None]

MAX_PORT = 65_535
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol, httpx.ProxyError)


class Proxy:
    """The configured proxy. Raises ConfigError without quoting the address: it may hold a password."""

    def __init__(self, address: str, tls: ssl.SSLContext) -> None:
        self._tls = tls
        try:
            proxy = httpx.Proxy(address)
            # With ? or # in a password that is not encoded, the user would be taken for the host.
            is_address = (
                proxy.url.raw_path in (b"", b"/") and not proxy.url.fragment and (proxy.url.port or 1) <= MAX_PORT
            )
            if proxy.url.scheme not in ("http", "https") or not proxy.url.host or not is_address:
                raise ValueError
            if not can_be_looked_up(proxy.url.raw_host.decode("ascii")):
                raise ConfigError(f"The host in px.proxy must be one {LABEL_RULE}; correct the address.")
            self._proxy = httpx.Proxy(address, ssl_context=tls) if proxy.url.scheme == "https" else proxy
        except (ValueError, httpx.InvalidURL):
            advice = (
                "write special characters of its user and password percent-encoded (@ is %40, : is %3A, / is %2F, # is "
                "%23, ? is %3F, % is %25), as in http://name:p%40ss@host:3128"
                if "@" in address
                else "write http://host:port or http://name:password@host:port"
            )
            raise ConfigError(f"px.proxy is not the address of an HTTP proxy; {advice}.") from None

    @property
    def password(self) -> bytes:
        """The password in the address; empty without one."""
        return self._proxy.raw_auth[1] if self._proxy.raw_auth else b""

    def lane(
        self,
        origin: str,
        headers: Callable[[], Headers],
        *,
        timeout_s: float,
        connect_timeout_s: float,
        mask: Callable[[bytes], bytes],
    ) -> "HttpxLane":
        """Return a new lane to ``origin``; it connects with its first request."""
        return HttpxLane(
            self._transport_to(origin),
            origin,
            headers,
            timeout_s=timeout_s,
            connect_timeout_s=connect_timeout_s,
            mask=mask,
        )

    def _transport_to(self, origin: str) -> Callable[[Received], httpx.AsyncHTTPTransport]:
        """Return the maker of a transport for one connection, which calls what it is given with what PX answers."""
        layers = (self._proxy.url.scheme == "https") + origin.startswith("https:")
        return lambda received: _RecordingTransport(self._proxy, self._tls, _RecordingBackend(received, layers))


class _RecordingTransport(httpx.AsyncHTTPTransport):
    """httpx's transport over a network backend of this module; httpx itself does not take one."""

    def __init__(self, proxy: httpx.Proxy, tls: ssl.SSLContext, backend: httpcore.AsyncNetworkBackend) -> None:
        super().__init__(verify=tls, proxy=proxy)
        url = proxy.url
        self._pool = httpcore.AsyncHTTPProxy(
            httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
            proxy_auth=proxy.raw_auth,
            proxy_headers=proxy.headers.raw,
            proxy_ssl_context=proxy.ssl_context,
            ssl_context=tls,
            max_connections=1,
            max_keepalive_connections=1,
            keepalive_expiry=KEEPALIVE_S,
            network_backend=backend,
        )


class _RecordingBackend(httpcore.AsyncNetworkBackend):
    """Connects as httpcore does; ``received`` is called with what is read behind as many TLS layers as PX's answers have."""

    def __init__(self, received: Received, layers: int) -> None:
        self._backend = httpcore.TrioBackend()
        self._received, self._layers = received, layers

    async def connect_tcp(self, *args: Any, **options: Any) -> httpcore.AsyncNetworkStream:
        return _RecordingStream(await self._backend.connect_tcp(*args, **options), self._received, self._layers)


class _RecordingStream(httpcore.AsyncNetworkStream):
    """A stream below ``layers`` more TLS layers; the innermost one passes on what it reads."""

    def __init__(self, stream: httpcore.AsyncNetworkStream, received: Received, layers: int) -> None:
        self._stream, self._received, self._layers = stream, received, layers

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        data = await self._stream.read(max_bytes, timeout)
        if self._layers == 0:
            self._received(data)
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(self, *args: Any, **options: Any) -> httpcore.AsyncNetworkStream:
        return _RecordingStream(await self._stream.start_tls(*args, **options), self._received, self._layers - 1)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class HttpxLane:
    """One connection to PX through the proxy, opened by the first request and kept while its state is known."""

    def __init__(
        self,
        transport: Callable[[Received], httpx.AsyncHTTPTransport],
        origin: str,
        headers: Callable[[], Headers],
        *,
        timeout_s: float,
        connect_timeout_s: float,
        mask: Callable[[bytes], bytes],
    ) -> None:
        self._new_transport = transport
        self._origin = origin
        self._headers = headers
        self._timeout_s = timeout_s
        self._timeouts = {"timeout": {"connect": connect_timeout_s}}
        self._mask = mask
        # Parsing a URL costs more than building the rest of a request; nearly all requests share one path.
        self._url = lru_cache(maxsize=64)(lambda path: httpx.URL(origin + path))
        self._transport: httpx.AsyncHTTPTransport | None = None
        self._received = bytearray()  # of PX's answer
        self._scope = trio.CancelScope()
        self._renew_at_s = self._idle_until_s = 0.0
        self._busy = False

    def __repr__(self) -> str:
        connection = "no connection" if self._transport is None else "a connection"
        return f"<HttpxLane to {self._origin}, {'busy' if self._busy else 'idle'}, {connection}>"

    async def send(self, request: PxRequest, departure: Departure = AT_ONCE) -> Reply:
        """Send one request; see ``Lane``. A concurrent second call is a bug of the caller and fails an assertion."""
        assert not self._busy, "a lane carries one request at a time"
        self._busy, reusable = True, False
        exchange = _ProxyExchange(_RequestBody(request.body, departure))
        self._received.clear()
        try:
            with trio.move_on_after(self._timeout_s) as self._scope:
                reusable = await self._run(request, exchange)
                self._idle_until_s = boot_s() + KEEPALIVE_S
            return self._reply(exchange)
        finally:
            # Also after a cancellation from outside: a connection with half an exchange on it must not be used again.
            if not reusable:
                await self.aclose()
            self._busy = False

    async def aclose(self) -> None:
        """Close the connection; see ``Lane``. Shielded and bounded by 2 s, since it also runs during a cancellation."""
        transport, self._transport = self._transport, None
        if transport is not None:
            with trio.move_on_after(CLOSE_TIMEOUT_S, shield=True):
                await transport.aclose()

    async def _run(self, request: PxRequest, exchange: "_ProxyExchange") -> bool:
        """Send the request and record the progress in ``exchange``. Return whether the connection is reusable."""
        # The idle time here, too: httpcore counts it without that of a suspended host.
        if self._transport is not None and boot_s() >= min(self._renew_at_s, self._idle_until_s):
            await self.aclose()
        if self._transport is None:
            self._transport, self._renew_at_s = self._new_transport(self._receive), boot_s() + LIFE_S
        try:
            prepared = self._request(request, exchange.request_body)
            response = await self._transport.handle_async_request(prepared)
            exchange.response = response
            async for part in response.stream:  # type: ignore[union-attr]  # an async transport's stream is async
                exchange.body += part
                # Leaving the loop would abandon httpcore's generators half-way. With the transport closed, the next
                # read fails instead, and all of them end in order.
                if len(exchange.body) > BODY_MAX_BYTES:
                    await self.aclose()
            await response.aclose()
        except httpx.HTTPError as error:
            exchange.error = error
            return False
        exchange.complete = True
        return ends_exactly(self._received, response.status_code, response.headers.raw)

    def _receive(self, data: bytes) -> None:
        """Keep what PX answers. Once it has delivered the event, the rest of the answer is worth only a short wait."""
        if len(self._received) < KEPT_BYTES:
            self._received += data
            if says_delivered(self._received):
                self._scope.deadline = min(self._scope.deadline, trio.current_time() + REST_S)

    def _request(self, request: PxRequest, body: "_RequestBody") -> httpx.Request:
        """Convert a request to httpx's form, with the headers that all requests share."""
        headers = list(self._headers())
        if request.method != "GET":
            headers.append((b"Content-Length", b"%d" % len(request.body)))
        url = self._url(request.path)
        return httpx.Request(request.method, url, headers=headers, stream=body, extensions=self._timeouts)

    def _reply(self, exchange: "_ProxyExchange") -> Reply:
        # The order matters: once there is a status, neither an error nor the deadline changes the outcome.
        if (response := exchange.response) is not None:
            body = bytes(exchange.body[:BODY_MAX_BYTES])
            return self._answer(response.status_code, response.headers.raw, body, complete=exchange.complete)
        if exchange.request_body.handed_over and (answer := read_leniently(bytes(self._received))) is not None:
            return self._answer(*answer, complete=False)
        if exchange.error is None:
            return exchange.timeout_reply(self._timeout_s)
        reason = self._mask(_describe_error(exchange.error).encode()).decode()
        # httpx reports a proxy's refusal as an error; 407 is configuration and must not look like an absent PX.
        if isinstance(exchange.error, httpx.ProxyError) and str(exchange.error).startswith("407"):
            return PxAnswer(407, b"the proxy asks for authentication")
        is_sent = exchange.request_body.handed_over and not isinstance(exchange.error, _NOT_SENT)
        return Unknown(reason) if is_sent else NotSent(reason, self._advice(exchange.error))

    def _advice(self, error: httpx.HTTPError) -> str:
        if isinstance(error, httpx.ProxyError):
            return f"the proxy does not let this host through to {self._origin}: change its rules, or px.proxy"
        if any(isinstance(cause, ssl.SSLError) for cause in causes_of(error)):
            return not_connected(error, self._origin).advice
        return "check that the proxy in px.proxy runs and that this host can reach it"

    def _answer(
        self, status: int, raw_headers: Iterable[tuple[bytes, bytes]], body: bytes, *, complete: bool
    ) -> PxAnswer:
        headers = {name.lower(): self._mask(value) for name, value in raw_headers}
        retry_after = headers.get(b"retry-after")
        return PxAnswer(
            status,
            self._mask(body),
            None if retry_after is None else retry_after.decode("latin-1"),
            headers.get(b"content-type", b"").decode("latin-1"),
            not complete,
        )


class _RequestBody(httpx.AsyncByteStream):
    """A request body that records whether it has asked for permission to leave, and whether it was handed over.

    Before the latter no server can have the request.

    It is an iterator and not a generator, because a generator that a cancellation interrupts is never finished.
    """

    def __init__(self, data: bytes, departure: Departure) -> None:
        self._unsent = data
        self._departure = departure
        self.asked = self.handed_over = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        self.handed_over = not self._unsent  # without a body the headers, which are written now, are all of the request
        return self

    async def __anext__(self) -> bytes:
        if not self._unsent:
            self._departure.left()
            raise StopAsyncIteration
        self.asked = True
        await wait_until_due(self._departure)
        data, self._unsent, self.handed_over = self._unsent, b"", True
        return data


class _ProxyExchange:
    """The progress of one exchange. It lives outside of the exchanging code, which the deadline may end anywhere."""

    __slots__ = ("body", "complete", "error", "request_body", "response")

    def __init__(self, request_body: _RequestBody) -> None:
        self.request_body = request_body
        self.response: httpx.Response | None = None
        self.error: httpx.HTTPError | None = None
        self.body = bytearray()
        self.complete = False

    def timeout_reply(self, timeout_s: float) -> Reply:
        """Return the reply for a deadline that passed before a status was read."""
        if self.request_body.handed_over:
            return Unknown(f"no answer within {timeout_s:g} s")
        if self.request_body.asked:
            return NotSent(f"no permission within {timeout_s:g} s", held=True)
        return NotSent(f"no connection within {timeout_s:g} s")


def _describe_error(error: httpx.HTTPError) -> str:
    """Return the error as one line: its kind, and the text of the innermost cause that has one."""
    text = innermost_text(error)
    kind = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(error).__name__).lower()
    return f"{kind}: {text}" if text else kind
