"""The edges of what is decided: words, counts and times to the last one, and what a reload or a restart changes."""

import json
from collections import Counter

import pytest
from test_dispatcher import CREATED, House, settlement, track

from sidecar.deliver.dispatcher import READY_LOW
from sidecar.deliver.order import QUEUE_MAX
from sidecar.deliver.steps import AsidePage, NextPage, Rest, Send, Settle
from sidecar.outbox import PAGE_ROWS, Failure, Page, Row, State
from sidecar.px import Answer, NotSent, Unknown

HTML = Answer(403, b"<html>403</html>", None, "text/html")
START_MS = 1_700_000_000_000


def wait_until_sent(house: House) -> Send:
    """The next request, however long it takes."""
    for _ in range(100):
        step = house.next()
        if isinstance(step, Send):
            return step
        assert isinstance(step, Rest)
        house.clock.now_s = step.until_s
    raise AssertionError("nothing is sent")


# Pace --------------------------------------------------------------------------------------------------------------


def test_every_request_takes_its_place_in_the_pace():
    house = House(rows=[track(number, f"u{number}") for number in range(1, 200)])
    began_s = house.clock.now_s
    for _ in range(199):
        house.it.settled([settlement(house.reply(house.send(), CREATED))])
    assert house.clock.now_s - began_s >= 1.0


def test_after_a_429_the_bucket_goes_at_the_lower_pace():
    house = House(rows=[track(1), track(2, "v")])
    assert house.reply(house.send(), Answer(429)) == []
    house.reply(wait_until_sent(house), CREATED)
    house.send()
    assert house.it.bucket.per_second == pytest.approx(190 * 0.9)


def test_after_ten_minutes_of_429_at_the_lowest_pace_the_day_counts_as_spent():
    house = House(rows=[track(1)])
    began_s = house.clock.now_s
    while not house.it.quota.describe().by_px:
        assert house.clock.now_s - began_s < 7200
        house.reply(wait_until_sent(house), Answer(429))
    assert house.clock.now_s - began_s > 600
    spent_s = house.clock.now_s
    wait_until_sent(house)
    assert house.clock.now_s >= spent_s + 3600


# Probes ------------------------------------------------------------------------------------------------------------


def test_a_probes_second_request_goes_before_an_older_event_that_came_meanwhile():
    """With the only slot taken by the probe, the older one could not go, and everything would stand still."""
    config = '[deliver]\nmax_in_flight = 1\n[people]\nusers = "upsert"'
    house = House(config, rows=[track(5, "b", type="identify", traits={"email": "b@x.y"})])
    assert house.reply(house.send(), NotSent("refused")) == []
    probe = wait_until_sent(house)
    house.rows.append(track(1, "a"))
    house.it.rewind(1)
    house.feed()
    assert house.reply(probe, Answer(404)) == []
    assert house.send().item.id == 5


def test_who_was_a_probe_once_is_judged_like_others_later():
    house = House(rows=[track(1, "a"), track(2, "b")])
    first, late = house.send(), house.send()
    assert house.reply(first, NotSent("refused")) == []
    probe = wait_until_sent(house)
    house.reply(probe, Answer(503))
    house.reply(late, CREATED)  # a delivery opens, whoever it was of
    again = wait_until_sent(house)
    assert again.item is probe.item
    house.reply(again, Answer(503))  # no probe's any more: one such answer is no outage
    assert house.it.destination.describe(house.clock.now_s).state == "open"


def test_an_answer_that_was_under_way_is_not_taken_for_the_probes():
    house = House(rows=[track(number, f"u{number}") for number in range(1, 4)])
    first, late = house.send(), house.send()
    assert house.reply(first, NotSent("refused")) == []
    probe = wait_until_sent(house)
    house.reply(late, Answer(503))
    assert house.reply(probe, NotSent("refused")) == []
    step = house.next()
    assert isinstance(step, Rest)
    assert step.until_s < house.clock.now_s + 400  # else nobody would ever probe again
    assert wait_until_sent(house)


def test_a_firewall_that_says_when_is_asked_no_sooner():
    house = House(rows=[track(1)])
    began_s = house.clock.now_s
    house.reply(house.send(), Answer(403, b"<html>403</html>", "70", "text/html"))
    wait_until_sent(house)
    assert house.clock.now_s >= began_s + 70


# Attempts ----------------------------------------------------------------------------------------------------------


def test_a_failed_attempt_gives_its_slot_back_and_the_next_one_is_mapped_by_the_rules_of_its_day():
    house = House(rows=[track(1, properties={"email": "ann@example.com", "n": 1})])
    house.reply(house.send(), Answer(503))
    assert house.it.in_flight() == 0
    house.reload('[mapping.attributes]\ndrop = ["email"]')
    assert json.loads(wait_until_sent(house).request.body)["attributes"] == {"n": 1}


def test_what_was_not_sent_is_mapped_by_the_rules_of_the_next_attempt():
    house = House(rows=[track(1, properties={"email": "ann@example.com", "n": 1})])
    assert house.reply(house.send(), NotSent("refused")) == []
    house.reload('[mapping.attributes]\ndrop = ["email"]')
    assert json.loads(wait_until_sent(house).request.body)["attributes"] == {"n": 1}


def test_when_an_event_failed_first_is_kept_through_all_its_attempts():
    house = House(rows=[track(1)])
    began_ms = house.clock.wall_ms()
    (first,) = house.reply(house.send(), Answer(503))
    again = wait_until_sent(house)
    (second,) = house.reply(again, Answer(503))
    assert isinstance(first, Failure)
    assert isinstance(second, Failure)
    assert (second.attempts, second.first_failed_ms, second.last_failed_ms) == (2, began_ms, house.clock.wall_ms())
    assert first.first_failed_ms == began_ms < second.last_failed_ms
    one = settlement(house.reply(wait_until_sent(house), CREATED))
    assert (one.attempts, one.first_failed_ms) == (3, began_ms)


def test_what_never_failed_has_no_time_of_a_first_failure():
    house = House(rows=[track(1)])
    assert settlement(house.reply(house.send(), CREATED)).first_failed_ms == 0


def test_everything_is_counted_once():
    house = House(rows=[track(1, "a", timestamp="soon"), track(2, "b"), track(3, "c")])
    house.reply(house.send(), CREATED)
    house.reply(house.send(), Answer(503))
    house.reply(house.send(), Unknown("reset"))
    answered = {"answered:delivered": 1, "answered:later": 1, "answered:ambiguous": 1}
    assert house.it.tally == Counter(requests=3, changed=1, retries=2, ambiguous=1, **answered)


def test_every_final_state_is_published_once():
    published = []
    house = House(rows=[track(1, "a"), Row(2, False, 0, None, 0, b'{"type":"track","event":"x"}', None)])
    house.it.publish = lambda item, one: published.append((item.id, one.state))
    house.reply(house.send(), CREATED)
    assert isinstance(house.next(), Settle)
    assert published == [(1, State.DELIVERED), (2, State.DROPPED)]


# Words -------------------------------------------------------------------------------------------------------------


def reason_and_detail(house: House) -> tuple[str | None, str]:
    step = house.next()
    assert isinstance(step, Settle)
    assert step.settlement.state is State.DEAD
    return step.settlement.reason, step.settlement.detail


def test_what_is_dead_without_a_request_says_why():
    damaged = House(rows=[Row(1, False, 0, "u", 0, b"{dam", None)])
    assert reason_and_detail(damaged)[0] == "mapping_error"
    assert "damaged" in reason_and_detail(House(rows=[Row(1, False, 0, "u", 0, b"{dam", None)]))[1]
    reason, detail = reason_and_detail(House(rows=[track(1, event=None)]))
    assert reason == "mapping_error"
    assert "no name" in detail


def test_what_is_a_millisecond_older_than_max_age_is_dead_and_says_so():
    house = House('[deliver]\nmax_age = "1h"', rows=[track(1)._replace(received_ms=START_MS)])
    house.clock.now_s = 3600.001
    reason, detail = reason_and_detail(house)
    assert reason == "too_old"
    assert "max_age" in detail


# Memory ------------------------------------------------------------------------------------------------------------


def test_a_group_call_that_died_enriches_nobody():
    group = track(1, type="group", groupId="acct-1", traits={"name": "Acme"})
    house = House('[people]\naccounts = "upsert"', rows=[group, track(2)])
    for _ in range(2):
        house.reply(house.send(), HTML)
        house.clock.now_s += 10
    one = settlement(house.reply(house.send(), HTML))
    assert (one.state, one.reason) == (State.DEAD, "firewall")
    assert "accountId" not in json.loads(house.send().request.body)


# Feeding -----------------------------------------------------------------------------------------------------------


def loaded(house: House, rows: list[Row], *, more: bool) -> bool:
    """Give the next page of normal events what it asked for; whether it was useful."""
    while not isinstance(asked := house.it.wants(), NextPage) or asked.high:
        if isinstance(asked, NextPage):
            house.it.loaded(True, Page([], [], False))
        else:
            house.it.quota.granted(asked)
    return house.it.loaded(False, Page(rows, [], more))


def test_a_page_goes_on_behind_the_one_before():
    house = House()
    loaded(house, [track(7, "a"), track(9, "b")], more=True)
    assert house.it.wants() == NextPage(False, 9, PAGE_ROWS)


@pytest.mark.parametrize(("users", "wants"), [(READY_LOW - 1, True), (READY_LOW, False)])
def test_no_page_is_asked_for_while_a_good_second_of_users_is_ready(users, wants):
    house = House()
    loaded(house, [track(number, f"u{number}") for number in range(1, users + 1)], more=True)
    assert (house.it.wants() is not None) is wants


def test_the_window_holds_a_full_queue_of_all_that_are_in_flight_or_ready_and_a_page():
    """Of users with full queues fewer are ready, so that it is the window that ends the reading."""
    house = House("[deliver]\nmax_in_flight = 1")
    for first in range(1, 3 * PAGE_ROWS, PAGE_ROWS):
        rows = [track(number, f"u{number // QUEUE_MAX}") for number in range(first, first + PAGE_ROWS)]
        loaded(house, rows, more=True)
    assert len(house.it.loaded_ids()) == 3 * PAGE_ROWS > QUEUE_MAX * (1 + READY_LOW) - 2 * PAGE_ROWS
    assert isinstance(house.it.wants(), NextPage)


def test_a_page_is_useful_if_it_is_empty_or_makes_somebody_ready():
    house = House()
    assert loaded(house, [], more=False)
    house.it.accepted()
    assert loaded(house, [track(1, "a")], more=True)
    assert not loaded(house, [track(2, "a")], more=True)


def test_what_an_earlier_run_has_set_aside_is_asked_for_once_the_front_has_passed_it():
    house = House()
    house.it.start([((False, "u"), 5)])
    loaded(house, [track(1, "a"), track(2, "b"), track(6, "c")], more=True)
    asked = house.it.wants()
    assert isinstance(asked, AsidePage)
    assert asked.turn == (False, "u")
    assert house.it.loaded_aside(asked.turn, Page([track(5, "u")], [], False))


def test_a_retried_letter_is_found_although_a_page_of_others_comes_after_the_rewind():
    house = House()
    loaded(house, [track(10, "a")], more=True)
    assert house.it.wants() == NextPage(False, 10, PAGE_ROWS)
    house.it.rewind(3)
    house.it.loaded(False, Page([track(11, "b")], [], True))
    asked = house.it.wants()
    assert asked == NextPage(True, 0, PAGE_ROWS)
    house.it.loaded(True, Page([], [], False))
    assert house.it.wants() == NextPage(False, 2, PAGE_ROWS)


def test_a_reload_reaches_the_quota_and_the_destination():
    house = House()
    house.reload(
        '[deliver]\nper_second = 50\nper_day = 5000\npace = "spread"\nreserve_for_high = 0.5\n'
        'retry_initial = "3s"\nretry_max = "40s"',
    )
    px, quota = house.it.destination, house.it.quota
    assert (px.per_second, px.initial_s, px.max_s) == (50, 3, 40)
    assert quota.describe().limit == 5000
    assert 0 < quota.pace_per_s() < 1
    assert quota._normal_limit == 2500


# What people ask ---------------------------------------------------------------------------------------------------


def test_who_is_loaded_and_who_waits_is_told():
    house = House(rows=[track(1, "a"), track(2, "b")])
    house.reply(house.send(), Answer(503))
    assert house.it.loaded_ids() == {1, 2}
    assert [item.id for item in house.it.waiting()] == [1]
