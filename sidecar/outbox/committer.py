"""The synchronous half of the writer: one batch of requests in the store's thread, and what a failure means.

When a commit fails
-------------------
*The disk is full*: the accepts are refused, the reserve is removed, and the settlements are retried at once in its
space.
*The disk fails* (I/O error, locked): after a failed fsync the kernel may have dropped the written pages, and a
connection that continues would trust them (sidecar/outbox/README.md#fsync). So nothing else is tried on this
connection: it is closed, and the next batch, a little later, begins by reading everything again from the file.
*The file is gone from its path*: it is put back or rescued (``rescue.py``); until that succeeds nothing is stored, and the
process must not end, because only it still has the content.
*The file is damaged*: a damage marker is left for the next start, which sets the file aside (``recovery.py``). The
first time the batch is retried, as with a failing disk; the second time the process ends.
*Anything else* is the fault of one request that cannot be stored: each is committed alone, so that the others succeed.
"""

import copy
import errno
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from sidecar.errors import SidecarError
from sidecar.mapping import Priority
from sidecar.outbox import recovery
from sidecar.outbox.accept_queue import WriteRequest
from sidecar.outbox.capacity import Capacity, DiskFull, StorageUnavailable
from sidecar.outbox.clock_trust import CLOCK_RECORD
from sidecar.outbox.overflow import Overflow
from sidecar.outbox.records import Failure, Settlement
from sidecar.outbox.rescue import FileWatch, OutboxReplaced
from sidecar.outbox.store import Store

__all__ = ["Batch", "Committer", "Damaged", "OutboxGone", "StoreFailed"]

# Steps of housekeeping, one a second, without a change of the file: then the log is copied into it.
QUIET_STEPS: Final = 30
# With fewer free bytes than this an I/O error means a full disk: not every call of SQLite distinguishes ENOSPC.
DISK_FULL_BYTES: Final = 2**20
# Primary result codes that speak of the disk or the file, not of the statement.
_DISK_ERRORS: Final = frozenset(
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
_NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


class StoreFailed(StorageUnavailable):
    """The disk refused a commit for another reason than being full.

    ``code`` is ``disk_error``, or ``busy`` if another program holds a lock on the file.
    """

    code = "disk_error"


class OutboxGone(StoreFailed):
    """The outbox is gone from its path and could not be put back yet: ending the process would lose its content."""


class Damaged(StoreFailed):
    """The outbox file is damaged; the next start recovers what can be read."""


class Batch:
    """The requests that one call of the store's thread runs."""

    __slots__ = (
        *("accepts", "clock_record", "clock_recorded", "failures", "failures_committed", "now_ms", "reads"),
        *("settlements", "writes"),
    )

    def __init__(self, now_ms: int, clock_record: str | None = None) -> None:
        self.now_ms = now_ms
        # What is known of the clock that gave ``now_ms``; it is committed with the first rows that hold it.
        self.clock_record = clock_record
        self.clock_recorded = False
        self.accepts: list[WriteRequest] = []
        self.writes: list[WriteRequest] = []
        self.reads: list[WriteRequest] = []
        self.settlements: list[Settlement] = []
        self.failures: list[Failure] = []
        self.failures_committed = False

    def priorities(self) -> set[Priority]:
        """Return the classes of the events to accept."""
        return {event.priority for request in self.accepts for event in request.payload}

    def requests(self) -> Iterator[WriteRequest]:
        """Yield all requests whose callers wait."""
        yield from self.accepts
        yield from self.writes
        yield from self.reads


class Committer:
    """Run batches and housekeeping on the store. Calls may come from any thread, one at a time.

    ``checked_out`` is the live collection of event ids that must not be dropped to free space. ``alive`` is called again
    and again during a call that may take longer than a watchdog waits.
    """

    def __init__(
        self,
        store: Store,
        capacity: Capacity,
        checked_out: Collection[int] = (),
        *,
        alive: Callable[[], object] = lambda: None,
    ) -> None:
        self._store = store
        self._capacity = capacity
        self._checked_out = checked_out
        self._overflow = Overflow()
        self._suspect = False  # the connection may hold pages that are not on disk: reopen before the next statement
        self._damage_count = 0
        self._changes = -1  # SQLite's count at the last step of housekeeping
        self._quiet_steps = 0
        self._used_bytes = store.used_bytes()
        self._alive = alive
        self._watch = FileWatch(store, alive)
        self.repairs: list[str] = []  # sentences about files that were put back, for the writer to log

    @property
    def rescuing(self) -> bool:
        """True while the file is gone from its path and is being copied. May be read from any thread."""
        return self._watch.rescuing

    def run_batch(self, batch: Batch) -> SidecarError | None:
        """Run a batch and fill in its results. Returns why the settlements and failures are not committed, or None.

        Raises OutboxReplaced if another file is in the place of the outbox, and otherwise only errors of the program
        itself; then no caller gets an answer that says that anything of the batch is stored.
        """
        # First: on a connection in doubt, a commit could succeed on pages that never reach the disk.
        problem = self._ensure_not_overwritten() or self._ensure_trusted()
        if problem is None:
            problem = self._commit(batch, batch.accepts, batch.settlements, batch.failures)
            # A failing write or read below makes the writer retry the batch: it must not record these a second time.
            batch.failures_committed = problem is None
        else:
            # Only callers need an error: the writer keeps settlements and failures for the next batch.
            _fail(batch.accepts, problem)
        for request in batch.writes:
            problem = self._run(request, problem, lambda request=request: self._write(request, batch))  # type: ignore[misc]
        # Reads come last: they see everything that this batch has committed.
        for request in batch.reads:
            problem = self._run(request, problem, lambda request=request: request.payload(self._store))  # type: ignore[misc]
        # Last, before any caller is answered: what was committed into a file that a restart would not find is not stored.
        if lost := self._ensure_in_place():
            _fail((request for request in (*batch.accepts, *batch.writes) if request.error is None), lost)
            return lost
        return problem

    def _ensure_not_overwritten(self) -> StoreFailed | None:
        """Return the error if another program has written into the file, as `cp` over it does, or has cut its log, and it is not intact."""
        if self._suspect:
            return None
        try:
            if not self._watch.was_written():
                return None
            why = recovery.damage_in_use(self._store, self._watch.size_bytes)
            if why is None:
                self._watch.found_intact()
                return None
        except OSError:
            return None  # the look at the end of the batch reports it
        except sqlite3.Error as error:
            # Any other error is one of the statement: the file has not the tables of an outbox, and opening it again would
            # make a new, empty one there.
            if not recovery.is_damage(error) and getattr(error, "sqlite_errorcode", 0) & 0xFF in _DISK_ERRORS:
                self._suspect = True
                return self.failure(error)
            why = str(error)
        self._damage_count = 1  # no second attempt: what another program has overwritten stays overwritten
        return self._damaged(f"another program has copied another file over it, or cut its log: {why}")

    def _ensure_in_place(self) -> StoreFailed | None:
        """Ensure that the outbox's path leads to the open file; returns the error if it does not."""
        try:
            # Nothing is put back from a connection in doubt: the next batch does that, and reopens it. But what this batch has
            # committed is answered only if the file is there.
            if self._suspect:
                is_gone = self._store.is_open and not self._watch.in_place()
                return self._gone(FileNotFoundError("it is not there")) if is_gone else None
            if repaired := self._watch.check():
                self.repairs.append(repaired)
            return None
        except (SidecarError, sqlite3.Error, OSError) as error:
            if isinstance(error, OutboxReplaced):
                raise
            if recovery.is_damage(error):
                self._damage_count = 1  # no second attempt: what another program has overwritten stays overwritten
                return self._damaged(error)
            # The next batch begins with another attempt, and runs only if that succeeds.
            self._suspect = True
            return self._gone(error)

    def _gone(self, error: Exception) -> OutboxGone:
        path = self._store.path
        if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL or getattr(error, "errno", 0) in _NO_SPACE:
            self._capacity.remove_reserve()  # for the next attempt: nothing can be settled before it succeeds
        self._alive()  # if the watchdog ended the process, the content that only it has would be lost
        return OutboxGone(
            f"The outbox {path} is gone from its path and could not be put back ({error}); its events are in this process "
            f"only, so do not stop it: make {path.parent} writable, with enough free space. Send the request again."
        )

    def maintain(self, step: Callable[[Store, int], bool], batch: Batch) -> tuple[bool, SidecarError | None]:
        """Run one step of housekeeping. Returns whether there is more to do, and what is wrong with the disk or None.

        A full disk is not reported as a problem: accepting stops, and settlement does not depend on this step.
        """
        problem = self._ensure_not_overwritten() or self._ensure_trusted() or self._ensure_in_place()
        if problem is not None:
            return False, problem
        try:
            # Before the step, which may fail: after a full disk this is what lets events be accepted again.
            self._capacity.allocate_reserve()
            with self._transaction(batch):
                more = step(self._store, batch.now_ms)
            self._measure(self._store.used_bytes())
            # A damaged index hides events without any error, so each step compares it with the counters.
            if why := recovery.contradiction(self._store):
                return False, self._damaged(why)
            if self._capacity.full_by_log:
                # Only a write would cut the log, and there may be none while events are refused.
                self._cut_log()
            elif self._checkpoint_is_due():
                self._store.checkpoint()
            return more or self._store.vacuum(), None
        except OSError as error:
            return False, self.failure(error)
        except sqlite3.Error as error:
            problem = self._classify(error)
            if problem is None:
                raise
            return False, None if isinstance(problem, DiskFull) else problem
        finally:
            self._watch.written()  # a checkpoint or a vacuum of this step

    def _cut_log(self) -> None:
        """Copy the WAL into the file and empty it, outside of a transaction; do nothing while another program reads it."""
        connection = self._store.connection
        wait_ms = connection.execute("PRAGMA busy_timeout").fetchone()[0]
        connection.execute("PRAGMA busy_timeout = 0")  # otherwise this would wait for the reader, and commits with it
        try:
            self._store.checkpoint(truncate=True)
        finally:
            connection.execute(f"PRAGMA busy_timeout = {wait_ms}")

    def _checkpoint_is_due(self) -> bool:
        """Return True once after the file has not changed for a while, and at each step while space is short.

        Otherwise SQLite checkpoints by itself, when the log is full. A checkpoint each second would cost a single event a
        third sync, and write its pages again into the file and into the head of the log.
        """
        changes = self._store.connection.total_changes
        if changes != self._changes:
            self._changes, self._quiet_steps = changes, 0
        else:
            self._quiet_steps += 1
        return self._quiet_steps == QUIET_STEPS or self._capacity.nearly_full or self._capacity.full is not None

    def failure(self, why: object) -> StoreFailed:
        """Return the error for a client whose request could not be stored."""
        failed = StoreFailed(f"The outbox {self._store.path} could not be written ({why}); send the request again.")
        if getattr(why, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            failed.code = "busy"
        return failed

    def _ensure_trusted(self) -> SidecarError | None:
        """Reopen the connection if its state is in doubt. Returns the error if that fails, else None."""
        if not self._suspect:
            return None
        in_place = True
        try:
            # Reopening a path at which nothing stands would make an empty file there.
            in_place = self._watch.in_place()
            if in_place:
                self._store.reopen()
                self._watch.reopened()
            elif not self._store.is_open:
                self._watch.ensure_not_replaced()
                return self.failure("it is gone from its path")
            elif repaired := self._watch.check():
                self.repairs.append(repaired)
        except (SidecarError, sqlite3.Error, OSError) as error:
            if isinstance(error, OutboxReplaced):
                raise
            return self.failure(error) if in_place else self._gone(error)
        self._suspect = False
        return None

    # Accepting and settling -----------------------------------------------------------------------------------

    def _commit(
        self, batch: Batch, accepts: list[WriteRequest], settlements: list[Settlement], failures: list[Failure]
    ) -> SidecarError | None:
        """Commit all in one transaction, or in several smaller ones if that failed.

        Returns why the settlements and failures are not committed, or None. Accepts get their results or errors.
        """
        if not accepts and not settlements and not failures:
            return None
        try:
            self._transact(batch, accepts, settlements, failures)
            return None
        except Exception as error:
            problem = self._classify(error)
            if problem is None:
                if not accepts:
                    raise
                return self._commit_one_by_one(batch, accepts, settlements, failures, error)
        _fail(accepts, problem)
        if self._suspect or not accepts:
            return problem
        # The disk is full and the connection is sound: without the accepts, settling fits into the released reserve.
        return self._commit(batch, [], settlements, failures)

    def _commit_one_by_one(
        self,
        batch: Batch,
        accepts: list[WriteRequest],
        settlements: list[Settlement],
        failures: list[Failure],
        error: Exception,
    ) -> SidecarError | None:
        """Commit each accept alone, because one of them cannot be stored; only that one gets the error.

        Returns why the settlements and failures are not committed, or None.
        """
        if len(accepts) == 1 and not settlements and not failures:
            accepts[0].error = error
            return None
        # Settlements first, without the accepts: the one that cannot be stored must not take them along.
        problem = self._commit(batch, [], settlements, failures)
        for request in accepts:
            if problem is None:
                request.error = None  # refused for want of space beside another, which was not stored
                problem = self._commit(batch, [request], [], [])
            else:
                request.error = problem
        return problem

    def _transact(
        self, batch: Batch, accepts: list[WriteRequest], settlements: list[Settlement], failures: list[Failure]
    ) -> None:
        """Settle, then accept what fits, in one transaction. Results are set only after the commit."""
        with self._transaction(batch):
            # Failures first: an event may have failed and been settled since the last commit, and its history holds both.
            self._store.record_failures(failures)
            self._store.settle(settlements, batch.now_ms)
            admitted = self._admit(accepts)
            outcomes = self._store.accept([request.payload for request in admitted], batch.now_ms) if admitted else []
            used_bytes = self._store.used_bytes()
        # Only now: the space of a transaction that was rolled back is not used.
        self._measure(used_bytes)
        for request, outcome in zip(admitted, outcomes, strict=True):
            request.result = outcome

    def _admit(self, accepts: list[WriteRequest]) -> list[WriteRequest]:
        """Return the accepts that fit, after freeing space for them; the newest others get OutboxFull."""
        surplus = self._capacity.surplus(self._used_bytes, sum(request.size_bytes for request in accepts))
        if not accepts or surplus <= 0:
            return accepts
        missing = self._overflow.free_space(
            self._store, surplus, self._checked_out if self._capacity.drop_oldest else None
        )
        admitted = list(accepts)
        # From the end: the first may be a large request of which a part is on disk already.
        while admitted and missing > 0:
            refused = admitted.pop()
            missing -= refused.size_bytes
            refused.error = self._capacity.refuse()
        return admitted

    def _measure(self, used_bytes: int) -> None:
        self._used_bytes = used_bytes
        self._capacity.measure(used_bytes, self._watch.log_bytes)

    # Everything else ------------------------------------------------------------------------------------------

    def _write(self, request: WriteRequest, batch: Batch) -> Any:
        with self._transaction(batch):
            return request.payload(self._store, batch.now_ms)

    @contextmanager
    def _transaction(self, batch: Batch) -> Iterator[None]:
        """Run the block in a transaction; the first of a batch also holds what is known of the clock that dates its rows."""
        with self._store.transaction():
            if batch.clock_record is not None and not batch.clock_recorded:
                self._store.set_meta(CLOCK_RECORD, batch.clock_record)
            yield
        batch.clock_recorded = batch.clock_record is not None

    def _run(self, request: WriteRequest, problem: SidecarError | None, call: Callable[[], Any]) -> SidecarError | None:
        """Set the result of a request to that of the call, or its error. Returns what is wrong with the disk so far."""
        # No further statement on a connection in doubt, not even a read: it may see what is not on disk.
        if self._suspect:
            request.error = copy.copy(problem) or self.failure("its disk fails")
            return problem
        try:
            request.result = call()
        except Exception as error:  # it belongs to the caller; the other requests of the batch are not affected
            disk_problem = self._classify(error)
            request.error = disk_problem or error
            return disk_problem if isinstance(disk_problem, StoreFailed) else problem
        return problem

    def _classify(self, error: Exception) -> SidecarError | None:
        """Return what a failed call means for the disk: full, failing or damaged; None if the call itself was wrong."""
        if recovery.is_damage(error):
            return self._damaged(error)
        # The low byte is the primary code. 0: Python's sqlite3 module raised the error, or SQLite was not involved.
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code not in _DISK_ERRORS:
            return None
        if code == sqlite3.SQLITE_FULL:  # SQLite has rolled back; the connection stays usable
            return self._capacity.release_reserve()
        # After any other error it is not known what reached the disk.
        self._suspect = True
        if code == sqlite3.SQLITE_IOERR and self._capacity.has_fewer_bytes(DISK_FULL_BYTES):
            return self._capacity.release_reserve()
        return self.failure(error)

    def _damaged(self, why: object) -> StoreFailed:
        """Leave a damage marker. Returns StoreFailed the first time, because a read can fail once, then Damaged."""
        self._suspect = True
        self._damage_count += 1
        path = self._store.path
        try:
            recovery.mark_damaged(path)
        except OSError as error:
            return Damaged(
                f"The outbox {path} is damaged ({why}), and its folder cannot be written "
                f"({error.strerror}); make the folder writable and start again."
            )
        if self._damage_count == 1:
            return self.failure(why)
        return Damaged(
            f"The outbox {path} is damaged ({why}); the next start sets it aside and recovers what can be read."
        )


def _fail(requests: Iterable[WriteRequest], problem: SidecarError) -> None:
    # Each caller raises its own copy: one exception raised by two tasks would mix their tracebacks.
    for request in requests:
        request.error = copy.copy(problem)
