"""Delivery by a clock that is wrong: the day's quota, names' `per_day`, `max_age`, retries and the date of an event."""

import math
import random

import msgspec
import pytest
from deliver_parts import QuotaFile, make_quota, send
from dispatcher_harness import CREATED, DispatcherHarness, settlement, track
from host_clock import DAY, HOUR, IN_1970, JUMPS, MINUTE, NOW_MS, HostClock, S
from hypothesis import given
from hypothesis import strategies as st

from sidecar.deliver.actions import Send, Settle, WaitUntil
from sidecar.deliver.retry import FAILING_COUNT
from sidecar.mapping import Priority
from sidecar.outbox import ClockTrust
from sidecar.outbox.clock_trust import ClockRecord
from sidecar.px import PxAnswer

BUSY = PxAnswer(503, b"{}")


class QuotaHost:
    """A quota over boots and processes; the record of the clock survives as in the outbox."""

    def __init__(self, clock: HostClock, day: str, per_day: int = 100) -> None:
        self.clock, self.file, self.day, self.per_day = clock, QuotaFile(), day, per_day
        self.sent: list[int] = []  # true times
        self.record: ClockRecord | None = None
        self.restart()

    def restart(self) -> None:
        self.trust = ClockTrust(self.clock, self.record)
        self.quota = make_quota(
            self.per_day,
            clock=self.clock,
            rows=self.file.rows.values(),
            trust=self.trust,
            day=self.day,
        )

    def send(self, most: int) -> int:
        if (text := self.trust.record_due(0, with_rows=True)) is not None:
            self.record = msgspec.json.decode(text, type=ClockRecord)
            self.trust.recorded()
        sent = send(self.quota, self.file, most)
        self.sent += [self.clock.true_ms] * sent
        return sent

    def most_in_a_day(self) -> int:
        if self.day == "utc":
            days = [at_ms // DAY for at_ms in self.sent]
            return max(map(days.count, set(days)), default=0)
        return max((sum(at_ms - DAY < other <= at_ms for other in self.sent) for at_ms in set(self.sent)), default=0)


@pytest.mark.parametrize("day", ["rolling", "utc"])
@pytest.mark.parametrize("jump_ms", JUMPS)
def test_a_clock_that_is_wrong_at_boot_loses_no_quota_record(jump_ms, day):
    host = QuotaHost(HostClock(up_ms=5 * HOUR), day)
    assert host.send(200) == 100
    host.clock.reboot()
    host.clock.error_ms = jump_ms
    host.restart()
    assert host.send(200) == 0
    assert host.quota.used() == 100
    host.clock.true_ms += 20 * MINUTE
    host.clock.error_ms = 0
    assert host.send(200) == 0
    host.restart()  # the rows in the file are as they were
    assert host.quota.used() == 100
    host.clock.true_ms += HOUR
    if day == "rolling":
        assert host.send(200) == 0
    host.clock.true_ms += DAY - HOUR
    assert host.send(200) == 100
    assert host.most_in_a_day() == 100


@pytest.mark.parametrize("day", ["rolling", "utc"])
@pytest.mark.parametrize("jump_ms", JUMPS)
def test_a_clock_that_is_wrong_for_seconds_frees_no_quota(jump_ms, day):
    host = QuotaHost(HostClock(up_ms=5 * HOUR), day)
    assert host.send(60) == 60
    host.clock.error_ms = jump_ms
    host.clock.true_ms += S
    assert host.send(200) == 40
    host.clock.true_ms += 20 * S
    host.clock.error_ms = 0
    for _ in range(70):
        assert host.send(200) == 0
        host.clock.true_ms += MINUTE
    assert host.quota.used() == 100
    host.clock.true_ms += DAY - HOUR
    assert host.send(200) == 100


@pytest.mark.parametrize("jump_ms", JUMPS)
@pytest.mark.parametrize("second", range(0, 60, 13))
def test_a_boot_whose_clock_was_wrong_for_a_second_keeps_its_requests(second, jump_ms):
    """Its lease was dated a minute ahead, by a time that the clock never showed (simulation, seed 3001839)."""
    host = QuotaHost(HostClock(up_ms=5 * HOUR), "rolling")
    host.clock.true_ms += second * S
    host.clock.reboot()
    host.clock.error_ms = jump_ms
    host.restart()
    assert host.send(60) == 60
    host.clock.true_ms += S
    host.clock.error_ms = 0
    assert host.send(200) == 40
    host.clock.reboot()
    host.restart()
    for _ in range(70):
        assert host.send(200) == 0
        host.clock.true_ms += MINUTE


@pytest.mark.parametrize("jump_ms", JUMPS)
def test_what_a_wrong_clock_dated_has_its_true_date_in_the_file(jump_ms):
    clock = HostClock(up_ms=S)
    clock.error_ms = jump_ms
    host = QuotaHost(clock, "rolling")
    assert host.send(60) == 60
    clock.error_ms = 0
    for _ in range(70):
        clock.true_ms += MINUTE
        host.send(0)
    assert host.send(1) == 1
    clock.reboot()
    host.restart()
    for _ in range(70):
        clock.true_ms += MINUTE
        host.send(200)
    assert 99 <= host.most_in_a_day() <= 100  # the reboot costs the rest of a lease


@given(st.integers(0, 2**32), st.sampled_from(["rolling", "utc"]))
def test_no_day_holds_more_whatever_the_clock_shows(seed, day):
    rng = random.Random(seed)
    host = QuotaHost(HostClock(up_ms=2 * HOUR), day)
    host.send(1)
    for _ in range(15):
        what = rng.choice(["go", "go", "restart", "boot"])
        if what == "boot":
            host.clock.reboot(rng.choice([S, MINUTE, HOUR]))
        host.clock.error_ms = rng.choice([0, *{0, *JUMPS} - {host.clock.error_ms}])
        if what != "go":
            host.restart()
        for _ in range(rng.choice([1, 3])):
            host.send(rng.choice([1, 30, 200]))
            host.clock.true_ms += rng.choice([S, 10 * MINUTE, 19 * MINUTE])
        if host.clock.error_ms == 0:
            host.clock.true_ms += rng.choice([0, HOUR, 20 * HOUR, DAY])
    assert host.most_in_a_day() <= 100


# The dispatcher -------------------------------------------------------------------------------------------------------


class HarnessClock(HostClock):
    """The clocks of a host, beside the dispatcher's monotonic time."""

    @property
    def now_s(self) -> float:
        return (self.true_ms - NOW_MS) / 1000 + 100.0

    @now_s.setter
    def now_s(self, now_s: float) -> None:
        self.true_ms = NOW_MS + math.ceil((now_s - 100.0) * 1000)

    def monotonic_s(self) -> float:
        return self.now_s


def harness_with(clock: HarnessClock, config: str = "", received_ms: int | None = None) -> DispatcherHarness:
    received_ms = clock.wall_ms() if received_ms is None else received_ms
    return DispatcherHarness(config, rows=[track(1)._replace(received_ms=received_ms)], clock=clock)


@pytest.mark.parametrize("jump_ms", JUMPS)
def test_a_wrong_clock_makes_nothing_too_old(jump_ms):
    clock = HarnessClock(up_ms=5 * HOUR)
    harness = harness_with(clock, '[deliver]\nmax_age = "30m"')
    clock.error_ms = jump_ms
    clock.now_s += 600.0
    assert isinstance(harness.wait_and_send(), Send)


@pytest.mark.parametrize("jump_ms", JUMPS)
def test_a_clock_that_is_wrong_at_boot_makes_nothing_too_old(jump_ms):
    clock = HarnessClock(up_ms=5 * HOUR)
    received_ms = clock.wall_ms()
    clock.reboot()
    clock.error_ms = jump_ms
    assert isinstance(harness_with(clock, '[deliver]\nmax_age = "30m"', received_ms).wait_and_send(), Send)


def test_max_age_counts_from_the_true_receipt_after_a_jump():
    clock = HarnessClock(up_ms=5 * HOUR)
    clock.error_ms = -40 * DAY
    harness = harness_with(clock, '[deliver]\nmax_age = "2h"')
    clock.error_ms = 0
    harness.dispatcher.decide(clock.now_s)
    clock.now_s += 3600 + 1800
    assert isinstance(harness.next(), Send)
    harness = harness_with(clock, '[deliver]\nmax_age = "1h"', received_ms=clock.wall_ms() - 2 * HOUR)
    (action,) = [harness.next()]
    assert isinstance(action, Settle)
    assert action.settlement.reason == "too_old"


def test_delivery_waits_for_the_clock_and_dates_the_event_rightly():
    clock = HarnessClock()
    clock.error_ms = IN_1970
    harness = harness_with(clock)
    received_ms = clock.true_ms
    waits = harness.next()
    assert isinstance(waits, WaitUntil)
    assert waits.until_s == pytest.approx(clock.now_s + 600, abs=1)
    clock.now_s += 30
    clock.error_ms = 0
    sent = harness.send()
    assert sent.request.body is not None
    assert f'"date":{received_ms}'.encode() in sent.request.body


def test_delivery_waits_for_the_clock_for_ten_minutes_only():
    clock = HarnessClock()
    clock.error_ms = IN_1970
    harness = harness_with(clock)
    began_s = clock.now_s
    harness.wait_and_send()
    assert 600 <= clock.now_s - began_s < 602


def test_what_a_rule_drops_does_not_wait_for_the_clock():
    clock = HarnessClock()
    clock.error_ms = IN_1970
    harness = harness_with(clock, '[mapping.events]\n"Logged In" = ""')
    action = harness.next()
    assert isinstance(action, Settle)
    assert action.settlement.reason == "mapped_to_nothing"


@pytest.mark.parametrize("jump_ms", JUMPS)
def test_a_wrong_clock_adds_no_time_to_failures(jump_ms):
    """An event is given up after failing for a day while others succeed; a jump is not a day."""
    clock = HarnessClock(up_ms=5 * HOUR)
    harness = harness_with(clock)
    others = delivered = failed = 0
    while failed < 2 * FAILING_COUNT:
        sent = harness.wait_and_send()
        if sent.event.id != 1:
            harness.dispatcher.settled([settlement(harness.reply(sent, CREATED))])
            delivered += 1
            continue
        (written,) = harness.reply(sent, BUSY)
        assert not isinstance(written, Settle), f"given up after {failed} failures"
        failed += 1
        clock.error_ms = jump_ms if failed % 2 else 0
        others += 1
        harness.rows.append(track(1 + others, f"u{others}")._replace(received_ms=NOW_MS))
        harness.dispatcher.accepted()
    assert delivered > FAILING_COUNT


def test_a_wrong_clock_gives_no_second_day_to_a_name():
    clock = HarnessClock(up_ms=5 * HOUR)
    config = '[mapping.event."Logged In"]\nper_day = 1'
    rows = [track(number, f"u{number}")._replace(received_ms=NOW_MS) for number in (1, 2, 3)]
    harness = DispatcherHarness(config, rows=rows, clock=clock)
    harness.reply(harness.send(), CREATED)
    clock.error_ms = 2 * DAY
    action = harness.next()
    assert isinstance(action, Settle)
    assert action.settlement.reason == "capped"
    clock.error_ms = 0
    action = harness.next()
    assert isinstance(action, Settle)
    assert action.settlement.reason == "capped"


@pytest.mark.parametrize("priority", [Priority.NORMAL])
def test_undated_rows_of_earlier_boots_stay_in_the_file(priority):
    host = QuotaHost(HostClock(up_ms=5 * HOUR), "rolling")
    host.send(50)
    before = dict(host.file.rows)
    host.clock.reboot()
    host.restart()
    host.send(20)
    assert before.items() <= host.file.rows.items()
    host.clock.true_ms += HOUR
    host.send(1)
    assert {row.boot_id for row in host.file.rows.values()} == {host.clock.boot_id()}
    assert sum(row.sent for row in host.file.rows.values()) >= 71
