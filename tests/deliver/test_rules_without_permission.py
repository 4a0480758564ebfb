"""What a rule drops is settled without permission to send; ``per_day`` of a name."""

import trio
from delivery_harness import ScriptedPx, create_all, delivering, new_event, number_of
from dispatcher_harness import CREATED, DispatcherHarness, track
from msgspec import structs

from sidecar.config import load_text
from sidecar.deliver import delivery_loop
from sidecar.deliver.actions import Send, Settle, SweepPage, WaitUntil
from sidecar.deliver.quota import DailyCaps
from sidecar.deliver.sweep import RuleJudge
from sidecar.events import decode_stored, encode
from sidecar.mapping import Cap, LiveSettings, Priority, compile_settings
from sidecar.outbox import EventState, Row, Settlement
from sidecar.px import PxAnswer

SPENT = "[deliver]\nper_day = 2\nreserve_for_high = 0\n"
DAY_MS = 86_400_000


def settle_all(harness: DispatcherHarness) -> list[Settlement]:
    """Answer and settle everything that needs no waiting; return the settlements."""
    settled: list[Settlement] = []
    for _ in range(10_000):
        action = harness.next()
        if isinstance(action, WaitUntil):
            return settled
        actions = [action] if isinstance(action, Settle) else harness.reply(action, CREATED)
        done = [done.settlement for done in actions if isinstance(done, Settle)]
        harness.dispatcher.settled(done)
        settled += done
    raise AssertionError("no end")


def test_names_mapped_to_nothing_drain_on_a_spent_day():
    """A noisy name stayed pending for days in front of everything else."""
    rows = [track(number, f"u{number}") for number in range(1, 601)]
    harness = DispatcherHarness(SPENT, rows=rows)
    assert len(settle_all(harness)) == 2
    harness.reload(SPENT + '[mapping.events]\n"*" = ""\n')
    settled = settle_all(harness)
    assert (len(settled), {settlement.reason for settlement in settled}) == (598, {"mapped_to_nothing"})


def test_one_decision_judges_few_events_and_asks_to_be_asked_again():
    """300 at once would keep the loop from its connections for 10 ms."""
    harness = DispatcherHarness(SPENT, rows=[track(number, f"u{number}") for number in range(1, 300)])
    assert len(settle_all(harness)) == 2
    harness.reload(SPENT + '[mapping.events]\n"Noise" = ""\n')
    now_s = harness.clock.now_s
    decisions = [harness.dispatcher.decide(now_s) for _ in range(5)]
    assert decisions[:2] == [WaitUntil(now_s)] * 2
    assert decisions[-1] != WaitUntil(now_s)


def test_a_dropped_event_after_one_that_waits_is_settled():
    rows = [
        track(1, "a"),
        track(2, "a"),
        track(3, "b", event="Send"),
        track(4, "b", event="Noise"),
        track(5, "c", event="Noise"),
    ]
    harness = DispatcherHarness(SPENT + '[mapping.events]\n"Noise" = ""\n', rows=rows)
    settled = settle_all(harness)
    assert sorted((settlement.id, settlement.reason) for settlement in settled) == [
        (1, ""),
        (2, ""),
        (4, "mapped_to_nothing"),
        (5, "mapped_to_nothing"),
    ]
    assert harness.dispatcher.statistics().queues.loaded == 1


def test_what_a_rule_drops_after_many_ready_users_is_settled():
    """Loading stops once 256 users are ready; on a spent day, what came behind them stayed pending until the next one."""
    rows = [track(number, f"u{number}") for number in range(1, 2001)]
    rows += [track(number, f"u{number}", event="Noise") for number in range(2001, 3001)]
    rows += [track(3001, "last")]
    harness = DispatcherHarness(SPENT, rows=rows)
    assert len(settle_all(harness)) == 2
    loaded = harness.dispatcher.statistics().queues.loaded
    assert harness.swept == []
    harness.reload(SPENT + '[mapping.events]\n"Noise" = ""\n')
    settle_all(harness)
    assert [settlement.id for settlement in harness.swept] == list(range(2001, 3001))
    assert {(settlement.state, settlement.reason) for settlement in harness.swept} == {
        (EventState.DROPPED, "mapped_to_nothing")
    }
    assert harness.dispatcher.statistics().queues.loaded == loaded
    assert harness.dispatcher.wants() is None, "the backlog is read once"
    harness.rows.append(track(3002, "new", event="Noise"))
    harness.dispatcher.accepted()
    settle_all(harness)
    assert harness.swept[-1].id == 3002


def rows_of_one_user(noise_from: int, to: int) -> list[Row]:
    """Rows of which the first stay at the head of their user, and those behind them are parked."""
    return [track(number, "a", event="Send" if number < noise_from else "Noise") for number in range(1, to)]


def test_parked_rows_that_a_rule_drops_are_settled_after_a_reload():
    """They stayed pending behind a head that may not be dropped and waits for the next day, or for a retry."""
    harness = DispatcherHarness(SPENT, rows=rows_of_one_user(9, 401))
    assert [settlement.id for settlement in settle_all(harness)] == [1, 2]
    assert len(harness.parked) > 300
    harness.reload(SPENT + '[mapping.events]\n"Noise" = ""\n')
    settle_all(harness)
    assert sorted(settlement.id for settlement in harness.swept) == list(range(9, 401))
    assert harness.dispatcher.wants() is None


def test_rows_are_judged_before_they_are_parked_on_a_spent_day():
    harness = DispatcherHarness(SPENT + '[mapping.events]\n"Noise" = ""\n', rows=rows_of_one_user(9, 20))
    settle_all(harness)
    harness.rows += [track(number, "a", event="Noise") for number in range(20, 300)]
    harness.dispatcher.accepted()
    settle_all(harness)
    assert [row.id for row in harness.rows if b"Noise" in row.body] == []


def test_rows_parked_during_a_retry_are_settled_after_a_reload():
    harness = DispatcherHarness("", rows=[*rows_of_one_user(4, 100), track(100, "b")])
    sent = harness.send()
    harness.reply(sent, PxAnswer(503))
    harness.reply(harness.send(), CREATED)
    harness.feed()
    harness.reload('[mapping.events]\n"Noise" = ""\n')
    while harness.feed():
        pass
    assert sorted(settlement.id for settlement in harness.swept) == list(range(4, 100))


def test_nothing_is_swept_while_events_are_sent():
    rows = [track(number, f"u{number}") for number in range(1, 1001)]
    harness = DispatcherHarness("", rows=rows)
    harness.send()
    assert not any(isinstance(harness.dispatcher.wants(), SweepPage) for _ in range(5))


def test_operator_pause_does_not_hold_what_a_rule_drops():
    harness = DispatcherHarness('[mapping.events]\n"Noise" = ""\n', rows=[track(1, "a"), track(2, "b", event="Noise")])
    harness.dispatcher.destination.pause(harness.clock.now_s)
    assert [settlement.id for settlement in settle_all(harness)] == [2]


def test_cap_drops_what_is_above_it_when_it_would_be_sent():
    rows = [track(number, f"u{number}", event="Chatty") for number in range(1, 6)] + [track(9, "z", event="Other")]
    harness = DispatcherHarness('[mapping.event."Chatty"]\nper_day = 2\n', rows=rows)
    settled = settle_all(harness)
    assert [(settlement.id, settlement.reason) for settlement in settled] == [
        (1, ""),
        (2, ""),
        (3, "capped"),
        (4, "capped"),
        (5, "capped"),
        (9, ""),
    ]
    assert [settlement.cap is not None for settlement in settled] == [True, True, False, False, False, False]


def test_retried_event_keeps_its_place_under_the_cap():
    rows = [track(1, "a", event="Chatty"), track(2, "b", event="Chatty")]
    harness = DispatcherHarness('[mapping.event."Chatty"]\nper_day = 1\n', rows=rows)
    harness.reply(harness.send(), PxAnswer(503))
    assert harness.next().settlement.reason == "capped"
    sent = harness.wait_and_send()
    (delivered,) = harness.reply(sent, CREATED)
    assert (delivered.settlement.id, delivered.settlement.state) == (1, EventState.DELIVERED)


def test_retried_event_that_a_rule_drops_returns_its_place():
    """A later event of the name was dropped as ``capped`` although the day had a place left."""
    cap = '[mapping.event."Chatty"]\nper_day = 1\n'
    filtered = '[[mapping.drop]]\nevent = "*"\nwhere = { "userId" = "a" }\n'
    harness = DispatcherHarness(cap, rows=[track(1, "a", event="Chatty"), track(2, "b")])
    harness.reply(harness.send(), PxAnswer(503))
    harness.reload(cap + filtered)
    assert {settlement.reason for settlement in settle_all(harness)} == {""}
    harness.clock.now_s += 2
    assert [settlement.reason for settlement in settle_all(harness)] == ["filtered"]
    harness.rows.append(track(3, "c", event="Chatty"))
    harness.dispatcher.accepted()
    assert [settlement.reason for settlement in settle_all(harness)] == [""]


def test_cap_counts_by_utc_day_and_survives_a_restart():
    caps = DailyCaps()
    cap = Cap("Chatty", 2)
    first, second = caps.take(cap, 10 * DAY_MS), caps.take(cap, 11 * DAY_MS - 1)
    assert first == second is not None
    assert caps.take(cap, 10 * DAY_MS + 5) is None
    assert caps.take(cap, 11 * DAY_MS) is not None
    restarted = DailyCaps([(first.number, first.day, 1)])
    assert restarted.take(cap, 10 * DAY_MS) is not None
    assert restarted.take(cap, 10 * DAY_MS) is None
    restarted.give_back(first)
    assert restarted.take(cap, 10 * DAY_MS) is not None


def test_the_sample_of_a_user_hashed_elsewhere_is_that_of_its_digest():
    """The sweep hashed the digest once more, and dropped events of users whose events are sent."""
    rules = '[mapping.fields]\nidentifyId = "properties.email"\n[mapping.attributes]\nhash = ["email"]\nhash_salt = "salt"\n'
    rules += '[mapping.event."Logged In"]\nsample = 0.5\n'
    settings = LiveSettings(compile_settings(load_text(rules), {}, {}))
    judge, reasons = RuleJudge(settings), set()
    for number in range(20):
        own = track(number, properties={"email": f"{number}@example.com"})
        exported, hashed = settings.now.mapper.export(decode_stored(own.body))
        row = own._replace(body=encode(exported), hashed=encode(hashed).decode())
        assert judge.reason(row) == judge.reason(own)
        reasons.add(judge.reason(own))
    assert reasons == {None, "sampled"}


def test_a_damaged_row_is_left_to_its_turn():
    judge = RuleJudge(LiveSettings(compile_settings(load_text('[[mapping.drop]]\nevent = "?*"'), {}, {})))
    assert judge.reason(track(1)) == "filtered"
    assert [judge.reason(track(1)._replace(**damage)) for damage in ({"body": b"{"}, {"hashed": '["a'})] == [None, None]


def test_backlog_that_has_to_wait_keeps_out_no_higher_class():
    """With the day's normal share spent, 256 users of class normal filled the queues, and the reserve was never used."""
    config = '[deliver]\nper_day = 100\nreserve_for_high = 0.5\n[mapping.event."Alarm"]\npriority = "high"\n'
    rows = [track(number, f"u{number}") for number in range(1, 2000)]
    harness = DispatcherHarness(config, rows=rows)
    assert len(settle_all(harness)) == 50
    harness.rows.append(track(5000, "z", event="Alarm")._replace(priority=Priority.HIGH))
    harness.dispatcher.accepted()
    sent = harness.send()
    assert isinstance(sent, Send)
    assert sent.event.id == 5000


def test_cap_is_a_key_of_the_configuration():
    assert load_text('[mapping.event."X"]\nper_day = 3\n').mapping.event["X"].per_day == 3


async def test_the_daemon_settles_what_a_rule_drops_further_back(tmp_path, autojump_clock):
    config = SPENT + '[mapping.events]\n"Noise" = ""\n'
    async with delivering(tmp_path, ScriptedPx(create_all), config) as daemon:
        await daemon.outbox.accept([new_event(number, f"u{number}") for number in range(1, 1501)])
        noise = [new_event(number, f"u{number}") for number in range(1501, 2001)]
        body = [event.body.replace(b"Logged In", b"Noise") for event in noise]
        await daemon.outbox.accept(
            [structs.replace(event, body=body[at], name="Noise") for at, event in enumerate(noise)]
        )
        with trio.fail_after(300):
            while daemon.store.pending() > 1498:
                await trio.sleep(1)
        counters = daemon.outbox.counters
        assert (counters["delivered"], counters["dropped:mapped_to_nothing"], daemon.store.pending()) == (2, 500, 1498)


async def test_new_events_are_swept_together(tmp_path, autojump_clock, monkeypatch):
    """On a spent day each accepted event cost a second call to the store."""
    swept, read = [], delivery_loop._swept_page
    monkeypatch.setattr(delivery_loop, "_swept_page", lambda *asked: swept.append(asked) or read(*asked))
    config = SPENT + '[mapping.events]\n"Noise" = ""\n'
    async with delivering(tmp_path, ScriptedPx(create_all), config) as daemon:
        await daemon.outbox.accept([new_event(number, f"u{number}") for number in range(1, 1501)])
        await trio.sleep(60)
        swept.clear()
        for number in range(1501, 1801):
            event = new_event(number, f"u{number}")
            await daemon.outbox.accept(
                [structs.replace(event, body=event.body.replace(b"Logged In", b"Noise"), name="Noise")]
            )
            await trio.sleep(0.01)
        assert 1 <= len(swept) <= 10
        await trio.sleep(3)
        assert daemon.outbox.counters["dropped:mapped_to_nothing"] == 300


async def test_a_sweep_that_drops_nothing_pauses_at_each_page(tmp_path, autojump_clock, monkeypatch):
    """Without a pause it read every event back at once, beside the events on their way in."""
    swept, read = [], delivery_loop._swept_page
    monkeypatch.setattr(delivery_loop, "_swept_page", lambda *asked: swept.append(asked) or read(*asked))
    async with delivering(tmp_path, ScriptedPx(create_all), SPENT) as daemon:
        await daemon.outbox.accept([new_event(number, f"u{number}") for number in range(1, 1501)])
        await trio.sleep(60)
        swept.clear()
        await daemon.outbox.accept([new_event(number, f"u{number}") for number in range(1501, 5001)])
        await trio.sleep(1)
        assert 5 <= len(swept) <= 21
        await trio.sleep(5)
        assert len(swept) >= 3500 // 64


async def test_the_daemon_settles_parked_rows_that_a_rule_drops(tmp_path, autojump_clock):
    """One user's head waits for the next day; what is behind it is parked in the file, also by an earlier process."""
    one = lambda number: new_event(number, "u")  # noqa: E731
    noise = [
        structs.replace(one(number), body=one(number).body.replace(b"Logged In", b"Noise")) for number in range(20, 200)
    ]
    async with delivering(tmp_path, ScriptedPx(create_all), SPENT) as daemon:
        await daemon.outbox.accept([*map(one, range(20)), *noise])
        await trio.sleep(30)
        assert daemon.store.pending() == 198
    async with delivering(tmp_path, ScriptedPx(create_all), SPENT + '[mapping.events]\n"Noise" = ""\n') as daemon:
        await trio.sleep(30)
        assert daemon.outbox.counters["dropped:mapped_to_nothing"] == 180
        await daemon.outbox.accept([structs.replace(event, message_id=f"again {event.message_id}") for event in noise])
        await trio.sleep(30)
        assert daemon.outbox.counters["dropped:mapped_to_nothing"] == 360
        assert daemon.store.pending() == 18
    px = ScriptedPx(create_all)
    async with delivering(tmp_path, px) as daemon:
        await trio.sleep(30)
        assert daemon.outbox.counters["delivered"] == 20
    assert [number_of(event) for event in px.stored] == list(range(2, 20))
