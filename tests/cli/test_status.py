"""`px-sidecar status`, `pause` and `resume`: JSON, the screen, and what happens without a daemon."""

from io import StringIO
from types import SimpleNamespace

import pytest
from rich.console import Console, RenderableType
from running_daemon import DaemonDir, always, wait_until

from sidecar.cli.status import _redraw, render_status
from sidecar.errors import Failed, NotRunning

SPENT = {"used": 10, "limit": 10, "left": 0, "reserve": 0, "free_in_s": 60.0, "by_px": False}
TOP_LEVEL = {
    *("version", "state", "since", "next_try_in_s", "delivering", "reasons", "warnings"),
    *(
        "accepted",
        "without_account",
        "pending",
        "pending_high",
        "delivered",
        "dropped",
        "dead",
        "dropped_by_reason",
        "dead_by_reason",
    ),
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
        "fleet",
        "problems",
        "refused",
        "busiest_name",
    ),
}


def test_status_json_has_the_documented_shape(daemon_dir: DaemonDir, verb):
    with daemon_dir.running() as daemon:
        daemon.track("u1", "Feature Used")
        daemon.settle()
        ran = verb("status", "--json", *daemon_dir.flags)
    assert ran.code == 0
    assert set(ran.json) == TOP_LEVEL
    assert set(ran.json["quota"]) == {"used", "limit", "left", "reserve", "free_in_s", "by_px"}
    assert set(ran.json["outbox"]) == {"path", "bytes", "max_bytes", "wal_bytes"}
    assert (ran.json["accepted"], ran.json["delivered"], ran.json["state"]) == (1, 1, "open")


def test_the_first_lines_are_the_state_and_what_to_do(daemon_dir: DaemonDir, verb):
    with daemon_dir.running(always(401)) as daemon:
        daemon.track("u1", "Feature Used")
        wait_until(lambda: daemon.status()["state"] == "paused", "the pause")
        ran = verb("status", *daemon_dir.flags)
    lines = ran.out.splitlines()
    assert "not delivering: paused" in lines[0]
    assert lines[1].startswith("  PX answered 401")
    assert " ".join(ran.out.split()).count("regenerate a key with Write access") == 1
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("events", [0, 3])
def test_a_healthy_daemon_is_idle_in_80_columns(daemon_dir: DaemonDir, verb, events: int):
    with daemon_dir.running() as daemon:
        for number in range(events):
            daemon.track(f"u{number}", "Feature Used")
        daemon.settle()
        ran = verb("status", *daemon_dir.flags)
    assert "idle, everything is delivered" in ran.out.splitlines()[0]
    assert max(map(len, ran.out.splitlines())) <= 80
    assert "\x1b" not in ran.out


def test_without_a_daemon_the_file_is_shown_with_exit_69(daemon_dir: DaemonDir, verb):
    with daemon_dir.running() as daemon:
        daemon.client.post("/v1/pause")
        daemon.track("u1", "Feature Used")
    ran = verb("status", "--json", *daemon_dir.flags)
    assert ran.code == 69
    assert set(ran.json) == TOP_LEVEL
    assert (ran.json["state"], ran.json["pending"], ran.json["delivering"]) == ("stopped", 1, False)
    assert "systemctl start px-sidecar" in ran.json["reasons"][0]
    assert "not running" in verb("status", *daemon_dir.flags).out.splitlines()[0]


def test_without_daemon_and_outbox_one_sentence_is_printed(daemon_dir: DaemonDir, verb):
    ran = verb("status", *daemon_dir.flags)
    assert ran.code == 69
    assert ran.out == ""
    assert "no outbox" in ran.err
    assert ran.err.count("\n") == 1


def test_status_watch_needs_a_daemon(daemon_dir: DaemonDir, verb):
    ran = verb("status", "--watch", *daemon_dir.flags)
    assert ran.code == 69
    assert "px-sidecar run" in ran.err


@pytest.mark.parametrize("name", ["pause", "resume"])
def test_pause_and_resume_need_only_the_control_socket(daemon_dir: DaemonDir, verb, name: str):
    assert verb(name, *daemon_dir.flags).code == 69
    with daemon_dir.running():
        assert verb(name, "--control", daemon_dir.control).code == 0
        assert verb(name, PX_SIDECAR_LISTEN_CONTROL=daemon_dir.control).code == 0


def test_pause_and_resume_print_the_status_as_json(daemon_dir: DaemonDir, verb):
    with daemon_dir.running():
        paused = verb("pause", "--json", *daemon_dir.flags)
        resumed = verb("resume", "--json", *daemon_dir.flags)
    assert set(paused.json) == set(resumed.json) == TOP_LEVEL
    assert (paused.json["state"], resumed.json["state"]) == ("paused", "open")


def test_pause_says_that_events_are_still_accepted(daemon_dir: DaemonDir, verb):
    with daemon_dir.running():
        assert "still accepted" in verb("pause", *daemon_dir.flags).out


def test_a_named_configuration_must_exist(verb, tmp_path):
    ran = verb("pause", "--config", str(tmp_path / "absent.toml"))
    assert ran.code == 78
    assert "absent.toml does not exist" in ran.err


def test_config_after_the_verb_overrides_config_before_it(verb, tmp_path):
    assert "before.toml does not exist" in verb("--config", str(tmp_path / "before.toml"), "pause").err
    ran = verb("--config", str(tmp_path / "before.toml"), "pause", "--config", str(tmp_path / "behind.toml"))
    assert "behind.toml does not exist" in ran.err


def test_control_characters_in_foreign_text_are_replaced(daemon_dir: DaemonDir, verb):
    with daemon_dir.running(always(503)) as daemon:
        daemon.track("\x1b[2Jevil", "Feature Used")
        wait_until(lambda: daemon.status()["slowest_user"], "a failed attempt")
        ran = verb("status", *daemon_dir.flags)
    assert "\x1b" not in ran.out
    assert "·[2Jevil" in ran.out


def test_an_unreadable_instance_uses_its_own_socket(verb):
    ran = verb("--instance", "no-such", "pause")
    assert ran.code == 69
    assert "/run/px-sidecar/control-no-such.sock" in ran.err


# The screen ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def healthy(daemon_dir: DaemonDir) -> dict:
    """The status of a daemon that has delivered one event."""
    with daemon_dir.running() as daemon:
        daemon.track("u1", "Feature Used")
        return daemon.settle()


def screen_lines(status: dict) -> list[str]:
    """Return the screen of this status, wide enough that no line wraps."""
    return lines_of(render_status(status))


def line(status: dict, name: str) -> str:
    """Return the text after the label ``name``."""
    stripped = (text_line.strip() for text_line in screen_lines(status))
    return next(text_line.removeprefix(name).strip() for text_line in stripped if text_line.startswith(name))


@pytest.mark.parametrize(
    ("facts", "headline"),
    [
        ({"pending": 3}, "delivering since"),
        ({"reasons": ["The disk is full."]}, "delivering, with a problem:"),
        ({"delivering": False, "quota": SPENT}, "not delivering: the day's quota is spent"),
        ({"delivering": False, "reasons": ["The clock of this host shows 1970."]}, "not delivering:"),
        ({"state": "paused", "delivering": False, "next_try_in_s": 240.0}, "not delivering: paused since"),
        (
            {"state": "waiting", "delivering": False, "since": None, "next_try_in_s": 4.2},
            "waiting, next try in 4.2s",
        ),
    ],
)
def test_the_headline_says_if_it_delivers_and_the_next_try(healthy: dict, facts: dict, headline: str):
    first = screen_lines(healthy | facts)[0]
    assert headline in first
    assert ("next try in" in first) is ("next_try_in_s" in facts)


def test_pending_shows_age_class_and_time_to_drain(healthy: dict):
    status = healthy | {"pending": 12_000, "pending_high": 7, "oldest_pending_age_s": 90.0, "drain_s": 64.0}
    assert line(status, "pending") == "12,000 (7 high), oldest 1m 30s, drained in 1m 4s"
    unknown = status | {"pending_high": 0, "oldest_pending_age_s": None, "drain_s": None}
    assert line(unknown, "pending") == "12,000"


def test_delivered_shows_retries_and_unknown_outcomes(healthy: dict):
    text = line(healthy | {"retries": 4, "ambiguous": 2}, "delivered")
    assert text.endswith("; 4 retries, 2 of unknown outcome")
    assert ";" not in line(healthy, "delivered")


def test_one_connection_and_one_attempt_are_singular(healthy: dict):
    slow = {"user": "u1", "waiting_for_s": 2.0, "attempts": 1, "detail": "PX answered 503."}
    status = healthy | {"pending": 1, "in_flight": 1, "lanes": 1, "slowest_user": slow}
    assert line(status, "pace").endswith("1 in flight, 1 connection")
    assert line(status, "slowest") == "u1 waiting for 2.0s, 1 attempt: PX answered 503."


def test_a_full_outbox_and_an_unknown_size_are_shown(healthy: dict):
    outbox = healthy["outbox"] | {"bytes": None, "max_bytes": 2**30}
    assert line(healthy | {"outbox": outbox, "full": "disk"}, "outbox").startswith("? of 1 GiB, FULL (disk)")
    assert "FULL" not in line(healthy, "outbox")


def test_quota_shows_its_reserve_if_there_is_one(healthy: dict):
    quota = healthy["quota"] | {"used": 5, "limit": 1_000}
    assert line(healthy | {"quota": quota | {"reserve": 100}}, "quota") == (
        "5 of 1,000 requests of the day, 100 kept for high priority"
    )
    assert line(healthy | {"quota": quota | {"reserve": 0}}, "quota") == "5 of 1,000 requests of the day"


def test_duplicates_warnings_and_slowest_user_are_shown(healthy: dict):
    slow = {"user": None, "waiting_for_s": 61.0, "attempts": 3, "detail": "PX answered 503."}
    status = healthy | {"repeated": 8, "warnings": ["deliver.hosts waits for a restart."], "slowest_user": slow}
    assert line(status, "accepted") == "1, 8 duplicates not stored"
    assert line(status, "slowest") == "an event without a user waiting for 1m 1s, 3 attempts: PX answered 503."
    assert "  Note: deliver.hosts waits for a restart." in screen_lines(status)


def test_the_last_problem_is_not_repeated(healthy: dict):
    problem = {"when": healthy["last_delivered"], "message": "PX answered 503."}
    assert line(healthy | {"last_problem": problem}, "last problem").endswith("  PX answered 503.")
    lines = screen_lines(healthy | {"last_problem": problem, "reasons": ["PX answered 503."]})
    assert sum("PX answered 503." in text_line for text_line in lines) == 1


def ctrl_c(_s: float) -> None:
    raise KeyboardInterrupt


def test_status_watch_json_prints_one_status_per_second(daemon_dir: DaemonDir, verb, monkeypatch):
    sleeps = [lambda _s: None, ctrl_c]
    monkeypatch.setattr("sidecar.cli.status.time", SimpleNamespace(sleep=lambda s: sleeps.pop(0)(s)))
    with daemon_dir.running():
        ran = verb("status", "--watch", "--json", *daemon_dir.flags)
    assert ran.code == 0
    assert ran.out.count('"state"') == 2


def test_status_watch_prints_a_screen_per_second_into_a_pipe(daemon_dir: DaemonDir, verb, monkeypatch):
    """Nothing came out of the pipe before Ctrl-C, and then one screen."""
    sleeps = [lambda _s: None, ctrl_c]
    monkeypatch.setattr("sidecar.cli.status.time", SimpleNamespace(sleep=lambda s: sleeps.pop(0)(s)))
    with daemon_dir.running():
        ran = verb("status", "--watch", *daemon_dir.flags)
    assert ran.code == 0
    assert ran.out.count("idle, everything is delivered") == 2


def test_status_watch_continues_through_a_restart(healthy: dict, monkeypatch):
    answers = [NotRunning("The daemon does not answer."), Failed("The outbox is busy."), healthy, KeyboardInterrupt()]

    def get(_path: str) -> dict:
        answer = answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    screens: list[list[str]] = []
    monkeypatch.setattr(
        "sidecar.cli.status.Live.update", lambda _live, renderable, refresh: screens.append(lines_of(renderable))
    )
    monkeypatch.setattr("sidecar.cli.status.time", SimpleNamespace(sleep=lambda _s: None))
    with pytest.raises(KeyboardInterrupt):
        _redraw(Console(width=300, file=StringIO(), color_system=None), get, healthy)
    first_lines = [text_line[0] for text_line in screens]
    assert "idle, everything is delivered" in first_lines[0]
    assert first_lines[1] == "The daemon does not answer."
    assert "not running" in first_lines[2]
    assert "  The outbox is busy." in screens[3]
    assert "idle, everything is delivered" in first_lines[-1]


def lines_of(renderable: RenderableType) -> list[str]:
    out = Console(width=300, file=StringIO(), color_system=None)
    out.print(renderable)
    return out.file.getvalue().splitlines()


def test_a_stopped_daemon_that_would_stay_paused_says_so(daemon_dir: DaemonDir, verb):
    """It named the start alone, and how long draining would take; after the start nothing was sent."""
    with daemon_dir.running() as daemon:
        daemon.client.post("/v1/pause")
        daemon.track("u1", "Feature Used")
    stopped = verb("status", "--json", *daemon_dir.flags).json
    assert (
        stopped["reasons"][1]
        == "Delivery was paused, and a start does not end that: `px-sidecar resume` does, afterwards."
    )
    assert stopped["drain_s"] is None
    with daemon_dir.running() as daemon:
        daemon.client.post("/v1/resume")
    assert len(verb("status", "--json", *daemon_dir.flags).json["reasons"]) == 1
