"""`px-sidecar status`, `pause` and `resume`, through the command line."""

import pytest
from living import Place, always, wait_until

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
