"""Where events come in: sockets that are inherited, bound or made to listen.

Rules
-----
* An inherited socket is used as it is; its path and mode belong to the ``.socket`` unit. It is never unlinked. One
  whose name is none of ours is an error: whoever connects to it would wait for ever. So is one whose family is not
  what its name says: write keys, Host and Origin are judged by the name.
* Our own Unix socket is bound under another name and renamed into place, so that its path never leads nowhere; one
  that a live process answers on is never taken away from it.
"""

import contextlib
import errno
import grp
import os
import resource
import socket
import ssl
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from sidecar.config import Listen
from sidecar.config.schema import is_loopback_host, split_address
from sidecar.errors import ConfigError, Failed

__all__ = ["Opened", "bind_control", "bind_listeners", "raise_descriptor_limit", "renew_certificate"]

BACKLOG: Final = 1024  # what the kernel caps by net.core.somaxconn; connections that wait through a restart are here
PATH_MAX_BYTES: Final = 107  # sockaddr_un(7)
CONTROL_MODE: Final = 0o600
# What a socket without FileDescriptorName= is called by `systemd-socket-activate`, and by systemd.py where no names came.
NAMELESS: Final = "unknown"


class Opened(NamedTuple):
    """The listening sockets, and the TLS context of ``https``. ``close`` closes them and removes our own paths."""

    http: list[socket.socket]
    https: list[socket.socket]
    unix: list[socket.socket]
    tls: ssl.SSLContext | None
    close: Callable[[], None]


def bind_listeners(listen: Listen, inherited: dict[str, list[socket.socket]]) -> Opened:
    """Open what ``[listen]`` says, where nothing was inherited for it. Raises Failed or ConfigError."""
    with contextlib.ExitStack() as stack:
        for sockets in inherited.values():
            for one in sockets:
                stack.callback(one.close)
        inherited = _by_use(inherited)
        _judge_reach(inherited, listen)
        http = (
            inherited.get("http") or [_bind_tcp("listen.http", listen.http, stack)]
            if listen.http or "http" in inherited
            else []
        )
        https = inherited.get("https") or ([_bind_tcp("listen.https", listen.https, stack)] if listen.https else [])
        unix = inherited.get("unix") or []
        if not unix and listen.unix:
            unix = [stack.enter_context(_bound_unix(Path(listen.unix), int(listen.unix_mode, 8), listen.unix_group))]
        if not http and not https and not unix:
            raise ConfigError("There is nothing to listen on; set listen.unix, listen.http or listen.https.")
        tls = _tls_context(listen) if https else None
        return Opened(http, https, unix, tls, stack.pop_all().close)


def renew_certificate(opened: Opened, listen: Listen) -> None:
    """Serve new connections of ``https`` with what its files hold now; nothing without ``https``.

    Raises ConfigError if that cannot be used; then the certificate that was served goes on being served.
    """
    if opened.tls is not None:
        # Elsewhere first: a certificate without its key would stay in the context of the listeners.
        _load_certificate(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), listen)
        _load_certificate(opened.tls, listen)


@contextlib.contextmanager
def bind_control(listen: Listen) -> Iterator[socket.socket]:
    """The control socket, for the daemon's own user and root only. Raises Failed."""
    with _bound_unix(Path(listen.control), CONTROL_MODE, "") as listener:
        yield listener


def _by_use(inherited: dict[str, list[socket.socket]]) -> dict[str, list[socket.socket]]:
    """The inherited sockets by what they are for: by name, nameless ones by their family."""
    found: dict[str, list[socket.socket]] = {}
    for name, sockets in inherited.items():
        for one in sockets:
            use = ("unix" if one.family == socket.AF_UNIX else "http") if name == NAMELESS else name
            found.setdefault(use, []).append(one)
    if strange := found.keys() - {"http", "https", "unix"}:
        raise ConfigError(
            f"systemd handed over a socket named {min(strange)!r}, for which there is no use; "
            "set FileDescriptorName= in its .socket unit to unix, http or https."
        )
    return found


def _judge_reach(inherited: dict[str, list[socket.socket]], listen: Listen) -> None:
    """Raise ConfigError if somebody could reach an inherited socket whom [listen] keeps out."""
    for use, one in ((use, one) for use, sockets in inherited.items() for one in sockets):
        if (one.family == socket.AF_UNIX) != (use == "unix"):
            raise ConfigError(
                f"systemd handed over {_shown(one)} by the name {use!r}; "
                "in its .socket unit, FileDescriptorName= is unix for a path, and http or https for an address."
            )
        if use != "unix" and not listen.allow_remote and not _is_loopback(one):
            raise ConfigError(
                f"systemd handed over {_shown(one)}, which other hosts can reach; "
                "give ListenStream= a loopback address, or set listen.allow_remote = true."
            )


def _is_loopback(one: socket.socket) -> bool:
    return is_loopback_host(one.getsockname()[0].removeprefix("::ffff:"))


def _shown(one: socket.socket) -> str:
    name = one.getsockname()
    return f"{name[0]} port {name[1]}" if isinstance(name, tuple) else os.fsdecode(name)


def raise_descriptor_limit() -> int:
    """Raise the soft limit of open files to the hard one: each connection is one. Returns the limit in force."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):  # a sandbox may forbid it; the limit that is there has to do
        return soft
    return hard


def _bind_tcp(key: str, address: str, stack: contextlib.ExitStack) -> socket.socket:
    host, port = split_address(key, address)
    try:
        family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
        listener.listen(BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            why = "another process listens there; stop it or choose another port"
        elif error.errno == errno.EACCES:
            why = "ports below 1024 need a privilege; choose a higher one"
        else:
            why = f"{error.strerror or error}; choose an address of this host"
        raise Failed(f"{key} = {address} cannot be opened: {why}.") from None
    listener.setblocking(False)
    return listener


@contextlib.contextmanager
def _bound_unix(path: Path, mode: int, group: str) -> Iterator[socket.socket]:
    if len(os.fsencode(path)) > PATH_MAX_BYTES:
        raise Failed(
            f"The socket path {path} is longer than {PATH_MAX_BYTES} bytes, the most a socket can have; choose a shorter one."
        )
    group_id = _group_id(group) if group else -1
    _make_way(path)
    new = path.with_name(f".{path.name[:80]}.{os.getpid()}")
    if len(os.fsencode(new)) > PATH_MAX_BYTES:
        new = path.with_name(f".{os.getpid()}")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            new.unlink(missing_ok=True)
            mask = os.umask(0o177)
            try:
                listener.bind(str(new))
            finally:
                os.umask(mask)
            if group:
                _give_to(new, group_id, group)
            new.chmod(mode)
            listener.listen(BACKLOG)
            listener.setblocking(False)
            new.rename(path)
        except (OSError, Failed) as error:
            with contextlib.suppress(OSError):
                new.unlink()
            if isinstance(error, Failed):
                raise
            raise Failed(
                f"The socket {path} cannot be made ({error.strerror or error}); make its folder, writable for this user."
            ) from None
        inode = path.stat().st_ino
        try:
            yield listener
        finally:
            with contextlib.suppress(OSError):
                if path.stat().st_ino == inode:  # a newer process may have put its own there
                    path.unlink()
    finally:
        listener.close()


def _make_way(path: Path) -> None:
    """Make sure that nobody lives at ``path``; Raises Failed if somebody does, or if it is something else."""
    try:
        kind = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return
    if not stat.S_ISSOCK(kind):
        raise Failed(f"{path} exists and is not a socket; remove it or choose another path in [listen].")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return
        except (BlockingIOError, TimeoutError):
            pass  # its queue is full: somebody lives there, and is busy
        except OSError as error:
            raise Failed(
                f"The socket {path} cannot be tried ({error.strerror or error}); is it another user's?"
            ) from None
    raise Failed(f"Another process answers on {path}; stop it or choose another path in [listen].")


def _give_to(path: Path, group_id: int, group: str) -> None:
    try:
        os.chown(path, -1, group_id)
    except PermissionError:
        raise Failed(
            f"listen.unix_group = {group}: this user may not give a socket to that group; make it a member of it."
        ) from None


def _group_id(group: str) -> int:
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise Failed(f"listen.unix_group = {group}: there is no such group; create it or name another.") from None


def _tls_context(listen: Listen) -> ssl.SSLContext:
    if not (listen.tls_cert and listen.tls_key):
        raise ConfigError("The inherited socket https needs a certificate; set listen.tls_cert and listen.tls_key.")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["http/1.1"])
    _load_certificate(context, listen)
    return context


def _load_certificate(context: ssl.SSLContext, listen: Listen) -> None:
    try:
        context.load_cert_chain(listen.tls_cert, listen.tls_key, password=_no_password)
    except (OSError, ssl.SSLError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"listen.tls_cert = {listen.tls_cert} with tls_key = {listen.tls_key} cannot be used ({reason}); give a PEM certificate and its key."
        ) from None


def _no_password() -> str:
    """In place of OpenSSL's question on the terminal, at which a daemon would hang."""
    raise ConfigError("The key in listen.tls_key is encrypted; give one without a pass phrase, readable only to us.")
