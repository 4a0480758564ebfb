"""What `status` says, over the real control socket of a daemon."""

import pytest
from living import Place, always, wait_until

from sidecar.control.status import DAY_S, Rate, by_reason, drain_s, iso, total


def test_what_was_accepted_is_pending_delivered_dropped_or_dead(place: Place):
    with place.living() as daemon:
        daemon.track("u1", "Feature Used")
        daemon.track(None, "Feature Used", anonymous_id="somebody")
        status = daemon.settle()
    assert status["accepted"] == 2
    assert status["delivered"] == 1
    assert status["dropped_by_reason"] == {"no_user": 1}
    assert status["accepted"] == status["pending"] + status["delivered"] + status["dropped"] + status["dead"]


def test_a_healthy_daemon_has_no_reasons_and_delivers(place: Place):
    with place.living() as daemon:
        daemon.track("u1", "Feature Used")
        status = daemon.settle()
    assert status["state"] == "open"
    assert status["delivering"] is True
    assert status["reasons"] == []
    assert status["full"] is None
    assert status["quota"]["used"] == 1
    assert status["quota"]["left"] == status["quota"]["limit"] - 1
    assert status["quota"]["reserve"] == 99_000
    assert status["outbox"]["path"] == str(place.outbox)
    assert status["outbox"]["bytes"] > 0
    assert status["last_delivered"].endswith("Z")


def test_a_wrong_key_says_what_to_do(place: Place):
    with place.living(always(401)) as daemon:
        daemon.track("u1", "Feature Used")
        wait_until(lambda: daemon.status()["state"] == "paused", "the pause")
        status = daemon.status()
    assert status["delivering"] is False
    assert "API key is invalid" in status["reasons"][0]
    assert status["pending"] == 1
    assert status["next_try_in_s"] == pytest.approx(300, abs=10)
    assert status["last_problem"]["message"] == status["reasons"][0]


def test_the_user_who_waits_is_named(place: Place):
    with place.living(always(503)) as daemon:
        daemon.track("unlucky", "Feature Used")
        wait_until(lambda: daemon.status()["slowest_user"], "a failed attempt")
        status = daemon.status()
    assert status["slowest_user"]["user"] == "unlucky"
    assert status["slowest_user"]["attempts"] >= 1
    assert "503" in status["slowest_user"]["detail"]
    assert "503" in status["last_problem"]["message"]
    assert status["retries"] >= 1


def test_a_spent_day_says_until_when(tmp_path):
    place = Place(tmp_path, "[deliver]\nper_day = 3\nreserve_for_high = 0\n")
    with place.living() as daemon:
        for number in range(5):
            daemon.track(f"u{number}", "Feature Used")
        wait_until(lambda: daemon.status()["delivered"] == 3, "three deliveries")
        status = daemon.status()
    assert status["state"] == "open"
    assert status["delivering"] is False
    assert "quota of 3 requests is spent" in status["reasons"][0]
    assert DAY_S - 130 < status["quota"]["free_in_s"] <= DAY_S + 180
    assert status["drain_s"] == pytest.approx(status["quota"]["free_in_s"], abs=1)


def test_pause_keeps_events_and_resume_sends_them_also_after_a_restart(place: Place):
    with place.living() as daemon:
        paused = daemon.asked.post("/v1/pause")
        assert (paused["state"], paused["delivering"]) == ("paused", False)
        assert "px-sidecar resume" in paused["reasons"][0]
        daemon.track("u1", "Feature Used")
    with place.living() as daemon:
        assert daemon.status()["state"] == "paused"
        assert daemon.status()["pending"] == 1
        assert daemon.network.sent == []
        daemon.asked.post("/v1/resume")
        assert daemon.settle()["delivered"] == 1
    with place.living() as daemon:
        assert daemon.status()["state"] == "open"


def test_a_full_outbox_is_a_reason(place: Place):
    with place.living() as daemon:
        daemon.do(lambda: setattr(daemon.daemon.room, "full", "outbox_full"))
        status = daemon.status()
    assert status["full"] == "outbox_full"
    assert "outbox.max_bytes" in status["reasons"][0]


def test_the_line_for_systemd_names_the_trouble(place: Place):
    with place.living(always(401)) as daemon:
        daemon.track("u1", "Feature Used")
        wait_until(lambda: daemon.status()["state"] == "paused", "the pause")
        import trio

        line = trio.from_thread.run(daemon.desk.line, trio_token=daemon._token)
    assert line.startswith("paused, 1 pending, 0/s; PX answered 401")


# Pure parts -----------------------------------------------------------------------------------------------------------


def test_the_rate_counts_whole_seconds_of_the_last_ten():
    rate = Rate(100.0)
    for tenth in range(200):  # ten a second for twenty seconds
        rate.add(100.0 + tenth / 10)
    assert rate.per_second(120.05) == 10
    assert rate.per_second(125.0) == 5
    assert rate.per_second(131.0) == 0


def test_a_young_rate_is_divided_by_its_age():
    rate = Rate(50.0)
    for _ in range(30):
        rate.add(51.0)
    assert rate.per_second(53.0) == 10


@pytest.mark.parametrize(
    ("pending", "left", "next_day_in_s", "takes_s"),
    [
        (0, 1000, DAY_S, 0),
        (1000, 1000, DAY_S, 10),
        (1001, 1000, DAY_S, DAY_S + 0.01),
        (100, 0, 500.0, 501),
        (3000, 1000, DAY_S, 2 * DAY_S + 10),  # today's thousand, tomorrow's, and the next day's within ten seconds
        (3001, 1000, DAY_S, 3 * DAY_S + 0.01),
    ],
)
def test_time_to_drain_waits_for_new_days(pending: int, left: int, next_day_in_s: float, takes_s: float):
    found = drain_s(pending, pace_per_s=100, left=left, limit=1000, next_day_in_s=next_day_in_s)
    assert found == pytest.approx(takes_s)


def test_counters_are_summed_by_state_and_reason():
    counters = {"dead:refused": 2, "dead:failing": 0, "dead:firewall": 3, "deadline": 7}
    assert by_reason(counters, "dead") == {"firewall": 3, "refused": 2}
    assert total(counters, "dead") == 5


def test_moments_are_utc_with_milliseconds():
    assert iso(1_717_689_600_123) == "2024-06-06T16:00:00.123Z"
