"""The control API over a real socket: errors, streams, access, and the client's reports of an absent daemon."""

import http.client
import json
import os
import re
import socket
import stat
import threading
from pathlib import Path

import msgspec
import pytest
from running_daemon import DaemonDir, wait_until

from sidecar.control.client import DaemonClient, DaemonUnreachable
from sidecar.errors import Failed, NotRunning
from sidecar.observe.feed import QUEUE_RECORDS


def request(daemon_dir: DaemonDir, method: str, path: str, body: bytes | None = None) -> tuple[int, dict]:
    """Send one request to the control socket, and return status and decoded answer."""
    connection = http.client.HTTPConnection("x", timeout=10)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(daemon_dir.control)
    try:
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "said"),
    [
        ("GET", "/v1/nothing", None, 404, "There is nothing at /v1/nothing"),
        ("GET", "/", None, 404, "There is nothing at"),
        ("POST", "/v1/status", b"", 405, "allows GET only"),
        ("GET", "/v1/pause", None, 405, "allows POST only"),
        ("GET", "/v1/events?state=lost", None, 400, "unknown state 'lost'"),
        ("GET", "/v1/live?what=dead,lost", None, 400, "unknown what 'lost'; use some of accepted, retry"),
        ("GET", "/v1/tail?what=lost", None, 400, "Invalid enum value 'lost' - at `$.what`"),
        ("GET", "/v1/events?sate=dead", None, 400, "unknown field `sate`"),
        ("GET", "/v1/events?limit=many", None, 400, "limit"),
        ("GET", "/v1/events?before=x", None, 400, "not an integer"),
        ("GET", "/v1/events/77", None, 404, "no event 77"),
        ("GET", f"/v1/events/{2**63}", None, 404, "There is no event 9223372036854775808: no id is that large"),
        ("GET", f"/v1/dead/{10**50}", None, 404, "no id is that large"),
        ("GET", "/v1/dead?ids=1,x", None, 400, "'x' is not an integer"),
        ("GET", "/v1/dead/77", None, 404, "not a dead letter"),
        ("POST", "/v1/dead/retry", b"{}", 400, "Nothing is selected"),
        ("POST", "/v1/dead/discard", b"", 400, "Nothing is selected"),
        ("POST", "/v1/dead/discard", b"{", 400, "The request is invalid"),
        ("POST", "/v1/dead/retry", b'{"all":"yes"}', 400, "Expected `bool`"),
        ("POST", "/v1/forget", b"{}", 400, "No user is named"),
        ("GET", "/v1/delivered", None, 400, "missing required field `since_ms`"),
        ("POST", "/v1/import", b'{"events":[{}]}', 400, "propertyKey"),
    ],
)
def test_an_invalid_request_is_answered_with_a_sentence(daemon_dir: DaemonDir, method, path, body, status, said):
    with daemon_dir.running():
        answered, answer = request(daemon_dir, method, path, body)
    assert answered == status
    assert list(answer) == ["error"]
    assert said in answer["error"]


def test_the_page_lists_every_route_with_its_method(daemon_dir: DaemonDir):
    page = (Path(__file__).parents[2] / "sidecar" / "control" / "README.md").read_text(encoding="utf-8")
    listed = {path: method for method, path in re.findall(r"^\| (GET|POST) \| `(/v1/[^`?]*)", page, re.MULTILINE)}
    with daemon_dir.running() as daemon:
        assert listed == daemon.app.control.routes


def test_the_socket_admits_the_daemons_user_only(daemon_dir: DaemonDir):
    with daemon_dir.running():
        assert stat.S_IMODE(os.stat(daemon_dir.control).st_mode) == 0o600


def test_the_configuration_is_served_with_secrets_masked(tmp_path):
    daemon_dir = DaemonDir(tmp_path, '[[source]]\nwrite_key = "wk_very_secret"\n')
    with daemon_dir.running() as daemon:
        config = daemon.client.get("/v1/config")
    assert config["px"]["property_key"] == "AP-XXXXXXXXXX-2"
    assert "wk_very_secret" not in str(config)


def test_dead_letters_are_exported_as_a_stream(daemon_dir: DaemonDir):
    with daemon_dir.running() as daemon:
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(daemon_dir.unix)
            line.sendall(msgspec.json.encode([{"type": "no"} for _ in range(700)]) + b"\n")
            line.recv(1_000_000)
        with daemon.client.lines("/v1/dead/export", {"reason": "bad_event"}) as lines:
            letters = list(lines)
        with daemon.client.lines("/v1/dead/export", {"reason": "refused"}) as lines:
            assert list(lines) == []
    assert [letter["id"] for letter in letters] == list(range(1, 701))


def test_a_slow_tail_gets_the_number_of_missed_records(daemon_dir: DaemonDir):
    with daemon_dir.running() as daemon, daemon.client.lines("/v1/tail", timeout_s=5) as records:
        assert next(records)["what"] == "listening"
        text = "x" * 60_000  # the socket and both ends buffer some hundred KB of it
        for _ in range(3):
            daemon.do(lambda: [daemon.app.telemetry.feed.publish({"text": text}) for _ in range(QUEUE_RECORDS)])
        missed = next(record["missed"] for record in records if "missed" in record)
    assert missed > 0


def test_a_closed_tail_ends_its_subscription(daemon_dir: DaemonDir):
    with daemon_dir.running() as daemon:
        with daemon.client.lines("/v1/tail") as records:
            next(records)
            assert daemon.app.telemetry.feed.listeners == 1
        wait_until(lambda: daemon.app.telemetry.feed.listeners == 0, "the end of the subscription")


def test_a_tail_does_not_prevent_stopping(daemon_dir: DaemonDir):
    with daemon_dir.running() as daemon, daemon.client.lines("/v1/tail") as records:
        next(records)
        daemon.stop()
        assert list(records) == []


# The client -----------------------------------------------------------------------------------------------------------


def test_an_absent_socket_is_reported_with_the_start_command(tmp_path):
    path = tmp_path / "absent.sock"
    with pytest.raises(
        NotRunning, match=r"no process listens at .*absent.sock; start it with `systemctl start px-sidecar`"
    ):
        DaemonClient(str(path)).get("/v1/status")


def test_a_stale_socket_means_not_running(tmp_path):
    path = tmp_path / "old.sock"
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(str(path))
    with pytest.raises(NotRunning, match="not running"):
        DaemonClient(str(path)).post("/v1/pause")


def test_a_path_that_is_too_long_is_reported(tmp_path):
    with pytest.raises(NotRunning, match="too long"):
        DaemonClient(str(tmp_path / ("x" * 200))).get("/v1/status")


def test_a_stuck_daemon_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr("sidecar.control.client.TIMEOUT_S", 0.05)
    path = tmp_path / "stuck.sock"
    with socket.socket(socket.AF_UNIX) as stuck:
        stuck.bind(str(path))
        stuck.listen()
        with pytest.raises(DaemonUnreachable, match="does not answer; check `journalctl"):
            DaemonClient(str(path)).get("/v1/status")


def test_another_server_at_the_socket_is_reported(tmp_path):
    path = tmp_path / "other.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        thread = threading.Thread(target=answer_otherwise, args=(other,))
        thread.start()
        with pytest.raises(Failed, match="is not px-sidecar"):
            DaemonClient(str(path)).get("/v1/status")
        thread.join(5)


def answer_otherwise(other: socket.socket) -> None:
    connection, _ = other.accept()
    with connection:
        connection.recv(1000)
        connection.sendall(b"HTTP/1.1 500 No\r\nContent-Length: 5\r\n\r\nhello")
