"""Unix sockets of our own, bound at their own path. Standard library only: they are bound before trio is loaded.

Rules
-----
* A socket is bound at the path by which clients know it. The kernel lists it under that name, and systemd-tmpfiles, which
  removes old files from /run, keeps what is listed there (/proc/net/unix). A socket that was bound under another name and
  renamed counts as a leftover.
* A path that a live process listens on is never taken from it, and a path is removed only while it leads to our socket.
"""

import contextlib
import grp
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from sidecar.errors import Failed

__all__ = ["BACKLOG", "bind_unix", "identity_of"]

BACKLOG: Final = 1024  # the kernel caps it at net.core.somaxconn; connections wait here during a restart


@contextlib.contextmanager
def bind_unix(path: Path, mode: int, group: str = "") -> Iterator[socket.socket]:
    """Bind and listen at ``path`` for the time of the block; then remove the path, unless it is another's by then.

    Raises Failed.
    """
    group_id = _group_id(group) if group else -1
    _ensure_path_is_free(path)
    listener = _new_socket(path)
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)  # the leftover of a process that has ended
            # bind creates the file with the mode of the umask: no other user may connect before group and mode are set.
            mask = os.umask(0o177)
            try:
                listener.bind(str(path))
            finally:
                os.umask(mask)
            identity = identity_of(path)
            listener.listen(BACKLOG)  # at once: until then a client is refused
            listener.setblocking(False)
            try:
                if group:
                    _set_group(path, group_id, group)
                path.chmod(mode)
            except BaseException:
                path.unlink(missing_ok=True)
                raise
        except OSError as error:
            raise Failed(
                f"The socket {path} cannot be created ({error.strerror or error}); "
                "create its folder, and let this user write there."
            ) from None
        try:
            yield listener
        finally:
            with contextlib.suppress(OSError):
                if identity_of(path) == identity:  # a newer process may have put its own socket there
                    path.unlink()
    finally:
        listener.close()


def identity_of(path: Path) -> tuple[int, int, int] | None:
    """Return what distinguishes a file from all others that ever had its path; None without one.

    Inode numbers are used again at once, so the time of creation belongs to it (a socket is never modified).
    """
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns


def _new_socket(path: Path) -> socket.socket:
    """Return a Unix socket for ``path``. Raises Failed, as while descriptors are short."""
    try:
        return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    except OSError as error:
        raise Failed(
            f"The socket {path} cannot be created ({error.strerror or error}); raise LimitNOFILE in the unit, or `ulimit -n`."
        ) from None


def _ensure_path_is_free(path: Path) -> None:
    """Raise Failed if a live process listens on ``path``, or if ``path`` is not a socket."""
    try:
        kind = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return  # binding reports what is wrong with the folder
    if not stat.S_ISSOCK(kind):
        raise Failed(f"{path} exists and is not a socket; remove it or choose another path in [listen].")
    with _new_socket(path) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return  # a leftover of a process that has ended
        except (BlockingIOError, TimeoutError):
            pass  # the queue of the listener is full: the process is alive and busy
        except OSError as error:
            raise Failed(
                f"The socket {path} cannot be tried ({error.strerror or error}); "
                "check its owner, or choose another path in [listen]."
            ) from None
    raise Failed(f"Another process listens on {path}; stop it or choose another path in [listen].")


def _set_group(path: Path, group_id: int, group: str) -> None:
    try:
        os.chown(path, -1, group_id)
    except PermissionError:
        raise Failed(
            f"listen.unix_group = {group}: this user may not give a socket to that group; make it a member of the group."
        ) from None


def _group_id(group: str) -> int:
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise Failed(f"listen.unix_group = {group}: the group does not exist; create it or name another.") from None
