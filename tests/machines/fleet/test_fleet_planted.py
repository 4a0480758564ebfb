"""Each of the nine rules broken on purpose: the simulation, or a direct question to the script, must notice."""

from fleet_chaos import MOST_SENT
from fleet_engine import SIMULATED
from fleet_world import LIMITS, FleetWorld, SimEngine

from sidecar.fleet import host as host_module
from sidecar.fleet.clock import EngineClock
from sidecar.fleet.host import FleetHost

JUMP_S = 0.4


def replaced(old: str, new: str) -> str:
    assert SIMULATED.count(old) == 1, f"{SIMULATED.count(old)} places for {old!r}"
    return SIMULATED.replace(old, new)


def clock_jumps(world: FleetWorld) -> None:
    world.run(15)
    world.engine.skew_s += JUMP_S
    world.run(18)


def all_frozen(world: FleetWorld) -> None:
    world.run(15)
    for host in world.hosts:
        world.freeze(host, 1.2)
    world.run(20)


def wiped(world: FleetWorld) -> None:
    world.run(15)
    world.engine.wipe()
    world.engine.restart()
    world.break_connections()
    world.run(20)


def half_cut_off(world: FleetWorld) -> None:
    world.run(16)
    for host in world.hosts[::2]:
        host.cut_off = True
    world.run(40)


def split(world: FleetWorld) -> None:
    world.run(15)
    old = world.engine
    new = SimEngine(old.client, world.script)
    old.save()
    new.saved = [(key.replace(old.name, new.name), dump) for key, dump in old.saved]
    new.restore()
    old.acknowledges = not world.waits_for_replicas
    for host in world.hosts[::2]:
        host.engine = new
    world.engine = new
    world.run(30)


def failed_over(world: FleetWorld) -> None:
    """Another process takes over with a state that lacks the last half second of slots."""
    world.run(15)
    world.engine.save()
    world.run(15.4)
    world.engine.restore()
    world.engine.restart()
    world.break_connections()
    world.run(22)


def test_rule_1_a_new_connection_begins_with_a_hello(client, monkeypatch):
    """Without it a host does not notice that another process of the engine answers, and that slots were forgotten."""

    def largest() -> int:
        world = FleetWorld(client, 8)
        failed_over(world)
        return world.largest_second(since_s=14.0)

    assert largest() <= MOST_SENT
    disconnected = FleetHost.disconnected

    def without_hello(self: FleetHost, now_s: float, problem: str) -> None:
        disconnected(self, now_s, problem)
        self._greeted = True

    monkeypatch.setattr(FleetHost, "disconnected", without_hello)
    assert largest() > MOST_SENT


def test_rule_2_a_call_that_arrives_late_has_no_effect(client):
    def late(script: str) -> str:
        """The outcome of a call that a frozen engine answers five seconds later."""
        world = FleetWorld(client, 1, script=script)
        world.run(15)
        host = world.hosts[0]
        call = host.machine._call(host.local_s(15), host_module.Demand(normal=50))
        return world.engine.call(call, 20.0).outcome

    assert late(SIMULATED) == "late"
    assert late(replaced("if now < number('from') or now > number('till') then", "if false then")) == "ok"


def test_rule_3_no_slots_before_the_clock_is_known(client, monkeypatch):
    """A host that is too far away cannot hit its slots: those that it held would be lost to the others."""

    def near_rate() -> float:
        world = FleetWorld(client, 4)
        world.hosts[0].delay_s = (0.04, 0.2)
        world.run(20)
        return sum(world.by_host(10, 20)[1:]) / 10

    assert near_rate() >= 0.98 * 190
    monkeypatch.setattr(host_module, "MOST_UNCERTAIN_S", 1.0)
    assert near_rate() <= 0.9 * 190


def test_rule_4_a_clock_that_was_set_drops_all_slots(client, monkeypatch):
    def overlapping(world: FleetWorld) -> int:
        clock_jumps(world)
        return world.largest_second(since_s=14.0)

    assert overlapping(FleetWorld(client, 8)) <= MOST_SENT
    monkeypatch.setattr(
        EngineClock, "read", lambda self, sent_s, received_s, engine_s: _trust(self, sent_s, received_s, engine_s)
    )
    assert overlapping(FleetWorld(client, 8)) > MOST_SENT


def _trust(clock: EngineClock, sent_s: float, received_s: float, engine_s: float) -> bool:
    clock._bounds = (engine_s - received_s, engine_s - sent_s, received_s)
    return True


def test_rule_5_late_slots_are_never_caught_up(client, monkeypatch):
    world = FleetWorld(client, 8)
    all_frozen(world)
    assert world.largest_second() <= MOST_SENT
    monkeypatch.setattr(FleetHost, "_drop_late", lambda self, now_s: None)
    world = FleetWorld(client, 8)
    all_frozen(world)
    assert world.largest_second() > MOST_SENT


def test_rule_6_a_newer_process_is_not_outlawed_and_an_older_one_is(client):
    world = FleetWorld(client, 1)
    world.run(5)
    host = world.hosts[0]
    old = host.machine
    world.restart(host, 0.1)
    world.run(9)
    assert host.machine.problem == ""
    call = old._call(host.local_s(9), host_module.Demand())
    assert world.engine.call(call, 9.0).outcome == "older"
    broken = replaced("if tonumber(start) > number('start') then", "if tonumber(start) < number('start') then")
    world = FleetWorld(client, 1, script=broken)
    world.run(5)
    world.restart(world.hosts[0], 0.1)
    world.run(9)
    assert world.hosts[0].machine.problem


def test_rule_7_a_forgetful_engine_waits_until_its_slots_have_passed(client):
    world = FleetWorld(client, 8)
    wiped(world)
    assert world.largest_second(since_s=14.0) <= MOST_SENT
    broken = replaced(
        "state.pointer = math.max(now + number('guard'), math.min(state.pointer, now + number('cap') + number('guard')))",
        "state.pointer = now",
    )
    world = FleetWorld(client, 8, script=broken, delay_s=(0.0002, 0.0006))
    wiped(world)
    assert world.largest_second(since_s=14.0) > MOST_SENT


def test_rule_7_promises_are_set_aside_before_they_are_used(client):
    world = FleetWorld(client, 8)
    half_cut_off(world)
    assert world.largest_second() <= MOST_SENT
    broken = replaced("return rate - gone - math.min(gone, 1500000)", "return rate")
    limits = LIMITS._replace(per_day=3_000_000)  # larger promises, so that the bug shows
    world = FleetWorld(client, 8, script=broken, limits=limits)
    half_cut_off(world)
    assert world.largest_second() > MOST_SENT


def test_rule_8_numbers_keep_their_microseconds(client):
    def steps(script: str) -> set[int]:
        world = FleetWorld(client, 2, script=script)
        world.run(8)
        return {int(slot.at_s * 1e6) % 1000 for host in world.hosts for slot in host.machine._slots}

    assert len(steps(SIMULATED)) > 1
    broken = replaced(
        "return string.format('%.0f', value)", "return string.format('%.0f', math.floor(value / 1000000) * 1000000)"
    )
    world = FleetWorld(client, 2, script=broken)
    world.run(12)
    assert world.largest_second() > MOST_SENT or world.rate(4, 12) < 150


def test_rule_9_a_stale_primary_counts_for_nothing(client):
    world = FleetWorld(client, 8)
    split(world)
    assert world.largest_second() <= MOST_SENT
    world = FleetWorld(client, 8)
    world.waits_for_replicas = False
    split(world)
    assert world.largest_second() > MOST_SENT
