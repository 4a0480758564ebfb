"""The limiter of a host in a fleet: a request whose lane is late needs another slot, and the local limits stay underneath."""

import math
from collections import deque
from collections.abc import Sequence
from random import Random

import pytest

from sidecar.clock import VirtualClock
from sidecar.config import DeliverConfig
from sidecar.deliver.bucket import Bucket
from sidecar.deliver.limiter import SharedLimiter
from sidecar.deliver.quota import Quota
from sidecar.mapping import Priority

LATEST_S = 0.025
BEGIN_S = 1000.0


class Slots:
    """Slots of a fleet: one each ``step_s``, usable for 25 ms; ``demand`` is what the late requests ask for."""

    def __init__(self, step_s: float = 0.04) -> None:
        self.step_s = step_s
        self.slots: deque[float] = deque()
        self.demand: list[int] = []
        self.paces: list[float] = []
        self.returned: list[int | None] = []
        self.now_s = 0.0  # the engine's time

    def give(self, first_s: float, count: int) -> None:
        self.slots.extend(first_s + number * self.step_s for number in range(count))

    def ready_at_s(self, now_s: float, *, priority: Priority, pace: float) -> float:
        self.now_s = max(self.now_s, now_s)
        self.paces.append(pace)
        while self.slots and self.slots[0] + LATEST_S < now_s:
            self.slots.popleft()
        return max(now_s, self.slots[0]) if self.slots else math.inf

    def take(self, now_s: float, *, priority: Priority) -> tuple[float, int | None]:
        return self.slots.popleft() + LATEST_S, 17

    def give_back(self, minute: int | None) -> None:
        self.returned.append(minute)

    def is_late(self, until_s: float) -> bool:
        return self.now_s > until_s

    def set_late(self, late: Sequence[int], until_s: float) -> None:
        self.demand = list(late)

    def used(self) -> int:
        return 7


def renew(quota: Quota | SharedLimiter) -> None:
    """Commit the lease that is wanted."""
    if lease := quota.wants_lease():
        quota.granted(lease)


@pytest.fixture
def slots() -> Slots:
    return Slots()


@pytest.fixture
async def limiter(slots) -> SharedLimiter:
    config = DeliverConfig()
    quota = Quota(lambda: config, clock=VirtualClock())
    assert math.isinf(quota.ready_at_s(BEGIN_S, priority=Priority.NORMAL))
    renew(quota)
    return SharedLimiter(Bucket(190.0, BEGIN_S), quota, lambda: config, slots)


def granted(limiter: SharedLimiter, now_s: float, priority: Priority = Priority.NORMAL, pace: float = 1.0) -> float:
    assert limiter.ready_at_s(now_s, priority=priority, pace=pace) <= now_s
    limiter.take(now_s, priority=priority)
    return now_s


async def test_a_lane_in_time_leaves_at_once(limiter, slots):
    now_s = BEGIN_S + 2
    slots.give(now_s, 1)
    granted_s = granted(limiter, now_s)
    slots.now_s = now_s + 0.004
    assert limiter.regrant(granted_s, now_s + 0.004) == granted_s
    limiter.departed(granted_s, now_s + 0.004)
    assert limiter.statistics() == (0, 0)
    assert slots.returned == []


async def test_a_late_lane_needs_another_slot(limiter, slots):
    """It sent when it was connected: after an outage of PX all hosts sent at once, each at the rate of all."""
    now_s = BEGIN_S + 2
    slots.give(now_s, 1)
    granted_s = granted(limiter, now_s, Priority.HIGH, 0.5)
    slots.now_s = late_s = now_s + 0.3
    again_s = limiter.regrant(granted_s, late_s)
    assert again_s > late_s
    assert slots.demand == [1, 0, 0]
    slots.give(again_s + 0.01, 1)
    third_s = limiter.regrant(again_s, again_s)
    assert third_s > again_s
    assert limiter.regrant(third_s, third_s) == third_s
    assert slots.demand == [0, 0, 0]
    assert slots.returned == [17], "the slot that was not used, once"
    limiter.departed(third_s, third_s)
    assert limiter.statistics() == (0, 0)
    assert slots.paces[-1] == 0.5


async def test_a_frozen_process_needs_another_slot(limiter, slots):
    """The daemon's clock leaves out the time of a freeze; the other hosts' seconds have passed nevertheless."""
    now_s = BEGIN_S + 2
    slots.give(now_s, 1)
    granted_s = granted(limiter, now_s)
    slots.now_s = now_s + 3.0
    assert limiter.regrant(granted_s, now_s + 0.001) > now_s + 0.001


async def test_late_lanes_leave_at_the_slots_and_not_together(limiter, slots):
    now_s, leave_s = BEGIN_S + 2, []
    slots.give(now_s, 20)
    waiting = []
    for _ in range(20):
        now_s = limiter.ready_at_s(now_s, priority=Priority.NORMAL, pace=1.0)
        waiting.append(granted(limiter, now_s))
    now_s += 3.0
    slots.give(now_s, 100)
    due = [(now_s, granted_s) for granted_s in waiting]
    while due:
        due.sort()
        now_s, granted_s = due.pop(0)
        slots.now_s = now_s
        again_s = limiter.regrant(granted_s, now_s)
        if again_s <= now_s:
            limiter.departed(again_s, now_s)
            leave_s.append(now_s)
        else:
            due.append((again_s, again_s))
    assert len(leave_s) == 20
    assert leave_s[-1] - leave_s[0] >= 19 * slots.step_s - 2 * LATEST_S
    assert limiter.statistics() == (0, 0)


async def test_a_late_lane_that_asks_late_has_no_permission(limiter, slots):
    """On a busy machine a lane woke up more than 50 ms late; its request was forgotten, and it left without a slot."""
    now_s = BEGIN_S + 2
    slots.give(now_s, 2)
    first_s, second_s = granted(limiter, now_s), granted(limiter, now_s + 0.04)
    slots.now_s = now_s = now_s + 0.5
    again_s = limiter.regrant(first_s, now_s)
    slots.now_s = now_s = again_s + 0.3
    limiter.regrant(second_s, now_s)
    assert slots.demand == [0, 2, 0]
    assert limiter.regrant(again_s, now_s) > now_s
    assert limiter.regrant(12.0, now_s) > now_s, "unknown"


async def test_a_late_lane_does_not_leave_just_before_its_slot(limiter, slots):
    """The slot was due within microseconds: the time to ask again had passed when the lane read it, and so it left."""
    now_s = BEGIN_S + 2
    slots.give(now_s, 1)
    granted_s = granted(limiter, now_s)
    slots.now_s = now_s = now_s + 0.3
    slots.give(now_s + 1e-5, 1)
    assert limiter.regrant(granted_s, now_s) >= now_s + 0.005


async def test_lanes_that_give_up_are_forgotten(limiter, slots):
    now_s = BEGIN_S + 2
    slots.give(now_s, 1)
    slots.now_s = now_s + 1.0
    limiter.regrant(granted(limiter, now_s), now_s + 1.0)
    now_s += 200
    slots.give(now_s, 2)
    granted(limiter, now_s)
    slots.now_s = now_s + 1.0
    limiter.regrant(now_s, now_s + 1.0)
    assert limiter.statistics() == (0, 1)
    assert slots.demand == [0, 1, 0]


async def test_the_local_limits_stay_underneath(limiter, slots):
    """An engine that hands out too much does not make one host exceed the subscription's limits."""
    slots.step_s = 0.0001
    now_s, sent = BEGIN_S + 2, []
    random = Random(1)
    while now_s < BEGIN_S + 4:
        slots.give(now_s, 500)
        ready_s = limiter.ready_at_s(now_s, priority=Priority.NORMAL, pace=1.0)
        if ready_s <= now_s:
            granted(limiter, now_s)
            limiter.departed(now_s, now_s)
            sent.append(now_s)
        else:
            renew(limiter)
            now_s = min(ready_s, now_s + 0.01) + random.uniform(0, 0.002)
        slots.slots.clear()
    assert all(later - earlier >= 1.0 for earlier, later in zip(sent, sent[190:], strict=False))
    assert len(sent) > 300
    assert limiter.quota_status().used >= len(sent)
