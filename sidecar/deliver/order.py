"""Whose turn it is: the loaded part of the backlog, in order per user and class, concurrent across users.

Theory
------
An event waits in the queue of its *turn*, its user and class (with ``order = "none"`` every event has a turn of its
own). Only the head of a queue can be sent; the next one becomes head when the head is done. A head is in exactly one
place::

    ready ──take──► out (in flight, or waiting for its commit) ──done──► gone, the next one becomes head
      ▲               │
      └─due─ waiting ◄┘ retry_at

Memory is bounded by setting aside. A user who is slow, or waits, or has a long queue would fill it; so a queue holds at
most ``QUEUE_MAX`` events, and of a waiting user only the head. What does not fit goes back to the file, marked as set
aside, and is read again page by page when its user's queue runs low. As long as a user has anything set aside, all
that is newer follows it there: this keeps the order. What is older than it may still be in front after a restart: the
events that were loaded then, between others that were set aside before and after them. So of what an earlier run has
set aside nothing is taken before the front has passed it.

The choice is by id: the oldest ready head of the high class, else of the normal one.
"""

import heapq
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from sidecar.outbox import Row

__all__ = ["QUEUE_MAX", "Item", "Order", "Turn"]

QUEUE_MAX = 4
# The bodies that are loaded at most, waiting heads apart; at 32 KiB each there is still enough for the day's pace.
WINDOW_BYTES = 16 * 2**20
# Waiting heads are kept beside the window. So many of them mean that PX is ill, and the destination waits anyway.
WAITING_MAX = 20_000
BEFORE_ALL = 2**63  # taken off an id it sorts before all of them

Turn = tuple[bool, str | int]


class Item:
    """One loaded event on its way.

    ``memory`` is what the dispatcher knows of its user, ``prepared`` what it made of the event when its turn came.
    """

    __slots__ = ("attempts", "due_s", "high", "id", "memory", "out", "prepared", "row", "turn")

    def __init__(self, row: Row, turn: Turn, memory: Any) -> None:
        self.row = row
        self.memory = memory
        self.id = row.id
        self.high = row.high
        self.turn = turn
        self.attempts = row.failure.attempts if row.failure else 0
        self.due_s = 0.0
        self.out = False
        self.prepared: Any = None

    def __repr__(self) -> str:
        return f"<Item {self.id} of {self.turn[1]!r}, {self.attempts} failed attempts>"


class Order:
    """The queues. Pure: time is an argument, nothing is read or written.

    ``window`` events are loaded at most, waiting heads apart: enough for as many users as can be sent for at once, each
    with a full queue behind him, and then some who are ready. Else the queues of slow users would keep others out.
    """

    def __init__(self, *, by_user: bool, window: int) -> None:
        self.items: dict[int, Item] = {}
        self._window = window
        self._bytes = 0
        self._by_user = by_user
        self._queues: dict[Turn, deque[Item]] = {}
        self._ready: dict[bool, list[tuple[int, Item]]] = {True: [], False: []}
        self._waiting: list[tuple[float, int, Item]] = []
        self._aside: dict[Turn, int] = {}  # turn -> highest id that came back from there
        self._hungry: dict[Turn, None] = {}  # those of them with an empty queue, in order of becoming so
        self._before: dict[Turn, int] = {}  # turn -> the first id of an earlier run's, until the front has passed it
        self._to_pass: dict[bool, list[tuple[int, Turn]]] = {True: [], False: []}
        self._front: dict[bool, float] = {True: 0, False: 0}
        self._to_set_aside: list[Item] = []

    # Loading ----------------------------------------------------------------------------------------------------

    def room(self) -> int:
        """How many more events may be loaded from the front of the backlog."""
        if self._bytes >= WINDOW_BYTES:
            return 0
        waiting = len(self._waiting)
        return min(self._window - (len(self.items) - waiting), WAITING_MAX - waiting)

    def ready(self) -> int:
        """How many users could send at once."""
        return len(self._ready[True]) + len(self._ready[False])

    def mark_aside(self, turns: list[tuple[Turn, int]]) -> None:
        """These users have rows set aside in the file, from an earlier run: each with the first of their ids."""
        for turn, first_id in turns:
            self._aside[turn] = 0
            self._wait_for_front(turn, first_id)

    def _wait_for_front(self, turn: Turn, first_id: int) -> None:
        self._before[turn] = first_id
        heapq.heappush(self._to_pass[turn[0]], (first_id, turn))

    def front_at(self, high: bool, row_id: float) -> None:
        """The front of a class was loaded up to this id: what was set aside by an earlier run until there may follow."""
        self._front[high] = max(self._front[high], row_id)
        to_pass = self._to_pass[high]
        while to_pass and to_pass[0][0] <= row_id:
            turn = heapq.heappop(to_pass)[1]
            del self._before[turn]
            if turn not in self._queues:
                self._hungry[turn] = None

    def load(self, row: Row, memory: Any = None) -> None:
        """Take the next row of the front of the backlog; it is queued, or set aside."""
        self._front[row.high] = max(self._front[row.high], row.id)
        if row.id in self.items:
            return
        turn: Turn = (row.high, row.user if self._by_user and row.user is not None else row.id)
        item = Item(row, turn, memory)
        queue = self._queues.get(turn)
        crowded = queue is not None and (len(queue) >= QUEUE_MAX or queue[0].due_s > 0)
        first_id = self._before.get(turn, 0)
        if crowded or (turn in self._aside and not row.id < first_id):
            self._set_aside(item)
        else:
            self._enqueue(item)

    def load_aside(self, turn: Turn, rows: list[tuple[Row, Any]], *, more: bool) -> None:
        """Take rows of one user that were set aside, after the ones before; without ``more`` there are no others."""
        for row, memory in rows:
            if row.id > self._front[turn[0]]:  # an earlier run's; older ones may still come from the front
                self._hungry.pop(turn, None)
                self._wait_for_front(turn, row.id)
                return
            self._aside[turn] = row.id
            if row.id not in self.items:
                self._enqueue(Item(row, turn, memory))
        self._hungry.pop(turn, None)
        if not more and not any(item.turn == turn for item in self._to_set_aside):
            self._aside.pop(turn, None)
        elif turn not in self._queues:
            self._hungry[turn] = None

    def _set_aside(self, item: Item) -> None:
        # A dead letter that is retried is older than what was read back: it must be found all the same.
        self._aside[item.turn] = min(self._aside.get(item.turn, item.id), item.id - 1)
        if item.turn in self._before:
            self._before[item.turn] = min(self._before[item.turn], item.id)
        self._to_set_aside.append(item)

    def _enqueue(self, item: Item) -> None:
        self.items[item.id] = item
        self._bytes += len(item.row.body)
        queue = self._queues.setdefault(item.turn, deque())
        queue.append(item)
        if len(queue) == 1:
            self._make_ready(item)

    def _make_ready(self, item: Item, *, before_all: bool = False) -> None:
        item.due_s, item.out = 0.0, False
        heapq.heappush(self._ready[item.high], (item.id - BEFORE_ALL * before_all, item))

    def to_set_aside(self) -> list[int]:
        """The ids that are to be marked as set aside in the file; to be told once."""
        ids = [item.id for item in self._to_set_aside]
        self._to_set_aside = []
        return ids

    def wants_aside(self) -> tuple[Turn, int] | None:
        """A user whose queue runs low while rows of his are set aside, and the id after which to read on.

        Not before ``to_set_aside`` was emptied into the file: else rows could be overtaken.
        """
        if self._to_set_aside:
            return None
        for turn in self._hungry:
            return turn, self._aside[turn]
        return None

    # Taking turns -----------------------------------------------------------------------------------------------

    def head(self, now_s: float) -> Item | None:
        """The event whose turn it is, without taking it: due retries first become ready again."""
        while self._waiting and self._waiting[0][0] <= now_s:
            self._make_ready(heapq.heappop(self._waiting)[2])
        heads = [heap[0] for heap in (self._ready[True], self._ready[False]) if heap]
        return next((item for key, item in heads if key < 0), heads[0][1] if heads else None)

    def oldest(self, now_s: float) -> Item | None:
        """The oldest ready event of either class: what an outage is probed with."""
        self.head(now_s)
        heads = [heap[0][1] for heap in self._ready.values() if heap]
        return min(heads, key=lambda item: item.id, default=None)

    def another(self, now_s: float, random: float) -> Item | None:
        """Any ready event, chosen by ``random`` from [0, 1): what a pause is probed with."""
        self.head(now_s)
        heads = [head for heap in self._ready.values() for _, head in heap]
        return heads[int(random * len(heads))] if heads else None

    def take(self, item: Item) -> None:
        """The ready ``item`` goes out; nothing of its turn is ready until it is given back or done."""
        item.out = True
        heap = self._ready[item.high]
        if heap[0][1] is item:
            heapq.heappop(heap)
        else:  # a probe
            heap[:] = [entry for entry in heap if entry[1] is not item]
            heapq.heapify(heap)

    def give_back(self, item: Item) -> None:
        """An item that went out has its turn again, at once."""
        self._make_ready(item)

    def go_on(self, item: Item) -> None:
        """An item that went out has something more to send, and goes before all others.

        It has a slot already: whoever went before it might wait for one that only it can free.
        """
        self._make_ready(item, before_all=True)

    def retry_at(self, item: Item, due_s: float) -> None:
        """An item that went out waits; its user waits with it, and his others are set aside."""
        item.due_s, item.out = max(due_s, 1e-9), False
        heapq.heappush(self._waiting, (due_s, item.id, item))
        queue = self._queues[item.turn]
        while len(queue) > 1:
            other = queue.pop()
            self._let_go(other)
            self._set_aside(other)

    def done(self, item: Item) -> None:
        """An item that went out has its final answer: the next of its user has its turn."""
        self._let_go(item)
        queue = self._queues[item.turn]
        first = queue.popleft()
        assert first is item, (first, item)
        self._next_of(item.turn, queue)

    def _next_of(self, turn: Turn, queue: deque[Item]) -> None:
        if queue:
            self._make_ready(queue[0])
        else:
            del self._queues[turn]
            if turn in self._aside and turn not in self._before:
                self._hungry[turn] = None

    def withdraw(self, match: Callable[[Row], bool]) -> list[Item]:
        """Let go of what matches and is not out: it is set aside, as far as it is still pending then."""
        gone = [item for item in self.items.values() if not item.out and match(item.row)]
        for item in gone:
            queue = self._queues[item.turn]
            was_head = queue[0] is item
            queue.remove(item)
            self._let_go(item)
            if isinstance(item.turn[1], str):  # if it stays pending after all, it comes before what is newer
                self._set_aside(item)
            if was_head:
                self._next_of(item.turn, queue)
        for ready in self._ready.values():
            ready[:] = [entry for entry in ready if entry[1].id in self.items]
            heapq.heapify(ready)
        self._waiting = [entry for entry in self._waiting if entry[2].id in self.items]
        heapq.heapify(self._waiting)
        return gone

    def _let_go(self, item: Item) -> None:
        del self.items[item.id]
        self._bytes -= len(item.row.body)

    def next_due_s(self) -> float:
        """When the next waiting event is due; infinity if none waits."""
        return self._waiting[0][0] if self._waiting else float("inf")

    def waiting(self) -> Iterator[Item]:
        """The events that wait to be tried again, in no order."""
        return (item for _, _, item in self._waiting)
