"""The rescue of a file that is taken away under an open outbox: noticed by `stat`, and put back or copied.

Theory
------
On Linux an open file that is removed, renamed or replaced stays readable and writable for the process that has it open, and nothing
finds it any more after a restart. So after each commit, before any caller is answered, the path is looked up: it must
lead to the file, and to the log, that this process has open. Looking is done with stat(2) alone: opening and closing the
file would drop SQLite's locks on it (https://www.sqlite.org/howtocorrupt.html section 2.2).

Where nothing stands in its place, the content is copied from the open connection into a new file (SQLite's backup API,
https://www.sqlite.org/backup.html), synced, locked, and renamed to the old path. Where another file stands there, that
file is left alone: an operator may have put back a backup on purpose. So is a link, even one that leads to the open file: a
restart would look for the log beside that file, where it is not. The content is then copied beside it, and the
process ends. If the copy fails, because space or a right is missing, it is tried again with the next batch for as long as the
process runs: ending it would lose everything that is in the file. Nothing is stored meanwhile, so a copy that could only not
be renamed is used again: one for each attempt would fill the disk.
"""

import errno
import os
import shlex
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from sidecar.errors import ConfigError
from sidecar.outbox.database import copy_database, damaged
from sidecar.outbox.file_status import FileId, file_id, file_status, id_of, untimed_look
from sidecar.outbox.pages import wal_path
from sidecar.outbox.store import Store

__all__ = [
    "DAMAGED",
    "IMPORTING",
    "MARKER",
    "RESCUED",
    "FileWatch",
    "OutboxReplaced",
    "files_set_aside",
    "mark_imported",
    "rescued_files",
    "rescued_path",
    "sync",
]

RESCUED: Final = ".rescued-"  # between the outbox's name and the time
DAMAGED: Final = ".damaged-"
MARKER: Final = ".recover"  # appended to the outbox's name: its recovery is not finished, see ``recovery.py``
IMPORTED: Final = ".imported"  # appended to the name of a rescued file that was imported
IMPORTING: Final = ".importing"  # and to that of the temporary copy which an import reads
NAMED: Final = 3  # files that are named one by one

_Written = tuple[int, int]  # when the file was changed last, and the size of its log


class OutboxReplaced(ConfigError):
    """Another file stands where the outbox was; restarting would use that one, so that an operator has to decide."""


def rescued_files(path: Path) -> list[Path]:
    """Return the rescued copies beside the outbox that were not imported yet, oldest first."""
    return [file for file in _beside(path, RESCUED) if not file.name.endswith(IMPORTED)]


def _beside(path: Path, kind: str) -> list[Path]:
    try:
        names = os.listdir(path.parent)
    except OSError:
        return []
    start, companions = path.name + kind, ("-wal", "-shm", "-journal", IMPORTING)
    return sorted(path.with_name(name) for name in names if name.startswith(start) and not name.endswith(companions))


def files_set_aside(path: Path) -> list[str]:
    """Return one sentence for each rescued or damaged file beside the outbox: what it is and what to do with it."""
    sentences = [
        f"{file} holds events of this outbox that were rescued when another file was put in its place; import them with "
        f"`px-sidecar outbox import {shlex.quote(str(file))}`, or remove it."
        for file in rescued_files(path)
    ]
    unrecovered = _unrecovered_name(path)
    sentences += [
        f"{file} is a damaged outbox that was set aside and is not recovered yet: keep it, and start px-sidecar, which recovers "
        "what can be read of it."
        if file.name == unrecovered
        else f"{file} is a damaged outbox that was set aside; what can be read of it was recovered, so remove it when you no "
        "longer need it."
        for file in _beside(path, DAMAGED)
    ]
    more = len(sentences) - NAMED
    return sentences if more <= 0 else [*sentences[:NAMED], f"{more} more such files are in {path.parent}."]


def _unrecovered_name(path: Path) -> str:
    """Return the name of the damaged file that the next start recovers; empty if there is none."""
    try:
        return path.with_name(path.name + MARKER).read_text()
    except OSError:
        return ""


def rescued_path(path: Path, label: str) -> Path:
    """Return the path of a further rescued file of the outbox ``path``; ``label`` tells when.

    No other file has it: a clock that is set back, or begins in 1970 with each boot, gives the same time again.
    """
    rescued = path.with_name(path.name + RESCUED + label)
    while rescued.exists():
        rescued = rescued.with_name(rescued.name + "x")
    return rescued


def mark_imported(file: Path) -> Path:
    """Rename a rescued file that was imported, so that it is no longer named; return its path. Raises OSError."""
    done = file.with_name(file.name + IMPORTED)
    file.rename(done)
    return done


class FileWatch:
    """Checks that the outbox's path still leads to the files that the store has open."""

    def __init__(self, store: Store, alive: Callable[[], object] = lambda: None) -> None:
        """``alive`` is called again and again while a large file is copied; ``rescuing`` is true meanwhile."""
        self._store = store
        self._alive = alive
        self.rescuing = False
        self.log_bytes = 0  # the size of the log at the last look
        self.size_bytes = 0  # and that of the file
        # Texts: all three are looked up after every commit, and a Path would be made into a text each time.
        self._path_text, self._log_text = str(store.path), str(wal_path(store.path))
        self._index_text = str(_index_path(store.path))
        # Each commit writes the log, which therefore is looked at without its times.
        self._look_at_log = untimed_look(self._log_text)
        self._open_files()

    def _open_files(self) -> None:
        """Record the files at the path as the open ones: the store has just opened them."""
        self._file, self._wal, self._index = self._store.file_ids
        self.size_bytes = 0
        self._written: _Written | None = None
        self._version = self._data_version()
        self._copy: Path | None = None  # a complete copy of the open file that could not be put in its place yet

    def check(self) -> str | None:
        """Return one sentence about what was put back, or None if all is in place.

        Raises OutboxReplaced if another file is in the place of the outbox; its content is then in a rescued copy. Raises
        OSError or sqlite3.Error if it could be neither put back nor copied, or if another program has overwritten it.
        """
        path = self._store.path
        # The index before the file: where the folder is exchanged in between, the file shows it, and nothing is closed.
        index = file_id(self._index_text)
        status = file_status(self._path_text)
        file = id_of(status)
        if status is not None and self._are_open(file):
            if self._is_found(path):
                self._copy = None  # outdated: the file was put back by hand, and changes from now on
                self._ensure_not_cut(status)
                return self._renew_index(path, index)
            file = file_id(self._path_text)
        self.rescuing = True
        try:
            copy = self._rescue()
        finally:
            self.rescuing = False
        if file not in (None, self._file):
            self._remove_log()
            raise OutboxReplaced(
                f"The outbox {path} was replaced by another file while it was in use; its events are in {copy}. Remove "
                "the file that should not be there, then start px-sidecar; "
                f"`px-sidecar outbox import {shlex.quote(str(copy))}` imports the rescued events."
            )
        self._put_back(copy, over=file)
        return (
            f"The outbox {path} was removed or moved while it was in use; it was put back from memory and no event is lost. "
            "Find out what removes files there, and stop px-sidecar before you move its outbox."
        )

    def _is_found(self, path: Path) -> bool:
        """Return whether the configured path leads to the open file; False if that was taken away since it was looked at.

        Raises OutboxReplaced if a link in the configured path leads elsewhere now: a restart would not find the file.
        """
        configured = self._store.configured
        if configured == path or file_id(configured, follow=True) == self._file:
            return True
        if file_id(self._path_text) != self._file:
            return False
        raise OutboxReplaced(
            f"outbox.path = {configured} no longer leads to the outbox {path} that is in use: a link in it was changed. "
            "Let it lead there again, or move its events to the new place with "
            f"`px-sidecar outbox import {shlex.quote(str(path))}`."
        )

    def _ensure_not_cut(self, status: os.stat_result) -> None:
        """Raise sqlite3.DatabaseError if the file became smaller and SQLite did not do that.

        A copy over the file (`cp backup outbox.db`) keeps its identity. One that is as large is seen by ``was_written``.
        """
        size_bytes = status.st_size
        # A log that became smaller during the call is judged by its content before the next one.
        self._written = (status.st_mtime_ns, max(self.log_bytes, self._written[1] if self._written else 0))
        if size_bytes < self.size_bytes and not (size_bytes and self._store.may_shrink):
            raise damaged("another program has cut it, or copied another file over it")
        self.size_bytes = size_bytes

    def was_written(self) -> bool:
        """Return True if another program has written into the open file, or cut its log, since the last look.

        To be asked before a call of the store's thread: this process writes there during its calls only. The time of the log
        is not looked at: it changes with each commit, and some kernels set it late.
        """
        now, before = self._written_now(), self._written
        if now is None or before is None:
            return False
        return now[0] != before[0] or now[1] < before[1]

    def found_intact(self) -> None:
        """Take the file as another program has left it: a smaller one, too, if that program has committed, as by a VACUUM.

        Raises sqlite3.Error or OSError.
        """
        self._written = None
        version = self._data_version()
        if version != self._version:
            self._version, self.size_bytes = version, os.stat(self._path_text).st_size

    def _data_version(self) -> int:
        # It changes with the commits of other connections, but neither with own ones nor with what `cp` writes.
        return int(self._store.connection.execute("PRAGMA data_version").fetchone()[0])

    def written(self) -> None:
        """Take the files as they are now: this process has written into them since the last look."""
        self._written = self._written_now()

    def _written_now(self) -> _Written | None:
        # The check at the end of the call reports a file that is gone, or that another one has replaced.
        try:
            file, (log_id, log_bytes) = file_status(self._path_text), self._look_at_log()
        except OSError:
            return None
        if file is None or log_id is None or (id_of(file), log_id) != (self._file, self._wal):
            return None
        return file.st_mtime_ns, log_bytes

    def _renew_index(self, path: Path, index: FileId) -> str | None:
        """Open the store again if the index of its log is gone: another program would make one of its own and take itself for the only reader."""
        if self._index is None:
            self._index = index
        if index == self._index:
            return None
        self._store.reopen()
        self._open_files()
        return f"The file {_index_path(path)} was removed while it was in use; it was made again and no event is lost."

    def ensure_not_replaced(self) -> None:
        """Raise OutboxReplaced if another file stands at the path; for a store that is not open and cannot be copied."""
        if file_id(self._path_text) not in (None, self._file):
            raise OutboxReplaced(
                f"The outbox {self._store.path} was replaced by another file while it was not open; find the file that was "
                "moved away, put it back in its place, then start px-sidecar."
            )

    def in_place(self) -> bool:
        """Return True if the path leads to the file and the log that the store has open.

        Of a store that could not be opened again only the file counts: closing it has removed the log.
        """
        if not self._store.is_open:
            return file_id(self._path_text) == self._file
        return self._are_open(file_id(self._path_text))

    def _are_open(self, file: FileId) -> bool:
        """Return True if ``file`` and the log at its path now are those that the store has open."""
        log_id, self.log_bytes = self._look_at_log()
        found = (file, log_id)
        return None not in found and found == (self._file, self._wal)

    def _rescue(self) -> Path:
        """Copy the open database into a file beside the outbox, complete and on disk when this returns."""
        path = self._store.path
        if self._copy is not None and self._copy.exists():
            return self._copy
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.rescuing")
        try:
            part.unlink(missing_ok=True)
            copy_database(self._store.connection, part, self._alive)
            sync(part)
            # Only a complete copy has the name of a rescued file.
            copy = rescued_path(path, f"{datetime.now(UTC):%Y%m%dT%H%M%S}Z")
            part.replace(copy)
            sync(path.parent)
        except BaseException:
            part.unlink(missing_ok=True)  # half a copy is of no use, and would keep the disk full
            raise
        self._copy = copy
        return copy

    def _remove_log(self) -> None:
        """Remove the log that the store has open, if it is still there: the next start would apply it to the file in its place.

        Closing the store empties it, but not with a full disk, and not if the process is killed before.
        """
        with suppress(OSError):
            if file_id(self._log_text) == self._wal:  # else it came with that file
                os.unlink(self._log_text)
                sync(self._store.path.parent)

    def _put_back(self, copy: Path, over: FileId) -> None:
        """Make the copy the outbox and open it. ``over``: what stands at the path, None or the file that is open.

        Raises FileExistsError if another file stands there by now; the copy stays.
        """
        path = self._store.path
        self._store.claim(copy)
        if file_id(path) != over:  # its log, which would be removed below, may hold events
            raise FileExistsError(errno.EEXIST, "another file was put there meanwhile", str(path))
        # A log or an index that is left belongs to the file that is gone: SQLite would apply it to the new one.
        for leftover in (wal_path(path), _index_path(path)):
            leftover.unlink(missing_ok=True)
        copy_id = file_id(copy)
        if over is None:
            _name(copy, path)
        else:
            copy.replace(path)
        # At once: if anything below fails, what stands at the path is not taken for another program's file.
        self._file, self._wal = copy_id, None
        sync(path.parent)
        # Everything is in place now: if opening fails, it is tried again as after any error of the disk.
        self._store.reopen()
        self._open_files()

    def reopened(self) -> None:
        """The store has reopened its files."""
        self._open_files()


def _index_path(path: Path) -> Path:
    return path.with_name(path.name + "-shm")


def _name(copy: Path, path: Path) -> None:
    """Rename ``copy`` to ``path`` if nothing stands there. Raises FileExistsError, or another OSError."""
    try:
        path.hardlink_to(copy)  # unlike a rename it never overwrites a file that was put there meanwhile
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links: create the name first, which fails if it exists
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        try:
            copy.replace(path)
        except BaseException:
            path.unlink()
            raise
        return
    with suppress(OSError):  # it is in its place; a second name of it does no harm
        copy.unlink()


def sync(path: Path) -> None:
    """Put a file, or the renames in a folder, on disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
