"""Errors at the start: one sentence that says what to do, and an exit code (sidecar/cli/README.md#rules)."""

import socket
from pathlib import Path

import pytest
from process_harness import ProcessHarness


def last_error(harness: ProcessHarness, *arguments: str, code: int, **environ: str) -> str:
    """Run a verb that must exit with ``code``, and return its last line on stderr."""
    done = harness.run(*arguments, **environ)
    assert done.returncode == code, done
    lines = done.stderr.strip().splitlines()
    assert lines, done
    assert "Traceback" not in done.stderr
    return lines[-1]


def start_error(harness: ProcessHarness, code: int, **environ: str) -> str:
    """Start a daemon that must exit with ``code``, and return the sentence."""
    line = last_error(harness, "run", "--config", str(harness.folder / "config.toml"), code=code, **environ)
    assert line.startswith("px-sidecar: ")
    assert line.endswith(".")
    return line


def test_an_unknown_key_names_the_nearest_known_one(harness: ProcessHarness):
    harness.write_config("[outbox2]\nx = 1")
    assert "'outbox'" in start_error(harness, 78)


def test_a_wrong_type_names_key_value_and_allowed_values(harness: ProcessHarness):
    harness.write_config(deliver='per_second = "fast"')
    line = start_error(harness, 78)
    assert "deliver.per_second" in line
    assert "'fast'" in line
    assert "number" in line


def test_a_missing_file_names_the_init_verb(harness: ProcessHarness):
    assert "px-sidecar init" in start_error(harness, 78)


def test_a_missing_api_key_names_its_sources(harness: ProcessHarness):
    harness.write_config()
    assert "px.api_key_file" in start_error(harness, 78, PX_SIDECAR_PX_API_KEY="")


def test_a_missing_property_key_is_named(harness: ProcessHarness):
    path = harness.write_config()
    path.write_text(path.read_text().replace("AP-XXXXXXXXXX-2", ""))
    assert "px.property_key" in start_error(harness, 78)


def test_an_occupied_tcp_address_is_named(harness: ProcessHarness):
    harness.write_config()
    host, port = harness.http.split(":")
    with socket.socket() as other:
        other.bind((host, int(port)))
        other.listen()
        line = start_error(harness, 1)
    assert harness.http in line
    assert "another process" in line


def test_a_live_unix_socket_is_not_replaced(harness: ProcessHarness):
    harness.write_config()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(harness.unix))
        other.listen()
        assert "Another process listens" in start_error(harness, 1)
        assert harness.unix.exists()


def test_a_regular_file_at_the_socket_path_is_kept(harness: ProcessHarness):
    harness.write_config()
    harness.unix.write_text("precious")
    assert "not a socket" in start_error(harness, 1)
    assert harness.unix.read_text() == "precious"


def test_a_stale_unix_socket_is_replaced(harness: ProcessHarness):
    harness.write_config()
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(harness.unix))
    process = harness.start_daemon()
    assert harness.stop(process) == 0
    assert not harness.unix.exists()


def test_an_unwritable_outbox_directory_is_named(harness: ProcessHarness):
    blocker = harness.folder / "file"
    blocker.write_text("")
    harness.outbox = blocker / "deeper" / "outbox.db"
    harness.write_config()
    line = start_error(harness, 1)
    assert str(blocker) in line
    assert "outbox.path" in line


def test_a_second_daemon_on_an_outbox_names_the_first_ones_pid(harness: ProcessHarness):
    harness.write_config()
    first = harness.start_daemon()
    line = start_error(harness, 1, PX_SIDECAR_LISTEN_HTTP="", PX_SIDECAR_LISTEN_UNIX=str(harness.folder / "other.sock"))
    assert f"pid {first.pid}" in line


def test_an_unknown_verb_names_the_nearest_one(harness: ProcessHarness):
    assert "'status'" in last_error(harness, "statsu", code=2)


@pytest.mark.parametrize("body", [b"not json", b"", b'{"batch":'])
def test_a_body_that_is_not_json_is_answered_400(harness: ProcessHarness, body: bytes):
    harness.write_config()
    harness.start_daemon()
    status, headers, answer = harness.post("/v1/batch", body)
    assert (status, headers["content-type"]) == (400, "application/json")
    assert b'"code":"bad_json"' in answer
    assert b'"success":false' in answer


def test_the_api_key_is_in_no_error_and_no_log(harness: ProcessHarness):
    harness.write_config(px='region = "mars"')
    secret = "marked-key-Q7"
    assert secret not in start_error(harness, 78, PX_SIDECAR_PX_API_KEY=secret)
    harness.write_config()
    process = harness.start_daemon(PX_SIDECAR_PX_API_KEY=secret)
    harness.post("/v1/track", b'{"event":"x","userId":"u"}')
    harness.stop(process)
    files = [path for path in Path(harness.folder).iterdir() if path.is_file()]
    assert files
    assert not any(secret.encode() in path.read_bytes() for path in files)
