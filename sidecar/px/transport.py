"""The real network: how lanes reach PX, directly or through a proxy.

Theory
------
* **A lane is one connection.** httpx's shared pool leaks slots when requests are cancelled, and its cost per request
  grows with its size (https://github.com/encode/httpcore/issues/1093, open). A lane carries one request at a time, and
  its connection is replaced after everything that may have left it in an unknown state: an error, a timeout, a
  cancellation, an answer that was not read to its end. All lanes share one TLS context, since building one takes 55 ms.
  Measurements: sidecar/px/README.md#what-a-lane-costs.
* **Directly** a lane is a ``DirectLane`` (``connection.py``). **Through a proxy** it is an ``HttpxLane``
  (``proxy_lane.py``): httpx knows the tunnel and its credentials. httpx is loaded only then: it brings along a command
  line of its own, and takes longer to load than everything else that the daemon needs for a start.
* **Sent or not sent.** Nothing is sent before the connection is established: a failure until then is "not sent".
  Everything that is not certainly "not sent" is unknown.
* **One deadline** covers the whole attempt, because httpx's own timeouts start again with each byte
  (https://github.com/encode/httpx/issues/1450). Connecting has a shorter one, so that an absent host is noticed early.
* **The status decides.** Once status and headers are read, PX has judged the request. A body that ends early, arrives
  slower than the deadline allows or exceeds 64 KiB is cut, and the answer counts.

Closing never waits for the peer: sockets are closed without a TLS close_notify.
"""

import re
import ssl
from typing import TYPE_CHECKING

import certifi
import httpcore
import msgspec
import trio

from sidecar import __version__
from sidecar.config.schema import PxConfig, Secret
from sidecar.errors import ConfigError
from sidecar.px.answers import NotSent
from sidecar.px.connection import BODY_MAX_BYTES, ConnectFailed, DirectLane, not_connected
from sidecar.px.network import Lane

if TYPE_CHECKING:
    from sidecar.px.proxy_lane import Proxy

__all__ = ["BODY_MAX_BYTES", "HttpxNetwork"]

CONNECT_TIMEOUT_S = 10.0
SECRET_MIN_BYTES = 6  # a shorter secret is not masked: its letters occur in ordinary words


class HttpxNetwork:
    """Lanes to the PX host of a configuration.

    ``timeout_s`` bounds one attempt, from connecting to the end of the body. Raises ConfigError for an unusable key,
    proxy or certificate file. Construction reads certificates, which takes about 50 ms.
    """

    def __init__(self, px: PxConfig, key: Secret, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self.origin = px.url()
        self._tls = _tls_context(px)
        self._url = httpcore.URL(self.origin)
        self._proxy = _proxy(px, self._tls)
        password = self._proxy.password if self._proxy else b""
        self._secrets = [password] if len(password) >= SECRET_MIN_BYTES else []
        self._headers: list[tuple[bytes, bytes]] = []
        self.use_key(key)
        self._connect_timeout_s = min(CONNECT_TIMEOUT_S, timeout_s / 2)

    def __repr__(self) -> str:
        return f"<HttpxNetwork {self.origin}>"

    def use_key(self, key: Secret) -> None:
        """Send ``key`` with every request from now on, on connections that are open, too. Raises ConfigError.

        Earlier keys stay masked: an answer to a request with one may still come.
        """
        if not re.fullmatch(r"[!-~]+", key.reveal()):
            raise ConfigError(
                "The PX API key is empty or contains blanks or other characters that are not allowed in a key; "
                "set it again."
            )
        text = key.reveal().encode()
        if len(text) >= SECRET_MIN_BYTES and text not in self._secrets:
            self._secrets.append(text)
        self._headers = [
            (b"Host", _authority(self._url)),
            (b"X-APTRINSIC-API-KEY", text),
            (b"Content-Type", b"application/json"),
            (b"Accept", b"application/json"),
            (b"Accept-Encoding", b"identity"),
            (b"User-Agent", f"px-sidecar/{__version__}".encode()),
        ]

    def lane(self) -> Lane:
        """Return a new lane; it connects with its first request."""
        if self._proxy is not None:
            return self._proxy.lane(
                self.origin,
                lambda: self._headers,
                timeout_s=self.timeout_s,
                connect_timeout_s=self._connect_timeout_s,
                mask=self.mask_secrets,
            )
        return DirectLane(
            self.connect,
            self._url,
            lambda: self._headers,
            timeout_s=self.timeout_s,
            mask=self.mask_secrets,
        )

    async def connect(self) -> trio.abc.Stream:
        """Open a connection to PX, TLS included. Raises ConnectFailed; the addresses are looked up each time."""
        origin = self._url.origin
        host, port = origin.host.decode("ascii"), origin.port
        with trio.move_on_after(self._connect_timeout_s):
            stream: trio.SocketStream | None = None
            try:
                stream = await trio.open_tcp_stream(host, port)
                if origin.scheme != b"https":
                    return stream
                secured = trio.SSLStream(stream, self._tls, server_hostname=host, https_compatible=True)
                await secured.do_handshake()
                return secured
            except (OSError, trio.BrokenResourceError) as error:
                await _abandon(stream)
                failure = not_connected(error, host)
                why = self.mask_secrets(failure.why.encode()).decode()
                raise ConnectFailed(msgspec.structs.replace(failure, why=why)) from None
            except trio.Cancelled:
                await _abandon(stream)
                raise
        raise ConnectFailed(NotSent(f"no connection to {host} within {self._connect_timeout_s:g} s"))

    def mask_secrets(self, data: bytes) -> bytes:
        """Return ``data`` with the key and the proxy's password masked, in case the peer echoes them."""
        for secret in self._secrets:
            data = data.replace(secret, b"****")
        return data


async def _abandon(stream: trio.SocketStream | None) -> None:
    """Close a connection whose TLS handshake failed or was cancelled, at once."""
    if stream is not None:
        await trio.aclose_forcefully(stream)


def _tls_context(px: PxConfig) -> ssl.SSLContext:
    """Return the TLS context of all lanes. Raises ConfigError if ``ca_file`` cannot be read.

    Without ``ca_file`` it trusts the public roots of certifi, for images without any, and the system's
    roots, which may include those of a company.
    """
    if not px.url().startswith("https:") and not px.proxy.startswith("https:"):
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # never used; reading certificates for it would cost 50 ms
    if not px.ca_file:
        context = ssl.create_default_context(cafile=certifi.where())
        context.load_default_certs()
        return _http11(context)
    try:
        return _http11(ssl.create_default_context(cafile=px.ca_file))
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"The certificates in px.ca_file {px.ca_file} cannot be read ({error.strerror or error}); "
            "set it to a readable file in PEM format."
        ) from None


def _http11(context: ssl.SSLContext) -> ssl.SSLContext:
    context.set_alpn_protocols(["http/1.1"])
    return context


def _authority(url: httpcore.URL) -> bytes:
    """Return the value of the ``Host`` header: without the port that the scheme implies."""
    host = b"[%b]" % url.host if b":" in url.host else url.host
    if url.port is None or url.port == {b"http": 80, b"https": 443}.get(url.scheme):
        return host
    return b"%b:%d" % (host, url.port)


def _proxy(px: PxConfig, tls: ssl.SSLContext) -> "Proxy | None":
    """Return the configured proxy, if any. Raises ConfigError without quoting the address: it may hold a password."""
    if not px.proxy:
        return None
    from sidecar.px.proxy_lane import Proxy

    return Proxy(px.proxy, tls)
