"""Unix sockets whose path vanishes: our own are bound again, and inherited ones reported.

A socket that was inherited belongs to its ``.socket`` unit: only systemd can bind it again.
"""

import contextlib
import logging
import re
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import trio

from sidecar.errors import Failed
from sidecar.receive.unix_sockets import identity_of

__all__ = ["keep_open", "watch_inherited"]

log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 1.0


async def keep_open(
    path: str,
    bind: Callable[[], contextlib.AbstractContextManager[socket.socket | None]],
    reopened: Callable[[socket.socket], None],
    stack: contextlib.ExitStack,
) -> None:
    """Bind ``path`` again each time that it has vanished, and pass the new listener to ``reopened``; never returns.

    The new listeners live as long as ``stack``. What stands at the path instead is never touched, but named in the log.
    """
    reported = ""
    ours = named = identity_of(Path(path))
    while True:
        await trio.sleep(LOOK_EVERY_S)
        found = identity_of(Path(path))
        if found is not None:
            if found not in (ours, named):
                named = found  # once, not every second
                log.error(
                    "Another file stands at the socket %s, and clients do not reach this daemon; remove it, and the socket is "
                    "opened again.",
                    path,
                )
            continue
        try:
            listener = stack.enter_context(bind())
        except Failed as error:
            if str(error) != reported:  # once, not every second
                reported = str(error)
                log.error("The socket %s has vanished: %s", path, error)
            continue
        reported, ours = "", identity_of(Path(path))
        if listener is not None:
            log.warning("The socket %s had vanished; it is open again.", path)
            reopened(listener)


async def watch_inherited(listeners: Sequence[socket.socket], report: Callable[[list[str]], None]) -> None:
    """Report, each second, the inherited Unix sockets that clients cannot reach any more; never returns."""
    paths = [path for path in map(_path_of, listeners) if path is not None and _may_be_looked_at(path)]
    known = {path: identity_of(path) for path in paths}
    reported: list[str] = []
    while True:
        sentences = _vanished(known)
        if sentences != reported:
            for sentence in sentences:
                log.error("%s", sentence)
            reported = sentences
            report(sentences)
        await trio.sleep(LOOK_EVERY_S)


def _vanished(known: dict[Path, tuple[int, int, int] | None]) -> list[str]:
    """Return a sentence for each path that no longer leads to the socket that it led to."""
    return [
        f"The socket {path} has vanished, and clients cannot connect; run `systemctl restart {_unit_of(path)}`."
        for path, identity in known.items()
        # Without an identity it was gone before this process began, as after a restart of the service alone.
        if identity is None or identity_of(path) != identity
    ]


def _may_be_looked_at(path: Path) -> bool:
    """Return False in a folder that this process may not search, as with ``ProtectHome=``: clients may reach the socket there."""
    try:
        path.lstat()
    except PermissionError:
        return False
    except OSError:
        pass  # it is not there
    return True


def _path_of(listener: socket.socket) -> Path | None:
    """Return the path of a Unix socket; None for another one, and for an abstract name."""
    name = listener.getsockname() if listener.family == socket.AF_UNIX else b""
    return None if not isinstance(name, str) or not name.startswith("/") else Path(name)


def _unit_of(path: Path) -> str:
    """Return the ``.socket`` unit of a path, by the scheme of the units for instances."""
    instance = re.fullmatch(r"events-(.+)\.sock", path.name)
    return f"px-sidecar@{instance[1]}.socket" if instance else "px-sidecar.socket"
