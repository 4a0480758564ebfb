"""The simulated disk: errors and delays of store calls, and the files that a crash leaves.

Between two statements the files are safe. A crash within a commit leaves the files of before plus a prefix of what was
written to the log. A crash within a checkpoint leaves the synced log and a database in which any copied page may still
be the old one.
"""

import sqlite3
from collections import Counter
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from sidecar.outbox import Store
from sidecar.outbox.rescue import rescued_files

__all__ = ["IN_MEMORY", "Disk", "Files", "empty_outbox"]

# The crashes are simulated, so the files need no real disk.
IN_MEMORY = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
PAGE_BYTES, SECTOR_BYTES = 4096, 512
LOG_HEAD_BYTES, FRAME_BYTES = 32, 24 + PAGE_BYTES
ERRORS = {"full": sqlite3.SQLITE_FULL, "busy": sqlite3.SQLITE_BUSY}


class Files(NamedTuple):
    """The files of an outbox. The index of the log (`-shm`) is left out: a new process rebuilds it."""

    database: bytes
    log: bytes

    @classmethod
    def of(cls, path: Path) -> "Files":
        """Read the files at ``path``."""
        log = _log_of(path)
        return cls(path.read_bytes(), log.read_bytes() if log.exists() else b"")

    def write(self, path: Path) -> None:
        """Write the files for the next process."""
        path.write_bytes(self.database)
        _log_of(path).write_bytes(self.log)

    def torn(self, after: "Files", rng: Random) -> "Files":
        """Return what a power failure may leave between these files and those ``after`` one statement."""
        if self.database != after.database:
            pages = bytearray(after.database)
            for at in range(0, len(pages), PAGE_BYTES):
                if rng.random() < 0.5:
                    pages[at : at + PAGE_BYTES] = self.database[at : at + PAGE_BYTES].ljust(PAGE_BYTES, b"\0")
            return Files(bytes(pages), after.log or self.log)  # a checkpoint truncates the log last
        cut = rng.choice(cuts(self.log, after.log))
        return Files(after.database, after.log[:cut] + self.log[cut:])


def cuts(before: bytes, after: bytes) -> list[int]:
    """Return where writing may have stopped: at a sector (power failure), or between two writes of SQLite (``kill -9``)."""
    old = before.ljust(len(after), b"\0")
    sectors = [
        at for at in range(0, len(after), SECTOR_BYTES) if old[at : at + SECTOR_BYTES] != after[at : at + SECTOR_BYTES]
    ]
    if not sectors:
        return [len(after)]
    frames = [
        at + head for at in range(LOG_HEAD_BYTES, len(after), FRAME_BYTES) for head in (0, FRAME_BYTES - PAGE_BYTES)
    ]
    writes = [at for at in frames if sectors[0] <= at <= sectors[-1]]
    return [*sectors, *writes, len(after)]


def _log_of(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


# Triggers record deleted rows, rows that were dead and rows that were replayed, for the check at the end. They write in the
# same commit as the change, so that a crash undoes both or neither.
_LEDGER = """
CREATE TABLE gone (id INTEGER PRIMARY KEY, state, reason, attempts, received_ms, settled_ms, message_id);
CREATE TRIGGER gone AFTER DELETE ON events BEGIN
    INSERT INTO gone VALUES (OLD.id, OLD.state, OLD.reason, OLD.attempts, OLD.received_ms, OLD.settled_ms,
                             json_extract(CAST(OLD.body AS TEXT), '$.messageId'));
END;
CREATE TABLE was_dead (id INTEGER PRIMARY KEY);
CREATE TRIGGER was_dead AFTER INSERT ON dead BEGIN
    INSERT OR IGNORE INTO was_dead VALUES (NEW.id);
END;
CREATE TABLE replayed (id INTEGER PRIMARY KEY);
CREATE TRIGGER replayed AFTER UPDATE OF state ON events WHEN OLD.state = 6 AND NEW.state < 4 BEGIN
    INSERT OR IGNORE INTO replayed VALUES (NEW.id);
END;
"""


@cache
def empty_outbox() -> Files:
    """Return a new outbox. It is created once, because that takes longer than many simulated processes."""
    with TemporaryDirectory(dir=IN_MEMORY) as folder:
        path = Path(folder) / "0.db"
        store = Store(path)
        store.connection.executescript(_LEDGER)
        store.close()
        return Files.of(path)


class Disk:
    """The errors and delays of the next store calls.

    ``errors`` holds one entry for each of the next commits (or of all next statements), "" for none. ``coverage`` counts
    the errors raised.
    """

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.any_statement = False
        self.coverage: Counter[str] = Counter()
        self.failed = 0
        self.slow_until_s = 0.0
        self.up_to_s = 0.0
        self.remains: Files | None = None  # the files after a power failure
        self._power_cut: tuple[int, Path, Random] | None = None
        # The files as they were when they were taken away from the running process, and the database's inode then.
        self._taken: tuple[Files, Path, int] | None = None
        self._replaced = False

    def stop_faults(self) -> None:
        """Stop injecting errors and delays."""
        self.errors, self.slow_until_s = [], 0.0

    def cut_power(self, commits: int, path: Path, rng: Random) -> None:
        """Let the power fail within a commit or checkpoint, after ``commits`` more of them."""
        self._power_cut = (commits, path, rng)

    def take_files(self, path: Path, fault: str) -> None:
        """Remove files of the running process, or put a copy in their place; ``files`` returns what a restart would find."""
        if self._taken is not None:
            return
        self._taken = files, _, _ = Files.of(path), path, path.stat().st_ino
        self._replaced = fault == "replaced"
        if fault == "log_removed":
            _log_of(path).unlink(missing_ok=True)
        elif fault == "removed":
            for file in (path, _log_of(path), path.with_name(path.name + "-shm")):
                file.unlink(missing_ok=True)
        else:
            copy = path.with_name("backup.db")
            files.write(copy)
            _log_of(copy).replace(_log_of(path))
            copy.replace(path)
            self._taken = files, path, path.stat().st_ino
        self.coverage[f"files {fault}"] += 1

    def files(self, path: Path) -> Files:
        """Return what the next process finds: the files; those of the time when they were taken, until they are back.

        After a replacement the operator takes the rescued copy, if there is one.
        """
        if self._taken is None or self._taken[1] != path:
            return Files.of(path)
        taken, _, inode = self._taken
        if path.exists() and path.stat().st_ino != inode:
            assert not self._replaced, "the file that was put in the place of the outbox was overwritten"
            self.coverage["files put back"] += 1
            self._taken = None
            return Files.of(path)
        rescued = rescued_files(path)
        if rescued:
            self.coverage["files rescued"] += 1
        return Files.of(rescued[-1]) if rescued else taken

    def new_process(self) -> None:
        """Restore the power, and the files that were taken away, for the next process."""
        self._power_cut = self.remains = self._taken = None

    def connection(self) -> type[sqlite3.Connection]:
        """Return the class of connections to this disk."""
        disk = self

        class Connection(sqlite3.Connection):
            def execute(self, sql: str, *rest: Any) -> sqlite3.Cursor:
                if not disk.errors and disk._power_cut is None:
                    return super().execute(sql, *rest)
                return disk._statement(sql, partial(super().execute, sql, *rest))

            def executemany(self, sql: str, *rest: Any) -> sqlite3.Cursor:
                if not disk.errors:
                    return super().executemany(sql, *rest)
                return disk._perform(sql, partial(super().executemany, sql, *rest))

        return Connection

    def _statement(self, sql: str, call: Callable[[], Any]) -> Any:
        if (
            self._power_cut is None
            or self.remains is not None
            or not sql.startswith(("COMMIT", "PRAGMA wal_checkpoint"))
        ):
            return self._perform(sql, call)
        commits, path, rng = self._power_cut
        self._power_cut = (commits - 1, path, rng)
        if commits:
            return self._perform(sql, call)
        before = self.files(path)
        try:
            return self._perform(sql, call)
        finally:
            after = self.files(path)
            self.remains = before.torn(after, rng)
            if self.remains != after:
                self.coverage["torn log" if self.remains.database == after.database else "torn database"] += 1

    def _perform(self, sql: str, call: Callable[[], Any]) -> Any:
        fails = self.errors and (sql == "COMMIT" or (self.any_statement and sql != "ROLLBACK"))
        error_kind = self.errors.pop(0) if fails else ""
        if error_kind in ("", "ioerr_after"):
            done = call()
            if not error_kind:
                return done
            done.close()  # else the traceback of the error keeps its statement, and that its lock
        self.failed += 1
        self.coverage[error_kind] += 1
        if sql != "COMMIT":
            self.coverage["not in a commit"] += 1
        error = sqlite3.OperationalError(f"injected {error_kind}")
        error.sqlite_errorcode = ERRORS.get(error_kind, sqlite3.SQLITE_IOERR)
        raise error
