"""Recovery: detect a damaged outbox, set it aside, and open a new one with everything that can be read of it.

How damage is detected
----------------------
At every start, without writing: by the header of the file, by the write-ahead log (which SQLite silently cuts off at
the first bad frame), by the sum of the counters, and, in a file small enough to check within milliseconds, by SQLite's
integrity check. In a larger file damage is detected when a damaged page is read: then ``mark_damaged`` leaves a *damage
marker* for the next start, and the daemon ends. A file that *cannot be opened* is never treated as damaged, and neither
is a log whose very last transaction is torn: a crash while it was being written leaves it in that state.

What happens then
-----------------
The file and its log are set aside as ``outbox.db.damaged-<time>``. What can be read of them (``pages.py``) is copied
into a new file, which is renamed to the outbox once it is complete and synced. The damage marker holds the name of the
file that was set aside, so the next start continues after a crash at any moment. The damaged file is never changed or
removed. If the disk is full, the reserve (``capacity.py``) is given up; if that is not enough, what was copied is removed
again, and the error says how much space is needed.
"""

import os
import shlex
import sqlite3
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final, Literal

import msgspec

from sidecar.errors import ConfigError, Failed, SidecarError
from sidecar.mapping import Priority
from sidecar.outbox.capacity import RESERVE
from sidecar.outbox.lock import SCHEMA_VERSION, SCHEMAS_MAX
from sidecar.outbox.pages import PAGE_BYTES, commit_frames, frame_is_valid, wal_path
from sidecar.outbox.records import PARKED, PENDING
from sidecar.outbox.rescue import DAMAGED, MARKER, rescued_path, sync
from sidecar.outbox.salvage import DAMAGE, Salvaged, recognizes, salvage
from sidecar.outbox.store import Claim, Store
from sidecar.units import counted, show_size

__all__ = [
    "MAGIC",
    "contradiction",
    "damage_in",
    "damage_in_use",
    "damage_marker",
    "disk_errors",
    "ensure_was_outbox",
    "is_damage",
    "mark_damaged",
    "open_outbox",
    "recovery_is_unfinished",
    "set_aside",
]

MAGIC: Final = b"SQLite format 3\x00"
# SQLite's integrity check of this many pages takes about 20 ms; larger files are not checked at the start.
CHECKED_PAGES: Final = 2_000
# The index of a log has 32 KiB; what a start writes before housekeeping looks at the disk takes a few pages.
OPENING_BYTES: Final = 2**20
_DAMAGE: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT})


def is_damage(error: BaseException) -> bool:
    """Return True if an error means that the file is damaged, not that it cannot be opened, read or written now."""
    if not isinstance(error, sqlite3.Error):
        return False
    code = getattr(error, "sqlite_errorcode", 0)
    # A log that ends before a page which its index names was cut; of the file itself SQLite takes the missing part for zeros.
    if code == sqlite3.SQLITE_IOERR_SHORT_READ:
        return True
    # Python's sqlite3 module reports text that is not UTF-8 with an error of its own, without a code from SQLite.
    return code & 0xFF in _DAMAGE or "Could not decode to UTF-8" in str(error)


def mark_damaged(path: Path) -> None:
    """Leave a damage marker: the next ``open_outbox`` sets the outbox aside and recovers it. Raises OSError."""
    marker = _marker(path)
    if not marker.exists():  # a marker with a name belongs to a recovery that is not finished
        marker.write_text("")


@contextmanager
def damage_marker(path: Path) -> Iterator[None]:
    """Leave a damage marker and raise Failed if the block ends because the outbox is damaged."""
    try:
        yield
    except sqlite3.Error as error:
        if not is_damage(error):
            raise
        mark_damaged(path)
        raise Failed(
            f"The outbox {path} is damaged ({error}); the next start sets it aside and recovers what can be read."
        ) from error


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Raise Failed, with what to do, if the block ends because the disk of the outbox is full or fails."""
    try:
        yield
    except sqlite3.OperationalError as error:
        match getattr(error, "sqlite_errorcode", 0) & 0xFF:
            case sqlite3.SQLITE_FULL:
                raise Failed(
                    f"The disk of {path.parent} is full, so the outbox cannot be changed; free some space there, then run "
                    "this again."
                ) from None
            case sqlite3.SQLITE_IOERR | sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN:
                raise Failed(
                    f"The outbox {path} could not be written ({error}); check its disk, then run this again."
                ) from None
        raise


def open_outbox(
    path: Path,
    *,
    durability: Literal["disk", "process"],
    progress: Callable[[], object] = lambda: None,
    claim: Claim = lambda _path=None: None,
    configured: Path | None = None,
) -> Store:
    """Open the outbox. A damaged one is set aside first and a new one is opened with what could be recovered.

    ``store.notice`` is then one sentence about what happened, otherwise empty. ``progress`` is called about twice a second
    while a recovery runs. The lock must be held; ``claim`` extends it to the file that is about to be opened.
    ``configured`` is the path as configured, with its links. Raises what ``Store`` raises, ConfigError if the file never
    was an outbox, and Failed if the recovery could not be completed.
    """
    opened = partial(Store, path, durability=durability, claim=claim, configured=configured)
    _make_room(path)
    marker = _marker(path)
    # A marker without a name and without files is left from an outbox that an operator has removed since.
    if marker.exists() and (path.exists() or wal_path(path).exists() or marker.read_text()):
        if (unrecovered := _unrecovered(path)) is None:
            return _recover(path, "it was found damaged while it was in use", progress, opened)
        text = _leave_for_import(path, unrecovered)
        opened = partial(opened, notice=lambda _store: text)
    marker.unlink(missing_ok=True)
    why = damage_in(path)
    if why is None:
        try:
            return opened()
        except ConfigError as error:
            # A newer format is a ConfigError, too, and must never be set aside.
            if error.__cause__ is None or not is_damage(error.__cause__):
                raise
            why = str(error.__cause__)
        except sqlite3.Error as error:
            if not is_damage(error):
                raise
            why = str(error)
    ensure_was_outbox(path, why)
    return _recover(path, why, progress, opened)


def ensure_was_outbox(path: Path, why: str) -> None:
    """Raise ConfigError unless a file that is damaged as ``why`` says was an outbox.

    It is judged by its first bytes, its log, or one readable record: a wrong ``outbox.path`` must not rename a file of
    another program.
    """
    if wal_path(path).exists():
        return
    with path.open("rb") as file:
        start = file.read(len(MAGIC))
    if not (MAGIC.startswith(start) or recognizes(path)):
        raise ConfigError(f"The file {path} is not an outbox ({why}); move it away, or set another outbox.path.")


# Detecting damage ---------------------------------------------------------------------------------------------


def damage_in(path: Path) -> str | None:
    """Return what is wrong with the file or its log, as far as a quick check without writing can tell; else None.

    Returns None if the files cannot be read; opening them reports why.
    """
    wal = wal_path(path)
    if path.with_name(path.name + "-journal").exists():
        return None  # an interrupted first start, before the WAL was in use: SQLite rolls its first write back
    try:
        size = path.stat().st_size if path.exists() else 0
        ends = commit_frames(wal) if wal.exists() else []
        with path.open("rb") if size else open(os.devnull, "rb") as file:
            head = file.read(100)
    except OSError:
        return None
    # SQLite would start an empty outbox and ignore the log, whose events were answered.
    if not size:
        return "it is empty, but its log is not" if ends else None
    if why := _header_damage(head):
        return why
    try:
        return _content_damage(path, ends)
    except sqlite3.Error as error:
        return str(error) if is_damage(error) else None


def _header_damage(head: bytes) -> str | None:
    """Check the fields that never change; https://www.sqlite.org/fileformat2.html, "The Database Header"."""
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


def _content_damage(path: Path, ends: list[int]) -> str | None:
    """Check the log, the small tables and the counters with a read-only connection, which does not checkpoint at close.

    ``ends`` are the frames of the log that claim to end a transaction. The first one that SQLite does not see may have
    been in the middle of being written when the power failed or the process was killed: its events were not answered.
    What follows it may be left over from an earlier crash at the same place. But if a valid frame follows the end of an unseen
    transaction, that transaction had been synced before the next one began: then the log is damaged.
    """
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)) as connection:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        valid = _valid_frames(path)
        unseen = [number for number in ends if number > valid]
        if any(frame_is_valid(wal_path(path), number + 1) for number in unseen[:-1]):
            return "its write-ahead log is damaged"
        if connection.execute("PRAGMA user_version").fetchone()[0] != SCHEMA_VERSION:
            return None  # no schema yet, or a newer one: opening the file decides
        if why := _page_damage(connection, pages):
            return why
        for table in ("sources", "quota", "meta"):  # small, and read at every start anyway
            connection.execute(f"SELECT * FROM {table}").fetchall()
        return _counter_damage(connection)


def _page_damage(connection: sqlite3.Connection, pages: int) -> str | None:
    """Check all pages. A larger file would hold up each start for minutes: its damage is noticed when the page is read."""
    if pages > CHECKED_PAGES:
        return None
    verdict = str(connection.execute("PRAGMA integrity_check(1)").fetchone()[0])
    return None if verdict == "ok" else verdict.splitlines()[-1]


def _valid_frames(path: Path) -> int:
    """Return how many frames of the log SQLite considers valid, from the header of its WAL index.

    This is ``mxFrame``, in native byte order: https://www.sqlite.org/walformat.html#the_wal_index_file_format.
    """
    try:
        with path.with_name(path.name + "-shm").open("rb") as index:
            return int.from_bytes(index.read(20)[16:20], sys.byteorder)
    except FileNotFoundError:
        return 0


def _counter_damage(connection: sqlite3.Connection) -> str | None:
    """Check that accepted = pending + delivered + dropped + dead; by the counters alone, without counting rows."""
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
    """Return how the indexes that delivery reads contradict the counters, between transactions; None if they agree.

    A damaged index can lose an event without an error: only the counters then show that it is pending.
    """
    for priority, name in PENDING.items():
        # EXISTS and not count(*): one lookup in each index, however long the backlog is.
        query = (
            "SELECT EXISTS (SELECT 1 FROM events WHERE state = ? AND state < 2)"
            f" OR EXISTS (SELECT 1 FROM events WHERE state = ? AND state {'< 2' if priority is Priority.LOW else 'IN (2, 3)'})"
        )
        total = store.counters[name]
        if total < 0 or bool(store.connection.execute(query, (priority, PARKED[priority])).fetchone()[0]) != bool(
            total
        ):
            return f"it counts {total:,} pending events and holds {'some' if total <= 0 else 'none'}"
    return None


def damage_in_use(store: Store, size_bytes: int) -> str | None:
    """Return what is wrong with the open file after another program has written into it; None if nothing is found.

    ``size_bytes`` is the size that the file had before. Read from the file, between transactions: pages in memory would
    hide the damage. A larger file is not checked page by page.
    """
    connection = store.connection
    connection.execute("PRAGMA shrink_memory")
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    # A checkpoint of another program makes it smaller, too, but never smaller than its pages.
    if store.path.stat().st_size < min(size_bytes, pages * PAGE_BYTES):
        return "it was cut"
    if Counter(dict(connection.execute("SELECT name, value FROM counters"))) != store.counters:
        return "its counters are not those of this process"
    return _page_damage(connection, pages) or contradiction(store)


# Setting aside and recovering ---------------------------------------------------------------------------------


def recovery_is_unfinished(path: Path) -> bool:
    """Return True if a damaged outbox was set aside and the next start has yet to recover it."""
    return _marker(path).exists()


def _marker(path: Path) -> Path:
    """Return the path of the damage marker. Empty: damage was found. With a name: the file is set aside under it."""
    return path.with_name(path.name + MARKER)


def _recover(
    path: Path,
    why: str,
    progress: Callable[[], object],
    opened: Callable[..., Store],
) -> Store:
    """Set the damaged files aside, salvage them into a new outbox, and open that. Raises Failed.

    Every step can be repeated after a crash: the state is in which files exist, and in the damage marker.
    """
    new = path.with_name(path.name + ".recovering")
    needed_bytes = 0
    try:
        # A copy that a crash interrupted starts over: nothing records how far it came.
        _remove_database(new)
        needed_bytes = _free_space(path)
        # Before anything is read: from here on nothing writes to it, and the next start finds it by the marker.
        damaged_file = set_aside(path)
        if not path.exists():  # else an earlier start has completed the new file, and only the marker is left
            salvage(damaged_file, new, why=why, progress=progress)
            # Complete and synced. With the name before that, a power cut would leave half an outbox that looks whole.
            new.replace(path)
            # On disk before the marker goes: a power cut must not leave the old name empty and no marker.
            sync(path.parent)
        # Last: without the marker the next start would not know that the recovery is unfinished.
        _marker(path).unlink()
        sync(path.parent)
    except (OSError, sqlite3.Error, SidecarError) as error:
        with suppress(OSError):
            _remove_database(new)  # half a copy is of no use, and would keep the disk full
        raise Failed(_not_recovered(path, error, needed_bytes)) from error
    return opened(notice=_recovery_notice)


def _unrecovered(path: Path) -> Path | None:
    """Return the damaged file that was set aside, if another file has come in its place before it was recovered; else None."""
    name = _marker(path).read_text()
    if not (name and path.with_name(name).exists() and path.exists()):
        return None
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            row = connection.execute("SELECT value FROM meta WHERE name = ?", (DAMAGE,)).fetchone()
            is_its_copy = row is not None and msgspec.json.decode(row[0], type=Salvaged).set_aside == name
    except (sqlite3.Error, msgspec.MsgspecError):
        is_its_copy = False
    return None if is_its_copy else path.with_name(name)


def _leave_for_import(path: Path, unrecovered: Path) -> str:
    """Rename a damaged file that is not recovered, so that it is named as one to import; return the notice. Raises Failed."""
    rescued = rescued_path(path, unrecovered.name.removeprefix(path.name + DAMAGED))
    try:
        if wal_path(unrecovered).exists():
            wal_path(unrecovered).replace(wal_path(rescued))
        unrecovered.replace(rescued)
        sync(path.parent)
    except OSError as error:
        raise Failed(
            f"The damaged outbox {unrecovered} cannot be renamed ({error}); make its folder writable."
        ) from error
    return (
        f"The outbox {path} was damaged and set aside, and another file was put in its place before it was recovered. It is "
        f"now {rescued}; `px-sidecar outbox import {shlex.quote(str(rescued))}` imports what can be read of it."
    )


def _remove_database(path: Path) -> None:
    for file in (path, wal_path(path), path.with_name(path.name + "-shm"), path.with_name(path.name + "-journal")):
        file.unlink(missing_ok=True)


def _free_space(path: Path) -> int:
    """Return the bytes that the recovery may need; remove the reserve if fewer are free. Raises OSError.

    The reserve is allocated again once there is space for it, as after a full disk.
    """
    marker = _marker(path)
    name = marker.read_text() if marker.exists() else ""
    damaged_file = path.with_name(name) if name and path.with_name(name).exists() else path
    # A crash may have come between the renames of the file and of its log, so the log may be at either name.
    files = (damaged_file, wal_path(damaged_file), wal_path(path))
    needed_bytes = sum(file.stat().st_size for file in {*files} if file.exists())
    # The reserve is for settling on a full disk, and nothing is settled before the recovery has ended.
    if _free_bytes(path.parent) < needed_bytes:
        path.with_name(path.name + RESERVE).unlink(missing_ok=True)
    return needed_bytes


def _make_room(path: Path) -> None:
    """Remove the reserve if the disk is full: after a clean stop there is neither a log nor its index, and opening makes both.

    Without them nothing could be settled, which is what the reserve is for. Housekeeping allocates it again.
    """
    with suppress(OSError):  # opening the file reports what is wrong with the folder
        if _free_bytes(path.parent) < OPENING_BYTES:
            path.with_name(path.name + RESERVE).unlink(missing_ok=True)


def _free_bytes(folder: Path) -> int:
    facts = os.statvfs(folder)
    return facts.f_bavail * facts.f_frsize


def _not_recovered(path: Path, error: Exception, needed_bytes: int) -> str:
    """Return why a recovery failed, and what it needs."""
    try:
        missing_bytes = needed_bytes - _free_bytes(path.parent)
    except OSError:
        missing_bytes = 0
    what = f"make its folder {path.parent} writable and its disk sound"
    if missing_bytes > 0:
        what = (
            f"it needs up to {show_size(needed_bytes)} beside the damaged file, so free {show_size(missing_bytes)} on the "
            f"disk of {path.parent}"
        )
    return (
        f"The damaged outbox {path} could not be recovered yet ({error}); {what}. Nothing of the damaged file was changed, "
        "and the next start continues."
    )


def _recovery_notice(store: Store) -> str:
    """Return the notice for operators, from the record that the recovery has left in the new file."""
    salvaged = msgspec.json.decode(store.get_meta(DAMAGE) or "{}", type=Salvaged)
    return (
        f"The outbox {store.path} was damaged ({salvaged.why}) and is set aside as {salvaged.set_aside}; "
        f"{salvaged.pending:,} pending events, {salvaged.dead:,} dead letters and {salvaged.history:,} history events "
        f"were recovered, {_what_is_lost(salvaged)}. Check the disk; remove that file when you no longer need it."
    )


def _what_is_lost(salvaged: Salvaged) -> str:
    if salvaged.lost and salvaged.counters_lost:
        text = f"{counted(salvaged.lost, 'event', 'is')} lost or were settled and pruned: the counters that distinguish the two are damaged"
    elif salvaged.lost:
        text = f"{counted(salvaged.lost, 'event', 'is')} lost"
    elif not salvaged.frames_lost:
        return "no event is known to be lost"
    else:
        text = "all events that the counters know of were found"
    if salvaged.frames_lost:
        text += f", and what {salvaged.frames_lost:,} damaged parts of the log held is not known"
    return text


def set_aside(path: Path) -> Path:
    """Rename the file and its log, under the name in the damage marker if there is one; return the file's new path.

    Repeatable after a crash at any moment. Raises OSError.
    """
    marker = _marker(path)
    name = marker.read_text() if marker.exists() else ""
    if not name:
        name = f"{path.name}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%S}Z"
        # Two recoveries within a second must not overwrite each other's file.
        while path.with_name(name).exists():
            name += "x"
        # The name is on disk before anything is renamed: a later start finds the file under it.
        written = marker.with_name(marker.name + "-new")
        written.write_text(name)
        with written.open("rb") as file:
            os.fsync(file.fileno())
        written.replace(marker)
        sync(path.parent)
    damaged_file = path.with_name(name)
    if not damaged_file.exists():
        # The log first: once the file is renamed, this step counts as done.
        if wal_path(path).exists() and wal_path(path).stat().st_size:
            wal_path(path).replace(wal_path(damaged_file))
        # Left at the old name, even an empty log or an index would be taken for that of the new file.
        wal_path(path).unlink(missing_ok=True)
        if path.exists():
            path.replace(damaged_file)
        else:
            # There was only a log. The empty file records that this step is done.
            damaged_file.touch(0o600)
    path.with_name(path.name + "-shm").unlink(missing_ok=True)
    sync(path.parent)
    return damaged_file
