"""The host's state machine: when it may send, and what it asks the engine."""

import pytest

from sidecar.fleet.host import (
    CAP_S,
    LATEST_S,
    LEASE_S,
    MARGIN_S,
    TIMEOUT_S,
    Demand,
    FleetHost,
    FleetLimits,
    FleetState,
    Hello,
    Process,
)
from sidecar.fleet.wire import Answer, Granted, ScriptCall
from sidecar.mapping import Priority

LIMITS = FleetLimits(190.0, 990_000, 0.1, "rolling", False, "us key", 86_400.0)
OFFSET_S = 1_000_000.0
FOREVER = float("inf")
BACKLOG = Demand(normal=256)
NOTHING = Demand()


class Engine:
    """Answers a host's questions at once, with slots as the test wants them."""

    def __init__(self, host: FleetHost, now_s: float = 100.0) -> None:
        self.host, self.now_s = host, now_s
        self.calls: list[ScriptCall] = []
        self.run, self.epoch, self.used, self.promise = "run", "1", 0, 50_000_000

    def us(self, at_s: float) -> int:
        return round((at_s + OFFSET_S) * 1_000_000)

    def hello(self) -> None:
        self.host.hello_answered(self.now_s, self.now_s + 0.001, self.us(self.now_s + 0.0005), self.run)
        self.now_s += 0.001

    def ask(self, demand: Demand = NOTHING) -> ScriptCall:
        while True:
            action = self.host.next_action(self.now_s, demand)
            if isinstance(action, float):
                self.now_s = action
            elif isinstance(action, Hello):
                self.hello()
            else:
                self.calls.append(action)
                return action

    def answer(
        self, slots: int = 0, *, first_s: float | None = None, high_only: bool = False, outcome: str = "ok"
    ) -> None:
        granted = Granted(
            *(self.epoch, self.us(self.now_s + 0.002 if first_s is None else first_s), 5264, slots, high_only),
            *(28_000_000, self.promise, 1, self.promise, 1, 0, 0, 0, self.used, 190_000_000, 0, {}),
        )
        sent_s = self.now_s
        self.now_s += 0.001
        answer = Answer(outcome, self.us(self.now_s - 0.0005), granted if outcome == "ok" else None)
        self.host.answered(sent_s, self.now_s, answer)

    def record(self) -> None:
        """Write the record, as the task does once a second."""
        if record := self.host.wanted_record(self.now_s, "boot"):
            self.host.recorded(record)

    def join(self) -> None:
        """Join, and wait until slots may be used."""
        self.ask()
        self.answer()
        self.now_s += CAP_S


@pytest.fixture
def host() -> FleetHost:
    return FleetHost(Process("m", 1, "n", "h"), lambda: LIMITS)


@pytest.fixture
def engine(host) -> Engine:
    return Engine(host)


def ready_s(engine: Engine, priority: Priority = Priority.NORMAL) -> float:
    """When a request may leave; infinity instead of the time at which the host would be alone."""
    ready_at_s = engine.host.ready_at_s(engine.now_s, priority)
    joined = engine.host.state(engine.now_s) in (FleetState.SHARING, FleetState.REJOINING)
    return FOREVER if joined and ready_at_s > engine.now_s + CAP_S else ready_at_s


def test_nothing_is_sent_before_the_engine_has_answered(engine):
    assert ready_s(engine) == FOREVER
    assert engine.host.state(engine.now_s) is FleetState.JOINING
    assert isinstance(engine.host.next_action(engine.now_s, BACKLOG), Hello)


def test_a_fresh_clock_is_silent_for_the_cap(engine):
    """A process that starts does not know what slots an engine before this one has handed out."""
    call = engine.ask(BACKLOG)
    assert (call.op, call.high, call.normal) == ("join", 0, 0)
    engine.answer(10)
    assert ready_s(engine) == FOREVER
    engine.now_s += CAP_S
    assert engine.ask(BACKLOG).normal == 256


def test_requests_leave_at_the_slots(engine):
    engine.join()
    engine.ask(BACKLOG)
    engine.answer(2, first_s=engine.now_s + 0.1)
    due_s = ready_s(engine)
    assert 0.09 <= due_s - engine.now_s <= 0.12
    engine.now_s = due_s
    engine.host.take(due_s, Priority.NORMAL)
    engine.host.take(due_s, Priority.NORMAL)
    assert ready_s(engine) == FOREVER


def test_a_late_slot_is_dropped_and_given_back(engine):
    """A process that was frozen would otherwise send all that it held at once."""
    engine.join()
    engine.ask(BACKLOG)
    engine.answer(3, first_s=engine.now_s + 0.1)
    engine.now_s += 0.2 + LATEST_S
    assert ready_s(engine) == FOREVER
    assert engine.ask(BACKLOG).returned == "28000000:3"
    engine.answer()
    assert engine.ask(Demand()).returned == ""


def test_a_slot_whose_request_was_late_is_given_back(engine):
    """The day of all hosts counted it, though its request left at another slot: as many as lanes, after each outage of PX."""
    engine.join()
    engine.ask(BACKLOG)
    engine.answer(2, first_s=engine.now_s + 0.1)
    engine.now_s = ready_s(engine)
    _, minute = engine.host.take(engine.now_s, Priority.NORMAL)
    engine.host.take(engine.now_s, Priority.NORMAL)
    engine.host.give_back(minute)
    assert engine.ask(BACKLOG).returned == "28000000:1"
    engine.answer()
    assert engine.ask(Demand()).returned == ""


def test_slots_after_the_normal_part_of_the_day_are_for_high_events(engine):
    engine.join()
    engine.ask(Demand(high=1, normal=1))
    engine.answer(1, high_only=True)
    engine.now_s += 0.01
    assert ready_s(engine) == FOREVER
    assert ready_s(engine, Priority.HIGH) == engine.now_s


def test_a_clock_that_was_set_drops_all_slots_and_brings_silence(engine):
    engine.join()
    engine.ask(BACKLOG)
    engine.answer(5, first_s=engine.now_s + 0.5)
    assert ready_s(engine) < FOREVER
    sent_s = engine.now_s
    engine.host.hello_answered(sent_s, sent_s + 0.001, engine.us(sent_s) + 60_000_000, "run")
    assert ready_s(engine) == FOREVER
    assert engine.host.state(engine.now_s) is FleetState.REJOINING


def test_alone_begins_when_the_lease_is_surely_over(engine):
    engine.join()
    call = engine.ask()
    issued_s = engine.now_s
    engine.host.disconnected(issued_s + TIMEOUT_S, "away")
    assert call.op == "ask"
    quiet_until_s = issued_s + TIMEOUT_S + LEASE_S + CAP_S + MARGIN_S
    engine.now_s = issued_s + 1
    assert engine.host.state(engine.now_s) is FleetState.QUIET
    assert ready_s(engine) >= quiet_until_s - LATEST_S
    engine.now_s = quiet_until_s + 0.01
    assert engine.host.state(engine.now_s) is FleetState.ALONE


def test_alone_sends_what_was_promised(engine):
    engine.join()
    engine.ask()
    engine.host.disconnected(engine.now_s, "away")
    engine.now_s = begin_s = engine.now_s + 20
    engine.record()
    sent = 0
    while (due_s := ready_s(engine)) < begin_s + 10:
        engine.now_s = due_s
        engine.host.take(due_s, Priority.NORMAL)
        sent += 1
    assert sent == pytest.approx(500, abs=2)  # 50 a second


def test_a_promise_ends_when_the_engine_forgets_it(engine):
    engine.join()
    engine.ask()
    engine.host.disconnected(engine.now_s, "away")
    engine.now_s += LIMITS.forget_s
    assert ready_s(engine) == FOREVER


def test_lone_sends_keep_their_number_until_they_are_counted(engine):
    engine.join()
    engine.ask()
    engine.host.disconnected(engine.now_s, "away")
    engine.now_s += 20
    engine.record()
    engine.now_s = ready_s(engine)
    engine.host.take(engine.now_s, Priority.NORMAL)
    first = engine.ask()
    engine.host.disconnected(engine.now_s, "away")
    again = engine.ask()
    assert first.lone_id == again.lone_id == 1
    assert first.lone == again.lone != ""
    engine.answer()
    engine.now_s += 3
    assert engine.ask().lone == ""


def test_a_call_without_effect_does_not_prolong_the_silence(engine):
    engine.join()
    engine.ask()
    engine.host.disconnected(engine.now_s, "away")
    engine.now_s += 20
    assert engine.host.state(engine.now_s) is FleetState.ALONE
    engine.ask()
    engine.host.call_refused(engine.now_s, "It is a replica.")
    assert engine.host.state(engine.now_s) is FleetState.ALONE
    assert engine.host.problem == "It is a replica."


def test_another_process_of_the_engine_is_joined_with_what_is_known(engine):
    engine.join()
    engine.host.disconnected(engine.now_s, "away")
    engine.run = "another"
    call = engine.ask()
    assert (call.op, call.run, call.epoch, call.promise) == ("join", "another", "1", 50_000_000)


def test_a_cloned_outbox_sends_nothing_and_is_named(engine):
    engine.join()
    engine.ask()
    engine.host.answered(engine.now_s, engine.now_s + 0.001, Answer("clone", engine.us(engine.now_s), None, ("other",)))
    engine.now_s += 30
    assert ready_s(engine) == FOREVER
    assert "other" in engine.host.problem
    assert engine.host.status(engine.now_s).clone


def test_hosts_that_do_not_agree_get_the_difference(engine):
    engine.ask()
    details = ("per_second", "190000000", "150000000", "app1")
    engine.host.answered(engine.now_s, engine.now_s + 0.001, Answer("differ", engine.us(engine.now_s), None, details))
    assert "deliver.per_second is 150 here and 190 there, at app1" in engine.host.problem
    assert engine.host.state(engine.now_s) is FleetState.JOINING


def test_an_engine_too_far_away_is_not_called(host):
    now_s = 100.0
    for _ in range(20):
        host.hello_answered(now_s, now_s + 0.05, round((now_s + 0.025 + OFFSET_S) * 1e6), "run")
        now_s += 1.0
        assert not isinstance(host.next_action(now_s, BACKLOG), ScriptCall)
    assert "too far away: an answer takes 50 ms" in host.problem


def test_draining_asks_for_everything_as_high(engine):
    engine.join()
    engine.host.draining = True
    call = engine.ask(Demand(1, 2, 3))
    assert (call.high, call.normal, call.low) == (6, 0, 0)


def test_the_pace_of_the_destination_goes_with_each_call(engine):
    engine.host.pace = 0.5
    assert engine.ask().pace == 500


def test_leaving_gives_slots_and_promise_back(engine):
    engine.join()
    engine.ask(BACKLOG)
    engine.answer(4, first_s=engine.now_s + 1)
    assert engine.host.can_leave(engine.now_s)
    engine.host.recorded(engine.host.leaving_record(engine.now_s, "boot"))
    call = engine.host.leave(engine.now_s)
    assert (call.op, call.promise, call.returned) == ("leave", 0, "28000000:4")
    assert ready_s(engine) == FOREVER


def test_a_host_leaves_although_a_call_is_out(engine):
    """A stop during a call, one of ten on a busy host, kept the promise for the 24 hours of forget_after."""
    engine.join()
    engine.ask(BACKLOG)
    assert engine.host.can_leave(engine.now_s)
    engine.host.recorded(engine.host.leaving_record(engine.now_s, "boot"))
    call = engine.host.leave(engine.now_s)
    assert (call.op, call.promise) == ("leave", 0)


def test_a_host_whose_calls_are_never_answered_is_alone_between_them(engine):
    """A stale primary that answers hellos: every call brought silence, and the host never sent what it was promised."""
    engine.join()
    begin_s, alone_s, step_s = engine.now_s, 0.0, 0.1
    while engine.now_s < begin_s + 300:
        action = engine.host.next_action(engine.now_s, BACKLOG)
        if isinstance(action, Hello):
            engine.hello()
        elif isinstance(action, ScriptCall):
            engine.now_s += TIMEOUT_S
            engine.host.disconnected(engine.now_s, "Only 0 of 1 replicas")
        engine.now_s += step_s
        alone_s += step_s * (engine.host.state(engine.now_s) is FleetState.ALONE)
    assert alone_s >= 200
    engine.ask(BACKLOG)
    assert engine.now_s <= begin_s + 300 + 70
    engine.answer()


def test_a_call_that_is_out_does_not_change_the_state(engine):
    """A host under load was shown as rejoining for the time of each call."""
    engine.join()
    engine.ask()
    assert engine.host.state(engine.now_s + 0.1) is FleetState.SHARING
    assert engine.host.state(engine.now_s + TIMEOUT_S + 0.01) is FleetState.QUIET


@pytest.mark.parametrize(
    ("used", "normal", "high"),
    [(0, True, True), (889_000, True, True), (890_000, False, True), (989_000, False, False)],
)
def test_a_lone_host_keeps_the_day_as_it_knew_it(engine, used, normal, high):
    """It supposes that the others continued at the whole rate until it was absent: 7.1 s."""
    engine.used = used
    engine.join()
    engine.ask()
    engine.host.disconnected(engine.now_s, "away")
    engine.now_s += 10
    engine.record()
    assert (ready_s(engine) < FOREVER) is normal
    assert (ready_s(engine, Priority.HIGH) < FOREVER) is high
