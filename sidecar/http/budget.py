"""A bound on the memory that clients of a group of listeners occupy together.

Theory
------
A request that arrives whole, in one read, and is answered at once costs nothing that lasts. What lasts is of three
kinds, and each has a share of the bound:

*held*      unfinished requests, requests behind the one that is handled, and answers that a client does not read. It
            depends on the client alone how long they last, so nothing may wait for them. When the share is exceeded,
            the client that has made no progress for the longest time is evicted: many slow clients evict each other,
            while a request that arrives at its own pace is gone before its turn comes.
*large*     whole bodies of ``LARGE_BYTES`` or more. They are reserved before they are read further, first come, first
            served. Once another waits, each has a limited time to arrive. The bytes that wait for a reservation are
            bounded, too: when too many wait, the newest is refused.
*parsed*    events that wait for their commit, which only the disk can delay. While the share is exceeded no further
            request is parsed; the requests that wait for that are bounded in the same way. Large requests wait until
            there is space beside all others, small ones only for other small ones: a single large request exceeds the
            share, and takes many commits. Large bodies are not counted twice: they stay reserved until their commit.
            A large line of NDJSON is reserved only until it has ended; it waits for space before it is read further.
            Small ones that wait are parsed one after the other, alternately the smallest and the oldest, and the largest is
            refused when too many wait: clients that send without reading must not delay one that waits for each answer,
            and none waits without end.

Work on large bodies (inflating, parsing) is done by one at a time, in slices, so that what a body expands to while it
is worked on exists once, and other connections run between two slices. After each slice the work stands still for
``PAUSE_S``: the store's thread needs the interpreter for each row that it reads or changes, and beside a loop that never
sleeps it waits for half a millisecond each time (sidecar/http/README.md).
"""

from collections import deque
from collections.abc import Callable, Generator
from heapq import heappop, heappush
from itertools import count
from typing import Final, NamedTuple, TypeVar

import trio

__all__ = [
    "LARGE_BYTES",
    "BudgetExceeded",
    "BudgetStatistics",
    "Holder",
    "MemoryBudget",
    "at_once",
    "in_slices",
]

# A body or line is large from this size on.
LARGE_BYTES: Final = 64 * 1024
# What a small request that waits occupies beside its body.
WAITING_BYTES: Final = 2_000
# How long a request waits until its events may be parsed, before it is answered 503.
WAIT_S: Final = 30.0
# Between two slices of the work on a large body; the shortest time that epoll can wait (epoll_wait(2)).
PAUSE_S: Final = 0.001

T = TypeVar("T")
Hurry = Callable[[], None]


class BudgetExceeded(Exception):
    """The request does not fit into the memory for clients; answer 503 ``busy``."""


class BudgetStatistics(NamedTuple):
    """Bytes that are held at this moment, by share, and the number of large bodies that wait for a reservation."""

    held_bytes: int
    large_bytes: int
    parsed_bytes: int
    large_waiting: int


class Holder:
    """The part of the *held* share that one connection holds. ``evict`` makes it drop that and end; it must not block."""

    __slots__ = ("bytes", "evict")

    def __init__(self, evict: Callable[[], None]) -> None:
        self.bytes = 0
        self.evict = evict


class MemoryBudget:
    """The memory for the clients of one group of listeners.

    ``working`` is shared by all groups: it admits one large body at a time to be worked on.
    """

    def __init__(self, limit_bytes: int, working: trio.Lock | None = None) -> None:
        self.working = working or trio.Lock()
        part = limit_bytes // 16
        self._held_limit, self._large_limit, self._waiting_limit = 3 * part, 4 * part, 4 * part
        self._parsed_limit, self._unparsed_limit = 3 * part, 2 * part
        self._held_bytes = self._large_bytes = self._unparsed_bytes = 0
        self._parsed_small_bytes = self._parsed_large_bytes = 0
        self._holders: dict[Holder, None] = {}  # the one without progress for the longest time first
        self._waiting: deque[tuple[int, trio.Event]] = deque()
        self._arriving: dict[Hurry, None] = {}
        self._unparsed = _Unparsed()
        self._large_turn = trio.Lock()
        self._has_space: trio.Event | None = None  # created by the first large request that waits, set for all of them

    def statistics(self) -> BudgetStatistics:
        """Return what is held at this moment."""
        return BudgetStatistics(
            self._held_bytes,
            self._large_bytes,
            self._parsed_small_bytes + self._parsed_large_bytes,
            len(self._waiting),
        )

    # Held: as long as a client likes ------------------------------------------------------------------------------

    def hold(self, holder: Holder, size_bytes: int, *, progress: bool = False) -> None:
        """Set what ``holder`` holds; evict the holders without progress for the longest time if that is too much.

        ``progress`` restarts the time of this holder: it reads its answers, however many they are.
        """
        self._held_bytes += size_bytes - holder.bytes
        holder.bytes = size_bytes
        if progress or not size_bytes:
            self._holders.pop(holder, None)
        if size_bytes:
            self._holders[holder] = None  # keeps its place if it has one
        # What a single connection may hold is limited by itself, so one is always allowed.
        while self._held_bytes > self._held_limit and len(self._holders) > 1:
            victim = next(iter(self._holders))
            del self._holders[victim]
            self._held_bytes -= victim.bytes
            victim.bytes = 0
            victim.evict()

    # Large: whole bodies ------------------------------------------------------------------------------------------

    async def reserve(self, size_bytes: int, hurry: Hurry | None = None) -> None:
        """Wait for ``size_bytes`` of the *large* share; ``release`` gives them back. One body always fits alone.

        ``hurry`` is called, until ``release``, when others begin to wait; it must not block. ``is_contended`` tells
        whether some wait already. Raises BudgetExceeded at once if too many wait. A cancelled caller has reserved
        nothing.
        """
        if not self._waiting and self._fits(size_bytes):
            self._large_bytes += size_bytes
            if hurry is not None:
                self._arriving[hurry] = None
            return
        # Each that waits has read up to one piece beyond LARGE_BYTES.
        if 2 * LARGE_BYTES * len(self._waiting) > self._waiting_limit:
            raise BudgetExceeded
        place = (size_bytes, trio.Event())
        self._waiting.append(place)
        for hurry_other in list(self._arriving):
            hurry_other()
        try:
            await place[1].wait()
        except trio.Cancelled:
            # Not granted: an event that is set before the cancellation makes wait() return.
            self._waiting.remove(place)
            self._grant()
            raise
        if hurry is not None:
            self._arriving[hurry] = None

    def release(self, size_bytes: int, hurry: Hurry | None = None) -> None:
        """Give back reserved bytes, with the ``hurry`` that they were reserved with."""
        self._large_bytes -= size_bytes
        if hurry is not None:
            self._arriving.pop(hurry, None)
        self._grant()

    def is_contended(self) -> bool:
        """Return whether large bodies wait for a reservation."""
        return bool(self._waiting)

    def _fits(self, size_bytes: int) -> bool:
        return not self._large_bytes or self._large_bytes + size_bytes <= self._large_limit

    def _grant(self) -> None:
        while self._waiting and self._fits(self._waiting[0][0]):
            size_bytes, granted = self._waiting.popleft()
            self._large_bytes += size_bytes
            granted.set()

    # Parsed: until the commit -------------------------------------------------------------------------------------

    def is_full(self, *, large: bool = False) -> bool:
        """Return whether the next request, small or large, has to wait before it is parsed."""
        return self._parsed_small_bytes + (self._parsed_large_bytes if large else 0) > self._parsed_limit

    async def work(
        self, make: Callable[[], Generator[None, None, T]], size_bytes: int, *, has_tiny_parts: bool = False
    ) -> tuple[T, bool]:
        """Parse a body of ``size_bytes`` once there is space for its events; return the result, and whether it is large.

        ``make`` makes the work, which yields after each slice. A small body that takes more than one slice starts over
        as a large request: until its turn only its bytes are held, not what they expand to. One that ``has_tiny_parts``
        is treated as large from the start, because the result of its first slice would be dropped. Pass what was returned to ``add``, and
        call ``next_turn`` after that. Raises BudgetExceeded if it would have to wait too long.
        """
        if size_bytes < LARGE_BYTES and not has_tiny_parts:
            if self.is_full():
                await self._wait_for_turn(size_bytes)
            try:
                next(work := make())
            except StopIteration as end:
                value: T = end.value
                return value, False
            work.close()
            self.next_turn()
        counted_bytes = size_bytes + WAITING_BYTES if size_bytes < LARGE_BYTES else 0  # a large body stays reserved
        if counted_bytes and self._unparsed_bytes + counted_bytes > self._unparsed_limit and self._unparsed_bytes:
            raise BudgetExceeded
        self._unparsed_bytes += counted_bytes
        try:
            await self._large_turn.acquire()
        finally:
            self._unparsed_bytes -= counted_bytes
        try:
            return await self._work_in_slices(make), True
        finally:
            self._large_turn.release()

    async def _work_in_slices(self, make: Callable[[], Generator[None, None, T]]) -> T:
        """Run the work once there is space, and while no other group works. Raises BudgetExceeded."""
        while True:
            await self.wait_for_large_space()
            async with self.working:  # not while it waits for space, which other groups may have
                if not self.is_full(large=True):
                    return await in_slices(make())

    async def _wait_for_turn(self, size_bytes: int) -> None:
        """Wait until a small body may be parsed. Raises BudgetExceeded."""
        size_bytes += WAITING_BYTES
        if self._unparsed_bytes + size_bytes > self._unparsed_limit and not self._unparsed.refuse_larger(size_bytes):
            raise BudgetExceeded
        waiter = self._unparsed.add(size_bytes)
        self._unparsed_bytes += size_bytes
        try:
            with trio.move_on_after(WAIT_S):
                await waiter.ended.wait()
        finally:
            self._unparsed_bytes -= size_bytes
            waiter.ended.set()
        if not waiter.admitted:
            raise BudgetExceeded

    async def wait_for_large_space(self) -> None:
        """Wait until a large request may be parsed, at most ``WAIT_S``. Raises BudgetExceeded."""
        with trio.move_on_after(WAIT_S) as waiting:
            while self.is_full(large=True):
                if self._has_space is None:
                    self._has_space = trio.Event()
                await self._has_space.wait()
        if waiting.cancelled_caught:
            raise BudgetExceeded

    def next_turn(self) -> None:
        """Let the next small request that waits be parsed, if there is space."""
        if self._unparsed and not self.is_full():
            self._unparsed.admit()

    def add(self, size_bytes: int, *, large: bool = False) -> None:
        """Add ``size_bytes`` of parsed events of a small or large request; a negative number gives them back."""
        if large:
            self._parsed_large_bytes += size_bytes
        else:
            self._parsed_small_bytes += size_bytes
        if size_bytes < 0:
            self.next_turn()
            if self._has_space is not None and not self.is_full(large=True):
                self._has_space.set()
                self._has_space = None


class _Waiter:
    """A small request that waits to be parsed, until ``ended`` is set."""

    __slots__ = ("admitted", "ended", "size_bytes")

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.ended = trio.Event()
        self.admitted = False


class _Unparsed:
    """The requests that wait to be parsed, in three orders; one that has ended is dropped where it is met."""

    def __init__(self) -> None:
        self._oldest: deque[_Waiter] = deque()
        self._smallest: list[tuple[int, int, _Waiter]] = []
        self._largest: list[tuple[int, int, _Waiter]] = []
        self._numbers = count()
        self._oldest_next = False

    def __bool__(self) -> bool:
        return bool(self._oldest or self._smallest)

    def add(self, size_bytes: int) -> _Waiter:
        """Add a request."""
        waiter, number = _Waiter(size_bytes), next(self._numbers)
        self._oldest.append(waiter)
        heappush(self._smallest, (size_bytes, number, waiter))
        heappush(self._largest, (-size_bytes, -number, waiter))
        return waiter

    def admit(self) -> None:
        """Admit a request: alternately the oldest and the smallest."""
        self._oldest_next = not self._oldest_next
        while self._oldest and self._smallest:
            waiter = self._oldest.popleft() if self._oldest_next else heappop(self._smallest)[2]
            if not waiter.ended.is_set():
                waiter.admitted = True
                waiter.ended.set()
                return
        # One that waits is in all three.
        self._oldest.clear()
        self._smallest.clear()
        self._largest.clear()

    def refuse_larger(self, size_bytes: int) -> bool:
        """Refuse the newest of the largest requests if it is larger than ``size_bytes``; return True if so, or if none waits."""
        while self._largest:
            largest_bytes, _, waiter = self._largest[0]
            if waiter.ended.is_set():
                heappop(self._largest)
            elif -largest_bytes <= size_bytes:
                return False
            else:
                heappop(self._largest)
                waiter.ended.set()
                return True
        return True


def at_once(work: Generator[None, None, T]) -> T:
    """Run a generator to its end without letting other tasks run, and return its value. Raises what it raises."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            value: T = end.value
            return value


async def in_slices(work: Generator[None, None, T], working: trio.Lock | None = None) -> T:
    """Run a generator to its end and return its value; let other tasks and threads run for ``PAUSE_S`` at each ``yield``.

    Holds ``working`` meanwhile. Raises what the generator raises.
    """
    if working is not None:
        async with working:
            return await in_slices(work)
    while True:
        try:
            next(work)
        except StopIteration as end:
            value: T = end.value
            return value
        await trio.sleep(PAUSE_S)
