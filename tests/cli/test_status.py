"""`px-sidecar status`, `pause` and `resume`, through the command line."""

from io import StringIO
from types import SimpleNamespace

import pytest
from living import Place, always, wait_until
from rich.console import Console, RenderableType

from sidecar.cli.status import _live, screen
from sidecar.errors import Failed, NotRunning

TOP_LEVEL = {
    *("version", "state", "since", "next_try_in_s", "delivering", "reasons", "warnings"),
    *("accepted", "pending", "pending_high", "delivered", "dropped", "dead", "dropped_by_reason", "dead_by_reason"),
    *("repeated", "ambiguous", "retries", "in_flight", "lanes", "rate", "pace", "ceiling", "quota"),
    *(
        "oldest_pending_age_s",
        "drain_s",
        "full",
        "outbox",
        "slowest_user",
        "last_delivered",
        "last_problem",
        "uptime_s",
    ),
}


def test_status_json_has_the_documented_shape(place: Place, verb):
    with place.living() as daemon:
        daemon.track("u1", "Feature Used")
        daemon.settle()
        ran = verb("status", "--json", *place.flags)
    assert ran.code == 0
    assert set(ran.json) == TOP_LEVEL
    assert set(ran.json["quota"]) == {"used", "limit", "left", "reserve", "free_in_s", "by_px"}
    assert set(ran.json["outbox"]) == {"path", "bytes", "max_bytes", "wal_bytes"}
    assert (ran.json["accepted"], ran.json["delivered"], ran.json["state"]) == (1, 1, "open")


def test_the_first_line_is_the_verdict_and_the_second_what_to_do(place: Place, verb):
    with place.living(always(401)) as daemon:
        daemon.track("u1", "Feature Used")
        wait_until(lambda: daemon.status()["state"] == "paused", "the pause")
        ran = verb("status", *place.flags)
    lines = ran.out.splitlines()
    assert "not delivering: paused" in lines[0]
    assert lines[1].startswith("  PX answered 401")
    assert " ".join(ran.out.split()).count("regenerate a key with Write access") == 1
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("events", [0, 3])
def test_a_healthy_screen_says_so_and_fits(place: Place, verb, events: int):
    with place.living() as daemon:
        for number in range(events):
            daemon.track(f"u{number}", "Feature Used")
        daemon.settle()
        ran = verb("status", *place.flags)
    assert "idle, everything is delivered" in ran.out.splitlines()[0]
    assert max(map(len, ran.out.splitlines())) <= 80
    assert "\x1b" not in ran.out


def test_without_a_daemon_the_file_is_reported_and_the_exit_is_69(place: Place, verb):
    with place.living() as daemon:
        daemon.asked.post("/v1/pause")
        daemon.track("u1", "Feature Used")
    ran = verb("status", "--json", *place.flags)
    assert ran.code == 69
    assert set(ran.json) == TOP_LEVEL
    assert (ran.json["state"], ran.json["pending"], ran.json["delivering"]) == ("stopped", 1, False)
    assert "systemctl start px-sidecar" in ran.json["reasons"][0]
    assert "not running" in verb("status", *place.flags).out.splitlines()[0]


def test_without_daemon_and_outbox_one_sentence_says_what_to_do(place: Place, verb):
    ran = verb("status", *place.flags)
    assert ran.code == 69
    assert ran.out == ""
    assert "no outbox" in ran.err
    assert ran.err.count("\n") == 1


def test_watching_needs_a_daemon(place: Place, verb):
    ran = verb("status", "--watch", *place.flags)
    assert ran.code == 69
    assert "px-sidecar run" in ran.err


@pytest.mark.parametrize("name", ["pause", "resume"])
def test_pause_and_resume_need_a_daemon_and_nothing_else(place: Place, verb, name: str):
    assert verb(name, *place.flags).code == 69
    with place.living():
        assert verb(name, "--control", place.control).code == 0
        assert verb(name, PX_SIDECAR_LISTEN_CONTROL=place.control).code == 0


def test_pause_and_resume_print_the_status_as_json(place: Place, verb):
    with place.living():
        paused = verb("pause", "--json", *place.flags)
        resumed = verb("resume", "--json", *place.flags)
    assert set(paused.json) == set(resumed.json) == TOP_LEVEL
    assert (paused.json["state"], resumed.json["state"]) == ("paused", "open")


def test_pause_says_that_events_are_kept(place: Place, verb):
    with place.living():
        assert "still accepted" in verb("pause", *place.flags).out


def test_a_configuration_that_was_named_and_is_missing_is_an_error(verb, tmp_path):
    ran = verb("pause", "--config", str(tmp_path / "absent.toml"))
    assert ran.code == 78
    assert "absent.toml does not exist" in ran.err


def test_the_configuration_may_be_named_before_the_verb_and_behind_it_for_that_verb_alone(verb, tmp_path):
    assert "before.toml does not exist" in verb("--config", str(tmp_path / "before.toml"), "pause").err
    ran = verb("--config", str(tmp_path / "before.toml"), "pause", "--config", str(tmp_path / "behind.toml"))
    assert "behind.toml does not exist" in ran.err


def test_a_text_of_others_cannot_command_the_terminal(place: Place, verb):
    with place.living(always(503)) as daemon:
        daemon.track("\x1b[2Jevil", "Feature Used")
        wait_until(lambda: daemon.status()["slowest_user"], "a failed attempt")
        ran = verb("status", *place.flags)
    assert "\x1b" not in ran.out
    assert "·[2Jevil" in ran.out


def test_an_instance_whose_configuration_cannot_be_read_is_not_taken_for_another(verb):
    ran = verb("--instance", "no-such", "pause")
    assert ran.code == 69
    assert "/run/px-sidecar/control-no-such.sock" in ran.err


# The screen ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def healthy(place: Place) -> dict:
    """What a daemon tells that has delivered one event."""
    with place.living() as daemon:
        daemon.track("u1", "Feature Used")
        return daemon.settle()


def shown(found: dict) -> list[str]:
    """The screen of this status, so wide that nothing is wrapped."""
    return printed(screen(found))


def line(found: dict, name: str) -> str:
    """What stands behind ``name``."""
    return next(one.strip().removeprefix(name).strip() for one in shown(found) if one.strip().startswith(name))


@pytest.mark.parametrize(
    ("facts", "verdict"),
    [
        ({"pending": 3}, "delivering since"),
        ({"reasons": ["The disk is full."]}, "delivering, but look:"),
        ({"delivering": False}, "not delivering: the day's quota is spent"),
        ({"state": "paused", "delivering": False, "next_try_in_s": 240.0}, "not delivering: paused since"),
        (
            {"state": "waiting", "delivering": False, "since": None, "next_try_in_s": 4.2},
            "waiting, tries again in 4.2s",
        ),
    ],
)
def test_the_verdict_tells_whether_it_delivers_and_when_it_tries_again(healthy: dict, facts: dict, verdict: str):
    first = shown(healthy | facts)[0]
    assert verdict in first
    assert ("tries again in" in first) is ("next_try_in_s" in facts)


def test_a_backlog_is_shown_with_its_age_its_high_ones_and_when_it_will_be_gone(healthy: dict):
    found = healthy | {"pending": 12_000, "pending_high": 7, "oldest_pending_age_s": 90.0, "drain_s": 64.0}
    assert line(found, "pending") == "12,000 (7 high), oldest 1m 30s, drained in 1m 4s"
    unknown = found | {"pending_high": 0, "oldest_pending_age_s": None, "drain_s": None}
    assert line(unknown, "pending") == "12,000"


def test_retries_and_unknown_outcomes_are_counted_beside_what_was_delivered(healthy: dict):
    told = line(healthy | {"retries": 4, "ambiguous": 2}, "delivered")
    assert told.endswith("; 4 retries, 2 of unknown outcome")
    assert ";" not in line(healthy, "delivered")


def test_a_full_outbox_is_said_beside_its_size_and_an_unknown_size_is_a_question_mark(healthy: dict):
    outbox = healthy["outbox"] | {"bytes": None, "max_bytes": 2**30}
    assert line(healthy | {"outbox": outbox, "full": "disk"}, "outbox").startswith("? of 1 GiB, FULL (disk)")
    assert "FULL" not in line(healthy, "outbox")


def test_what_is_kept_of_the_days_quota_for_high_priority_is_shown_only_if_something_is(healthy: dict):
    quota = healthy["quota"] | {"used": 5, "limit": 1_000}
    assert line(healthy | {"quota": quota | {"reserve": 100}}, "quota") == (
        "5 of 1,000 requests of the day, 100 kept for high priority"
    )
    assert line(healthy | {"quota": quota | {"reserve": 0}}, "quota") == "5 of 1,000 requests of the day"


def test_repeats_notes_and_the_slowest_are_shown_where_there_are_any(healthy: dict):
    slow = {"user": None, "waiting_for_s": 61.0, "attempts": 3, "detail": "PX answered 503."}
    found = healthy | {"repeated": 8, "warnings": ["deliver.hosts waits for a restart."], "slowest_user": slow}
    assert line(found, "accepted") == "1, 8 repeats recognised"
    assert line(found, "slowest") == "an event without a user waits for 1m 1s, 3 attempts: PX answered 503."
    assert "  Note: deliver.hosts waits for a restart." in shown(found)


def test_the_last_problem_is_shown_unless_it_was_just_read_as_the_reason(healthy: dict):
    problem = {"when": healthy["last_delivered"], "message": "PX answered 503."}
    assert line(healthy | {"last_problem": problem}, "last problem").endswith("  PX answered 503.")
    again = shown(healthy | {"last_problem": problem, "reasons": ["PX answered 503."]})
    assert sum("PX answered 503." in one for one in again) == 1


def ctrl_c(_s: float) -> None:
    raise KeyboardInterrupt


def test_watching_as_json_prints_a_status_a_second_and_ctrl_c_is_the_way_out(place: Place, verb, monkeypatch):
    naps = [lambda _s: None, ctrl_c]
    monkeypatch.setattr("sidecar.cli.status.time", SimpleNamespace(sleep=lambda s: naps.pop(0)(s)))
    with place.living():
        ran = verb("status", "--watch", "--json", *place.flags)
    assert ran.code == 0
    assert ran.out.count('"state"') == 2


def test_watching_goes_on_through_a_restart_and_says_what_it_cannot_see(healthy: dict, monkeypatch):
    answers = [NotRunning("Nobody answers."), Failed("The outbox is busy."), healthy, KeyboardInterrupt()]

    def get(_path: str) -> dict:
        answer = answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    screens: list[list[str]] = []
    monkeypatch.setattr("sidecar.cli.status.Live.update", lambda _live, what, refresh: screens.append(printed(what)))
    monkeypatch.setattr("sidecar.cli.status.time", SimpleNamespace(sleep=lambda _s: None))
    with pytest.raises(KeyboardInterrupt):
        _live(Console(width=300, file=StringIO(), color_system=None), get, healthy)
    firsts = [one[0] for one in screens]
    assert "idle, everything is delivered" in firsts[0]
    assert firsts[1] == "Nobody answers."
    assert "not running" in firsts[2]
    assert "  The outbox is busy." in screens[3]
    assert "idle, everything is delivered" in firsts[-1]


def printed(what: RenderableType) -> list[str]:
    out = Console(width=300, file=StringIO(), color_system=None)
    out.print(what)
    return out.file.getvalue().splitlines()
