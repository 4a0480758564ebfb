"""What the writer does in the store's thread: one trip with everything that was asked, and what becomes of failures.

When a commit fails
-------------------
*No room*: the accepts are refused, the reserve is given up, and the settlements are tried again at once in its room.
*The disk is ill* (I/O error, locked): after a failed fsync the kernel may have dropped the pages, and a
connection that goes on would trust them (facts: ``field_lessons.md`` 2). So nothing else is tried on it: it is closed,
and the next trip, a little later, begins by reading everything again from the file.
*The file is damaged*: a note is left for the next start, which sets the file aside (``recovery.py``). The first time it
is tried once more, as with an ill disk; the second time it is over.
*Anything else* is the fault of one note, which cannot be stored: each is tried alone, so that it costs no other.
"""

import copy
import sqlite3
from collections.abc import Callable, Collection, Iterable
from typing import Any, Final

import trio

from sidecar.errors import SidecarError
from sidecar.outbox import recovery
from sidecar.outbox.overflow import Overflow
from sidecar.outbox.records import Failure, Settlement
from sidecar.outbox.room import DiskFull, Room
from sidecar.outbox.store import Store

__all__ = ["Committer", "Damaged", "Note", "StoreFailed", "Work"]

# An I/O error on a disk with less than this is for lack of room: not every call of SQLite tells ENOSPC apart.
NO_ROOM_BYTES: Final = 2**20
_ILL: Final = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
    }
)


class StoreFailed(SidecarError):
    """The disk refused a commit for another reason than lack of room; what was asked is not stored."""


class Damaged(StoreFailed):
    """The outbox file is damaged; the next start recovers what it can."""


class Note:
    """Something asked of the store, and its answer."""

    __slots__ = ("answer", "done", "error", "size_bytes", "what")

    def __init__(self, what: Any, size_bytes: int = 0) -> None:
        self.what = what
        self.size_bytes = size_bytes
        self.done = trio.Event()
        self.answer: Any = None
        self.error: Exception | None = None

    async def wait(self) -> Any:
        """The answer, once it is there; raises what the call raised."""
        await self.done.wait()
        if self.error is not None:
            raise self.error
        return self.answer


class Work:
    """Everything that goes on one trip."""

    __slots__ = ("accepts", "failures", "noted", "now_ms", "protected", "reads", "settlements", "writes")

    def __init__(self, now_ms: int, protected: Collection[int]) -> None:
        self.now_ms = now_ms
        self.protected = protected
        self.accepts: list[Note] = []
        self.writes: list[Note] = []
        self.reads: list[Note] = []
        self.settlements: list[Settlement] = []
        self.failures: list[Failure] = []
        self.noted = False  # the failures are committed


class Committer:
    """The synchronous half of the writer; one call at a time, from any thread."""

    def __init__(self, store: Store, room: Room) -> None:
        self._store = store
        self._room = room
        self._overflow = Overflow()
        self._suspect = False
        self._damages = 0
        self._used_bytes = store.used_bytes()

    def trip(self, work: Work) -> SidecarError | None:
        """Do all of it; the notes learn their outcome. Returns why the settlements and failures are not committed."""
        problem = self._trusted()
        if problem is None:
            problem = self._commit(work, work.accepts, work.settlements, work.failures)
            work.noted = problem is None  # what fails below must not have them counted again
        else:
            _fail(work.accepts, problem)
        for note in work.writes:
            problem = self._perform(note, problem, lambda note=note: self._write(note, work.now_ms))  # type: ignore[misc]
        for note in work.reads:
            problem = self._perform(note, problem, lambda note=note: note.what(self._store))  # type: ignore[misc]
        return problem

    def keep_house(self, keep: Callable[[Store, int], bool], now_ms: int) -> tuple[bool, SidecarError | None]:
        """A step of housekeeping; whether there is more of it, and what is wrong with the disk."""
        problem = self._trusted()
        if problem is not None:
            return False, problem
        try:
            self._room.lay_by()
            with self._store.transaction():
                more = keep(self._store, now_ms)
            self._measure(self._store.used_bytes())
            if why := recovery.contradiction(self._store):
                return False, self._damaged(why)
            return more or self._store.tidy(), None
        except OSError as error:
            return False, self.failure(error)
        except sqlite3.Error as error:
            problem = self._problem(error)
            if problem is None:
                raise
            return False, None if isinstance(problem, DiskFull) else problem

    def failure(self, why: object) -> StoreFailed:
        """The error that tells a client that nothing of its request was stored."""
        return StoreFailed(
            f"The outbox {self._store.path} could not be written ({why}); nothing of this was stored, send it again."
        )

    def _trusted(self) -> SidecarError | None:
        """See to it that the connection can be trusted; returns why it cannot."""
        if self._suspect:
            try:
                self._store.reopen()
            except (SidecarError, sqlite3.Error) as error:
                return self.failure(error)
            self._suspect = False
        return None

    # Accepting and settling -----------------------------------------------------------------------------------

    def _commit(
        self, work: Work, accepts: list[Note], settlements: list[Settlement], failures: list[Failure]
    ) -> SidecarError | None:
        """One transaction, or several smaller ones where it failed. Returns why settlements are not committed."""
        if not accepts and not settlements and not failures:
            return None
        try:
            self._transact(work, accepts, settlements, failures)
            return None
        except Exception as error:
            problem = self._problem(error)
            if problem is None:
                if not accepts:
                    raise
                return self._one_by_one(work, accepts, settlements, failures, error)
        _fail(accepts, problem)
        if self._suspect or not accepts:
            return problem
        return self._commit(work, [], settlements, failures)

    def _one_by_one(
        self,
        work: Work,
        accepts: list[Note],
        settlements: list[Settlement],
        failures: list[Failure],
        error: Exception,
    ) -> SidecarError | None:
        """One of the accepts cannot be stored, whatever the disk: find it, and store the others."""
        if len(accepts) == 1 and not settlements and not failures:
            accepts[0].error = error
            return None
        problem = self._commit(work, [], settlements, failures)
        for note in accepts:
            if problem is None:
                problem = self._commit(work, [note], [], [])
            else:
                note.error = problem
        return problem

    def _transact(
        self, work: Work, accepts: list[Note], settlements: list[Settlement], failures: list[Failure]
    ) -> None:
        with self._store.transaction():
            self._store.settle(settlements, work.now_ms)
            self._store.note_failures(failures)
            admitted = self._admit(accepts, work.protected)
            outcomes = self._store.accept([note.what for note in admitted], work.now_ms) if admitted else []
            used_bytes = self._store.used_bytes()
        self._measure(used_bytes)
        for note, outcome in zip(admitted, outcomes, strict=True):
            note.answer = outcome

    def _admit(self, accepts: list[Note], protected: Collection[int]) -> list[Note]:
        """Those that fit, after room was made for them; the others learn that they do not."""
        surplus = self._room.surplus(self._used_bytes, sum(note.size_bytes for note in accepts))
        if not accepts or surplus <= 0:
            return accepts
        missing = self._overflow.make_room(self._store, surplus, protected if self._room.drop_oldest else None)
        admitted = list(accepts)
        while admitted and missing > 0:
            refused = admitted.pop()
            missing -= refused.size_bytes
            refused.error = self._room.refuse()
        return admitted

    def _measure(self, used_bytes: int) -> None:
        self._used_bytes = used_bytes
        self._room.measure(used_bytes)

    # Everything else ------------------------------------------------------------------------------------------

    def _write(self, note: Note, now_ms: int) -> Any:
        with self._store.transaction():
            return note.what(self._store, now_ms)

    def _perform(self, note: Note, problem: SidecarError | None, call: Callable[[], Any]) -> SidecarError | None:
        """Answer a note with the result of the call or its exception. Returns what is wrong with the disk."""
        if self._suspect:
            note.error = copy.copy(problem) or self.failure("its disk fails")
            return problem
        try:
            note.answer = call()
        except Exception as error:  # whoever asked learns what went wrong; the writer goes on
            found = self._problem(error)
            note.error = found or error
            return found if isinstance(found, StoreFailed) else problem
        return problem

    def _problem(self, error: Exception) -> SidecarError | None:
        """What a failed call of SQLite means: no room, an ill disk, or (None) that the call itself was wrong."""
        if recovery.is_damage(error):
            return self._damaged(error)
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # 0: the error is of Python's module, or none of SQLite's
        if code not in _ILL:
            return None
        if code == sqlite3.SQLITE_FULL:
            return self._room.give_up_reserve()
        self._suspect = True
        if code == sqlite3.SQLITE_IOERR and self._room.free_bytes() < NO_ROOM_BYTES:
            return self._room.give_up_reserve()
        return self.failure(error)

    def _damaged(self, why: object) -> StoreFailed:
        self._suspect = True
        self._damages += 1
        path = self._store.path
        try:
            recovery.mark(path)
        except OSError as error:
            return Damaged(
                f"The outbox {path} is damaged ({why}), and its folder cannot be written ({error.strerror})."
            )
        if self._damages == 1:
            return self.failure(why)
        return Damaged(
            f"The outbox {path} is damaged ({why}); it is set aside at the next start, and what can be read is recovered."
        )


def _fail(notes: Iterable[Note], problem: SidecarError) -> None:
    for note in notes:
        note.error = copy.copy(problem)
