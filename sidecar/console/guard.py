"""Which requests are looked at: the page's own, and no other page's. Pure.

A server on loopback can be reached by every page in a browser on the same host. Each rule stops a known way in
(sidecar/console/README.md#attacks); all of them are checked on every request, streams included.
"""

import socket
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Final

from sidecar.config.schema import is_loopback_host
from sidecar.http import Request

__all__ = ["EVERY_ADDRESS", "Guard", "as_browsers_write", "headers"]

METHODS: Final = frozenset({"GET", "HEAD", "POST"})
EVERY_ADDRESS: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - what may be asked for, and what is printed for it
"""Addresses that stand for all addresses of this host, and the one of them that a browser on this host opens."""


def as_browsers_write(address: str) -> str:
    """Return an address or name as a browser sends it in ``Host`` (https://url.spec.whatwg.org/#host-parsing)."""
    try:
        return str(ip_address(address))
    except ValueError:
        pass
    try:
        return socket.inet_ntoa(socket.inet_aton(address))  # 127.1 and 0 are addresses, too
    except OSError:
        return address.lower()


class Guard:
    """The rules for a console that listens at ``address`` and ``port``.

    Where it listens at every address, a ``Host`` that is an address is one of its own: a page that has rebound a name to
    this host is known by that name.
    """

    def __init__(self, address: str, port: int) -> None:
        self._is_everywhere = address in EVERY_ADDRESS
        local = is_loopback_host(address) or self._is_everywhere
        names = {"127.0.0.1", "localhost", "[::1]"} if local else set()
        names.add(f"[{address}]" if ":" in address else address)
        # Browsers leave out the port of the scheme (https://url.spec.whatwg.org/#special-scheme).
        self._ends = (f":{port}", "") if port == 80 else (f":{port}",)
        self.hosts = frozenset(f"{name}{end}" for name in names for end in self._ends)
        self.origins = frozenset(f"http://{host}" for host in self.hosts)

    def refusal(self, request: Request) -> tuple[int, str] | None:
        """Return status and sentence for a request that is not answered, or None."""
        if request.method not in METHODS:
            return 405, "Only GET, HEAD and POST are allowed."
        hosts = _values(request, b"host")
        if len(hosts) != 1 or not (hosts[0] in self.hosts or self._is_address(hosts[0])):
            return 403, "The Host header names another server; open the address that the console printed."
        origins = self.origins | {f"http://{hosts[0]}"}
        if any(origin not in origins for origin in _values(request, b"origin")):
            return 403, "The request comes from a page of another origin."
        if any(site not in ("same-origin", "none") for site in _values(request, b"sec-fetch-site")):
            return 403, "The request comes from a page of another site."
        if request.method == "POST":
            kinds = _values(request, b"content-type")
            # A form or a fetch without permission of this server cannot send this type (https://fetch.spec.whatwg.org/#cors-safelisted-request-header).
            if [kind.partition(";")[0].strip() for kind in kinds] != ["application/json"]:
                return 415, "Send JSON, with Content-Type: application/json."
        return None

    def _is_address(self, host: str) -> bool:
        end = next((end for end in self._ends if host.endswith(end)), None)
        if not self._is_everywhere or end is None:
            return False
        try:
            ip_address(host.removesuffix(end).removeprefix("[").removesuffix("]"))
        except ValueError:
            return False
        return True


def headers() -> tuple[tuple[str, str], ...]:
    """Return the headers of every answer. Scripts and styles come from this server's files only, none is inline."""
    policy = (
        "default-src 'none'; "
        "script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    )
    return (
        ("Content-Security-Policy", policy),
        ("X-Content-Type-Options", "nosniff"),
        ("X-Frame-Options", "DENY"),
        ("Referrer-Policy", "no-referrer"),
        ("Cross-Origin-Opener-Policy", "same-origin"),
        ("Cross-Origin-Resource-Policy", "same-origin"),
        ("Permissions-Policy", "camera=(), geolocation=(), microphone=()"),
        ("Cache-Control", "no-store"),
    )


def _values(request: Request, name: bytes) -> Sequence[str]:
    return [value.decode("latin-1") for key, value in request.headers if key == name]
