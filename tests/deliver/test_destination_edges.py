"""The destination where one thing passes into another: counts that begin anew, exact moments, pauses within pauses."""

import pytest
from test_destination import AWAY, BAD, BLOCKED, BUSY, CREATED, ELSEWHERE, NO_KEY, SLOW_DOWN, Px

from sidecar.deliver.destination import Destination, Open, Outcome, Probe, State, Wait, What
from sidecar.px import Answer, classify

# --- counts ---


def test_the_first_refusals_of_a_process_count_from_one():
    px = Px()
    for number in range(49):
        assert px.answers(BAD, f"user-{number % 10}") == Outcome(What.HELD)
    assert px.answers(BAD, "user-9").what is What.AGAIN


def test_a_next_step_begins_the_count_of_trouble_anew():
    px = Px()
    for number in range(9):
        px.answers(BUSY, f"user-{number % 3}")
    px.it.went_on(px.now_s, probe=False)
    for number in range(9):
        px.answers(BUSY, f"user-{number % 3}")
    assert px.leave() == Open(1.0)
    px.answers(BUSY, "user-0")
    assert isinstance(px.leave(), Wait)


def test_a_next_step_begins_the_count_of_troubled_users_anew():
    px = Px()
    for number in range(9):
        px.answers(BUSY, f"user-{number % 3}")
    px.it.went_on(px.now_s, probe=False)
    for number in range(40):
        px.answers(BUSY, f"user-{number % 2}")
    assert px.leave() == Open(1.0)


def test_a_next_step_of_a_probe_begins_the_back_off_anew():
    px = Px()
    px.answers(AWAY)
    px.later(1).probe(AWAY)
    px.later(2)
    px.it.probe_begun(px.now_s)
    px.it.went_on(px.now_s, probe=True)
    px.answers(AWAY)
    assert px.leave() == Wait(px.now_s + 1)


def test_a_delivery_forgets_the_tries_at_the_firewall():
    px = Px()
    for reply in (BLOCKED, BLOCKED, CREATED):
        px.answers(reply, event=7)
    assert px.answers(BLOCKED, event=7).what is What.RETRY


def block(px: Px, event: int) -> What:
    """One more try that the firewall blocks, in a stream that is healthy otherwise."""
    outcome = px.answers(BLOCKED, event=event)
    px.answers(CREATED, event=-1)
    return outcome.what


def test_the_tries_of_ten_thousand_blocked_events_are_remembered():
    px = Px()
    for event in range(10_000):
        block(px, event)
        block(px, event)
    assert block(px, 0) is What.DEAD


def test_of_more_blocked_events_the_oldest_is_forgotten():
    px = Px()
    for event in range(10_001):
        block(px, event)
        block(px, event)
    assert block(px, 10_000) is What.DEAD
    assert block(px, 0) is What.RETRY


# --- probes ---


def test_the_answer_to_another_request_does_not_end_a_probe():
    px = Px()
    px.answers(AWAY)
    px.later(1)
    px.it.probe_begun(px.now_s)
    px.it.on(classify(AWAY, wall_ms=0), event=99, user="user", now_s=px.now_s)
    assert px.status().state is State.PROBING
    assert px.leave() == Wait(float("inf"))


@pytest.mark.parametrize(("reply", "reason"), [(BAD, "refused"), (BLOCKED, "firewall")])
def test_a_pause_goes_on_for_five_minutes_if_its_probe_meets_the_same_again(reply, reason):
    px = Px()
    for number in range(50):
        px.answers(reply, f"user-{number % 10}", event=number)
    px.later(300)
    assert px.probe(reply, event=1) == Outcome(What.AGAIN)
    assert (px.leave().reason, px.leave().probe_at_s) == (reason, px.now_s + 300)
    again = Px(px.it.saved())
    assert again.probe(reply) == Outcome(What.AGAIN), "one answer after a restart is enough, too"
    assert (again.leave().reason, again.leave().probe_at_s) == (reason, again.now_s + 300)


# --- pauses ---


def test_an_answer_that_was_under_way_does_not_move_the_next_probe_of_a_pause():
    px = Px()
    px.answers(NO_KEY)
    probe_at_s = px.leave().probe_at_s
    assert probe_at_s == px.now_s + 300
    px.later(10).answers(NO_KEY)
    assert px.leave().probe_at_s == probe_at_s


def test_the_latest_reason_of_a_pause_is_told():
    px = Px()
    px.answers(NO_KEY)
    began_s = px.now_s
    px.later(10).answers(ELSEWHERE)
    assert (px.leave().reason, px.leave().probe_at_s) == ("wrong_region", px.now_s + 300)
    assert "us, eu or us2" in px.leave().message
    assert px.status().since_s == began_s


def test_a_blocked_event_under_way_in_a_pause_of_the_key_is_tried_again():
    px = Px()
    px.answers(NO_KEY)
    assert px.answers(BLOCKED).what is What.RETRY
    assert px.leave().reason == "wrong_key"


def test_a_pause_by_the_firewall_says_what_to_do():
    px = Px()
    for number in range(3):
        px.answers(BLOCKED, f"user-{number}")
    assert "Write permission" in px.leave().message


def test_status_tells_since_when_and_until_when_a_pause_lasts():
    px = Px()
    px.answers(NO_KEY)
    status = px.later(10).status()
    assert (status.state, status.since_s, status.until_s) == (State.PAUSED, px.now_s - 10, px.now_s + 290)
    assert status.reason == "wrong_key"
    assert Px().status().until_s is None


def test_resume_probes_an_outage_at_once_but_does_not_shorten_what_px_asked_for():
    px = Px()
    px.answers(AWAY)
    px.it.resume(px.now_s)
    assert px.leave() == Probe()
    px = Px()
    px.answers(Answer(429, b"", "60"))
    px.it.resume(px.now_s)
    assert px.leave() == Wait(px.now_s + 60)


def test_what_is_held_waits_a_second_after_resume():
    px = Px()
    px.answers(BAD)
    px.it.pause(px.now_s)
    px.later(100).it.resume(px.now_s)
    assert px.it.tick_at_s() == px.now_s + 1


def test_what_is_held_waits_a_second_after_the_last_answer():
    px = Px()
    px.later(10).answers(BAD)
    assert px.it.tick_at_s() == px.now_s + 1


# --- pace ---


def test_a_lowered_pace_lets_what_is_held_wait_longer():
    px = Px({"pace": 0.5}, per_second=1)
    px.answers(BAD)
    assert px.it.tick_at_s() == px.now_s + 6


@pytest.mark.parametrize(("saved", "pace"), [(0.0, 1 / 16), (0.5, 0.5), (7.0, 1.0)])
def test_a_saved_pace_is_kept_within_its_bounds(saved, pace):
    assert Px({"pace": saved}).it.saved()["pace"] == pace


def test_the_pace_climbs_every_ten_seconds():
    px = Px({"pace": 0.6})
    px.answers(SLOW_DOWN)
    px.later(1).leave()
    assert px.later(9.9).leave() == Open(0.3)
    assert px.later(0.1).leave() == Open(pytest.approx(0.35))


def test_while_it_waits_the_pace_stays_as_it_is():
    px = Px()
    px.answers(Answer(429, b"", "60"))
    assert px.later(30).status().pace == 0.9


def test_the_pace_is_never_below_what_it_was():
    px = Px({"pace": 0.5})
    assert px.it.pace(px.now_s - 20) == 0.5


@pytest.mark.parametrize("reply", [AWAY, NO_KEY])
def test_the_pace_that_was_climbed_to_is_kept_through_an_outage_and_a_pause(reply):
    px = Px({"pace": 0.6})
    px.answers(SLOW_DOWN)
    px.later(1).leave()
    px.later(20).answers(reply)
    px.later(300).probe(CREATED)
    assert px.leave() == Open(pytest.approx(0.4))


def test_every_429_of_an_episode_leaves_its_event_in_its_place():
    px = Px()
    assert px.answers(SLOW_DOWN) == px.answers(SLOW_DOWN) == Outcome(What.AGAIN)


def test_a_429_without_a_retry_after_waits_for_nothing_but_the_back_off():
    it = Destination(now_s=5.0, per_second=190, initial_s=1, max_s=300, random=lambda: 0.0)
    it.on(classify(SLOW_DOWN, wall_ms=0), event=1, user="user", now_s=5.0)
    assert it.may_send(5.0) == Open(0.9)


def test_the_day_is_spent_after_ten_minutes_at_the_lowest_pace_and_no_sooner():
    it = Destination(now_s=0.0, per_second=190, initial_s=1, max_s=300, random=lambda: 0.0)
    spent, paces = [], []
    for at_s in [0.0] * 4 + [5.0 * step for step in range(120)] + [599.9, 600.0]:
        outcome = it.on(classify(SLOW_DOWN, wall_ms=0), event=1, user="user", now_s=at_s)
        spent.append(outcome.day_spent)
        paces.append(it.may_send(at_s).pace)
    assert paces == [0.9, 0.9 / 2, 0.9 / 4, 0.9 / 8] + [1 / 16] * 122
    assert spent == [False] * 125 + [True]


def test_the_operators_pause_hides_no_other():
    px = Px()
    px.it.pause(px.now_s)
    px.later(5).answers(NO_KEY)
    assert px.leave().reason == "operator"
    assert px.status().since_s == px.now_s - 5
    px.it.resume(px.now_s)
    assert px.leave() == Probe()
