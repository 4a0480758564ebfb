"""The quota at its edges: which minute counts where, how large a lease is, and what is written to the file."""

import math

import pytest
from deliver_parts import NOON_MS, QuotaClock, QuotaFile, make_quota, send

from sidecar.deliver.quota import COUNTED_MAX, DailyCaps, Lease, Quota, QuotaRow
from sidecar.mapping import Cap, Priority

MINUTE_S = 60.0
DAY_S = 86_400.0
START_MINUTE = 1_666  # of the clock's boot: 100,000 s


def grant(quota: Quota, file: QuotaFile) -> Lease:
    """Return the lease that the quota wants, after it was committed and granted."""
    quota.ready_at_s(0.0, priority=Priority.HIGH)
    lease = quota.wants_lease()
    assert lease is not None
    file.commit(lease)
    quota.granted(lease)
    return lease


def use(quota: Quota, count: int) -> None:
    for _ in range(count):
        quota.take(priority=Priority.HIGH)


def row(clock: QuotaClock, minute: int, sent: int) -> QuotaRow:
    """Return a bucket of this boot, ``minute`` minutes ago."""
    at = int(clock.at_s // 60) - minute
    return QuotaRow(clock.wall_ms() // 60_000 - minute, clock.boot_id(), at, sent)


# --- when requests are allowed again ---


def test_minute_counts_until_all_of_it_is_a_day_old():
    clock = QuotaClock(boot_s=120_000.0)
    quota = make_quota(10, clock=clock, rows=[row(clock, 1000, 4), row(clock, 500, 6)])
    assert quota.used() == 10
    free_in_s = 60.0 * (1440 - 1000 + 1)
    assert quota.ready_at_s(0.0, priority=Priority.HIGH) == free_in_s
    assert quota.describe().free_in_s == free_in_s
    clock.at_s += free_in_s - 0.5
    assert quota.ready_at_s(0.0, priority=Priority.HIGH) == 0.5
    assert quota.wants_lease() is None
    clock.at_s += 0.5
    assert quota.used() == 6
    assert quota.ready_at_s(0.0, priority=Priority.HIGH) == math.inf


def test_bucket_older_than_a_day_is_not_loaded():
    clock = QuotaClock(boot_s=120_000.0)
    assert make_quota(10, clock=clock, rows=[row(clock, 1440, 4)]).used() == 4
    assert make_quota(10, clock=clock, rows=[row(clock, 1441, 4)]).used() == 0


def test_future_bucket_of_this_boot_counts_as_the_next_minute():
    clock = QuotaClock(boot_s=120_000.0)
    quota = make_quota(10, clock=clock, rows=[row(clock, -5, 10)])
    assert quota.ready_at_s(0.0, priority=Priority.HIGH) == DAY_S + 120.0


@pytest.mark.parametrize(("boot_s", "step_ms"), [(0.0, 0), (30.0, 0), (0.0, 20_000), (59.0, 59_000)])
def test_bucket_of_another_boot_is_dated_a_minute_later(boot_s, step_ms):
    clock = QuotaClock(boot_s=120_000.0 + boot_s)
    clock.step_ms = step_ms
    wall = clock.wall_ms() // 60_000
    quota = make_quota(10, clock=clock, rows=[QuotaRow(wall - 10, "another", 7, 10)])
    assert quota.ready_at_s(0.0, priority=Priority.HIGH) == DAY_S + 120.0 - 600.0 - boot_s


def test_hold_lasts_an_hour_or_until_the_day_is_free():
    clock = QuotaClock(boot_s=120_000.0)
    quota = make_quota(10, clock=clock, rows=[row(clock, 1400, 10)])
    quota.treat_as_spent()
    assert quota.ready_at_s(0.0, priority=Priority.HIGH) == 3600.0
    quota = make_quota(10, clock=clock, rows=[row(clock, 0, 10)])
    quota.treat_as_spent()
    assert quota.ready_at_s(0.0, priority=Priority.HIGH) == DAY_S + 60.0


# --- leases ---


@pytest.mark.parametrize(
    ("per_day", "sends"), [(1, 1), (99, 1), (100, 1), (199, 1), (200, 2), (9_999, 99), (10_000, 100), (10**6, 100)]
)
def test_first_lease_is_a_hundredth_of_the_day_up_to_100(per_day, sends):
    assert grant(make_quota(per_day, clock=QuotaClock()), QuotaFile()).sends == sends


def test_no_lease_is_wanted_before_a_request_is():
    quota, file = make_quota(1000, clock=QuotaClock()), QuotaFile()
    assert quota.wants_lease() is None
    grant(quota, file)
    assert quota.wants_lease() is None


def test_lease_is_wanted_once_less_than_half_is_left():
    quota, file = make_quota(10**6, clock=QuotaClock()), QuotaFile()
    grant(quota, file)
    use(quota, 50)
    assert quota.wants_lease() is None
    use(quota, 1)
    assert quota.wants_lease() is not None


@pytest.mark.parametrize(("lasted_s", "sends"), [(0.0, 151), (0.24, 151), (0.25, 51), (1.0, 51), (2.0, 51), (2.5, 51)])
def test_lease_half_used_within_250_ms_is_doubled(lasted_s, sends):
    clock, file = QuotaClock(), QuotaFile()
    quota = make_quota(10**6, clock=clock)
    grant(quota, file)
    clock.at_s += lasted_s
    use(quota, 51)
    assert grant(quota, file).sends == sends


@pytest.mark.parametrize(("lasted_s", "sends"), [(2.0, 101), (2.1, 1)])
def test_lease_that_lasts_longer_than_2_s_is_halved(lasted_s, sends):
    clock, file = QuotaClock(), QuotaFile()
    quota = make_quota(10**6, clock=clock)
    grant(quota, file)
    use(quota, 51)
    grant(quota, file)  # 200 now
    use(quota, 101)
    clock.at_s += lasted_s
    lease = grant(quota, file)
    assert lease.sends == sends


def test_used_up_lease_waits_for_the_next_one():
    quota, file = make_quota(1000, clock=QuotaClock()), QuotaFile()
    use(quota, grant(quota, file).sends)
    assert quota.ready_at_s(0.0, priority=Priority.HIGH) == math.inf


def test_lease_never_exceeds_a_hundredth_of_the_day():
    quota, file = make_quota(20_000, clock=QuotaClock()), QuotaFile()
    assert grant(quota, file).sends == 100
    use(quota, 51)
    assert grant(quota, file).sends == 151
    for _ in range(3):
        use(quota, 101)
        assert grant(quota, file).sends == 101


def test_last_lease_is_the_rest_of_the_day():
    clock, file = QuotaClock(), QuotaFile()
    quota = make_quota(120, clock=clock, rows=[row(clock, 5, 119)])
    assert grant(quota, file).sends == 1
    use(quota, 1)
    assert quota.ready_at_s(0.0, priority=Priority.HIGH) > DAY_S - 400
    assert quota.wants_lease() is None


def test_lease_is_valid_for_two_minutes_and_dated_in_the_second():
    clock, file = QuotaClock(), QuotaFile()
    quota = make_quota(1000, clock=clock)
    lease = grant(quota, file)
    assert lease.through_minute == START_MINUTE + 1
    assert [(bucket.boot_minute, bucket.sent) for bucket in lease.rows] == [(START_MINUTE + 1, 10)]
    assert lease.rows[0].minute == clock.wall_ms() // 60_000 + 1
    assert quota.ready_at_s(5.0, priority=Priority.HIGH) == 5.0
    clock.at_s += MINUTE_S
    assert quota.ready_at_s(5.0, priority=Priority.HIGH) == 5.0
    clock.at_s += MINUTE_S
    assert quota.ready_at_s(5.0, priority=Priority.HIGH) == math.inf, "the rest of it was returned"
    assert quota.used() == 0


def test_lease_ends_at_midnight_within_a_minute_of_the_boot_clock():
    """What was left of it was sent on the next day and counted on the last (simulation, seed 3004370)."""
    clock, file = QuotaClock(), QuotaFile()
    quota = make_quota(1000, clock=clock, day="utc")
    clock.at_s += DAY_S / 2 - 10
    grant(quota, file)
    use(quota, 1)
    minute = clock.boot_s() // 60
    clock.at_s += 10
    assert clock.boot_s() // 60 == minute
    assert quota.ready_at_s(5.0, priority=Priority.HIGH) == math.inf
    use(quota, grant(quota, file).sends)
    assert quota.used() == 10


def test_lease_that_is_granted_after_midnight_is_not_used():
    clock, file = QuotaClock(), QuotaFile()
    quota = make_quota(1000, clock=clock, day="utc")
    clock.at_s += DAY_S / 2 - 10
    quota.ready_at_s(5.0, priority=Priority.HIGH)
    lease = quota.wants_lease()
    clock.at_s += 10
    file.commit(lease)
    quota.granted(lease)
    assert quota.ready_at_s(5.0, priority=Priority.HIGH) == math.inf
    use(quota, grant(quota, file).sends)
    assert quota.used() == 10


def test_a_wait_that_is_too_short_for_a_float_is_a_wait():
    """A send was decided and then refused by the assertion of ``take`` (simulation, seed 3002947)."""
    clock = QuotaClock()
    quota = make_quota(1, clock=clock, rows=[row(clock, 5, 1)])
    clock.at_s = 60.0 * (clock.boot_s() // 60 - 5 + 1 + 1440) - 1e-10
    assert quota.ready_at_s(1e9, priority=Priority.HIGH) > 1e9


def test_lease_in_its_second_minute_is_replaced():
    clock, file = QuotaClock(), QuotaFile()
    quota = make_quota(1000, clock=clock)
    grant(quota, file)
    clock.at_s += MINUTE_S
    assert grant(quota, file).through_minute == START_MINUTE + 2
    quota.ready_at_s(0.0, priority=Priority.HIGH)
    assert quota.wants_lease() is None, "it is fresh, and full"


def test_lease_ends_with_the_calendar_day():
    clock = QuotaClock(boot_s=100_020.0)  # a whole minute
    clock.step_ms = 43_200_000 - 60_000
    late = make_quota(1000, clock=clock, day="utc")
    assert grant(late, QuotaFile()).through_minute == int(clock.at_s // 60)
    clock.step_ms -= 60_000
    early, file = make_quota(1000, clock=clock, day="utc"), QuotaFile()
    grant(early, file)
    clock.at_s += MINUTE_S
    early.ready_at_s(0.0, priority=Priority.HIGH)
    assert early.wants_lease() is None, "it is valid to the end of the day and full"
    clock.at_s -= MINUTE_S
    assert grant(make_quota(1000, clock=clock, day="utc"), QuotaFile()).through_minute == int(clock.at_s // 60) + 1
    clock.step_ms += 60_000
    assert grant(make_quota(1000, clock=clock), QuotaFile()).through_minute == int(clock.at_s // 60) + 1


# --- what is written to the file ---


def test_first_lease_replaces_all_rows_and_later_ones_theirs():
    clock, file = QuotaClock(), QuotaFile()
    quota = make_quota(1000, clock=clock, rows=[row(clock, 700, 3)])
    first = grant(quota, file)
    assert first.replaces_all
    assert [bucket.sent for bucket in first.rows] == [3, 10]
    use(quota, 6)
    second = grant(quota, file)
    assert not second.replaces_all
    assert [bucket.boot_minute for bucket in second.rows] == [START_MINUTE + 1]
    assert second.drop_before == START_MINUTE - 1440


def test_rows_of_an_abandoned_lease_are_written_again():
    clock, file = QuotaClock(), QuotaFile()
    quota = make_quota(1000, clock=clock)
    grant(quota, file)
    clock.at_s += MINUTE_S
    quota.ready_at_s(0.0, priority=Priority.HIGH)
    lost = quota.wants_lease()
    assert lost is not None
    quota.abandoned(lost)
    quota.ready_at_s(0.0, priority=Priority.HIGH)
    again = quota.wants_lease()
    assert again is not None
    assert [bucket.boot_minute for bucket in again.rows] == [bucket.boot_minute for bucket in lost.rows]
    assert not again.replaces_all


def test_first_lease_after_an_abandoned_one_replaces_all_rows():
    clock, file = QuotaClock(), QuotaFile()
    quota = make_quota(1000, clock=clock, rows=[row(clock, 700, 3)])
    quota.ready_at_s(0.0, priority=Priority.HIGH)
    quota.abandoned(quota.wants_lease())
    again = grant(quota, file)
    assert again.replaces_all
    assert [bucket.sent for bucket in again.rows] == [3, 10]


def test_closing_lease_returns_the_unused_sends():
    clock, file = QuotaClock(), QuotaFile()
    quota = make_quota(1000, clock=clock)
    grant(quota, file)
    use(quota, 3)
    clock.at_s += MINUTE_S
    last = quota.closing_lease()
    assert last.sends == 0
    assert (last.through_minute, last.drop_before) == (START_MINUTE + 1, START_MINUTE + 1 - 1440)
    file.commit(last)
    assert [bucket.sent for bucket in file.rows.values()] == [3]
    assert quota.used() == 3


# --- what status shows ---


def test_leased_but_unsent_requests_are_not_used():
    quota = make_quota(1000, clock=QuotaClock())
    assert quota.used() == 0
    quota.ready_at_s(0.0, priority=Priority.HIGH)
    lease = quota.wants_lease()
    assert lease is not None
    assert quota.used() == 0
    quota.granted(lease)
    use(quota, 2)
    assert (quota.describe().used, quota.describe().limit, quota.describe().by_px) == (2, 1000, False)


def test_status_is_current_after_idle_days():
    clock, file = QuotaClock(), QuotaFile()
    quota = make_quota(100, clock=clock)
    assert send(quota, file, 100) == 100
    clock.at_s += 2 * DAY_S
    assert quota.describe().used == 0
    quota = make_quota(100, clock=clock)
    quota.ready_at_s(0.0, priority=Priority.HIGH)
    clock.at_s += 10 * MINUTE_S
    lease = quota.wants_lease()
    assert lease is not None
    assert lease.through_minute == int(clock.at_s // 60) + 1


def test_normal_events_use_the_whole_day_without_a_reserve():
    quota, file = make_quota(1000, clock=QuotaClock()), QuotaFile()
    assert send(quota, file, 5000, priority=Priority.NORMAL) == 1000
    assert DAY_S < quota.ready_at_s(0.0, priority=Priority.NORMAL) <= DAY_S + 120


def test_spread_pace_of_a_spent_calendar_day_is_above_zero():
    clock, file = QuotaClock(), QuotaFile()
    quota = make_quota(100, clock=clock, day="utc", pace="spread")
    assert quota.pace_per_s() == 100 / 43_200
    assert send(quota, file, 100) == 100
    clock.at_s += MINUTE_S
    assert quota.pace_per_s() == pytest.approx(1 / (43_200 - 60), rel=0.01)


# --- the reserve ---


def reserved(clock: QuotaClock, *sent: tuple[int, int]) -> Quota:
    """Return a quota of 1,000 with a tenth reserved for high events; ``sent`` are pairs of minutes ago and requests."""
    rows = [row(clock, minutes_ago, requests) for minutes_ago, requests in sent]
    return make_quota(1000, clock=clock, reserve_for_high=0.1, rows=rows)


def in_s(minutes_ago: int) -> float:
    """Return when the sends of ``minutes_ago`` expire; the clock is at the start of a minute."""
    return 60.0 * (1440 - minutes_ago + 1)


def test_normal_events_wait_until_their_limit_is_free():
    clock = QuotaClock(boot_s=120_000.0)
    assert reserved(clock, (1000, 5), (500, 899)).ready_at_s(0.0, priority=Priority.NORMAL) == in_s(1000)
    assert reserved(clock, (1000, 5), (500, 900)).ready_at_s(0.0, priority=Priority.NORMAL) == in_s(500)
    assert reserved(clock, (1000, 5), (500, 900)).describe().free_in_s == in_s(500)


def test_leases_of_high_events_delay_normal_ones():
    clock, file = QuotaClock(boot_s=120_000.0), QuotaFile()
    quota = reserved(clock, (1000, 20), (500, 880))
    assert quota.ready_at_s(0.0, priority=Priority.NORMAL) == in_s(1000)
    assert send(quota, file, 50, priority=Priority.HIGH) == 50
    assert quota.ready_at_s(0.0, priority=Priority.NORMAL) == in_s(500)


def test_sends_of_high_events_delay_normal_ones():
    clock, file = QuotaClock(boot_s=120_000.0), QuotaFile()
    quota = reserved(clock, (1000, 5), (500, 895))
    grant(quota, file)
    assert quota.ready_at_s(0.0, priority=Priority.NORMAL) == in_s(1000)
    use(quota, 10)
    clock.at_s += in_s(1000)
    assert quota.ready_at_s(0.0, priority=Priority.NORMAL) == in_s(500) - in_s(1000)


def test_normal_events_do_not_wait_while_nothing_is_used():
    assert make_quota(1000, clock=QuotaClock()).describe().free_in_s == 0.0


# --- how a bucket is dated ---


@pytest.mark.parametrize("ahead", [0, 1, 5, 10**6])
def test_future_bucket_of_another_boot_counts_as_next_minute(ahead):
    clock = QuotaClock(boot_s=120_000.0)
    wall = clock.wall_ms() // 60_000
    quota = make_quota(1000, clock=clock, rows=[QuotaRow(wall + ahead, "another", 7, 1000)])
    assert quota.ready_at_s(0.0, priority=Priority.HIGH) == DAY_S + 120.0
    quota = make_quota(1000, clock=clock, rows=[QuotaRow(wall + ahead, "another", 7, 3)])
    assert grant(quota, QuotaFile()).rows[0].minute == wall + min(ahead, 1)


def test_finished_minute_is_not_written_again():
    clock, file = QuotaClock(), QuotaFile()
    quota = make_quota(1000, clock=clock)
    use(quota, grant(quota, file).sends)
    clock.at_s += MINUTE_S
    assert [bucket.boot_minute for bucket in grant(quota, file).rows] == [START_MINUTE + 2]


@pytest.mark.parametrize(("back_ms", "dated_again"), [(60_000, False), (120_000, True), (86_400_000, True)])
def test_bucket_left_in_the_future_by_a_step_back_is_redated(back_ms, dated_again):
    clock, file = QuotaClock(), QuotaFile()
    quota = make_quota(1000, clock=clock)
    use(quota, grant(quota, file).sends)
    clock.step_ms = -back_ms
    clock.at_s += MINUTE_S
    wall = clock.wall_ms() // 60_000
    rows = {bucket.boot_minute: bucket.minute for bucket in grant(quota, file).rows}
    assert rows == ({START_MINUTE + 1: wall} if dated_again else {}) | {START_MINUTE + 2: wall + 1}


def test_lease_abandoned_after_a_day_leaves_the_new_day_alone():
    clock = QuotaClock()
    quota = make_quota(100, clock=clock)
    quota.ready_at_s(0.0, priority=Priority.HIGH)
    lease = quota.wants_lease()
    assert lease is not None
    assert lease.sends == 1
    clock.at_s += 2 * DAY_S
    quota.abandoned(lease)
    assert quota.used() == 0
    assert [bucket.sent for bucket in grant(quota, QuotaFile()).rows] == [1]


def test_lease_abandoned_after_midnight_leaves_the_day_alone():
    clock = QuotaClock()
    quota = make_quota(1000, clock=clock, day="utc")
    quota.ready_at_s(0.0, priority=Priority.HIGH)
    lease = quota.wants_lease()
    assert lease is not None
    clock.at_s += 43_200
    quota.ready_at_s(0.0, priority=Priority.HIGH)  # notices midnight
    quota.abandoned(lease)
    assert quota.used() == 0


def test_large_lease_is_halved_once_it_lasts():
    clock, file = QuotaClock(), QuotaFile()
    quota = make_quota(25_100, clock=clock)  # 251 at most
    unused = grant(quota, file).sends
    for size in (200, 251):
        use(quota, unused // 2 + 1)
        unused += grant(quota, file).sends - unused // 2 - 1
        assert unused == size
    use(quota, 200)
    clock.at_s += 3.0
    assert grant(quota, file).sends == 125 - 51


def test_closing_lease_keeps_the_rows_of_an_open_first_lease():
    """A stop while the first lease was open deleted all rows and wrote none: the whole day was forgotten."""
    clock, file = QuotaClock(), QuotaFile()
    assert send(make_quota(10, clock=clock), file, 4) == 4
    stopped = make_quota(10, clock=clock, rows=file.rows.values())
    stopped.ready_at_s(0.0, priority=Priority.NORMAL)
    assert stopped.wants_lease() is not None
    file.commit(stopped.closing_lease())
    assert send(make_quota(10, clock=clock, rows=file.rows.values()), file, 100) <= 6


def test_a_place_that_is_given_back_can_be_taken_again():
    caps, cap = DailyCaps(), Cap("Feature Used", 2)
    first = caps.take(cap, 0)
    assert first is not None
    assert caps.take(cap, 0) is not None
    assert caps.take(cap, 0) is None
    caps.give_back(first)
    assert caps.take(cap, 0) == first
    assert caps.take(cap, 0) is None


def test_counts_of_days_that_are_over_are_dropped_once_they_are_many():
    day_ms = 86_400_000
    caps, cap = DailyCaps(), Cap("Feature Used", 1)
    assert caps.take(cap, 0) is not None
    for number in range(COUNTED_MAX):
        assert caps.take(Cap(f"name {number}", 1), 9 * day_ms)
    assert caps.take(cap, 0) is None
    assert caps.take(Cap("one more", 1), 9 * day_ms)
    assert caps.take(cap, 0) is not None  # its count of that day was dropped
    assert caps.take(Cap("name 0", 1), 9 * day_ms) is None


@pytest.mark.parametrize("day", ["rolling", "utc"])
def test_permission_holds_if_the_day_ends_before_the_send(day):
    """An event is mapped between the question and the send: an AssertionError ended the daemon, at midnight for example."""
    clock, file = QuotaClock(), QuotaFile()
    clock.at_s += NOON_MS / 1000 + DAY_S / 2 - clock.wall_ms() / 1000 - 0.001  # just before midnight
    quota = make_quota(1000, clock=clock, day=day)
    quota.ready_at_s(0.0, priority=Priority.NORMAL)
    lease = quota.wants_lease()
    file.commit(lease)
    quota.granted(lease)
    if day == "rolling":
        clock.at_s = 60 * (lease.through_minute + 1) - 0.001
    assert quota.ready_at_s(0.0, priority=Priority.NORMAL) == 0.0
    clock.at_s += 0.002
    quota.take(priority=Priority.NORMAL)
    assert quota.ready_at_s(0.0, priority=Priority.NORMAL) > 0.0, "the lease is over for the next one"
