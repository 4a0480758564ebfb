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

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, Final, TypeVar

import trio

from sidecar.clock import Clock
from sidecar.errors import SidecarError
from sidecar.outbox.committer import Committer, Damaged, Note, StoreFailed, Work
from sidecar.outbox.records import Accepted, Failure, NewEvent, Settlement
from sidecar.outbox.room import ROW_BYTES, Refused, Room
from sidecar.outbox.runner import Runner
from sidecar.outbox.store import Store

__all__ = ["Outbox"]

# Field: settlements are committed at the latest 50 ms after the answer; half of it is left for the commit itself.
SETTLE_DELAY_S: Final = 0.025
# A failed attempt is remembered within a second, with or without company.
FAILURE_DELAY_S: Final = 1.0
# So many rows, and bytes beyond the first note, are one transaction at most: about 60 ms, and others want a turn.
COMMIT_ROWS: Final = 5_000
COMMIT_BYTES: Final = 4 * 2**20
KEEP_INTERVAL_S: Final = 1.0
KEEP_AGAIN_S: Final = 0.05
FAILURES_MAX: Final = 10
RETRY_MAX_S: Final = 5.0

T = TypeVar("T")


class Outbox:
    """The asynchronous front of the store: the one writer that all connections and the dispatcher share.

    What others may set: ``on_settled`` is told of settlements once they are committed, ``on_accepted`` that there are
    new events, ``on_commit`` how long a commit took and how many rows it had; ``keep(store, now_ms)`` does a step of
    housekeeping inside a transaction and says whether there is more; ``protected()`` gives the ids of pending events
    that must not be dropped to make room: all that are loaded, from the moment their page was read until their
    settlement is told of.
    """

    def __init__(self, store: Store, clock: Clock, room: Room, runner: Runner) -> None:
        self._store = store
        self._clock = clock
        self._room = room
        self._runner = runner
        self._committer = Committer(store, room)
        self._accepts: list[Note] = []
        self._writes: list[Note] = []
        self._reads: list[Note] = []
        self._settlements: list[Settlement] = []
        self._failures: list[Failure] = []
        self._settle_by_s = float("inf")
        self._keep_at_s = 0.0
        self._retry_at_s = 0.0
        self._wake = trio.Event()
        self._stopping = False
        self._stopped = False
        self._failed_in_a_row = 0
        self.on_settled: Callable[[Sequence[Settlement]], None] = lambda _settled: None
        self.on_accepted: Callable[[], None] = lambda: None
        self.on_commit: Callable[[float, int], None] = lambda _took_s, _rows: None
        self.keep: Callable[[Store, int], bool] = lambda _store, _now_ms: False
        self.protected: Callable[[], Collection[int]] = frozenset

    @property
    def counters(self) -> dict[str, int]:
        """The counters as of the last commit."""
        return dict(self._store.counters)

    @property
    def full(self) -> str | None:
        """Why events are refused just now (``outbox_full`` or ``disk_full``), or None."""
        return self._room.full

    @property
    def short(self) -> bool:
        """Whether room runs short, so that history should go whatever its age."""
        return self._room.short

    # What others ask ------------------------------------------------------------------------------------------

    async def accept(self, events: Sequence[NewEvent]) -> Accepted:
        """Store events; returns after the commit that holds them is on disk.

        Raises OutboxFull, DiskFull or StoreFailed, and then none of them is stored. If the caller is cancelled they
        may be.
        """
        answer: Accepted = await self.submit(events).wait()
        return answer

    def submit(self, events: Sequence[NewEvent]) -> Note:
        """Begin to store events: ``await note.wait()`` is what ``accept`` would do. Raises OutboxFull or DiskFull.

        Events are stored in the order in which they were submitted, whether anybody waits for them or not.
        """
        self._room.check()
        size_bytes = sum([len(event.body) for event in events]) + ROW_BYTES * len(events)
        note = Note(events, size_bytes)
        self._leave(self._accepts, note)
        return note

    async def write(self, call: Callable[[Store, int], T]) -> T:
        """Run ``call(store, now_ms)`` inside a transaction of its own; returns its result after the commit.

        Raises what ``call`` raises, and then nothing of it was done; DiskFull or StoreFailed.
        """
        result: T = await self._ask(self._writes, Note(call))
        return result

    async def read(self, call: Callable[[Store], T]) -> T:
        """Run ``call(store)`` between transactions. Raises what ``call`` raises, or StoreFailed."""
        result: T = await self._ask(self._reads, Note(call))
        return result

    async def _ask(self, notes: list[Note], note: Note) -> Any:
        self._leave(notes, note)
        return await note.wait()

    def _leave(self, notes: list[Note], note: Note) -> None:
        if self._stopped:
            raise self._committer.failure("the writer has stopped")
        notes.append(note)
        self._wake.set()

    def settle(self, settlement: Settlement, *, more_expected: bool) -> None:
        """Have an event settled soon; ``on_settled`` tells when it is committed. Never blocks, never fails."""
        self._settlements.append(settlement)
        self._commit_within(SETTLE_DELAY_S if more_expected else 0.0)

    def note_failure(self, failure: Failure) -> None:
        """Have a failed attempt remembered with the next commit, within a second. Never blocks, never fails."""
        self._failures.append(failure)
        self._commit_within(FAILURE_DELAY_S)

    def _commit_within(self, delay_s: float) -> None:
        due_s = self._clock.monotonic_s() + delay_s
        if due_s < self._settle_by_s:
            self._settle_by_s = due_s
            self._wake.set()

    def stop(self) -> None:
        """Let ``run`` finish what is there and return."""
        self._stopping = True
        self._wake.set()

    # The writer -----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Commit until ``stop``; then commit what is left and return.

        Raises StoreFailed after ``FAILURES_MAX`` trips in a row have failed, and at once if the file is damaged: a
        supervisor may start afresh. However it
        ends, nobody is left waiting.
        """
        self._keep_at_s = self._clock.monotonic_s() + KEEP_INTERVAL_S
        try:
            while not (self._stopping and not self._anything()):
                await self._next()
        finally:
            self._stopped = True
            for note in (*self._accepts, *self._writes, *self._reads):
                note.error = self._committer.failure("the writer has stopped")
                note.done.set()

    def _anything(self) -> bool:
        return bool(self._accepts or self._writes or self._reads or self._settlements or self._failures)

    async def _next(self) -> None:
        """The next trip, step of housekeeping, or rest."""
        now_s = self._clock.monotonic_s()
        if self._accepts or self._writes or self._reads or self._stopping:
            due_s = self._retry_at_s
        else:
            due_s = max(self._settle_by_s, self._retry_at_s)
        keep_s = max(self._keep_at_s, self._retry_at_s)
        if due_s <= now_s and now_s < keep_s + (KEEP_AGAIN_S if self._room.short else KEEP_INTERVAL_S):
            await self._trip()
        elif keep_s <= now_s:
            await self._keep_house()
        else:
            with trio.move_on_at(min(due_s, keep_s)):
                await self._wake.wait()
            self._wake = trio.Event()

    async def _trip(self) -> None:
        """One trip to the store with all that is there."""
        work = Work(self._clock.wall_ms(), frozenset(self.protected()) if self._room.drop_oldest else frozenset())
        work.accepts = self._take_accepts()
        work.writes, self._writes[:] = self._writes[:], []
        work.reads, self._reads[:] = self._reads[:], []
        work.settlements, self._settlements = self._settlements, []
        work.failures, self._failures = self._failures, []
        self._settle_by_s = float("inf")
        started_s = self._clock.monotonic_s()
        try:
            problem = await self._runner.run(partial(self._committer.trip, work))
        except BaseException as error:
            ended = self._committer.failure(f"the writer has ended: {type(error).__name__}")
            for note in (*work.accepts, *work.writes, *work.reads):
                note.error = note.error or ended
            raise
        finally:
            for note in (*work.accepts, *work.writes, *work.reads):
                note.done.set()
        if problem is not None:
            self._settlements[:0] = work.settlements
            if not work.noted:  # settling once more changes nothing, noting counts
                self._failures[:0] = work.failures
            if work.accepts:
                self.on_accepted()  # a commit that failed may have happened all the same, and nobody else would tell
            self._try_again_later(problem)
            return
        self._failed_in_a_row = 0
        self._tell(work, started_s)
        if work.reads and self._room.drop_oldest:
            # Whoever has read a page gets to say that its rows are protected, before the next trip drops some: he runs
            # in the next round of the scheduler, this task in the one after it.
            await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()

    def _tell(self, work: Work, started_s: float) -> None:
        """What was committed, to who wants to know."""
        stored = sum(note.answer.stored for note in work.accepts if note.error is None)
        if stored or work.settlements:
            self.on_commit(self._clock.monotonic_s() - started_s, stored + len(work.settlements))
        if work.settlements:
            self.on_settled(work.settlements)
        if stored:
            self.on_accepted()

    def _take_accepts(self) -> list[Note]:
        taken = rows = size_bytes = 0
        for note in self._accepts:
            rows += len(note.what)
            size_bytes += note.size_bytes
            if taken and (rows > COMMIT_ROWS or size_bytes > COMMIT_BYTES):
                break
            taken += 1
        accepts = self._accepts[:taken]
        del self._accepts[:taken]
        return accepts

    def _try_again_later(self, problem: SidecarError) -> None:
        """After a failed trip: back off; give up where it was the disk for ``FAILURES_MAX`` times in a row.

        A full disk is waited for: giving up would send again what was not settled.
        """
        self._failed_in_a_row += 1
        if isinstance(problem, Damaged):
            raise problem
        if self._failed_in_a_row >= FAILURES_MAX and not isinstance(problem, Refused):
            raise StoreFailed(
                f"The outbox {self._store.path} failed {self._failed_in_a_row} times in a row; check its disk. {problem}"
            )
        now_s = self._clock.monotonic_s()
        self._retry_at_s = now_s + min(0.1 * 2 ** min(self._failed_in_a_row, 10), RETRY_MAX_S)
        if self._settlements or self._failures:
            self._settle_by_s = self._retry_at_s

    async def _keep_house(self) -> None:
        """Nothing else to do, or too long nothing done: prune a little, lay by the reserve, checkpoint."""
        call = partial(self._committer.keep_house, self.keep, self._clock.wall_ms())
        more, problem = await self._runner.run(call)
        self._keep_at_s = self._clock.monotonic_s() + (KEEP_AGAIN_S if more else KEEP_INTERVAL_S)
        if problem is not None:
            self._try_again_later(problem)
