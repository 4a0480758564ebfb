"""The control socket for reading, and what apps may see: neither can change anything or see what is not theirs."""

import http.client
import json
import socket
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest
import trio
from console_process import running_console
from running_daemon import DaemonDir

from sidecar.control.answers import READING_POSTS
from sidecar.control.client import DaemonClient, DaemonUnreachable
from sidecar.control.openapi import CALLS
from sidecar.control.server import serve_control
from sidecar.control.status import (
    FleetFacts,
    OutboxFacts,
    QuotaFacts,
    SlowUser,
    Status,
    StatusProblem,
    public_sentence,
    public_view,
)
from sidecar.errors import Failed, NotRunning
from sidecar.http import Shutdown
from sidecar.observe import Problem
from sidecar.px import PxAnswer, classify
from sidecar.receive import bind_control_read

READ = "control-read.sock"


def serve_reading(stack: ExitStack, daemon_dir: DaemonDir) -> tuple[DaemonClient, str]:
    """Run a daemon with a control socket for reading; return a client that knows only that one."""
    daemon = stack.enter_context(daemon_dir.running())
    listen = msgspec.structs.replace(
        daemon_dir.config.listen, control_read=str(Path(daemon_dir.control).with_name(READ))
    )
    listener = stack.enter_context(bind_control_read(listen))
    shutdown = Shutdown()
    stack.callback(daemon.do, shutdown.set)

    async def start() -> None:
        async def serve() -> None:
            await serve_control(daemon.app.control.reading(), listener, shutdown=shutdown)

        trio.lowlevel.spawn_system_task(serve)

    daemon.run(start)
    return DaemonClient(listen.control_read), listen.control_read


def test_reading_calls_are_answered_and_nothing_can_be_changed(daemon_dir: DaemonDir):
    with ExitStack() as stack:
        client, _ = serve_reading(stack, daemon_dir)
        assert client.get("/v1/status")["outbox"]["path"] == str(daemon_dir.outbox)
        assert client.get("/v1/events") is not None
        for path, call in CALLS.items():
            if call.method == "POST" and path not in READING_POSTS:
                with pytest.raises(Failed, match="only answers reading calls"):
                    client.post(path)
        assert client.get("/v1/status")["state"] == "open"


def test_a_console_on_that_socket_is_read_only_by_itself(daemon_dir: DaemonDir):
    """Named by --control it was not: it offered every change, and a saved file was in place until the reload failed."""
    before = daemon_dir.file.read_bytes()
    with ExitStack() as stack:
        client, path = serve_reading(stack, daemon_dir)
        assert client.answers_reading_calls_only()
        assert not DaemonClient(daemon_dir.control).answers_reading_calls_only()
        console = stack.enter_context(running_console(daemon_dir.file, "--control", path)).sign_in()
        assert console.get("/console")[1]["read_only"]
        assert console.post("/v1/pause") == (403, {"error": "This console is read-only."})
        text = console.get("/file")[1]
        saved = console.post("/file/save", {"toml": text["toml"] + "# more\n", "sha256": text["sha256"]})
        assert saved == (409, {"error": "This console is read-only."})
        assert console.post("/v1/dead/count", {"all": True})[0] == 200
    assert daemon_dir.file.read_bytes() == before


def test_a_reading_call_takes_the_socket_that_can_be_opened(daemon_dir: DaemonDir, tmp_path):
    with ExitStack() as stack:
        _, path = serve_reading(stack, daemon_dir)
        client = DaemonClient(str(tmp_path / "none.sock"), [str(tmp_path / "nor.sock"), path])
        assert client.get("/v1/status")["state"] == "open"
        with pytest.raises(NotRunning, match=r"none\.sock"):
            client.post("/v1/pause")


def test_a_closed_control_socket_names_the_group_that_may_read(monkeypatch, tmp_path):
    def refuse(*_address):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    with pytest.raises(DaemonUnreachable, match="px-sidecar-operators"):
        DaemonClient(str(tmp_path / "c.sock"), [str(tmp_path / "r.sock")]).get("/v1/status")


def test_apps_see_neither_users_nor_words_of_px_nor_paths():
    status = Status(
        **dict.fromkeys(Status.__struct_fields__)
        | {
            "reasons": [
                "The disk of /var/lib/px-sidecar is full; free some space there.",
                _message_of_px("user-7 is odd"),
            ],
            "warnings": ["It was set aside as /srv/px/outbox.db.damaged-1."],
            "quota": QuotaFacts(used=1, limit=2, left=1, reserve=0, free_in_s=0),
            "outbox": OutboxFacts(path="/srv/px/outbox.db", bytes=1, max_bytes=2, wal_bytes=3),
            "slowest_user": SlowUser(
                user="user-7", waiting_for_s=1, attempts=2, detail=_message_of_px("user-7 (is) odd")
            ),
            "last_problem": Problem("2026-01-01T00:00:00Z", _message_of_px("user-7")),
        }
    )
    text = msgspec.json.encode(public_view(status)).decode()
    for secret in ("user-7", "/srv", "/var", "odd"):
        assert secret not in text
    assert "PX answered 401: " in text
    assert "free some space there" in text


def test_paths_with_blanks_and_of_the_fleet_are_not_shown_to_apps():
    path = "/srv/px side car/outbox.db"
    status = Status(
        **dict.fromkeys(Status.__struct_fields__)
        | {
            "reasons": [f"The outbox {path} is gone from its path.", "The disk of /srv/px side car is full."],
            "warnings": [],
            "problems": [StatusProblem("error", f"{path}.rescued-1 holds events")],
            "quota": QuotaFacts(used=1, limit=2, left=1, reserve=0, free_in_s=0),
            "outbox": OutboxFacts(path=path, bytes=1, max_bytes=2, wal_bytes=3),
            "fleet": FleetFacts(
                **dict.fromkeys(FleetFacts.__struct_fields__) | {"problem": "unix:///run/secret/r.sock is closed"}
            ),
        }
    )
    text = msgspec.json.encode(public_view(status)).decode()
    assert "side car" not in text
    assert "secret" not in text
    assert "is gone from its path" in text


def _message_of_px(excerpt: str) -> str:
    return classify(
        PxAnswer(401, json.dumps({"message": excerpt}).encode(), content_type="application/json"), wall_ms=0
    ).message


@pytest.mark.parametrize(
    ("sentence", "shown"),
    [
        ("Nothing to hide at https://docs.example/a/b here.", "Nothing to hide at https://docs.example/a/b here."),
        ("3 of 4 requests/s, 24 h/day.", "3 of 4 requests/s, 24 h/day."),
        ("The socket /run/px-sidecar/events.sock has vanished.", "The socket … has vanished."),
        ("PX answered 400 (field (x) of u1): dead.", "PX answered 400: dead."),
        ("PX answered 400 (bad) u1): dead.", "PX answered 400: dead."),
    ],
)
def test_a_public_sentence_says_what_to_do_and_no_more(sentence, shown):
    assert public_sentence(sentence) == shown


def test_the_pages_of_apps_hide_the_path_of_the_outbox(daemon_dir: DaemonDir):
    with daemon_dir.running() as daemon:
        connection = http.client.HTTPConnection("localhost", timeout=10)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(daemon_dir.unix)
        connection.request("GET", "/status")
        answer = json.loads(connection.getresponse().read())
        connection.close()
        assert answer["outbox"]["path"] == ""
        assert daemon.status()["outbox"]["path"] == str(daemon_dir.outbox)
