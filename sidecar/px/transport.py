"""The seam to the network: the one file that knows httpx.

Theory
------
* **A lane is one connection.** httpx's shared pool leaks slots when requests are cancelled, and costs more the larger
  it is (facts/field_lessons.md M1 to M5; httpcore#1093, unfixed). A lane has a transport of its own with room for one
  connection, carries one request at a time, and is rebuilt after anything that could have left it in doubt: an error,
  a time-out, a cancellation, an answer not read to its end. All lanes share one TLS context (M7).
* **The transport, not the client.** ``AsyncClient`` adds cookies, redirects, environment proxies and header merging
  for nearly twice the processor time (M20); a sender that always talks to one origin wants none of them.
* **Sent or not sent.** The body's iterator is asked for its bytes once the connection stands and the headers were
  written. A deadline before that moment means that no server can have a whole request: not sent. Errors are told
  apart by their class; what is not certainly "not sent" is unknown.
* **One deadline** covers the whole attempt, since httpx's own time-outs begin again with each byte (httpx#1450); of
  those only the one for connecting is set (httpx grants it to TCP and to TLS), so that a host that is not there is
  noticed early, and by httpx itself, which then closes the socket of a TLS handshake; a cancellation leaves it to the
  garbage collector.
* **The status decides.** Once status and headers were read, PX has judged the request. A body that breaks off, drips
  until the deadline or is longer than 64 KiB is cut, and the answer counts.
* **Idle connections** are not used again after 4 s, since the most impatient of the common servers (Node.js) closes
  them after 5 s: a request must not meet a connection that the other side is just giving up. When it does, that is
  unknown, not "not sent": the server may have read it.

Closing never waits for the other side: httpcore closes sockets without a TLS farewell.
"""

import re
import ssl
from collections.abc import AsyncIterator
from functools import lru_cache

import httpx
import trio

from sidecar import __version__
from sidecar.config.schema import Px, Secret
from sidecar.errors import ConfigError
from sidecar.px.answers import Answer, NotSent, Reply, Unknown
from sidecar.px.requests import Request

__all__ = ["BODY_MAX_BYTES", "HttpxLane", "HttpxNetwork"]

BODY_MAX_BYTES = 64 * 1024
CONNECT_TIMEOUT_S = 10.0
KEEPALIVE_S = 4.0
CLOSE_TIMEOUT_S = 2.0
SECRET_MIN_BYTES = 6  # masking a shorter one would mask words; nobody who cares for a secret has one

_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol, httpx.ProxyError)


class HttpxNetwork:
    """Lanes to the PX of a configuration.

    ``timeout_s`` bounds one attempt, from connecting to the end of the body. Raises ConfigError for a key, a proxy or
    a certificate file that cannot be used. Building it reads certificates: 50 ms, once.
    """

    def __init__(self, px: Px, key: Secret, timeout_s: float) -> None:
        if not re.fullmatch(r"[!-~]+", key.reveal()):
            raise ConfigError("The PX API key is empty or holds blanks or other characters no key has; write it anew.")
        self.timeout_s = timeout_s
        self.origin = px.url()
        self._tls = _tls_context(px)
        self._proxy = _proxy(px, self._tls)
        password = self._proxy.raw_auth[1] if self._proxy and self._proxy.raw_auth else b""
        secrets = [key.reveal().encode(), password]
        self._secrets = [secret for secret in secrets if len(secret) >= SECRET_MIN_BYTES]
        self._headers = [
            (b"Host", httpx.URL(self.origin).netloc),
            (b"X-APTRINSIC-API-KEY", key.reveal().encode()),
            (b"Content-Type", b"application/json"),
            (b"Accept", b"application/json"),
            (b"Accept-Encoding", b"identity"),
            (b"User-Agent", f"px-sidecar/{__version__}".encode()),
        ]
        self._url = lru_cache(maxsize=64)(lambda path: httpx.URL(self.origin + path))
        self._timeouts = {"timeout": {"connect": min(CONNECT_TIMEOUT_S, timeout_s / 2)}}

    def __repr__(self) -> str:
        return f"<HttpxNetwork {self.origin}>"

    def lane(self) -> "HttpxLane":
        """A new lane; it connects with its first request."""
        return HttpxLane(self)

    def transport(self) -> httpx.AsyncHTTPTransport:
        """A transport with room for one connection."""
        return httpx.AsyncHTTPTransport(
            verify=self._tls,
            limits=httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=KEEPALIVE_S),
            proxy=self._proxy,
        )

    def request(self, request: Request, body: "_Body") -> httpx.Request:
        """The request as httpx wants it, with the headers that are the same for all."""
        headers = self._headers
        if request.method != "GET":
            headers = [*headers, (b"Content-Length", b"%d" % len(request.body))]
        url = self._url(request.path)
        return httpx.Request(request.method, url, headers=headers, stream=body, extensions=self._timeouts)

    def without_secrets(self, data: bytes) -> bytes:
        """``data`` with the key and the proxy's password masked, should the other side repeat them to us."""
        for secret in self._secrets:
            data = data.replace(secret, b"****")
        return data


class HttpxLane:
    """One connection to PX, opened by the first request and kept while it is sound."""

    def __init__(self, network: HttpxNetwork) -> None:
        self._network = network
        self._transport: httpx.AsyncHTTPTransport | None = None
        self._busy = False

    def __repr__(self) -> str:
        connection = "no connection" if self._transport is None else "a connection"
        return f"<HttpxLane to {self._network.origin}, {'busy' if self._busy else 'idle'}, {connection}>"

    async def send(self, request: Request) -> Reply:
        """Send one request; see ``Lane``. A second one at the same time is a mistake of the caller."""
        assert not self._busy, "a lane carries one request at a time"
        self._busy, sound = True, False
        reading = _Reading(_Body(request.body))
        try:
            with trio.move_on_after(self._network.timeout_s):
                sound = await self._exchange(request, reading)
            return self._reply(reading)
        finally:
            if not sound:
                await self.aclose()
            self._busy = False

    async def aclose(self) -> None:
        """Close the connection; see ``Lane``. Shielded and bounded, as it runs while a cancellation is under way."""
        transport, self._transport = self._transport, None
        if transport is not None:
            with trio.move_on_after(CLOSE_TIMEOUT_S, shield=True):
                await transport.aclose()

    async def _exchange(self, request: Request, reading: "_Reading") -> bool:
        """Send the request and read into ``reading``; whether the connection can be used again."""
        if self._transport is None:
            self._transport = self._network.transport()
        try:
            prepared = self._network.request(request, reading.sent)
            response = await self._transport.handle_async_request(prepared)
            reading.response = response
            async for part in response.stream:  # type: ignore[union-attr]  # an async transport's stream is async
                reading.body += part
                if len(reading.body) > BODY_MAX_BYTES:  # the next read fails, which ends all generators in good order
                    await self.aclose()
            await response.aclose()
        except httpx.HTTPError as error:
            reading.error = error
            return False
        reading.complete = True
        return True

    def _reply(self, reading: "_Reading") -> Reply:
        if reading.response is not None:
            return self._answer(reading.response, reading)
        if reading.error is None:
            return reading.overdue(self._network.timeout_s)
        why = self._network.without_secrets(_why(reading.error).encode()).decode()
        if isinstance(reading.error, httpx.ProxyError) and str(reading.error).startswith("407"):
            return Answer(407, b"the proxy asks for authentication")
        return NotSent(why) if isinstance(reading.error, _NOT_SENT) else Unknown(why)

    def _answer(self, response: httpx.Response, reading: "_Reading") -> Answer:
        headers = {name.lower(): self._network.without_secrets(value) for name, value in response.headers.raw}
        retry_after = headers.get(b"retry-after")
        return Answer(
            response.status_code,
            self._network.without_secrets(bytes(reading.body[:BODY_MAX_BYTES])),
            None if retry_after is None else retry_after.decode("latin-1"),
            headers.get(b"content-type", b"").decode("latin-1"),
            not reading.complete,
        )


class _Body(httpx.AsyncByteStream):
    """A request's body that knows whether it was asked for: before that, no server can have the request.

    An iterator and not a generator, since a generator that a cancellation leaves in the middle is never finished.
    """

    def __init__(self, data: bytes) -> None:
        self._left = data
        self.begun = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        self.begun = True
        return self

    async def __anext__(self) -> bytes:
        if not self._left:
            raise StopAsyncIteration
        data, self._left = self._left, b""
        return data


class _Reading:
    """How far an exchange came, kept outside of it since a deadline may end it anywhere."""

    __slots__ = ("body", "complete", "error", "response", "sent")

    def __init__(self, sent: _Body) -> None:
        self.sent = sent
        self.response: httpx.Response | None = None
        self.error: httpx.HTTPError | None = None
        self.body = bytearray()
        self.complete = False

    def overdue(self, timeout_s: float) -> Reply:
        """What a deadline means that passed before a status was read."""
        if self.sent.begun:
            return Unknown(f"no answer within {timeout_s:g} s")
        return NotSent(f"no connection within {timeout_s:g} s")


def _why(error: httpx.HTTPError) -> str:
    """The error as one line for people: its kind, and the deepest of its causes that says something."""
    text, cause = str(error), error.__context__  # httpcore cuts the chain of causes, the contexts stay
    while isinstance(cause, Exception):
        if isinstance(cause, ExceptionGroup):
            cause = cause.exceptions[0]
        else:
            text, cause = str(cause) or text, cause.__cause__ or cause.__context__
    text = " ".join(text.split())[:200]
    kind = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(error).__name__).lower()
    return f"{kind}: {text}" if text else kind


def _tls_context(px: Px) -> ssl.SSLContext:
    """The one TLS context of all lanes.

    Without ``ca_file``: the public roots that come with httpx, for images without any, and those of the system, which
    know a company's own.
    """
    if not px.url().startswith("https:") and not px.proxy.startswith("https:"):
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # never used; reading certificates for it would cost 50 ms
    if not px.ca_file:
        context = httpx.create_ssl_context(trust_env=False)
        context.load_default_certs()
        return context
    try:
        return ssl.create_default_context(cafile=px.ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"The certificates in px.ca_file {px.ca_file} cannot be read ({error.strerror or error}); "
            "name a readable file in PEM format."
        ) from None


def _proxy(px: Px, tls: ssl.SSLContext) -> httpx.Proxy | None:
    """The proxy, if there is one. Its address may hold a password and is therefore never quoted."""
    if not px.proxy:
        return None
    try:
        proxy = httpx.Proxy(px.proxy)
        if proxy.url.scheme not in ("http", "https") or not proxy.url.host:
            raise ValueError
        return httpx.Proxy(px.proxy, ssl_context=tls) if proxy.url.scheme == "https" else proxy
    except (ValueError, httpx.InvalidURL):
        raise ConfigError(
            "px.proxy is not the address of an HTTP proxy; write http://host:port or http://name:password@host:port."
        ) from None
