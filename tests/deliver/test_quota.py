"""No 24 hours hold more than the quota, through crashes and clock steps, and no request waits longer than needed."""

import math
import random

import pytest
from deliver_parts import QuotaClock, QuotaFile, make_quota, send
from hypothesis import given
from hypothesis import strategies as st

from sidecar.deliver.quota import DAY_S, QuotaRow
from sidecar.mapping import Priority


def most_in_24_hours(sends: list[tuple[float, int]]) -> int:
    """Return the largest number sent in any half-open 24 hours; ``sends`` are (time, count) in order of time."""
    most = total = first = 0
    for at_s, count in sends:
        total += count
        while at_s - sends[first][0] >= DAY_S:
            total -= sends[first][1]
            first += 1
        most = max(most, total)
    return most


def test_quota_is_fully_used_and_free_a_day_later():
    clock, file = QuotaClock(), QuotaFile()
    quota = make_quota(1000, clock=clock)
    started_s = clock.at_s
    assert send(quota, file, 5000) == 1000
    wait_s = quota.ready_at_s(0.0, priority=Priority.HIGH)
    assert DAY_S < wait_s <= DAY_S + 180
    assert quota.describe().free_in_s == wait_s
    clock.at_s += wait_s - 0.001
    assert send(quota, file, 5000) == 0
    clock.at_s += 0.001
    assert send(quota, file, 5000) > 0
    assert clock.at_s > started_s + DAY_S


@pytest.mark.parametrize("per_day", [1, 2, 10, 99])
def test_small_quotas_are_exact(per_day):
    quota, file = make_quota(per_day, clock=QuotaClock()), QuotaFile()
    assert send(quota, file, 500) == per_day
    assert quota.used() == per_day


def test_normal_events_leave_the_reserve_to_high_ones():
    quota, file = make_quota(1000, clock=QuotaClock(), reserve_for_high=0.1), QuotaFile()
    assert send(quota, file, 5000) == 900
    assert quota.ready_at_s(0.0, priority=Priority.HIGH) < math.inf
    assert send(quota, file, 5000, priority=Priority.HIGH) == 100


def test_reserve_never_stops_normal_events_for_good():
    assert send(make_quota(1, clock=QuotaClock(), reserve_for_high=0.9), QuotaFile(), 10) == 1


def test_calendar_days_begin_at_midnight_utc():
    clock, file = QuotaClock(), QuotaFile()
    quota = make_quota(1000, clock=clock, day="utc")
    assert send(quota, file, 5000) == 1000
    assert quota.ready_at_s(7.0, priority=Priority.NORMAL) == 7.0 + 43_200
    clock.at_s += 43_200 - 1
    assert send(quota, file, 5000) == 0
    clock.at_s += 1
    assert send(quota, file, 5000) == 1000


def test_clock_steps_do_not_start_a_calendar_day_again():
    clock, file = QuotaClock(), QuotaFile()
    quota = make_quota(1000, clock=clock, day="utc")
    assert send(quota, file, 600) == 600
    clock.step_ms = 86_400_000
    assert send(quota, file, 300) == 300
    clock.step_ms = 0
    assert send(quota, file, 5000) == 100
    clock.step_ms = -86_400_000
    assert send(quota, file, 5000) == 0


def test_sends_up_to_midnight_count_in_their_own_day():
    clock, file = QuotaClock(), QuotaFile()
    quota = make_quota(1000, clock=clock, day="utc")
    for _ in range(100):
        clock.at_s += 43_150 / 100
        send(quota, file, 5)
    clock.at_s = 100_000 + 43_200
    assert send(quota, file, 5000) == 1000


def test_crash_costs_a_lease_at_most_and_a_clean_stop_nothing():
    clock, file = QuotaClock(), QuotaFile()
    quota = make_quota(100_000, clock=clock)
    for _ in range(150):
        clock.at_s += 1 / 190
        send(quota, file, 1)
    after_crash = make_quota(100_000, clock=clock, rows=file.rows.values())
    assert 150 <= after_crash.used() <= 250
    file.commit(quota.closing_lease())
    assert make_quota(100_000, clock=clock, rows=file.rows.values()).used() == 150


def test_leases_grow_with_the_pace_and_shrink_again():
    clock, file = QuotaClock(), QuotaFile()
    quota = make_quota(10_000_000, clock=clock)

    def largest_lease(per_second: int) -> int:
        leases = []
        for _ in range(per_second * 5):
            clock.at_s += 1 / per_second
            if quota.ready_at_s(0.0, priority=Priority.NORMAL) == 0.0:
                quota.take(priority=Priority.NORMAL)
            lease = quota.wants_lease()
            if lease:
                leases.append(lease.sends)
                file.commit(lease)
                quota.granted(lease)
        return max(leases[-3:], default=0)

    assert largest_lease(190) <= 100
    assert 1000 <= largest_lease(10_000) <= 6000
    for _ in range(10):
        clock.at_s += 10
        largest_lease(190)
    assert largest_lease(190) <= 100


def test_sends_of_two_processes_count_in_the_third():
    clock, file = QuotaClock(), QuotaFile()
    for sent in (400, 500, 100, 0):
        quota = make_quota(1000, clock=clock, rows=file.rows.values())
        assert send(quota, file, sent) == sent
        file.commit(quota.closing_lease())
        clock.at_s += 600
    assert send(quota, file, 5000) == 0


def test_lease_left_over_at_midnight_costs_the_new_day_nothing():
    clock, file = QuotaClock(), QuotaFile()
    quota = make_quota(1000, clock=clock, day="utc")
    send(quota, file, 3)
    clock.at_s += 86_400
    assert quota.used() == 0
    assert send(quota, file, 5000) == 1000


def test_abandoned_lease_costs_nothing():
    clock, file = QuotaClock(), QuotaFile()
    quota = make_quota(1000, clock=clock)
    for _ in range(500):
        assert quota.ready_at_s(0.0, priority=Priority.NORMAL) == math.inf
        lease = quota.wants_lease()
        assert quota.wants_lease() is None
        quota.abandoned(lease)
    assert send(quota, file, 5000) == 1000
    assert sum(row.sent for row in file.rows.values()) == 1000


def test_nothing_is_written_while_nothing_is_sent():
    clock, file = QuotaClock(), QuotaFile()
    quota = make_quota(1000, clock=clock)
    send(quota, file, 3)
    leases = []
    for _ in range(100):
        clock.at_s += 60
        if lease := quota.wants_lease():
            leases.append(lease)
            quota.granted(lease)
    assert len(leases) <= 1, "the last send may need the next lease"
    assert quota.used() == 3


def test_rows_of_an_earlier_boot_are_dated_by_the_wall_clock():
    clock, file = QuotaClock(), QuotaFile()
    send(make_quota(1000, clock=clock), file, 1000)
    clock.reboot(off_s=3600, boot_s=12.0)
    quota = make_quota(1000, clock=clock, rows=file.rows.values())
    assert DAY_S - 3600 < quota.ready_at_s(0.0, priority=Priority.HIGH) <= DAY_S - 3600 + 240


def test_row_from_the_future_counts_as_of_now():
    clock = QuotaClock()
    row = QuotaRow(clock.wall_ms() // 60_000 + 10**6, "another boot", 5, 1000)
    quota = make_quota(1000, clock=clock, rows=[row])
    assert DAY_S < quota.ready_at_s(0.0, priority=Priority.HIGH) <= DAY_S + 180


def test_expired_minutes_are_deleted_from_the_file():
    clock, file = QuotaClock(), QuotaFile()
    quota = make_quota(10**6, clock=clock)
    for _ in range(3000):
        clock.at_s += 60
        send(quota, file, 1)
    assert 1440 <= len(file.rows) <= 1444


def test_spread_pace_divides_the_day_evenly():
    clock, file = QuotaClock(), QuotaFile()
    assert make_quota(864_000, clock=clock).pace_per_s() == math.inf
    assert make_quota(864_000, clock=clock, pace="spread").pace_per_s() == 10
    calendar = make_quota(43_200, clock=clock, pace="spread", day="utc")
    assert calendar.pace_per_s() == pytest.approx(1.0, rel=0.01)
    send(calendar, file, 21_600)
    clock.at_s += 60
    assert calendar.pace_per_s() == pytest.approx(0.5, rel=0.01)


@pytest.mark.parametrize(("day", "wait_s"), [("rolling", 3600), ("utc", 43_200)])
def test_day_treated_as_spent_waits_and_then_continues(day, wait_s):
    clock, file = QuotaClock(), QuotaFile()
    quota = make_quota(1000, clock=clock, day=day)
    send(quota, file, 10)
    quota.treat_as_spent()
    assert quota.describe().by_px
    assert quota.ready_at_s(0.0, priority=Priority.HIGH) == wait_s
    clock.at_s += wait_s
    assert send(quota, file, 10) == 10
    assert not quota.describe().by_px


@given(
    seed=st.integers(0, 2**32),
    per_day=st.sampled_from([7, 500, 20_000]),
    reboots=st.booleans(),
    steps=st.lists(
        st.tuples(
            st.sampled_from([0.5, 45.0, 600.0, 20_000.0, 86_400.0]), st.sampled_from(["go", "go", "crash", "wall"])
        ),
        min_size=5,
        max_size=60,
    ),
)
def test_no_24_hours_hold_more_than_the_quota(seed, per_day, reboots, steps):
    rng, clock, file = random.Random(seed), QuotaClock(), QuotaFile()
    quota, sends, true_s = make_quota(per_day, clock=clock), [], 0.0
    for length_s, what in steps:
        passed_s = rng.uniform(0, length_s)
        clock.at_s += passed_s
        true_s += passed_s
        if what == "wall" and not reboots:
            clock.step_ms = rng.choice([-86_400_000, 0, 86_400_000])
        elif what == "crash":
            lease = quota.wants_lease()
            if lease and rng.random() < 0.5:  # its commit may have happened or not
                file.commit(lease)
            if reboots and rng.random() < 0.5:
                off_s = rng.uniform(0, 1000)
                true_s += off_s
                clock.reboot(off_s, rng.uniform(0, 100))
            quota = make_quota(per_day, clock=clock, rows=file.rows.values())
        sends.append((true_s, send(quota, file, rng.choice([1, 50, per_day]), priority=rng.random() < 0.5)))
        assert quota.used() <= per_day
    assert most_in_24_hours(sends) <= per_day


def test_three_days_of_backlog_use_the_whole_quota():
    clock, file, sent = QuotaClock(), QuotaFile(), 0
    quota = make_quota(9_900, clock=clock)
    for _ in range(3 * 1440):
        clock.at_s += 60
        sent += send(quota, file, 21)
    assert sent >= 3 * 9_900 * 0.99


def test_no_empty_lease_is_wanted_when_the_day_is_leased():
    """Granting a lease of 0 woke the dispatcher, which asked for another: a loop with a commit each time."""
    clock, file = QuotaClock(), QuotaFile()
    quota = make_quota(300, clock=clock)
    assert send(quota, file, 299) == 299
    quota.ready_at_s(0.0, priority=Priority.NORMAL)
    assert quota.wants_lease() is None
    assert send(quota, file, 10) == 1
