"""The engine's clock as a host knows it: bounds that hold whatever the latency is."""

from hypothesis import given
from hypothesis import strategies as st

from sidecar.fleet.clock import EngineClock

DELAYS = st.floats(0, 0.2)


@given(st.lists(st.tuples(st.floats(0.01, 30), DELAYS, DELAYS), min_size=1), st.floats(-1e6, 1e6))
def test_the_true_time_is_always_within_the_bounds(readings, offset_s):
    clock, now_s = EngineClock(), 1000.0
    for wait_s, there_s, back_s in readings:
        sent_s = now_s + wait_s
        now_s = sent_s + there_s + back_s
        assert clock.read(sent_s, now_s, sent_s + there_s + offset_s)
        assert clock.earliest_s(now_s) <= now_s + offset_s <= clock.latest_s(now_s)
        assert clock.latest_s(now_s + 5) - clock.earliest_s(now_s + 5) >= clock.uncertainty_s(now_s)


@given(DELAYS, st.floats(0.0, 10.0))
def test_the_upper_bound_covers_the_lower_bound(delay_s, ahead_s):
    clock = EngineClock()
    clock.read(10.0, 10.0 + delay_s, 500.0)
    at_s = clock.when_surely_s(500.0 + ahead_s)
    assert clock.earliest_s(max(at_s, 10.0 + delay_s)) >= 500.0 + ahead_s - 1e-6


def test_a_reading_outside_the_bounds_replaces_them():
    clock = EngineClock()
    assert clock.read(10.0, 10.001, 500.0)
    assert clock.read(11.0, 11.001, 501.0)
    assert not clock.read(12.0, 12.001, 562.0)
    assert clock.read(13.0, 13.001, 563.0)


def test_nothing_is_known_before_the_first_reading():
    assert EngineClock().uncertainty_s(0.0) == float("inf")
