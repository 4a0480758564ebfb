"""No 24 hours hold more than the quota, whatever crashes and clocks do; and nothing waits longer than it must."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.deliver.quota import DAY_S, Lease, Quota, QuotaRow

NOON_MS = 1_700_000_000_000 // 86_400_000 * 86_400_000 + 43_200_000


class Clock:
    """Boot and wall clock, moved by hand."""

    def __init__(self, boot_s: float = 100_000.0) -> None:
        self.at_s, self.boot, self.step_ms = boot_s, "boot-1", 0
        self._wall_ms = NOON_MS - int(boot_s * 1000)

    def boot_s(self) -> float:
        return self.at_s

    def wall_ms(self) -> int:
        return self._wall_ms + int(self.at_s * 1000) + self.step_ms

    def boot_id(self) -> str:
        return self.boot

    def monotonic_s(self) -> float:
        return self.at_s

    def reboot(self, off_s: float, boot_s: float) -> None:
        self._wall_ms += int((self.at_s + off_s - boot_s) * 1000)
        self.at_s, self.boot = boot_s, self.boot + "'"


class File:
    """The quota's table, as the outbox keeps it."""

    def __init__(self) -> None:
        self.rows: dict[tuple, QuotaRow] = {}

    def commit(self, lease: Lease) -> None:
        given_minutes = {row.boot_minute for row in lease.rows}
        self.rows = {
            key: row
            for key, row in self.rows.items()
            if not (lease.replaces_all or row.boot_minute < lease.drop_before or row.boot_minute in given_minutes)
        }
        self.rows |= {row[:3]: row for row in lease.rows}


def send(quota: Quota, file: File, most: int, *, high: bool = False) -> int:
    """Send up to ``most`` requests now; how many could go."""
    sent = 0
    while sent < most:
        ready_s = quota.ready_at_s(0.0, high=high)
        if ready_s == 0.0:
            quota.take(high=high)
            sent += 1
        lease = quota.wants_lease()
        if lease is not None:
            file.commit(lease)
            quota.granted(lease)
        elif ready_s > 0.0:
            break
    return sent


def most_in_24_hours(sends: list[tuple[float, int]]) -> int:
    """The largest number sent in any half-open 24 hours; ``sends`` are (time, count) in order of time."""
    most = total = first = 0
    for at_s, count in sends:
        total += count
        while at_s - sends[first][0] >= DAY_S:
            total -= sends[first][1]
            first += 1
        most = max(most, total)
    return most


def test_a_quota_is_used_to_the_last_request_and_free_again_when_its_first_minute_is_a_day_old():
    clock, file = Clock(), File()
    quota = Quota(1000, clock=clock)
    started_s = clock.at_s
    assert send(quota, file, 5000) == 1000
    wait_s = quota.ready_at_s(0.0, high=True)
    assert DAY_S < wait_s <= DAY_S + 180
    assert quota.describe().free_in_s == wait_s
    clock.at_s += wait_s - 0.001
    assert send(quota, file, 5000) == 0
    clock.at_s += 0.001
    assert send(quota, file, 5000) > 0
    assert clock.at_s > started_s + DAY_S


@pytest.mark.parametrize("per_day", [1, 2, 10, 99])
def test_small_quotas_are_exact(per_day):
    quota, file = Quota(per_day, clock=Clock()), File()
    assert send(quota, file, 500) == per_day
    assert quota.used() == per_day


def test_normal_events_leave_the_reserve_to_high_ones():
    quota, file = Quota(1000, clock=Clock(), reserve_for_high=0.1), File()
    assert send(quota, file, 5000) == 900
    assert quota.ready_at_s(0.0, high=True) < math.inf
    assert send(quota, file, 5000, high=True) == 100


def test_a_reserve_never_stops_normal_events_for_good():
    assert send(Quota(1, clock=Clock(), reserve_for_high=0.9), File(), 10) == 1


def test_calendar_days_begin_at_midnight_utc():
    clock, file = Clock(), File()
    quota = Quota(1000, clock=clock, day="utc")
    assert send(quota, file, 5000) == 1000
    assert quota.ready_at_s(7.0, high=False) == 7.0 + 43_200
    clock.at_s += 43_200 - 1
    assert send(quota, file, 5000) == 0
    clock.at_s += 1
    assert send(quota, file, 5000) == 1000


def test_a_calendar_day_is_not_begun_again_by_a_clock_that_steps_forward_and_back():
    clock, file = Clock(), File()
    quota = Quota(1000, clock=clock, day="utc")
    assert send(quota, file, 600) == 600
    clock.step_ms = 86_400_000
    assert send(quota, file, 300) == 300
    clock.step_ms = 0
    assert send(quota, file, 5000) == 100
    clock.step_ms = -86_400_000
    assert send(quota, file, 5000) == 0


def test_sends_up_to_midnight_count_in_their_own_day():
    clock, file = Clock(), File()
    quota = Quota(1000, clock=clock, day="utc")
    for _ in range(100):
        clock.at_s += 43_150 / 100
        send(quota, file, 5)
    clock.at_s = 100_000 + 43_200
    assert send(quota, file, 5000) == 1000


def test_a_crash_costs_at_most_a_lease_and_a_clean_stop_nothing():
    clock, file = Clock(), File()
    quota = Quota(100_000, clock=clock)
    for _ in range(150):
        clock.at_s += 1 / 190
        send(quota, file, 1)
    after_crash = Quota(100_000, clock=clock, rows=file.rows.values())
    assert 150 <= after_crash.used() <= 250
    file.commit(quota.given_back())
    assert Quota(100_000, clock=clock, rows=file.rows.values()).used() == 150


def test_leases_grow_with_the_pace_and_shrink_again():
    clock, file = Clock(), File()
    quota = Quota(10_000_000, clock=clock)

    def largest_lease(per_second: int) -> int:
        leases = []
        for _ in range(per_second * 5):
            clock.at_s += 1 / per_second
            if quota.ready_at_s(0.0, high=False) == 0.0:
                quota.take(high=False)
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


def test_what_two_processes_sent_is_known_to_the_third():
    clock, file = Clock(), File()
    for sent in (400, 500, 100, 0):
        quota = Quota(1000, clock=clock, rows=file.rows.values())
        assert send(quota, file, sent) == sent
        file.commit(quota.given_back())
        clock.at_s += 600
    assert send(quota, file, 5000) == 0


def test_a_lease_left_over_at_midnight_is_of_no_concern_to_the_new_day():
    clock, file = Clock(), File()
    quota = Quota(1000, clock=clock, day="utc")
    send(quota, file, 3)
    clock.at_s += 86_400
    assert quota.used() == 0
    assert send(quota, file, 5000) == 1000


def test_a_lease_that_cannot_be_committed_costs_nothing():
    clock, file = Clock(), File()
    quota = Quota(1000, clock=clock)
    for _ in range(500):
        assert quota.ready_at_s(0.0, high=False) == math.inf
        lease = quota.wants_lease()
        assert quota.wants_lease() is None
        quota.abandoned(lease)
    assert send(quota, file, 5000) == 1000
    assert sum(row.sent for row in file.rows.values()) == 1000


def test_nothing_is_written_while_nothing_is_sent():
    clock, file = Clock(), File()
    quota = Quota(1000, clock=clock)
    send(quota, file, 3)
    leases = []
    for _ in range(100):
        clock.at_s += 60
        if lease := quota.wants_lease():
            leases.append(lease)
            quota.granted(lease)
    assert len(leases) <= 1, "the last send may have asked for the next"
    assert quota.used() == 3


def test_rows_of_an_earlier_boot_are_dated_by_the_wall_clock():
    clock, file = Clock(), File()
    send(Quota(1000, clock=clock), file, 1000)
    clock.reboot(off_s=3600, boot_s=12.0)
    quota = Quota(1000, clock=clock, rows=file.rows.values())
    assert DAY_S - 3600 < quota.ready_at_s(0.0, high=True) <= DAY_S - 3600 + 240


def test_a_row_from_the_future_counts_as_of_now():
    clock = Clock()
    row = QuotaRow(clock.wall_ms() // 60_000 + 10**6, "another boot", 5, 1000)
    quota = Quota(1000, clock=clock, rows=[row])
    assert DAY_S < quota.ready_at_s(0.0, high=True) <= DAY_S + 180


def test_the_file_forgets_minutes_that_have_left():
    clock, file = Clock(), File()
    quota = Quota(10**6, clock=clock)
    for _ in range(3000):
        clock.at_s += 60
        send(quota, file, 1)
    assert 1440 <= len(file.rows) <= 1444


def test_pace():
    clock, file = Clock(), File()
    assert Quota(864_000, clock=clock).pace_per_s() == math.inf
    assert Quota(864_000, clock=clock, pace="spread").pace_per_s() == 10
    calendar = Quota(43_200, clock=clock, pace="spread", day="utc")
    assert calendar.pace_per_s() == pytest.approx(1.0, rel=0.01)
    send(calendar, file, 21_600)
    clock.at_s += 60
    assert calendar.pace_per_s() == pytest.approx(0.5, rel=0.01)


@pytest.mark.parametrize(("day", "wait_s"), [("rolling", 3600), ("utc", 43_200)])
def test_a_day_that_px_calls_spent_waits_and_then_goes_on(day, wait_s):
    clock, file = Clock(), File()
    quota = Quota(1000, clock=clock, day=day)
    send(quota, file, 10)
    quota.treat_as_spent()
    assert quota.describe().by_px
    assert quota.ready_at_s(0.0, high=True) == wait_s
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
    rng, clock, file = random.Random(seed), Clock(), File()
    quota, sends, true_s = Quota(per_day, clock=clock), [], 0.0
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
            quota = Quota(per_day, clock=clock, rows=file.rows.values())
        sends.append((true_s, send(quota, file, rng.choice([1, 50, per_day]), high=rng.random() < 0.5)))
        assert quota.used() <= per_day
    assert most_in_24_hours(sends) <= per_day


def test_a_day_with_three_times_the_quota_uses_all_of_it():
    clock, file, sent = Clock(), File(), 0
    quota = Quota(9_900, clock=clock)
    for _ in range(3 * 1440):
        clock.at_s += 60
        sent += send(quota, file, 21)
    assert sent >= 3 * 9_900 * 0.99


def test_when_the_rest_of_the_day_is_leased_no_lease_of_nothing_is_asked_for():
    """Each grant woke the dispatcher, which asked again: the loop turned, with a commit each time, until it was sent."""
    clock, file = Clock(), File()
    quota = Quota(300, clock=clock)
    assert send(quota, file, 299) == 299
    quota.ready_at_s(0.0, high=False)
    assert quota.wants_lease() is None
    assert send(quota, file, 10) == 1
