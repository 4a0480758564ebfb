"""The destination: every row of DESIGN 4 that waits, pauses, slows down or decides about refusals."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.deliver.destination import (
    PROBE_EVERY_S,
    Destination,
    Open,
    Outcome,
    Paused,
    Probe,
    State,
    Wait,
    What,
)
from sidecar.px import Answer, Kind, NotSent, Unknown, classify

CREATED = Answer(201)
BAD = Answer(400, b'{"externalapierror":{"message":"eventName is missing"}}')
BUSY = Answer(503)
AWAY = NotSent("connection refused")
LOST = Unknown("no answer within 30 s")
NO_KEY = Answer(401, b"Authentication failed in loginAwareAuthentication")
READ_ONLY = Answer(403, b"{}", None, "application/json")
BLOCKED = Answer(403, b"<!doctype html><title>403</title>", None, "text/html")
ELSEWHERE = Answer(404)
SLOW_DOWN = Answer(429)


class Px:
    """A destination with a time line, whose back-off always draws the whole ceiling."""

    def __init__(self, saved=None, per_second=190):
        self.now_s, self.event = 1000.0, 0
        self.it = Destination(
            now_s=self.now_s, per_second=per_second, initial_s=1, max_s=300, random=lambda: 1.0, saved=saved
        )

    def answers(self, reply, user="user", *, event=None, probe=False) -> Outcome:
        self.event += 1
        verdict = classify(reply, wall_ms=0)
        which = self.event if event is None else event
        return self.it.on(verdict, event=which, user=user, now_s=self.now_s, probe=probe)

    def leave(self):
        return self.it.may_send(self.now_s)

    def later(self, seconds):
        self.now_s += seconds
        return self

    def probe(self, reply, user="user", *, event=None) -> Outcome:
        assert self.leave() == Probe()
        self.it.probe_begun(self.now_s)
        assert not isinstance(self.leave(), Probe), "one probe at a time"
        return self.answers(reply, user, event=event, probe=True)

    def status(self):
        return self.it.describe(self.now_s)


# --- outage ---


def test_it_is_open_at_full_pace_from_the_start():
    assert Px().leave() == Open(1.0)


def test_what_could_not_be_sent_waits_and_one_probe_looks_whether_px_is_back():
    px = Px()
    assert px.answers(AWAY) == Outcome(What.AGAIN)
    assert px.leave() == Wait(px.now_s + 1)
    assert px.status().state is State.WAITING
    assert "connection refused" in px.status().message
    px.later(1)
    assert px.probe(AWAY).what is What.AGAIN
    assert px.leave() == Wait(px.now_s + 2)
    px.later(2)
    assert px.probe(CREATED).what is What.DELIVERED
    assert px.leave() == Open(1.0)
    assert px.status().message == ""


def test_failures_of_requests_that_were_under_way_do_not_lengthen_the_wait():
    px = Px()
    for _ in range(100):
        px.answers(AWAY)
    assert px.leave() == Wait(px.now_s + 1)


def test_the_wait_of_an_outage_grows_to_its_maximum_and_begins_anew_after_it():
    px = Px()
    px.answers(AWAY)
    for _ in range(12):
        px.now_s = px.leave().until_s
        px.probe(AWAY)
    assert px.leave() == Wait(px.now_s + 300)
    px.later(300).probe(CREATED)
    px.answers(AWAY)
    assert px.leave() == Wait(px.now_s + 1)


@pytest.mark.parametrize("reply", [BAD, BLOCKED])
def test_a_probe_that_px_answers_for_itself_opens_whatever_it_says_of_the_event(reply):
    px = Px()
    px.answers(AWAY)
    px.later(1).probe(reply)
    assert px.leave() == Open(1.0)


@pytest.mark.parametrize("reply", [BUSY, LOST])
def test_a_probe_that_fails_otherwise_keeps_waiting(reply):
    px = Px()
    px.answers(AWAY)
    assert px.later(1).probe(reply).what is What.RETRY
    assert px.leave() == Wait(px.now_s + 2)


def test_a_probe_that_px_answers_with_a_next_step_opens_so_that_the_step_can_follow():
    px = Px()
    px.answers(AWAY)
    px.later(1)
    px.it.probe_begun(px.now_s)
    px.it.went_on(px.now_s, probe=True)
    assert px.leave() == Open(1.0)
    assert px.status().state is State.OPEN


def test_a_next_step_opens_a_pause_of_refusals_only_until_the_next_refusal():
    px = Px()
    for number in range(50):
        px.answers(BAD, f"user-{number % 10}")
    px.later(PROBE_EVERY_S)
    px.it.probe_begun(px.now_s)
    px.it.went_on(px.now_s, probe=True)
    assert px.answers(BAD, "user-1") == Outcome(What.AGAIN)
    assert px.leave().reason == "refused"


def test_a_late_delivery_ends_an_outage():
    px = Px()
    px.answers(AWAY)
    px.answers(CREATED)
    assert px.leave() == Open(1.0)


@pytest.mark.parametrize("reply", [BUSY, LOST])
def test_ten_in_a_row_from_three_users_are_an_outage(reply):
    px = Px()
    for number in range(9):
        assert px.answers(reply, f"user-{number % 3}").what is What.RETRY
        assert isinstance(px.leave(), Open)
    px.answers(reply, "user-0")
    assert isinstance(px.leave(), Wait)


@pytest.mark.parametrize(("users", "between"), [(2, None), (9, CREATED), (9, BAD)])
def test_fewer_users_or_an_answer_between_are_no_outage(users, between):
    px = Px()
    for number in range(40):
        px.answers(BUSY, f"user-{number % users}")
        if between and number % 5 == 0:
            px.answers(between)
    assert isinstance(px.leave(), Open)


# --- pace ---


def test_a_429_waits_and_then_goes_on_a_little_slower_until_the_pace_has_climbed_back():
    px = Px()
    assert px.answers(SLOW_DOWN) == Outcome(What.AGAIN)
    assert px.leave() == Wait(px.now_s + 1)
    assert px.later(1).leave() == Open(0.9)
    assert px.later(10).leave() == Open(pytest.approx(0.95))
    assert px.later(1000).leave() == Open(1.0)
    px.answers(SLOW_DOWN)
    assert px.later(2).leave() == Open(0.9)


def test_a_429_before_the_pace_is_back_halves_it():
    px = Px()
    px.answers(SLOW_DOWN)
    px.later(1).leave()
    px.later(19.9).answers(SLOW_DOWN)
    assert px.later(2).leave() == Open(pytest.approx(0.475))


def test_many_429s_of_one_episode_lower_the_pace_once():
    px = Px()
    for _ in range(50):
        px.answers(SLOW_DOWN)
    assert px.later(1).leave() == Open(0.9)


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_obeyed_up_to_an_hour(status):
    px = Px()
    px.answers(Answer(status, b"", "120"))
    assert px.leave() == Wait(px.now_s + 120)
    px.answers(Answer(status, b"", "999999"))
    assert px.leave() == Wait(px.now_s + 3600)
    px.answers(CREATED)
    assert isinstance(px.leave(), Wait), "a late delivery does not shorten it"


def test_a_shorter_retry_after_does_not_shorten_a_longer_one():
    px = Px()
    px.answers(Answer(429, b"", "600"))
    px.answers(Answer(400, b"", "5"))
    assert px.leave() == Wait(px.now_s + 600)


def test_retry_after_on_a_success_is_obeyed_too():
    px = Px()
    assert px.answers(Answer(201, b"", "60")).what is What.DELIVERED
    assert px.leave() == Wait(px.now_s + 60)
    assert px.later(60).leave() == Open(1.0)


def test_the_pace_has_a_lowest_and_ten_minutes_of_429_there_are_a_spent_day():
    px, spent_s = Px(), None
    while spent_s is None:
        leave = px.leave()
        if isinstance(leave, Wait):
            px.now_s = leave.until_s
            continue
        assert leave.pace >= 1 / 16
        if px.answers(SLOW_DOWN).day_spent:
            spent_s = px.now_s
    assert 1000 + 600 <= spent_s <= 1000 + 1500
    px.later(3600)
    assert isinstance(px.leave(), Open)
    assert px.answers(SLOW_DOWN).day_spent, "it need not be proved again as long as nothing was delivered"


def test_only_429_tells_of_a_spent_day():
    px = Px()
    for _ in range(100):
        leave = px.leave()
        px.now_s = leave.until_s if isinstance(leave, Wait) else px.now_s
        assert isinstance(px.leave(), Open)
        assert not px.answers(Answer(503, b"", "60")).day_spent


def test_deliveries_at_the_lowest_pace_are_no_spent_day():
    px = Px()
    for _ in range(100):
        leave = px.leave()
        px.now_s = leave.until_s if isinstance(leave, Wait) else px.now_s
        px.leave()
        px.answers(CREATED)
        assert not px.answers(SLOW_DOWN).day_spent
        px.later(30)


# --- pauses ---


@pytest.mark.parametrize(
    ("reply", "reason", "advice"),
    [
        (NO_KEY, "wrong_key", "regenerate a key with Write access"),
        (READ_ONLY, "wrong_key", "regenerate a key with Write access"),
        (ELSEWHERE, "wrong_region", "us, eu or us2"),
        (Answer(307), "wrong_region", "us, eu or us2"),
        (Answer(407), "wrong_region", "proxy"),
    ],
)
def test_a_wrong_key_or_region_pauses_keeps_the_event_and_is_probed_every_five_minutes(reply, reason, advice):
    px = Px()
    assert px.answers(reply) == Outcome(What.AGAIN)
    leave = px.leave()
    assert isinstance(leave, Paused)
    assert (leave.reason, leave.probe_at_s) == (reason, px.now_s + PROBE_EVERY_S)
    assert advice in leave.message
    px.answers(reply)
    assert px.leave().probe_at_s == leave.probe_at_s
    for _ in range(300):
        px.later(PROBE_EVERY_S)
        assert px.probe(reply).what is What.AGAIN
    assert px.later(PROBE_EVERY_S).probe(CREATED).what is What.DELIVERED
    assert px.leave() == Open(1.0)


def test_a_refusal_proves_that_the_key_is_right():
    px = Px()
    px.answers(NO_KEY)
    px.later(PROBE_EVERY_S).probe(BAD)
    assert isinstance(px.leave(), Open)


@pytest.mark.parametrize("reply", [AWAY, BUSY, LOST, SLOW_DOWN])
def test_a_probe_of_a_pause_that_fails_otherwise_keeps_the_pause(reply):
    px = Px()
    px.answers(NO_KEY)
    px.later(PROBE_EVERY_S).probe(reply)
    assert (px.leave().reason, px.leave().probe_at_s) == ("wrong_key", px.now_s + PROBE_EVERY_S)


def test_a_pause_survives_a_restart_and_is_probed_at_once():
    px = Px()
    px.answers(NO_KEY)
    again = Px(px.it.saved())
    assert again.status().state is State.PAUSED
    assert again.status().message == px.status().message
    again.probe(CREATED)
    assert isinstance(again.leave(), Open)


def test_resume_probes_a_pause_at_once():
    px = Px()
    px.answers(NO_KEY)
    px.it.resume(px.now_s)
    assert px.leave() == Probe()


def test_the_operators_pause_survives_restarts_and_deliveries_and_ends_only_by_resume():
    px = Px()
    px.it.pause(px.now_s)
    px.answers(CREATED)
    px.later(10**6)
    assert px.leave() == Paused("operator", px.status().message, math.inf)
    assert px.status().state is State.PAUSED
    again = Px(px.it.saved())
    assert isinstance(again.leave(), Paused)
    again.it.resume(again.now_s)
    assert again.leave() == Open(1.0)


def test_a_lowered_pace_survives_a_restart():
    px = Px()
    px.answers(SLOW_DOWN)
    assert Px(px.it.saved()).leave() == Open(0.9)


def test_a_probe_that_came_to_nothing_can_be_repeated():
    px = Px()
    px.answers(AWAY)
    px.later(1)
    px.it.probe_begun(px.now_s)
    px.it.probe_lost(px.now_s)
    assert px.leave() == Wait(px.now_s + 1)
    assert px.later(1).leave() == Probe()


# --- firewall ---


def test_an_event_the_firewall_dislikes_is_dead_after_three_tries():
    px = Px()
    for expected in (What.RETRY, What.RETRY, What.DEAD):
        outcome = px.answers(BLOCKED, "user-1", event=7)
        assert outcome.what is expected
        px.answers(CREATED, "user-2")
    assert outcome.reason == "firewall"
    assert isinstance(px.leave(), Open)


def test_three_users_in_a_row_are_no_matter_of_content():
    px = Px()
    assert px.answers(BLOCKED, "user-1", event=1).what is What.RETRY
    assert px.answers(BLOCKED, "user-1", event=1).what is What.RETRY
    assert px.answers(BLOCKED, "user-2", event=2).what is What.RETRY
    assert px.answers(BLOCKED, "user-3", event=3).what is What.AGAIN
    assert px.leave().reason == "firewall"
    px.later(PROBE_EVERY_S)
    assert px.probe(BLOCKED, "user-1").what is What.AGAIN
    px.later(PROBE_EVERY_S).probe(CREATED)
    assert px.answers(BLOCKED, "user-1", event=1).what is What.RETRY, "tries from before the pause do not count"


# --- refusals ---


def test_a_refusal_in_a_healthy_stream_is_settled_by_the_next_delivery():
    px = Px()
    assert px.answers(BAD, event=7) == Outcome(What.HELD)
    assert px.answers(CREATED) == Outcome(What.DELIVERED, dead=(7,))
    assert px.answers(CREATED) == Outcome(What.DELIVERED)


def test_a_refusal_after_which_nothing_comes_is_settled_a_second_later():
    px = Px()
    px.answers(BAD, event=7)
    assert px.it.tick(px.now_s, 0) == ()
    px.now_s = px.it.tick_at_s()
    assert px.now_s == 1001
    assert px.it.tick(px.now_s, 3) == (), "what is under way may still decide"
    assert px.it.tick(px.now_s, 0) == (7,)
    assert px.it.tick_at_s() == math.inf


def test_at_a_slow_pace_the_next_answer_is_waited_for():
    px = Px(per_second=0.1)
    px.answers(BAD)
    assert px.it.tick_at_s() == px.now_s + 30


def test_fifty_refusals_in_a_row_from_ten_users_pause_and_go_back_to_pending():
    px = Px()
    px.answers(CREATED)
    for number in range(49):
        assert px.answers(BAD, f"user-{number % 10}", event=number) == Outcome(What.HELD)
    outcome = px.answers(BAD, "user-9", event=49)
    assert outcome == Outcome(What.AGAIN, pending=tuple(range(49)))
    assert px.leave().reason == "refused"
    assert "property_key" in px.leave().message
    assert px.answers(BAD, "user-3") == Outcome(What.AGAIN), "those under way are kept as well"
    assert px.it.tick(px.now_s + 10**6, 0) == ()
    assert px.later(PROBE_EVERY_S).probe(BAD) == Outcome(What.AGAIN)
    assert px.later(PROBE_EVERY_S).probe(CREATED) == Outcome(What.DELIVERED)
    assert px.leave() == Open(1.0)


def test_a_long_run_from_few_users_does_not_pause_and_holds_a_bounded_number():
    px, dead = Px(), []
    for number in range(1000):
        dead += px.answers(BAD, f"user-{number % 9}", event=number).dead
    assert isinstance(px.leave(), Open)
    assert dead == list(range(950))
    assert px.status().held == 50


def test_the_tenth_user_of_a_long_run_pauses_and_the_held_stay_pending():
    px = Px()
    for number in range(100):
        px.answers(BAD, f"user-{number % 9}", event=number)
    assert px.answers(BAD, "the tenth", event=100) == Outcome(What.AGAIN, pending=tuple(range(50, 100)))


def test_nothing_is_settled_by_silence_while_the_destination_does_not_send():
    px = Px()
    px.answers(BAD)
    px.answers(AWAY)
    again_s = px.leave().until_s
    assert px.it.tick(again_s + 0.9, 0) == ()
    px.now_s = again_s
    px.probe(BAD)
    assert px.it.tick_at_s() == px.now_s + 1


def test_a_refusal_does_not_wait_for_ever_behind_an_outage_in_which_it_is_the_only_event():
    px = Px()
    px.answers(BAD, event=7)
    px.answers(AWAY)
    assert px.it.tick(px.leave().until_s + 1, 0) == (7,)


@pytest.mark.parametrize("replies", [[NO_KEY], [READ_ONLY], [ELSEWHERE], [BLOCKED] * 3])
def test_a_held_refusal_does_not_wait_for_ever_in_a_pause_in_which_it_is_the_only_event(replies):
    px = Px()
    px.answers(BAD, event=7)
    px.answers(BAD, event=8)
    outcomes = [px.answers(reply, f"user-{number}") for number, reply in enumerate(replies)]
    assert isinstance(px.leave(), Paused)
    assert outcomes[-1] == Outcome(What.AGAIN, pending=(7, 8))
    assert px.status().held == 0


def test_a_refusal_that_arrives_in_a_pause_for_another_reason_keeps_its_place_too():
    px = Px()
    px.answers(NO_KEY)
    until_s = px.leave().probe_at_s
    assert px.later(1).answers(BAD) == Outcome(What.AGAIN)
    assert (px.leave().reason, px.leave().probe_at_s) == ("wrong_key", until_s)


def test_the_refused_probe_of_a_pause_is_held_as_pauses_for_another_reason_end_with_it():
    px = Px()
    px.answers(NO_KEY)
    assert px.later(PROBE_EVERY_S).probe(BAD) == Outcome(What.HELD)


def test_events_without_a_user_are_users_of_their_own():
    px = Px()
    for number in range(50):
        px.answers(BAD, None, event=number)
    assert px.leave().reason == "refused"


# --- whatever comes ---

replies = st.sampled_from(
    [
        CREATED,
        BAD,
        BUSY,
        AWAY,
        LOST,
        NO_KEY,
        BLOCKED,
        ELSEWHERE,
        SLOW_DOWN,
        Answer(503, b"", "5"),
        Answer(201, b"", "5"),
    ]
)


@given(
    steps=st.lists(
        st.tuples(replies, st.integers(0, 12), st.floats(0, 400), st.sampled_from(["", "", "", "pause", "resume"])),
        max_size=200,
    )
)
def test_every_event_is_decided_once_and_a_healthy_px_always_opens_it_again(steps):
    px, held = Px(), set()
    for reply, user, seconds, operator in steps:
        px.later(seconds)
        if operator:
            getattr(px.it, operator)(px.now_s)
        probe = px.leave() == Probe()
        if probe:
            px.it.probe_begun(px.now_s)
        outcome = px.answers(reply, f"user-{user}", probe=probe)
        settled = outcome.dead + outcome.pending + px.it.tick(px.now_s + 0.5, 0)
        assert len(set(settled)) == len(settled)
        held |= {px.event} if outcome.what is What.HELD else set()
        assert held.issuperset(settled)
        held -= set(settled)
        assert px.status().held == len(held) <= 50
        assert (outcome.what is What.DELIVERED) == (classify(reply, wall_ms=0).kind is Kind.DELIVERED)
        if outcome.what is What.DELIVERED:
            assert not held
    px.it.resume(px.now_s)
    for _ in range(3):
        leave = px.leave()
        if leave == Probe():
            px.probe(CREATED)
        elif not isinstance(leave, Open):
            px.now_s = leave.until_s if isinstance(leave, Wait) else leave.probe_at_s
    assert isinstance(px.leave(), Open)
