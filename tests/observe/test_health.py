"""Health is progress: a part that stands still is told by its name, and the watchdog is no longer fed."""

import pytest
import trio

from sidecar.errors import Failed
from sidecar.observe import DISPATCHER, WRITER, Marks, feed_watchdog, prove

LIMIT_S = 10.0


def test_a_part_that_stands_still_is_late_and_named():
    now_s = [100.0]
    marks = Marks(lambda: now_s[0])
    now_s[0] = 108.0
    marks.tick(WRITER)
    now_s[0] = 111.0
    assert marks.ages_s(111.0) == {DISPATCHER: 11.0, WRITER: 3.0}
    assert marks.late(111.0, LIMIT_S) == [DISPATCHER]
    assert not marks.healthy(111.0, LIMIT_S)
    marks.tick(DISPATCHER)
    assert marks.healthy(111.0, LIMIT_S)


def test_a_part_that_never_ticked_is_late_after_the_limit():
    marks = Marks(lambda: 0.0)
    assert marks.healthy(LIMIT_S, LIMIT_S)
    assert marks.late(LIMIT_S + 0.1, LIMIT_S) == [DISPATCHER, WRITER]


async def test_a_frozen_writer_stops_the_feeding_within_the_limit(autojump_clock):
    marks = Marks(trio.current_time, (WRITER,))
    frozen = trio.Event()
    fed_s: list[float] = []

    async def no_op():
        if frozen.is_set():
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(prove, marks, WRITER, no_op, 1.0)
        feed = lambda: fed_s.append(trio.current_time())  # noqa: E731 - as short as the thing it is
        nursery.start_soon(lambda: feed_watchdog(marks, feed, limit_s=LIMIT_S, every_s=5.0))
        await trio.sleep(100)
        frozen_at_s = trio.current_time()
        assert len(fed_s) >= 20
        frozen.set()
        await trio.sleep(100)
        nursery.cancel_scope.cancel()
    assert fed_s[-1] <= frozen_at_s + LIMIT_S


async def test_work_that_fails_is_no_progress_until_it_works_again(autojump_clock):
    marks = Marks(trio.current_time, (WRITER,))
    failing = True

    async def no_op():
        await trio.lowlevel.checkpoint()
        if failing:
            raise Failed("The disk is gone.")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(prove, marks, WRITER, no_op, 1.0)
        await trio.sleep(LIMIT_S + 1.5)
        assert not marks.healthy(trio.current_time(), LIMIT_S)
        failing = False
        await trio.sleep(1.5)
        assert marks.healthy(trio.current_time(), LIMIT_S)
        nursery.cancel_scope.cancel()


async def test_a_bug_in_the_work_is_not_hidden(autojump_clock):
    async def no_op():
        await trio.lowlevel.checkpoint()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await prove(Marks(trio.current_time), WRITER, no_op, 1.0)
