"""What the outbox remembers, so that a process that starts while the engine is away may use its promise."""

import pytest
from test_fleet_host import BACKLOG, LIMITS, Engine

from sidecar.fleet.host import CAP_S, LATEST_S, LEASE_S, MARGIN_S, TIMEOUT_S, FleetHost, FleetState, Process
from sidecar.fleet.record import FleetRecord, decode_record, encode_record, restore
from sidecar.fleet.wire import ScriptCall
from sidecar.mapping import Priority

QUIET_S = TIMEOUT_S + LEASE_S + CAP_S + MARGIN_S
FOREVER = float("inf")


def started(record: FleetRecord, now_s: float, *, boot_id: str = "boot", start: int = 2) -> FleetHost:
    """A process that starts with ``record`` in its outbox."""
    restored = restore(decode_record(encode_record(record)), [], boot_id=boot_id, now_s=now_s)
    return FleetHost(Process("m", start, f"n{start}", "h"), lambda: LIMITS, restored)


@pytest.fixture
def engine() -> Engine:
    """A host that has joined and written its record; the engine has promised 50/s."""
    engine = Engine(FleetHost(Process("m", 1, "n1", "h"), lambda: LIMITS))
    engine.join()
    engine.ask()
    engine.answer()
    engine.record()
    return engine


def record_of(engine: Engine) -> FleetRecord:
    return engine.host._record


def test_a_promise_is_used_by_the_next_process(engine):
    host = started(record_of(engine), engine.now_s)
    now_s = engine.now_s + QUIET_S + 0.1
    assert host.state(engine.now_s + 1) is FleetState.QUIET
    assert host.ready_at_s(engine.now_s + 1, Priority.NORMAL) >= engine.now_s + QUIET_S - LATEST_S
    assert host.state(now_s) is FleetState.ALONE
    assert host.ready_at_s(now_s, Priority.NORMAL) == FOREVER, "the lone sends are recorded first"
    host.recorded(host.wanted_record(now_s, "boot"))
    assert host.ready_at_s(now_s, Priority.NORMAL) <= now_s + 1 / 50


def test_a_promise_is_not_used_after_a_reboot(engine):
    host = started(record_of(engine), engine.now_s, boot_id="another boot")
    assert host.state(engine.now_s + 20) is FleetState.JOINING
    assert host.ready_at_s(engine.now_s + 20, Priority.NORMAL) == FOREVER


def test_a_recorded_promise_ends_when_the_engine_forgets_it(engine):
    now_s = engine.now_s + LIMITS.forget_s
    host = started(record_of(engine), now_s)
    assert host.ready_at_s(now_s + 20, Priority.NORMAL) == FOREVER


def test_the_next_process_brings_what_is_recorded(engine):
    """Without it an engine that has lost its memory would set everything aside, or too little."""
    after = Engine(started(record_of(engine), engine.now_s), engine.now_s)
    call = after.ask()
    assert (call.op, call.epoch, call.promise, call.known) == ("join", "1", 50_000_000, 50_000_000)


def test_a_recorded_promise_is_reported_until_the_record_has_shrunk(engine):
    """Else the engine could give it away, while a process that starts now would use it."""
    engine.promise = 10_000_000
    engine.now_s += 2.0
    engine.ask()
    engine.answer()
    engine.now_s += 2.0
    assert engine.ask().promise == 50_000_000
    engine.answer()
    engine.record()
    engine.now_s += 2.0
    assert engine.ask().promise == 10_000_000


def test_an_orderly_stop_leaves_no_promise(engine):
    with pytest.raises(AssertionError, match="must be emptied"):
        engine.host.leave(engine.now_s)
    engine.host.recorded(engine.host.leaving_record(engine.now_s, "boot"))
    engine.host.leave(engine.now_s)
    host = started(record_of(engine), engine.now_s)
    assert host.state(engine.now_s + 20) is FleetState.JOINING


ROWS = [(100, "boot", 11, 7), (101, "boot", 12, 8), (102, "boot", 13, 9), (90, "earlier boot", 99, 5)]


def test_the_outboxs_counts_since_a_host_was_alone_are_sent_alone():
    record = FleetRecord(boot_id="boot", promise=1_000_000, lone_since=12 * 60.0 + 59)
    restored = restore(record, ROWS, boot_id="boot", now_s=14 * 60.0)
    assert restored.record.lone == {101: 8, 102: 9}
    assert restored.own == {100: 7, 90: 5}
    again = restore(restored.record, ROWS, boot_id="boot", now_s=14 * 60.0)
    assert (again.record.lone, again.own) == (restored.record.lone, restored.own)


def test_no_more_than_was_promised_is_taken_as_sent_alone():
    """A minute also holds what was sent at slots before: that is counted already."""
    record = FleetRecord(boot_id="boot", promise=1_000_000, lone_since=13 * 60.0 + 50)
    assert restore(record, ROWS, boot_id="boot", now_s=13 * 60.0 + 53).record.lone == {102: 4}


def test_after_a_reboot_all_counts_since_a_host_was_alone_are_taken():
    record = FleetRecord(boot_id="boot", promise=1, lone_since=12 * 60.0)
    restored = restore(record, ROWS, boot_id="another boot", now_s=3.0)
    assert (restored.record.promise, restored.record.lone) == (0, {101: 8, 102: 9})


def test_inherited_lone_sends_are_reported_once(engine):
    record = FleetRecord(boot_id="boot", lone={28_000_000: 17})
    after = Engine(started(record, engine.now_s), engine.now_s)
    assert isinstance(call := after.ask(), ScriptCall)
    assert (call.lone_id, call.lone) == (1, "28000000:17")
    assert after.host.wanted_record(after.now_s, "boot") is None
    after.answer()
    after.record()
    assert record_of(after).lone == {}
    after.now_s += CAP_S
    assert after.ask(BACKLOG).lone == ""


def test_a_shared_host_forgets_that_it_was_alone(engine):
    engine.ask()
    engine.host.disconnected(engine.now_s, "away")
    engine.now_s += 20
    engine.record()
    assert record_of(engine).lone_since is not None
    engine.ask()
    engine.answer()
    engine.record()
    assert record_of(engine).lone_since is None


@pytest.mark.parametrize("text", [None, "", "{", '{"promise": "many"}'])
def test_a_corrupt_record_is_an_empty_one(text):
    assert decode_record(text) == FleetRecord()


def test_the_turns_of_the_next_process_are_those_of_the_last(engine):
    """Lone hosts take turns by the engine's clock: a process that did not know it would send together with another."""
    host = started(record_of(engine), engine.now_s)
    begin_s = engine.now_s + 20
    turns = []
    for each in (host, engine.host):
        each.disconnected(engine.now_s, "away")
        each.recorded(each.wanted_record(begin_s, "boot"))
        turns.append(each.ready_at_s(begin_s + 0.001, Priority.NORMAL))
    assert turns[0] == pytest.approx(turns[1], abs=1e-6)
