"""Heartbeats: a part without progress is named as late, and the watchdog is no longer fed."""

from functools import partial

import pytest
import trio

from sidecar.errors import Failed
from sidecar.observe import DISPATCHER, WRITER, Heartbeats, feed_watchdog, probe

LIMIT_S = 10.0


def test_a_part_without_progress_is_late_and_named():
    now_s = [100.0]
    heartbeats = Heartbeats(lambda: now_s[0])
    now_s[0] = 108.0
    heartbeats.beat(WRITER)
    now_s[0] = 111.0
    assert heartbeats.ages_s(111.0) == {DISPATCHER: 11.0, WRITER: 3.0}
    assert heartbeats.late(111.0, LIMIT_S) == [DISPATCHER]
    assert not heartbeats.healthy(111.0, LIMIT_S)
    heartbeats.beat(DISPATCHER)
    assert heartbeats.healthy(111.0, LIMIT_S)


def test_a_part_that_never_beat_is_late_after_the_limit():
    heartbeats = Heartbeats(lambda: 0.0)
    assert heartbeats.healthy(LIMIT_S, LIMIT_S)
    assert heartbeats.late(LIMIT_S + 0.1, LIMIT_S) == [DISPATCHER, WRITER]


async def test_a_frozen_writer_stops_the_watchdog_within_the_limit(autojump_clock):
    heartbeats = Heartbeats(trio.current_time, (WRITER,))
    frozen = trio.Event()
    fed_s: list[float] = []

    def feed():
        fed_s.append(trio.current_time())

    async def no_op():
        if frozen.is_set():
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(probe, heartbeats, WRITER, no_op, 1.0)
        nursery.start_soon(partial(feed_watchdog, heartbeats, feed, limit_s=LIMIT_S, every_s=5.0))
        await trio.sleep(100)
        frozen_at_s = trio.current_time()
        assert len(fed_s) >= 20
        frozen.set()
        await trio.sleep(100)
        nursery.cancel_scope.cancel()
    assert fed_s[-1] <= frozen_at_s + LIMIT_S


async def test_failed_work_does_not_beat(autojump_clock):
    heartbeats = Heartbeats(trio.current_time, (WRITER,))
    failing = True

    async def no_op():
        await trio.lowlevel.checkpoint()
        if failing:
            raise Failed("The disk is gone.")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(probe, heartbeats, WRITER, no_op, 1.0)
        await trio.sleep(LIMIT_S + 1.5)
        assert not heartbeats.healthy(trio.current_time(), LIMIT_S)
        failing = False
        await trio.sleep(1.5)
        assert heartbeats.healthy(trio.current_time(), LIMIT_S)
        nursery.cancel_scope.cancel()


async def test_other_exceptions_of_the_work_propagate(autojump_clock):
    async def no_op():
        await trio.lowlevel.checkpoint()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await probe(Heartbeats(trio.current_time), WRITER, no_op, 1.0)
