"""Idle connections end in the order in which they became idle, each at its time."""

import trio

from sidecar.http import IdleConnections


async def ended_at_s(scope: trio.CancelScope, times_s: list[float]) -> None:
    with scope:
        await trio.sleep_forever()
    times_s.append(trio.current_time())


async def test_each_connection_ends_at_its_own_time(nursery, autojump_clock):
    idle, times_s = IdleConnections(10), []
    nursery.start_soon(idle.run)
    for _ in range(4):
        scope = trio.CancelScope()
        nursery.start_soon(ended_at_s, scope, times_s)
        idle.add(scope)
        await trio.sleep(3)
    await trio.sleep(30)
    assert times_s == [10, 13, 16, 19]


async def test_a_request_begins_the_time_anew(nursery, autojump_clock):
    idle, times_s = IdleConnections(10), []
    busy, quiet = trio.CancelScope(), trio.CancelScope()
    nursery.start_soon(idle.run)
    for scope in (busy, quiet):
        nursery.start_soon(ended_at_s, scope, times_s)
        idle.add(scope)
    for _ in range(5):
        await trio.sleep(4)
        idle.remove(busy)
        await trio.sleep(4)
        idle.add(busy)
    await trio.sleep(30)
    assert times_s == [10, 50]


async def test_what_is_removed_does_not_end(nursery, autojump_clock):
    idle, scope = IdleConnections(10), trio.CancelScope()
    nursery.start_soon(idle.run)
    idle.add(scope)
    idle.remove(scope)
    idle.remove(scope)
    await trio.sleep(1_000)
    assert not scope.cancel_called


async def test_nobody_idle_means_a_wake_up_per_time_allowed(nursery, mock_clock):
    mock_clock.autojump_threshold = 0
    wake_ups = []

    class Counted(trio.abc.Instrument):
        def before_task_step(self, task):
            wake_ups.append(task.name)

    nursery.start_soon(IdleConnections(10).run)
    trio.lowlevel.add_instrument(instrument := Counted())
    await trio.sleep(1_005)
    trio.lowlevel.remove_instrument(instrument)
    assert 90 <= sum("IdleConnections.run" in name for name in wake_ups) <= 110
