"""Group commit: all that wants to write shares one transaction, one fsync and one trip to the store's thread.

Theory
------
Whoever wants something from the store leaves a note and waits. The writer takes all notes that are there, performs
them in one transaction, and only then wakes who left them: an answer waits for the commit that holds its event, and no
longer. While a commit runs the next notes gather, so the more there is to do, the more one fsync carries; a lone note
is taken at once.

Settlements gather a little on purpose (``SETTLE_DELAY_S``) as long as others are expected: they free the slots of
delivery and bound what a crash repeats, but nobody waits for a single one. They never fail: what could not be
committed stays and is part of the next transaction.

Reads are done after the commit of the same trip, so that they see what is on disk and nothing else.

Cancellation: who is cancelled while waiting loses the answer, never the effect; the store's call itself is never
abandoned. The writer is the last to stop: ``stop`` lets it finish what is there.
"""

import sqlite3
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

import trio

from sidecar.clock import Clock
from sidecar.errors import SidecarError
from sidecar.outbox.records import Accepted, Failure, NewEvent, Settlement
from sidecar.outbox.room import DiskFull, Refused, Room
from sidecar.outbox.store import Store

__all__ = ["InlineRunner", "Outbox", "Runner", "StoreFailed", "ThreadRunner"]

# Field: settlements are committed at the latest 50 ms after the answer; half of it is left for the commit itself.
SETTLE_DELAY_S = 0.025
# So many rows are one transaction at most: about 60 ms, and others want a turn.
COMMIT_ROWS = 5_000
KEEP_INTERVAL_S = 1.0
FAILURES_MAX = 10

T = TypeVar("T")


class StoreFailed(SidecarError):
    """The disk refused a commit for another reason than lack of room; what was asked is not stored."""


class Runner(Protocol):
    """Where store calls run: the seam that tests and the simulation replace."""

    async def run(self, call: Callable[[], T]) -> T:
        """Run ``call`` to its end, whatever is cancelled meanwhile, and return or raise what it does."""
        ...


class ThreadRunner:
    """In a thread, one call at a time, with a limiter of its own.

    The default limiter is shared with name look-ups, and 40 hanging look-ups would hold the store up for seconds
    (facts: ``field_lessons.md`` M16).
    """

    def __init__(self) -> None:
        self._limiter = trio.CapacityLimiter(1)

    async def run(self, call: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(call, limiter=self._limiter)


class InlineRunner:
    """On the spot, for tests under virtual time: a thread would let the mock clock run away."""

    async def run(self, call: Callable[[], T]) -> T:
        await trio.lowlevel.checkpoint()
        return call()


class _Note:
    """Something asked of the store, and its answer."""

    __slots__ = ("answer", "done", "error", "what")

    def __init__(self, what: Any) -> None:
        self.what = what
        self.done = trio.Event()
        self.answer: Any = None
        self.error: BaseException | None = None

    def settle(self, call: Callable[[], Any]) -> None:
        """Perform the call and keep its result or its exception for who waits."""
        try:
            self.answer = call()
        except (SidecarError, sqlite3.Error, ValueError) as error:
            self.error = error

    async def wait(self) -> Any:
        await self.done.wait()
        if self.error is not None:
            raise self.error
        return self.answer


class Outbox:
    """The asynchronous front of the store: the one writer that all connections and the dispatcher share."""

    def __init__(self, store: Store, clock: Clock, room: Room, runner: Runner) -> None:
        self._store = store
        self._clock = clock
        self._room = room
        self._runner = runner
        self._accepts: list[_Note] = []
        self._writes: list[_Note] = []
        self._reads: list[_Note] = []
        self._settlements: list[Settlement] = []
        self._failures: list[Failure] = []
        self._settle_by_s = float("inf")
        self._wake = trio.Event()
        self._stopping = False
        self._failed_in_a_row = 0
        self.on_settled: Callable[[Sequence[Settlement]], None] = lambda _settled: None
        self.on_accepted: Callable[[], None] = lambda: None
        self.on_commit: Callable[[float, int], None] = lambda _took_s, _rows: None
        self.keep: Callable[[Store, int], bool] = lambda _store, _now_ms: False

    @property
    def counters(self) -> dict[str, int]:
        """The counters as of the last commit."""
        return dict(self._store.counters)

    @property
    def full(self) -> str | None:
        """Why events are refused just now (``outbox_full`` or ``disk_full``), or None."""
        return self._room.full

    # What others ask ------------------------------------------------------------------------------------------

    async def accept(self, events: Sequence[NewEvent]) -> Accepted:
        """Store events; returns after the commit that holds them is on disk.

        Raises OutboxFull, DiskFull or StoreFailed, and then none of them is stored. If the caller is cancelled they
        may be.
        """
        self._room.check()
        note = _Note(events)
        self._accepts.append(note)
        self._wake.set()
        answer: Accepted = await note.wait()
        return answer

    async def write(self, call: Callable[[Store, int], T]) -> T:
        """Run ``call(store, now_ms)`` inside the next transaction; returns its result after the commit."""
        note = _Note(call)
        self._writes.append(note)
        self._wake.set()
        result: T = await note.wait()
        return result

    async def read(self, call: Callable[[Store], T]) -> T:
        """Run ``call(store)`` between transactions."""
        note = _Note(call)
        self._reads.append(note)
        self._wake.set()
        result: T = await note.wait()
        return result

    def settle(self, settlement: Settlement, *, more_expected: bool) -> None:
        """Have an event settled soon; ``on_settled`` tells when it is committed. Never blocks, never fails."""
        self._settlements.append(settlement)
        due_s = self._clock.monotonic_s() + (SETTLE_DELAY_S if more_expected else 0)
        if due_s < self._settle_by_s:
            self._settle_by_s = due_s
            self._wake.set()

    def note_failure(self, failure: Failure) -> None:
        """Have a failed attempt remembered with the next commit."""
        self._failures.append(failure)

    def stop(self) -> None:
        """Let ``run`` finish what is there and return."""
        self._stopping = True
        self._wake.set()

    # The writer -----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Commit until ``stop``; then commit what is left and return.

        Raises StoreFailed after ``FAILURES_MAX`` commits in a row have failed: a supervisor may start afresh.
        """
        keep_at_s = self._clock.monotonic_s() + KEEP_INTERVAL_S
        while True:
            now_s = self._clock.monotonic_s()
            asked = bool(self._accepts or self._writes or self._reads) or now_s >= self._settle_by_s
            asked = asked or (self._stopping and bool(self._settlements or self._failures))
            if asked and now_s < keep_at_s + KEEP_INTERVAL_S:
                await self._trip()
            elif self._stopping and not asked:
                return
            elif now_s >= keep_at_s:
                more = await self._keep_house()
                keep_at_s = now_s + (0.05 if more else KEEP_INTERVAL_S)
            else:
                with trio.move_on_at(min(self._settle_by_s, keep_at_s)):
                    await self._wake.wait()
                self._wake = trio.Event()

    async def _trip(self) -> None:
        """One trip to the store with all that is there."""
        accepts = self._take_accepts()
        writes, self._writes = self._writes, []
        reads, self._reads = self._reads, []
        settlements, self._settlements = self._settlements, []
        failures, self._failures = self._failures, []
        self._settle_by_s = float("inf")
        now_ms, started_s = self._clock.wall_ms(), self._clock.monotonic_s()

        def trip() -> Exception | None:
            error = self._commit(accepts, settlements, failures, now_ms)
            for note in writes:
                self._perform(note, now_ms)
            for note in reads:
                note.settle(partial(note.what, self._store))
            return error

        error = await self._runner.run(trip)
        for note in (*accepts, *writes, *reads):
            note.done.set()
        if error is not None:
            self._settlements[:0] = settlements
            self._failures[:0] = failures
            await self._recover(error)
            return
        self._failed_in_a_row = 0
        self.on_commit(self._clock.monotonic_s() - started_s, len(accepts) + len(settlements))
        if settlements:
            self.on_settled(settlements)
        if accepts:
            self.on_accepted()

    def _take_accepts(self) -> list[_Note]:
        taken = rows = 0
        for note in self._accepts:
            if taken and rows + len(note.what) > COMMIT_ROWS:
                break
            rows += len(note.what)
            taken += 1
        accepts, self._accepts = self._accepts[:taken], self._accepts[taken:]
        return accepts

    def _commit(
        self, accepts: list[_Note], settlements: list[Settlement], failures: list[Failure], now_ms: int
    ) -> Exception | None:
        """In the store's thread: one transaction; the accepts learn their outcome. Returns why settlements failed."""
        try:
            self._transact(accepts, settlements, failures, now_ms)
            return None
        except sqlite3.Error as error:
            refusal = self._refusal(error)
        for note in accepts:
            note.error = refusal
        if not settlements and not failures:
            return None if isinstance(refusal, Refused) else refusal
        try:  # without the accepts there may be room
            self._transact([], settlements, failures, now_ms)
        except sqlite3.Error as error:
            return self._refusal(error)
        return None

    def _transact(
        self, accepts: list[_Note], settlements: list[Settlement], failures: list[Failure], now_ms: int
    ) -> None:
        if not accepts and not settlements and not failures:
            return
        with self._store.transaction():
            self._store.settle(settlements, now_ms)
            self._store.note_failures(failures)
            outcomes = self._store.accept([note.what for note in accepts], now_ms) if accepts else []
        self._room.measure(self._store.used_bytes())
        for note, outcome in zip(accepts, outcomes, strict=True):
            note.answer = outcome

    def _perform(self, note: _Note, now_ms: int) -> None:
        """In the store's thread: one asked-for write in a transaction of its own."""

        def write() -> Any:
            with self._store.transaction():
                return note.what(self._store, now_ms)

        note.settle(write)
        if isinstance(note.error, sqlite3.Error):
            note.error = self._refusal(note.error)

    def _refusal(self, error: sqlite3.Error) -> SidecarError:
        """What a failed commit means to who asked for it."""
        if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
            self._room.disk_is_full()
            return DiskFull(
                f"The disk of {self._store.path.parent} is full; make room there, events are taken again by themselves."
            )
        return StoreFailed(
            f"The outbox {self._store.path} could not be written ({error}); nothing of this was stored, send it again."
        )

    async def _recover(self, error: Exception) -> None:
        """After a failed commit of settlements: look again a little later, with a new connection.

        After a failed fsync the kernel may have dropped the pages: a connection that goes on would trust them
        (facts: ``field_lessons.md`` 2).
        """
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= FAILURES_MAX:
            raise StoreFailed(
                f"The outbox {self._store.path} could not be written {FAILURES_MAX} times in a row ({error}); check its disk."
            )
        self._settle_by_s = self._clock.monotonic_s() + 0.1 * 2**self._failed_in_a_row
        if not isinstance(error, Refused):
            await self._runner.run(self._store.reopen)

    async def _keep_house(self) -> bool:
        """Nothing else to do: prune a little, lay by the reserve, checkpoint. True if there is more of it."""
        now_ms = self._clock.wall_ms()

        def step() -> bool:
            self._room.lay_by()
            try:
                with self._store.transaction():
                    more = self.keep(self._store, now_ms)
            except sqlite3.Error as error:
                self._refusal(error)
                return False
            self._room.measure(self._store.used_bytes())
            return more or self._store.tidy()

        return await self._runner.run(step)
