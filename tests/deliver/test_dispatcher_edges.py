"""The dispatcher at its edges: texts, exact counts and times, and what a reload or a restart changes."""

import json

import pytest
from dispatcher_harness import CREATED, DispatcherHarness, settlement, track

from sidecar.deliver.actions import LoadPage, LoadParked, Send, Settle, WaitUntil
from sidecar.deliver.destination import Wait
from sidecar.deliver.dispatcher import READY_LOW
from sidecar.deliver.order import QUEUE_MAX
from sidecar.mapping import Priority
from sidecar.outbox import PAGE_ROWS, EventState, Failure, Page, Row
from sidecar.px import NotSent, PxAnswer, Unknown, classify

HTML = PxAnswer(403, b"<html>403</html>", None, "text/html")
START_MS = 1_700_000_000_000
PEOPLE = '[people]\nusers = "upsert"\naccounts = "upsert"\n'


def identify_row(number: int, user: str) -> Row:
    return track(number, user, type="identify", traits={"email": "a@b.c"})


# Pace --------------------------------------------------------------------------------------------------------------


def test_every_request_counts_in_the_pace():
    harness = DispatcherHarness(rows=[track(number, f"u{number}") for number in range(1, 200)])
    began_s = harness.clock.now_s
    for _ in range(199):
        harness.dispatcher.settled([settlement(harness.reply(harness.send(), CREATED))])
    assert harness.clock.now_s - began_s >= 1.0


def test_bucket_has_the_lower_pace_after_a_429():
    harness = DispatcherHarness(rows=[track(1), track(2, "v")])
    assert harness.reply(harness.send(), PxAnswer(429)) == []
    harness.reply(harness.wait_and_send(), CREATED)
    harness.send()
    assert harness.dispatcher.limiter.bucket.per_second == pytest.approx(190 * 0.9)


def test_ten_minutes_of_429_without_a_delivery_spend_the_day():
    harness = DispatcherHarness(rows=[track(1)])
    began_s = harness.clock.now_s
    while not harness.dispatcher.limiter.quota.describe().by_px:
        assert harness.clock.now_s - began_s < 7200
        harness.reply(harness.wait_and_send(), PxAnswer(429))
    assert harness.clock.now_s - began_s > 600
    spent_s = harness.clock.now_s
    harness.wait_and_send()
    assert harness.clock.now_s >= spent_s + 3600


# Demand ------------------------------------------------------------------------------------------------------------


def test_demand_is_what_could_leave_by_class_and_one_for_a_probe():
    """A fleet asks for slots by it: one too many is a slot that others lack, none for a probe would end no pause."""
    rows = [track(number, f"u{number}") for number in range(1, 6)] + [track(9, "h")._replace(priority=Priority.HIGH)]
    harness = DispatcherHarness("[deliver]\nmax_in_flight = 4", rows=rows)
    harness.feed()
    demand, now_s = harness.dispatcher.demand, harness.clock.now_s
    assert demand(now_s) == (1, 3, 0)
    sent = harness.send()
    assert (sent.event.id, demand(now_s)) == (9, (0, 3, 0))
    assert harness.reply(sent, NotSent("refused")) == []
    assert demand(now_s) == (0, 0, 0)
    assert sum(demand(now_s + 3600)) == 1


# Probes ------------------------------------------------------------------------------------------------------------


def test_second_request_of_a_probe_goes_before_an_older_event():
    """With the only slot taken by the probe, the older event could not be sent, and delivery stood still."""
    config = '[deliver]\nmax_in_flight = 1\n[people]\nusers = "upsert"'
    harness = DispatcherHarness(config, rows=[track(5, "b", type="identify", traits={"email": "b@x.y"})])
    assert harness.reply(harness.send(), NotSent("refused")) == []
    probe = harness.wait_and_send()
    harness.rows.append(track(1, "a"))
    harness.dispatcher.rewind(1)
    harness.feed()
    assert harness.reply(probe, PxAnswer(404)) == []
    assert harness.send().event.id == 5


def test_event_that_was_a_probe_is_an_ordinary_one_later():
    harness = DispatcherHarness(rows=[track(1, "a"), track(2, "b")])
    first, late = harness.send(), harness.send()
    assert harness.reply(first, NotSent("refused")) == []
    probe = harness.wait_and_send()
    harness.reply(probe, PxAnswer(503))
    harness.reply(late, CREATED)  # a delivery opens, even if it is not the probe
    again = harness.wait_and_send()
    assert again.event is probe.event
    harness.reply(again, PxAnswer(503))  # no longer a probe: one such answer is not an outage
    assert harness.dispatcher.destination.describe(harness.clock.now_s).state == "open"


def test_answer_under_way_is_not_taken_for_the_probes_answer():
    harness = DispatcherHarness(rows=[track(number, f"u{number}") for number in range(1, 4)])
    first, late = harness.send(), harness.send()
    assert harness.reply(first, NotSent("refused")) == []
    probe = harness.wait_and_send()
    harness.reply(late, PxAnswer(503))
    assert harness.reply(probe, NotSent("refused")) == []
    action = harness.next()
    assert isinstance(action, WaitUntil)
    assert action.until_s < harness.clock.now_s + 400  # otherwise no probe would ever be sent again
    assert harness.wait_and_send()


def test_retry_after_of_a_firewall_is_obeyed():
    harness = DispatcherHarness(rows=[track(1)])
    began_s = harness.clock.now_s
    harness.reply(harness.send(), PxAnswer(403, b"<html>403</html>", "70", "text/html"))
    harness.wait_and_send()
    assert harness.clock.now_s >= began_s + 70


# Attempts ----------------------------------------------------------------------------------------------------------


def test_retry_frees_the_slot_and_is_mapped_by_current_rules():
    harness = DispatcherHarness(rows=[track(1, properties={"email": "ann@example.com", "n": 1})])
    harness.reply(harness.send(), PxAnswer(503))
    assert len(harness.dispatcher.statistics().in_flight) == 0
    harness.reload('[mapping.attributes]\ndrop = ["email"]')
    assert json.loads(harness.wait_and_send().request.body)["attributes"] == {"n": 1}


def test_unsent_event_is_mapped_again_by_current_rules():
    harness = DispatcherHarness(rows=[track(1, properties={"email": "ann@example.com", "n": 1})])
    assert harness.reply(harness.send(), NotSent("refused")) == []
    harness.reload('[mapping.attributes]\ndrop = ["email"]')
    assert json.loads(harness.wait_and_send().request.body)["attributes"] == {"n": 1}


def test_time_of_the_first_failure_is_kept():
    harness = DispatcherHarness(rows=[track(1)])
    began_ms = harness.clock.wall_ms()
    (first,) = harness.reply(harness.send(), PxAnswer(503))
    again = harness.wait_and_send()
    (second,) = harness.reply(again, PxAnswer(503))
    assert isinstance(first, Failure)
    assert isinstance(second, Failure)
    assert (second.attempts, second.first_failed_ms, second.last_failed_ms) == (2, began_ms, harness.clock.wall_ms())
    assert first.first_failed_ms == began_ms < second.last_failed_ms
    settled = settlement(harness.reply(harness.wait_and_send(), CREATED))
    assert (settled.attempts, settled.first_failed_ms) == (3, began_ms)


def test_event_that_never_failed_has_no_first_failure():
    harness = DispatcherHarness(rows=[track(1)])
    assert settlement(harness.reply(harness.send(), CREATED)).first_failed_ms == 0


def test_telemetry_counts_every_outcome_once():
    harness = DispatcherHarness(rows=[track(1, "a", timestamp="soon"), track(2, "b"), track(3, "c")])
    harness.reply(harness.send(), CREATED)
    harness.reply(harness.send(), PxAnswer(503))
    harness.reply(harness.send(), Unknown("reset"))
    telemetry = harness.telemetry
    assert (len(telemetry.settled), telemetry.changed) == (1, 1)
    assert [failed.ambiguous for failed in telemetry.failed] == [False, True]


def test_every_final_state_is_reported_once():
    harness = DispatcherHarness(
        rows=[track(1, "a"), Row(2, Priority.NORMAL, 0, None, 0, b'{"type":"track","event":"x"}', None)]
    )
    harness.reply(harness.send(), CREATED)
    assert isinstance(harness.next(), Settle)
    assert [(outcome.event_id, outcome.what) for outcome in harness.telemetry.settled] == [
        (1, "delivered"),
        (2, "dropped"),
    ]


# Texts -------------------------------------------------------------------------------------------------------------


def reason_and_detail(harness: DispatcherHarness) -> tuple[str | None, str]:
    action = harness.next()
    assert isinstance(action, Settle)
    assert action.settlement.state is EventState.DEAD
    return action.settlement.reason, action.settlement.detail


def test_event_dead_without_a_request_has_a_detail():
    damaged = DispatcherHarness(rows=[Row(1, Priority.NORMAL, 0, "u", 0, b"{dam", None)])
    assert reason_and_detail(damaged)[0] == "mapping_error"
    assert (
        "damaged" in reason_and_detail(DispatcherHarness(rows=[Row(1, Priority.NORMAL, 0, "u", 0, b"{dam", None)]))[1]
    )
    reason, detail = reason_and_detail(DispatcherHarness(rows=[track(1, event=None)]))
    assert reason == "mapping_error"
    assert "no name" in detail


def test_a_retried_event_that_is_still_bad_is_dead_as_bad():
    row = Row(1, Priority.NORMAL, 0, "u", 0, b'{"type":"track","userId":"u"}', None)
    reason, detail = reason_and_detail(DispatcherHarness(rows=[row._replace(retried_ms=START_MS)]))
    assert reason == "bad_event"
    assert "`event`" in detail


def test_event_1_ms_older_than_max_age_is_dead():
    harness = DispatcherHarness('[deliver]\nmax_age = "1h"', rows=[track(1)._replace(received_ms=START_MS)])
    harness.clock.now_s = 3600.001
    reason, detail = reason_and_detail(harness)
    assert reason == "too_old"
    assert "max_age" in detail
    assert [outcome.detail for outcome in harness.telemetry.settled] == [detail]


# Memory ------------------------------------------------------------------------------------------------------------


def test_dead_group_call_enriches_no_event():
    group = track(1, type="group", groupId="acct-1", traits={"name": "Acme"})
    harness = DispatcherHarness('[people]\naccounts = "upsert"', rows=[group, track(2)])
    for _ in range(2):
        harness.reply(harness.send(), HTML)
        harness.clock.now_s += 10
    settled = settlement(harness.reply(harness.send(), HTML))
    assert (settled.state, settled.reason) == (EventState.DEAD, "firewall")
    assert "accountId" not in json.loads(harness.send().request.body)


# Loading -----------------------------------------------------------------------------------------------------------


def load_page(harness: DispatcherHarness, rows: list[Row], *, more: bool) -> bool:
    """Load ``rows`` as the next page of class normal; return whether the page was useful."""
    while not isinstance(wanted := harness.dispatcher.wants(), LoadPage) or wanted.priority is Priority.HIGH:
        if isinstance(wanted, LoadPage):
            harness.dispatcher.loaded(True, Page([], [], False))
        else:
            harness.dispatcher.limiter.quota.granted(wanted)
    return harness.dispatcher.loaded(False, Page(rows, [], more))


def test_next_page_starts_after_the_previous_one():
    harness = DispatcherHarness()
    load_page(harness, [track(7, "a"), track(9, "b")], more=True)
    assert harness.dispatcher.wants() == LoadPage(False, 9, PAGE_ROWS)


@pytest.mark.parametrize(("users", "wants"), [(READY_LOW - 1, True), (READY_LOW, False)])
def test_no_page_is_wanted_while_enough_users_are_ready(users, wants):
    harness = DispatcherHarness()
    load_page(harness, [track(number, f"u{number}") for number in range(1, users + 1)], more=True)
    assert (harness.dispatcher.wants() is not None) is wants


def test_window_holds_full_queues_of_all_slots_and_a_page():
    """With full queues fewer users are ready, so the window is what ends the loading."""
    harness = DispatcherHarness("[deliver]\nmax_in_flight = 1")
    for first in range(1, 3 * PAGE_ROWS, PAGE_ROWS):
        rows = [track(number, f"u{number // QUEUE_MAX}") for number in range(first, first + PAGE_ROWS)]
        load_page(harness, rows, more=True)
    assert harness.dispatcher.statistics().queues.loaded == 3 * PAGE_ROWS > QUEUE_MAX * (1 + READY_LOW) - 2 * PAGE_ROWS
    assert isinstance(harness.dispatcher.wants(), LoadPage)


def test_page_is_useful_if_empty_or_if_a_user_becomes_ready():
    harness = DispatcherHarness()
    assert load_page(harness, [], more=False)
    harness.dispatcher.accepted()
    assert load_page(harness, [track(1, "a")], more=True)
    assert not load_page(harness, [track(2, "a")], more=True)


def test_parked_rows_of_an_earlier_process_are_wanted():
    harness = DispatcherHarness()
    harness.dispatcher.start([((False, "u"), 5)])
    load_page(harness, [track(1, "a"), track(2, "b"), track(6, "c")], more=True)
    wanted = harness.dispatcher.wants()
    assert isinstance(wanted, LoadParked)
    assert wanted.key == (False, "u")
    assert harness.dispatcher.loaded_parked(wanted.key, Page([track(5, "u")], [], False)) == []


def test_rewind_holds_although_a_page_is_loaded_after_it():
    harness = DispatcherHarness()
    load_page(harness, [track(10, "a")], more=True)
    assert harness.dispatcher.wants() == LoadPage(False, 10, PAGE_ROWS)
    harness.dispatcher.rewind(3)
    harness.dispatcher.loaded(False, Page([track(11, "b")], [], True))
    wanted = harness.dispatcher.wants()
    assert wanted == LoadPage(True, 0, PAGE_ROWS)
    harness.dispatcher.loaded(True, Page([], [], False))
    assert harness.dispatcher.wants() == LoadPage(False, 2, PAGE_ROWS)


def test_reload_reaches_the_quota_and_the_destination():
    harness = DispatcherHarness()
    harness.reload(
        '[deliver]\nper_second = 50\nper_day = 5000\npace = "spread"\nreserve_for_high = 0.5\n'
        'retry_initial = "3s"\nretry_max = "40s"',
    )
    destination, quota, now_s = harness.dispatcher.destination, harness.dispatcher.limiter.quota, harness.clock.now_s
    destination.on_verdict(classify(NotSent("refused"), wall_ms=0), event=1, user="u", now_s=now_s)
    assert destination.may_send(now_s) == Wait(now_s + 0.5 * 3)
    assert quota.describe().limit == 5000
    assert 0 < quota.pace_per_s() < 1
    assert quota.normal_limit == 2500


# Statistics -------------------------------------------------------------------------------------------------------


def test_statistics_count_loaded_and_waiting_events():
    harness = DispatcherHarness(rows=[track(1, "a"), track(2, "b")])
    harness.reply(harness.send(), PxAnswer(503))
    assert harness.dispatcher.statistics().queues.loaded == 2
    assert [event.id for event in harness.dispatcher.waiting()] == [1]


# Several requests for one event ----------------------------------------------------------------------------------


def test_event_between_two_requests_goes_before_all():
    """An older event became ready in between and waited for the slot that only this event could free."""
    harness = DispatcherHarness(PEOPLE + "[deliver]\nmax_in_flight = 1\n", [identify_row(2, "b")])
    sent = harness.next()
    assert isinstance(sent, Send)
    harness.rows.insert(0, track(1, "a")._replace(priority=Priority.HIGH))
    harness.dispatcher.rewind(1)
    harness.feed()
    assert harness.dispatcher.replied(sent.event, PxAnswer(404, b"{}"), harness.clock.now_s) == []
    harness.clock.now_s += 1
    following = harness.next()
    assert isinstance(following, Send)
    assert following.event.id == 2


def test_withdrawing_an_event_between_requests_frees_its_slot():
    """Forgetting the user at that moment kept the slot taken until a restart."""
    harness = DispatcherHarness(PEOPLE, [identify_row(2, "b")])
    sent = harness.next()
    assert isinstance(sent, Send)
    harness.dispatcher.replied(sent.event, PxAnswer(404, b"{}"), harness.clock.now_s)
    harness.dispatcher.withdraw(lambda _row: True)
    assert len(harness.dispatcher.statistics().in_flight) == 0


# Pauses and retries -----------------------------------------------------------------------------------------------


def test_pause_with_a_due_retry_sleeps_while_the_day_is_spent():
    """A due retry was not made ready before a probe that the quota did not allow: the loop did not sleep for hours."""
    harness = DispatcherHarness("[deliver]\nper_day = 2\nreserve_for_high = 0\n", [track(1, "a"), track(2, "b")])
    later, refused = harness.send(), harness.send()
    harness.reply(later, PxAnswer(503))
    harness.reply(refused, PxAnswer(401, b"{}", content_type="application/json"))
    harness.clock.now_s += 400
    action = harness.next()
    assert isinstance(action, WaitUntil)
    assert action.until_s > harness.clock.now_s + 3600


def test_pause_is_probed_with_a_retry_that_became_due():
    harness = DispatcherHarness("", [track(1, "a"), track(2, "b")])
    later, refused = harness.send(), harness.send()
    harness.reply(later, PxAnswer(503))
    harness.reply(refused, PxAnswer(401, b"{}", content_type="application/json"))
    harness.dispatcher.withdraw(lambda withdrawn: withdrawn.id == 2)
    del harness.rows[1]  # its user was forgotten
    harness.clock.now_s += 400
    assert harness.send().event.id == 1


@pytest.mark.parametrize(("last", "after"), [(PxAnswer(404), "paused"), (CREATED, "open")])
def test_a_404_for_a_person_does_not_end_a_pause_for_a_wrong_region(last, after):
    """A host that is not PX answers 404 to everything: such a probe opened delivery for the time of a round trip."""
    harness = DispatcherHarness(PEOPLE, [identify_row(number, f"u{number}") for number in range(1, 40)])
    for _ in range(2):
        harness.reply(harness.send(), PxAnswer(404))
    harness.clock.now_s += 301
    update = harness.send()
    assert harness.reply(update, PxAnswer(404)) == []
    assert harness.dispatcher.destination.describe(harness.clock.now_s).state == "paused"
    create = harness.send()
    assert (create.event.id, create.request.method) == (update.event.id, "POST")
    assert isinstance(harness.next(), WaitUntil)
    harness.reply(create, last)
    status = harness.dispatcher.destination.describe(harness.clock.now_s)
    assert status.state == after
    assert after == "open" or status.until_s == harness.clock.now_s + 300
