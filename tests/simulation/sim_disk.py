"""The disk: errors and slowness of store calls, and what of a file a crash leaves behind.

Between two statements everything is safe. Within a commit or a checkpoint a crash leaves what was there before and a
prefix of what was written to the log since. If the log was being copied into the database it was synced before that;
then any of the copied pages may be old still.
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

__all__ = ["IN_MEMORY", "Disk", "Files", "empty_outbox"]

# No crash is a real one here, so nothing has to get to a real disk.
IN_MEMORY = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
PAGE_BYTES, SECTOR_BYTES = 4096, 512
LOG_HEAD_BYTES, FRAME_BYTES = 32, 24 + PAGE_BYTES
ERRORS = {"full": sqlite3.SQLITE_FULL, "busy": sqlite3.SQLITE_BUSY}


class Files(NamedTuple):
    """What an outbox has on disk. The index of the log is left out: a new process makes it anew."""

    database: bytes
    log: bytes

    @classmethod
    def of(cls, path: Path) -> "Files":
        """Those there are."""
        log = _log_of(path)
        return cls(path.read_bytes(), log.read_bytes() if log.exists() else b"")

    def write(self, path: Path) -> None:
        """Put them in place for the next process."""
        path.write_bytes(self.database)
        _log_of(path).write_bytes(self.log)

    def torn(self, after: "Files", dice: Random) -> "Files":
        """As if the power had failed on the way from these to those ``after`` one statement."""
        if self.database != after.database:
            pages = bytearray(after.database)
            for at in range(0, len(pages), PAGE_BYTES):
                if dice.random() < 0.5:
                    pages[at : at + PAGE_BYTES] = self.database[at : at + PAGE_BYTES].ljust(PAGE_BYTES, b"\0")
            return Files(bytes(pages), after.log or self.log)  # it is emptied, if at all, at the end
        cut = dice.choice(cuts(self.log, after.log))
        return Files(after.database, after.log[:cut] + self.log[cut:])


def cuts(before: bytes, after: bytes) -> list[int]:
    """Where writing may have ended: at a sector (the power fails), or between two of SQLite's writes (``kill -9``)."""
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


# What is deleted stays known to the account, and what was dead once, or was retried: by the same commit, so that a crash
# takes back both or neither.
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
    """A new outbox: made once, since that takes longer than many a life."""
    with TemporaryDirectory(dir=IN_MEMORY) as folder:
        path = Path(folder) / "0.db"
        store = Store(path)
        store.connection.executescript(_LEDGER)
        store.close()
        return Files.of(path)


class Disk:
    """What the next statements meet, and how long calls take.

    ``errors`` has one for each of the next commits, or of the next statements of any kind, "" for none. ``met`` counts
    those that happened.
    """

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.any_statement = False
        self.met: Counter[str] = Counter()
        self.failed = 0
        self.slow_until_s = 0.0
        self.up_to_s = 0.0
        self.left: Files | None = None  # what there is after the power has failed
        self._tear: tuple[int, Path, Random] | None = None

    def heal(self) -> None:
        """No more trouble."""
        self.errors, self.slow_until_s = [], 0.0

    def fail_power(self, commits: int, path: Path, dice: Random) -> None:
        """The power will fail after so many more commits (or checkpoints), within one."""
        self._tear = (commits, path, dice)

    def new_process(self) -> None:
        """The power is there again."""
        self._tear = self.left = None

    def connection(self) -> type[sqlite3.Connection]:
        """The class of connections to this disk."""
        disk = self

        class Connection(sqlite3.Connection):
            def execute(self, sql: str, *rest: Any) -> sqlite3.Cursor:
                if not disk.errors and disk._tear is None:
                    return super().execute(sql, *rest)
                return disk._statement(sql, partial(super().execute, sql, *rest))

            def executemany(self, sql: str, *rest: Any) -> sqlite3.Cursor:
                if not disk.errors:
                    return super().executemany(sql, *rest)
                return disk._perform(sql, partial(super().executemany, sql, *rest))

        return Connection

    def _statement(self, sql: str, do: Callable[[], Any]) -> Any:
        if self._tear is None or self.left is not None or not sql.startswith(("COMMIT", "PRAGMA wal_checkpoint")):
            return self._perform(sql, do)
        commits, path, dice = self._tear
        self._tear = (commits - 1, path, dice)
        if commits:
            return self._perform(sql, do)
        before = Files.of(path)
        try:
            return self._perform(sql, do)
        finally:
            after = Files.of(path)
            self.left = before.torn(after, dice)
            if self.left != after:
                self.met["torn log" if self.left.database == after.database else "torn database"] += 1

    def _perform(self, sql: str, do: Callable[[], Any]) -> Any:
        meets = self.errors and (sql == "COMMIT" or (self.any_statement and sql != "ROLLBACK"))
        how = self.errors.pop(0) if meets else ""
        if how in ("", "ioerr_after"):
            done = do()
            if not how:
                return done
        self.failed += 1
        self.met[how] += 1
        if sql != "COMMIT":
            self.met["not in a commit"] += 1
        error = sqlite3.OperationalError(f"injected {how}")
        error.sqlite_errorcode = ERRORS.get(how, sqlite3.SQLITE_IOERR)
        raise error
