"""What goes next, and what becomes of it: decisions without any I/O."""

import json

import pytest

from sidecar.config import load_text
from sidecar.deliver.bucket import Bucket
from sidecar.deliver.destination import Destination
from sidecar.deliver.dispatcher import Dispatcher
from sidecar.deliver.quota import Lease, Quota
from sidecar.deliver.steps import AsidePage, NextPage, Rest, Send, SetAside, Settle
from sidecar.mapping import compile_mapping
from sidecar.outbox import Failure, Page, Remembered, Row, State
from sidecar.px import Answer, NotSent, Unknown

HOUR_MS = 3_600_000
CREATED = Answer(201, b"{}")


class Clock:
    """Wall and boot clock that stand still unless moved."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def monotonic_s(self) -> float:
        return self.now_s

    def wall_ms(self) -> int:
        return 1_700_000_000_000 + int(self.now_s * 1000)

    def boot_s(self) -> float:
        return self.now_s

    def boot_id(self) -> str:
        return "boot"


class House:
    """A dispatcher whose file is a list of rows; every wish for a lease or a page is granted at once."""

    def __init__(self, config: str = "", rows: list[Row] | None = None, known: list[Remembered] | None = None) -> None:
        self.clock = Clock()
        loaded = load_text(config)
        self.rows = rows or []
        self.known = known or []
        self.set_aside: list[int] = []
        self.it = Dispatcher(
            config=loaded.deliver,
            mapper=compile_mapping(loaded.mapping, loaded.people),
            product_of=lambda _source: "AP-XXXXXXXXXX-2",
            bucket=Bucket(loaded.deliver.per_second, self.clock.now_s - 10),
            quota=Quota(loaded.deliver.per_day, clock=self.clock, reserve_for_high=loaded.deliver.reserve_for_high),
            destination=Destination(now_s=self.clock.now_s, per_second=190, initial_s=1, max_s=300, random=lambda: 0.5),
            clock=self.clock,
            random=lambda: 0.5,
        )

    def reload(self, text: str) -> None:
        """What the daemon does with a changed configuration."""
        config = load_text(text)
        self.it.reconfigure(config.deliver, compile_mapping(config.mapping, config.people))

    def feed(self) -> bool:
        fed = False
        while (wanted := self.it.wants()) is not None:
            fed = True
            match wanted:
                case Lease():
                    self.it.quota.granted(wanted)
                case NextPage(high, after_id, limit):
                    found = [row for row in self.rows if row.high is high and row.id > after_id][:limit]
                    self.it.loaded(high, Page(found, self.known, len(found) == limit))
                case SetAside(ids):
                    self.set_aside += ids
                case AsidePage(turn, after_id, limit):
                    found = [row for row in self.rows if row.id in self.set_aside and row.id > after_id][:limit]
                    self.it.loaded_aside(turn, Page(found, self.known, len(found) == limit))
        return fed

    def next(self) -> Send | Settle | Rest:
        """The next decision that is not to wait for a page, a lease or the pace."""
        for _ in range(100):
            step = self.it.decide(self.clock.now_s)
            if not isinstance(step, Rest):
                return step
            if self.feed():
                continue
            if step.until_s > self.clock.now_s + 0.2:
                return step
            self.clock.now_s = step.until_s
        raise AssertionError("no decision")

    def send(self) -> Send:
        step = self.next()
        assert isinstance(step, Send), step
        return step

    def reply(self, sent: Send, reply: object) -> list[Settle | Failure]:
        return self.it.replied(sent.item, reply, self.clock.now_s)  # type: ignore[arg-type]


def track(number: int, user: str = "u", *, failure: Failure | None = None, **fields: object) -> Row:
    event = {"type": "track", "event": "Logged In", "userId": user, "messageId": f"m{number}"} | fields
    high = event["type"] in ("identify", "group")
    return Row(number, high, 0, user, 1_700_000_000_000, json.dumps(event).encode(), failure)


def settlement(written: list[Settle | Failure]):
    (one,) = written
    assert isinstance(one, Settle), one
    return one.settlement


# The answers -------------------------------------------------------------------------------------------------------


def test_a_2xx_delivers():
    house = House(rows=[track(1)])
    one = settlement(house.reply(house.send(), CREATED))
    assert (one.id, one.state, one.status, one.attempts, one.name) == (1, State.DELIVERED, 201, 1, "Logged In")


@pytest.mark.parametrize("status", [400, 413, 422, 418])
def test_a_refusal_is_dead_once_another_event_is_delivered(status):
    house = House(rows=[track(1, "a"), track(2, "b")])
    assert house.reply(house.send(), Answer(status, b'{"errorMessage": "eventName is odd"}')) == []
    written = house.reply(house.send(), CREATED)
    dead = [one.settlement for one in written if isinstance(one, Settle) and one.settlement.state is State.DEAD]
    assert [(one.id, one.reason, one.status) for one in dead] == [(1, "refused", status)]
    assert "eventName is odd" in dead[0].detail
    assert json.loads(dead[0].payload)["identifyId"] == "a"


def test_a_refusal_is_dead_when_nothing_else_comes():
    house = House(rows=[track(1)])
    assert house.reply(house.send(), Answer(400)) == []
    step = house.next()
    assert isinstance(step, Rest)
    house.clock.now_s = step.until_s
    step = house.next()
    assert isinstance(step, Settle)
    assert (step.settlement.state, step.settlement.reason) == (State.DEAD, "refused")


def test_a_wrong_property_key_does_not_kill_the_backlog():
    house = House(rows=[track(number, f"u{number}") for number in range(1, 100)])
    for _ in range(50):
        assert house.reply(house.send(), Answer(400)) == []
    assert isinstance(house.next(), Rest)
    status = house.it.destination.describe(house.clock.now_s)
    assert (status.state, status.reason) == ("paused", "refused")
    assert "property_key" in status.message
    assert house.it.in_flight() == 0
    house.it.destination.resume(house.clock.now_s)
    probe = house.send()
    house.reply(probe, CREATED)
    delivered = {probe.item.id}
    for _ in range(98):
        sent = house.send()
        house.reply(sent, CREATED)
        delivered.add(sent.item.id)
    assert delivered == set(range(1, 100))


@pytest.mark.parametrize("reply", [Answer(503), Answer(500), Answer(408), Answer(425), Unknown("reset")])
def test_a_passing_failure_is_tried_again_while_others_go_on(reply):
    house = House(rows=[track(1, "a"), track(2, "a"), track(3, "b")])
    (failure,) = house.reply(house.send(), reply)
    assert isinstance(failure, Failure)
    assert (failure.id, failure.attempts, failure.ambiguous) == (1, 1, isinstance(reply, Unknown))
    other = house.send()
    assert other.item.id == 3
    house.reply(other, CREATED)
    step = house.next()
    assert isinstance(step, Rest)  # 2 waits behind 1
    house.clock.now_s += 1.0
    again = house.send()
    assert again.item.id == 1
    assert settlement(house.reply(again, CREATED)).attempts == 2


def test_what_was_not_sent_costs_no_attempt_and_keeps_its_place():
    house = House(rows=[track(1, "a"), track(2, "b")])
    assert house.reply(house.send(), NotSent("refused")) == []
    assert house.it.in_flight() == 0
    step = house.next()
    assert isinstance(step, Rest)
    house.clock.now_s = step.until_s
    probe = house.send()
    assert probe.item.id == 1
    assert settlement(house.reply(probe, CREATED)).attempts == 1


def test_an_outage_is_probed_with_one_event():
    house = House(rows=[track(1, "a"), track(2, "b")])
    house.reply(house.send(), NotSent("refused"))
    house.clock.now_s += 400
    probe = house.send()
    assert isinstance(house.next(), Rest)
    house.reply(probe, CREATED)
    assert house.send().item.id == 2


@pytest.mark.parametrize(("status", "word"), [(401, "Write"), (404, "region"), (407, "proxy")])
def test_a_wrong_key_or_region_pauses_and_keeps_everything(status, word):
    house = House(rows=[track(1)])
    assert house.reply(house.send(), Answer(status)) == []
    assert isinstance(house.next(), Rest)
    described = house.it.destination.describe(house.clock.now_s)
    assert described.state == "paused"
    assert word in described.message


def test_an_event_that_fails_for_a_day_while_others_succeed_is_failing():
    almost = Failure(1, 40, 1, 1_700_000_000_000 - HOUR_MS, 19, 24 * HOUR_MS, "503")
    house = House(rows=[track(1, "a", failure=almost), track(2, "b")])
    poison, other = house.send(), house.send()
    house.reply(other, CREATED)
    one = settlement(house.reply(poison, Answer(503)))
    assert (one.state, one.reason) == (State.DEAD, "failing")


def test_a_firewall_gets_three_tries():
    house = House(rows=[track(1)])
    page = Answer(403, b"<html>403</html>", None, "text/html")
    for _ in range(2):
        (failure,) = house.reply(house.send(), page)
        assert isinstance(failure, Failure)
        house.clock.now_s += 10
    one = settlement(house.reply(house.send(), page))
    assert (one.state, one.reason) == (State.DEAD, "firewall")


def test_too_fast_waits_as_long_as_it_is_told_and_keeps_the_event():
    house = House(rows=[track(1)])
    start_s = house.clock.now_s
    assert house.reply(house.send(), Answer(429, b"", "7")) == []
    step = house.next()
    assert isinstance(step, Rest)
    assert step.until_s >= start_s + 7
    house.clock.now_s = step.until_s
    assert house.send().item.id == 1


# Without a request ---------------------------------------------------------------------------------------------------


def test_what_has_no_user_is_dropped_without_a_request():
    house = House(rows=[Row(1, False, 0, None, 0, b'{"type":"track","event":"x"}', None)])
    step = house.next()
    assert isinstance(step, Settle)
    assert (step.settlement.state, step.settlement.reason) == (State.DROPPED, "no_user")
    assert house.it.in_flight() == 0


def test_a_damaged_body_is_dead_and_does_not_stop_the_others():
    house = House(rows=[Row(1, False, 0, "u", 0, b"{dam", None), track(2)])
    step = house.next()
    assert isinstance(step, Settle)
    assert (step.settlement.state, step.settlement.reason) == (State.DEAD, "mapping_error")
    assert house.send().item.id == 2


def test_what_is_older_than_max_age_is_dead():
    house = House('[deliver]\nmax_age = "1h"', rows=[track(1)])
    house.clock.now_s += 3601
    step = house.next()
    assert isinstance(step, Settle)
    assert (step.settlement.state, step.settlement.reason) == (State.DEAD, "too_old")


def test_what_is_just_as_old_as_max_age_is_sent():
    house = House('[deliver]\nmax_age = "1h"', rows=[track(1)])
    house.clock.now_s = (house.rows[0].received_ms - 1_700_000_000_000) / 1000 + 3600
    assert house.send().item.id == 1


def test_an_event_whose_turn_had_come_before_a_pause_was_sent_however_old_it_had_become():
    """It was judged before the pause, and never again."""
    house = House('[deliver]\nmax_age = "1h"', rows=[track(1)])
    house.it.destination.pause(house.clock.now_s)
    assert isinstance(house.next(), Rest)
    house.clock.now_s += 3601
    house.it.destination.resume(house.clock.now_s)
    step = house.next()
    assert isinstance(step, Settle)
    assert step.settlement.reason == "too_old"


def test_an_event_whose_turn_had_come_before_a_reload_left_with_what_the_reload_forbids():
    """It was mapped by the rules of before the pause in which they changed."""
    house = House(rows=[track(1, properties={"email": "ann@example.com", "n": 1})])
    house.it.destination.pause(house.clock.now_s)
    assert isinstance(house.next(), Rest)
    house.reload('[mapping.attributes]\ndrop = ["email"]')
    house.clock.now_s += 10
    house.it.destination.resume(house.clock.now_s)
    assert json.loads(house.send().request.body)["attributes"] == {"n": 1}


def test_a_dead_letter_that_was_too_old_is_sent_when_somebody_retries_it():
    """Its age was counted from its acceptance, so that it died again at once."""
    house = House('[deliver]\nmax_age = "1h"', rows=[track(1)])
    house.clock.now_s += 3601
    house.rows = [house.rows[0]._replace(retried_ms=house.clock.wall_ms())]
    assert house.send().item.id == 1


# Memory ------------------------------------------------------------------------------------------------------------


def test_a_group_call_enriches_later_events_before_it_is_in_the_file():
    house = House(rows=[track(1, type="group", groupId="acct-1"), track(2)])
    step = house.next()
    assert isinstance(step, Settle)
    assert step.settlement.reason == "remembered"
    assert step.settlement.remember is not None
    assert json.loads(house.send().request.body)["accountId"] == "acct-1"


def test_what_is_remembered_comes_with_the_page():
    house = House(rows=[track(1)], known=[Remembered("AP-XXXXXXXXXX-2", "u", b'{"account_id":"acct-9"}')])
    assert json.loads(house.send().request.body)["accountId"] == "acct-9"


def test_an_identify_that_has_to_be_tried_again_is_mapped_like_the_first_time():
    """Its own memory of the traits it had not delivered made the second attempt find nothing to send."""
    house = House('[people]\nusers = "upsert"', rows=[track(1, type="identify", traits={"email": "a@b.c"})])
    first = house.send()
    house.reply(first, Answer(503))
    house.clock.now_s += 2
    again = house.send()
    assert again.request == first.request
    assert settlement(house.reply(again, Answer(204))).remember is not None


def test_a_probe_of_several_requests_does_not_wait_for_itself():
    house = House('[people]\nusers = "upsert"', rows=[track(1, type="identify", traits={"email": "a@b.c"})])
    house.reply(house.send(), NotSent("refused"))
    house.clock.now_s += 400
    put = house.send()
    assert house.reply(put, Answer(404)) == []
    post = house.send()
    assert post.request.method == "POST"
    assert settlement(house.reply(post, CREATED)).state is State.DELIVERED


# Limits ------------------------------------------------------------------------------------------------------------


def test_max_in_flight_that_a_reload_lowered_holds_for_the_next_send():
    house = House("[deliver]\nmax_in_flight = 2", rows=[track(1, "a"), track(2, "b")])
    house.send()
    house.reload("[deliver]\nmax_in_flight = 1")
    house.clock.now_s += 1
    assert isinstance(house.next(), Rest)


def test_a_slot_is_free_only_after_the_commit():
    house = House("[deliver]\nmax_in_flight = 1", rows=[track(1, "a"), track(2, "b")])
    one = settlement(house.reply(house.send(), CREATED))
    assert isinstance(house.next(), Rest)
    house.it.settled([one])
    assert house.send().item.id == 2


def test_held_refusals_take_no_slots():
    house = House("[deliver]\nmax_in_flight = 1", rows=[track(1, "a"), track(2, "b")])
    house.reply(house.send(), Answer(400))
    assert house.send().item.id == 2


def test_nothing_is_due_while_held_refusals_wait_for_an_answer_that_is_under_way():
    """A moment that had passed was given as the next one, and the loop turned without end."""
    house = House(rows=[track(1, "a"), track(2, "b")])
    house.reply(house.send(), Answer(400))
    house.send()
    house.clock.now_s += 60
    step = house.next()
    assert isinstance(step, Rest)
    assert step.until_s == float("inf")


def test_high_events_go_first_and_may_use_the_reserve():
    rows = [track(number, f"u{number}") for number in range(1, 11)]
    rows += [track(number, f"v{number}")._replace(high=True) for number in range(11, 14)]
    house = House("[deliver]\nper_day = 10\nreserve_for_high = 0.5", rows=rows)
    assert [house.send().item.id for _ in range(5)] == [11, 12, 13, 1, 2]
    assert isinstance(house.next(), Rest)  # half of the day is spent
    house.rows.append(track(14, "w")._replace(high=True))
    house.it.accepted()
    assert house.send().item.id == 14


def test_pages_are_asked_for_once_until_something_new_is_accepted():
    house = House(rows=[])
    house.feed()
    assert house.it.wants() is None
    house.it.accepted()
    assert isinstance(house.it.wants(), NextPage)


def test_dead_letters_that_are_retried_are_found_again():
    house = House(rows=[track(1, "a"), track(2, "b")])
    for _ in range(2):
        sent = house.send()
        house.it.settled([settlement(house.reply(sent, CREATED))])
    house.rows = [track(1, "a")]
    house.it.rewind(1)
    assert house.send().item.id == 1


# What is told while a page is being read ---------------------------------------------------------------------------


def test_a_retried_letter_is_found_although_a_page_was_being_read():
    """The page moved the place to read on from forward again, and the letter waited for a restart."""
    house = House(rows=[])
    house.feed()
    house.it.accepted()
    asked = house.it.wants()
    assert isinstance(asked, NextPage)
    house.it.rewind(1)
    house.it.loaded(asked.high, Page([track(50, "b")._replace(high=asked.high)], [], False))
    house.rows = [track(1, "a")]
    assert {house.send().item.id, house.send().item.id} == {1, 50}


def test_what_is_accepted_while_a_page_is_being_read_is_found():
    house = House(rows=[])
    house.feed()
    house.it.accepted()
    for _ in range(2):
        asked = house.it.wants()
        assert isinstance(asked, NextPage)
        house.it.accepted()
        house.it.loaded(asked.high, Page([], [], False))
    house.rows = [track(1)]
    assert house.send().item.id == 1


def test_what_is_answered_and_not_committed_is_not_sent_again_after_a_rewind():
    house = House(rows=[track(1, "a"), track(2, "b")])
    one = settlement(house.reply(house.send(), CREATED))
    house.it.rewind(1)
    assert house.send().item.id == 2
    assert isinstance(house.next(), Rest)
    house.it.settled([one])
