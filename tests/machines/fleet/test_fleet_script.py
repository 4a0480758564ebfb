"""Single calls of the script: a host whose limits differ changes nothing for those that are connected."""

from typing import Any

import pytest
from fleet_engine import SIMULATED, EngineClient
from fleet_world import SimEngine

from sidecar.fleet.wire import ScriptCall

START_S = 1000.0
PER_DAY = 990_000
LEASE_S = 5.0


class Calls:
    """Calls of hosts ``a``, ``b``, … at the times of one engine, in seconds of its clock."""

    def __init__(self, client: EngineClient) -> None:
        self.engine = SimEngine(client, SIMULATED)
        self.epoch = ""

    def call(self, host: str, at_s: float, op: str = "join", **fields: Any) -> Any:
        now = self.engine.clock_us(at_s)
        limits = {"per_second": 190_000_000, "per_day": PER_DAY, "day": "rolling"}
        limits |= {name: fields.pop(name) for name in tuple(fields) if name in limits}
        call = ScriptCall(
            *(op, host, 1, "nonce", host, self.engine.run, now - 50_000, now + 500_000),
            *(limits["per_second"], limits["per_day"], limits["per_day"], limits["day"], 0, "us key"),
            *(500_000, int(LEASE_S * 1e6), 1_500_000, 2_000_000, 86_400_000_000),
            int(min(limits["per_second"], limits["per_day"] * 1_000_000 / 86_400)),
            *(self.epoch, 0, 0),
        )
        answer = self.engine.call(call._replace(**fields), at_s)
        if answer.granted is not None:
            self.epoch = answer.granted.epoch
        return answer


@pytest.fixture
def calls(client) -> Calls:
    return Calls(client)


def test_a_refused_host_stays_refused_after_the_clock_was_set_back(calls):
    """All leases end when the clock is set back; the first caller after that could once set its own limits."""
    for host in ("a", "b"):
        assert calls.call(host, START_S).outcome == "ok"
    assert calls.call("c", START_S + 1, per_second=100_000_000).outcome == "differ"
    calls.engine.skew_s -= 60
    for at_s in (START_S + 1.1, START_S + 1.2, START_S + 2):
        assert calls.call("c", at_s, per_second=100_000_000).outcome == "differ"
    assert calls.call("a", START_S + 2.1, op="ask").outcome == "ok"


def test_a_call_that_differs_moves_the_slots_back_once_with_the_clock(calls):
    calls.call("a", START_S)
    pointer = calls.call("a", START_S + 3, op="ask", normal=50).granted.first
    calls.engine.skew_s -= 60
    for at_s in (START_S + 3.1, START_S + 3.2, START_S + 3.3):
        calls.call("c", at_s, per_second=100_000_000)
    after = calls.call("a", START_S + 3.4, op="ask", normal=1).granted.first
    assert pointer - 61_000_000 < after < pointer - 58_000_000


def test_limits_are_free_a_lease_after_the_clock_was_set_back(calls):
    calls.call("a", START_S)
    calls.engine.skew_s -= 60
    assert calls.call("c", START_S + 1, per_second=100_000_000).outcome == "differ"
    assert calls.call("c", START_S + 1 + LEASE_S + 0.1, per_second=100_000_000).outcome == "ok"


def test_a_lone_member_may_change_its_limits_after_such_a_clock(calls):
    calls.call("a", START_S)
    calls.engine.skew_s -= 60
    assert calls.call("a", START_S + 1, per_second=100_000_000).outcome == "ok"


def test_a_host_with_another_day_does_not_drop_the_fleets_minutes(calls):
    midnight_s = START_S + 86_400 - calls.engine.clock_us(START_S) / 1_000_000 % 86_400
    calls.call("a", midnight_s - 1800)
    assert calls.call("a", midnight_s - 1790, op="ask", normal=40).granted.slots == 40
    for at_s in (599, 602):
        assert calls.call("a", midnight_s + at_s, op="ask").granted.used == 40
        assert calls.call("c", midnight_s + at_s + 1, day="utc").outcome == "differ"
    assert calls.call("a", midnight_s + 604, op="ask").granted.used == 40


def test_a_host_with_a_smaller_day_does_not_lessen_what_is_set_aside(calls):
    """When a lease ends, what the absent host may send of the day is set aside, by the limits of the fleet."""
    for host in ("a", "b"):
        calls.call(host, START_S)
    for at_s in (11, 11.1, 14):  # both are promised their half
        for host in "ab":
            promised = calls.call(
                host, START_S + at_s, op="ask", promise=0 if at_s == 11 else 5_729_166
            ).granted.promise
    calls.call("a", START_S + 17, op="ask", promise=promised)
    assert calls.call("c", START_S + 19.5, per_day=1).outcome == "differ"
    granted = calls.call("a", START_S + 20, op="ask", promise=promised).granted
    assert granted.absent == 1
    assert granted.used == pytest.approx(PER_DAY / 2, rel=0.001)


def test_a_host_that_differs_gives_its_promise_back_when_it_leaves(calls):
    for at_s in (0, 11):
        for host in ("a", "b"):
            calls.call(host, START_S + at_s)
    limits = {"per_second": 100_000_000, "per_day": 500_000}
    promised = calls.call("b", START_S + 12, op="ask").granted.promise
    assert promised > 0
    assert calls.call("b", START_S + 13, promise=promised, **limits).outcome == "differ"
    assert calls.call("b", START_S + 14, op="leave", promise=promised, **limits).outcome == "ok"
    granted = calls.call("a", START_S + 15, op="ask").granted
    assert (granted.members, granted.absent) == (1, 0)
    assert granted.promise == pytest.approx(PER_DAY * 1_000_000 / 86_400, abs=1)


def test_hosts_cut_off_together_have_their_whole_part_of_the_day(calls):
    """Each knows nothing of what is set aside for the others: it stops when all promises have used what it knows as left."""
    promised = dict.fromkeys("abc", 0)
    for at_s in (0, 11, 12, 13, 14):
        for host in "abc":
            at = START_S + at_s + ord(host) / 1000
            promised[host] = calls.call(host, at, promise=promised[host]).granted.promise
    for at_s in (17, 19.1, 19.15, 20):  # the leases of b and c end one after the other
        granted = calls.call("a", START_S + at_s, op="ask", promise=promised["a"]).granted
    assert granted.absent == 2
    assert granted.used == pytest.approx(PER_DAY * 2 / 3, rel=0.001)
    # One that is cut off after them knows of it: its part is one of what is left then.
    used = calls.call("d", START_S + 26).granted.used
    assert used == pytest.approx(PER_DAY * (2 / 3 + 1 / 3 * 1 / 3), rel=0.001)
