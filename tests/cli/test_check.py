"""`px-sidecar check`: the level of each check, and that each problem says what to do."""

import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import msgspec
import pytest
from running_daemon import DaemonDir, always, wait_until

from sidecar.cli.check import classify_key_check
from sidecar.config import ConfigFile, load_text
from sidecar.control import checks, host_checks
from sidecar.control.host_checks import check_outbox_folder
from sidecar.errors import ConfigError
from sidecar.outbox import Capacity, StoreFailed
from sidecar.px import NotSent, PxAnswer, classify


def worst(ran, what: str) -> tuple[str, str]:
    """Return level and message of the worst result of this name."""
    order = {"error": 0, "warning": 1, "ok": 2}
    results = [(result["level"], result["message"]) for result in ran.json["findings"] if result["what"] == what]
    assert results, f"no result named {what}: {ran.out}"
    return min(results, key=lambda result: order[result[0]])


def test_a_valid_installation_passes(disk_path: Path, verb):
    daemon_dir = DaemonDir(disk_path)
    ran = verb("check", "--json", *daemon_dir.flags)
    assert ran.code == 0
    assert set(ran.json) == {"ok", "findings"}
    assert all(set(result) == {"level", "what", "message"} for result in ran.json["findings"])
    assert ran.json["ok"] is True
    assert "SQLite" in [result["what"] for result in ran.json["findings"]]
    shown = verb("check", *daemon_dir.flags)
    assert "0 failed" in shown.out
    assert "FAIL" not in shown.out
    assert max(map(len, shown.out.splitlines())) <= 80


def test_everything_that_is_wrong_with_a_file_is_shown_at_once(verb, tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(
        "[deliver]\nper_secnd = 5\nhosts = 0\n[px]\nproperty_key = 'AP-ABCDEFGHIJ-2'\n"
        '[mapping.attributes]\ndrop = ["email"]\nrename = { mail = "email" }\n[mapping.event."B C".attributes]\nhash = ["userId"]\n'
    )
    ran = verb("check", "--json", "--config", str(path))
    assert ran.code == 1
    assert [(result["what"], result["message"].partition(" is ")[0]) for result in ran.json["findings"]] == [
        (
            "configuration",
            f"{path} line 2: [deliver] has an unknown key 'per_secnd'; the nearest known key",
        ),
        ("configuration", f"{path} line 3: deliver.hosts"),
        (
            "mapping",
            f"{path} line 8: mapping.attributes.rename creates 'email', but `drop` denies that name; remove it from one of the two.",
        ),
        ("mapping", ran.json["findings"][3]["message"].partition(" is ")[0]),
    ]
    assert f'{path} line 10: mapping.event."B C".attributes.hash names' in ran.json["findings"][3]["message"]


def test_what_was_taken_out_as_wrong_is_not_missed(verb, tmp_path):
    path = tmp_path / "config.toml"
    path.write_text("[px]\nproperty_key = 5\napi_key_file = 6\n")
    findings = verb("check", "--json", "--config", str(path), PX_SIDECAR_PX_API_KEY="").json["findings"]
    assert len(findings) == 2
    assert all("must be a quoted string" in result["message"] for result in findings)


def test_a_problem_of_a_valid_file_names_its_line_or_variable(verb, tmp_path, monkeypatch):
    monkeypatch.delenv("PX_SIDECAR_PX_API_KEY")
    daemon_dir = DaemonDir(tmp_path, px='api_key_file = "/nowhere/key"')
    level, message = worst(verb("check", "--json", *daemon_dir.flags), "API key")
    assert (level, message.startswith(f"{daemon_dir.file} line 3: px.api_key_file /nowhere/key does not exist")) == (
        "error",
        True,
    ), message
    monkeypatch.setenv("PX_SIDECAR_PX_API_KEY_FILE", "/nowhere/else")
    message = worst(verb("check", "--json", *daemon_dir.flags), "API key")[1]
    assert message.startswith("The variable PX_SIDECAR_PX_API_KEY_FILE: px.api_key_file /nowhere/else")


def test_a_write_key_with_a_colon_is_a_warning_with_its_line(daemon_dir: DaemonDir, verb):
    with daemon_dir.file.open("a") as file:
        file.write("[[source]]\nwrite_key = 'a:b'\n")
    level, message = worst(verb("check", "--json", *daemon_dir.flags), "write keys")
    assert level == "warning"
    assert "line 12: write_key of [[source]] number 1" in message


def test_windows_line_ends_are_named_and_do_no_harm(daemon_dir: DaemonDir, verb):
    daemon_dir.file.write_bytes(daemon_dir.file.read_bytes().replace(b"\n", b"\r\n"))
    level, message = worst(verb("check", "--json", *daemon_dir.flags), "configuration")
    assert (level, "Windows line ends" in message) == ("ok", True)


@pytest.mark.parametrize(
    ("key", "expected"),
    [("", "No PX API key is configured"), ("AP-XXXXXXXXXX-2", "holds a property key"), ("a b", "only the key")],
)
def test_a_malformed_api_key_fails(daemon_dir: DaemonDir, verb, key: str, expected: str):
    ran = verb("check", "--json", *daemon_dir.flags, PX_SIDECAR_PX_API_KEY=key)
    assert ran.code == 1
    level, message = worst(ran, "API key")
    assert (level, expected in message) == ("error", True), message


def test_an_api_key_as_property_key_fails_without_printing_it(verb, tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(f'[px]\nproperty_key = "the-rest-key"\n[outbox]\npath = "{tmp_path}/o.db"\n')
    ran = verb("check", "--json", "--config", str(path), PX_SIDECAR_PX_API_KEY="the-rest-key")
    assert worst(ran, "property key")[0] == "error"
    assert "the-rest-key" not in ran.out


@pytest.mark.parametrize(
    ("px", "variable", "warned"),
    [
        ("", "", True),
        ('region = "us"', "", False),
        ("", "eu", False),
        ('base_url = "http://127.0.0.1:9"', "", False),
    ],
    ids=["default", "file", "variable", "base_url"],
)
def test_a_file_that_does_not_name_its_region_is_warned_of(verb, tmp_path, px, variable, warned):
    path = tmp_path / "config.toml"
    path.write_text(f'[px]\nproperty_key = "AP-XXXXXXXXXX-2"\n{px}\n[outbox]\npath = "{tmp_path}/o.db"\n')
    environ = {"PX_SIDECAR_PX_REGION": variable} if variable else {}
    ran = verb("check", "--json", "--config", str(path), PX_SIDECAR_PX_API_KEY="the-rest-key", **environ)
    said = [result for result in ran.json["findings"] if result["what"] == "region"]
    assert [(result["level"], 'region = "us"' in result["message"]) for result in said] == [("warning", True)] * warned


def test_a_key_file_readable_by_others_is_a_warning(tmp_path, verb, monkeypatch):
    monkeypatch.delenv("PX_SIDECAR_PX_API_KEY")
    key = tmp_path / "key"
    key.write_text("the-key")
    key.chmod(0o644)
    daemon_dir = DaemonDir(tmp_path, px=f'api_key_file = "{key}"')
    ran = verb("check", "--json", *daemon_dir.flags)
    level, message = worst(ran, "API key")
    assert (level, "chmod 0600" in message) == ("warning", True)


def test_the_reasons_of_a_running_daemon_are_warnings(daemon_dir: DaemonDir, verb):
    with daemon_dir.running(always(401)) as daemon:
        assert worst(verb("check", "--json", *daemon_dir.flags), "daemon") == ("ok", "Running, with 0 events pending.")
        daemon.track("u1", "Feature Used")
        wait_until(lambda: daemon.status()["state"] == "paused", "the pause")
        level, message = worst(verb("check", "--json", *daemon_dir.flags), "daemon")
    assert (level, "API key is invalid" in message) == ("warning", True)


def test_a_daemon_that_refuses_events_fails(daemon_dir: DaemonDir, verb, monkeypatch):
    """A full disk was a warning, so that check exited with 0 while each event was answered 503."""
    with daemon_dir.running() as daemon:
        monkeypatch.setattr(Capacity, "allocate_reserve", lambda _: None)  # else the disk, which has room, ends it
        daemon.do(daemon.app.outbox.capacity.release_reserve)
        ran = verb("check", "--json", *daemon_dir.flags)
    assert (ran.code, worst(ran, "daemon")[0]) == (1, "error")


def test_a_daemon_with_another_outbox_fails(daemon_dir: DaemonDir, verb):
    with daemon_dir.running():
        other = daemon_dir.folder / "other.toml"
        other.write_text(daemon_dir.file.read_text().replace("outbox.db", "other.db"))
        level, message = worst(verb("check", "--json", "--config", str(other)), "daemon")
    assert (level, "another outbox" in message) == ("error", True)


def test_an_outbox_locked_by_another_process_fails(daemon_dir: DaemonDir, verb):
    with daemon_dir.running() as daemon:
        daemon.track("u1", "Feature Used")
        daemon.settle()
    with (daemon_dir.folder / "outbox.db.lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        level, message = worst(verb("check", "--json", *daemon_dir.flags), "daemon")
    assert (level, "held by another process" in message) == ("error", True)


@pytest.mark.parametrize(
    ("free", "level", "words"),
    [
        (0, "error", "0 B are free beside the 1.5 MiB of the outbox, which may grow to 3 MiB: the disk is full;"),
        (1, "warning", "1 MiB are free beside the 1.5 MiB of the outbox, which may grow to 3 MiB; free disk space"),
        (2, "ok", "2 MiB are free beside the 1.5 MiB of the outbox, which may grow to 3 MiB."),
    ],
)
def test_a_full_disk_fails_and_the_outbox_itself_is_no_free_space(tmp_path, monkeypatch, free, level, words):
    """With nothing free it warned that as many bytes as the outbox has are free."""
    outbox = tmp_path / "outbox.db"
    outbox.write_bytes(b"x" * (3 * 2**19))
    facts = SimpleNamespace(f_bavail=free, f_frsize=2**20)
    monkeypatch.setattr(host_checks.os, "statvfs", lambda _: facts)
    (room,) = [result for result in host_checks.check_outbox_folder(outbox, 3 * 2**20) if result.what == "room"]
    assert room.level == level
    assert room.message.startswith(words)


def test_a_damaged_outbox_fails(daemon_dir: DaemonDir, verb):
    with daemon_dir.running() as daemon:
        daemon.track("u1", "Feature Used")
        daemon.settle()
    with daemon_dir.outbox.open("r+b") as file:
        file.write(b"\0" * 100)
    level, message = worst(verb("check", "--json", *daemon_dir.flags), "daemon")
    assert (level, "start the daemon" in message) == ("error", True), message


def test_a_file_at_the_path_of_a_socket_fails(daemon_dir: DaemonDir, verb):
    Path(daemon_dir.unix).write_text("")
    level, message = worst(verb("check", "--json", *daemon_dir.flags), "unix socket")
    assert (level, "is not a socket" in message) == ("error", True)


def test_an_address_in_use_is_a_warning(daemon_dir: DaemonDir, verb):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        text = daemon_dir.file.read_text().replace('http = ""', f'http = "127.0.0.1:{other.getsockname()[1]}"')
        daemon_dir.file.write_text(text)
        level, message = worst(verb("check", "--json", *daemon_dir.flags), "http")
    assert (level, "in use" in message) == ("warning", True)


def test_every_address_of_a_name_is_checked(monkeypatch):
    """Only the first one was tried: `check` said "is free" of a name that `run` could not open."""
    addresses = ["127.0.0.1", "127.0.0.2"]
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda _host, port, **_more: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (name, port)) for name in addresses],
    )
    with socket.socket() as other:
        other.bind(("127.0.0.2", 0))
        other.listen()
        config = load_text(f"[listen]\nhttp = 'px.internal:{other.getsockname()[1]}'\nunix = ''")
        results = {result.what: result for result in host_checks.check_sockets(config, running=False)}
        assert (results["http"].level, "in use" in results["http"].message) == ("warning", True)
    addresses.append("192.0.2.1")
    results = {result.what: result for result in host_checks.check_sockets(config, running=False)}
    assert (results["http"].level, "192.0.2.1, which other hosts" in results["http"].message) == ("error", True)


def test_limits_above_those_of_px_are_a_warning(tmp_path, verb):
    daemon_dir = DaemonDir(tmp_path, "[deliver]\nper_second = 500\n")
    assert worst(verb("check", "--json", *daemon_dir.flags), "limits")[0] == "warning"


def test_too_little_free_space_is_a_warning(verb, tmp_path):
    daemon_dir = DaemonDir(tmp_path, 'max_bytes = "900TiB"\n')  # still within [outbox]
    level, message = worst(verb("check", "--json", *daemon_dir.flags), "room")
    assert (level, "900 TiB" in message) == ("warning", True)


# The host --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "level"), [("tmpfs", "error"), ("nfs4", "error"), ("fuse.sshfs", "error"), ("ext4", "ok"), (None, "ok")]
)
def test_an_outbox_in_memory_or_on_a_network_fails(tmp_path, monkeypatch, kind, level):
    monkeypatch.setattr(host_checks, "file_system", lambda _path: kind)
    disk = next(
        result for result in host_checks.check_outbox_folder(tmp_path / "outbox.db", 1) if result.what == "disk"
    )
    assert disk.level == level


def test_the_file_system_is_that_of_the_deepest_mount(tmp_path):
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "1 0 8:1 / / rw shared:1 - ext4 /dev/sda rw\n"
        f"2 1 0:9 / {tmp_path.parent} rw - xfs /dev/sdb rw\n"
        f"3 2 0:9 / {tmp_path} rw shared:2 master:1 - tmpfs none rw\n"
        f"4 2 0:9 / {tmp_path}x rw - nfs none rw\n"
    )
    assert host_checks.file_system(tmp_path, mounts) == "tmpfs"
    assert host_checks.file_system(tmp_path.parent, mounts) == "xfs"
    assert host_checks.file_system(Path("/"), mounts) == "ext4"
    assert host_checks.file_system(Path("/"), tmp_path / "absent") is None


def test_an_implausible_or_unsynchronized_clock_is_reported():
    assert host_checks.check_clock(lambda: 86_400.0, lambda: True).level == "error"
    assert host_checks.check_clock(time.time, lambda: False).level == "warning"
    assert host_checks.check_clock(time.time, lambda: None).level == "ok"


def test_the_kernel_reports_clock_synchronization():
    assert host_checks.is_clock_synchronized() in (True, False, None)


# PX --------------------------------------------------------------------------------------------------------------------


def test_a_valid_key_passes_and_creates_no_event(px, disk_path, verb):
    daemon_dir = px.daemon_dir(disk_path)
    ran = verb("check", "--live", "--json", *daemon_dir.flags)
    assert ran.code == 0
    assert worst(ran, "PX")[0] == "ok"
    assert px.box.report().stored == 0


@pytest.mark.parametrize("key", ["another-key", "sandbox-read-only"])
def test_an_invalid_or_read_only_key_fails(px, tmp_path, verb, key: str):
    daemon_dir = px.daemon_dir(tmp_path)
    ran = verb("check", "--live", "--json", *daemon_dir.flags, PX_SIDECAR_PX_API_KEY=key)
    assert ran.code == 1
    level, message = worst(ran, "PX")
    assert (level, "Write access" in message) == ("error", True)
    assert key not in ran.out


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ({"us": 401, "eu": 400, "us2": 401}, 'https://eu accepts it, https://us does not; set px.region = "eu"'),
        ({"us": 404, "eu": 401, "us2": 400}, 'set px.region = "us2"'),
        ({"us": 401, "eu": 401, "us2": 404}, "No other region accepts the key either."),
        ({"us": 401, "eu": 503, "us2": 401}, "No other region accepts the key either (eu could not be asked)."),
    ],
)
def test_the_region_that_knows_the_key_is_named(monkeypatch, tmp_path, verb, answers, expected):
    monkeypatch.setattr("sidecar.config.schema.REGIONS", {region: f"https://{region}" for region in answers})
    monkeypatch.setattr("sidecar.cli.check.REGIONS", {region: f"https://{region}" for region in answers})
    monkeypatch.setattr(
        "sidecar.cli.check.ask_px",
        lambda config, _requests: [PxAnswer(answers[config.px.url().removeprefix("https://")])],
    )
    daemon_dir = DaemonDir(tmp_path, px='region = "us"')
    ran = verb("check", "--live", "--json", *daemon_dir.flags)
    assert ran.code == 1
    level, message = worst(ran, "PX")
    assert (level, expected in message) == ("error", True), message


def test_other_regions_are_not_asked_through_a_proxy_that_refuses(monkeypatch, tmp_path, verb):
    """A proxy that wanted credentials was followed by "No other region accepts the key either", which none had been asked."""
    monkeypatch.setattr("sidecar.cli.check.ask_px", lambda _config, _requests: [PxAnswer(407)])
    ran = verb("check", "--live", "--json", *DaemonDir(tmp_path, px='region = "us"').flags)
    level, message = worst(ran, "PX")
    assert level == "error"
    assert "The proxy answered 407" in message
    assert "other region" not in message


def test_other_regions_are_not_asked_about_a_good_key(monkeypatch, tmp_path, verb):
    asked = []
    monkeypatch.setattr(
        "sidecar.cli.check.ask_px", lambda config, _requests: asked.append(config.px.region) or [PxAnswer(400)]
    )
    ran = verb("check", "--live", "--json", *DaemonDir(tmp_path, px='region = "eu"').flags)
    assert worst(ran, "PX")[0] == "ok"
    assert asked == ["eu"]


@pytest.mark.parametrize(
    ("reply", "level", "expected"),
    [
        (PxAnswer(404), "error", "region"),
        (PxAnswer(400), "ok", "accepts the key for writing"),
        (PxAnswer(201), "warning", "check px.base_url"),
        (PxAnswer(429), "warning", "did not answer about the key"),
        (PxAnswer(503), "warning", "did not answer about the key"),
        (NotSent("connection refused"), "error", "connection refused"),
    ],
)
def test_an_answer_of_px_is_classified_for_key_and_region(reply, level: str, expected: str):
    result = classify_key_check(classify(reply, wall_ms=0), "https://px.example")
    assert (result.level, expected in result.message) == (level, True), result.message


# Folders and sockets ----------------------------------------------------------------------------------------------------------------


def folder_result(path: Path, what: str = "outbox") -> tuple[str, str]:
    """Return level and message about the folder of an outbox at ``path``."""
    result = next(result for result in host_checks.check_outbox_folder(path, 1) if result.what == what)
    return result.level, result.message


def test_a_missing_folder_passes_and_is_not_created(tmp_path):
    folder = tmp_path / "var" / "px-sidecar"
    assert folder_result(folder / "outbox.db") == ("ok", f"{folder} does not exist yet; the daemon creates it.")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_created_or_written_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(host_checks.os, "access", lambda *_asked: False)  # root may write everywhere
    level, message = folder_result(tmp_path / "absent" / "outbox.db")
    assert (level, "create it for the daemon's user" in message) == ("error", True)
    level, message = folder_result(tmp_path / "outbox.db")
    assert (level, "must belong to the daemon's user" in message) == ("error", True)


@pytest.mark.parametrize(("mode", "level"), [(0o777, "warning"), (0o1777, "ok"), (0o750, "ok")])
def test_a_world_writable_folder_is_a_warning_unless_sticky(tmp_path, mode: int, level: str):
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(mode)
    actual_level, message = folder_result(folder / "outbox.db")
    assert (actual_level, "chmod o-w" in message) == (level, level == "warning")


def test_sockets_in_an_unwritable_folder_fail(daemon_dir: DaemonDir, monkeypatch):
    monkeypatch.setattr(host_checks.os, "access", lambda *_asked: False)
    results = {result.what: result for result in host_checks.check_sockets(daemon_dir.config, running=False)}
    assert {results["unix socket"].level, results["control socket"].level} == {"error"}
    assert "run the check as the daemon's user" in results["unix socket"].message


def test_only_the_event_socket_may_be_held_by_a_process(
    daemon_dir: DaemonDir,
):
    with socket.socket(socket.AF_UNIX) as events, socket.socket(socket.AF_UNIX) as stranger:
        for result, path in ((events, daemon_dir.unix), (stranger, daemon_dir.control)):
            result.bind(path)
            result.listen()
        results = {result.what: result for result in host_checks.check_sockets(daemon_dir.config, running=False)}
    assert (results["unix socket"].level, "held by systemd" in results["unix socket"].message) == ("ok", True)
    assert results["control socket"].level == "error"
    assert "Another program listens" in results["control socket"].message


def test_the_control_socket_for_reading_is_checked_too(daemon_dir: DaemonDir):
    """The daemon did not start for it, and `check` had found nothing wrong."""
    path = daemon_dir.folder / "read.sock"
    path.write_text("not a socket")
    listen = msgspec.structs.replace(daemon_dir.config.listen, control_read=str(path))
    config = msgspec.structs.replace(daemon_dir.config, listen=listen)
    results = {result.what: result for result in host_checks.check_sockets(config, running=False)}
    assert results["control_read socket"].level == "error"
    assert "is not a socket" in results["control_read socket"].message


@pytest.mark.parametrize(("running", "levels"), [(False, ["warning"]), (True, [])])
def test_nothing_to_listen_on_is_a_warning(daemon_dir: DaemonDir, running, levels):
    """`run` ended with 78 for it, unless systemd hands sockets over."""
    listen = msgspec.structs.replace(daemon_dir.config.listen, unix="", http="", https="")
    results = host_checks.check_sockets(msgspec.structs.replace(daemon_dir.config, listen=listen), running=running)
    assert [result.level for result in results if result.what == "listeners"] == levels


def test_a_stale_socket_passes(daemon_dir: DaemonDir):
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(daemon_dir.unix)
    results = {result.what: result for result in host_checks.check_sockets(daemon_dir.config, running=False)}
    assert results["unix socket"] == host_checks.CheckResult("ok", "unix socket", f"{daemon_dir.unix} exists.")


def test_a_low_limit_of_open_files_names_the_needed_one(daemon_dir: DaemonDir, monkeypatch):
    monkeypatch.setattr(host_checks.resource, "getrlimit", lambda _which: (256, 1024))
    files = next(result for result in host_checks.check_limits(daemon_dir.config) if result.what == "open files")
    assert (files.level, "limit is 1024" in files.message, "raise it to 4096" in files.message) == (
        "warning",
        True,
        True,
    )


@pytest.mark.parametrize(("version", "warned"), [((3, 40, 1), True), ((3, 51, 3), False)])
def test_sqlite_with_the_wal_reset_bug_names_litestream(version, warned: bool):
    result = host_checks.check_sqlite(version)
    assert result.message.startswith(".".join(map(str, version)))
    assert ("Litestream" in result.message) is warned


def test_without_a_key_the_key_file_of_the_units_is_checked(daemon_dir, verb, monkeypatch):
    monkeypatch.delenv("PX_SIDECAR_PX_API_KEY")
    monkeypatch.setattr("sidecar.cli.px_queries.KEY_FOLDER", daemon_dir.folder)
    assert worst(verb("check", "--json", *daemon_dir.flags), "API key")[0] == "error"
    (daemon_dir.folder / "api_key").write_text("the-key\n")
    assert worst(verb("check", "--json", *daemon_dir.flags), "API key")[0] == "ok"


def test_a_world_writable_configuration_fails(daemon_dir: DaemonDir, verb):
    daemon_dir.file.chmod(0o666)
    ran = verb("check", "--json", *daemon_dir.flags)
    assert ran.code == 1
    level, message = next(
        (result["level"], result["message"]) for result in ran.json["findings"] if "chmod o-w" in result["message"]
    )
    assert (level, str(daemon_dir.file) in message) == ("error", True)


def test_a_ca_file_without_a_certificate_fails(tmp_path, verb):
    authority = tmp_path / "ca.pem"
    authority.write_text("not a certificate\n")
    daemon_dir = DaemonDir(tmp_path, px=f'ca_file = "{authority}"')
    level, message = worst(verb("check", "--json", *daemon_dir.flags), "way to PX")
    assert (level, str(authority) in message) == ("error", True)


MOUNTS = r"""
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:26 / /var/lib/px\040sidecar rw shared:9 - nfs4 server:/export rw
31 22 0:40 / /srv rw - btrfs /dev/sdb rw
32 22 0:50 / /srv/deep/er rw - cifs //host/share rw
33 22 8:17 / /srv/deep rw - xfs /dev/sdb1 rw
34 22 0:60 / /gone rw - nfs server:/a rw
35 22 8:33 / /gone rw - ext4 /dev/sdc1 rw
cut off
"""


@pytest.mark.parametrize(
    ("path", "device", "kind"),
    [
        ("/var/lib/px sidecar", "0:26", "nfs4"),
        ("/var/lib/px sidecar/state", "0:26", "nfs4"),
        ("/var/lib/px sidecars", "8:1", "ext4"),
        ("/srv/data", "0:99", "btrfs"),  # a subvolume shows a device of its own
        ("/srv/deep/er", "8:17", "xfs"),  # the share is hidden below the later mount
        ("/gone", "8:33", "ext4"),
        ("/gone", "", "ext4"),
        ("/", "8:1", "ext4"),
    ],
)
def test_the_file_system_is_read_from_the_mount_table(path, device, kind):
    assert host_checks.file_system_in(MOUNTS, path, device) == kind


def test_a_mount_table_without_the_path_says_nothing():
    assert host_checks.file_system_in("", "/srv") is None


@pytest.mark.parametrize(
    "kind", ["nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "glusterfs", "lustre", "gfs2", "vboxsf", "fuse.s3fs"]
)
def test_network_file_systems_are_refused(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(host_checks, "file_system", lambda _path: kind)
    results = list(host_checks.check_outbox_folder(tmp_path / "o.db", 2**20))
    assert [(result.level, kind in result.message) for result in results if result.what == "disk"] == [("error", True)]


def test_a_product_key_is_called_not_verified(daemon_dir: DaemonDir, verb):
    level, message = worst(verb("check", "--json", *daemon_dir.flags), "property key")
    assert level == "ok"
    assert "AP-XXXXXXXXXX-2 is well-formed; not verified" in message


def test_an_outbox_that_cannot_be_read_leaves_the_other_results(daemon_dir: DaemonDir, verb, monkeypatch):
    """The verb ended with one sentence, and showed nothing of what it had found."""
    with daemon_dir.running() as daemon:

        async def fails(*_):
            raise StoreFailed("The outbox cannot be read (disk I/O error).")

        monkeypatch.setattr(daemon.app.outbox, "read", fails)
        findings = json.loads(verb("check", "--json", *daemon_dir.flags).out)["findings"]
    assert len(findings) > 5
    assert any("not compared with events" in finding["message"] for finding in findings)


@pytest.fixture
def of_file(daemon_dir: DaemonDir, verb):
    """Run the verb beside a daemon that knows its file; return the findings and the calls that were made."""

    def look(prepare: Callable[[Path], object] = lambda _file: None) -> list[dict[str, str]]:
        with daemon_dir.running(config_file=ConfigFile(str(daemon_dir.file))):
            prepare(daemon_dir.file)
            return json.loads(verb("check", "--json", *daemon_dir.flags).out)["findings"]

    return look


def test_beside_the_daemon_of_the_file_the_daemon_looks(of_file, monkeypatch):
    """A member of the operators' group may not enter the folder of the outbox, which is 0700."""
    monkeypatch.setattr("sidecar.cli.check._check_here", lambda *_: pytest.fail("this process has looked itself"))
    findings = of_file()
    assert {"configuration", "API key", "mapping", "daemon", "clock", "disk", "SQLite"} <= {f["what"] for f in findings}


def test_the_daemon_judges_the_file_as_it_is_now(of_file):
    findings = of_file(lambda file: file.write_text(file.read_text() + "\n[mapping]\ndrop_traits = 3\n"))
    wrong = [finding["message"] for finding in findings if finding["level"] == "error"]
    assert any("drop_traits" in message and "line" in message for message in wrong)
    assert any(finding["what"] == "disk" for finding in findings)  # of the configuration in force


def test_live_says_if_px_was_not_asked(daemon_dir, verb, monkeypatch):
    """A member of the operators' group got the result of the daemon without a word about the key, and exit code 0."""

    def refused(_flag: str | None) -> NoReturn:
        raise ConfigError("The configuration file cannot be read (Permission denied); check its owner and mode.")

    with daemon_dir.running(config_file=ConfigFile(str(daemon_dir.file))):
        monkeypatch.setattr("sidecar.cli.check.load_config", refused)
        done = verb("check", "--live", "--json", *daemon_dir.flags)
    assert "PX was not asked" in json.loads(done.out)["findings"][-1]["message"]


def test_the_daemon_of_another_file_is_not_asked_about_this_one(daemon_dir: DaemonDir, verb, tmp_path):
    other = tmp_path / "other.toml"
    other.write_text(daemon_dir.file.read_text() + "\n[deliver]\nper_second = 1000\n")
    with daemon_dir.running(config_file=ConfigFile(str(daemon_dir.file))):
        findings = verb("check", "--json", "--config", str(other)).out
    assert "exceed what PX documents" in findings


def test_a_folder_that_does_not_answer_is_a_finding(daemon_dir: DaemonDir, verb, monkeypatch):
    """The verb took an error of the call for a daemon that cannot look, and waited for the same disk without end."""
    gate = threading.Event()
    monkeypatch.setattr(checks, "LOOK_S", 0.05)
    monkeypatch.setattr(checks, "_look", lambda *_: gate.wait(10))
    monkeypatch.setattr("sidecar.cli.check._check_here", lambda *_: pytest.fail("this process has looked itself"))
    with daemon_dir.running(config_file=ConfigFile(str(daemon_dir.file))):
        done = verb("check", "--json", *daemon_dir.flags)
        gate.set()
    assert "did not end within" in json.loads(done.out)["findings"][-1]["message"]


@pytest.mark.parametrize(("running", "level"), [(False, "error"), (True, "ok")])
def test_a_folder_that_this_user_cannot_look_into_is_a_finding(monkeypatch, tmp_path, running, level):
    """`check` of an instance ended with a traceback, because /var/lib/px-sidecar is 0700."""
    locked, stat = tmp_path / "acme", os.stat

    def refused(path, *arguments, **options):
        if Path(os.fsdecode(path)).is_relative_to(locked):
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, *arguments, **options)

    monkeypatch.setattr(os, "stat", refused)
    folder = next(iter(check_outbox_folder(locked / "outbox.db", 1, running=running)))
    assert folder.level == level
    assert "does not exist" not in folder.message
