"""`px-sidecar check`: what it finds, and that each finding says what to do."""

import fcntl
import socket
import time
from pathlib import Path

import pytest
from living import Place, always, wait_until

from sidecar.cli import findings
from sidecar.cli.check import judged
from sidecar.px import Answer, NotSent, classify


def found(ran, what: str) -> tuple[str, str]:
    """Level and message of the worst finding of this name."""
    order = {"error": 0, "warning": 1, "ok": 2}
    ones = [(one["level"], one["message"]) for one in ran.json["findings"] if one["what"] == what]
    assert ones, f"nothing about {what}: {ran.out}"
    return min(ones, key=lambda one: order[one[0]])


def test_a_good_place_is_good(place: Place, verb):
    ran = verb("check", "--json", *place.flags)
    assert ran.code == 0
    assert set(ran.json) == {"ok", "findings"}
    assert all(set(one) == {"level", "what", "message"} for one in ran.json["findings"])
    assert ran.json["ok"] is True
    assert "SQLite" in [one["what"] for one in ran.json["findings"]]
    shown = verb("check", *place.flags)
    assert "0 wrong" in shown.out
    assert max(map(len, shown.out.splitlines())) <= 80


def test_a_configuration_that_cannot_be_loaded_is_the_only_finding(verb, tmp_path):
    path = tmp_path / "config.toml"
    path.write_text("[deliver]\nper_secnd = 5\n")
    ran = verb("check", "--json", "--config", str(path))
    assert ran.code == 1
    (one,) = ran.json["findings"]
    assert "per_second" in one["message"]


@pytest.mark.parametrize(
    ("key", "said"), [("", "There is no PX API key"), ("AP-XXXXXXXXXX-2", "holds a property key"), ("a b", "alone")]
)
def test_a_key_of_the_wrong_shape_is_found(place: Place, verb, key: str, said: str):
    ran = verb("check", "--json", *place.flags, PX_SIDECAR_PX_API_KEY=key)
    assert ran.code == 1
    level, message = found(ran, "API key")
    assert (level, said in message) == ("error", True), message


def test_the_same_key_in_both_places_is_found(verb, tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(f'[px]\nproperty_key = "the-rest-key"\n[outbox]\npath = "{tmp_path}/o.db"\n')
    ran = verb("check", "--json", "--config", str(path), PX_SIDECAR_PX_API_KEY="the-rest-key")
    assert found(ran, "property key")[0] == "error"
    assert "the-rest-key" not in ran.out


def test_a_key_file_that_others_can_read_is_found(tmp_path, verb, monkeypatch):
    monkeypatch.delenv("PX_SIDECAR_PX_API_KEY")
    key = tmp_path / "key"
    key.write_text("the-key")
    key.chmod(0o644)
    place = Place(tmp_path, px=f'api_key_file = "{key}"')
    ran = verb("check", "--json", *place.flags)
    level, message = found(ran, "API key")
    assert (level, "chmod 0600" in message) == ("warning", True)


def test_a_running_daemon_is_found_and_its_troubles_are_passed_on(place: Place, verb):
    with place.living(always(401)) as daemon:
        assert found(verb("check", "--json", *place.flags), "daemon") == ("ok", "It runs, with 0 events pending.")
        daemon.track("u1", "Feature Used")
        wait_until(lambda: daemon.status()["state"] == "paused", "the pause")
        level, message = found(verb("check", "--json", *place.flags), "daemon")
    assert (level, "API key is invalid" in message) == ("warning", True)


def test_two_daemons_with_one_control_socket_are_found(place: Place, verb):
    with place.living():
        other = place.folder / "other.toml"
        other.write_text(place.file.read_text().replace("outbox.db", "other.db"))
        level, message = found(verb("check", "--json", "--config", str(other)), "daemon")
    assert (level, "another outbox" in message) == ("error", True)


def test_an_outbox_that_somebody_holds_is_found(place: Place, verb):
    with place.living() as daemon:
        daemon.track("u1", "Feature Used")
        daemon.settle()
    with (place.folder / "outbox.db.lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        level, message = found(verb("check", "--json", *place.flags), "daemon")
    assert (level, "held by another process" in message) == ("error", True)


def test_a_damaged_outbox_is_found(place: Place, verb):
    with place.living() as daemon:
        daemon.track("u1", "Feature Used")
        daemon.settle()
    with place.outbox.open("r+b") as file:
        file.write(b"\0" * 100)
    level, message = found(verb("check", "--json", *place.flags), "daemon")
    assert (level, "start the daemon" in message) == ("error", True), message


def test_something_else_in_the_place_of_a_socket_is_found(place: Place, verb):
    Path(place.unix).write_text("")
    level, message = found(verb("check", "--json", *place.flags), "unix socket")
    assert (level, "no socket" in message) == ("error", True)


def test_an_address_in_use_is_found(place: Place, verb):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        text = place.file.read_text().replace('http = ""', f'http = "127.0.0.1:{other.getsockname()[1]}"')
        place.file.write_text(text)
        level, message = found(verb("check", "--json", *place.flags), "http")
    assert (level, "in use" in message) == ("warning", True)


def test_limits_above_those_of_px_are_found(tmp_path, verb):
    place = Place(tmp_path, "[deliver]\nper_second = 500\n")
    assert found(verb("check", "--json", *place.flags), "limits")[0] == "warning"


def test_too_little_room_is_found(verb, tmp_path):
    place = Place(tmp_path, 'max_bytes = "900TiB"\n')  # still within [outbox]
    level, message = found(verb("check", "--json", *place.flags), "room")
    assert (level, "900 TiB" in message) == ("warning", True)


# The host --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "level"), [("tmpfs", "error"), ("nfs4", "error"), ("fuse.sshfs", "error"), ("ext4", "ok"), (None, "ok")]
)
def test_an_outbox_in_memory_or_on_a_network_is_found(tmp_path, monkeypatch, kind, level):
    monkeypatch.setattr(findings, "file_system", lambda _path: kind)
    disk = next(one for one in findings.outbox_place(tmp_path / "outbox.db", 1) if one.what == "disk")
    assert disk.level == level


def test_the_file_system_is_that_of_the_deepest_mount(tmp_path):
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "1 0 8:1 / / rw shared:1 - ext4 /dev/sda rw\n"
        f"2 1 0:9 / {tmp_path.parent} rw - xfs /dev/sdb rw\n"
        f"3 2 0:9 / {tmp_path} rw shared:2 master:1 - tmpfs none rw\n"
        f"4 2 0:9 / {tmp_path}x rw - nfs none rw\n"
    )
    assert findings.file_system(tmp_path, mounts) == "tmpfs"
    assert findings.file_system(tmp_path.parent, mounts) == "xfs"
    assert findings.file_system(Path("/"), mounts) == "ext4"
    assert findings.file_system(Path("/"), tmp_path / "absent") is None


def test_a_clock_far_off_is_found():
    assert findings.clock(lambda: 86_400.0, lambda: True).level == "error"
    assert findings.clock(time.time, lambda: False).level == "warning"
    assert findings.clock(time.time, lambda: None).level == "ok"


def test_the_kernel_is_asked_about_the_clock():
    assert findings.is_synchronised() in (True, False, None)


# PX --------------------------------------------------------------------------------------------------------------------


def test_a_good_key_is_good_and_creates_no_event(px, tmp_path, verb):
    place = px.place(tmp_path)
    ran = verb("check", "--live", "--json", *place.flags)
    assert ran.code == 0
    assert found(ran, "PX")[0] == "ok"
    assert px.box.report().stored == 0


@pytest.mark.parametrize("key", ["another-key", "sandbox-read-only"])
def test_a_wrong_or_read_only_key_is_found(px, tmp_path, verb, key: str):
    place = px.place(tmp_path)
    ran = verb("check", "--live", "--json", *place.flags, PX_SIDECAR_PX_API_KEY=key)
    assert ran.code == 1
    level, message = found(ran, "PX")
    assert (level, "Write access" in message) == ("error", True)
    assert key not in ran.out


@pytest.mark.parametrize(
    ("reply", "level", "said"),
    [
        (Answer(404), "error", "region"),
        (Answer(400), "ok", "may write"),
        (Answer(201), "warning", "is that PX"),
        (Answer(429), "warning", "no verdict"),
        (Answer(503), "warning", "no verdict"),
        (NotSent("connection refused"), "error", "connection refused"),
    ],
)
def test_what_an_answer_says_about_key_and_region(reply, level: str, said: str):
    one = judged(classify(reply, wall_ms=0), "https://px.example")
    assert (one.level, said in one.message) == (level, True), one.message
