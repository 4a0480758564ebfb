"""The database file: opening it with the right settings. ``lock.py`` holds it exclusively.

Rules
-----
* One read-write connection, in one process. SQLite 3.7.0 to 3.51.2 can lose committed rows when two connections
  checkpoint at the same moment (sidecar/outbox/README.md#wal). So a lock refuses a second process, and only this
  module calls ``sqlite3.connect`` for writing.
* Every setting is read back after it was set: SQLite silently ignores a pragma that it cannot apply.
* The WAL stays smaller than the reserve of ``capacity.py``: on a full disk its contents must still fit into the file.
"""

import os
import sqlite3
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import Any, Final, Literal

from sidecar.errors import ConfigError, Failed
from sidecar.outbox.lock import SCHEMA_VERSION, newer_schema

__all__ = [
    "copy_database",
    "damaged",
    "has_wal_reset_bug",
    "insert_columns",
    "open_database",
    "sqlite_version",
    "wal_bytes",
]

PAGE_BYTES = 4096
CACHE_KIB = 8 * 1024
# The WAL is checkpointed when it reaches 16 MiB: rarely enough not to slow commits, and replayed within a second.
WAL_BYTES = 16 * 2**20
WAL_SHARE = 24  # on a small file system the WAL takes at most one part in 24
BUSY_TIMEOUT_S = 5.0
BACKUP_PAGES = 2_000

# The WAL-reset bug: two connections that write or checkpoint at one instant can lose committed rows in SQLite 3.7.0 to
# 3.51.2; fixed in 3.51.3 and on the branches 3.44.6 and 3.50.7 (https://www.sqlite.org/wal.html section 11).
_BUG_SINCE: Final = (3, 7, 0)
_BUG_FIXED: Final = (3, 51, 3)
_BUG_FIXED_BRANCHES: Final = ((3, 44, 6), (3, 50, 7))

# Rows per INSERT statement, largest first: few statements for any number of rows, and few different ones to prepare.
# 80 rows of 12 columns stay below the 999 parameters that an old SQLite accepts.
INSERT_SIZES: Final = (80, 16, 4, 1)


def wal_bytes(folder: Path) -> int:
    """Return the size at which the WAL is copied into the file, in bytes; smaller on a small file system."""
    try:
        facts = os.statvfs(folder)
    except OSError:
        return WAL_BYTES  # opening the database reports what is wrong with the folder
    return max(min(WAL_BYTES, facts.f_blocks * facts.f_frsize // WAL_SHARE), 16 * PAGE_BYTES)


def _make_private(path: Path) -> None:
    """Create the file with mode 0600 whatever the umask: it holds personal data. SQLite copies the mode to its others."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError:
        pass  # opening it as a database reports what is wrong


def damaged(why: str) -> sqlite3.DatabaseError:
    """Return the error that SQLite would raise, for damage that only this program can see."""
    error = sqlite3.DatabaseError(why)
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error


def open_database(
    path: Path, *, durability: Literal["disk", "process"], factory: type[sqlite3.Connection] = sqlite3.Connection
) -> sqlite3.Connection:
    """Open the one read-write connection, and create or migrate the schema.

    The connection is in autocommit mode: the caller begins and commits transactions. It may be used from any thread, by
    one thread at a time. ``factory`` is the seam through which tests make calls fail.

    Raises Failed if the file cannot be opened or written, ConfigError if it was written by a newer version or is not a
    database.
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
        f"The outbox {path} is damaged or is not an outbox ({error}); move it away to start with an empty one, and "
        "keep it: `sqlite3 FILE .recover` can often recover events."
    )


def _set_up(connection: sqlite3.Connection, path: Path, durability: str) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > SCHEMA_VERSION:
        raise newer_schema(path, version)
    if version == 0:  # both can be chosen only before the first table exists
        connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    limit_bytes = wal_bytes(path.parent)
    _require(connection, "journal_mode", "wal", "wal")
    _require(connection, "synchronous", "FULL" if durability == "disk" else "NORMAL", 2 if durability == "disk" else 1)
    _require(connection, "cache_size", str(-CACHE_KIB), -CACHE_KIB)
    # Deleted text must not stay in the file. Always on: a row that grew has left its old text in its page.
    _require(connection, "secure_delete", "ON", 1)
    _require(connection, "temp_store", "MEMORY", 2)
    # Without a size limit a WAL that grew once keeps its size.
    _require(connection, "journal_size_limit", str(2 * limit_bytes), 2 * limit_bytes)
    _require(connection, "wal_autocheckpoint", str(limit_bytes // PAGE_BYTES), limit_bytes // PAGE_BYTES)
    if version < SCHEMA_VERSION:
        _migrate(connection)


def _migrate(connection: sqlite3.Connection) -> None:
    # sqlite_utils imports these where they are installed: 12 MB that stay for the life of the daemon, and nothing uses.
    absent = [name for name in ("numpy", "pandas") if name not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]  # None: their import fails
    try:
        import sqlite_utils  # here: it takes a third of the time to start, and a file is migrated once

        from sidecar.outbox.schema import migrations
    finally:
        for name in absent:
            del sys.modules[name]
    # Without this, plugins of any installed package would run code in this process.
    migrations.apply(sqlite_utils.Database(connection, execute_plugins=False, recursive_triggers=False))


def copy_database(connection: sqlite3.Connection, target: Path, progress: Callable[[], object] = lambda: None) -> None:
    """Copy an open database into the new file ``target``, which is a single file without a log when this returns.

    ``progress`` is called after every ``BACKUP_PAGES``. Raises OSError or sqlite3.Error.
    """
    os.close(os.open(target, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    copy = sqlite3.connect(target)
    try:
        connection.backup(copy, pages=BACKUP_PAGES, progress=lambda *_: progress())
        copy.execute("PRAGMA journal_mode = DELETE").fetchall()
    finally:
        copy.close()


def _require(connection: sqlite3.Connection, pragma: str, value: str, expected: str | int) -> None:
    connection.execute(f"PRAGMA {pragma} = {value}").fetchall()
    actual = connection.execute(f"PRAGMA {pragma}").fetchone()[0]
    if actual != expected:
        raise Failed(
            f"SQLite did not accept {pragma} = {value} (it reports {actual}); put the outbox on a local file system."
        )


def sqlite_version() -> tuple[int, int, int]:
    """Return the version of the SQLite library that this process uses."""
    return sqlite3.sqlite_version_info


def has_wal_reset_bug(version: tuple[int, int, int]) -> bool:
    """Return True if a checkpoint by a second program (Litestream, sqlite3) can damage the outbox."""
    if any(version[:2] == branch[:2] and version >= branch for branch in _BUG_FIXED_BRANCHES):
        return False
    return _BUG_SINCE <= version < _BUG_FIXED


def insert_columns(
    connection: sqlite3.Connection,
    into: str,
    columns: Mapping[str, Sequence[Any]],
    usual: Mapping[str, Sequence[Any]],
    alike: Mapping[str, Any],
) -> None:
    """Insert rows, given by column, as ``INSERT <into> (…) VALUES (…), (…)``, in their order. Raises sqlite3.Error.

    ``columns`` and ``usual`` are of one length, a value for each row; ``alike`` are columns with one value for all rows, which
    is passed once. So are those of ``usual`` if in each of them all rows have the same, as they usually do.

    Python's sqlite3 releases the interpreter lock around every step of a statement. With one statement per row, the
    store's thread would wait for the lock at every row while another thread parses events; with one statement for many
    rows it inserts them all while the other thread runs.
    """
    left = len(next(iter(columns.values())))
    # All or none: a prepared statement keeps its last values, and one for each choice of columns would keep 80 bodies each.
    if left and all(values.count(values[0]) == left for values in usual.values()):
        alike = {**alike, **{name: values[0] for name, values in usual.items()}}
    else:
        columns = {**columns, **usual}
    names, rows = (*alike, *columns), zip(*columns.values(), strict=True)
    for size in INSERT_SIZES:
        while left >= size:
            values = chain(alike.values(), chain.from_iterable(islice(rows, size)))
            connection.execute(_insert_statement(into, names, len(alike), size), list(values))
            left -= size


@lru_cache(maxsize=64)
def _insert_statement(into: str, columns: tuple[str, ...], alike: int, size: int) -> str:
    """Return the statement for ``size`` rows; the first ``alike`` columns and parameters are the same in all of them.

    Without numbered parameters: for each of them Python 3.12.0 to 3.12.3 warn (https://github.com/python/cpython/issues/117995).
    """
    width = len(columns) - alike
    row = f"({', '.join('?' * width)})"
    rows = f"VALUES {', '.join([row] * size)}"
    if alike:
        each = [*"?" * alike, *[f"column{number}" for number in range(1, width + 1)]]
        rows = f"SELECT {', '.join(each)} FROM ({rows})"
    return f"INSERT {into} ({', '.join(columns)}) {rows}"
