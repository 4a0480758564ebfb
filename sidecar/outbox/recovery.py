"""A damaged outbox: how it is noticed, how it is set aside, and what a new one gets of it.

How damage is noticed
---------------------
At every start, without writing to anything: by the head of the file, by the write-ahead log (which SQLite cuts off at
the first bad frame without a word), by the account of the counters, and, while the file is small enough for it to take
no time that anybody notices, by SQLite's own integrity check. In a larger file damage is met where it is read: then
``mark`` leaves a note for the next start, and the daemon ends. *Cannot open* is never damage, and no more is a log whose
very last transaction is torn: a crash while it was written leaves it so.

What happens then
-----------------
The file and its log get a telling name, ``outbox.db.damaged-<time>``; whatever can be read of them (``pages.py``) goes
into a new file; that takes the outbox's name once it is complete. The note says how far this is, so that an end at any
moment is taken up by the next start. Nothing of the damaged file is ever changed or removed by us.
"""

import os
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

import msgspec

from sidecar.errors import ConfigError, Failed
from sidecar.outbox.pages import PAGE_BYTES, commit_frames, is_sound, log_of
from sidecar.outbox.salvage import DAMAGE, Salvaged, recognises, salvage
from sidecar.outbox.schema import SCHEMA_VERSION
from sidecar.outbox.store import Store

__all__ = ["contradiction", "damage_in", "is_damage", "mark", "marking", "open_outbox"]

MAGIC: Final = b"SQLite format 3\x00"
# SQLite's own check of so many pages takes about 20 ms.
CHECKED_PAGES: Final = 2_000
# A newer px-sidecar has a higher number; one like this comes from a damaged byte.
SCHEMAS_MAX: Final = 2**24
_DAMAGE: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT})


def is_damage(error: BaseException) -> bool:
    """Whether an error means that the file is damaged, and not that it cannot be opened, read or written just now."""
    if not isinstance(error, sqlite3.Error):
        return False
    # Python's module tells a text that is none without a code of SQLite's.
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGE or "Could not decode to UTF-8" in str(error)


def mark(path: Path) -> None:
    """Leave a note that the outbox is damaged: the next ``open_outbox`` sets it aside. Raises OSError."""
    note = _note(path)
    if not note.exists():
        note.write_text("")


@contextmanager
def marking(path: Path) -> Iterator[None]:
    """Leave a note if what is done inside ends because the outbox is damaged. Then raises Failed."""
    try:
        yield
    except sqlite3.Error as error:
        if not is_damage(error):
            raise
        mark(path)
        raise Failed(
            f"The outbox {path} is damaged ({error}); it is set aside at the next start, and what can be read is recovered."
        ) from error


def open_outbox(
    path: Path, *, durability: Literal["disk", "process"], working: Callable[[], object] = lambda: None
) -> Store:
    """The outbox, sound: a damaged one is set aside first, and what can be recovered of it is in the new one.

    ``store.notice`` then says in a sentence what happened; it is empty otherwise. ``working`` is called again and again
    while a recovery goes on. The lock must be held. Raises what ``Store`` raises; ConfigError if there is a file that
    never was an outbox.
    """
    note = _note(path)
    if note.exists() and (path.exists() or log_of(path).exists() or note.read_text()):
        return _recovered(path, "it was found damaged while it was in use", durability, working)
    note.unlink(missing_ok=True)
    why = damage_in(path)
    if why is None:
        try:
            return Store(path, durability=durability)
        except ConfigError as error:
            if error.__cause__ is None or not is_damage(error.__cause__):
                raise
            why = str(error.__cause__)
        except sqlite3.Error as error:
            if not is_damage(error):
                raise
            why = str(error)
    if not _was_outbox(path):
        raise ConfigError(f"The file {path} is no outbox ({why}); move it away, or give another outbox.path.")
    return _recovered(path, why, durability, working)


def _was_outbox(path: Path) -> bool:
    """Whether a damaged file ever was ours: by its first bytes, its log, or one record of the kind that we write."""
    if log_of(path).exists():
        return True
    with path.open("rb") as file:
        start = file.read(len(MAGIC))
    return MAGIC.startswith(start) or recognises(path)


# Noticing -----------------------------------------------------------------------------------------------------


def damage_in(path: Path) -> str | None:
    """What is wrong with the file or its log, as far as that can be told at once and without writing; else None.

    Where something cannot be read this is not the place to complain: None.
    """
    log = log_of(path)
    if path.with_name(path.name + "-journal").exists():
        return None  # only a first start has one, until the log is in use: SQLite rolls its first write back
    try:
        size = path.stat().st_size if path.exists() else 0
        ends = commit_frames(log) if log.exists() else []
        with path.open("rb") if size else open(os.devnull, "rb") as file:
            head = file.read(100)
    except OSError:
        return None
    if not size:
        return "it is empty, but its log is not" if ends else None
    if why := _wrong_head(head):
        return why
    try:
        return _ask_sqlite(path, ends)
    except sqlite3.Error as error:
        return str(error) if is_damage(error) else None


def _wrong_head(head: bytes) -> str | None:
    """By https://www.sqlite.org/fileformat2.html, "The Database Header", and what we never change in it."""
    if len(head) < 100 or head[:16] != MAGIC:
        return "its first bytes are not those of a database"
    fixed = int.from_bytes(head[16:18], "big") == PAGE_BYTES and head[18:24] in (
        b"\2\2\0\x40\x20\x20",
        b"\1\1\0\x40\x20\x20",
    )
    # An interrupted first start has no schema yet: then format and encoding are 0.
    numbers = [int.from_bytes(head[at : at + 4], "big") for at in (44, 56, 60)]
    if not fixed or numbers[0] > 4 or numbers[1] > 1 or numbers[2] > SCHEMAS_MAX:
        return "its header is damaged"
    return None


def _ask_sqlite(path: Path, ends: list[int]) -> str | None:
    """Look with a connection that cannot write: on its way out it would not even tidy up.

    ``ends`` are the frames of the log that claim to end a transaction. The first that SQLite does not see was being
    written when the power failed or the process was killed: nobody was told that it is on disk. What stands behind it may
    be left from an earlier crash in the same place. Only where one transaction was begun upon the end of another had that
    been synced, and is damaged.
    """
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)) as connection:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        seen = _frames_seen(path)
        unseen = [one for one in ends if one > seen]
        if any(is_sound(log_of(path), one + 1) for one in unseen[:-1]):
            return "its write-ahead log is damaged"
        if connection.execute("PRAGMA user_version").fetchone()[0] != SCHEMA_VERSION:
            return None  # not made yet, or not ours to judge
        if pages <= CHECKED_PAGES:
            verdict = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
            if verdict != "ok":
                return str(verdict).splitlines()[-1]
        for table in ("sources", "quota", "meta"):  # small, and read at every start
            connection.execute(f"SELECT * FROM {table}").fetchall()
        return _wrong_account(connection)


def _frames_seen(path: Path) -> int:
    """How many frames of the log SQLite takes for sound, from the head of the index that it makes of them.

    https://www.sqlite.org/walformat.html#the_wal_index_file_format: ``mxFrame``, in the machine's byte order.
    """
    try:
        with path.with_name(path.name + "-shm").open("rb") as index:
            return int.from_bytes(index.read(20)[16:20], sys.byteorder)
    except FileNotFoundError:
        return 0


def _wrong_account(connection: sqlite3.Connection) -> str | None:
    """Promise 2, by the counters alone."""
    counters = dict(connection.execute("SELECT name, value FROM counters"))
    if any(value < 0 for value in counters.values()):
        return "a counter is below zero"
    kept = sum(
        value
        for name, value in counters.items()
        if name.split(":")[0].split("_")[0] in ("pending", "delivered", "dropped", "dead")
    )
    return None if counters.get("accepted", 0) == kept else "its counters contradict each other"


def contradiction(store: Store) -> str | None:
    """What the indexes that delivery goes by say against the counters, between transactions; else None.

    A damaged index can lose an event without a word, and only the counters know that it is pending.
    """
    for name, states in (("pending_normal", (0, 2)), ("pending_high", (1, 3))):
        query = (
            "SELECT EXISTS (SELECT 1 FROM events WHERE state = ? AND state < 2)"
            " OR EXISTS (SELECT 1 FROM events WHERE state = ? AND state IN (2, 3))"
        )
        counted = store.counters[name]
        if counted < 0 or bool(store.connection.execute(query, states).fetchone()[0]) != bool(counted):
            return f"it counts {counted:,} pending events and holds {'some' if counted <= 0 else 'none'}"
    return None


# Setting aside and recovering ---------------------------------------------------------------------------------


def _note(path: Path) -> Path:
    return path.with_name(path.name + ".recover")


def _recovered(path: Path, why: str, durability: Literal["disk", "process"], working: Callable[[], object]) -> Store:
    """Set the damaged files aside, put what can be read of them in their place, and open that. Raises Failed."""
    new = path.with_name(path.name + ".recovering")
    try:
        kept = _set_aside(path)
        if not path.exists():
            for leftover in (new, log_of(new), new.with_name(new.name + "-shm")):
                leftover.unlink(missing_ok=True)
            salvage(kept, new, why=why, working=working)
            new.replace(path)
            _sync(path.parent)
        _note(path).unlink()
        _sync(path.parent)
    except (OSError, sqlite3.Error) as error:
        raise Failed(
            f"The damaged outbox {path} could not be recovered yet ({error}); see that its folder can be written and has "
            "about as much room as the file. The next start goes on with it."
        ) from error
    store = Store(path, durability=durability)
    store.notice = _sentence(path, msgspec.json.decode(store.get_meta(DAMAGE) or "{}", type=Salvaged))
    return store


def _sentence(path: Path, salvaged: Salvaged) -> str:
    lost = f"{salvaged.lost:,} events are lost" if salvaged.lost else "no event is known to be lost"
    return (
        f"The outbox {path} was damaged ({salvaged.why}) and is set aside as {salvaged.set_aside}; "
        f"{salvaged.pending:,} pending events, {salvaged.dead:,} dead letters and {salvaged.history:,} of the history "
        f"were recovered, {lost}. Check the disk; remove that file when you need it no more."
    )


def _set_aside(path: Path) -> Path:
    """Rename file and log; a name that is in the note already is gone on with. Returns the new name of the file."""
    note = _note(path)
    name = note.read_text() if note.exists() else ""
    if not name:
        name = f"{path.name}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%S}Z"
        while path.with_name(name).exists():
            name += "x"
        written = note.with_name(note.name + "-new")
        written.write_text(name)
        with written.open("rb") as file:
            os.fsync(file.fileno())
        written.replace(note)
        _sync(path.parent)
    kept = path.with_name(name)
    if not kept.exists():
        if log_of(path).exists() and log_of(path).stat().st_size:
            log_of(path).replace(log_of(kept))
        log_of(path).unlink(missing_ok=True)
        if path.exists():
            path.replace(kept)
        else:
            kept.touch(0o600)
    path.with_name(path.name + "-shm").unlink(missing_ok=True)
    _sync(path.parent)
    return kept


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
