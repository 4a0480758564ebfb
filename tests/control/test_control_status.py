"""``GET /v1/status`` of a running daemon, and the pure functions behind it."""

import pytest
import trio
from running_daemon import DaemonDir, always, wait_until

from sidecar.control.pages import snapshot_of
from sidecar.control.state import StateReader, status_line
from sidecar.control.status import DAY_S, DaemonState, by_reason, drain_s, total
from sidecar.observe import Rate
from sidecar.units import iso_utc


def test_accepted_is_pending_plus_delivered_dropped_and_dead(daemon_dir: DaemonDir):
    with daemon_dir.running() as daemon:
        daemon.track("u1", "Feature Used")
        daemon.track(None, "Feature Used", anonymous_id="a1")
        status = daemon.settle()
    assert status["accepted"] == 2
    assert status["delivered"] == 1
    assert status["dropped_by_reason"] == {"no_user": 1}
    assert status["accepted"] == status["pending"] + status["delivered"] + status["dropped"] + status["dead"]


def test_events_of_class_low_are_pending_too(tmp_path):
    daemon_dir = DaemonDir(tmp_path, '[mapping.event."Chatty"]\npriority = "low"\n')
    with daemon_dir.running() as daemon:
        daemon.client.post("/v1/pause")
        daemon.track("u1", "Chatty")
        status = daemon.status()
    assert (status["accepted"], status["pending"], status["pending_high"]) == (1, 1, 0)


def test_a_healthy_daemon_delivers_and_gives_no_reasons(daemon_dir: DaemonDir):
    with daemon_dir.running() as daemon:
        daemon.track("u1", "Feature Used")
        status = daemon.settle()
    assert status["state"] == "open"
    assert status["delivering"] is True
    assert status["reasons"] == []
    assert status["full"] is None
    assert status["quota"]["used"] == 1
    assert status["quota"]["left"] == status["quota"]["limit"] - 1
    assert status["quota"]["reserve"] == 99_000
    assert status["outbox"]["path"] == str(daemon_dir.outbox)
    assert status["outbox"]["bytes"] > 0
    assert status["last_delivered"].endswith("Z")


def test_an_invalid_key_pauses_and_names_the_cause(daemon_dir: DaemonDir):
    with daemon_dir.running(always(401)) as daemon:
        daemon.track("u1", "Feature Used")
        wait_until(lambda: daemon.status()["state"] == "paused", "the pause")
        status = daemon.status()
    assert status["delivering"] is False
    assert "API key is invalid" in status["reasons"][0]
    assert status["pending"] == 1
    assert status["next_try_in_s"] == pytest.approx(300, abs=10)
    assert status["last_problem"]["message"] == status["reasons"][0]


def test_the_slowest_user_is_named(daemon_dir: DaemonDir):
    with daemon_dir.running(always(503)) as daemon:
        daemon.track("u-slow", "Feature Used")
        wait_until(lambda: daemon.status()["slowest_user"], "a failed attempt")
        status = daemon.status()
    assert status["slowest_user"]["user"] == "u-slow"
    assert status["slowest_user"]["attempts"] >= 1
    assert "503" in status["slowest_user"]["detail"]
    assert "503" in status["last_problem"]["message"]
    assert status["retries"] >= 1


def test_a_spent_quota_gives_the_time_until_it_is_free(tmp_path):
    daemon_dir = DaemonDir(tmp_path, "[deliver]\nper_day = 3\nreserve_for_high = 0\n")
    with daemon_dir.running() as daemon:
        for number in range(5):
            daemon.track(f"u{number}", "Feature Used")
        wait_until(lambda: daemon.status()["delivered"] == 3, "three deliveries")
        status = daemon.status()
    assert status["state"] == "open"
    assert status["delivering"] is False
    assert "quota of 3 requests is spent" in status["reasons"][0]
    assert DAY_S - 130 < status["quota"]["free_in_s"] <= DAY_S + 180
    assert status["drain_s"] == pytest.approx(status["quota"]["free_in_s"], abs=1)


def test_a_pause_survives_restarts_and_resume_delivers(daemon_dir: DaemonDir):
    with daemon_dir.running() as daemon:
        paused = daemon.client.post("/v1/pause")
        assert (paused["state"], paused["delivering"]) == ("paused", False)
        assert "px-sidecar resume" in paused["reasons"][0]
        daemon.track("u1", "Feature Used")
    with daemon_dir.running() as daemon:
        assert daemon.status()["state"] == "paused"
        assert daemon.status()["pending"] == 1
        assert daemon.network.sent == []
        daemon.client.post("/v1/resume")
        assert daemon.settle()["delivered"] == 1
    with daemon_dir.running() as daemon:
        assert daemon.status()["state"] == "open"


def test_a_full_outbox_is_given_as_a_reason(daemon_dir: DaemonDir):
    with daemon_dir.running() as daemon:
        daemon.do(lambda: setattr(daemon.app.outbox.capacity, "full", "outbox_full"))
        status = daemon.status()
    assert status["full"] == "outbox_full"
    assert "outbox.max_bytes" in status["reasons"][0]


def test_the_line_for_systemd_has_the_first_reason(daemon_dir: DaemonDir):
    with daemon_dir.running(always(401)) as daemon:
        daemon.track("u1", "Feature Used")
        wait_until(lambda: daemon.status()["state"] == "paused", "the pause")

        line = status_line(daemon.run(daemon.app.state.read))
    assert line.startswith("paused, 1 pending, 0/s; PX answered 401")


# Pure functions -------------------------------------------------------------------------------------------------------


def test_the_rate_is_over_the_last_ten_whole_seconds():
    rate = Rate(100.0)
    for tenth in range(200):  # ten a second for twenty seconds
        rate.add(100.0 + tenth / 10)
    assert rate.per_second(120.05) == 10
    assert rate.per_second(125.0) == 5
    assert rate.per_second(131.0) == 0


def test_the_rate_of_a_young_process_is_over_its_age():
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
        (
            3000,
            1000,
            DAY_S,
            2 * DAY_S + 10,
        ),  # 1,000 today, 1,000 tomorrow, and the rest within ten seconds of the day after
        (3001, 1000, DAY_S, 3 * DAY_S + 0.01),
    ],
)
def test_the_time_to_drain_includes_waiting_for_quota(pending: int, left: int, next_day_in_s: float, takes_s: float):
    estimate_s = drain_s(pending, pace_per_s=100, left=left, limit=1000, next_day_in_s=next_day_in_s)
    assert estimate_s == pytest.approx(takes_s)


def test_counters_are_grouped_by_state_and_reason():
    counters = {"dead:refused": 2, "dead:failing": 0, "dead:firewall": 3, "deadline": 7}
    assert by_reason(counters, "dead") == {"firewall": 3, "refused": 2}
    assert total(counters, "dead") == 5


def test_times_are_utc_with_milliseconds():
    assert iso_utc(1_717_689_600_123) == "2024-06-06T16:00:00.123Z"


def metrics_of(daemon) -> str:
    """The body of ``GET /metrics``."""
    snapshot = snapshot_of(daemon.run(daemon.app.state.read))
    return daemon.do(lambda: daemon.app.telemetry.metrics.render(snapshot)).decode()


def test_metrics_have_time_to_delivery_names_and_oldest_by_class(tmp_path):
    with DaemonDir(tmp_path, '[mapping.event."Paid"]\npriority = "high"\n').running() as daemon:
        daemon.track("u1", "Paid")
        daemon.track("u1", "Feature Used")
        daemon.track(None, "Nobody", anonymous_id="a1")
        daemon.settle()
        text = metrics_of(daemon)
        assert 'px_sidecar_delivery_seconds_count{class="high"} 1.0' in text
        assert 'px_sidecar_delivery_seconds_count{class="normal"} 1.0' in text
        assert 'px_sidecar_events_by_name_total{event="Paid",outcome="delivered"} 1.0' in text
        assert 'px_sidecar_events_by_name_total{event="Nobody",outcome="dropped"} 1.0' in text
        assert 'px_sidecar_events_by_source_total{outcome="accepted",source="0"} 3.0' in text
        daemon.client.post("/v1/pause")
        daemon.track("u1", "Paid")
        text = metrics_of(daemon)
        assert 'px_sidecar_pending_events{class="high"} 1.0' in text
        assert 'px_sidecar_oldest_pending_by_class_age_seconds{class="normal"} 0.0' in text


class FleetThatIs:
    """The fleet's part of a daemon in one state; 2.5 requests a second are set aside for it."""

    def __init__(self, state: str, alone: float = 2.5, problem: str = "") -> None:
        self.state, self.alone, self.problem = state, alone, problem

    def facts(self):
        counts = ("members", "absent", "used", "slots_held", "slots_granted", "slots_late", "calls")
        about = {"name": "f", "state": self.state, "problem": self.problem, "rate": 190.0, "alone": self.alone}
        return about | dict.fromkeys(counts, 0) | {"clock_uncertainty_s": None}


def test_without_the_engine_pace_is_that_of_the_promise(tmp_path):
    """They were those of all hosts together, and a host that sent nothing was "delivering"."""

    async def unanswered(_request):
        await trio.sleep_forever()

    with DaemonDir(tmp_path, '[deliver]\nstop_timeout = "10ms"\n').running(unanswered) as daemon:
        for number in range(5):
            daemon.track(f"u{number}", "Feature Used")
        app = daemon.app

        async def read(fleet: FleetThatIs) -> DaemonState:
            parts = (app.store, app.outbox, app.settings, app.clock, app.notices)
            return await StateReader(*parts, delivery=app.delivery, telemetry=app.telemetry, fleet=fleet).read()

        def shown(fleet: FleetThatIs) -> tuple[bool, float, float | None]:
            state = daemon.run(read, fleet)
            return state.delivering, state.pace, state.drain_s

        assert shown(FleetThatIs("sharing")) == (True, 190.0, 5 / 190)
        assert shown(FleetThatIs("alone")) == (True, 2.5, 2.0)
        assert shown(FleetThatIs("quiet")) == (False, 2.5, 2.0)
        assert shown(FleetThatIs("alone", alone=0.0)) == (False, 0.0, None)
        assert shown(FleetThatIs("joining", alone=0.0)) == (False, 0.0, None)


@pytest.mark.parametrize("state", ["joining", "quiet", "alone"])
def test_an_engine_that_refuses_a_host_is_not_said_to_be_away(tmp_path, state):
    """The second reason was that the engine does not answer, with the advice to check it."""
    with DaemonDir(tmp_path).running() as daemon:
        app, problem = daemon.app, "This host was not joined to the fleet: deliver.per_day differs."

        async def read() -> DaemonState:
            parts = (app.store, app.outbox, app.settings, app.clock, app.notices)
            fleet = FleetThatIs(state, problem=problem)
            return await StateReader(*parts, delivery=app.delivery, telemetry=app.telemetry, fleet=fleet).read()

        why, meanwhile = daemon.run(read).reasons
    assert why == problem
    assert "answer" not in meanwhile


def test_time_to_drain_leaves_out_the_reserve(tmp_path):
    """It was pending / pace: seconds, while `free_in_s` was a day."""
    with DaemonDir(tmp_path, "[deliver]\nper_day = 10\nreserve_for_high = 0.5\n").running() as daemon:
        for number in range(7):
            daemon.track(f"u{number}", "Feature Used")
        wait_until(lambda: daemon.status()["delivered"] == 5, "five deliveries")
        status = daemon.status()
    assert status["quota"]["free_in_s"] > DAY_S - 130
    assert status["drain_s"] == pytest.approx(status["quota"]["free_in_s"], abs=1)


def test_time_to_drain_waits_if_px_has_ended_the_day(tmp_path):
    with DaemonDir(tmp_path).running() as daemon:
        daemon.do(daemon.app.delivery.dispatcher.limiter.treat_day_as_spent)
        daemon.track("u1", "Feature Used")
        status = daemon.status()
    assert status["quota"]["free_in_s"] > 3500
    assert status["drain_s"] == pytest.approx(status["quota"]["free_in_s"], abs=1)
