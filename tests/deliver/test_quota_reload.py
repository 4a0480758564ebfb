"""The day becomes another one while requests are being sent: a reload, or a subscription that was enlarged."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_quota import Clock, File, send

from sidecar.deliver.quota import DAY_S, Quota


def test_a_larger_day_is_used_at_once():
    quota, file = Quota(50, clock=Clock()), File()
    assert send(quota, file, 1000) == 50
    quota.reconfigure(80)
    assert send(quota, file, 1000) == 30


def test_a_smaller_day_stops_at_once_and_goes_on_when_enough_has_left():
    clock, file = Clock(), File()
    quota = Quota(100, clock=clock)
    assert send(quota, file, 60) == 60
    clock.at_s += 3600
    assert send(quota, file, 20) == 20
    quota.reconfigure(30)
    assert send(quota, file, 1) == 0
    assert quota.describe().limit == 30
    clock.at_s += quota.ready_at_s(0.0, high=False)
    assert clock.at_s == pytest.approx(100_000 + DAY_S, abs=120)
    assert send(quota, file, 1000) == 10


def test_what_was_leased_of_a_larger_day_is_not_sent_beyond_the_smaller_one():
    quota, file = Quota(20_000, clock=Clock()), File()
    assert send(quota, file, 30) == 30  # of a lease of 100
    quota.reconfigure(40)
    assert send(quota, file, 1000) == 10


def test_a_lease_that_is_too_large_for_the_smaller_day_is_carried_into_the_next_minute_and_not_below_nothing():
    clock, file = Clock(), File()
    quota = Quota(20_000, clock=clock)
    assert send(quota, file, 30) == 30
    quota.reconfigure(40)
    clock.at_s += 60
    assert quota.ready_at_s(0.0, high=False) == 0.0
    lease = quota.wants_lease()
    assert lease is not None
    assert lease.sends == 0
    quota.take(high=False)  # while the lease is on its way
    file.commit(lease)
    quota.granted(lease)
    assert send(quota, file, 1000) == 9


def test_the_reserve_and_the_pace_become_others_too():
    clock = Clock()
    quota, file = Quota(86_400, clock=clock), File()
    assert quota.pace_per_s() == float("inf")
    quota.reconfigure(86_400, pace="spread", reserve_for_high=0.25)
    assert quota.pace_per_s() == 1.0
    assert send(quota, file, 100_000) == 64_800
    assert send(quota, file, 100_000, high=True) == 21_600
    quota.reconfigure(86_500)
    assert quota.pace_per_s() == float("inf")
    assert send(quota, file, 100_000) == 100


def test_leases_become_as_small_as_the_smaller_day_wants_them():
    clock, file = Clock(), File()
    quota = Quota(990_000, clock=clock)
    send(quota, file, 1)
    quota.reconfigure(1_000)
    clock.at_s += 120  # what was leased before is given back
    quota.ready_at_s(0.0, high=False)
    lease = quota.wants_lease()
    assert lease is not None
    assert lease.sends == 10


@given(
    days=st.lists(st.tuples(st.integers(1, 300), st.integers(0, 200), st.floats(0, 90_000)), max_size=30),
    utc=st.booleans(),
)
def test_no_send_ever_makes_more_than_the_quota_of_its_time(days, utc):
    clock, file, sends = Clock(), File(), []
    quota = Quota(100, clock=clock, day="utc" if utc else "rolling")
    for per_day, most, wait_s in days:
        quota.reconfigure(per_day)
        sent = send(quota, file, most)
        begin_s = clock.at_s - DAY_S if not utc else clock.at_s - clock.wall_ms() / 1000 % DAY_S
        before = sum(count for at_s, count in sends if at_s > begin_s)
        assert sent == 0 or before + sent <= per_day
        if sent < most:
            assert before + sent >= per_day or quota.ready_at_s(0.0, high=False) > 0.0
        sends.append((clock.at_s, sent))
        clock.at_s += wait_s
