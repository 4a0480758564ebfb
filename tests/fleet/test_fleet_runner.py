"""The pace that the dispatcher asks: times of the daemon's clock against those of the engine."""

import pytest
import trio
from test_fleet_connection import INFO, bulk
from test_fleet_connection import Engine as Server
from test_fleet_host import BACKLOG, LIMITS, Engine
from trio.testing import memory_stream_pair, wait_all_tasks_blocked

from sidecar.config import FleetConfig, Secret
from sidecar.fleet.connection import EngineConnection
from sidecar.fleet.host import LATEST_S, Demand, FleetHost, Process
from sidecar.fleet.runner import Fleet
from sidecar.fleet.wire import ScriptCall
from sidecar.mapping import Priority


class StoppedClock:
    """The clocks of a process that can be frozen: ``boot_s`` runs on, ``monotonic_s`` does not."""

    def __init__(self, boot_s: float) -> None:
        self.boot, self.monotonic = boot_s, 5_000.0

    def run(self, for_s: float, *, frozen: bool = False) -> None:
        self.boot += for_s
        self.monotonic += 0.0 if frozen else for_s

    def monotonic_s(self) -> float:
        return self.monotonic

    def boot_s(self) -> float:
        return self.boot

    def boot_id(self) -> str:
        return "boot"

    def wall_ms(self) -> int:
        return 0


@pytest.fixture
def engine() -> Engine:
    engine = Engine(FleetHost(Process("m", 1, "n", "h"), lambda: LIMITS))
    engine.join()
    engine.ask(BACKLOG)
    engine.answer(3, first_s=engine.now_s + 0.1)
    return engine


@pytest.fixture
def clock(engine) -> StoppedClock:
    return StoppedClock(engine.now_s)


@pytest.fixture
def fleet(engine, clock) -> Fleet:
    connection = EngineConnection(FleetConfig(url="redis://host", name="t"), Secret())
    return Fleet(
        *(engine.host, connection, clock, lambda _store, _record: None), name="t", replicas=0, random=lambda: 0.5
    )


async def change_nothing(change) -> None:
    """Write to a store that only the record's function would touch."""
    change(None, 0)


def served_fleet(engine, clock, server: Server, nursery: trio.Nursery, *, saved: list, opened: list) -> Fleet:
    """A host whose engine answers by ``server``: ``saved`` gets its records, ``opened`` the streams of its connections."""

    async def open_stream() -> trio.abc.Stream:
        ours, theirs = memory_stream_pair()
        opened.append(theirs)
        nursery.start_soon(server.serve, theirs)
        return ours

    server.replies["INFO"] = bulk(INFO.replace("1234", engine.run))
    connection = EngineConnection(FleetConfig(url="redis://host", name="t"), Secret(), open_stream=open_stream)
    return Fleet(
        *(engine.host, connection, clock, lambda _store, record: saved.append(record)),
        name="t",
        replicas=0,
        random=lambda: 0.5,
    )


def ask(fleet: Fleet, clock: StoppedClock) -> float:
    return fleet.ready_at_s(clock.monotonic, priority=Priority.NORMAL, pace=1.0)


def test_a_slot_is_reported_in_the_daemons_time(fleet, clock):
    ready_s = ask(fleet, clock)
    assert 0.09 <= ready_s - clock.monotonic <= 0.13
    clock.run(ready_s - clock.monotonic)
    assert ask(fleet, clock) <= clock.monotonic + 1e-6


def test_slots_that_passed_while_the_process_was_frozen_are_dropped(fleet, clock):
    """By the daemon's clock they were still to come: it leaves out the time of a freeze."""
    clock.run(3.0, frozen=True)
    assert ask(fleet, clock) > clock.monotonic + 1.0


def test_a_slot_taken_before_a_freeze_is_late_after_it(fleet, clock):
    clock.run(ask(fleet, clock) - clock.monotonic + 1e-6)
    ask(fleet, clock)
    until_s, minute = fleet.take(clock.monotonic, priority=Priority.NORMAL)
    assert not fleet.is_late(until_s)
    assert until_s - clock.boot <= LATEST_S
    clock.run(LATEST_S, frozen=True)
    assert fleet.is_late(until_s)
    own = dict(fleet.machine._own)
    fleet.give_back(minute)
    fleet.give_back(None)
    assert fleet.machine._returned == {minute: 1}
    assert own[minute] - fleet.machine._own[minute] == 1


def test_requests_that_need_another_slot_are_asked_for(fleet, clock, engine):
    """Without backlog nothing else asks for them, and their lanes would wait until their deadline."""
    clock.run(1.0)
    assert ask(fleet, clock) > clock.monotonic
    fleet.set_late([0, 2, 0], clock.monotonic + 0.1)
    wanted = fleet.wanted((0, 1, 0), clock.monotonic)
    assert wanted == Demand(normal=3)
    assert isinstance(engine.host.next_action(clock.boot, wanted), ScriptCall)
    assert fleet.wanted((0, 0, 0), clock.monotonic + 0.2) == Demand()


def test_a_request_that_waits_for_a_slot_wakes_the_connection(fleet, clock, engine):
    clock.run(1.0)
    assert ask(fleet, clock) > clock.monotonic, "its slots have passed"
    assert engine.host.may_call(clock.boot, Priority.NORMAL)
    assert isinstance(engine.host.next_action(clock.boot, Demand(normal=1)), ScriptCall)
    assert not engine.host.may_call(clock.boot, Priority.NORMAL), "one call at a time"


@pytest.mark.parametrize(("error", "left"), [("READONLY", True), ("MOVED", True), ("OOM", False)])
async def test_an_engine_that_is_no_longer_the_primary_is_left(engine, clock, autojump_clock, error, left):
    """A failover need not end connections, and the host asked the replica for as long as it ran."""
    server, opened = Server(EVALSHA=f"-{error} no\r\n".encode(), TIME=b"*2\r\n$1\r\n1\r\n$1\r\n0\r\n"), []
    async with trio.open_nursery() as nursery:
        fleet = served_fleet(engine, clock, server, nursery, saved=[], opened=opened)
        clock.run(1.0)
        assert ask(fleet, clock) > clock.monotonic, "its slots have passed"
        nursery.start_soon(fleet.run, change_nothing, lambda _now_s: (0, 5, 0), lambda: None)
        await trio.sleep(0.3)
        assert error in fleet.machine.problem
        assert (len(opened) > 1) is left
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("outcome", "writes"), [("ok", 2), ("late", 1)])
async def test_the_record_is_emptied_only_if_the_engine_took_it(engine, clock, autojump_clock, outcome, writes):
    """What the process had sent alone and not reported was forgotten, and missing in the fleet's day."""
    answer = b"*2\r\n$%d\r\n%s\r\n$1\r\n1\r\n" % (len(outcome), outcome.encode())
    server, saved = Server(EVALSHA=answer), []
    async with trio.open_nursery() as nursery:
        fleet = served_fleet(engine, clock, server, nursery, saved=saved, opened=[])
        await fleet.leave(change_nothing)
        nursery.cancel_scope.cancel()
    assert len(saved) == writes


async def test_a_stop_says_nothing_to_an_engine_that_restarted(engine, clock, autojump_clock):
    """Its call in the name of the old process began another epoch: for 2 s nobody got a slot, and then once more."""
    engine.host.hello_answered(engine.now_s, engine.now_s + 0.001, engine.us(engine.now_s + 0.0005), "older")
    server, saved = Server(EVALSHA=b"*2\r\n$2\r\nok\r\n$1\r\n1\r\n"), []
    async with trio.open_nursery() as nursery:
        fleet = served_fleet(engine, clock, server, nursery, saved=saved, opened=[])
        await fleet.leave(change_nothing)
        nursery.cancel_scope.cancel()
    assert [command[0] for command in server.commands] == [b"INFO"]
    assert saved == [], "the promise stays in the record, as in the ledger"


async def test_a_stop_during_a_call_leaves_the_fleet(engine, clock, autojump_clock):
    """The call that was out forbade it, and the engine kept what was promised set aside for a day."""
    server, saved = Server(EVALSHA=None, TIME=b"*2\r\n$1\r\n1\r\n$1\r\n0\r\n"), []
    async with trio.open_nursery() as nursery:
        fleet = served_fleet(engine, clock, server, nursery, saved=saved, opened=[])
        clock.run(1.0)
        assert ask(fleet, clock) > clock.monotonic, "its slots have passed"
        nursery.start_soon(fleet.run, change_nothing, lambda _now_s: (0, 5, 0), lambda: None)
        await wait_all_tasks_blocked()
        assert server.commands[-1][0] == b"EVALSHA"
        server.replies["EVALSHA"] = b"*2\r\n$2\r\nok\r\n$1\r\n1\r\n"
        await fleet.leave(change_nothing)
        nursery.cancel_scope.cancel()
    assert b"leave" in server.commands[-1]
    assert saved[-1].promise == 0
