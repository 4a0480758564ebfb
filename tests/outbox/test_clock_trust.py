"""A wrong clock discards nothing: boots, jumps and restarts at every step of retention and dedup, with the account exact."""

import random

import pytest
from host_clock import DAY, HOUR, IN_1970, JUMPS, MINUTE, NOW_MS, HostClock, S
from hypothesis import given
from hypothesis import strategies as st
from outbox_files import check_counters, dead, delivered, event

from sidecar.outbox import ClockTrust, Retention, Store, load_clock_record
from sidecar.outbox.clock_trust import CLOCK_RECORD, AgeScale, ClockSpan
from sidecar.outbox.dedup import digest_of

KEEP_MS, KEEP_DEAD_MS, KEEP_IDS_MS = DAY, 30 * DAY, DAY


class Host:
    """A host with an outbox that stores, settles and prunes as the writer does; it knows the true age of all."""

    def __init__(self, store: Store, clock: HostClock) -> None:
        self.store, self.clock = store, clock
        self.settled_ms: dict[int, int] = {}  # event id -> true time
        self.trust = ClockTrust(clock, load_clock_record(store))

    def transact(self, call) -> None:
        now_ms = self.clock.wall_ms()
        record = self.trust.record_due(self.store.counters["next_id"], with_rows=True)
        with self.store.transaction():
            if record is not None:
                self.store.set_meta(CLOCK_RECORD, record)
            call(now_ms)
        if record is not None:
            self.trust.recorded()

    def settle_two(self) -> None:
        """Store two events, deliver one, and have the other one refused."""
        first = self.store.counters["next_id"] + 1
        ids = (first, first + 1)
        self.transact(lambda now_ms: self.store.accept([[event(f"n{number}") for number in ids]], now_ms))
        self.transact(lambda now_ms: self.store.settle([delivered(ids[0]), dead(ids[1])], now_ms))
        self.transact(lambda _now_ms: self.store.flush_ids(everything=True))
        self.settled_ms |= dict.fromkeys(ids, self.clock.true_ms)

    def prune(self) -> None:
        retention = Retention(delivered_ms=KEEP_MS, ids_ms=KEEP_IDS_MS, dead_ms=KEEP_DEAD_MS, max_users=10)
        scale = self.trust.scale()
        for _ in range(4):
            self.transact(lambda now_ms: retention.prune_step(self.store, now_ms, scale=scale))
        self.trust.forget_spans(retention.longest_ms)

    def run(self, length_ms: int) -> None:
        """Let time pass, with rows at the beginning and the end, and housekeeping in between."""
        self.settle_two()
        end_ms = self.clock.true_ms + length_ms
        for step_ms in (S, MINUTE, 10 * MINUTE):
            if self.clock.true_ms + step_ms < end_ms:
                self.clock.true_ms += step_ms
                self.prune()
                self.check()
        self.clock.true_ms = end_ms
        self.settle_two()
        self.prune()
        self.check()

    def check(self) -> None:
        """Nothing is gone before its time."""
        dead_ids = {row[0] for row in self.store.connection.execute("SELECT id FROM dead")}
        rows = {row[0] for row in self.store.connection.execute("SELECT id FROM events")}
        for event_id, settled_ms in self.settled_ms.items():
            age_ms, is_dead = self.clock.true_ms - settled_ms, event_id % 2 == 0
            assert age_ms > (KEEP_DEAD_MS if is_dead else KEEP_MS) - 2 * S or event_id in (
                dead_ids if is_dead else rows
            )
            if age_ms < KEEP_IDS_MS - 2 * S or event_id in dead_ids:
                digest = digest_of(0, f"mn{event_id}", "track", "Searched")
                assert not self.store.ids.unseen([digest]), f"the id of event {event_id} is forgotten after {age_ms} ms"
        check_counters(self.store)

    def grow_old(self, ms: int) -> None:
        """Let time pass with a right clock, and check at the times at which something could go."""
        began_ms = self.clock.true_ms
        for at_ms in (30 * MINUTE, 59 * MINUTE, 61 * MINUTE, DAY - HOUR, DAY + 2 * HOUR, 2 * DAY, 3 * DAY, 10 * DAY):
            if at_ms < ms:
                self.clock.true_ms = began_ms + at_ms
                self.prune()
                self.check()
        self.clock.true_ms = began_ms + ms
        self.prune()
        self.check()


def wrong_at_boot(host: Host, jump_ms: int) -> None:
    """The clock is wrong for half a minute after a boot."""
    host.clock.reboot()
    host.clock.error_ms = jump_ms
    host.trust = ClockTrust(host.clock, load_clock_record(host.store))
    host.run(30 * S)
    host.clock.error_ms = 0


def wrong_for_a_boot(host: Host, jump_ms: int) -> None:
    """The clock is wrong for a whole boot of twenty minutes."""
    wrong_at_boot(host, jump_ms)
    host.clock.error_ms = jump_ms
    host.run(20 * MINUTE)
    host.clock.reboot()
    host.clock.error_ms = 0
    host.trust = ClockTrust(host.clock, load_clock_record(host.store))


def wrong_for_seconds(host: Host, jump_ms: int) -> None:
    host.clock.error_ms = jump_ms
    host.run(20 * S)
    host.clock.error_ms = 0


def wrong_and_restarted(host: Host, jump_ms: int) -> None:
    """Processes end and begin while the clock is wrong, and jumps fall between two processes."""
    host.clock.error_ms = jump_ms
    host.trust = ClockTrust(host.clock, load_clock_record(host.store))
    host.run(20 * S)
    host.trust = ClockTrust(host.clock, load_clock_record(host.store))
    host.run(30 * MINUTE)
    host.clock.error_ms = 0
    host.trust = ClockTrust(host.clock, load_clock_record(host.store))


def wrong_until_a_reboot(host: Host, jump_ms: int) -> None:
    wrong_for_seconds(host, jump_ms)
    host.clock.error_ms = jump_ms
    host.run(10 * MINUTE)
    host.clock.reboot()
    host.clock.error_ms = 0
    host.trust = ClockTrust(host.clock, load_clock_record(host.store))


TROUBLES = [wrong_at_boot, wrong_for_a_boot, wrong_for_seconds, wrong_and_restarted, wrong_until_a_reboot]


@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda trouble: trouble.__name__)
@pytest.mark.parametrize("jump_ms", JUMPS)
def test_a_wrong_clock_discards_nothing(store, jump_ms, trouble):
    host = Host(store, HostClock(up_ms=5 * HOUR))
    host.settle_two()
    host.run(2 * HOUR)
    trouble(host, jump_ms)
    host.run(HOUR // 2)
    host.grow_old(KEEP_DEAD_MS + 2 * DAY + 3 * HOUR)
    assert store.counters["dead:refused"] == 0, "a dead letter stays for longer than its time"
    assert store.counters["dropped:discarded"] == len(host.settled_ms) // 2


@given(st.integers(0, 2**32))
def test_no_sequence_of_boots_and_jumps_discards_early(tmp_path_factory, seed):
    """Wrong for less than an hour each time; with right times between them, or without."""
    rng = random.Random(seed)
    store = Store(tmp_path_factory.mktemp("clock") / "o.db", durability="process")
    host = Host(store, HostClock(up_ms=rng.choice([0, 2 * HOUR])))
    host.settle_two()
    for _ in range(6):
        what = rng.randrange(4)
        if what == 0:
            host.clock.reboot(rng.choice([S, MINUTE, 3 * DAY]))
        # A clock that is wrong for an hour is believed: nothing on this host could tell.
        host.clock.error_ms = rng.choice([0, *{0, *JUMPS} - {host.clock.error_ms}])
        if what < 2:
            host.trust = ClockTrust(host.clock, load_clock_record(store))
        host.run(rng.choice([S, 20 * S, 10 * MINUTE, 59 * MINUTE]))
    host.clock.error_ms = 0
    host.grow_old(KEEP_DEAD_MS + DAY)
    store.close()


# What is believed -----------------------------------------------------------------------------------------------------


def test_the_first_hour_of_a_boot_is_not_believed():
    clock = HostClock()
    trust = ClockTrust(clock)
    assert not trust.believed
    clock.true_ms += HOUR - S
    assert not trust.believed
    clock.true_ms += S
    assert trust.believed


@pytest.mark.parametrize("jump_ms", JUMPS)
def test_a_jump_is_believed_once_it_has_held_for_an_hour(jump_ms):
    clock = HostClock(up_ms=5 * HOUR)
    trust = ClockTrust(clock)
    assert trust.believed
    clock.error_ms = jump_ms
    assert not trust.believed
    clock.true_ms += HOUR - S
    assert not trust.believed
    clock.true_ms += S
    assert trust.believed == (jump_ms != IN_1970)


def test_a_slewed_clock_stays_believed():
    clock = HostClock(up_ms=5 * HOUR)
    trust = ClockTrust(clock)
    for _ in range(1000):
        clock.true_ms += 10 * S
        clock.error_ms += 5  # 500 ppm
        assert trust.believed


def test_an_hour_of_holding_survives_a_restart(store):
    clock = HostClock(up_ms=5 * HOUR)
    host = Host(store, clock)
    clock.error_ms = 2 * DAY
    host.settle_two()
    clock.true_ms += 59 * MINUTE
    assert not ClockTrust(clock, load_clock_record(store)).believed
    clock.true_ms += MINUTE
    assert ClockTrust(clock, load_clock_record(store)).believed


def test_a_jump_while_no_process_ran_is_noticed(store):
    clock = HostClock(up_ms=5 * HOUR)
    Host(store, clock).settle_two()
    clock.true_ms += DAY
    assert ClockTrust(clock, load_clock_record(store)).believed
    clock.error_ms = -40 * DAY
    assert not ClockTrust(clock, load_clock_record(store)).believed


def test_two_clocks_that_are_read_apart_do_not_make_a_jump():
    """The process was stopped between two readings, which then differ by the time of the stop."""

    class Stopped(HostClock):
        stops = 0

        def wall_ms(self) -> int:
            if self.stops:
                self.stops -= 1
                self.true_ms += 10 * MINUTE
            return super().wall_ms()

    clock = Stopped(up_ms=5 * HOUR)
    trust = ClockTrust(clock)
    clock.stops = 3
    assert trust.believed
    assert trust.believed


def test_a_corrupt_record_is_ignored(store):
    with store.transaction():
        store.set_meta(CLOCK_RECORD, '{"boot_id": 3')
    assert load_clock_record(store) is None


# Records and steady time ----------------------------------------------------------------------------------------------


def test_idle_writes_no_record():
    clock = HostClock(up_ms=5 * HOUR)
    trust = ClockTrust(clock)
    assert trust.record_due(0, with_rows=False) is not None, "the first one of a boot"
    trust.recorded()
    for _ in range(10):
        clock.true_ms += HOUR
        assert trust.record_due(0, with_rows=False) is None
    assert trust.record_due(0, with_rows=True) is not None
    trust.recorded()
    clock.true_ms += 59 * S
    assert trust.record_due(0, with_rows=True) is None
    clock.error_ms += DAY
    assert trust.record_due(0, with_rows=False) is not None, "a jump is recorded at once"


def test_a_record_that_was_not_committed_is_due_again():
    trust = ClockTrust(HostClock(up_ms=5 * HOUR))
    assert trust.record_due(0, with_rows=True) == trust.record_due(0, with_rows=True)


@pytest.mark.parametrize("jump_ms", JUMPS)
def test_steady_time_does_not_jump_with_the_wall_clock(jump_ms):
    clock = HostClock(up_ms=5 * HOUR)
    trust = ClockTrust(clock)
    before_ms = trust.steady_ms()
    clock.error_ms = jump_ms
    clock.true_ms += 10 * S
    assert trust.steady_ms() - before_ms == 10 * S


def test_age_of_a_time_that_fits_two_segments_is_the_younger_one():
    scale = AgeScale(NOW_MS, spans=(ClockSpan(NOW_MS - 40 * DAY, NOW_MS - 39 * DAY, 39 * DAY),))
    assert scale.age_ms(NOW_MS - 39 * DAY - HOUR) == HOUR
    assert scale.age_ms(NOW_MS - 38 * DAY) == 38 * DAY
    assert AgeScale(NOW_MS).age_ms(NOW_MS + DAY) == -DAY


def test_a_time_known_by_its_minute_fits_a_segment_of_a_second():
    scale = AgeScale(NOW_MS, spans=(ClockSpan(NOW_MS - 40 * DAY, NOW_MS - 40 * DAY + S, 39 * DAY),))
    assert scale.age_ms(NOW_MS - 40 * DAY - 30 * S) == 40 * DAY + 30 * S
    assert scale.age_ms(NOW_MS - 40 * DAY - 30 * S, later_ms=MINUTE) == DAY + 30 * S
    assert scale.age_ms(NOW_MS - 40 * DAY + 30 * S, earlier_ms=MINUTE) == DAY - 30 * S


@given(st.integers(0, 2**32))
def test_the_condition_in_sql_agrees_with_the_age(seed):
    """A row that the condition selects is older than asked for."""
    import sqlite3

    rng = random.Random(seed)
    spans = []
    for _ in range(rng.randrange(4)):
        first_ms = NOW_MS + rng.randrange(-50, 50) * DAY
        spans.append(ClockSpan(first_ms, first_ms + rng.randrange(3) * DAY, rng.randrange(-60, 60) * DAY))
    scale = AgeScale(NOW_MS, spans=tuple(spans))
    keep_ms = rng.choice([0, DAY, 30 * DAY])
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE rows (at INTEGER)")
    stored = [(NOW_MS + rng.randrange(-120, 120) * DAY // 2,) for _ in range(50)]
    connection.executemany("INSERT INTO rows VALUES (?)", stored)
    condition, parameters = scale.older_than("at", keep_ms)
    for (at_ms,) in connection.execute(f"SELECT at FROM rows WHERE {condition}", parameters):
        assert scale.age_ms(at_ms) > keep_ms
    connection.close()


def test_many_jumps_take_bounded_memory():
    clock = HostClock(up_ms=5 * HOUR)
    trust = ClockTrust(clock)
    for number in range(1000):
        clock.true_ms += 10 * S
        clock.error_ms = (number % 7) * 10 * S
        trust.scale()
    assert len(trust.scale().spans) <= 64
    stored_ms = NOW_MS + 20 * S  # within the segments that were merged
    clock.error_ms = 0
    clock.true_ms += 2 * HOUR
    assert trust.scale().age_ms(stored_ms) <= clock.true_ms - NOW_MS


# A clock that is not set ----------------------------------------------------------------------------------------------


def test_receipts_are_corrected_once_the_clock_is_set(store):
    clock = HostClock()
    clock.error_ms = IN_1970
    host = Host(store, clock)
    received = {}
    for _ in range(1200):
        host.transact(lambda now_ms: store.accept([[event(store.counters["next_id"])]], now_ms))
        received[store.counters["next_id"]] = clock.true_ms
        clock.true_ms += 37
    assert host.trust.receipts_to_fix() is None
    host.trust = ClockTrust(clock, load_clock_record(store))  # a restart forgets nothing of it
    clock.error_ms = 0
    assert all(host.trust.receipt_ms(ms + IN_1970) == ms for ms in received.values())
    steps = 0
    while (fix := host.trust.receipts_to_fix()) is not None:
        host.transact(lambda _now_ms, fix=fix: host.trust.receipts_fixed(fix.step(store)))
        steps += 1
    assert steps == 3
    assert dict(store.connection.execute("SELECT id, received_ms FROM events")) == received


def test_a_receipt_of_a_clock_that_was_never_set_is_unknown():
    clock = HostClock()
    clock.error_ms = IN_1970
    assert ClockTrust(clock).receipt_ms(clock.wall_ms()) == 0
    clock.reboot()
    clock.error_ms = 0
    trust = ClockTrust(clock)
    assert trust.receipt_ms(5 * MINUTE) == 0
    assert trust.receipt_ms(NOW_MS) == NOW_MS


def test_delivery_waits_ten_minutes_for_the_clock():
    clock = HostClock()
    clock.error_ms = IN_1970
    trust = ClockTrust(clock)
    assert trust.delivery_waits_s() == 600
    assert "timedatectl" in trust.problem()
    assert "10m" in trust.problem()
    clock.true_ms += 599 * S
    assert trust.delivery_waits_s() == 1
    clock.true_ms += S
    assert trust.delivery_waits_s() == 0
    assert "timedatectl" in trust.problem()


def test_delivery_does_not_wait_for_a_clock_that_is_set():
    clock = HostClock()
    trust = ClockTrust(clock)
    assert trust.delivery_waits_s() == 0
    assert trust.problem() == ""
    clock.error_ms = IN_1970
    assert trust.delivery_waits_s() == 600
    clock.error_ms = 0
    assert trust.delivery_waits_s() == 0


@pytest.mark.parametrize(("jump_ms", "words"), [(2 * DAY, "2d ahead"), (-40 * DAY, "40d back"), (S, "")])
def test_a_jump_is_named_until_it_is_believed(jump_ms, words):
    clock = HostClock(up_ms=5 * HOUR)
    trust = ClockTrust(clock)
    clock.error_ms = jump_ms
    assert words in trust.problem()
    assert bool(trust.problem()) == bool(words)
    clock.true_ms += HOUR
    assert trust.problem() == ""
