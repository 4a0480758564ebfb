"""What ``px-sidecar check`` looks at on this host; each finding is a sentence that says what to do.

The rules behind them:

* The outbox needs a local disk: on tmpfs it is gone at the next boot, and file locks and the WAL need what network file
  systems do not promise (sqlite.org/wal.html, "all processes must be on the same host").
* Nothing here changes anything; a file that would have to be made is only imagined.
"""

import ctypes
import os
import resource
import socket
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Literal, NamedTuple

from sidecar.config import Config
from sidecar.config.schema import split_address
from sidecar.outbox.sqlite_version import has_wal_reset_bug, sqlite_version
from sidecar.units import show_count, show_size

__all__ = ["Finding", "on_this_host"]

Level = Literal["ok", "warning", "error"]

IN_MEMORY: Final = ("tmpfs", "ramfs", "rootfs")
NETWORK: Final = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre", "beegfs")
DESCRIPTORS: Final = 4096
# facts/px_and_sdks.md 1.1: about 200 requests a second and 1,000,000 a day.
PX_PER_SECOND, PX_PER_DAY = 200, 1_000_000
DAY_S: Final = 86_400
TIME_ERROR: Final = 5  # adjtimex(2)


class Finding(NamedTuple):
    """One thing that was looked at. ``what`` names it in a word or two."""

    level: Level
    what: str
    message: str


def on_this_host(config: Config, *, running: bool) -> Iterator[Finding]:
    """All findings about the host; ``running``: a daemon answers at the control socket."""
    yield clock()
    yield from outbox_place(Path(config.outbox.path), config.outbox.max_bytes)
    yield sqlite(sqlite_version())
    yield from sockets(config, running=running)
    yield from limits(config)


def clock(
    now_s: Callable[[], float] = time.time, synchronised: Callable[[], bool | None] = lambda: is_synchronised()
) -> Finding:
    """Whether the wall clock can be right: events without a date get its time."""
    installed_s = Path(__file__).stat().st_mtime
    if now_s() < installed_s - DAY_S:
        when = time.strftime("%Y-%m-%d", time.gmtime(now_s()))
        return Finding("error", "clock", f"It says {when}, which is before this program was installed; set the clock.")
    if synchronised() is False:
        return Finding(
            "warning", "clock", "It is not synchronised; start systemd-timesyncd or chrony, as events are dated by it."
        )
    return Finding("ok", "clock", f"It says {time.strftime('%Y-%m-%d %H:%M', time.gmtime(now_s()))} UTC.")


def sqlite(version: tuple[int, int, int]) -> Finding:
    """Whether this SQLite bears a second program at the outbox."""
    name = ".".join(map(str, version))
    if has_wal_reset_bug(version):
        message = (
            f"{name} does not bear a second program at its file: do not point Litestream or the like at the outbox."
        )
        return Finding("ok", "SQLite", message)
    return Finding("ok", "SQLite", f"{name}.")


def is_synchronised() -> bool | None:
    """Whether the kernel thinks so (adjtimex(2), which needs no privilege to ask); None if it does not say."""
    try:
        answer = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(512))  # a zeroed struct timex: ask only
    except (OSError, AttributeError):
        return None
    return None if answer < 0 else bool(answer != TIME_ERROR)


# The outbox --------------------------------------------------------------------------------------------------------


def outbox_place(path: Path, max_bytes: int) -> Iterator[Finding]:
    """The folder of the outbox, its file system and its room."""
    folder = path.parent
    there = _existing(folder)
    yield _folder("outbox", folder, there)
    kind = file_system(there)
    if kind in IN_MEMORY:
        yield Finding(
            "error",
            "disk",
            f"{folder} is on {kind}, in memory: events are gone at a reboot; give outbox.path on a disk.",
        )
    elif kind in NETWORK or (kind or "").startswith("fuse."):
        yield Finding(
            "error",
            "disk",
            f"{folder} is on {kind}: SQLite needs a local file system; give outbox.path on a local disk.",
        )
    else:
        yield Finding("ok", "disk", f"{folder} is on {kind or 'a file system of unknown kind'}.")
    yield room(path, there, max_bytes)


def room(path: Path, there: Path, max_bytes: int) -> Finding:
    """Whether the file system could hold all that ``max_bytes`` allows."""
    facts = os.statvfs(there)
    free_bytes = facts.f_bavail * facts.f_frsize + _size(path)
    message = f"{show_size(free_bytes)} are there for the outbox, which may take {show_size(max_bytes)}"
    if free_bytes < max_bytes:
        return Finding("warning", "room", f"{message}; make room, or lower outbox.max_bytes.")
    return Finding("ok", "room", f"{message}.")


def file_system(path: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str | None:
    """The kind of file system that ``path`` is on; None if the kernel does not tell."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    best, kind = "", None
    real = f"{os.path.realpath(path)}/"
    for line in lines:
        fields, _, rest = line.partition(" - ")
        point = fields.split()[4].replace("\\040", " ")
        if real.startswith(point.rstrip("/") + "/") and len(point) >= len(best):  # of two at one point the later counts
            best, kind = point, rest.split()[0]
    return kind


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0  # not there yet


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    return folder


def _folder(what: str, folder: Path, there: Path) -> Finding:
    if there != folder:
        if os.access(there, os.W_OK):
            return Finding("ok", what, f"{folder} is not there yet; the daemon makes it.")
        return Finding("error", what, f"{folder} is not there and cannot be made by this user; make it for the daemon.")
    if not os.access(folder, os.W_OK | os.X_OK):
        return Finding(
            "error", what, f"{folder} cannot be written by this user; run this as the daemon's user, or chown it."
        )
    if stat.S_IMODE(folder.stat().st_mode) & stat.S_IWOTH and not folder.stat().st_mode & stat.S_ISVTX:
        return Finding("warning", what, f"{folder} can be written by everybody; chmod o-w it.")
    return Finding("ok", what, f"{folder} can be written.")


# Sockets and limits --------------------------------------------------------------------------------------------------


def sockets(config: Config, *, running: bool) -> Iterator[Finding]:
    """The places where events and commands come in."""
    listen = config.listen
    for what, text in (("unix socket", listen.unix), ("control socket", listen.control)):
        if text:
            yield _socket_path(what, Path(text), running=running)
    for what, address in (("http", listen.http), ("https", listen.https)):
        if address:
            yield _address(what, address, running=running)


def _socket_path(what: str, path: Path, *, running: bool) -> Finding:
    there = _existing(path.parent)
    found = _folder(what, path.parent, there)
    if found.level == "error":
        return found
    if not os.path.lexists(path):
        return Finding("ok", what, f"{path} can be made." if not running else f"{path} is the daemon's own to make.")
    if not stat.S_ISSOCK(path.lstat().st_mode):
        return Finding("error", what, f"{path} exists and is no socket; remove it, or choose another path in [listen].")
    if running or not _answers(path):
        return Finding("ok", what, f"{path} is there.")
    if what == "unix socket":
        return Finding("ok", what, f"{path} is held open, by systemd or another process.")
    return Finding(
        "error", what, f"Something answers at {path} that is no px-sidecar; stop it, or choose another path."
    )


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True


def _address(what: str, address: str, *, running: bool) -> Finding:
    if running:
        return Finding("ok", what, f"{address} is the daemon's.")
    host, port = split_address(what, address)
    try:
        family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except OSError as error:
        why = error.strerror or str(error)
        return Finding(
            "warning",
            what,
            f"{address} cannot be opened ({why}); if that is not px-sidecar-http.socket, choose another listen.{what}.",
        )
    return Finding("ok", what, f"{address} is free.")


def limits(config: Config) -> Iterator[Finding]:
    """Limits of the system, and those of PX."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < DESCRIPTORS:
        yield Finding(
            "warning", "open files", f"At most {hard} (ulimit -Hn), each connection is one; allow {DESCRIPTORS}."
        )
    else:
        yield Finding("ok", "open files", "As many as are needed.")
    deliver = config.deliver
    hosts = f" on {deliver.hosts} hosts together" if deliver.hosts > 1 else ""
    pace = f"{deliver.per_second:g} requests a second and {show_count(deliver.per_day)} a day{hosts}"
    if deliver.per_second > PX_PER_SECOND or deliver.per_day > PX_PER_DAY:
        yield Finding(
            "warning",
            "limits",
            f"{pace} is more than PX documents (about {PX_PER_SECOND} and {PX_PER_DAY:,}); ask Gainsight first, or lower "
            "deliver.per_second and deliver.per_day.",
        )
    else:
        yield Finding("ok", "limits", f"{pace}.")
