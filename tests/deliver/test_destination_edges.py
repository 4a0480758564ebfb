"""The destination at its edges: counts that reset, exact times, pauses within pauses."""

import pytest
from deliver_parts import make_destination
from destination_harness import (
    AWAY,
    BAD,
    BLOCKED,
    BUSY,
    CREATED,
    ELSEWHERE,
    NO_KEY,
    SLOW_DOWN,
    DestinationHarness,
)

from sidecar.deliver.destination import DestinationState, Disposition, Open, Outcome, Probe, Wait
from sidecar.px import NotSent, PxAnswer, classify

HELD = NotSent("no permission within 30 s", held=True)


@pytest.mark.parametrize("before", [(), (AWAY,), (NO_KEY,)])
def test_a_request_that_was_held_says_nothing_about_px(before):
    """A fleet without slots became an outage that had to be probed, and an absent PX in the status."""
    harness = DestinationHarness()
    for reply in before:
        harness.reply(reply)
    if before:
        harness.later(400)
        harness.destination.probe_started(harness.now_s)
    permission = Probe() if before else Open(1.0)
    described = harness.destination.describe(harness.now_s)
    assert harness.reply(HELD, probe=bool(before)).disposition is Disposition.REQUEUE
    assert harness.permission() == permission
    assert harness.destination.describe(harness.now_s).message == described.message


# --- counts ---


def test_first_refusals_of_a_process_count_from_one():
    harness = DestinationHarness()
    for number in range(49):
        assert harness.reply(BAD, f"user-{number % 10}") == Outcome(Disposition.ON_PROBATION)
    assert harness.reply(BAD, "user-9").disposition is Disposition.REQUEUE


def test_next_step_resets_the_count_of_failures():
    harness = DestinationHarness()
    for number in range(9):
        harness.reply(BUSY, f"user-{number % 3}")
    harness.destination.sequence_continued(harness.now_s, probe=False)
    for number in range(9):
        harness.reply(BUSY, f"user-{number % 3}")
    assert harness.permission() == Open(1.0)
    harness.reply(BUSY, "user-0")
    assert isinstance(harness.permission(), Wait)


def test_next_step_resets_the_users_that_failed():
    harness = DestinationHarness()
    for number in range(9):
        harness.reply(BUSY, f"user-{number % 3}")
    harness.destination.sequence_continued(harness.now_s, probe=False)
    for number in range(40):
        harness.reply(BUSY, f"user-{number % 2}")
    assert harness.permission() == Open(1.0)


def test_next_step_of_a_probe_resets_the_back_off():
    harness = DestinationHarness()
    harness.reply(AWAY)
    harness.later(1).probe(AWAY)
    harness.later(2)
    harness.destination.probe_started(harness.now_s)
    harness.destination.sequence_continued(harness.now_s, probe=True)
    harness.reply(AWAY)
    assert harness.permission() == Wait(harness.now_s + 1)


def test_delivery_resets_the_firewall_tries():
    harness = DestinationHarness()
    for reply in (BLOCKED, BLOCKED, CREATED):
        harness.reply(reply, event=7)
    assert harness.reply(BLOCKED, event=7).disposition is Disposition.RETRY


def block(harness: DestinationHarness, event: int) -> Disposition:
    """Let the firewall block one more try of an event, in a stream that is healthy otherwise."""
    outcome = harness.reply(BLOCKED, event=event)
    harness.reply(CREATED, event=-1)
    return outcome.disposition


def test_firewall_tries_of_10000_events_are_remembered():
    harness = DestinationHarness()
    for event in range(10_000):
        block(harness, event)
        block(harness, event)
    assert block(harness, 0) is Disposition.DEAD


def test_oldest_firewall_tries_are_forgotten_beyond_10000():
    harness = DestinationHarness()
    for event in range(10_001):
        block(harness, event)
        block(harness, event)
    assert block(harness, 10_000) is Disposition.DEAD
    assert block(harness, 0) is Disposition.RETRY


# --- probes ---


def test_answer_to_another_request_does_not_end_a_probe():
    harness = DestinationHarness()
    harness.reply(AWAY)
    harness.later(1)
    harness.destination.probe_started(harness.now_s)
    harness.destination.on_verdict(classify(AWAY, wall_ms=0), event=99, user="user", now_s=harness.now_s)
    assert harness.status().state is DestinationState.PROBING
    assert harness.permission() == Wait(float("inf"))


@pytest.mark.parametrize(("reply", "reason"), [(BAD, "refused"), (BLOCKED, "firewall")])
def test_probe_with_the_same_result_extends_the_pause_5_min(reply, reason):
    harness = DestinationHarness()
    for number in range(50):
        harness.reply(reply, f"user-{number % 10}", event=number)
    harness.later(300)
    assert harness.probe(reply, event=1) == Outcome(Disposition.REQUEUE)
    assert (harness.permission().reason, harness.permission().probe_at_s) == (reason, harness.now_s + 300)
    again = DestinationHarness(harness.destination.saved())
    assert again.probe(reply) == Outcome(Disposition.REQUEUE), "after a restart one answer is enough"
    assert (again.permission().reason, again.permission().probe_at_s) == (reason, again.now_s + 300)


# --- pauses ---


def test_answer_under_way_does_not_move_the_next_probe():
    harness = DestinationHarness()
    harness.reply(NO_KEY)
    probe_at_s = harness.permission().probe_at_s
    assert probe_at_s == harness.now_s + 300
    harness.later(10).reply(NO_KEY)
    assert harness.permission().probe_at_s == probe_at_s


def test_pause_shows_its_latest_reason():
    harness = DestinationHarness()
    harness.reply(NO_KEY)
    began_s = harness.now_s
    harness.later(10).reply(ELSEWHERE)
    assert (harness.permission().reason, harness.permission().probe_at_s) == ("wrong_region", harness.now_s + 300)
    assert "us, eu or us2" in harness.permission().message
    assert harness.status().since_s == began_s


def test_event_blocked_during_a_pause_of_the_key_is_retried():
    harness = DestinationHarness()
    harness.reply(NO_KEY)
    assert harness.reply(BLOCKED).disposition is Disposition.RETRY
    assert harness.permission().reason == "wrong_key"


def test_pause_by_the_firewall_says_what_to_do():
    harness = DestinationHarness()
    for number in range(3):
        harness.reply(BLOCKED, f"user-{number}")
    assert "Write permission" in harness.permission().message


def test_status_shows_start_and_next_probe_of_a_pause():
    harness = DestinationHarness()
    harness.reply(NO_KEY)
    status = harness.later(10).status()
    assert (status.state, status.since_s, status.until_s) == (
        DestinationState.PAUSED,
        harness.now_s - 10,
        harness.now_s + 290,
    )
    assert status.reason == "wrong_key"
    assert DestinationHarness().status().until_s is None


def test_resume_probes_an_outage_and_keeps_a_retry_after():
    harness = DestinationHarness()
    harness.reply(AWAY)
    harness.destination.resume(harness.now_s)
    assert harness.permission() == Probe()
    harness = DestinationHarness()
    harness.reply(PxAnswer(429, b"", "60"))
    harness.destination.resume(harness.now_s)
    assert harness.permission() == Wait(harness.now_s + 60)


def test_probation_lasts_a_second_after_resume():
    harness = DestinationHarness()
    harness.reply(BAD)
    harness.destination.pause(harness.now_s)
    harness.later(100).destination.resume(harness.now_s)
    assert harness.destination.probation_ends_s() == harness.now_s + 1


def test_probation_lasts_a_second_after_the_last_answer():
    harness = DestinationHarness()
    harness.later(10).reply(BAD)
    assert harness.destination.probation_ends_s() == harness.now_s + 1


# --- pace ---


def test_probation_lasts_longer_at_a_lowered_pace():
    harness = DestinationHarness({"pace": 0.5}, per_second=1)
    harness.reply(BAD)
    assert harness.destination.probation_ends_s() == pytest.approx(harness.now_s + 3 / 0.95)


@pytest.mark.parametrize(("saved", "pace"), [(0.0, 0.95 / 190), (0.5, 0.5), (7.0, 1.0)])
def test_saved_pace_is_kept_within_its_bounds(saved, pace):
    assert DestinationHarness({"pace": saved}).destination.saved()["pace"] == pace


@pytest.mark.parametrize("reply", [AWAY, NO_KEY])
def test_pace_is_kept_through_outage_and_pause(reply):
    harness = DestinationHarness({"pace": 0.4})
    harness.reply(reply)
    harness.later(300).probe(CREATED)
    assert harness.permission() == Open(0.4)


def test_every_429_of_an_episode_requeues_its_event():
    harness = DestinationHarness()
    assert harness.reply(SLOW_DOWN) == harness.reply(SLOW_DOWN) == Outcome(Disposition.REQUEUE)


def test_a_429_without_retry_after_waits_for_the_back_off():
    destination = make_destination(5.0, lambda: 0.0)
    destination.on_verdict(classify(SLOW_DOWN, wall_ms=0), event=1, user="user", now_s=5.0)
    assert destination.may_send(5.0) == Probe()


def test_day_is_spent_after_exactly_10_min_of_429():
    destination = make_destination(0.0, lambda: 0.0)
    verdict = classify(SLOW_DOWN, wall_ms=0)
    spent = [destination.on_verdict(verdict, event=1, user="user", now_s=0.0).day_spent]
    for at_s in [*(5.0 * step for step in range(120)), 599.9, 600.0]:
        destination.probe_started(at_s)
        spent.append(destination.on_verdict(verdict, event=1, user="user", now_s=at_s, probe=True).day_spent)
    assert spent == [False] * 122 + [True]


def test_operator_pause_keeps_the_pause_beneath():
    harness = DestinationHarness()
    harness.destination.pause(harness.now_s)
    harness.later(5).reply(NO_KEY)
    assert harness.permission().reason == "operator"
    assert harness.status().since_s == harness.now_s - 5
    harness.destination.resume(harness.now_s)
    assert harness.permission() == Probe()
