"""Delivery as a whole under virtual time: the real outbox and dispatcher, and a PX that a function scripts."""

import sqlite3
from collections import Counter
from contextlib import closing
from functools import partial
from random import Random

import pytest
import trio
import trio.testing
from deliver_parts import live_settings
from delivery_harness import (
    CEILING,
    CREATED,
    LOST,
    ScriptedPx,
    create_all,
    delivering,
    first_arrivals,
    make_daemon,
    most_in_a_second,
    new_event,
    number_of,
    wait_until_settled,
)
from dispatcher_harness import DispatcherHarness

from sidecar.clock import VirtualClock
from sidecar.daemon import build_dispatcher, serve
from sidecar.deliver.delivery_loop import LANE_IDLE_S, Delivery, DeliverySignals
from sidecar.mapping import Priority
from sidecar.observe import RecordingTelemetry
from sidecar.outbox import Capacity, InlineRunner, Outbox, Page, Store
from sidecar.px import PxAnswer, Reply, Unknown
from sidecar.px.network import FakeNetwork


@pytest.mark.parametrize(
    "stuck", [5_000, pytest.param(20_000, marks=pytest.mark.whole), pytest.param(100_000, marks=pytest.mark.slow)]
)
async def test_stuck_user_neither_fills_memory_nor_slows_others(tmp_path, autojump_clock, stuck):
    others = 2_000
    px = ScriptedPx(
        lambda event, px: PxAnswer(503) if event["identifyId"] == "stuck" and len(px.stored) < others else CREATED
    )
    async with delivering(tmp_path, px) as daemon:
        dispatcher, most = daemon.delivery.dispatcher, 0
        for start in range(0, stuck, 1_000):
            await daemon.outbox.accept([new_event(number, "stuck") for number in range(start, start + 1_000)])
        await daemon.outbox.accept([new_event(stuck + number, f"u{number}") for number in range(others)])
        began_s = trio.current_time()
        while len(px.stored) < others:
            await trio.sleep(0.5)
            most = max(most, dispatcher.statistics().queues.loaded)
        assert trio.current_time() - began_s < others / CEILING + stuck / 4_000  # the time to read past its rows
        assert most < 3_000
        with trio.move_on_after(100):
            await wait_until_settled(daemon)
    numbers = first_arrivals(px)["stuck"]
    assert len(numbers) > 500
    assert numbers == list(range(len(numbers)))


async def test_order_none_lets_one_user_use_the_whole_pace(tmp_path, autojump_clock):
    px = ScriptedPx(create_all)
    async with delivering(tmp_path, px, '[deliver]\norder = "none"') as daemon:
        await daemon.outbox.accept([new_event(number, "u") for number in range(1_000)])
        began_s = trio.current_time()
        await wait_until_settled(daemon)
        assert trio.current_time() - began_s < 1_000 / CEILING + 3
    assert len(px.stored) == 1_000


async def test_replies_and_commits_cause_no_extra_decisions(tmp_path, autojump_clock):
    px, telemetry = ScriptedPx(create_all), RecordingTelemetry()
    store, network = Store(tmp_path / "outbox.db"), FakeNetwork(px.answer)
    settings, clock = live_settings(), VirtualClock(started_s=trio.current_time())
    dispatcher = build_dispatcher(settings, telemetry, store, clock, Random(1))
    signals = DeliverySignals(dispatcher)
    outbox = Outbox(store, clock, Capacity(store.path, 2**30), InlineRunner(), listener=signals)
    delivery = Delivery(dispatcher, signals, outbox, network, clock, telemetry)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outbox.run)
        nursery.start_soon(partial(delivery.run, stop_timeout_s=1))
        await outbox.accept([new_event(number, f"u{number}") for number in range(300)])
        while store.pending():
            await trio.sleep(1.0)
        delivery.stop()
        outbox.stop()
    store.close()
    assert len(px.stored) == 300
    assert telemetry.decisions <= 300 * 2.25, "one decision to send it, one to wait until the next is allowed"


@pytest.mark.whole
async def test_counters_are_exact_after_outage_loss_and_poison(tmp_path, autojump_clock):
    """5 % of 503s, 1 % of lost answers, one poison event in 1,000, and an hour without PX in between."""
    random, events, began_s = Random(7), 4_000, trio.current_time()

    def decide(event: dict, px: ScriptedPx) -> Reply:
        if 5 <= trio.current_time() - began_s < 3_605:
            return Unknown("reset") if random.random() < 0.1 else PxAnswer(502)
        if number_of(event) % 1_000 == 500:
            return PxAnswer(400, b'{"errorMessage":"poison"}')
        drawn = random.random()
        return PxAnswer(503) if drawn < 0.05 else LOST if drawn < 0.06 else CREATED

    px = ScriptedPx(decide)
    async with delivering(tmp_path, px) as daemon:
        for start in range(0, events, 500):
            await daemon.outbox.accept([new_event(number, f"u{number % 300}") for number in range(start, start + 500)])
        await wait_until_settled(daemon)
        counters = daemon.outbox.counters
    assert counters["accepted"] == events
    assert counters["dead:refused"] == events // 1_000
    assert counters["delivered"] == events - events // 1_000
    arrived = Counter(number_of(event) for event in px.stored)
    assert len(arrived) == counters["delivered"]
    assert 0 < sum(arrived.values()) - len(arrived) <= counters["ambiguous"]
    assert all(numbers == sorted(numbers) for numbers in first_arrivals(px).values())
    assert most_in_a_second(px.requests_s) <= CEILING


@pytest.mark.parametrize("hours", [2, pytest.param(24, marks=pytest.mark.slow)])
async def test_wrong_key_for_hours_loses_nothing_and_is_probed_rarely(tmp_path, autojump_clock, hours):
    fixed_s = trio.current_time() + hours * 3600
    px = ScriptedPx(lambda _event, _px: PxAnswer(401) if trio.current_time() < fixed_s else CREATED)
    async with delivering(tmp_path, px) as daemon:
        await daemon.outbox.accept([new_event(number, f"u{number}") for number in range(500)])
        await trio.sleep(hours * 3600 - 10)
        # One probe each 5 minutes, and the requests in flight when the first answer arrived.
        assert len(px.requests_s) < hours * 3600 / 300 + 130
        assert daemon.outbox.counters["accepted"] == daemon.store.pending() == 500
        await wait_until_settled(daemon)
    assert len(px.stored) == 500


@pytest.mark.parametrize("crash_after_s", [0.3, 1.0, 1.9])
async def test_crash_repeats_at_most_the_events_in_flight(tmp_path, autojump_clock, crash_after_s):
    px = ScriptedPx(create_all)
    daemon = make_daemon(tmp_path, px)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, daemon, trio.sleep_forever)
        await daemon.outbox.accept([new_event(number, f"u{number}") for number in range(400)])
        await trio.sleep(crash_after_s)
        nursery.cancel_scope.cancel()
    in_flight = len(daemon.delivery.dispatcher.statistics().in_flight)
    daemon.store.connection.close()  # as the kernel does for a killed process
    async with delivering(tmp_path, px) as again:
        await wait_until_settled(again)
    arrived = Counter(number_of(event) for event in px.stored)
    assert len(arrived) == 400
    assert sum(arrived.values()) - 400 <= in_flight <= 128
    assert most_in_a_second(px.requests_s) <= CEILING


async def test_status_warns_of_a_user_near_the_daily_limit_of_px(tmp_path, autojump_clock):
    px = ScriptedPx(create_all)
    async with delivering(tmp_path, px, '[deliver]\norder = "none"') as daemon:
        await daemon.outbox.accept([new_event(number, "busy") for number in range(850)])
        await daemon.outbox.accept([new_event(1_000 + number, f"u{number}") for number in range(50)])
        await wait_until_settled(daemon)
        await trio.sleep(2_000)
        warnings = (await daemon.state.read()).warnings
    assert len(warnings) == 1
    assert "User busy had 850 events" in warnings[0]
    assert "1,000" in warnings[0]


async def test_loaded_events_of_a_forgotten_user_are_not_sent(tmp_path, autojump_clock):
    px = ScriptedPx(create_all)
    async with delivering(tmp_path, px) as daemon:
        await daemon.delivery_control.pause()
        await daemon.outbox.accept([new_event(number, f"u{number % 2}") for number in range(40)])
        await trio.sleep(5)
        assert daemon.outbox.checked_out
        done = await daemon.admin.forget(["u1"])
        assert (done["pending"], done["left"], done["next"]) == (20, 0, None)
        await daemon.delivery_control.resume()
        await wait_until_settled(daemon)
        assert daemon.outbox.counters["dropped:forgotten"] == 20
    assert {event["identifyId"] for event in px.stored} == {"u0"}


async def test_lease_is_granted_only_after_its_commit(tmp_path, autojump_clock):
    px = ScriptedPx(create_all)
    async with delivering(tmp_path, px) as daemon:
        quota, sends = daemon.delivery.dispatcher.limiter.quota, []
        granted = quota.granted

        def checked(lease):
            with closing(sqlite3.connect(tmp_path / "outbox.db")) as reader:  # sees only what is committed
                in_file = set(reader.execute("SELECT minute, boot_id, boot_minute, sent FROM quota"))
            assert set(map(tuple, lease.rows)) <= in_file
            sends.append(lease.sends)
            granted(lease)

        quota.granted = checked
        await daemon.outbox.accept([new_event(number, f"u{number}") for number in range(400)])
        await wait_until_settled(daemon)
    assert sum(sends) >= 400


async def test_lanes_close_after_idle_time_and_at_the_end(tmp_path, autojump_clock):
    px = ScriptedPx(create_all)
    async with delivering(tmp_path, px) as daemon:
        network = daemon.delivery.network
        await daemon.outbox.accept([new_event(number, f"u{number}") for number in range(100)])
        await wait_until_settled(daemon)
        first = network.lanes
        assert first == daemon.delivery.lanes_open > 1
        await trio.sleep(LANE_IDLE_S + 1)
        assert (network.closed, daemon.delivery.lanes_open) == (first, 0)
        await daemon.outbox.accept([new_event(100, "u")])
        await wait_until_settled(daemon)
        assert (network.lanes, network.closed) == (first + 1, first)
    assert network.closed == network.lanes


@pytest.mark.parametrize("damaged", ["{", "[]", "null", "[1]", '"open"'])
async def test_damaged_saved_state_does_not_pause_delivery(tmp_path, autojump_clock, damaged):
    px = ScriptedPx(create_all)
    first = make_daemon(tmp_path, px)
    with first.store.transaction():
        first.store.set_meta("destination", damaged)
    first.store.close()
    async with delivering(tmp_path, px) as daemon:
        await daemon.outbox.accept([new_event(1, "u")])
        await wait_until_settled(daemon)
    assert len(px.stored) == 1


async def test_loading_that_was_turned_away_is_woken_after_the_page(autojump_clock):
    """A lease that the loading task came for would otherwise wait for the next event."""
    harness = DispatcherHarness(rows=[])
    harness.feed()
    signals = DeliverySignals(harness.dispatcher)
    assert signals.read_with({Priority.NORMAL}) is not None
    assert signals.read_with({Priority.NORMAL}) is None  # one at a time
    assert not signals.begin_loading()
    with trio.fail_after(1):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(signals.wait_for_loading)
            await trio.testing.wait_all_tasks_blocked()
            signals.page_read(Page([], [], False))
    assert signals.begin_loading()
    assert signals.read_with({Priority.NORMAL}) is None
    signals.end_loading()
    assert signals.read_with({Priority.NORMAL}) is not None


async def test_a_page_that_could_not_be_read_is_loaded_by_the_loading_task(autojump_clock):
    harness = DispatcherHarness(rows=[])
    harness.feed()
    signals = DeliverySignals(harness.dispatcher)
    signals.read_with({Priority.HIGH})
    signals.page_read(None)
    with trio.fail_after(1):
        await signals.wait_for_loading()
    assert harness.dispatcher.wants().priority is Priority.HIGH
