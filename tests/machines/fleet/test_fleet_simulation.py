"""The simulated fleet: shares, ceiling, troubles. The command runs thousands of seeds; here are a few."""

import json

import pytest
from fleet_chaos import MOST_RECEIVED, MOST_SENT, run_seed
from fleet_world import LIMITS, FleetWorld

from sidecar.fleet.host import Demand, FleetState
from sidecar.mapping import Priority

ALONE_PER_S = LIMITS.per_day / 86_400


@pytest.mark.parametrize("hosts", [1, 2, 8, 20])
def test_busy_hosts_use_all_of_the_rate_in_equal_shares(client, hosts):
    world = FleetWorld(client, hosts)
    world.run(24)
    counts, mean = world.by_host(13, 24), world.rate(13, 24) * 11 / hosts
    assert world.largest_second() <= MOST_SENT
    assert world.largest_second(0.010) <= MOST_RECEIVED
    assert world.rate(13, 24) >= 0.99 * 190
    assert min(counts) >= 0.9 * mean
    assert max(counts) <= 1.1 * mean
    assert world.engine.calls / 24 <= 100


def test_one_busy_host_of_twenty_gets_nearly_everything(client):
    world = FleetWorld(client, 20)
    for host in world.hosts[1:]:
        host.want = Demand()
    world.run(24)
    assert world.by_host(13, 24)[0] / 11 >= 0.97 * 190


def test_an_engine_that_dies_leaves_the_promises_and_returns(client):
    world = FleetWorld(client, 5)
    world.run(20)
    world.engine.alive = False
    world.run(50)
    lone = world.rate(32, 50)
    assert 9 <= lone <= 12.5
    assert {host.machine.state(host.local_s(50)) for host in world.hosts} == {FleetState.ALONE}
    world.engine.wipe()
    world.engine.restart()
    world.run(64)
    assert world.rate(57, 62) >= 0.95 * 190
    assert world.largest_second() <= MOST_SENT


def test_a_start_while_the_engine_is_away_sends_the_promise(client):
    world = FleetWorld(client, 5)
    world.run(20)
    world.engine.alive = False
    for host in world.hosts:
        world.restart(host, 0.5)
    world.run(50)
    assert 9 <= world.rate(32, 50) <= 12.5
    assert {host.machine.state(host.local_s(50)) for host in world.hosts} == {FleetState.ALONE}
    for host in world.hosts:  # and again, while they are alone
        world.restart(host, 0.5)
    world.engine.restart()
    world.run(64)
    assert world.rate(58, 64) >= 0.95 * 190
    assert world.largest_second() <= MOST_SENT


def test_a_new_epoch_waits_for_what_more_than_one_host_knows(client):
    """A restarted host knew of few promises and came first: it got the others' once more, and the day was set aside twice."""
    world = FleetWorld(client, 8)
    world.run(20)
    world.engine.alive = False
    least = min(world.hosts, key=lambda host: json.loads(host.stored)["total"])
    assert json.loads(least.stored)["total"] < 0.5e6 * ALONE_PER_S
    world.restart(least, 0.1)
    for host in world.hosts:
        host.cut_off = host is not least
    world.engine.wipe()
    world.at(20.5, world.engine.restart)
    world.at(23, lambda: [setattr(host, "cut_off", False) for host in world.hosts])
    for until_s in (22.9, 26, 36):
        world.run(until_s)
        promised = [host.machine.status(host.local_s(until_s)).alone for host in world.hosts]
        assert sum(promised) <= ALONE_PER_S
        assert min(promised) > 0
    assert max(host.machine.status(host.local_s(36)).used for host in world.hosts) < 10_000


def test_what_a_dead_process_sent_alone_counts_in_the_day(client):
    """The engine keeps its memory, so it does not ask for what the outbox has sent: 11.4/s were missing from the day."""
    world = FleetWorld(client, 3)
    world.run(20)
    world.engine.alive = False
    world.run(60)
    for host in world.hosts:
        world.restart(host, 0.5)
    world.run(80)
    world.engine.alive = True
    world.run(90)
    lone = sum(sent.lone for sent in world.sent)
    assert lone > 300
    for host in world.hosts:
        host.want = Demand()
    world.run(95)
    used = max(host.machine.status(host.local_s(95)).used for host in world.hosts)
    assert len(world.sent) <= used <= len(world.sent) + 0.3 * lone  # while a process was down, none was sent


def idle_after_a_load(client) -> FleetWorld:
    """Two hosts that send for 20 s and then want nothing, at second 200."""
    world = FleetWorld(client, 2)
    world.run(20)
    for host in world.hosts:
        host.want = Demand()
    world.run(200)
    return world


def test_an_orderly_restart_counts_nothing_of_the_day_twice(client):
    """Each one added what its outbox had sent in the day to what was booked, until the day was spent."""
    world = idle_after_a_load(client)
    for at_s in (200, 210):
        for host in world.hosts:
            world.restart_in_order(host, 0.5)
        world.run(at_s + 10)
    used = max(host.machine.status(host.local_s(220)).used for host in world.hosts)
    assert used == len(world.sent) > 1000


def test_what_a_host_sent_outside_the_fleet_counts_when_it_returns(client):
    world = idle_after_a_load(client)
    for host in world.hosts:  # the other one, too, to give back the slots that it holds
        world.restart_in_order(host, 130.0)
    world.run(320)
    for _ in range(500):
        world.hosts[0].count()
    world.run(340)
    used = max(host.machine.status(host.local_s(340)).used for host in world.hosts)
    assert used == len(world.sent) + 500


def test_high_events_of_one_host_go_before_normal_ones_of_all(client):
    world = FleetWorld(client, 8)
    world.run(15)
    host = world.hosts[0]
    host.want, host.left = Demand(high=256), 400
    world.run(22)
    high = [sent.at_s for sent in world.sent if sent.priority is Priority.HIGH]
    assert len(high) == 400
    assert high[-1] <= 15 + 4.2


def test_low_events_get_what_no_other_class_wants(client):
    world = FleetWorld(client, 4)
    for host in world.hosts[:2]:
        host.want = Demand(low=256)
    world.run(22)
    low = sum(sent.priority is Priority.LOW and sent.at_s > 13 for sent in world.sent)
    assert low <= 0.02 * world.rate(13, 22) * 9


@pytest.mark.parametrize("day", ["rolling", "utc"])
def test_the_day_is_used_up_and_never_exceeded(client, day):
    limits = LIMITS._replace(per_day=2_000, day=day, reserve_for_high=0.0)
    world = FleetWorld(client, 8, limits=limits)
    world.run(30)
    assert 0.995 * 2_000 <= len(world.sent) <= 2_000


def test_a_lone_host_sends_nothing_once_the_day_is_spent(client):
    """What the fleet had used was not looked at: a dead engine would have let a second day's quota out."""
    world = FleetWorld(client, 4, limits=LIMITS._replace(per_day=3_000, reserve_for_high=0.0))
    world.run(28)
    sent = len(world.sent)
    assert sent >= 0.995 * 3_000
    world.engine.alive = False
    world.run(200)
    assert len(world.sent) == sent


def test_connected_hosts_leave_what_absent_ones_may_send_of_the_day(client):
    """The absent hosts' sends are reported when they return: 18 of them came on top of a day that was spent."""
    world = FleetWorld(client, 8, limits=LIMITS._replace(per_day=8_000, reserve_for_high=0.0))
    world.run(25)
    for host in world.hosts[:4]:
        host.cut_off = True
    world.run(420)
    assert sum(sent.lone for sent in world.sent) >= 15
    assert 5_000 <= len(world.sent) <= 8_000
    for host in world.hosts[:4]:
        host.cut_off = False
    world.run(460)
    assert 0.99 * 8_000 <= len(world.sent) <= 8_000


def cut_off(client, hosts: int, *, left: int) -> FleetWorld:
    """Return a fleet that has shared for 16 s, of which all but ``left`` hosts now reach the engine no more."""
    world = FleetWorld(client, hosts)
    world.run(16)
    for host in world.hosts[left:]:
        host.cut_off = True
    return world


def test_leases_end_in_time_though_the_engines_clock_is_set_back(client):
    """They began again with the old clock: absent hosts sent alone while the others had the whole rate (seed 5253)."""
    world = cut_off(client, 10, left=2)
    world.run(20)
    world.engine.skew_s -= 60
    world.run(40)
    assert any(sent.lone for sent in world.sent)
    assert world.largest_second() <= MOST_SENT
    assert world.rate(30, 40) > 185


def test_a_few_hosts_that_are_left_have_their_part_of_the_day(client):
    """With nineteen of twenty hosts absent, what was set aside for them and the reserve for high were the whole day."""
    world = cut_off(client, 20, left=1)
    world.run(40)
    assert world.rate(32, 40) >= 0.95 * (190 - 11.4) * 0.95


def test_spread_keeps_the_even_rate_of_the_day_for_all_hosts_together(client):
    world = FleetWorld(client, 6, limits=LIMITS._replace(per_day=86_400 * 20, spread=True))
    world.run(28)
    counts = world.by_host(14, 28)
    assert sum(counts) == pytest.approx(20 * 14, rel=0.03)
    assert min(counts) >= 0.8 * sum(counts) / 6


def test_spread_over_what_is_left_of_a_calendar_day(client):
    """The simulation begins 1,000 s after midnight; 85,400 s are left for what is left of the quota."""
    world = FleetWorld(client, 3, limits=LIMITS._replace(per_day=85_400 * 30, spread=True, day="utc"))
    world.run(28)
    assert world.rate(14, 28) == pytest.approx(30, rel=0.03)


def test_high_events_use_the_reserve_of_an_even_day_only_at_its_rate(client):
    world = FleetWorld(client, 2, limits=LIMITS._replace(per_day=86_400 * 20, spread=True))
    world.hosts[0].want = Demand(high=256)
    world.run(24)
    high = sum(sent.priority is Priority.HIGH and sent.at_s >= 12 for sent in world.sent)
    assert high >= 0.9 * 20 * 12
    assert world.rate(12, 24) <= 20.6


def test_the_reserve_of_the_day_is_for_high_events(client):
    world = FleetWorld(client, 3, limits=LIMITS._replace(per_day=1_000, reserve_for_high=0.2))
    world.run(14)
    assert len(world.sent) <= 800
    world.hosts[0].want = Demand(high=256)
    world.run(24)
    normal = sum(sent.priority is not Priority.HIGH for sent in world.sent)
    assert normal <= 800
    assert 950 <= len(world.sent) <= 1_000


def test_a_429_of_one_host_slows_all(client):
    world = FleetWorld(client, 4)
    world.hosts[0].pace = 0.5
    world.run(24)
    assert world.rate(13, 24) == pytest.approx(95, rel=0.03)
    world.hosts[0].pace = 1.0
    world.run(34)
    assert world.rate(28, 34) >= 0.98 * 190


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"per_second": 100.0}, "deliver.per_second is 100 here and 190 there, at host"),
        ({"per_day": 1_000}, "deliver.per_day is 1000 here and 990000 there, at host"),
        ({"day": "utc"}, "deliver.day is utc here and rolling there, at host"),
        ({"identity": "eu other key"}, "the PX region or key (px.region, px.api_key) differs, at host"),
    ],
)
def test_hosts_that_do_not_agree_are_not_joined(client, changed, words):
    world = FleetWorld(client, 3)
    world.run(5)
    world.limits = LIMITS._replace(**changed)
    world.hosts[2].machine = world.hosts[2].new_machine()
    world._connect(world.hosts[2])
    world.run(15)
    assert words in world.hosts[2].machine.problem
    assert world.by_host(8, 15)[2] == 0


@pytest.mark.parametrize(("before", "after"), [(38.0, 190.0), (190.0, 38.0)])
def test_limits_change_host_by_host_below_the_higher_ceiling(client, before, after):
    """Taking a fleet into use, and leaving it, as sidecar/fleet/README.md says: the limits of one share, then the whole."""
    world = FleetWorld(client, 4, limits=LIMITS._replace(per_second=before, per_day=int(5_000 * before)))
    world.run(20)
    changed = LIMITS._replace(per_second=after, per_day=int(5_000 * after))
    for number, host in enumerate(world.hosts):
        world.at(20 + 2 * number, lambda host=host: setattr(host.machine, "_limits", lambda: changed))
    world.run(50)
    assert world.largest_second() <= 1.026 * max(before, after)
    assert world.rate(42, 50) >= 0.98 * after
    assert world.rate(42, 50) <= 1.01 * after
    assert {host.machine.problem for host in world.hosts} == {""}


def test_a_new_key_is_taken_host_by_host(client):
    """Hosts with the new key send their promises until the last one has it; then all share again."""
    world = FleetWorld(client, 4)
    world.run(20)
    changed = LIMITS._replace(identity="us another key")
    for number, host in enumerate(world.hosts):
        world.at(20 + 2 * number, lambda host=host: setattr(host.machine, "_limits", lambda: changed))
    world.run(50)
    assert world.largest_second() <= 195
    assert world.rate(42, 50) >= 0.98 * 190
    assert {host.machine.problem for host in world.hosts} == {""}


def test_a_cloned_outbox_is_noticed(client):
    world = FleetWorld(client, 2)
    world.run(5)
    clone = world.hosts[1]
    clone.number, clone.start = 0, world.hosts[0].start - 1
    clone.machine = clone.new_machine()
    world._connect(clone)
    world.run(12)
    assert "same outbox" in clone.machine.problem + world.hosts[0].machine.problem


@pytest.mark.parametrize("seed", [4, 24, 33, 35, 38, 101, 119, 412, 1079, 2244, 30207])
def test_seeds_of_chaos_break_no_limit(client, seed):
    """412: two splits overlap, and the hosts of the first were once left with an engine that the second had ended.

    1079: ten turns of hosts that were alone fell into one second, where seven were expected: 196 requests with the slots.
    30207: ten again, where five were expected and six were kept back.
    2244: after two failovers the host that came first did not know of the last slots of the day, and one more was handed out.
    """
    result = run_seed(client, seed)
    assert not result.broken, result


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_many_seeds_of_chaos(client):
    broken = [result for seed in range(3_000) if (result := run_seed(client, seed)).broken]
    assert not broken
