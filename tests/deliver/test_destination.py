"""The destination: what waits, pauses, slows down, and decides about refusals."""

import math
from typing import get_args, get_type_hints

import pytest
from destination_harness import (
    AWAY,
    BAD,
    BLOCKED,
    BUSY,
    CREATED,
    ELSEWHERE,
    LOST,
    NO_KEY,
    READ_ONLY,
    SLOW_DOWN,
    DestinationHarness,
)
from hypothesis import given
from hypothesis import strategies as st

from sidecar.config.schema import AT_RESTART, PxConfig
from sidecar.deliver.destination import (
    PROBE_EVERY_S,
    DestinationState,
    Disposition,
    Open,
    Outcome,
    Paused,
    Probe,
    Wait,
)
from sidecar.px import Kind, PxAnswer, classify

# --- outage ---


def test_destination_starts_open_at_full_pace():
    assert DestinationHarness().permission() == Open(1.0)


def test_unreachable_px_waits_and_is_probed_with_one_event():
    harness = DestinationHarness()
    assert harness.reply(AWAY) == Outcome(Disposition.REQUEUE)
    assert harness.permission() == Wait(harness.now_s + 1)
    assert harness.status().state is DestinationState.WAITING
    assert "connection refused" in harness.status().message
    harness.later(1)
    assert harness.probe(AWAY).disposition is Disposition.REQUEUE
    assert harness.permission() == Wait(harness.now_s + 1)
    harness.later(1)
    assert harness.probe(CREATED).disposition is Disposition.DELIVERED
    assert harness.permission() == Open(1.0)
    assert harness.status().message == ""


def test_failures_of_requests_under_way_do_not_lengthen_the_wait():
    harness = DestinationHarness()
    for _ in range(100):
        harness.reply(AWAY)
    assert harness.permission() == Wait(harness.now_s + 1)


def test_outage_back_off_grows_to_its_maximum_and_resets():
    harness = DestinationHarness()
    harness.reply(AWAY)
    for _ in range(20):
        harness.now_s = harness.permission().until_s
        harness.probe(AWAY)
    assert harness.permission() == Wait(harness.now_s + 300)
    harness.later(300).probe(CREATED)
    harness.reply(AWAY)
    assert harness.permission() == Wait(harness.now_s + 1)


@pytest.mark.parametrize("reply", [BAD, BLOCKED])
def test_probe_answered_by_px_opens_even_if_refused(reply):
    harness = DestinationHarness()
    harness.reply(AWAY)
    harness.later(1).probe(reply)
    assert harness.permission() == Open(1.0)


@pytest.mark.parametrize("reply", [BUSY, LOST])
def test_failed_probe_keeps_waiting(reply):
    harness = DestinationHarness()
    harness.reply(AWAY)
    assert harness.later(1).probe(reply).disposition is Disposition.RETRY
    assert harness.permission() == Wait(harness.now_s + 1)


def test_probe_with_another_request_to_send_opens():
    """A probe of several requests would otherwise wait for itself."""
    harness = DestinationHarness()
    harness.reply(AWAY)
    harness.later(1)
    harness.destination.probe_started(harness.now_s)
    harness.destination.sequence_continued(harness.now_s, probe=True)
    assert harness.permission() == Open(1.0)
    assert harness.status().state is DestinationState.OPEN


def test_next_refusal_restores_a_pause_opened_by_a_next_step():
    harness = DestinationHarness()
    for number in range(50):
        harness.reply(BAD, f"user-{number % 10}")
    harness.later(PROBE_EVERY_S)
    harness.destination.probe_started(harness.now_s)
    harness.destination.sequence_continued(harness.now_s, probe=True)
    assert harness.reply(BAD, "user-1") == Outcome(Disposition.REQUEUE)
    assert harness.permission().reason == "refused"


def test_late_delivery_ends_an_outage():
    harness = DestinationHarness()
    harness.reply(AWAY)
    harness.reply(CREATED)
    assert harness.permission() == Open(1.0)


@pytest.mark.parametrize("reply", [BUSY, LOST])
def test_ten_failures_in_a_row_of_three_users_are_an_outage(reply):
    harness = DestinationHarness()
    for number in range(9):
        assert harness.reply(reply, f"user-{number % 3}").disposition is Disposition.RETRY
        assert isinstance(harness.permission(), Open)
    harness.reply(reply, "user-0")
    assert isinstance(harness.permission(), Wait)


@pytest.mark.parametrize(("users", "between"), [(2, None), (9, CREATED), (9, BAD)])
def test_fewer_users_or_an_answer_between_are_not_an_outage(users, between):
    harness = DestinationHarness()
    for number in range(40):
        harness.reply(BUSY, f"user-{number % users}")
        if between and number % 5 == 0:
            harness.reply(between)
    assert isinstance(harness.permission(), Open)


# --- pace ---


def test_a_429_waits_then_probes_and_opens_at_nine_tenths():
    harness = DestinationHarness()
    assert harness.reply(SLOW_DOWN) == Outcome(Disposition.REQUEUE)
    assert harness.permission() == Wait(harness.now_s + 1)
    assert harness.later(1).probe(CREATED).disposition is Disposition.DELIVERED
    assert harness.permission() == Open(0.9)


def test_a_wait_that_ends_in_time_lets_something_be_sent_before():
    harness = DestinationHarness()
    before = harness.destination.may_send_before
    assert before(harness.now_s + 1, harness.now_s)
    harness.reply(SLOW_DOWN)
    assert [before(harness.now_s + wait_s, harness.now_s) for wait_s in (0.9, 1.1)] == [False, True]
    harness.destination.pause(harness.now_s)
    assert not before(harness.now_s + 1.1, harness.now_s)


def test_one_unbroken_run_of_429s_lowers_the_pace_once():
    harness = DestinationHarness()
    for _ in range(20):
        for _ in range(15):
            harness.reply(SLOW_DOWN)
        harness.now_s = harness.permission().until_s
        harness.probe(SLOW_DOWN)
        harness.reply(CREATED)
    harness.now_s = harness.permission().until_s
    harness.probe(CREATED)
    assert harness.permission() == Open(0.9)


def test_a_429_after_a_success_lowers_the_pace_again():
    harness = DestinationHarness()
    harness.reply(SLOW_DOWN)
    harness.later(1).probe(CREATED)
    harness.later(1).reply(SLOW_DOWN)
    assert harness.status().pace < 0.9


@pytest.mark.parametrize("reply", [PxAnswer(503, b"", "2"), PxAnswer(500, b"", "2"), PxAnswer(408, b"", "2")])
def test_retry_after_on_another_error_keeps_the_pace(reply):
    harness = DestinationHarness()
    assert harness.reply(reply) == Outcome(Disposition.REQUEUE)
    assert harness.permission() == Wait(harness.now_s + 2)
    harness.reply(CREATED)
    assert isinstance(harness.permission(), Wait), "a late delivery does not shorten it"
    harness.later(2).probe(CREATED)
    assert harness.permission() == Open(1.0)


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_obeyed_up_to_an_hour(status):
    harness = DestinationHarness()
    harness.reply(PxAnswer(status, b"", "120"))
    assert harness.permission() == Wait(harness.now_s + 120)
    harness.reply(PxAnswer(status, b"", "999999"))
    assert harness.permission() == Wait(harness.now_s + 3600)
    harness.reply(CREATED)
    assert isinstance(harness.permission(), Wait), "a late delivery does not shorten it"


def test_shorter_retry_after_does_not_shorten_a_longer_one():
    harness = DestinationHarness()
    harness.reply(PxAnswer(429, b"", "600"))
    harness.reply(PxAnswer(400, b"", "5"))
    assert harness.permission() == Wait(harness.now_s + 600)


def test_retry_after_on_a_success_is_obeyed():
    harness = DestinationHarness()
    assert harness.reply(PxAnswer(201, b"", "60")).disposition is Disposition.DELIVERED
    assert harness.permission() == Wait(harness.now_s + 60)
    assert harness.later(60).permission() == Open(1.0)


def test_ten_minutes_of_429_without_a_delivery_spend_the_day():
    harness, spent_s = DestinationHarness(), None
    harness.reply(SLOW_DOWN)
    while spent_s is None:
        harness.now_s = harness.permission().until_s
        if harness.probe(SLOW_DOWN).day_spent:
            spent_s = harness.now_s
    assert 1000 + 600 <= spent_s <= 1000 + 1000
    harness.later(3600)
    assert harness.probe(SLOW_DOWN).day_spent, "ten minutes need not pass again until something is delivered"
    harness.later(3600).probe(CREATED)
    assert not harness.reply(SLOW_DOWN).day_spent


def test_only_429_spends_the_day():
    harness = DestinationHarness()
    harness.reply(PxAnswer(503, b"", "60"))
    for _ in range(100):
        harness.now_s = harness.permission().until_s
        assert not harness.probe(PxAnswer(503, b"", "60")).day_spent


# --- pauses ---


@pytest.mark.parametrize(
    ("reply", "reason", "advice"),
    [
        (NO_KEY, "wrong_key", "regenerate a key with Write access"),
        (READ_ONLY, "wrong_key", "regenerate a key with Write access"),
        (ELSEWHERE, "wrong_region", "us, eu or us2"),
        (PxAnswer(307), "wrong_region", "us, eu or us2"),
        (PxAnswer(407), "wrong_region", "proxy"),
    ],
)
def test_wrong_key_or_region_pauses_and_is_probed(reply, reason, advice):
    harness = DestinationHarness()
    assert harness.reply(reply) == Outcome(Disposition.REQUEUE)
    permission = harness.permission()
    assert isinstance(permission, Paused)
    assert (permission.reason, permission.probe_at_s) == (reason, harness.now_s + PROBE_EVERY_S)
    assert advice in permission.message
    harness.reply(reply)
    assert harness.permission().probe_at_s == permission.probe_at_s
    for _ in range(300):
        harness.later(PROBE_EVERY_S)
        assert harness.probe(reply).disposition is Disposition.REQUEUE
    assert harness.later(PROBE_EVERY_S).probe(CREATED).disposition is Disposition.DELIVERED
    assert harness.permission() == Open(1.0)


def test_refused_probe_opens_a_pause_of_the_key():
    harness = DestinationHarness()
    harness.reply(NO_KEY)
    harness.later(PROBE_EVERY_S).probe(BAD)
    assert isinstance(harness.permission(), Open)


@pytest.mark.parametrize("reply", [AWAY, BUSY, LOST, SLOW_DOWN])
def test_failed_probe_keeps_the_pause(reply):
    harness = DestinationHarness()
    harness.reply(NO_KEY)
    harness.later(PROBE_EVERY_S).probe(reply)
    assert (harness.permission().reason, harness.permission().probe_at_s) == (
        "wrong_key",
        harness.now_s + PROBE_EVERY_S,
    )


def test_pause_survives_a_restart_and_is_probed_at_once():
    harness = DestinationHarness()
    harness.reply(NO_KEY)
    again = DestinationHarness(harness.destination.saved())
    assert again.status().state is DestinationState.PAUSED
    assert again.status().message == harness.status().message
    again.probe(CREATED)
    assert isinstance(again.permission(), Open)


def test_resume_probes_a_pause_at_once():
    harness = DestinationHarness()
    harness.reply(NO_KEY)
    harness.destination.resume(harness.now_s)
    assert harness.permission() == Probe()


def test_operator_pause_ends_only_by_resume():
    harness = DestinationHarness()
    harness.destination.pause(harness.now_s)
    harness.reply(CREATED)
    harness.later(10**6)
    assert harness.permission() == Paused("operator", harness.status().message, math.inf)
    assert harness.status().state is DestinationState.PAUSED
    again = DestinationHarness(harness.destination.saved())
    assert isinstance(again.permission(), Paused)
    assert again.destination.operator_paused
    again.destination.resume(again.now_s)
    assert again.permission() == Open(1.0)
    assert not again.destination.operator_paused


def test_delivery_is_open_since_the_resume():
    """`px-sidecar status` said "delivering since" the start of the daemon, with a pause of hours in between."""
    harness = DestinationHarness()
    harness.destination.pause(harness.later(100).now_s)
    harness.destination.resume(harness.later(100).now_s)
    assert harness.status().since_s == harness.now_s
    resumed_s = harness.now_s
    harness.destination.resume(harness.later(100).now_s)
    assert harness.status().since_s == resumed_s


def test_lowered_pace_survives_a_restart():
    harness = DestinationHarness()
    harness.reply(SLOW_DOWN)
    harness.later(1).probe(CREATED)
    assert DestinationHarness(harness.destination.saved()).permission() == Open(0.9)


def test_abandoned_probe_can_be_repeated():
    harness = DestinationHarness()
    harness.reply(AWAY)
    harness.later(1)
    harness.destination.probe_started(harness.now_s)
    harness.destination.probe_abandoned(harness.now_s)
    assert harness.permission() == Wait(harness.now_s + 1)
    assert harness.later(1).permission() == Probe()


# --- firewall ---


def test_event_blocked_by_the_firewall_is_dead_after_three_tries():
    harness = DestinationHarness()
    for expected in (Disposition.RETRY, Disposition.RETRY, Disposition.DEAD):
        outcome = harness.reply(BLOCKED, "user-1", event=7)
        assert outcome.disposition is expected
        harness.reply(CREATED, "user-2")
    assert outcome.reason == "firewall"
    assert isinstance(harness.permission(), Open)


def test_three_blocked_users_in_a_row_pause():
    harness = DestinationHarness()
    assert harness.reply(BLOCKED, "user-1", event=1).disposition is Disposition.RETRY
    assert harness.reply(BLOCKED, "user-1", event=1).disposition is Disposition.RETRY
    assert harness.reply(BLOCKED, "user-2", event=2).disposition is Disposition.RETRY
    assert harness.reply(BLOCKED, "user-3", event=3).disposition is Disposition.REQUEUE
    assert harness.permission().reason == "firewall"
    harness.later(PROBE_EVERY_S)
    assert harness.probe(BLOCKED, "user-1").disposition is Disposition.REQUEUE
    harness.later(PROBE_EVERY_S).probe(CREATED)
    assert harness.reply(BLOCKED, "user-1", event=1).disposition is Disposition.RETRY, (
        "tries from before the pause do not count"
    )


# --- refusals ---


def test_refusal_is_settled_by_the_next_delivery():
    harness = DestinationHarness()
    assert harness.reply(BAD, event=7) == Outcome(Disposition.ON_PROBATION)
    assert harness.reply(CREATED) == Outcome(Disposition.DELIVERED, dead=(7,))
    assert harness.reply(CREATED) == Outcome(Disposition.DELIVERED)


def test_refusal_without_a_later_answer_is_settled_after_1_s():
    harness = DestinationHarness()
    harness.reply(BAD, event=7)
    assert harness.destination.expire_probation(harness.now_s, 0) == ()
    harness.now_s = harness.destination.probation_ends_s()
    assert harness.now_s == 1001
    assert harness.destination.expire_probation(harness.now_s, 3) == (), "a request under way may still decide"
    assert harness.destination.expire_probation(harness.now_s, 0) == (7,)
    assert harness.destination.probation_ends_s() == math.inf


def test_probation_lasts_three_intervals_at_a_slow_pace():
    harness = DestinationHarness(per_second=0.1)
    harness.reply(BAD)
    assert harness.destination.probation_ends_s() == harness.now_s + 30


def test_fifty_refusals_in_a_row_of_ten_users_pause():
    harness = DestinationHarness()
    harness.reply(CREATED)
    for number in range(49):
        assert harness.reply(BAD, f"user-{number % 10}", event=number) == Outcome(Disposition.ON_PROBATION)
    outcome = harness.reply(BAD, "user-9", event=49)
    assert outcome == Outcome(Disposition.REQUEUE, pending=tuple(range(49)))
    assert harness.permission().reason == "refused"
    assert "property_key" in harness.permission().message
    assert harness.reply(BAD, "user-3") == Outcome(Disposition.REQUEUE), "requests under way are requeued as well"
    assert harness.destination.expire_probation(harness.now_s + 10**6, 0) == ()
    assert harness.later(PROBE_EVERY_S).probe(BAD) == Outcome(Disposition.REQUEUE)
    assert harness.later(PROBE_EVERY_S).probe(CREATED) == Outcome(Disposition.DELIVERED)
    assert harness.permission() == Open(1.0)


@pytest.mark.parametrize(
    ("reply", "times", "key"),
    [(BAD, 50, "property_key"), (ELSEWHERE, 1, "region"), (ELSEWHERE, 1, "base_url"), (PxAnswer(407), 1, "proxy")],
)
def test_advice_to_change_a_key_names_the_restart_it_needs(reply, times, key):
    """The advice for a wrong property_key was `px-sidecar resume` alone, which continues with the old one."""
    harness = DestinationHarness()
    for number in range(times):
        harness.reply(reply, f"user-{number % 10}", event=number)
    kind = get_type_hints(PxConfig, include_extras=True)[key]
    assert AT_RESTART in get_args(kind)[1:]
    message = harness.permission().message
    assert key in message
    assert "restart" in message


def test_long_run_of_few_users_does_not_pause_and_is_bounded():
    harness, dead = DestinationHarness(), []
    for number in range(1000):
        dead += harness.reply(BAD, f"user-{number % 9}", event=number).dead
    assert isinstance(harness.permission(), Open)
    assert dead == list(range(950))
    assert harness.status().on_probation == 50


def test_tenth_user_of_a_long_run_pauses_and_keeps_events():
    harness = DestinationHarness()
    for number in range(100):
        harness.reply(BAD, f"user-{number % 9}", event=number)
    assert harness.reply(BAD, "the tenth", event=100) == Outcome(Disposition.REQUEUE, pending=tuple(range(50, 100)))


def test_probation_does_not_end_while_nothing_is_sent():
    harness = DestinationHarness()
    harness.reply(BAD)
    harness.reply(AWAY)
    again_s = harness.permission().until_s
    assert harness.destination.expire_probation(again_s + 0.9, 0) == ()
    harness.now_s = again_s
    harness.probe(BAD)
    assert harness.destination.probation_ends_s() == harness.now_s + 1


def test_probation_ends_after_an_outage_without_other_events():
    harness = DestinationHarness()
    harness.reply(BAD, event=7)
    harness.reply(AWAY)
    assert harness.destination.expire_probation(harness.permission().until_s + 1, 0) == (7,)


@pytest.mark.parametrize("replies", [[NO_KEY], [READ_ONLY], [ELSEWHERE], [BLOCKED] * 3])
def test_pause_requeues_events_on_probation_as_its_only_probes(replies):
    harness = DestinationHarness()
    harness.reply(BAD, event=7)
    harness.reply(BAD, event=8)
    outcomes = [harness.reply(reply, f"user-{number}") for number, reply in enumerate(replies)]
    assert isinstance(harness.permission(), Paused)
    assert outcomes[-1] == Outcome(Disposition.REQUEUE, pending=(7, 8))
    assert harness.status().on_probation == 0


def test_refusal_during_a_pause_of_another_reason_is_requeued():
    harness = DestinationHarness()
    harness.reply(NO_KEY)
    until_s = harness.permission().probe_at_s
    assert harness.later(1).reply(BAD) == Outcome(Disposition.REQUEUE)
    assert (harness.permission().reason, harness.permission().probe_at_s) == ("wrong_key", until_s)


def test_refused_probe_of_a_pause_of_the_key_is_on_probation():
    harness = DestinationHarness()
    harness.reply(NO_KEY)
    assert harness.later(PROBE_EVERY_S).probe(BAD) == Outcome(Disposition.ON_PROBATION)


def test_events_without_a_user_count_as_users():
    harness = DestinationHarness()
    for number in range(50):
        harness.reply(BAD, None, event=number)
    assert harness.permission().reason == "refused"


# --- any sequence ---

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
        PxAnswer(503, b"", "5"),
        PxAnswer(201, b"", "5"),
    ]
)


@given(
    steps=st.lists(
        st.tuples(replies, st.integers(0, 12), st.floats(0, 400), st.sampled_from(["", "", "", "pause", "resume"])),
        max_size=200,
    )
)
def test_every_event_is_decided_once_and_a_healthy_px_opens(steps):
    harness, on_probation = DestinationHarness(), set()
    for reply, user, seconds, operator in steps:
        harness.later(seconds)
        if operator:
            getattr(harness.destination, operator)(harness.now_s)
        probe = harness.permission() == Probe()
        if probe:
            harness.destination.probe_started(harness.now_s)
        outcome = harness.reply(reply, f"user-{user}", probe=probe)
        settled = outcome.dead + outcome.pending + harness.destination.expire_probation(harness.now_s + 0.5, 0)
        assert len(set(settled)) == len(settled)
        on_probation |= {harness.event} if outcome.disposition is Disposition.ON_PROBATION else set()
        assert on_probation.issuperset(settled)
        on_probation -= set(settled)
        assert harness.status().on_probation == len(on_probation) <= 50
        assert (outcome.disposition is Disposition.DELIVERED) == (classify(reply, wall_ms=0).kind is Kind.DELIVERED)
        if outcome.disposition is Disposition.DELIVERED:
            assert not on_probation
    harness.destination.resume(harness.now_s)
    for _ in range(3):
        permission = harness.permission()
        if permission == Probe():
            harness.probe(CREATED)
        elif not isinstance(permission, Open):
            harness.now_s = permission.until_s if isinstance(permission, Wait) else permission.probe_at_s
    assert isinstance(harness.permission(), Open)


def test_a_pause_shows_what_its_newest_probe_was_answered():
    """After another key the status spoke of the first one's 401 for as long as the pause lasted: the new key was read-only."""
    harness = DestinationHarness()
    harness.reply(NO_KEY)
    began_s = harness.status().since_s
    harness.later(300).probe(READ_ONLY)
    assert "PX answered 403" in harness.status().message
    assert "401" not in harness.status().message
    assert harness.status().since_s == began_s


def test_a_pause_names_its_cause_and_the_probe_that_failed_otherwise():
    """With the proxy's password corrected and the proxy's rules wrong, the status still asked for a password alone."""
    harness = DestinationHarness()
    harness.reply(NO_KEY)
    cause = harness.status().message
    harness.later(300).probe(AWAY)
    assert harness.status().state is DestinationState.PAUSED
    assert harness.status().message == f"{cause} The last try: {classify(AWAY, wall_ms=0).message}"
    assert harness.destination.saved()["message"] == cause
    harness.later(300).probe(NO_KEY)
    assert harness.status().message == cause
    harness.later(300).probe(CREATED)
    assert harness.status().message == ""


def test_an_outage_says_that_nothing_is_lost():
    harness = DestinationHarness()
    harness.reply(AWAY)
    assert harness.status().message == f"{classify(AWAY, wall_ms=0).message} Events are kept and retried."


@pytest.mark.parametrize("status", [429, 503])
def test_a_wait_that_px_asks_for_during_an_outage_is_kept(status):
    """The next delivery of a request under way ended it at once."""
    harness = DestinationHarness()
    harness.reply(AWAY)
    harness.reply(PxAnswer(status, b"", "600"))  # under way when the outage began
    harness.reply(PxAnswer(201))
    assert harness.permission() == Wait(harness.now_s + 600)


def test_an_abandoned_probe_keeps_the_wait_that_px_asked_for():
    harness = DestinationHarness()
    harness.reply(AWAY)
    harness.later(1)
    harness.destination.probe_started(harness.now_s)
    harness.reply(PxAnswer(429, b"", "600"))  # under way when the outage began
    harness.destination.probe_abandoned(harness.now_s)
    assert harness.permission() == Wait(harness.now_s + 600)
