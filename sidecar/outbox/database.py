"""The file: how it is opened, and what holds it exclusively.

Rules
-----
* One read-write connection, in one process. SQLite 3.7.0 to 3.51.2 can lose committed rows when two connections
  checkpoint at one instant (sqlite.org/wal.html section 11; facts: ``field_lessons.md`` 2), so a lock file refuses the
  second process, and ``sqlite3.connect`` for writing stands in this file only.
* What a setting should be is asserted after it was set: SQLite ignores pragmas that it cannot follow.
* The WAL is kept smaller than the reserve of ``room.py``: on a full disk what it holds must still fit into the file.
"""

import errno
import fcntl
import os
import sqlite3
from pathlib import Path
from typing import Literal

import sqlite_utils

from sidecar.errors import ConfigError, Failed
from sidecar.outbox.schema import SCHEMA_VERSION, migrations

__all__ = ["Lock", "damaged", "open_database", "take_lock", "wal_bytes"]

PAGE_BYTES = 4096
CACHE_KIB = 8 * 1024
# A checkpoint every 16 MiB of WAL: rare enough not to be felt, small enough to be replayed within a second.
WAL_BYTES = 16 * 2**20
WAL_SHARE = 24  # never more than this part of the file system
BUSY_TIMEOUT_S = 5.0


class Lock:
    """The exclusive hold on an outbox; released by ``release`` or by the end of the process, however it ends."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def release(self) -> None:
        """Give the outbox free for another process."""
        os.close(self._descriptor)


def take_lock(path: Path) -> Lock:
    """Hold the outbox at ``path`` exclusively, with a lock file beside it.

    Raises Failed if another process holds it or the folder is not writable; nothing is waited for.
    """
    lock_path = path.with_name(path.name + ".lock")
    try:
        descriptor = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Failed(
            f"The outbox folder {path.parent} cannot be written ({error.strerror}); create it or give its path with outbox.path."
        ) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
        os.close(descriptor)
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise Failed(
                f"The outbox lock {lock_path} cannot be taken ({error.strerror}); is its file system local?"
            ) from None
        raise Failed(
            f"The outbox {path} is held by another process (pid {holder or 'unknown'}); stop that one or give this one its own outbox.path."
        ) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    return Lock(descriptor)


def wal_bytes(folder: Path) -> int:
    """How large the WAL grows before it is copied into the file; less on a small file system."""
    try:
        facts = os.statvfs(folder)
    except OSError:
        return WAL_BYTES  # opening the database says what is wrong with the folder
    return max(min(WAL_BYTES, facts.f_blocks * facts.f_frsize // WAL_SHARE), 16 * PAGE_BYTES)


def _make_private(path: Path) -> None:
    """A new file is the daemon's own whatever the umask: it holds what people do. SQLite's files beside it follow it."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError:
        pass  # opening it as a database says what is wrong


def damaged(why: str) -> sqlite3.DatabaseError:
    """The error for damage that SQLite does not see, as if it had."""
    error = sqlite3.DatabaseError(why)
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error


def open_database(
    path: Path, *, durability: Literal["disk", "process"], factory: type[sqlite3.Connection] = sqlite3.Connection
) -> sqlite3.Connection:
    """The one read-write connection, with the schema made or brought up to date.

    The connection is in autocommit mode: whoever writes begins and commits. It may be used from any thread, one at a
    time. ``factory`` is the seam through which tests make calls fail. Raises Failed if the file cannot be opened or
    written, ConfigError if it was written by a newer version or is not a database.
    """
    connection: sqlite3.Connection | None = None
    _make_private(path)
    try:
        connection = sqlite3.connect(
            path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False, factory=factory
        )
        _set_up(connection, path, durability)
        return connection
    except BaseException as error:
        if connection is not None:
            connection.close()
        if isinstance(error, sqlite3.Error):
            raise _explained(error, path) from error
        raise


def _explained(error: sqlite3.Error, path: Path) -> Failed | ConfigError:
    if isinstance(error, sqlite3.OperationalError):
        return Failed(
            f"The outbox {path} cannot be opened for writing ({error}); check its owner, its mode and the free space."
        )
    return ConfigError(
        f"The outbox {path} is damaged or no outbox ({error}); move it away to start with an empty one, and keep it: "
        "`sqlite3 FILE .recover` often gets events back."
    )


def _set_up(connection: sqlite3.Connection, path: Path, durability: str) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > SCHEMA_VERSION:
        raise ConfigError(
            f"The outbox {path} was written by a newer px-sidecar (schema {version}, this one knows {SCHEMA_VERSION}); "
            "install that version or give another outbox.path."
        )
    if version == 0:
        connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    limit_bytes = wal_bytes(path.parent)
    _require(connection, "journal_mode", "wal", "wal")
    _require(connection, "synchronous", "FULL" if durability == "disk" else "NORMAL", 2 if durability == "disk" else 1)
    _require(connection, "cache_size", str(-CACHE_KIB), -CACHE_KIB)
    # What is deleted is overwritten, always: a row that grew has left its old text behind in its page.
    _require(connection, "secure_delete", "ON", 1)
    _require(connection, "temp_store", "MEMORY", 2)
    _require(connection, "journal_size_limit", str(2 * limit_bytes), 2 * limit_bytes)
    _require(connection, "wal_autocheckpoint", str(limit_bytes // PAGE_BYTES), limit_bytes // PAGE_BYTES)
    if version < SCHEMA_VERSION:
        # No plugin of any installed package may run code in this process.
        migrations.apply(sqlite_utils.Database(connection, execute_plugins=False, recursive_triggers=False))


def _require(connection: sqlite3.Connection, pragma: str, value: str, expected: str | int) -> None:
    connection.execute(f"PRAGMA {pragma} = {value}").fetchall()
    actual = connection.execute(f"PRAGMA {pragma}").fetchone()[0]
    if actual != expected:
        raise Failed(
            f"SQLite did not accept {pragma} = {value} (it says {actual}); is the file system able to hold a WAL database?"
        )
