"""The size of the day changes while requests are sent: a reload of the configuration."""

import pytest
from deliver_parts import QuotaClock, QuotaFile, make_quota, resize, send
from hypothesis import given
from hypothesis import strategies as st

from sidecar.deliver.quota import DAY_S
from sidecar.mapping import Priority


def test_larger_day_is_used_at_once():
    quota, file = make_quota(50, clock=QuotaClock()), QuotaFile()
    assert send(quota, file, 1000) == 50
    resize(quota, 80)
    assert send(quota, file, 1000) == 30


def test_smaller_day_stops_until_enough_has_expired():
    clock, file = QuotaClock(), QuotaFile()
    quota = make_quota(100, clock=clock)
    assert send(quota, file, 60) == 60
    clock.at_s += 3600
    assert send(quota, file, 20) == 20
    resize(quota, 30)
    assert send(quota, file, 1) == 0
    assert quota.describe().limit == 30
    clock.at_s += quota.ready_at_s(0.0, priority=Priority.NORMAL)
    assert clock.at_s == pytest.approx(100_000 + DAY_S, abs=120)
    assert send(quota, file, 1000) == 10


def test_lease_of_a_larger_day_is_cut_by_the_smaller_one():
    quota, file = make_quota(20_000, clock=QuotaClock()), QuotaFile()
    assert send(quota, file, 30) == 30  # of a lease of 100
    resize(quota, 40)
    assert send(quota, file, 1000) == 10


def test_too_large_lease_is_carried_over_and_not_below_zero():
    clock, file = QuotaClock(), QuotaFile()
    quota = make_quota(20_000, clock=clock)
    assert send(quota, file, 30) == 30
    resize(quota, 40)
    clock.at_s += 60
    assert quota.ready_at_s(0.0, priority=Priority.NORMAL) == 0.0
    lease = quota.wants_lease()
    assert lease is not None
    assert lease.sends == 0
    quota.take(priority=Priority.NORMAL)  # while the lease is being committed
    file.commit(lease)
    quota.granted(lease)
    assert send(quota, file, 1000) == 9


def test_reload_changes_reserve_and_pace():
    clock = QuotaClock()
    quota, file = make_quota(86_400, clock=clock), QuotaFile()
    assert quota.pace_per_s() == float("inf")
    resize(quota, 86_400, pace="spread", reserve_for_high=0.25)
    assert quota.pace_per_s() == 1.0
    assert send(quota, file, 100_000) == 64_800
    assert send(quota, file, 100_000, priority=Priority.HIGH) == 21_600
    resize(quota, 86_500)
    assert quota.pace_per_s() == float("inf")
    assert send(quota, file, 100_000) == 100


def test_smaller_day_makes_smaller_leases():
    clock, file = QuotaClock(), QuotaFile()
    quota = make_quota(990_000, clock=clock)
    send(quota, file, 1)
    resize(quota, 1_000)
    clock.at_s += 120  # returns the earlier lease
    quota.ready_at_s(0.0, priority=Priority.NORMAL)
    lease = quota.wants_lease()
    assert lease is not None
    assert lease.sends == 10


@given(
    days=st.lists(st.tuples(st.integers(1, 300), st.integers(0, 200), st.floats(0, 90_000)), max_size=30),
    utc=st.booleans(),
)
def test_no_send_exceeds_the_quota_in_force(days, utc):
    clock, file, sends = QuotaClock(), QuotaFile(), []
    quota = make_quota(100, clock=clock, day="utc" if utc else "rolling")
    for per_day, most, wait_s in days:
        resize(quota, per_day)
        sent = send(quota, file, most)
        begin_s = clock.at_s - DAY_S if not utc else clock.at_s - clock.wall_ms() / 1000 % DAY_S
        before = sum(count for at_s, count in sends if at_s > begin_s)
        assert sent == 0 or before + sent <= per_day
        if sent < most:
            assert before + sent >= per_day or quota.ready_at_s(0.0, priority=Priority.NORMAL) > 0.0
        sends.append((clock.at_s, sent))
        clock.at_s += wait_s
