"""The recorded program: one life of an outbox under a seeded load, which says what it promises at the moment it does.

It is the writer and the store as the daemon uses them: group commits of accepts, settlements and failures, pages,
housekeeping with pruning, checkpoints and vacuum, dead letters retried, a reopening after a crash. Time is virtual and
the scheduler seeded, so that a seed always makes the same calls, whatever the machine.

What it says, a line each; the numbers are events (``event_of``):

    submit N…        these are about to be handed to the outbox
    answer N…        their success answer leaves now
    ask STATE N…     they are about to be given this state
    told STATE N…    they have it, says the commit
    note K, noted K  the same for a number kept with ``set_meta``
"""

import json
import os
import sys
from functools import partial
from pathlib import Path
from random import Random

import msgspec
import trio
import trio.testing
from pl_events import Life, event_of, number_of
from trio._core import _run as scheduler

import sidecar.outbox.database
from sidecar.clock import VirtualClock
from sidecar.outbox import (
    Failure,
    InlineRunner,
    Keeper,
    Outbox,
    Remembered,
    Room,
    Row,
    Settlement,
    State,
    Store,
    open_outbox,
    take_lock,
)
from sidecar.outbox import dead as dead_letters

NOTE = "powerloss"
WAY = {State.DELIVERED: "delivered", State.DROPPED: "dropped", State.DEAD: "dead"}
CLIENTS = 6
LIFE_S = 120  # from the start of one life to that of the next, by the wall clock; ids are kept for longer


def say(*words: object) -> None:
    """One write, which the recording has in order with all others."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


class Player:
    """The load on one outbox."""

    def __init__(self, life: Life, store: Store, outbox: Outbox) -> None:
        self.dice = Random(f"{life.seed}/{life.number}")
        self.life, self.store, self.outbox = life, store, outbox
        self.next = life.first
        self.again = list(life.again)
        self.under_way: dict[int, int] = {}  # row id → event, from the asking to the telling
        self.clients = CLIENTS
        self.accepting = True
        outbox.on_settled = self._told

    async def run(self) -> None:
        """Everything, until the clients have said all they have to say."""
        async with trio.open_nursery() as nursery:
            for _ in range(CLIENTS):
                nursery.start_soon(self._client)
            nursery.start_soon(self._deliver)
            nursery.start_soon(self._operate)
        self.outbox.stop()

    # Accepting ------------------------------------------------------------------------------------------------

    async def _client(self) -> None:
        dice = self.dice
        for _ in range(self.life.rounds):
            numbers = self._numbers()
            if not self.accepting or not numbers:
                break
            say("submit", *numbers)
            await self.outbox.accept([event_of(number) for number in numbers])
            say("answer", *numbers)
            await trio.sleep(dice.choice((0, 0, 0.001, 0.05, 1.5)))
        self.clients -= 1

    def _numbers(self) -> list[int]:
        """New events, those that an earlier life never answered, and now and then one that is known already."""
        dice = self.dice
        many = dice.choice((1, 1, 1, 2, 5, 20))
        numbers, self.again = self.again[:many], self.again[many:]
        while len(numbers) < many:
            if self.next > self.life.first and dice.random() < 0.05:
                numbers.append(dice.randrange(max(self.life.first, self.next - 20), self.next))
            else:
                numbers.append(self.next)
                self.next += 1
        return list(dict.fromkeys(numbers))

    # Delivering -----------------------------------------------------------------------------------------------

    async def _deliver(self) -> None:
        """Both classes in pages, as the dispatcher reads them; some events stay pending for good."""
        after = {True: 0, False: 0}
        await self.outbox.write(lambda store, _now_ms: store.bring_back())
        while self.clients:
            for high in (True, False):
                rows, more = await self.outbox.read(partial(self._idle, high=high, after_id=after[high], limit=40))
                for row in rows:
                    self._try(row)
                after[high] = rows[-1].id if rows and more else 0
            await trio.sleep(self.dice.choice((0.01, 0.1, 0.3)))
        if self.life.drain:
            await self._drain()

    def _idle(self, store: Store, *, high: bool, after_id: int, limit: int) -> tuple[list[Row], bool]:
        """The rows of a page that are not being settled as it is read: a moment later, some of those may be settled."""
        page = store.page(high=high, after_id=after_id, limit=limit)
        return [row for row in page.rows if row.id not in self.under_way], page.more

    async def _drain(self) -> None:
        """Settle everything, so that housekeeping has free pages to give back, and give it the time."""
        while self.store.pending():
            for high in (True, False):
                rows, _ = await self.outbox.read(partial(self._idle, high=high, after_id=0, limit=250))
                for row in rows:
                    self._settle(row, State.DELIVERED)
            await self.outbox.write(lambda store, _now_ms: store.bring_back())
            await trio.sleep(0.1)
        await trio.sleep(45)

    def _try(self, row: Row) -> None:
        luck = self.dice.random()
        if luck < 0.45:
            self._settle(row, self.dice.choice((State.DELIVERED, State.DELIVERED, State.DROPPED, State.DEAD)))
        elif luck < 0.55:
            attempts = row.failure.attempts + 1 if row.failure else 1
            self.outbox.note_failure(Failure(row.id, attempts, row.received_ms, row.received_ms, attempts, 0, "503"))

    def _settle(self, row: Row, state: State) -> None:
        number = number_of(row.body)
        self.under_way[row.id] = number
        say("ask", WAY[state], number)
        remember = None
        if row.user is not None and number % 5 == 0:
            remember = Remembered("AP-1", row.user, b'{"n":%d}' % number)
        reason = {State.DELIVERED: "", State.DROPPED: "unmapped", State.DEAD: "refused"}[state]
        one = Settlement(
            row.id, row.high, state, reason=reason, status=201, attempts=1, name="Event", remember=remember
        )
        self.outbox.settle(one, more_expected=self.dice.random() < 0.8)

    def _told(self, settled: list[Settlement]) -> None:
        for state in WAY:
            if numbers := [self.under_way.pop(one.id) for one in settled if one.state == state]:
                say("told", WAY[state], *numbers)

    # Operating ------------------------------------------------------------------------------------------------

    async def _operate(self) -> None:
        """What rooms above do in transactions of their own, and an operator."""
        number = self.life.note
        while self.clients:
            number += 1
            say("note", number)
            await self.outbox.write(lambda store, _now_ms, text=str(number): self._keep_note(store, text))
            say("noted", number)
            await trio.sleep(self.dice.random())
            turn = self.dice.choice((self._retry_dead, self._discard_dead, self._set_aside, self._empty_log))
            await turn()
            await trio.sleep(self.dice.random() * 2)

    @staticmethod
    def _keep_note(store: Store, text: str) -> None:
        store.set_meta(NOTE, text)
        store.save_quota([(int(text), "boot", int(text), 1)], drop_before=int(text) - 50, replaces_all=False)

    async def _letters(self) -> dict[int, int]:
        page = await self.outbox.read(lambda store: dead_letters.dead_page(store, dead_letters.Which(), limit=20))
        return {letter.id: number_of(letter.body) for letter in page.letters if self.dice.random() < 0.3}

    async def _retry_dead(self) -> None:
        chosen = await self._letters()
        say("ask pending", *chosen.values())
        which = dead_letters.Which(ids=chosen)
        moved = await self.outbox.write(
            lambda store, now_ms: dead_letters.retry(store, which, now_ms, high=lambda _event: False)
        )
        say("told pending", *(chosen[one] for one in moved.ids))

    async def _discard_dead(self) -> None:
        chosen = await self._letters()
        say("ask dropped", *chosen.values())
        which = dead_letters.Which(ids=chosen)
        moved = await self.outbox.write(lambda store, now_ms: dead_letters.discard(store, which, now_ms))
        say("told dropped", *(chosen[one] for one in moved.ids))

    async def _set_aside(self) -> None:
        page = await self.outbox.read(lambda store: store.page(high=False, after_id=0, limit=20))
        ids = [row.id for row in page.rows if self.dice.random() < 0.5]
        await self.outbox.write(lambda store, _now_ms: store.set_aside(ids))

    async def _empty_log(self) -> None:
        await self.outbox.read(lambda store: store.checkpoint(truncate=True))


async def live(life: Life, path: Path) -> None:
    """One life, from opening the file to closing it."""
    clock = VirtualClock(start_wall_ms=1_700_000_000_000 + life.number * LIFE_S * 1000)
    lock = take_lock(path)
    store = open_outbox(path, durability=life.durability)
    if store.notice:
        raise AssertionError(f"an outbox that only lost its power is said to be damaged: {store.notice}")
    outbox = Outbox(store, clock, Room(path, 2**30), InlineRunner())
    keeper = Keeper(delivered_ms=8_000, ids_ms=300_000, dead_ms=60_000, max_users=20)
    outbox.keep = keeper.step
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outbox.run)
        await Player(life, store, outbox).run()
    store.close()
    lock.release()


def main() -> None:
    """``pl_scenario.py FOLDER LIFE``, the life as JSON."""
    path, life = Path(sys.argv[1]) / "outbox.db", msgspec.convert(json.loads(sys.argv[2]), Life)
    sidecar.outbox.database.WAL_BYTES = life.wal_bytes
    scheduler._ALLOW_DETERMINISTIC_SCHEDULING = True
    scheduler._r.seed(life.seed)
    trio.run(live, life, path, clock=trio.testing.MockClock(autojump_threshold=0))


if __name__ == "__main__":
    main()
