"""Members of px-sidecar-operators may open the reading socket alone: every verb that reads works, the others say what they need."""

import json
import socket
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
import trio
from running_daemon import DaemonDir, always

from sidecar.cli import px_queries
from sidecar.config import load_text
from sidecar.control.server import serve_control
from sidecar.http import Shutdown
from sidecar.receive import bind_control_read

READING = [
    *(
        ["status"],
        ["status", "--json"],
        ["events", "list"],
        ["events", "show", "1"],
        ["dead", "list"],
        ["dead", "show", "2"],
    ),
    *(["dead", "export"], ["dead", "retry", "--all", "--dry-run"], ["dead", "discard", "--user", "u", "--dry-run"]),
    *(
        ["events", "discard", "--all", "--dry-run"],
        ["resend", "--all", "--dry-run"],
        ["trace", "--user", "u1"],
        ["names"],
    ),
    *(["config", "show"], ["drain"], ["reconcile", "--local"]),
]
CHANGING = [
    *(
        ["pause"],
        ["resume"],
        ["dead", "retry", "2", "--yes"],
        ["dead", "discard", "--all", "--yes"],
    ),
    *(["events", "discard", "--all", "--yes"], ["resend", "--all", "--yes"], ["forget", "u1"], ["reload"]),
]


@pytest.fixture
def member(daemon_dir: DaemonDir, verb, monkeypatch):
    """Run verbs as a user that may open only the reading socket of a daemon with one delivered and one dead event."""
    connect = socket.socket.connect
    read = str(Path(daemon_dir.control).with_name("control-read.sock"))

    def refuse(self, address):
        if address == daemon_dir.control:
            raise PermissionError(13, "Permission denied")
        return connect(self, address)

    with ExitStack() as stack:
        daemon = stack.enter_context(daemon_dir.running())
        hour_ago = datetime.now(UTC) - timedelta(hours=1)
        daemon.track("u1", "Feature Used", timestamp=hour_ago.isoformat())
        daemon.settle()
        daemon.network.script = always(400)
        daemon.track("u2", "Refused")
        daemon.settle()
        listen = msgspec.structs.replace(load_text(daemon_dir.file.read_text()).listen, control_read=read)
        listener = stack.enter_context(bind_control_read(listen))
        shutdown = Shutdown()
        stack.callback(daemon.do, shutdown.set)

        async def start() -> None:
            trio.lowlevel.spawn_system_task(serve)

        async def serve() -> None:
            await serve_control(daemon.app.control.reading(), listener, shutdown=shutdown)

        daemon.run(start)
        monkeypatch.setattr(socket.socket, "connect", refuse)
        yield lambda *words: verb(*words, "--config", str(daemon_dir.file), PX_SIDECAR_LISTEN_CONTROL_READ=read)
        monkeypatch.undo()


@pytest.mark.parametrize("words", READING, ids=" ".join)
def test_a_reading_verb_needs_the_reading_socket_alone(member, words):
    ran = member(*words)
    assert ran.code == 0, ran.err


@pytest.mark.parametrize("words", CHANGING, ids=" ".join)
def test_a_changing_verb_says_what_it_needs(member, words):
    ran = member(*words)
    assert ran.code == 69
    assert "This changes something" in ran.err
    assert "use sudo" in ran.err


def test_a_backfill_is_judged_with_the_reading_socket(member, tmp_path):
    file = tmp_path / "h.ndjson"
    file.write_text('{"event":"X","userId":"u","timestamp":"2025-01-01T00:00:00Z"}\n')
    ran = member("backfill", str(file), "--dry-run")
    assert (ran.code, ran.err.startswith("1 event in 1 line.")) == (0, True)


def test_a_key_that_only_root_can_read_is_named(member, monkeypatch, tmp_path):
    """It was said that no key is configured."""
    key = tmp_path / "api_key"
    key.touch()
    monkeypatch.setattr(px_queries, "KEY_FOLDER", tmp_path)
    monkeypatch.setattr(px_queries.os, "access", lambda *_: False)
    monkeypatch.delenv("PX_SIDECAR_PX_API_KEY")
    findings = json.loads(member("check", "--live", "--json").out)["findings"]
    (asked,) = [finding["message"] for finding in findings if finding["what"] == "PX"]
    assert f"Asking PX needs the API key, and {key} is open to root only" in asked


def test_check_does_not_fail_for_a_key_that_only_root_can_read(member, monkeypatch, tmp_path):
    """It failed and asked to leave out what asks PX, although nothing had asked PX."""
    (tmp_path / "api_key").touch()
    monkeypatch.setattr(px_queries, "KEY_FOLDER", tmp_path)
    monkeypatch.setattr(px_queries.os, "access", lambda *_: False)
    monkeypatch.delenv("PX_SIDECAR_PX_API_KEY")
    findings = json.loads(member("check", "--json").out)["findings"]
    (key,) = [finding for finding in findings if finding["what"] == "API key"]
    assert key["level"] == "warning"
    monkeypatch.setattr("sidecar.control.host_checks.os.access", lambda *_: False)
    failed = [
        finding for finding in json.loads(member("check", "--json").out)["findings"] if finding["level"] == "error"
    ]
    assert not failed, "what this user cannot write is not the daemon's problem"
    assert key["message"] == f"{tmp_path}/api_key is open to root only and was not looked at; use sudo."
