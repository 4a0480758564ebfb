"""Delivery as a whole under virtual time: the real outbox and dispatcher, and a PX that does what a function says."""

import json
import sqlite3
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from random import Random

import pytest
import trio

from sidecar.clock import VirtualClock
from sidecar.config import load_text
from sidecar.daemon import Daemon
from sidecar.deliver.shell import LANE_IDLE_S
from sidecar.outbox import InlineRunner, NewEvent, Store
from sidecar.px import Answer, Reply, Request, Unknown
from sidecar.px.fake import FakeNetwork

CREATED = Answer(201, b"{}")
LATENCY_S = 0.1
CEILING = 190


class Px:
    """A PX that keeps what it stored, with the virtual time of each request."""

    def __init__(self, decide: Callable[[dict, "Px"], Reply]) -> None:
        self.decide = decide
        self.requests_s: list[float] = []
        self.stored: list[dict] = []

    async def answer(self, request: Request) -> Reply:
        event = json.loads(request.body)
        self.requests_s.append(trio.current_time())
        reply = self.decide(event, self)
        if reply == CREATED:
            self.stored.append(event)
        await trio.sleep(LATENCY_S)
        if reply == LOST:
            self.stored.append(event)
        return reply


LOST = Unknown("lost")


def event(number: int, user: str) -> NewEvent:
    body = {
        "type": "track",
        "event": "Logged In",
        "userId": user,
        "messageId": f"m{number}",
        "properties": {"n": number},
    }
    return NewEvent(0, False, user, f"m{number}", json.dumps(body).encode())


def number_of(stored: dict) -> int:
    return stored["attributes"]["n"]


def make(folder: Path, px: Px, config: str = "") -> Daemon:
    return Daemon(
        load_text('[px]\nproperty_key = "AP-XXXXXXXXXX-2"\n' + config),
        store=Store(folder / "outbox.db"),
        network=FakeNetwork(px.answer),
        clock=VirtualClock(started_s=trio.current_time()),
        runner=InlineRunner(),
        random=Random(1),
    )


@asynccontextmanager
async def delivering(folder: Path, px: Px, config: str = "") -> AsyncIterator[Daemon]:
    daemon = make(folder, px, config)
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(daemon.run, stop.wait)
        yield daemon
        stop.set()
    daemon.store.close()


async def settled(daemon: Daemon) -> None:
    with trio.fail_after(1e6):
        while daemon.store.pending():
            await trio.sleep(1.0)


def first_arrivals(px: Px) -> dict[str, list[int]]:
    """Of each user, by number, in the order in which they came first."""
    found: dict[str, list[int]] = defaultdict(list)
    seen: set[int] = set()
    for one in px.stored:
        if number_of(one) not in seen:
            seen.add(number_of(one))
            found[one["identifyId"]].append(number_of(one))
    return found


def most_in_a_second(times_s: list[float]) -> int:
    most = first = 0
    for last, at_s in enumerate(times_s):
        while times_s[first] <= at_s - 1.0:
            first += 1
        most = max(most, last - first + 1)
    return most


@pytest.mark.parametrize("stuck", [20_000, pytest.param(100_000, marks=pytest.mark.slow)])
async def test_a_stuck_user_with_a_deep_backlog_neither_fills_memory_nor_slows_others(tmp_path, autojump_clock, stuck):
    others = 2_000
    px = Px(lambda one, px: Answer(503) if one["identifyId"] == "stuck" and len(px.stored) < others else CREATED)
    async with delivering(tmp_path, px) as daemon:
        dispatcher, most = daemon.delivery.dispatcher, 0
        for start in range(0, stuck, 1_000):
            await daemon.outbox.accept([event(number, "stuck") for number in range(start, start + 1_000)])
        await daemon.outbox.accept([event(stuck + number, f"u{number}") for number in range(others)])
        began_s = trio.current_time()
        while len(px.stored) < others:
            await trio.sleep(0.5)
            most = max(most, len(dispatcher.loaded_ids()))
        assert trio.current_time() - began_s < others / CEILING + stuck / 4_000  # the time to read past his rows
        assert most < 3_000
        with trio.move_on_after(100):
            await settled(daemon)
    numbers = first_arrivals(px)["stuck"]
    assert len(numbers) > 500
    assert numbers == list(range(len(numbers)))


async def test_order_none_lets_one_user_use_the_whole_pace(tmp_path, autojump_clock):
    px = Px(lambda _one, _px: CREATED)
    async with delivering(tmp_path, px, '[deliver]\norder = "none"') as daemon:
        await daemon.outbox.accept([event(number, "u") for number in range(1_000)])
        began_s = trio.current_time()
        await settled(daemon)
        assert trio.current_time() - began_s < 1_000 / CEILING + 3
    assert len(px.stored) == 1_000


async def test_neither_a_reply_nor_a_commit_has_it_decide_again_before_the_next_event_may_go(tmp_path, autojump_clock):
    px, decisions = Px(lambda _one, _px: CREATED), 0

    def decided() -> None:
        nonlocal decisions
        decisions += 1

    async with delivering(tmp_path, px) as daemon:
        daemon.delivery.on_step = decided
        await daemon.outbox.accept([event(number, f"u{number}") for number in range(300)])
        await settled(daemon)
    assert len(px.stored) == 300
    assert decisions <= 300 * 2.25, "once to send it, once to rest until the next may go"


async def test_an_hour_of_outage_lost_answers_and_poison_end_in_an_exact_account(tmp_path, autojump_clock):
    """5 % of 503s, 1 % of lost answers, one poison event in 1,000, and an hour without PX in the middle."""
    dice, events, began_s = Random(7), 4_000, trio.current_time()

    def decide(one: dict, px: Px) -> Reply:
        if 5 <= trio.current_time() - began_s < 3_605:
            return Unknown("reset") if dice.random() < 0.1 else Answer(502)
        if number_of(one) % 1_000 == 500:
            return Answer(400, b'{"errorMessage":"poison"}')
        drawn = dice.random()
        return Answer(503) if drawn < 0.05 else LOST if drawn < 0.06 else CREATED

    px = Px(decide)
    async with delivering(tmp_path, px) as daemon:
        for start in range(0, events, 500):
            await daemon.outbox.accept([event(number, f"u{number % 300}") for number in range(start, start + 500)])
        await settled(daemon)
        counters = daemon.outbox.counters
    assert counters["accepted"] == events
    assert counters["dead:refused"] == events // 1_000
    assert counters["delivered"] == events - events // 1_000
    arrived = Counter(number_of(one) for one in px.stored)
    assert len(arrived) == counters["delivered"]
    assert 0 < sum(arrived.values()) - len(arrived) <= counters["ambiguous"]
    assert all(numbers == sorted(numbers) for numbers in first_arrivals(px).values())
    assert most_in_a_second(px.requests_s) <= CEILING


@pytest.mark.parametrize("hours", [2, pytest.param(24, marks=pytest.mark.slow)])
async def test_a_key_that_is_wrong_for_long_loses_nothing_and_is_probed_rarely(tmp_path, autojump_clock, hours):
    fixed_s = trio.current_time() + hours * 3600
    px = Px(lambda _one, _px: Answer(401) if trio.current_time() < fixed_s else CREATED)
    async with delivering(tmp_path, px) as daemon:
        await daemon.outbox.accept([event(number, f"u{number}") for number in range(500)])
        await trio.sleep(hours * 3600 - 10)
        assert (
            len(px.requests_s) < hours * 3600 / 300 + 130
        )  # probes, and what was in flight when the first answer came
        assert daemon.outbox.counters["accepted"] == daemon.store.pending() == 500
        await settled(daemon)
    assert len(px.stored) == 500


@pytest.mark.parametrize("crash_after_s", [0.3, 1.0, 1.9])
async def test_a_crash_repeats_at_most_what_was_in_flight(tmp_path, autojump_clock, crash_after_s):
    px = Px(lambda _one, _px: CREATED)
    daemon = make(tmp_path, px)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(daemon.run, trio.sleep_forever)
        await daemon.outbox.accept([event(number, f"u{number}") for number in range(400)])
        await trio.sleep(crash_after_s)
        nursery.cancel_scope.cancel()
    in_flight = daemon.delivery.dispatcher.in_flight()
    daemon.store.connection.close()  # as the kernel does for a process that was killed
    async with delivering(tmp_path, px) as again:
        await settled(again)
    arrived = Counter(number_of(one) for one in px.stored)
    assert len(arrived) == 400
    assert sum(arrived.values()) - 400 <= in_flight <= 128
    assert most_in_a_second(px.requests_s) <= CEILING


async def test_a_user_near_the_thousand_events_that_px_takes_a_day_is_warned_of(tmp_path, autojump_clock):
    px = Px(lambda _one, _px: CREATED)
    async with delivering(tmp_path, px, '[deliver]\norder = "none"') as daemon:
        await daemon.outbox.accept([event(number, "busy") for number in range(850)])
        await daemon.outbox.accept([event(1_000 + number, f"u{number}") for number in range(50)])
        await settled(daemon)
        await trio.sleep(2_000)
        warnings = (await daemon.desk.status()).warnings
    assert len(warnings) == 1
    assert "User busy had 850 events" in warnings[0]
    assert "1,000" in warnings[0]


async def test_a_forgotten_users_events_are_not_sent_even_if_they_were_loaded(tmp_path, autojump_clock):
    px = Px(lambda _one, _px: CREATED)
    async with delivering(tmp_path, px) as daemon:
        await daemon.desk.pause()
        await daemon.outbox.accept([event(number, f"u{number % 2}") for number in range(40)])
        await trio.sleep(5)
        assert daemon.delivery.dispatcher.loaded_ids()
        done = await daemon.desk.archive.forget("u1")
        assert (done["pending"], done["left"], done["next"]) == (20, 0, None)
        await daemon.desk.resume()
        await settled(daemon)
        assert daemon.outbox.counters["dropped:forgotten"] == 20
    assert {one["identifyId"] for one in px.stored} == {"u0"}


async def test_a_lease_of_the_days_quota_is_used_only_once_it_is_in_the_file(tmp_path, autojump_clock):
    px = Px(lambda _one, _px: CREATED)
    async with delivering(tmp_path, px) as daemon:
        quota, sends = daemon.delivery.dispatcher.quota, []
        granted = quota.granted

        def checked(lease):
            with closing(sqlite3.connect(tmp_path / "outbox.db")) as reader:  # who reads what is committed
                in_file = set(reader.execute("SELECT minute, boot_id, boot_minute, sent FROM quota"))
            assert set(map(tuple, lease.rows)) <= in_file
            sends.append(lease.sends)
            granted(lease)

        quota.granted = checked
        await daemon.outbox.accept([event(number, f"u{number}") for number in range(400)])
        await settled(daemon)
    assert sum(sends) >= 400


async def test_lanes_are_closed_when_nobody_has_needed_them_for_a_while_and_at_the_end(tmp_path, autojump_clock):
    px = Px(lambda _one, _px: CREATED)
    async with delivering(tmp_path, px) as daemon:
        network = daemon.delivery.network
        await daemon.outbox.accept([event(number, f"u{number}") for number in range(100)])
        await settled(daemon)
        first = network.lanes
        assert first == daemon.delivery.lanes_open > 1
        await trio.sleep(LANE_IDLE_S + 1)
        assert (network.closed, daemon.delivery.lanes_open) == (first, 0)
        await daemon.outbox.accept([event(100, "u")])
        await settled(daemon)
        assert (network.lanes, network.closed) == (first + 1, first)
    assert network.closed == network.lanes


@pytest.mark.parametrize("damaged", ["{", "[]", "null", "[1]", '"open"'])
async def test_a_state_of_delivery_that_was_damaged_in_the_file_is_no_pause(tmp_path, autojump_clock, damaged):
    px = Px(lambda _one, _px: CREATED)
    first = make(tmp_path, px)
    with first.store.transaction():
        first.store.set_meta("destination", damaged)
    first.store.close()
    async with delivering(tmp_path, px) as daemon:
        await daemon.outbox.accept([event(1, "u")])
        await settled(daemon)
    assert len(px.stored) == 1
