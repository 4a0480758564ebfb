"""What is wrong at the start is told in one sentence that says what to do, with the exit code that DESIGN gives it."""

import socket
from pathlib import Path

import pytest
from stage import Stage


def said(stage: Stage, *arguments: str, code: int, **environ: str) -> str:
    done = stage.run(*arguments, **environ)
    assert done.returncode == code, done
    lines = done.stderr.strip().splitlines()
    assert lines, done
    assert "Traceback" not in done.stderr
    return lines[-1]


def run(stage: Stage, code: int, **environ: str) -> str:
    line = said(stage, "run", "--config", str(stage.folder / "config.toml"), code=code, **environ)
    assert line.startswith("px-sidecar: ")
    assert line.endswith(".")
    return line


def test_an_unknown_key_names_the_nearest_known_one(stage: Stage):
    stage.write_config("[outbox2]\nx = 1")
    assert "'outbox'" in run(stage, 78)


def test_a_wrong_type_names_key_value_and_what_is_allowed(stage: Stage):
    stage.write_config(deliver='per_second = "fast"')
    line = run(stage, 78)
    assert "deliver.per_second" in line
    assert "'fast'" in line
    assert "number" in line


def test_a_missing_file_says_how_to_make_one(stage: Stage):
    assert "px-sidecar init" in run(stage, 78)


def test_a_missing_api_key_says_where_to_put_it(stage: Stage):
    stage.write_config()
    assert "px.api_key_file" in run(stage, 78, PX_SIDECAR_PX_API_KEY="")


def test_a_missing_property_key_says_where_to_find_it(stage: Stage):
    path = stage.write_config()
    path.write_text(path.read_text().replace("AP-XXXXXXXXXX-2", ""))
    assert "px.property_key" in run(stage, 78)


def test_an_occupied_tcp_address_is_named(stage: Stage):
    stage.write_config()
    host, port = stage.http.split(":")
    with socket.socket() as other:
        other.bind((host, int(port)))
        other.listen()
        line = run(stage, 1)
    assert stage.http in line
    assert "another process" in line


def test_a_live_unix_socket_is_not_stolen(stage: Stage):
    stage.write_config()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(stage.unix))
        other.listen()
        assert "Another process answers" in run(stage, 1)
        assert stage.unix.exists()


def test_a_file_that_is_no_socket_is_not_removed(stage: Stage):
    stage.write_config()
    stage.unix.write_text("precious")
    assert "not a socket" in run(stage, 1)
    assert stage.unix.read_text() == "precious"


def test_a_socket_that_nobody_answers_on_is_replaced(stage: Stage):
    stage.write_config()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(stage.unix))
    process = stage.start_daemon()
    assert stage.stop(process) == 0
    assert not stage.unix.exists()


def test_an_unwritable_outbox_folder_is_named(stage: Stage):
    blocker = stage.folder / "file"
    blocker.write_text("")
    stage.outbox = blocker / "deeper" / "outbox.db"
    stage.write_config()
    line = run(stage, 1)
    assert str(blocker) in line
    assert "outbox.path" in line


def test_a_second_daemon_on_the_same_outbox_is_refused_with_the_pid_of_the_first(stage: Stage):
    stage.write_config()
    first = stage.start_daemon()
    line = run(stage, 1, PX_SIDECAR_LISTEN_HTTP="", PX_SIDECAR_LISTEN_UNIX=str(stage.folder / "other.sock"))
    assert f"pid {first.pid}" in line


def test_an_unknown_verb_suggests_the_nearest(stage: Stage):
    assert "'status'" in said(stage, "statsu", code=2)


@pytest.mark.parametrize("body", [b"not json", b"", b'{"batch":'])
def test_a_body_that_is_not_json_gets_a_400_that_says_so(stage: Stage, body: bytes):
    stage.write_config()
    stage.start_daemon()
    status, headers, answer = stage.post("/v1/batch", body)
    assert (status, headers["content-type"]) == (400, "application/json")
    assert b'"code":"bad_json"' in answer
    assert b'"success":false' in answer


def test_the_key_is_in_no_error_and_no_log(stage: Stage):
    stage.write_config(px='region = "mars"')
    secret = "marked-key-Q7"
    assert secret not in run(stage, 78, PX_SIDECAR_PX_API_KEY=secret)
    stage.write_config()
    process = stage.start_daemon(PX_SIDECAR_PX_API_KEY=secret)
    stage.post("/v1/track", b'{"event":"x","userId":"u"}')
    stage.stop(process)
    files = [path for path in Path(stage.folder).iterdir() if path.is_file()]
    assert files
    assert not any(secret.encode() in path.read_bytes() for path in files)
