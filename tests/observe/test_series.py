"""The series: fixed rings that a second and a minute fill."""

import sys

from hypothesis import given
from hypothesis import strategies as st

from sidecar.observe.series import COUNTERS, MINUTES, SECONDS, Series

START_MS = 1_800_000_000_000


def totals(count: int, pending: int = 0) -> dict[str, int]:
    return dict.fromkeys(COUNTERS, count) | {"pending": pending}


def test_each_second_holds_what_was_added_in_it():
    series = Series(START_MS)
    for second, count in enumerate([10, 13, 13, 20]):
        series.record(START_MS + 1000 * second, totals(count, pending=second))
    seconds = series.as_dict()["seconds"]
    assert seconds["accepted"] == [0, 3, 0]  # the present second is not over
    assert seconds["pending"] == [0, 1, 2]
    assert seconds["start_s"] == START_MS // 1000


def test_a_second_without_a_tick_is_empty_and_keeps_its_gauge():
    series = Series(START_MS)
    series.record(START_MS, totals(0, pending=7))
    series.record(START_MS + 3000, totals(5, pending=2))
    series.record(START_MS + 4000, totals(5, pending=2))
    seconds = series.as_dict()["seconds"]
    assert seconds["delivered"] == [0, 0, 0, 5]
    assert seconds["pending"] == [7, 7, 7, 2]


def test_a_gauge_keeps_its_value_over_a_gap_longer_than_the_ring():
    """It showed the value of some step of an earlier round."""
    series = Series(START_MS)
    series.record(START_MS, totals(0, pending=7))
    series.record(START_MS + 1000, totals(0, pending=3))
    series.record(START_MS + 1000 * 3 * SECONDS, totals(0, pending=2))
    assert set(series.as_dict()["seconds"]["pending"]) == {3}


def test_a_total_that_shrinks_counts_nothing():
    series = Series(START_MS)
    for second, count in enumerate([10, 4, 4]):
        series.record(START_MS + 1000 * second, totals(count))
    assert series.as_dict()["seconds"]["dead"] == [0, 0]


def test_a_clock_that_is_set_back_does_not_stop_the_series():
    """Nothing new was seen for as long as the clock had been ahead."""
    series = Series(START_MS)
    for second in range(5):
        series.record(START_MS + 1000 * second, totals(0))
    set_back_ms = START_MS - 3_600_000
    for second in range(4):
        series.record(set_back_ms + 1000 * second, totals(10 * second))
    seconds = series.as_dict()["seconds"]
    assert (seconds["start_s"], seconds["accepted"]) == (set_back_ms // 1000, [0, 10, 10])


def test_a_small_step_of_the_clock_keeps_the_series():
    series = Series(START_MS)
    for at_s, count in enumerate([0, 1, 2, 3, 4]):
        series.record(START_MS + 1000 * (at_s if at_s < 3 else at_s - 2), totals(count))
    series.record(START_MS + 3000, totals(4))
    assert series.as_dict()["seconds"]["accepted"] == [0, 1, 3]


@given(st.lists(st.integers(-100_000_000, 400_000_000), max_size=30))
def test_the_size_is_bounded_whatever_the_clock_does(jumps_ms):
    series, now_ms = Series(START_MS), START_MS
    for jump_ms in jumps_ms:
        now_ms += jump_ms
        series.record(now_ms, totals(1))
    shown = series.as_dict()
    for name, length in (("seconds", SECONDS), ("minutes", MINUTES)):
        assert len({len(values) for key, values in shown[name].items() if isinstance(values, list)}) == 1
        assert len(shown[name]["accepted"]) < length


def test_both_rings_take_less_than_two_megabytes():
    series = Series(START_MS)
    rings = [values for ring in (series._seconds, series._minutes) for values in ring._values.values()]
    assert sum(map(sys.getsizeof, rings)) < 2_000_000
