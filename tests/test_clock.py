"""The daemon's clock leaves out the time that the process did not run."""

import select
import socket

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from sidecar import clock as clock_module
from sidecar.clock import FREEZE_S, LONGEST_SLEEP_S, FreezeClock, SystemClock


class Real:
    """A real clock that only the test moves."""

    def __init__(self) -> None:
        self.now_s = 500.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def real():
    return Real()


@pytest.fixture
def clock(real):
    clock = FreezeClock(real)
    clock.start_clock()
    return clock


def test_time_passes_while_the_loop_runs_and_sleeps(clock, real):
    began_s = clock.current_time()
    for _ in range(100):
        real.now_s += clock.deadline_to_sleep_time(clock.current_time() + 0.4) + 0.1
        clock.current_time()
    assert clock.current_time() - began_s == pytest.approx(50.0)


@pytest.mark.parametrize("deadline_s", [0.0, 0.2, 30.0, float("inf")])
def test_a_freeze_during_a_sleep_is_left_out(clock, real, deadline_s):
    before_s = clock.current_time()
    clock.deadline_to_sleep_time(before_s + deadline_s)
    real.now_s += 60.0
    assert 0.0 <= clock.current_time() - before_s <= LONGEST_SLEEP_S + FREEZE_S


def test_a_freeze_between_two_readings_is_left_out(clock, real):
    before_s = clock.current_time()
    real.now_s += 60.0
    assert clock.current_time() == before_s


def test_the_loop_never_sleeps_longer_than_it_can_notice(clock):
    assert clock.deadline_to_sleep_time(float("inf")) == LONGEST_SLEEP_S
    assert clock.deadline_to_sleep_time(clock.current_time() - 5.0) == 0.0


@given(gaps=st.lists(st.tuples(st.floats(0, 5), st.floats(0, 100)), max_size=50))
def test_the_clock_never_runs_back_and_never_faster_than_real_time(gaps):
    """Else a ceiling that holds for each of its seconds would not hold for each real second."""
    real = Real()
    clock = FreezeClock(real)
    clock.start_clock()
    for deadline_s, gap_s in gaps:
        before_s = clock.current_time()
        clock.deadline_to_sleep_time(before_s + deadline_s)
        real.now_s += gap_s
        passed_s = clock.current_time() - before_s
        assert -1e-6 <= passed_s <= gap_s + 1e-6


def test_a_deadline_after_a_freeze_reads_first():
    """A request that PX had answered while the process was stopped was sent again."""
    real = Real()
    ours, theirs = socket.socketpair()

    async def main() -> bytes:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(freeze)
            with trio.move_on_after(5.0):
                await trio.lowlevel.wait_readable(ours)
                return ours.recv(10)
        raise AssertionError("the deadline passed first")

    async def freeze() -> None:
        await trio.lowlevel.checkpoint()
        theirs.send(b"answer")
        assert select.select([ours], [], [], 1)[0]
        real.now_s += 3600.0

    with ours, theirs:
        assert trio.run(main, clock=FreezeClock(real)) == b"answer"


def test_the_boot_id_is_read_once(monkeypatch, tmp_path):
    """A fleet's record that is saved while descriptors are used up was taken for one of an earlier boot."""
    file = tmp_path / "boot_id"
    file.write_text("1b4e28ba\n")
    monkeypatch.setattr(clock_module, "_BOOT_ID_FILE", file)
    system = SystemClock()
    assert system.boot_id() == "1b4e28ba"
    file.unlink()
    assert system.boot_id() == "1b4e28ba"
