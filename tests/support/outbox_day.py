"""A scripted day of an outbox, and the check that its file holds what was promised, whatever failed on the way."""

from pathlib import Path
from typing import Any

import trio
from outbox_files import NOW_MS, RecordingListener, check_counters, dead, delivered, dropped, event, pending_ids

from sidecar.clock import VirtualClock
from sidecar.errors import SidecarError
from sidecar.mapping import Priority
from sidecar.outbox import Capacity, Failure, InlineRunner, Outbox, Remembered, Retention, Store
from sidecar.outbox.housekeeping import repeat_step

__all__ = ["Day", "check_day"]


class Day:
    """One day of one file, to be run beside ``outbox.run``. Records which events were answered and settled."""

    def __init__(self, path: Path, **store: Any) -> None:
        self.store = Store(path, newest_ids=4, **store)  # so few that ids move to their table during the day
        self.listener = RecordingListener()
        clock, capacity = VirtualClock(start_wall_ms=NOW_MS), Capacity(path, 2**30)
        self.outbox = Outbox(self.store, clock, capacity, InlineRunner(), listener=self.listener)
        self.answered: set[int] = set()

    @property
    def settled(self) -> list[int]:
        """The ids whose settlement was reported as committed."""
        return self.listener.ids

    async def send(self, *numbers, bad=None):
        """Send events as an SDK does: retry until they are answered."""
        for _ in range(300):
            try:
                await self.outbox.accept([event(number, bad=bad) for number in numbers])
            except SidecarError:
                await trio.sleep(1)
            else:
                self.answered.update(numbers)
                return
        raise AssertionError(f"{numbers} were never answered")

    async def request(self, call, payload):
        """Retry a store call until it succeeds; return its result."""
        for _ in range(300):
            try:
                return await call(payload)
            except SidecarError:
                await trio.sleep(1)
        raise AssertionError(f"{payload} was never done")

    async def run(self):
        retention = Retention(delivered_ms=2000, ids_ms=10**9, dead_ms=10**9, max_users=1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(repeat_step, self.outbox, retention.prune_step)
            await self.events()
            nursery.cancel_scope.cancel()
        self.outbox.stop()

    async def events(self):
        await self.send(1, 2, 3)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.send, 4, 5)
            nursery.start_soon(self.send, 6)
            nursery.start_soon(self.send, 7)
        page = await self.request(self.outbox.read, lambda store: store.page(priority=Priority.NORMAL, after_id=0))
        first, second, third, fourth, *_ = (row.id for row in page.rows)
        self.outbox.record_failure(Failure(second, 1, NOW_MS, NOW_MS, 1, 0, "503"))
        self.outbox.settle(delivered(first, remember=Remembered("AP", "u1", b"a")), more_expected=True)
        self.outbox.settle(dropped(second), more_expected=True)
        await self.send(8, bad="it is bad")
        await self.send(1, 9)
        await self.request(self.outbox.write, lambda store, _now_ms: store.set_meta("paused", "yes"))
        self.outbox.settle(dead(third), more_expected=True)
        self.outbox.settle(delivered(fourth, remember=Remembered("AP", "u2", b"b")), more_expected=False)
        await trio.sleep(6)  # history is pruned, ids move to their table, the reserve is allocated
        await self.send(10)
        for _ in range(100):
            if len(self.settled) == 4:
                break
            await trio.sleep(1)


def check_day(path: Path, answered: set[int], settled: list[int]) -> None:
    """Open the file again and check that it holds what was promised. Raises AssertionError."""
    store = Store(path, durability="process")
    check_counters(store)
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
