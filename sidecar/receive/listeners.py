"""Listening sockets: inherited from systemd, or bound here.

Rules
-----
* An inherited socket is used as it is. Its path and mode belong to the ``.socket`` unit, and it is never unlinked.
* An inherited socket with an unknown name is an error: its clients would wait forever. So is one whose family does not
  match its name, because the name decides whether write keys, Host and Origin are checked.
* A host name opens every address that it has; without ``allow_remote`` each of them must be loopback.
"""

import contextlib
import errno
import os
import resource
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from sidecar.config.schema import ListenConfig, is_loopback_name, split_address
from sidecar.errors import ConfigError, Failed
from sidecar.receive.unix_sockets import BACKLOG, bind_unix

if TYPE_CHECKING:  # loaded for ``https`` only: the other sockets are open before it would be
    import ssl

__all__ = [
    "BoundSockets",
    "bind_control",
    "bind_control_read",
    "bind_events",
    "bind_listeners",
    "probe_tcp",
    "raise_descriptor_limit",
    "renew_certificate",
    "try_certificate",
]

CONTROL_MODE: Final = 0o600
# The group is that of the folder, which the units make px-sidecar-operators.
CONTROL_READ_MODE: Final = 0o660
# The name of a socket without FileDescriptorName=: given by `systemd-socket-activate`, and by sidecar/systemd.py when
# the service manager passed no names.
NAMELESS: Final = "unknown"
_NOT_ON_THIS_HOST: Final = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})


class BoundSockets(NamedTuple):
    """The listening sockets, and the TLS context of ``https``. ``close`` closes them and removes our own paths.

    ``inherited`` names the kinds that were not bound here.
    """

    http: list[socket.socket]
    https: list[socket.socket]
    unix: list[socket.socket]
    tls: "ssl.SSLContext | None"
    close: Callable[[], None]
    inherited: frozenset[str] = frozenset()

    def names(self) -> list[str]:
        """Return the address or path of each listener."""
        return [_describe(listener) for listener in (*self.http, *self.https, *self.unix)]


def bind_listeners(listen: ListenConfig, inherited: dict[str, list[socket.socket]]) -> BoundSockets:
    """Bind what ``[listen]`` names, except where a socket was inherited for it.

    Takes ownership of the inherited sockets: they are closed by ``close``, and at once if this raises. Raises Failed or
    ConfigError.
    """
    with contextlib.ExitStack() as stack:
        for sockets in inherited.values():
            for listener in sockets:
                stack.callback(listener.close)
        inherited = _by_use(inherited)
        _check_reach(inherited, listen)
        http = inherited.get("http", [])
        if listen.http and not http:
            http = _bind_tcp("listen.http", listen.http, stack, allow_remote=listen.allow_remote)
        https = inherited.get("https", [])
        if listen.https and not https:
            https = _bind_tcp("listen.https", listen.https, stack, allow_remote=listen.allow_remote)
        unix = inherited.get("unix") or []
        if not unix and listen.unix:
            unix = [stack.enter_context(bind_events(listen))]
        if not http and not https and not unix:
            raise ConfigError("There is nothing to listen on; set listen.unix, listen.http or listen.https.")
        tls = _tls_context(listen) if https else None
        return BoundSockets(http, https, unix, tls, stack.pop_all().close, frozenset(inherited))


def renew_certificate(sockets: BoundSockets, listen: ListenConfig) -> None:
    """Load the certificate files again for new connections of ``https``; do nothing without ``https``.

    Raises ConfigError if the files cannot be used; the previous certificate then stays in use.
    """
    if sockets.tls is not None:
        try_certificate(sockets, listen)  # a certificate without its key would replace the good one of the listeners
        _load_certificate(sockets.tls, listen)


def try_certificate(sockets: BoundSockets, listen: ListenConfig) -> None:
    """Read the certificate files of ``https``, and leave the one in use alone. Raises ConfigError."""
    if sockets.tls is not None:
        import ssl

        _load_certificate(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), listen)


def bind_events(listen: ListenConfig) -> contextlib.AbstractContextManager[socket.socket]:
    """Bind ``listen.unix`` for the time of the block. Raises Failed."""
    return bind_unix(Path(listen.unix), int(listen.unix_mode, 8), listen.unix_group)


def bind_control(listen: ListenConfig) -> contextlib.AbstractContextManager[socket.socket]:
    """Bind the control socket, which only the daemon's own user and root may open. Raises Failed."""
    return bind_unix(Path(listen.control), CONTROL_MODE)


def bind_control_read(listen: ListenConfig) -> contextlib.AbstractContextManager[socket.socket | None]:
    """Bind the control socket for reading, if one is configured: its folder's group may open it. Raises Failed."""
    return bind_unix(Path(listen.control_read), CONTROL_READ_MODE) if listen.control_read else contextlib.nullcontext()


def _by_use(inherited: dict[str, list[socket.socket]]) -> dict[str, list[socket.socket]]:
    """Group the inherited sockets into ``http``, ``https`` and ``unix``: by name, or by family without a name.

    Raises ConfigError for an unknown name.
    """
    by_use: dict[str, list[socket.socket]] = {}
    for name, sockets in inherited.items():
        for listener in sockets:
            use = ("unix" if listener.family == socket.AF_UNIX else "http") if name == NAMELESS else name
            by_use.setdefault(use, []).append(listener)
    if unknown := by_use.keys() - {"http", "https", "unix"}:
        raise ConfigError(
            f"systemd handed over a socket with the unknown name {min(unknown)!r}; "
            "set FileDescriptorName= in its .socket unit to unix, http or https."
        )
    return by_use


def _check_reach(inherited: dict[str, list[socket.socket]], listen: ListenConfig) -> None:
    """Raise ConfigError if an inherited socket admits clients that ``[listen]`` excludes."""
    for use, listener in ((use, listener) for use, sockets in inherited.items() for listener in sockets):
        if (listener.family == socket.AF_UNIX) != (use == "unix"):
            raise ConfigError(
                f"systemd handed over {_describe(listener)} with the name {use!r}; "
                "in its .socket unit, set FileDescriptorName= to unix for a path, and to http or https for an address."
            )
        if use != "unix" and not listen.allow_remote and not _is_loopback(listener):
            raise ConfigError(
                f"systemd handed over {_describe(listener)}, which other hosts can reach; "
                "give ListenStream= a loopback address, or set listen.allow_remote = true."
            )


def _is_loopback(listener: socket.socket) -> bool:
    return is_loopback_name(listener.getsockname()[0])


def _describe(listener: socket.socket) -> str:
    name = listener.getsockname()
    if not isinstance(name, tuple):
        return os.fsdecode(name)
    return f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"


def raise_descriptor_limit() -> int:
    """Raise the soft limit of open files to the hard one, as each connection needs one. Return the limit in force."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):  # a container may forbid it; IngestServer then admits fewer connections
        return soft
    return hard


def probe_tcp(key: str, address: str, *, allow_remote: bool) -> None:
    """Bind every address of the host, as ``bind_listeners`` does, and close them at once; nothing is listened on.

    Raises Failed, caused by the OSError, and ConfigError if an address is not loopback.
    """
    with contextlib.ExitStack() as stack:
        _bind_tcp(key, address, stack, allow_remote=allow_remote, listens=False)


def _bind_tcp(
    key: str, address: str, stack: contextlib.ExitStack, *, allow_remote: bool, listens: bool = True
) -> list[socket.socket]:
    """Bind every address of the host, on one port. Raises Failed, and ConfigError if one is not loopback."""
    host, port = split_address(key, address)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise _not_opened(key, address, error) from error
    places = list(dict.fromkeys((family, where) for family, _, _, _, where in found))
    for _, where in places:
        if not allow_remote and not is_loopback_name(str(where[0])):
            raise ConfigError(
                f"{key} = {address} has the address {where[0]}, which other hosts can reach; name a loopback address, or "
                "set listen.allow_remote = true."
            )
    listeners: list[socket.socket] = []
    unusable: OSError | None = None
    for family, where in places:
        if listeners and not port:
            port = listeners[0].getsockname()[1]  # port 0: the one that the first address got
        try:
            listener = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
            # A restart must not wait for TIME_WAIT to end.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6 and len(places) > 1:  # "::" would take the IPv4 address along
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind((where[0], port, *where[2:]))
            if listens:
                listener.listen(BACKLOG)
        except OSError as error:
            if error.errno not in _NOT_ON_THIS_HOST:
                raise _not_opened(key, address, error) from error
            unusable = error  # ::1 of the hosts file, where IPv6 is switched off
            continue
        listener.setblocking(False)
        listeners.append(listener)
    if unusable is not None and not listeners:
        raise _not_opened(key, address, unusable) from unusable
    return listeners


def _not_opened(key: str, address: str, error: OSError) -> Failed:
    if error.errno == errno.EADDRINUSE:
        why = "another process listens there; stop it or choose another port"
    elif error.errno == errno.EACCES:
        why = "ports below 1024 need a privilege; choose a higher one"
    else:
        why = f"{error.strerror or error}; choose an address of this host"
    return Failed(f"{key} = {address} cannot be opened: {why}.")


def _tls_context(listen: ListenConfig) -> "ssl.SSLContext":
    import ssl

    if not (listen.tls_cert and listen.tls_key):
        raise ConfigError("The inherited socket https needs a certificate; set listen.tls_cert and listen.tls_key.")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["http/1.1"])  # a client that could speak HTTP/2 must not choose it
    _load_certificate(context, listen)
    return context


def _load_certificate(context: "ssl.SSLContext", listen: ListenConfig) -> None:
    import ssl

    try:
        context.load_cert_chain(listen.tls_cert, listen.tls_key, password=_refuse_pass_phrase)
    except (OSError, ssl.SSLError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"listen.tls_cert = {listen.tls_cert} with tls_key = {listen.tls_key} cannot be used ({reason}); "
            "give a PEM certificate and its key."
        ) from None


def _refuse_pass_phrase() -> str:
    """Raise ConfigError; without this OpenSSL would ask on the terminal, and a daemon would hang."""
    raise ConfigError(
        "The key in listen.tls_key is encrypted; give one without a pass phrase that only the daemon can read."
    )
