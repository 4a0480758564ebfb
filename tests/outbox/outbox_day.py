"""A scripted day of an outbox, and what must be true of its file afterwards, whatever failed on the way."""

from pathlib import Path
from typing import Any

import trio
from outbox_files import NOW_MS, check_account, dead, delivered, dropped, event, pending_ids

from sidecar.clock import VirtualClock
from sidecar.errors import SidecarError
from sidecar.outbox import Failure, InlineRunner, Keeper, Outbox, Remembered, Room, Store

__all__ = ["Day", "check_day"]


class Day:
    """The day of one file. What was promised to whom is noted as it happens; to be run beside ``outbox.run``."""

    def __init__(self, path: Path, **store: Any) -> None:
        self.store = Store(path, **store)
        self.outbox = Outbox(self.store, VirtualClock(start_wall_ms=NOW_MS), Room(path, 2**30), InlineRunner())
        self.store.ids._newest_max = 4  # so that ids move to their table in the middle of the day
        keeper = Keeper(delivered_ms=2000, ids_ms=10**9, dead_ms=10**9, max_users=1)
        self.outbox.keep = keeper.step
        self.answered: set[int] = set()
        self.settled: list[int] = []
        self.outbox.on_settled = lambda settlements: self.settled.extend(one.id for one in settlements)

    async def send(self, *numbers, bad=None):
        """As an SDK does: again and again until it is answered."""
        for _ in range(300):
            try:
                await self.outbox.accept([event(n, bad=bad) for n in numbers])
            except SidecarError:
                await trio.sleep(1)
            else:
                self.answered.update(numbers)
                return
        raise AssertionError(f"{numbers} were never answered")

    async def ask(self, call, what):
        for _ in range(300):
            try:
                return await call(what)
            except SidecarError:
                await trio.sleep(1)
        raise AssertionError(f"{what} was never done")

    async def run(self):
        await self.send(1, 2, 3)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.send, 4, 5)
            nursery.start_soon(self.send, 6)
            nursery.start_soon(self.send, 7)
        page = await self.ask(self.outbox.read, lambda store: store.page(high=False, after_id=0))
        first, second, third, fourth, *_ = (row.id for row in page.rows)
        self.outbox.note_failure(Failure(second, 1, NOW_MS, NOW_MS, 1, 0, "503"))
        self.outbox.settle(delivered(first, remember=Remembered("AP", "u1", b"a")), more_expected=True)
        self.outbox.settle(dropped(second), more_expected=True)
        await self.send(8, bad="it is bad")
        await self.send(1, 9)
        await self.ask(self.outbox.write, lambda store, _now_ms: store.set_meta("paused", "yes"))
        self.outbox.settle(dead(third), more_expected=True)
        self.outbox.settle(delivered(fourth, remember=Remembered("AP", "u2", b"b")), more_expected=False)
        await trio.sleep(6)  # history is pruned, ids move, the reserve is laid by
        await self.send(10)
        for _ in range(100):
            if len(self.settled) == 4:
                break
            await trio.sleep(1)
        self.outbox.stop()


def check_day(path: Path, answered: set[int], settled: list[int]) -> None:
    """The file as it is, opened by somebody else. Raises AssertionError with what is not as it was promised."""
    store = Store(path, durability="process")
    check_account(store)
    assert answered == set(range(1, 11))
    assert store.counters["accepted"] == 10
    assert sorted(settled) == sorted(set(settled))
    assert len(settled) == 4
    assert (store.counters["delivered"], store.counters["dropped:unmapped"]) == (2, 1)
    assert (store.counters["dead:refused"], store.counters["dead:bad_event"]) == (1, 1)
    assert len(pending_ids(store)) == 5
    assert store.get_meta("paused") == "yes"
    with store.transaction():
        again = store.accept([[event(n) for n in range(1, 11)]], NOW_MS)[0]
    assert again.repeated == 10
    store.close()
