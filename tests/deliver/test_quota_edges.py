"""The quota at its edges: which minute counts where, how large a lease is, and what the file is told."""

import math

import pytest
from test_quota import Clock, File, send

from sidecar.deliver.quota import Lease, Quota, QuotaRow

MINUTE_S = 60.0
DAY_S = 86_400.0
START_MINUTE = 1_666  # of the clock's boot: 100,000 s


def grant(quota: Quota, file: File) -> Lease:
    """The lease that is wanted, committed and granted."""
    quota.ready_at_s(0.0, high=True)
    lease = quota.wants_lease()
    assert lease is not None
    file.commit(lease)
    quota.granted(lease)
    return lease


def use(quota: Quota, count: int) -> None:
    for _ in range(count):
        quota.take(high=True)


def row(clock: Clock, minute: int, sent: int) -> QuotaRow:
    """A bucket of this boot's ``minute`` before now."""
    at = int(clock.at_s // 60) - minute
    return QuotaRow(clock.wall_ms() // 60_000 - minute, clock.boot_id(), at, sent)


# --- when it is free again ---


def test_a_minute_counts_until_all_of_it_is_a_day_old():
    clock = Clock(boot_s=120_000.0)
    quota = Quota(10, clock=clock, rows=[row(clock, 1000, 4), row(clock, 500, 6)])
    assert quota.used() == 10
    free_in_s = 60.0 * (1440 - 1000 + 1)
    assert quota.ready_at_s(0.0, high=True) == free_in_s
    assert quota.describe().free_in_s == free_in_s
    clock.at_s += free_in_s - 0.5
    assert quota.ready_at_s(0.0, high=True) == 0.5
    assert quota.wants_lease() is None
    clock.at_s += 0.5
    assert quota.used() == 6
    assert quota.ready_at_s(0.0, high=True) == math.inf


def test_a_bucket_that_is_a_day_old_is_left_out_when_it_is_loaded():
    clock = Clock(boot_s=120_000.0)
    assert Quota(10, clock=clock, rows=[row(clock, 1440, 4)]).used() == 4
    assert Quota(10, clock=clock, rows=[row(clock, 1441, 4)]).used() == 0


def test_a_bucket_of_this_boot_from_the_future_counts_from_the_next_minute():
    clock = Clock(boot_s=120_000.0)
    quota = Quota(10, clock=clock, rows=[row(clock, -5, 10)])
    assert quota.ready_at_s(0.0, high=True) == DAY_S + 120.0


@pytest.mark.parametrize(("boot_s", "step_ms"), [(0.0, 0), (30.0, 0), (0.0, 20_000), (59.0, 59_000)])
def test_buckets_of_another_boot_count_from_the_minute_after_theirs(boot_s, step_ms):
    clock = Clock(boot_s=120_000.0 + boot_s)
    clock.step_ms = step_ms
    wall = clock.wall_ms() // 60_000
    quota = Quota(10, clock=clock, rows=[QuotaRow(wall - 10, "another", 7, 10)])
    assert quota.ready_at_s(0.0, high=True) == DAY_S + 120.0 - 600.0 - boot_s


def test_a_hold_of_px_lasts_an_hour_and_longer_where_the_day_is_spent():
    clock = Clock(boot_s=120_000.0)
    quota = Quota(10, clock=clock, rows=[row(clock, 1400, 10)])
    quota.treat_as_spent()
    assert quota.ready_at_s(0.0, high=True) == 3600.0
    quota = Quota(10, clock=clock, rows=[row(clock, 0, 10)])
    quota.treat_as_spent()
    assert quota.ready_at_s(0.0, high=True) == DAY_S + 60.0


# --- leases ---


@pytest.mark.parametrize(
    ("per_day", "sends"), [(1, 1), (99, 1), (100, 1), (199, 1), (200, 2), (9_999, 99), (10_000, 100), (10**6, 100)]
)
def test_a_lease_is_a_hundredth_of_the_day_and_a_hundred_at_first(per_day, sends):
    assert grant(Quota(per_day, clock=Clock()), File()).sends == sends


def test_without_being_asked_nothing_is_leased():
    quota, file = Quota(1000, clock=Clock()), File()
    assert quota.wants_lease() is None
    grant(quota, file)
    assert quota.wants_lease() is None


def test_a_lease_is_wanted_once_less_than_half_is_left():
    quota, file = Quota(10**6, clock=Clock()), File()
    grant(quota, file)
    use(quota, 50)
    assert quota.wants_lease() is None
    use(quota, 1)
    assert quota.wants_lease() is not None


@pytest.mark.parametrize(("lasted_s", "sends"), [(0.0, 151), (0.24, 151), (0.25, 51), (1.0, 51), (2.0, 51), (2.5, 51)])
def test_only_a_lease_half_gone_within_a_quarter_of_a_second_is_doubled(lasted_s, sends):
    clock, file = Clock(), File()
    quota = Quota(10**6, clock=clock)
    grant(quota, file)
    clock.at_s += lasted_s
    use(quota, 51)
    assert grant(quota, file).sends == sends


@pytest.mark.parametrize(("lasted_s", "sends"), [(2.0, 101), (2.1, 1)])
def test_only_a_lease_that_lasts_longer_than_two_seconds_is_halved(lasted_s, sends):
    clock, file = Clock(), File()
    quota = Quota(10**6, clock=clock)
    grant(quota, file)
    use(quota, 51)
    grant(quota, file)  # 200 now
    use(quota, 101)
    clock.at_s += lasted_s
    lease = grant(quota, file)
    assert lease.sends == sends


def test_with_nothing_left_of_a_lease_the_next_one_is_waited_for():
    quota, file = Quota(1000, clock=Clock()), File()
    use(quota, grant(quota, file).sends)
    assert quota.ready_at_s(0.0, high=True) == math.inf


def test_a_small_quota_never_leases_more_than_its_hundredth():
    quota, file = Quota(20_000, clock=Clock()), File()
    assert grant(quota, file).sends == 100
    use(quota, 51)
    assert grant(quota, file).sends == 151
    for _ in range(3):
        use(quota, 101)
        assert grant(quota, file).sends == 101


def test_the_last_lease_is_what_is_left_of_the_day():
    clock, file = Clock(), File()
    quota = Quota(120, clock=clock, rows=[row(clock, 5, 119)])
    assert grant(quota, file).sends == 1
    use(quota, 1)
    assert quota.ready_at_s(0.0, high=True) > DAY_S - 400
    assert quota.wants_lease() is None


def test_a_lease_is_valid_in_its_minute_and_the_next_and_dated_in_the_latter():
    clock, file = Clock(), File()
    quota = Quota(1000, clock=clock)
    lease = grant(quota, file)
    assert lease.through_minute == START_MINUTE + 1
    assert [(one.boot_minute, one.sent) for one in lease.rows] == [(START_MINUTE + 1, 10)]
    assert lease.rows[0].minute == clock.wall_ms() // 60_000 + 1
    assert quota.ready_at_s(5.0, high=True) == 5.0
    clock.at_s += MINUTE_S
    assert quota.ready_at_s(5.0, high=True) == 5.0
    clock.at_s += MINUTE_S
    assert quota.ready_at_s(5.0, high=True) == math.inf, "what is left of it was given back"
    assert quota.used() == 0


def test_a_lease_that_begins_to_be_old_is_replaced_by_one_for_the_next_minute():
    clock, file = Clock(), File()
    quota = Quota(1000, clock=clock)
    grant(quota, file)
    clock.at_s += MINUTE_S
    assert grant(quota, file).through_minute == START_MINUTE + 2
    quota.ready_at_s(0.0, high=True)
    assert quota.wants_lease() is None, "it is fresh enough, and full"


def test_in_the_last_minute_of_a_calendar_day_a_lease_is_for_that_minute():
    clock = Clock(boot_s=100_020.0)  # a whole minute
    clock.step_ms = 43_200_000 - 60_000
    late = Quota(1000, clock=clock, day="utc")
    assert grant(late, File()).through_minute == int(clock.at_s // 60)
    clock.step_ms -= 60_000
    early, file = Quota(1000, clock=clock, day="utc"), File()
    grant(early, file)
    clock.at_s += MINUTE_S
    early.ready_at_s(0.0, high=True)
    assert early.wants_lease() is None, "it is valid to the end of the day and full"
    clock.at_s -= MINUTE_S
    assert grant(Quota(1000, clock=clock, day="utc"), File()).through_minute == int(clock.at_s // 60) + 1
    clock.step_ms += 60_000
    assert grant(Quota(1000, clock=clock), File()).through_minute == int(clock.at_s // 60) + 1


# --- what the file is told ---


def test_the_first_lease_replaces_all_rows_and_later_ones_only_theirs():
    clock, file = Clock(), File()
    quota = Quota(1000, clock=clock, rows=[row(clock, 700, 3)])
    first = grant(quota, file)
    assert first.replaces_all
    assert [one.sent for one in first.rows] == [3, 10]
    use(quota, 6)
    second = grant(quota, file)
    assert not second.replaces_all
    assert [one.boot_minute for one in second.rows] == [START_MINUTE + 1]
    assert second.drop_before == START_MINUTE - 1440


def test_what_could_not_be_committed_is_told_again():
    clock, file = Clock(), File()
    quota = Quota(1000, clock=clock)
    grant(quota, file)
    clock.at_s += MINUTE_S
    quota.ready_at_s(0.0, high=True)
    lost = quota.wants_lease()
    assert lost is not None
    quota.abandoned(lost)
    quota.ready_at_s(0.0, high=True)
    again = quota.wants_lease()
    assert again is not None
    assert [one.boot_minute for one in again.rows] == [one.boot_minute for one in lost.rows]
    assert not again.replaces_all


def test_a_first_lease_that_could_not_be_committed_still_replaces_all():
    clock, file = Clock(), File()
    quota = Quota(1000, clock=clock, rows=[row(clock, 700, 3)])
    quota.ready_at_s(0.0, high=True)
    quota.abandoned(quota.wants_lease())
    again = grant(quota, file)
    assert again.replaces_all
    assert [one.sent for one in again.rows] == [3, 10]


def test_at_the_end_what_was_not_used_is_given_back_and_old_minutes_are_dropped():
    clock, file = Clock(), File()
    quota = Quota(1000, clock=clock)
    grant(quota, file)
    use(quota, 3)
    clock.at_s += MINUTE_S
    last = quota.given_back()
    assert last.sends == 0
    assert (last.through_minute, last.drop_before) == (START_MINUTE + 1, START_MINUTE + 1 - 1440)
    file.commit(last)
    assert [one.sent for one in file.rows.values()] == [3]
    assert quota.used() == 3


# --- what people see ---


def test_what_is_leased_but_not_sent_is_not_used():
    quota = Quota(1000, clock=Clock())
    assert quota.used() == 0
    quota.ready_at_s(0.0, high=True)
    lease = quota.wants_lease()
    assert lease is not None
    assert quota.used() == 0
    quota.granted(lease)
    use(quota, 2)
    assert (quota.describe().used, quota.describe().limit, quota.describe().by_px) == (2, 1000, False)


def test_what_is_shown_is_of_now_though_nothing_was_sent_meanwhile():
    clock, file = Clock(), File()
    quota = Quota(100, clock=clock)
    assert send(quota, file, 100) == 100
    clock.at_s += 2 * DAY_S
    assert quota.describe().used == 0
    quota = Quota(100, clock=clock)
    quota.ready_at_s(0.0, high=True)
    clock.at_s += 10 * MINUTE_S
    lease = quota.wants_lease()
    assert lease is not None
    assert lease.through_minute == int(clock.at_s // 60) + 1


def test_without_a_reserve_normal_events_may_use_the_whole_day():
    quota, file = Quota(1000, clock=Clock()), File()
    assert send(quota, file, 5000, high=False) == 1000
    assert DAY_S < quota.ready_at_s(0.0, high=False) <= DAY_S + 120


def test_the_pace_of_a_calendar_day_never_stops():
    clock, file = Clock(), File()
    quota = Quota(100, clock=clock, day="utc", pace="spread")
    assert quota.pace_per_s() == 100 / 43_200
    assert send(quota, file, 100) == 100
    clock.at_s += MINUTE_S
    assert quota.pace_per_s() == pytest.approx(1 / (43_200 - 60), rel=0.01)


# --- the reserve ---


def reserved(clock: Clock, *sent: tuple[int, int]) -> Quota:
    """A day of 1,000, a tenth of it for high events; ``sent`` are minutes ago and requests."""
    return Quota(1000, clock=clock, reserve_for_high=0.1, rows=[row(clock, *one) for one in sent])


def in_s(minutes_ago: int) -> float:
    """When what was sent in a minute so long ago has left; the clock is at the begin of a minute."""
    return 60.0 * (1440 - minutes_ago + 1)


def test_normal_events_wait_until_as_many_have_left_as_are_above_their_limit():
    clock = Clock(boot_s=120_000.0)
    assert reserved(clock, (1000, 5), (500, 899)).ready_at_s(0.0, high=False) == in_s(1000)
    assert reserved(clock, (1000, 5), (500, 900)).ready_at_s(0.0, high=False) == in_s(500)
    assert reserved(clock, (1000, 5), (500, 900)).describe().free_in_s == in_s(500)


def test_what_high_events_lease_meanwhile_makes_normal_ones_wait_longer():
    clock, file = Clock(boot_s=120_000.0), File()
    quota = reserved(clock, (1000, 20), (500, 880))
    assert quota.ready_at_s(0.0, high=False) == in_s(1000)
    assert send(quota, file, 50, high=True) == 50
    assert quota.ready_at_s(0.0, high=False) == in_s(500)


def test_what_high_events_take_of_a_lease_makes_normal_ones_wait_longer():
    clock, file = Clock(boot_s=120_000.0), File()
    quota = reserved(clock, (1000, 5), (500, 895))
    grant(quota, file)
    assert quota.ready_at_s(0.0, high=False) == in_s(1000)
    use(quota, 10)
    clock.at_s += in_s(1000)
    assert quota.ready_at_s(0.0, high=False) == in_s(500) - in_s(1000)


def test_with_nothing_used_up_normal_events_wait_for_nothing():
    assert Quota(1000, clock=Clock()).describe().free_in_s == 0.0


# --- how a bucket is dated ---


@pytest.mark.parametrize("ahead", [0, 1, 5, 10**6])
def test_a_bucket_of_another_boot_from_now_or_later_counts_from_the_next_minute(ahead):
    clock = Clock(boot_s=120_000.0)
    wall = clock.wall_ms() // 60_000
    quota = Quota(1000, clock=clock, rows=[QuotaRow(wall + ahead, "another", 7, 1000)])
    assert quota.ready_at_s(0.0, high=True) == DAY_S + 120.0
    quota = Quota(1000, clock=clock, rows=[QuotaRow(wall + ahead, "another", 7, 3)])
    assert grant(quota, File()).rows[0].minute == wall + min(ahead, 1)


def test_a_minute_that_is_over_is_not_told_again():
    clock, file = Clock(), File()
    quota = Quota(1000, clock=clock)
    use(quota, grant(quota, file).sends)
    clock.at_s += MINUTE_S
    assert [one.boot_minute for one in grant(quota, file).rows] == [START_MINUTE + 2]


@pytest.mark.parametrize(("back_ms", "told"), [(60_000, False), (120_000, True), (86_400_000, True)])
def test_a_bucket_that_a_step_back_left_in_the_future_is_dated_anew(back_ms, told):
    clock, file = Clock(), File()
    quota = Quota(1000, clock=clock)
    use(quota, grant(quota, file).sends)
    clock.step_ms = -back_ms
    clock.at_s += MINUTE_S
    wall = clock.wall_ms() // 60_000
    rows = {one.boot_minute: one.minute for one in grant(quota, file).rows}
    assert rows == ({START_MINUTE + 1: wall} if told else {}) | {START_MINUTE + 2: wall + 1}


def test_a_lease_that_is_abandoned_after_a_day_takes_nothing_out_of_the_new_one():
    clock = Clock()
    quota = Quota(100, clock=clock)
    quota.ready_at_s(0.0, high=True)
    lease = quota.wants_lease()
    assert lease is not None
    assert lease.sends == 1
    clock.at_s += 2 * DAY_S
    quota.abandoned(lease)
    assert quota.used() == 0
    assert [one.sent for one in grant(quota, File()).rows] == [1]


def test_a_lease_that_is_abandoned_after_midnight_takes_nothing_out_of_the_new_day():
    clock = Clock()
    quota = Quota(1000, clock=clock, day="utc")
    quota.ready_at_s(0.0, high=True)
    lease = quota.wants_lease()
    assert lease is not None
    clock.at_s += 43_200
    quota.ready_at_s(0.0, high=True)  # it learns of midnight
    quota.abandoned(lease)
    assert quota.used() == 0


def test_a_large_lease_is_halved_once_it_lasts():
    clock, file = Clock(), File()
    quota = Quota(25_100, clock=clock)  # 251 at most
    unused = grant(quota, file).sends
    for size in (200, 251):
        use(quota, unused // 2 + 1)
        unused += grant(quota, file).sends - unused // 2 - 1
        assert unused == size
    use(quota, 200)
    clock.at_s += 3.0
    assert grant(quota, file).sends == 125 - 51
