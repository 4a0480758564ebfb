"""The checks of this host: clock, outbox folder, SQLite, sockets, limits.

Rules
-----
* The outbox needs a local disk. A tmpfs is empty after a reboot, and network file systems do not provide the shared
  memory that WAL needs (https://www.sqlite.org/wal.html: "all processes must be on the same host computer").
* No check changes anything: a missing folder is not created, only the rights of its nearest existing parent are read.
"""

import ctypes
import os
import re
import resource
import shlex
import socket
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Literal, NamedTuple

from sidecar.config import Config
from sidecar.errors import ConfigError, Failed
from sidecar.outbox import real_path
from sidecar.outbox.database import has_wal_reset_bug, sqlite_version
from sidecar.outbox.rescue import files_set_aside
from sidecar.receive.listeners import probe_tcp
from sidecar.units import show_count, show_size

__all__ = ["CheckResult", "check_host"]

Level = Literal["ok", "warning", "error"]

IN_MEMORY: Final = ("tmpfs", "ramfs", "rootfs")
# File systems that other hosts can write, and those that a program serves: neither shares memory as WAL needs, and the
# locks of one host may be unknown to another. ``fuseblk`` is a local disk.
NETWORK: Final = frozenset(
    [
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "smbfs",
        "smb2",
        "9p",
        "afs",
        "ceph",
        "glusterfs",
        "lustre",
        "beegfs",
        "gpfs",
        "ocfs2",
        "gfs",
        "gfs2",
        "pvfs2",
        "orangefs",
        "coda",
        "ncpfs",
        "ncp",
        "davfs",
        "vboxsf",
        "vmhgfs",
        "prl_fs",
        "acfs",
        "panfs",
        "fuse",
    ]
)
DESCRIPTORS: Final = 4096
FULL_BYTES: Final = 64 * 1024  # a transaction of a few events does not fit any more
# PX documents about 200 requests a second and 1,000,000 a day: sidecar/px/README.md#limits.
PX_PER_SECOND, PX_PER_DAY = 200, 1_000_000
DAY_S: Final = 86_400
TIME_ERROR: Final = 5  # adjtimex(2)


class CheckResult(NamedTuple):
    """The result of one check: ``what`` names the thing in a word or two, ``message`` is one sentence."""

    level: Level
    what: str
    message: str


def check_host(config: Config, *, running: bool) -> Iterator[CheckResult]:
    """Yield the results of all checks of the host; ``running``: a daemon answers at the control socket."""
    yield check_clock()
    yield from check_outbox_folder(real_path(config), config.outbox.max_bytes, running=running)
    yield check_sqlite(sqlite_version())
    yield from check_sockets(config, running=running)
    yield from check_limits(config)


def check_clock(
    now_s: Callable[[], float] = time.time, synchronized: Callable[[], bool | None] = lambda: is_clock_synchronized()
) -> CheckResult:
    """Check that the wall clock is plausible and synchronized: it dates events that carry no date."""
    installed_s = Path(__file__).stat().st_mtime
    if now_s() < installed_s - DAY_S:
        when = time.strftime("%Y-%m-%d", time.gmtime(now_s()))
        return CheckResult(
            "error", "clock", f"The clock says {when}, before this program was installed; set the clock."
        )
    if synchronized() is False:
        return CheckResult(
            "warning", "clock", "The clock is not synchronized and dates events; start systemd-timesyncd or chrony."
        )
    return CheckResult("ok", "clock", f"{time.strftime('%Y-%m-%d %H:%M', time.gmtime(now_s()))} UTC.")


def check_sqlite(version: tuple[int, int, int]) -> CheckResult:
    """Report the SQLite version, and the WAL-reset bug if it has it (sidecar/outbox/README.md#wal)."""
    name = ".".join(map(str, version))
    if has_wal_reset_bug(version):
        message = f"{name} has the WAL-reset bug: do not run Litestream or another program on the outbox file."
        return CheckResult("ok", "SQLite", message)
    return CheckResult("ok", "SQLite", f"{name}.")


def is_clock_synchronized() -> bool | None:
    """Return the kernel's state from adjtimex(2), which needs no privilege for reading; None if it is not available."""
    try:
        answer = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(512))  # a zeroed struct timex reads
    except (OSError, AttributeError):
        return None
    return None if answer < 0 else bool(answer != TIME_ERROR)


# The outbox --------------------------------------------------------------------------------------------------------


def check_outbox_folder(path: Path, max_bytes: int, *, running: bool = False) -> Iterator[CheckResult]:
    """Check the folder of the outbox, its file system and the free space there."""
    folder = path.parent
    existing = _nearest_existing(folder)
    yield _check_folder("outbox", folder, existing, running=running)
    kind = file_system(existing)
    if kind in IN_MEMORY:
        yield CheckResult(
            "error",
            "disk",
            f"{folder} is on {kind}, in memory: a reboot deletes all events; set outbox.path to a path on a disk.",
        )
    elif kind in NETWORK or (kind or "").startswith("fuse."):
        yield CheckResult(
            "error",
            "disk",
            f"{folder} is on {kind}, which is not a local file system: SQLite needs one, and events can be lost; set "
            "outbox.path to a path on a local disk.",
        )
    else:
        yield CheckResult("ok", "disk", f"{folder} is on {kind or 'an unknown file system'}.")
    yield _check_free_space(path, existing, max_bytes)
    yield from (CheckResult("warning", "outbox", sentence) for sentence in files_set_aside(path))


def _check_free_space(path: Path, existing: Path, max_bytes: int) -> CheckResult:
    """Check that the file system can hold an outbox of ``max_bytes``."""
    facts = os.statvfs(existing)
    free_bytes, own_bytes = facts.f_bavail * facts.f_frsize, _size(path)
    beside = f" beside the {show_size(own_bytes)} of the outbox" if own_bytes else " for the outbox"
    message = f"{show_size(free_bytes)} are free{beside}, which may grow to {show_size(max_bytes)}"
    if free_bytes < FULL_BYTES:
        return CheckResult("error", "room", f"{message}: the disk is full; free space there, or events are refused.")
    if free_bytes + own_bytes < max_bytes:
        return CheckResult("warning", "room", f"{message}; free disk space, or lower outbox.max_bytes.")
    return CheckResult("ok", "room", f"{message}.")


def file_system(path: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str | None:
    """Return the type of the file system that ``path`` is on; None if the mount table cannot be read."""
    real = Path(os.path.realpath(path))
    try:
        table = mounts.read_text(encoding="utf-8", errors="surrogateescape")
        device = real.stat().st_dev
    except OSError:
        return None
    return file_system_in(table, str(real), f"{os.major(device)}:{os.minor(device)}")


def file_system_in(table: str, path: str, device: str = "") -> str | None:
    """Return the type of the file system of an absolute path without links, by the text of /proc/self/mountinfo.

    ``device`` is its device as ``major:minor``: a mount with another device may be hidden below a later mount. Some file
    systems (btrfs) show another device in files than in the table; then the longest mount point decides. None if no mount
    point fits. The format is in proc_pid_mountinfo(5).
    """
    fitting: list[tuple[bool, int, str]] = []
    for line in table.splitlines():
        fields, _, rest = line.partition(" - ")
        columns, kind = fields.split(), rest.split()
        if len(columns) < 5 or not kind:
            continue
        point = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), columns[4])
        if f"{path}/".startswith(point.rstrip("/") + "/"):
            fitting.append((columns[2] == device, len(point), kind[0]))
    # Of two mounts at one point the later one is visible: ``max`` returns the first of equal ones.
    return max(reversed(fitting), key=lambda mount: mount[:2])[2] if fitting else None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0  # does not exist yet


def _nearest_existing(folder: Path) -> Path:
    """Return the folder, or its nearest parent that exists."""
    while not os.path.isdir(folder) and folder != folder.parent:
        folder = folder.parent
    return folder


def _is_hidden(folder: Path) -> bool:
    """Return whether the folder may exist, where this user cannot look."""
    try:
        folder.stat()
    except PermissionError:
        return True
    except OSError:
        pass
    return False


def _check_folder(what: str, folder: Path, existing: Path, *, running: bool) -> CheckResult:
    """Check that this user can write a folder; while a daemon runs, it does, and says in its status if it cannot."""
    if existing != folder and not _is_hidden(folder):
        if os.access(existing, os.W_OK):
            return CheckResult("ok", what, f"{folder} does not exist yet; the daemon creates it.")
        return CheckResult(
            "error", what, f"{folder} does not exist and this user cannot create it; create it for the daemon's user."
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        if running:
            return CheckResult("ok", what, f"{folder} is in use by the running daemon.")
        return CheckResult(
            "error",
            what,
            f"This user cannot write {folder}; run the check as the daemon's user or with sudo; the folder must belong to the daemon's user.",
        )
    if stat.S_IMODE(folder.stat().st_mode) & stat.S_IWOTH and not folder.stat().st_mode & stat.S_ISVTX:
        return CheckResult(
            "warning", what, f"Every user of this host can write {folder}; run `chmod o-w {shlex.quote(str(folder))}`."
        )
    return CheckResult("ok", what, f"{folder} is writable.")


# Sockets and limits --------------------------------------------------------------------------------------------------


def check_sockets(config: Config, *, running: bool) -> Iterator[CheckResult]:
    """Check the sockets and addresses of ``[listen]``."""
    listen = config.listen
    for key, text in (("unix", listen.unix), ("control", listen.control), ("control_read", listen.control_read)):
        if text:
            yield _check_socket_path(f"{key} socket", key, Path(text), running=running)
    if not running and not (listen.unix or listen.http or listen.https):
        sentence = (
            "There is nothing to listen on; unless a .socket unit hands a socket over, set listen.unix or listen.http."
        )
        yield CheckResult("warning", "listeners", sentence)
    for what, address in (("http", listen.http), ("https", listen.https)):
        if address:
            yield _check_address(what, address, allow_remote=listen.allow_remote, running=running)


def _check_socket_path(what: str, key: str, path: Path, *, running: bool) -> CheckResult:
    existing = _nearest_existing(path.parent)
    folder_result = _check_folder(what, path.parent, existing, running=running)
    if folder_result.level == "error":
        return folder_result
    if not os.path.lexists(path):
        return CheckResult(
            "ok", what, f"{path} can be created." if not running else f"{path} is created by the daemon."
        )
    if not stat.S_ISSOCK(path.lstat().st_mode):
        return CheckResult(
            "error", what, f"{path} exists and is not a socket; remove it, or set another path in [listen]."
        )
    if running or not _answers(path):
        return CheckResult("ok", what, f"{path} exists.")
    if key == "unix":
        return CheckResult("ok", what, f"{path} is open, held by systemd or another process.")
    return CheckResult("error", what, f"Another program listens at {path}; stop it, or set another listen.{key}.")


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True


def _check_address(what: str, address: str, *, allow_remote: bool, running: bool) -> CheckResult:
    if running:
        return CheckResult("ok", what, f"The daemon listens on {address}.")
    try:
        probe_tcp(f"listen.{what}", address, allow_remote=allow_remote)
    except ConfigError as error:
        return CheckResult("error", what, str(error))
    except Failed as error:
        why = getattr(error.__cause__, "strerror", None) or error.__cause__
        return CheckResult(
            "warning",
            what,
            f"{address} cannot be opened ({why}); unless px-sidecar-http.socket holds it, set another listen.{what}.",
        )
    return CheckResult("ok", what, f"{address} is free.")


def check_limits(config: Config) -> Iterator[CheckResult]:
    """Check the limit of open files, and the configured pace against PX's limits."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < DESCRIPTORS:
        yield CheckResult(
            "warning",
            "open files",
            f"The limit is {hard} (ulimit -Hn) and each connection takes one; raise it to {DESCRIPTORS}.",
        )
    else:
        yield CheckResult("ok", "open files", "The limit is high enough.")
    deliver = config.deliver
    hosts = f" on {deliver.hosts} hosts together" if deliver.hosts > 1 else ""
    pace = f"{deliver.per_second:g} requests a second and {show_count(deliver.per_day)} a day{hosts}"
    if deliver.per_second > PX_PER_SECOND or deliver.per_day > PX_PER_DAY:
        yield CheckResult(
            "warning",
            "limits",
            f"{pace} exceed what PX documents (about {PX_PER_SECOND} and {PX_PER_DAY:,}); ask Gainsight, or lower "
            "deliver.per_second and deliver.per_day.",
        )
    else:
        yield CheckResult("ok", "limits", f"{pace}.")
