"""The dispatcher: which request is sent next, and what becomes of its event. Decisions without I/O."""

import json

import pytest
from dispatcher_harness import CREATED, DispatcherHarness, settlement, track

from sidecar.deliver.actions import LoadPage, Settle, WaitUntil
from sidecar.mapping import Priority
from sidecar.outbox import EventState, Failure, Page, Remembered, Row
from sidecar.px import NotSent, PxAnswer, Unknown

HOUR_MS = 3_600_000


# Answers -----------------------------------------------------------------------------------------------------------


def test_a_2xx_delivers():
    harness = DispatcherHarness(rows=[track(1)])
    settled = settlement(harness.reply(harness.send(), CREATED))
    assert (settled.id, settled.state, settled.status, settled.attempts, settled.name) == (
        1,
        EventState.DELIVERED,
        201,
        1,
        "Logged In",
    )


@pytest.mark.parametrize("status", [400, 413, 422, 418])
def test_refusal_is_dead_once_another_event_is_delivered(status):
    harness = DispatcherHarness(rows=[track(1, "a"), track(2, "b")])
    assert harness.reply(harness.send(), PxAnswer(status, b'{"errorMessage": "eventName is odd"}')) == []
    written = harness.reply(harness.send(), CREATED)
    settlements = [action.settlement for action in written if isinstance(action, Settle)]
    dead = [settled for settled in settlements if settled.state is EventState.DEAD]
    assert [(settled.id, settled.reason, settled.status) for settled in dead] == [(1, "refused", status)]
    assert "eventName is odd" in dead[0].detail
    assert json.loads(dead[0].payload)["identifyId"] == "a"


def test_refusal_is_dead_if_no_other_answer_comes():
    harness = DispatcherHarness(rows=[track(1)])
    assert harness.reply(harness.send(), PxAnswer(400)) == []
    action = harness.next()
    assert isinstance(action, WaitUntil)
    harness.clock.now_s = action.until_s
    action = harness.next()
    assert isinstance(action, Settle)
    assert (action.settlement.state, action.settlement.reason) == (EventState.DEAD, "refused")


def test_wrong_property_key_keeps_the_backlog_pending():
    harness = DispatcherHarness(rows=[track(number, f"u{number}") for number in range(1, 100)])
    for _ in range(50):
        assert harness.reply(harness.send(), PxAnswer(400)) == []
    assert isinstance(harness.next(), WaitUntil)
    status = harness.dispatcher.destination.describe(harness.clock.now_s)
    assert (status.state, status.reason) == ("paused", "refused")
    assert "property_key" in status.message
    assert len(harness.dispatcher.statistics().in_flight) == 0
    harness.dispatcher.destination.resume(harness.clock.now_s)
    probe = harness.send()
    harness.reply(probe, CREATED)
    delivered = {probe.event.id}
    for _ in range(98):
        sent = harness.send()
        harness.reply(sent, CREATED)
        delivered.add(sent.event.id)
    assert delivered == set(range(1, 100))


@pytest.mark.parametrize("reply", [PxAnswer(503), PxAnswer(500), PxAnswer(408), PxAnswer(425), Unknown("reset")])
def test_transient_failure_is_retried_while_others_are_sent(reply):
    harness = DispatcherHarness(rows=[track(1, "a"), track(2, "a"), track(3, "b")])
    (failure,) = harness.reply(harness.send(), reply)
    assert isinstance(failure, Failure)
    assert (failure.id, failure.attempts, failure.ambiguous) == (1, 1, isinstance(reply, Unknown))
    other = harness.send()
    assert other.event.id == 3
    harness.reply(other, CREATED)
    action = harness.next()
    assert isinstance(action, WaitUntil)  # 2 waits behind 1
    harness.clock.now_s += 1.0
    again = harness.send()
    assert again.event.id == 1
    assert settlement(harness.reply(again, CREATED)).attempts == 2


def test_unsent_request_costs_no_attempt_and_keeps_its_position():
    harness = DispatcherHarness(rows=[track(1, "a"), track(2, "b")])
    assert harness.reply(harness.send(), NotSent("refused")) == []
    assert len(harness.dispatcher.statistics().in_flight) == 0
    action = harness.next()
    assert isinstance(action, WaitUntil)
    harness.clock.now_s = action.until_s
    probe = harness.send()
    assert probe.event.id == 1
    assert settlement(harness.reply(probe, CREATED)).attempts == 1


def test_outage_is_probed_with_one_event():
    harness = DispatcherHarness(rows=[track(1, "a"), track(2, "b")])
    harness.reply(harness.send(), NotSent("refused"))
    harness.clock.now_s += 400
    probe = harness.send()
    assert isinstance(harness.next(), WaitUntil)
    harness.reply(probe, CREATED)
    assert harness.send().event.id == 2


@pytest.mark.parametrize(("status", "word"), [(401, "Write"), (404, "region"), (407, "proxy")])
def test_wrong_key_or_region_pauses_and_keeps_everything(status, word):
    harness = DispatcherHarness(rows=[track(1)])
    assert harness.reply(harness.send(), PxAnswer(status)) == []
    assert isinstance(harness.next(), WaitUntil)
    described = harness.dispatcher.destination.describe(harness.clock.now_s)
    assert described.state == "paused"
    assert word in described.message


def test_event_failing_for_a_day_while_others_succeed_is_dead():
    almost = Failure(1, 40, 1, 1_700_000_000_000 - HOUR_MS, 19, 24 * HOUR_MS, "503")
    harness = DispatcherHarness(rows=[track(1, "a", failure=almost), track(2, "b")])
    poison, other = harness.send(), harness.send()
    harness.reply(other, CREATED)
    settled = settlement(harness.reply(poison, PxAnswer(503)))
    assert (settled.state, settled.reason) == (EventState.DEAD, "failing")


def test_firewall_gets_three_tries():
    harness = DispatcherHarness(rows=[track(1)])
    page = PxAnswer(403, b"<html>403</html>", None, "text/html")
    for _ in range(2):
        (failure,) = harness.reply(harness.send(), page)
        assert isinstance(failure, Failure)
        harness.clock.now_s += 10
    settled = settlement(harness.reply(harness.send(), page))
    assert (settled.state, settled.reason) == (EventState.DEAD, "firewall")


def test_a_429_waits_for_its_retry_after_and_keeps_the_event():
    harness = DispatcherHarness(rows=[track(1)])
    start_s = harness.clock.now_s
    assert harness.reply(harness.send(), PxAnswer(429, b"", "7")) == []
    action = harness.next()
    assert isinstance(action, WaitUntil)
    assert action.until_s >= start_s + 7
    harness.clock.now_s = action.until_s
    assert harness.send().event.id == 1


# Without a request ---------------------------------------------------------------------------------------------------


def test_event_without_a_user_is_dropped_without_a_request():
    harness = DispatcherHarness(rows=[Row(1, Priority.NORMAL, 0, None, 0, b'{"type":"track","event":"x"}', None)])
    action = harness.next()
    assert isinstance(action, Settle)
    assert (action.settlement.state, action.settlement.reason) == (EventState.DROPPED, "no_user")
    assert len(harness.dispatcher.statistics().in_flight) == 0


@pytest.mark.parametrize("damage", [{"body": b"{dam"}, {"hashed": '["a'}], ids=["body", "hashed"])
def test_damaged_row_is_dead_and_does_not_stop_others(damage):
    harness = DispatcherHarness(rows=[track(1)._replace(**damage), track(2)])
    action = harness.next()
    assert isinstance(action, Settle)
    assert (action.settlement.state, action.settlement.reason) == (EventState.DEAD, "mapping_error")
    assert harness.send().event.id == 2


def test_event_older_than_max_age_is_dead():
    harness = DispatcherHarness('[deliver]\nmax_age = "1h"', rows=[track(1)])
    harness.clock.now_s += 3601
    action = harness.next()
    assert isinstance(action, Settle)
    assert (action.settlement.state, action.settlement.reason) == (EventState.DEAD, "too_old")


@pytest.mark.parametrize("reason", ["too_old", "capped"])
def test_an_event_settled_unsent_has_no_attempt_and_no_payload(reason):
    """It was counted as sent once, and the dead letter and the feed showed as sent what PX never got."""
    config = '[deliver]\nmax_age = "1h"\n' if reason == "too_old" else '[mapping.event."Logged In"]\nper_day = 0\n'
    harness = DispatcherHarness(config, rows=[track(1)])
    harness.clock.now_s += 3601
    action = harness.next()
    assert isinstance(action, Settle)
    settled, (outcome,) = action.settlement, harness.telemetry.settled
    assert (settled.reason, settled.attempts, settled.payload) == (reason, 0, b"")
    assert (outcome.attempts, outcome.request, outcome.payload) == (0, "", b"")


def test_an_event_too_old_for_its_retry_has_the_attempts_that_failed():
    harness = DispatcherHarness('[deliver]\nmax_age = "1h"\n', rows=[track(1)])
    harness.reply(harness.send(), PxAnswer(503))
    harness.clock.now_s += 3601
    action = harness.next()
    assert isinstance(action, Settle)
    assert (action.settlement.reason, action.settlement.attempts) == ("too_old", 1)


def test_event_exactly_as_old_as_max_age_is_sent():
    harness = DispatcherHarness('[deliver]\nmax_age = "1h"', rows=[track(1)])
    harness.clock.now_s = (harness.rows[0].received_ms - 1_700_000_000_000) / 1000 + 3600
    assert harness.send().event.id == 1


def test_max_age_is_checked_at_send_time():
    """An event that was ready before a pause was checked then, and sent however old it had become."""
    harness = DispatcherHarness('[deliver]\nmax_age = "1h"', rows=[track(1)])
    harness.dispatcher.destination.pause(harness.clock.now_s)
    assert isinstance(harness.next(), WaitUntil)
    harness.clock.now_s += 3601
    harness.dispatcher.destination.resume(harness.clock.now_s)
    action = harness.next()
    assert isinstance(action, Settle)
    assert action.settlement.reason == "too_old"


def test_event_is_mapped_by_the_rules_at_send_time():
    """An event that was ready before a pause was mapped then, and sent with an attribute that a reload had forbidden."""
    harness = DispatcherHarness(rows=[track(1, properties={"email": "ann@example.com", "n": 1})])
    harness.dispatcher.destination.pause(harness.clock.now_s)
    assert isinstance(harness.next(), WaitUntil)
    harness.reload('[mapping.attributes]\ndrop = ["email"]')
    harness.clock.now_s += 10
    harness.dispatcher.destination.resume(harness.clock.now_s)
    assert json.loads(harness.send().request.body)["attributes"] == {"n": 1}


def test_max_age_of_a_retried_dead_letter_counts_from_retry():
    """Its age was counted from its acceptance, so that it was dead again at once."""
    harness = DispatcherHarness('[deliver]\nmax_age = "1h"', rows=[track(1)])
    harness.clock.now_s += 3601
    harness.rows = [harness.rows[0]._replace(retried_ms=harness.clock.wall_ms())]
    assert harness.send().event.id == 1


# Memory ------------------------------------------------------------------------------------------------------------


def test_group_call_enriches_later_events_before_its_commit():
    harness = DispatcherHarness(rows=[track(1, type="group", groupId="acct-1"), track(2)])
    action = harness.next()
    assert isinstance(action, Settle)
    assert action.settlement.reason == "remembered"
    assert action.settlement.remember is not None
    assert json.loads(harness.send().request.body)["accountId"] == "acct-1"


def test_memory_comes_with_the_page():
    harness = DispatcherHarness(rows=[track(1)], known=[Remembered("AP-XXXXXXXXXX-2", "u", b'{"account_id":"acct-9"}')])
    assert json.loads(harness.send().request.body)["accountId"] == "acct-9"


def test_retried_identify_is_mapped_like_the_first_time():
    """The memory of traits that were not delivered made the second attempt find nothing to send."""
    harness = DispatcherHarness(
        '[people]\nusers = "upsert"', rows=[track(1, type="identify", traits={"email": "a@b.c"})]
    )
    first = harness.send()
    harness.reply(first, PxAnswer(503))
    harness.clock.now_s += 2
    again = harness.send()
    assert again.request == first.request
    assert settlement(harness.reply(again, PxAnswer(204))).remember is not None


def test_probe_of_several_requests_does_not_wait_for_itself():
    harness = DispatcherHarness(
        '[people]\nusers = "upsert"', rows=[track(1, type="identify", traits={"email": "a@b.c"})]
    )
    harness.reply(harness.send(), NotSent("refused"))
    harness.clock.now_s += 400
    put = harness.send()
    assert harness.reply(put, PxAnswer(404)) == []
    post = harness.send()
    assert post.request.method == "POST"
    assert settlement(harness.reply(post, CREATED)).state is EventState.DELIVERED


# Limits ------------------------------------------------------------------------------------------------------------


def test_lowered_max_in_flight_holds_for_the_next_send():
    harness = DispatcherHarness("[deliver]\nmax_in_flight = 2", rows=[track(1, "a"), track(2, "b")])
    harness.send()
    harness.reload("[deliver]\nmax_in_flight = 1")
    harness.clock.now_s += 1
    assert isinstance(harness.next(), WaitUntil)


def test_slot_is_free_only_after_the_commit():
    harness = DispatcherHarness("[deliver]\nmax_in_flight = 1", rows=[track(1, "a"), track(2, "b")])
    settled = settlement(harness.reply(harness.send(), CREATED))
    assert isinstance(harness.next(), WaitUntil)
    harness.dispatcher.settled([settled])
    assert harness.send().event.id == 2


def test_events_on_probation_hold_no_slots():
    harness = DispatcherHarness("[deliver]\nmax_in_flight = 1", rows=[track(1, "a"), track(2, "b")])
    harness.reply(harness.send(), PxAnswer(400))
    assert harness.send().event.id == 2


def test_nothing_is_due_while_probation_waits_for_an_answer():
    """A time in the past was returned as the next change, and the loop never slept."""
    harness = DispatcherHarness(rows=[track(1, "a"), track(2, "b")])
    harness.reply(harness.send(), PxAnswer(400))
    harness.send()
    harness.clock.now_s += 60
    action = harness.next()
    assert isinstance(action, WaitUntil)
    assert action.until_s == float("inf")


def test_high_events_go_first_and_may_use_the_reserve():
    rows = [track(number, f"u{number}") for number in range(1, 11)]
    rows += [track(number, f"v{number}")._replace(priority=Priority.HIGH) for number in range(11, 14)]
    harness = DispatcherHarness("[deliver]\nper_day = 10\nreserve_for_high = 0.5", rows=rows)
    assert [harness.send().event.id for _ in range(5)] == [11, 12, 13, 1, 2]
    assert isinstance(harness.next(), WaitUntil)  # half of the day is spent
    harness.rows.append(track(14, "w")._replace(priority=Priority.HIGH))
    harness.dispatcher.accepted()
    assert harness.send().event.id == 14


def test_low_events_take_what_the_others_leave():
    """Of the second: they go when nothing else is ready. Of the day: the reserve is not theirs."""
    rows = [track(number, f"u{number}")._replace(priority=Priority.LOW) for number in range(1, 11)]
    rows += [track(11, "v")]
    harness = DispatcherHarness("[deliver]\nper_day = 10\nreserve_for_high = 0.5", rows=rows)
    assert [harness.send().event.id for _ in range(2)] == [11, 1]
    harness.rows.append(track(12, "w"))
    harness.dispatcher.accepted()
    assert [harness.send().event.id for _ in range(3)] == [12, 2, 3]
    assert isinstance(harness.next(), WaitUntil)  # half of the day is spent
    harness.rows += [track(13, "x"), track(14, "y")._replace(priority=Priority.HIGH)]
    harness.dispatcher.accepted()
    assert harness.send().event.id == 14
    assert isinstance(harness.next(), WaitUntil)


def test_no_page_is_wanted_until_an_event_is_accepted():
    harness = DispatcherHarness(rows=[])
    harness.feed()
    assert harness.dispatcher.wants() is None
    harness.dispatcher.accepted()
    assert isinstance(harness.dispatcher.wants(), LoadPage)


def test_only_the_class_of_accepted_events_is_read():
    """Each event caused three reads of the store, two of them empty."""
    harness = DispatcherHarness(rows=[])
    harness.feed()
    harness.dispatcher.accepted([Priority.HIGH])
    wanted = harness.dispatcher.wants()
    assert wanted == LoadPage(Priority.HIGH, 0, wanted.limit)
    harness.dispatcher.loaded(wanted.priority, Page([], [], False))
    assert harness.dispatcher.wants() is None


def test_a_page_is_read_with_the_commit_of_its_events():
    harness = DispatcherHarness(rows=[])
    harness.feed()
    wanted = harness.dispatcher.page_with({Priority.NORMAL})
    assert wanted == LoadPage(Priority.NORMAL, 0, wanted.limit)
    harness.dispatcher.loaded(wanted.priority, Page([track(7)], [], False))
    assert harness.dispatcher.page_with({Priority.NORMAL}).after_id == 7
    assert harness.dispatcher.wants() is None
    assert harness.send().event.id == 7


def test_no_page_is_read_with_a_commit_while_more_is_to_be_read():
    harness = DispatcherHarness(rows=[])
    assert harness.dispatcher.page_with({Priority.NORMAL}) is None  # the backlog is not read yet
    harness.feed()
    assert harness.dispatcher.page_with({Priority.NORMAL, Priority.HIGH}) is None
    harness.dispatcher.rewind(1)
    assert harness.dispatcher.page_with({Priority.NORMAL}) is None


def test_an_event_accepted_after_a_page_read_with_a_commit_is_loaded():
    harness = DispatcherHarness(rows=[])
    harness.feed()
    wanted = harness.dispatcher.page_with({Priority.NORMAL})
    harness.dispatcher.accepted([Priority.NORMAL])
    harness.dispatcher.loaded(wanted.priority, Page([track(1)], [], False))
    assert isinstance(harness.dispatcher.wants(), LoadPage)


def test_retried_dead_letters_are_loaded_again():
    harness = DispatcherHarness(rows=[track(1, "a"), track(2, "b")])
    for _ in range(2):
        sent = harness.send()
        harness.dispatcher.settled([settlement(harness.reply(sent, CREATED))])
    harness.rows = [track(1, "a")]
    harness.dispatcher.rewind(1)
    assert harness.send().event.id == 1


# Changes while a page is being read ----------------------------------------------------------------------------------


def test_rewind_holds_while_a_page_is_being_read():
    """The page moved the place to read on from forward again, and the dead letter waited for a restart."""
    harness = DispatcherHarness(rows=[])
    harness.feed()
    harness.dispatcher.accepted()
    wanted = harness.dispatcher.wants()
    assert isinstance(wanted, LoadPage)
    harness.dispatcher.rewind(1)
    harness.dispatcher.loaded(wanted.priority, Page([track(50, "b")._replace(priority=wanted.priority)], [], False))
    harness.rows = [track(1, "a")]
    assert {harness.send().event.id, harness.send().event.id} == {1, 50}


def test_event_accepted_while_a_page_is_being_read_is_loaded():
    harness = DispatcherHarness(rows=[])
    harness.feed()
    harness.dispatcher.accepted()
    for _ in range(2):
        wanted = harness.dispatcher.wants()
        assert isinstance(wanted, LoadPage)
        harness.dispatcher.accepted()
        harness.dispatcher.loaded(wanted.priority, Page([], [], False))
    harness.rows = [track(1)]
    assert harness.send().event.id == 1


def test_answered_uncommitted_event_is_not_sent_after_a_rewind():
    harness = DispatcherHarness(rows=[track(1, "a"), track(2, "b")])
    settled = settlement(harness.reply(harness.send(), CREATED))
    harness.dispatcher.rewind(1)
    assert harness.send().event.id == 2
    assert isinstance(harness.next(), WaitUntil)
    harness.dispatcher.settled([settled])
