"""The loaded part of the backlog: in order per user and class, concurrent across users.

Theory
------
An event waits in the queue of its *key*, which is its user and class (with ``order = "none"`` every event has a key of
its own). Only the head of a queue can be sent; the next event becomes head when the head is done. A head is in exactly
one state::

    ready ──take──► out (in flight, or waiting for its commit) ──done──► gone, the next event becomes head
      ▲               │
      └─due─ waiting ◄┘ retry_at

Memory is bounded by *parking*. A user that is slow, waits for a retry or has a long backlog would fill it; so a queue
holds at most ``QUEUE_MAX`` events, and only the head while the user waits. Rows that do not fit are marked as parked in
the outbox, and read back page by page when their queue is empty. While a key has parked rows, every newer row is parked
behind them: this keeps the order.

After a restart, events that an earlier process had loaded can stand between others that it had parked. So rows that an
earlier process parked are not read back before the *read position* has passed them: the id up to which the backlog was
loaded.

The choice is by id: the oldest ready head of the highest class that has one.

See sidecar/deliver/README.md#order.
"""

import heapq
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

from sidecar.mapping import PRIORITIES, Priority
from sidecar.outbox import CapUse, Row

__all__ = ["QUEUE_MAX", "LoadedEvent", "QueueKey", "QueueStatistics", "UserQueues"]

QUEUE_MAX = 4
# Most bytes of bodies that are loaded: with 32 KiB each there are still enough events for the day's pace.
WINDOW_BYTES = 16 * 2**20
# Bodies of waiting heads have a bound of their own: they must not fill the window of events that can be sent. A body that
# exceeds it is unloaded until its retry is due.
WAITING_BYTES = 4 * 2**20
RELOAD_ROWS = 100
# Waiting heads are not counted in the window. With this many of them PX is failing, and the destination waits.
WAITING_MAX = 20_000
BEFORE_ALL = 2**63  # subtracted from an id, it sorts before all other ids

QueueKey = tuple[Priority, str | int]


class LoadedEvent:
    """One event in memory.

    ``memory`` is the dispatcher's memory of its user, ``attempt`` the event as it was mapped for its current attempt.
    ``out`` is true from ``take`` until the event is requeued or done; ``due_s`` is above 0 while it waits for a retry.
    ``cap`` is the event's place under ``per_day`` of its name; ``judged_by`` the settings under which no rule drops it.
    """

    __slots__ = (
        *("attempt", "attempts", "body_unloaded", "cap", "due_s", "id", "judged_by", "key", "memory", "out"),
        *("priority", "row"),
    )

    def __init__(self, row: Row, key: QueueKey, memory: Any) -> None:
        self.row = row
        self.memory = memory
        self.id = row.id
        self.priority = row.priority
        self.key = key
        self.attempts = row.failure.attempts if row.failure else 0
        self.due_s = 0.0
        self.out = False
        self.body_unloaded = False
        self.attempt: Any = None
        self.cap: CapUse | None = None
        self.judged_by: Any = None

    def __repr__(self) -> str:
        return f"<LoadedEvent {self.id} of {self.key[1]!r}, {self.attempts} failed attempts>"


class QueueStatistics(NamedTuple):
    """The fill of the queues: events loaded, ready and waiting, keys with parked rows, the longest queue."""

    loaded: int
    ready: int
    waiting: int
    parked_keys: int
    needs_refill: int
    longest_queue: int


class UserQueues:
    """The queues. Pure: time is an argument, nothing is read or written.

    At most ``window`` events are loaded, not counting waiting heads. It must hold a full queue for each user that can
    be in flight, and more that are ready; otherwise the queues of slow users would keep others out.
    """

    def __init__(self, *, by_user: bool, window: int) -> None:
        self.events: dict[int, LoadedEvent] = {}
        self._window = window
        self._bytes = 0  # of bodies that are loaded, waiting heads apart
        self._waiting_bytes = 0
        self._to_reload: dict[int, LoadedEvent] = {}  # due for a retry, without a body
        self._by_user = by_user
        self._queues: dict[QueueKey, deque[LoadedEvent]] = {}
        # Heaps of heads by class. ``_waiting`` holds heads that failed, by the time of their retry.
        self._ready: dict[Priority, list[tuple[int, LoadedEvent]]] = {priority: [] for priority in PRIORITIES}
        self._waiting: list[tuple[float, int, LoadedEvent]] = []
        self._parked: dict[QueueKey, int] = {}  # key → id after which its parked rows are read next
        self._needs_refill: dict[QueueKey, None] = {}  # parked keys with an empty queue, in order of becoming empty
        self._first_parked: dict[QueueKey, int] = {}  # key → first id that an earlier process parked, until passed
        self._to_pass: dict[Priority, list[tuple[int, QueueKey]]] = {
            priority: [] for priority in PRIORITIES
        }  # the same, as heaps
        self._read_position: dict[Priority, float] = dict.fromkeys(PRIORITIES, 0)
        self._to_park: list[LoadedEvent] = []

    def statistics(self) -> QueueStatistics:
        """Return how full the queues are."""
        return QueueStatistics(
            len(self.events),
            self.ready(),
            len(self._waiting),
            len(self._parked),
            len(self._needs_refill),
            max(map(len, self._queues.values()), default=0),
        )

    # Loading ----------------------------------------------------------------------------------------------------

    def capacity(self) -> int:
        """Return how many more events may be loaded from the backlog."""
        if self._bytes >= WINDOW_BYTES:
            return 0
        # Waiting heads are loaded and cannot be sent. Counted in the window, an outage would stop all loading.
        waiting = len(self._waiting)
        return min(self._window - (len(self.events) - waiting), WAITING_MAX - waiting)

    def ready(self, down_to: Priority = PRIORITIES[-1]) -> int:
        """Return how many users could send at once, in the classes from the highest ``down_to`` one."""
        return sum(len(heads) for priority, heads in self._ready.items() if priority >= down_to)

    def ready_by_class(self) -> tuple[int, ...]:
        """Return how many users are ready in each class, in the order of ``PRIORITIES``."""
        return tuple(len(self._ready[priority]) for priority in PRIORITIES)

    def mark_parked(self, keys: list[tuple[QueueKey, int]]) -> None:
        """Take over the keys that an earlier process has parked, with the first id of each."""
        for key, first_id in keys:
            # Read from the first id: only the file knows which of its rows are parked.
            self._parked[key] = 0
            self._wait_for_read_position(key, first_id)

    def _wait_for_read_position(self, key: QueueKey, first_id: int) -> None:
        self._first_parked[key] = first_id
        heapq.heappush(self._to_pass[key[0]], (first_id, key))

    def read_up_to(self, priority: Priority, row_id: float) -> None:
        """Record that the backlog of a class is loaded up to this id: rows parked before it may be read back."""
        self._read_position[priority] = max(self._read_position[priority], row_id)
        to_pass = self._to_pass[priority]
        while to_pass and to_pass[0][0] <= row_id:
            key = heapq.heappop(to_pass)[1]
            del self._first_parked[key]
            # A key with a queue is refilled when its queue becomes empty: what is loaded is older.
            if key not in self._queues:
                self._needs_refill[key] = None

    def load(self, row: Row, memory: Any = None) -> None:
        """Take the next row of the backlog: queue it, or list it in ``to_park``. A row that is loaded is ignored."""
        self._read_position[row.priority] = max(self._read_position[row.priority], row.id)
        # After ``rewind`` pages hold rows that are loaded: a second copy would be sent a second time.
        if row.id in self.events:
            return
        key: QueueKey = (row.priority, row.user if self._by_user and row.user is not None else row.id)
        event = LoadedEvent(row, key, memory)
        queue = self._queues.get(key)
        # A waiting head has due_s > 0. Nothing is kept behind it, so that 20,000 waiting users need little memory.
        full = queue is not None and (len(queue) >= QUEUE_MAX or queue[0].due_s > 0)
        # Once a key has parked rows, a newer row must not overtake them; an older one is still sent before them.
        first_id = self._first_parked.get(key, 0)
        if full or (key in self._parked and not row.id < first_id):
            self._park(event)
        else:
            self._enqueue(event)

    def load_parked(self, key: QueueKey, rows: list[tuple[Row, Any]], *, more: bool) -> None:
        """Take the next parked rows of one key, in order of id; without ``more`` there are no others."""
        # Rows that are still to be marked as parked are not in this page: the key stays parked for them, from before them.
        unread = [event.id - 1 for event in self._to_park if event.key == key]
        for row, memory in rows:
            if row.id > self._read_position[key[0]]:
                # Parked by an earlier process: older events of this key may still come from the backlog.
                self._needs_refill.pop(key, None)
                self._wait_for_read_position(key, row.id)
                return
            self._parked[key] = min([row.id, *unread])
            if row.id not in self.events:
                self._enqueue(LoadedEvent(row, key, memory))
        self._needs_refill.pop(key, None)
        if not more and not unread:
            self._parked.pop(key, None)
        elif key not in self._queues:
            self._needs_refill[key] = None

    def _park(self, event: LoadedEvent) -> None:
        # A retried dead letter is older than the rows that were read back. Reading must start before it, or it would
        # stay parked until a restart.
        self._parked[event.key] = min(self._parked.get(event.key, event.id), event.id - 1)
        if event.key in self._first_parked:
            self._first_parked[event.key] = min(self._first_parked[event.key], event.id)
        elif event.key not in self._queues:  # of a released event: no queue becomes empty and asks for its rows
            self._needs_refill[event.key] = None
        self._to_park.append(event)

    def _enqueue(self, event: LoadedEvent) -> None:
        self.events[event.id] = event
        self._bytes += len(event.row.body)
        queue = self._queues.setdefault(event.key, deque())
        queue.append(event)
        if len(queue) == 1:
            self._make_ready(event)

    def _make_ready(self, event: LoadedEvent, *, before_all: bool = False) -> None:
        event.due_s, event.out = 0.0, False
        # Ids are in the order of acceptance: the oldest head goes first, whichever became ready last.
        heapq.heappush(self._ready[event.priority], (event.id - BEFORE_ALL * before_all, event))

    def to_park(self) -> list[int]:
        """Return the ids to be marked as parked in the outbox; each is returned once."""
        ids = [event.id for event in self._to_park]
        self._to_park = []
        return ids

    def parking(self) -> Sequence[LoadedEvent]:
        """Return the events that are to be marked as parked."""
        return self._to_park

    def cancel_parking(self, events: Collection[LoadedEvent]) -> None:
        """Take events off the list of those to be marked as parked: they are settled."""
        self._to_park = [event for event in self._to_park if event not in events]

    def has_parked(self) -> bool:
        """Return True if any user has parked rows."""
        return bool(self._parked)

    def has_waiting(self) -> bool:
        """Return True if any head waits for a retry, and its user with it."""
        return bool(self._waiting)

    def must_load_other(self) -> bool:
        """Return True if rows wait to be parked or read back, which comes before the next page of the backlog."""
        return bool(self._to_park or self._to_reload or self._needs_refill)

    def wants_parked(self) -> tuple[QueueKey, int] | None:
        """Return a key whose queue is empty while it has parked rows, and the id after which to read.

        None while ``to_park`` holds rows that the outbox has not marked: the page would lack them, and newer rows in it
        would overtake them.
        """
        if self._to_park:
            return None
        for key in self._needs_refill:
            return key, self._parked[key]
        return None

    # Sending ----------------------------------------------------------------------------------------------------

    def head(self, now_s: float) -> LoadedEvent | None:
        """Return the next event to send, without taking it; due retries become ready first."""
        while self._waiting and self._waiting[0][0] <= now_s:
            self._retry_due(heapq.heappop(self._waiting)[2])
        heads = [heap[0] for heap in self._ready.values() if heap]
        # A negative rank was put first: it goes before events of either class.
        return next((event for rank, event in heads if rank < 0), heads[0][1] if heads else None)

    def oldest(self, now_s: float) -> LoadedEvent | None:
        """Return the oldest ready event of either class: the probe of an outage."""
        self.head(now_s)
        heads = [heap[0][1] for heap in self._ready.values() if heap]
        return min(heads, key=lambda event: event.id, default=None)

    def any_ready(self, now_s: float, random: float) -> LoadedEvent | None:
        """Return a ready event chosen by ``random`` from [0, 1), or one that was put first: the probe of a pause."""
        self.head(now_s)
        entries = [entry for heap in self._ready.values() for entry in heap]
        heads = [event for rank, event in entries if rank < 0] or [event for _, event in entries]
        return heads[int(random * len(heads))] if heads else None

    def take(self, event: LoadedEvent) -> None:
        """Take the ready ``event`` out: nothing of its key is ready until it is requeued or done."""
        event.out = True
        heap = self._ready[event.priority]
        if heap[0][1] is event:
            heapq.heappop(heap)
        else:  # a probe may be any ready event
            heap[:] = [entry for entry in heap if entry[1] is not event]
            heapq.heapify(heap)

    def requeue(self, event: LoadedEvent) -> None:
        """Make an event that was taken ready again at once, in its old position."""
        self._make_ready(event)

    def put_first(self, event: LoadedEvent) -> None:
        """Make an event that was taken ready before all others: it has another request to send.

        It holds a slot. An event sent before it could wait for a slot that only this one can free.
        """
        self._make_ready(event, before_all=True)

    def release_user(self, event: LoadedEvent) -> None:
        """Let the other events of its user continue without an event that was taken: it has a key of its own from now on."""
        key, queue = event.key, self._queues[event.key]
        first = queue.popleft()
        assert first is event, (first, event)
        event.key = (event.priority, event.id)
        self._queues[event.key] = deque([event])
        if key != event.key:
            self._advance(key, queue)

    def _retry_due(self, event: LoadedEvent) -> None:
        if event.body_unloaded:
            self._to_reload[event.id] = event
            return
        self._waiting_bytes -= len(event.row.body)
        self._bytes += len(event.row.body)
        self._make_ready(event)

    def to_reload(self) -> list[int]:
        """Return ids of events that are due for a retry and need their bodies back; the same until ``reloaded``."""
        # Only while the window has space: the bodies of all that failed together would exceed its bound at once.
        return list(self._to_reload)[:RELOAD_ROWS] if self._bytes < WINDOW_BYTES else []

    def reloaded(self, ids: list[int], rows: dict[int, Row]) -> None:
        """Make due events ready again with the bodies that were read; one that is not pending any more is unloaded."""
        for event_id in ids:
            event = self._to_reload.pop(event_id, None)
            if event is None:
                continue  # withdrawn meanwhile
            row = rows.get(event_id)
            if row is None:
                self._remove(event)
                continue
            event.row, event.body_unloaded = row._replace(failure=event.row.failure), False
            self._bytes += len(row.body)
            self._make_ready(event)

    def retry_at(self, event: LoadedEvent, due_s: float) -> None:
        """Let an event that was taken wait until ``due_s``, and its user with it; the rest of its queue is parked."""
        event.due_s, event.out = max(due_s, 1e-9), False  # above 0 even if due at once: that marks a waiting head
        heapq.heappush(self._waiting, (due_s, event.id, event))
        size_bytes = len(event.row.body)
        self._bytes -= size_bytes
        if self._waiting_bytes + size_bytes > WAITING_BYTES:
            event.row, event.body_unloaded = event.row._replace(body=b""), True
        else:
            self._waiting_bytes += size_bytes
        # What follows it cannot be sent before it: loaded, it would keep other users out of the window.
        self._park_behind(self._queues[event.key], 1)

    def _park_behind(self, queue: deque[LoadedEvent], count: int) -> None:
        """Park all but the first ``count`` events of a queue."""
        while len(queue) > count:
            later = queue.pop()
            self._unload(later)
            self._park(later)

    def done(self, event: LoadedEvent) -> None:
        """Remove an event that was taken and has its final state: the next event of its user becomes head."""
        self._unload(event)
        queue = self._queues[event.key]
        first = queue.popleft()
        assert first is event, (first, event)
        self._advance(event.key, queue)

    def discard(self, event: LoadedEvent) -> None:
        """Remove a loaded event that is neither out nor waiting and has its final state, wherever it stands."""
        queue = self._queues[event.key]
        if queue[0] is event:
            # The head is in a heap, too, and leaves it with ``take``; ``done`` makes the next event ready.
            self.take(event)
            self.done(event)
        else:
            queue.remove(event)
            self._unload(event)

    def _advance(self, key: QueueKey, queue: deque[LoadedEvent]) -> None:
        if queue:
            self._make_ready(queue[0])
        else:
            del self._queues[key]
            # Until the read position has passed an earlier process's parked rows, older rows may still come.
            if key in self._parked and key not in self._first_parked:
                self._needs_refill[key] = None

    def withdraw(self, match: Callable[[Row], bool]) -> list[LoadedEvent]:
        """Unload all matching events that are not out; rows that are still pending afterwards count as parked."""
        gone = [event for event in self.events.values() if not event.out and match(event.row)]
        for event in gone:
            if event.id in self.events:  # else it was unloaded with one before it
                self._remove(event)
        # An entry that stayed in a heap would be sent while its row is being changed.
        for ready in self._ready.values():
            ready[:] = [entry for entry in ready if entry[1].id in self.events]
            heapq.heapify(ready)
        self._waiting = [entry for entry in self._waiting if entry[2].id in self.events]
        heapq.heapify(self._waiting)
        return gone

    def _remove(self, event: LoadedEvent) -> None:
        """Unload an event that is not out; if it stays pending after all, it is sent before newer rows of its user."""
        key, queue = event.key, self._queues[event.key]
        was_head, at = queue[0] is event, queue.index(event)
        del queue[at]
        self._unload(event)
        self._park_behind(queue, at)  # what followed it must not be sent before it
        if self._by_user and event.row.user is not None:
            # The key of its user again, which ``release_user`` may have taken from it: parked rows are found by user.
            event.key = (event.priority, event.row.user)
            self._park(event)
        if was_head:
            self._advance(key, queue)

    def _unload(self, event: LoadedEvent) -> None:
        del self.events[event.id]
        self._to_reload.pop(event.id, None)
        # A waiting head counts against its own bound, and not at all while its body is unloaded.
        if event.due_s == 0.0:
            self._bytes -= len(event.row.body)
        elif not event.body_unloaded:
            self._waiting_bytes -= len(event.row.body)

    def next_due_s(self) -> float:
        """Return when the next waiting event is due; infinity if none waits."""
        return self._waiting[0][0] if self._waiting else float("inf")

    def waiting(self) -> Iterator[LoadedEvent]:
        """Iterate over the events that wait for a retry, in no particular order."""
        return (event for _, _, event in self._waiting)
