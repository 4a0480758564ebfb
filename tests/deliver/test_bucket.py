"""The bucket keeps its ceiling for every pattern of calls, and its pace is reached."""

import math
import pickle
import random
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.deliver.bucket import DEPARTURE_S, ROUNDING_S, TOLERANCE_S, Bucket


def most_in_a_window(sends: list[float], window_s: float = 1.0) -> int:
    """Return the largest number of sends in a half-open window, counted in exact arithmetic."""
    exact = [Fraction(send) for send in sends]
    window = Fraction(window_s)
    most, first = 0, 0
    for last, send in enumerate(exact):
        while send - exact[first] >= window:
            first += 1
        most = max(most, last - first + 1)
    return most


def run(bucket: Bucket, start_s: float, end_s: float, lateness_s) -> list[float]:
    """Send whenever the bucket allows it from ``start_s`` to ``end_s``; each wake-up is late by ``lateness_s()``."""
    sends, now_s = [], start_s
    while True:
        ready_s = bucket.ready_at_s(now_s)
        if ready_s > now_s:
            now_s = ready_s + lateness_s()
        if now_s >= end_s:
            return sends
        bucket.take(now_s)
        sends.append(now_s)


@pytest.mark.parametrize("per_second", [0.1, 1, 2.5, 47.5, 190, 1000])
def test_pace_is_reached_despite_late_wake_ups(per_second):
    rng = random.Random(1)
    seconds = 600 if per_second < 1 else 60
    sends = run(Bucket(per_second, 100.0), 100.0, 100.0 + seconds + 2, lambda: rng.uniform(0, 0.002))
    achieved = (len(sends) - 1) / (sends[-1] - sends[0])
    allowed = per_second if per_second < 1 else int(per_second)
    assert achieved >= 0.997 * allowed
    assert most_in_a_window(sends) <= max(1, int(per_second))


@pytest.mark.parametrize(
    ("per_second", "batch", "late_s"), [(100, 1, 0.0), (190, 2, 0.0), (190, 2, 0.0001), (1000, 9, 0.0001)]
)
def test_sends_due_within_8_ms_share_a_wake_up(per_second, batch, late_s):
    sends = run(Bucket(per_second, 100.0), 100.0, 110.0, lambda: late_s)
    at_once = Counter(Counter(sends).values())
    assert at_once.most_common(1)[0][0] == batch
    assert max(at_once) <= batch + 1
    assert len(sends) >= 0.99 * 10 * per_second


def test_first_send_waits_an_interval_and_the_tolerance():
    assert Bucket(100, 50.0).ready_at_s(50.0) == pytest.approx(
        50.0 + 0.01 + TOLERANCE_S + DEPARTURE_S, abs=2 * ROUNDING_S
    )


@pytest.mark.parametrize("idle_s", [0.05, 0.7, 5.0, 86_400.0])
def test_idle_time_is_not_followed_by_a_burst(idle_s):
    bucket = Bucket(190, 0.0)
    before = run(bucket, 0.0, 3.0, lambda: 0.0)
    after = run(bucket, before[-1] + idle_s, before[-1] + idle_s + 1.0, lambda: 0.0)
    first_10_ms = [send for send in after if send < after[0] + 0.010]
    assert len(first_10_ms) <= 2 + 0.010 * 190 + TOLERANCE_S * 190
    assert most_in_a_window(before + after) <= 190


pauses = st.one_of(st.floats(0, 0.003), st.floats(0, 1.5), st.just(0.0))
steps = st.lists(st.tuples(pauses, st.integers(1, 40)), min_size=1, max_size=60)


@given(rate=st.floats(0.2, 60), start_s=st.floats(0, 1e6), steps=steps)
def test_no_second_holds_more_than_the_limit(rate, start_s, steps):
    bucket, now_s, sends = Bucket(rate, start_s), start_s, []
    for pause_s, tries in steps:
        now_s += pause_s
        for _ in range(tries):
            if bucket.ready_at_s(now_s) <= now_s:
                bucket.take(now_s)
                sends.append(now_s)
        now_s = bucket.ready_at_s(now_s)
    assert most_in_a_window(sends, max(1.0, 1 / rate)) <= max(1, int(rate))


@given(
    ceiling=st.integers(2, 60),
    start_s=st.floats(0, 1e6),
    steps=st.lists(st.tuples(pauses, st.floats(0.05, 1.0), st.integers(1, 40)), min_size=1, max_size=60),
)
def test_changes_of_pace_keep_the_ceiling(ceiling, start_s, steps):
    bucket, now_s, sends = Bucket(ceiling, start_s), start_s, []
    for pause_s, pace, tries in steps:
        now_s += pause_s
        bucket.set_rate(ceiling * pace, now_s)
        for _ in range(tries):
            if bucket.ready_at_s(now_s) <= now_s:
                bucket.take(now_s)
                sends.append(now_s)
            now_s = min(bucket.ready_at_s(now_s), now_s + 0.3)
    assert most_in_a_window(sends) <= ceiling


@given(
    rate=st.one_of(st.integers(1, 200), st.floats(0.3, 200)),
    seed=st.integers(0, 2**32),
    lives=st.lists(st.floats(0, 1.5), min_size=2, max_size=6),
)
def test_the_limit_holds_across_kill_and_immediate_restart(rate, seed, lives):
    rng, now_s, sends = random.Random(seed), 1000.0, []
    for life_s in lives:
        bucket = Bucket(rate, now_s)
        for pace in rng.choice([(), (0.5,), (0.5, 1.0)]):  # a saved pace, and one that recovers at once
            bucket.set_rate(rate * pace, now_s)
        late_s = rng.choice([0.0, 0.002, 0.02, 0.1])
        sends += run(bucket, now_s, now_s + life_s, lambda late_s=late_s: rng.uniform(0, late_s))
        now_s = max(now_s + life_s if rng.random() < 0.5 else now_s, sends[-1] if sends else now_s)
    assert most_in_a_window(sends, max(1.0, 1 / rate)) <= max(1, int(rate))


@given(rate=st.integers(2, 1000), start_s=st.floats(0, 1e8), lives=st.integers(2, 5))
def test_ceiling_is_exact_across_a_kill_at_both_limits(rate, start_s, lives):
    """The sum of a send time and the window was rounded down, and one exact second held a send too many."""
    bucket, now_s, sends = Bucket(rate, start_s), start_s, []
    for _ in range(lives):
        now_s = bucket.ready_at_s(now_s) + 5 * TOLERANCE_S  # so late that all of the tolerance may be caught up
        for _ in range(rate):
            now_s = bucket.ready_at_s(now_s)
            bucket.take(now_s)
            sends.append(now_s)
        bucket = Bucket(rate, now_s)  # killed right after its last send, and started again at once
    now_s = bucket.ready_at_s(now_s)
    assert most_in_a_window([*sends, now_s]) <= rate


def test_raised_pace_does_not_wait_for_the_old_interval():
    bucket = Bucket(190, 0.0)
    bucket.set_rate(0.01, 5.0)
    bucket.take(bucket.ready_at_s(5.0))
    now_s = bucket.ready_at_s(5.0)
    assert now_s > 100
    bucket.set_rate(100, 20.0)
    assert bucket.ready_at_s(20.0) == pytest.approx(20.0 + 1 / 100)


def test_taking_a_send_that_is_not_allowed_raises():
    with pytest.raises(AssertionError):
        Bucket(10, 0.0).take(0.0)


def test_stall_is_followed_by_four_immediate_sends():
    bucket = Bucket(190, 0.0)
    run(bucket, 0.0, 3.0, lambda: 0.0)
    at_once = 0
    while bucket.ready_at_s(10.0) == 10.0:
        bucket.take(10.0)
        at_once += 1
    assert at_once == 4


@pytest.mark.parametrize("raised", [11, 20])
def test_pace_raised_at_the_start_waits_for_its_interval(raised):
    bucket = Bucket(10, 0.0)
    bucket.set_rate(raised, 0.0)
    assert bucket.ready_at_s(0.0) == pytest.approx(1 / raised)


def test_per_second_is_the_pace_in_force():
    bucket = Bucket(190, 0.0)
    assert bucket.per_second == 190
    bucket.set_rate(95, 1.0)
    assert bucket.per_second == 95


def test_bucket_size_does_not_grow_with_its_sends():
    bucket = Bucket(10, 0.0)
    run(bucket, 0.0, 10.0, lambda: 0.0)
    size = len(pickle.dumps(bucket))
    run(bucket, 10.0, 100.0, lambda: 0.0)
    assert len(pickle.dumps(bucket)) <= size + 10


def test_any_number_of_hosts_with_a_fixed_share_uses_all_of_the_rate():
    """Whole numbers per second gave 150 of 190 with 50 hosts and 100 with 100."""
    for hosts in range(1, 1001):
        rate = 190 / hosts
        times, most = sends_at_full_pace(rate, hosts), math.ceil(rate)
        assert len(times) - 1 >= 0.95 * rate * (times[-1] - times[0]), hosts
        assert all(later - earlier >= 1.0 for earlier, later in zip(times, times[most:], strict=False)), hosts


def sends_at_full_pace(rate: float, hosts: int) -> list[float]:
    """Return the times at which one of ``hosts`` sends, if it always has something to send."""
    bucket, now_s, times = Bucket(rate, 0.0, spaced=hosts > 1), 0.0, list[float]()
    while len(times) < max(25.0, 1.5 * rate):
        now_s = max(now_s, bucket.ready_at_s(now_s))
        bucket.take(now_s)
        times.append(now_s)
    return times


# --- departures ---


@given(
    rate=st.integers(1, 200),
    seed=st.integers(0, 2**32),
    connect_s=st.sampled_from([0.0, 0.05, 0.3, 2.0]),
)
def test_no_second_holds_more_departures_than_the_limit(rate, seed, connect_s):
    """Requests that waited for their connections left together, although each had been granted a place of its own."""
    rng, bucket, now_s = random.Random(seed), Bucket(rate, 1000.0), 1000.0
    ready: list[tuple[float, float]] = []  # when the lane is ready, and the grant
    departures: list[float] = []
    while len(departures) < 3 * rate + 5:
        ready.sort()
        if ready and ready[0][0] <= now_s:
            _, granted_s = ready.pop(0)
            due_s = bucket.regrant(granted_s, now_s)
            if due_s > now_s:
                ready.append((due_s + rng.uniform(0, 0.002), due_s))
            else:
                bucket.departed(due_s, now_s)
                departures.append(now_s)
        elif bucket.ready_at_s(now_s) <= now_s and len(ready) < 100:
            bucket.take(now_s)
            late_s = connect_s * rng.random() if rng.random() < 0.3 else rng.uniform(0, 0.002)
            ready.append((now_s + late_s, now_s))
        else:
            again_s = bucket.ready_at_s(now_s) if len(ready) < 100 else math.inf
            now_s = max(math.nextafter(now_s, math.inf), min(again_s, *(at_s for at_s, _ in ready), math.inf))
    assert most_in_a_window(departures, max(1.0, 1 / rate)) <= rate


def test_a_grant_that_is_used_at_once_stands():
    bucket = Bucket(190, 0.0)
    now_s = bucket.ready_at_s(5.0)
    bucket.take(now_s)
    assert bucket.regrant(now_s, now_s + 0.9 * DEPARTURE_S) == now_s


def test_lanes_that_are_ready_together_leave_one_interval_apart():
    bucket, now_s, grants = Bucket(100, 0.0), 5.0, []
    for _ in range(20):
        now_s = bucket.ready_at_s(now_s)
        bucket.take(now_s)
        grants.append(now_s)
    again = sorted(bucket.regrant(granted_s, now_s + 1.0) for granted_s in grants)
    assert again[-1] - again[0] >= 19 * 0.01 - TOLERANCE_S - 1e-9


def test_a_place_that_begins_the_grid_is_free_again_when_given_back():
    bucket = Bucket(10, 100.0)
    bucket.take(105.0)  # after a pause: the grid begins anew
    bucket.give_back(105.0)
    assert bucket.ready_at_s(105.0) == 105.0
