"""The recorded program: one process with an outbox under a seeded load; it prints each promise at the moment it is made.

It uses writer and store as the daemon does: group commits of accepts, settlements and failures, pages, housekeeping with
pruning, checkpoints and vacuum, retries of dead letters, opening after a crash. Time is virtual and the scheduler seeded,
so that a seed always makes the same calls on every machine.

The lines it prints; the numbers are events (``event_of``):

    submit N…          they are about to be passed to the outbox
    answer N…          their success answer is sent now
    request STATE N…   this state is about to be requested for them
    confirm STATE N…   a commit has confirmed this state
    note K, noted K    the same for a number stored with ``set_meta``
"""

import json
import os
import sys
from collections.abc import Collection
from functools import partial
from pathlib import Path
from random import Random

import msgspec
import trio
import trio.testing
from pl_events import ProcessPlan, event_of, number_of
from trio._core import _run as scheduler

import sidecar.outbox.database
from sidecar.clock import VirtualClock
from sidecar.mapping import PRIORITIES, Priority
from sidecar.outbox import (
    Capacity,
    EventState,
    Failure,
    InlineRunner,
    Outbox,
    Page,
    Remembered,
    Retention,
    Row,
    Settlement,
    Store,
    open_outbox,
    take_lock,
)
from sidecar.outbox import dead as dead_letters
from sidecar.outbox.housekeeping import repeat_step

NOTE = "powerloss"
STATE_NAMES = {EventState.DELIVERED: "delivered", EventState.DROPPED: "dropped", EventState.DEAD: "dead"}
CLIENTS = 6
PROCESS_S = 120  # wall time from the start of one process to the next; ids are kept longer


def announce(*words: object) -> None:
    """Print a line with one write, so that the recording has it in order with all other calls."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


class LoadGenerator:
    """The load on one outbox."""

    def __init__(self, plan: ProcessPlan, store: Store) -> None:
        self.rng = Random(f"{plan.seed}/{plan.number}")
        self.plan, self.store = plan, store
        self.next = plan.first
        self.again = list(plan.again)
        self.settling: dict[int, int] = {}  # row id → event, from request to confirmation
        self.clients = CLIENTS
        self.accepting = True

    def accepted(self, priorities: Collection[Priority]) -> None:
        """Do nothing: the next page reads new events."""

    def read_with(self, priorities: Collection[Priority]) -> None:
        """Ask for no page: the load reads pages of its own."""

    def page_read(self, page: Page | None) -> None:
        """Never called."""

    async def run(self, outbox: Outbox) -> None:
        """Run everything until the clients have sent all their events."""
        self.outbox = outbox
        async with trio.open_nursery() as nursery:
            for _ in range(CLIENTS):
                nursery.start_soon(self._client)
            nursery.start_soon(self._deliver)
            nursery.start_soon(self._operate)

    # Accepting ------------------------------------------------------------------------------------------------

    async def _client(self) -> None:
        rng = self.rng
        for _ in range(self.plan.rounds):
            numbers = self._numbers()
            if not self.accepting or not numbers:
                break
            announce("submit", *numbers)
            await self.outbox.accept([event_of(number) for number in numbers])
            announce("answer", *numbers)
            await trio.sleep(rng.choice((0, 0, 0.001, 0.05, 1.5)))
        self.clients -= 1

    def _numbers(self) -> list[int]:
        """Return numbers of new events, of events never answered by an earlier process, and sometimes of known ones."""
        rng = self.rng
        count = rng.choice((1, 1, 1, 2, 5, 20))
        numbers, self.again = self.again[:count], self.again[count:]
        while len(numbers) < count:
            if self.next > self.plan.first and rng.random() < 0.05:
                numbers.append(rng.randrange(max(self.plan.first, self.next - 20), self.next))
            else:
                numbers.append(self.next)
                self.next += 1
        return list(dict.fromkeys(numbers))

    # Delivering -----------------------------------------------------------------------------------------------

    async def _deliver(self) -> None:
        """Read all classes in pages, as the dispatcher does, and settle some events; others stay pending."""
        after = dict.fromkeys(PRIORITIES, 0)
        await self.outbox.write(lambda store, _now_ms: store.unpark_all())
        while self.clients:
            for priority in PRIORITIES:
                rows, more = await self.outbox.read(
                    partial(self._unsettled_rows, priority=priority, after_id=after[priority], limit=40)
                )
                for row in rows:
                    self._attempt(row)
                after[priority] = rows[-1].id if rows and more else 0
            await trio.sleep(self.rng.choice((0.01, 0.1, 0.3)))
        if self.plan.drain:
            await self._drain()

    def _unsettled_rows(self, store: Store, *, priority: Priority, after_id: int, limit: int) -> tuple[list[Row], bool]:
        """Return the rows of a page without those being settled, which may be settled a moment later."""
        page = store.page(priority=priority, after_id=after_id, limit=limit)
        return [row for row in page.rows if row.id not in self.settling], page.more

    async def _drain(self) -> None:
        """Settle everything, then wait, so that housekeeping can vacuum free pages."""
        while self.store.pending():
            for priority in PRIORITIES:
                rows, _ = await self.outbox.read(
                    partial(self._unsettled_rows, priority=priority, after_id=0, limit=250)
                )
                for row in rows:
                    self._settle(row, EventState.DELIVERED)
            await self.outbox.write(lambda store, _now_ms: store.unpark_all())
            await trio.sleep(0.1)
        await trio.sleep(45)

    def _attempt(self, row: Row) -> None:
        draw = self.rng.random()
        if draw < 0.45:
            self._settle(
                row, self.rng.choice((EventState.DELIVERED, EventState.DELIVERED, EventState.DROPPED, EventState.DEAD))
            )
        elif draw < 0.55:
            attempts = row.failure.attempts + 1 if row.failure else 1
            self.outbox.record_failure(Failure(row.id, attempts, row.received_ms, row.received_ms, attempts, 0, "503"))

    def _settle(self, row: Row, state: EventState) -> None:
        number = number_of(row.body)
        self.settling[row.id] = number
        announce("request", STATE_NAMES[state], number)
        remember = None
        if row.user is not None and number % 5 == 0:
            remember = Remembered("AP-1", row.user, b'{"n":%d}' % number)
        reason = {EventState.DELIVERED: "", EventState.DROPPED: "unmapped", EventState.DEAD: "refused"}[state]
        settlement = Settlement(
            row.id, row.priority, state, reason=reason, status=201, attempts=1, name="Event", remember=remember
        )
        self.outbox.settle(settlement, more_expected=self.rng.random() < 0.8)

    def settled(self, settled: list[Settlement]) -> None:
        for state in STATE_NAMES:
            if numbers := [self.settling.pop(settlement.id) for settlement in settled if settlement.state == state]:
                announce("confirm", STATE_NAMES[state], *numbers)

    # Operating ------------------------------------------------------------------------------------------------

    async def _operate(self) -> None:
        """Make the transactions of other packages and of an operator."""
        number = self.plan.note
        while self.clients:
            number += 1
            announce("note", number)
            await self.outbox.write(lambda store, _now_ms, text=str(number): self._keep_note(store, text))
            announce("noted", number)
            await trio.sleep(self.rng.random())
            action = self.rng.choice((self._retry_dead, self._discard_dead, self._park, self._truncate_log))
            await action()
            await trio.sleep(self.rng.random() * 2)

    @staticmethod
    def _keep_note(store: Store, text: str) -> None:
        store.set_meta(NOTE, text)
        store.save_quota([(int(text), "boot", int(text), 1)], drop_before=int(text) - 50, replaces_all=False)

    async def _letters(self) -> dict[int, int]:
        page = await self.outbox.read(
            lambda store: dead_letters.dead_page(store, dead_letters.DeadLetterFilter(), limit=20)
        )
        return {letter.id: number_of(letter.body) for letter in page.letters if self.rng.random() < 0.3}

    async def _retry_dead(self) -> None:
        numbers_by_id = await self._letters()
        announce("request pending", *numbers_by_id.values())
        letter_filter = dead_letters.DeadLetterFilter(ids=numbers_by_id)
        moved = await self.outbox.write(
            lambda store, now_ms: dead_letters.retry(
                store, letter_filter, now_ms, priority_of=lambda _event: Priority.NORMAL
            )
        )
        announce("confirm pending", *(numbers_by_id[event_id] for event_id in moved.ids))

    async def _discard_dead(self) -> None:
        numbers_by_id = await self._letters()
        announce("request dropped", *numbers_by_id.values())
        letter_filter = dead_letters.DeadLetterFilter(ids=numbers_by_id)
        moved = await self.outbox.write(lambda store, now_ms: dead_letters.discard(store, letter_filter, now_ms))
        announce("confirm dropped", *(numbers_by_id[event_id] for event_id in moved.ids))

    async def _park(self) -> None:
        page = await self.outbox.read(lambda store: store.page(priority=Priority.NORMAL, after_id=0, limit=20))
        ids = [row.id for row in page.rows if self.rng.random() < 0.5]
        await self.outbox.write(lambda store, _now_ms: store.park(ids))

    async def _truncate_log(self) -> None:
        await self.outbox.read(lambda store: store.checkpoint(truncate=True))


async def run_process(plan: ProcessPlan, path: Path) -> None:
    """Run one process, from opening the file to closing it."""
    clock = VirtualClock(start_wall_ms=1_700_000_000_000 + plan.number * PROCESS_S * 1000)
    lock = take_lock(path)
    store = open_outbox(path, durability=plan.durability)
    if store.notice:
        raise AssertionError(f"a power cut is reported as damage: {store.notice}")
    load = LoadGenerator(plan, store)
    outbox = Outbox(store, clock, Capacity(path, 2**30), InlineRunner(), listener=load)
    retention = Retention(delivered_ms=8_000, ids_ms=300_000, dead_ms=60_000, max_users=20)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outbox.run)
        async with trio.open_nursery() as housekeeping:
            housekeeping.start_soon(repeat_step, outbox, retention.prune_step)
            await load.run(outbox)
            housekeeping.cancel_scope.cancel()
        outbox.stop()
    store.close()
    lock.release()


def main() -> None:
    """Run ``pl_scenario.py FOLDER PLAN``; the plan is JSON."""
    path, plan = Path(sys.argv[1]) / "outbox.db", msgspec.convert(json.loads(sys.argv[2]), ProcessPlan)
    sidecar.outbox.database.WAL_BYTES = plan.wal_bytes
    scheduler._ALLOW_DETERMINISTIC_SCHEDULING = True
    scheduler._r.seed(plan.seed)
    trio.run(run_process, plan, path, clock=trio.testing.MockClock(autojump_threshold=0))


if __name__ == "__main__":
    main()
