"""Back-off grows, is bounded and obeys Retry-After; only failures of the event itself make it failing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.deliver.retry import FAILING_COUNT, Failures, delay_s

HOUR_MS = 3_600_000


@pytest.mark.parametrize(("attempt", "most_s"), [(1, 1), (2, 2), (5, 16), (9, 256), (10, 300), (10**9, 300)])
def test_delay_is_drawn_from_zero_to_the_doubled_ceiling(attempt, most_s):
    assert delay_s(attempt, 0.0, initial_s=1, max_s=300, failing_s=3600) == 0
    assert delay_s(attempt, 0.5, initial_s=1, max_s=300, failing_s=3600) == most_s / 2


@pytest.mark.parametrize(("failing_s", "most_s"), [(-5, 1), (0, 1), (1, 1), (5, 2.5), (60, 30), (900, 300)])
def test_delay_is_at_most_half_of_the_failing_so_far(failing_s, most_s):
    assert delay_s(50, 0.5, initial_s=1, max_s=300, failing_s=failing_s) == most_s / 2


@given(st.integers(1, 2000), st.floats(0, 0.999999), st.one_of(st.none(), st.floats(0, 1e12)))
def test_delay_obeys_retry_after_up_to_an_hour(attempt, random, retry_after_s):
    wait_s = delay_s(attempt, random, initial_s=1, max_s=300, failing_s=1e9, retry_after_s=retry_after_s)
    assert min(retry_after_s or 0, 3600) <= wait_s <= 3600


def fail(times: int, every_ms: int, *, others: bool) -> Failures:
    record, now_ms = Failures(), 10 * HOUR_MS
    for _ in range(times):
        now_ms += every_ms
        record = record.after(now_ms, now_ms - 1 if others else 5)
    return record


def test_twenty_failures_over_a_day_of_successes_are_failing():
    assert not fail(FAILING_COUNT - 1, 2 * HOUR_MS, others=True).failing()
    assert fail(FAILING_COUNT, 2 * HOUR_MS, others=True).failing()
    assert not fail(FAILING_COUNT, HOUR_MS, others=True).failing()
    assert fail(26, HOUR_MS, others=True).failing()


def test_failures_do_not_count_while_no_event_succeeds():
    record = fail(1000, HOUR_MS, others=False)
    assert record.count <= 1
    assert not record.failing()


def test_step_of_the_wall_clock_does_not_add_up_to_a_day():
    record, now_ms = Failures(), 10 * HOUR_MS
    for step_ms in [60_000] * 15 + [24 * HOUR_MS, -24 * HOUR_MS] + [60_000] * 15:
        now_ms += step_ms
        record = record.after(now_ms, now_ms)
    assert record.count >= FAILING_COUNT
    assert not record.failing()


def test_failure_counts_only_after_another_event_was_delivered():
    first = Failures().after(1000, 1)
    assert first == Failures(1, 0, 1000)  # the first failure has no predecessor, and no gap
    assert first.after(2000, None) == Failures(1, 0, 2000)
    assert first.after(2000, 1000) == Failures(1, 0, 2000)
    assert first.after(2000, 1001) == Failures(2, 1000, 2000)


def test_gap_counts_two_hours_at_most_and_never_backwards():
    first = Failures(1, 5, 100 * HOUR_MS)
    assert first.after(102 * HOUR_MS, 101 * HOUR_MS).over_ms == 5 + 2 * HOUR_MS
    assert first.after(102 * HOUR_MS + 1, 101 * HOUR_MS).over_ms == 5 + 2 * HOUR_MS
    assert first.after(102 * HOUR_MS - 1, 101 * HOUR_MS).over_ms == 5 + 2 * HOUR_MS - 1
    assert first.after(99 * HOUR_MS, 101 * HOUR_MS).over_ms == 5


@pytest.mark.parametrize(
    ("count", "over_ms", "failing"),
    [
        (20, 24 * HOUR_MS, True),
        (19, 24 * HOUR_MS, False),
        (20, 24 * HOUR_MS - 1, False),
        (21, 25 * HOUR_MS, True),
        (0, 0, False),
    ],
)
def test_failing_needs_twenty_failures_and_a_full_day(count, over_ms, failing):
    assert Failures(count, over_ms, 0).failing() is failing


def test_failures_start_at_zero_and_are_immutable():
    assert Failures() == Failures(0, 0, 0)
    with pytest.raises(AttributeError):
        Failures().count = 1


def test_negative_retry_after_is_ignored():
    assert delay_s(1, 0.25, initial_s=0.5, max_s=10, failing_s=0.0, retry_after_s=-5.0) == 0.125
    assert delay_s(1, 0.25, initial_s=0.5, max_s=10, failing_s=0.0, retry_after_s=3.0) == 3.0
