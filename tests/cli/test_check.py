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


# Places ----------------------------------------------------------------------------------------------------------------


def judged_place(path: Path, what: str = "outbox") -> tuple[str, str]:
    """Level and message about the folder of an outbox at ``path``."""
    one = next(one for one in findings.outbox_place(path, 1) if one.what == what)
    return one.level, one.message


def test_a_folder_that_is_not_there_yet_is_the_daemons_to_make_and_check_makes_nothing(tmp_path):
    folder = tmp_path / "var" / "px-sidecar"
    assert judged_place(folder / "outbox.db") == ("ok", f"{folder} is not there yet; the daemon makes it.")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_this_user_cannot_make_or_write_is_an_error_that_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(findings.os, "access", lambda *_asked: False)  # root may do everything
    level, message = judged_place(tmp_path / "absent" / "outbox.db")
    assert (level, "make it for the daemon" in message) == ("error", True)
    level, message = judged_place(tmp_path / "outbox.db")
    assert (level, "chown it" in message) == ("error", True)


@pytest.mark.parametrize(("mode", "level"), [(0o777, "warning"), (0o1777, "ok"), (0o750, "ok")])
def test_a_folder_that_everybody_can_write_is_found_unless_it_is_sticky(tmp_path, mode: int, level: str):
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(mode)
    found_level, message = judged_place(folder / "outbox.db")
    assert (found_level, "chmod o-w" in message) == (level, level == "warning")


def test_sockets_in_a_folder_of_somebody_else_are_an_error(place: Place, monkeypatch):
    monkeypatch.setattr(findings.os, "access", lambda *_asked: False)
    ones = {one.what: one for one in findings.sockets(place.config, running=False)}
    assert {ones["unix socket"].level, ones["control socket"].level} == {"error"}
    assert "run this as the daemon's user" in ones["unix socket"].message


def test_a_unix_socket_that_systemd_holds_is_good_and_a_control_socket_that_a_stranger_holds_is_wrong(place: Place):
    with socket.socket(socket.AF_UNIX) as events, socket.socket(socket.AF_UNIX) as stranger:
        for one, path in ((events, place.unix), (stranger, place.control)):
            one.bind(path)
            one.listen()
        ones = {one.what: one for one in findings.sockets(place.config, running=False)}
    assert (ones["unix socket"].level, "held open, by systemd" in ones["unix socket"].message) == ("ok", True)
    assert ones["control socket"].level == "error"
    assert "no px-sidecar; stop it" in ones["control socket"].message


def test_a_socket_that_a_killed_daemon_left_is_no_trouble(place: Place):
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(place.unix)
    ones = {one.what: one for one in findings.sockets(place.config, running=False)}
    assert ones["unix socket"] == findings.Finding("ok", "unix socket", f"{place.unix} is there.")


def test_few_open_files_are_found_with_the_number_to_allow(place: Place, monkeypatch):
    monkeypatch.setattr(findings.resource, "getrlimit", lambda _which: (256, 1024))
    files = next(one for one in findings.limits(place.config) if one.what == "open files")
    assert (files.level, "At most 1024" in files.message, "allow 4096" in files.message) == ("warning", True, True)


@pytest.mark.parametrize(("version", "warned"), [((3, 40, 1), True), ((3, 51, 3), False)])
def test_an_sqlite_that_bears_no_second_program_warns_of_one(version, warned: bool):
    one = findings.sqlite(version)
    assert one.message.startswith(".".join(map(str, version)))
    assert ("Litestream" in one.message) is warned


def test_a_person_without_a_key_of_ones_own_is_judged_by_the_one_that_the_units_hand_over(place, verb, monkeypatch):
    monkeypatch.delenv("PX_SIDECAR_PX_API_KEY")
    monkeypatch.setattr("sidecar.cli.px_asking.KEY_FOLDER", place.folder)
    assert found(verb("check", "--json", *place.flags), "API key")[0] == "error"
    (place.folder / "api_key").write_text("the-key\n")
    assert found(verb("check", "--json", *place.flags), "API key")[0] == "ok"


def test_a_configuration_that_everybody_can_write_is_wrong(place: Place, verb):
    place.file.chmod(0o666)
    ran = verb("check", "--json", *place.flags)
    assert ran.code == 1
    level, message = next(
        (one["level"], one["message"]) for one in ran.json["findings"] if "chmod o-w" in one["message"]
    )
    assert (level, str(place.file) in message) == ("error", True)


def test_an_authority_that_is_no_certificate_is_found_before_px_is_asked(tmp_path, verb):
    authority = tmp_path / "ca.pem"
    authority.write_text("nothing of the kind\n")
    place = Place(tmp_path, px=f'ca_file = "{authority}"')
    level, message = found(verb("check", "--json", *place.flags), "way to PX")
    assert (level, str(authority) in message) == ("error", True)
