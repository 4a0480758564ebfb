"""The control API itself: what it answers to wrong requests, and what only a console uses."""

import http.client
import json
import os
import socket
import stat
import threading

import msgspec
import pytest
from living import Place, wait_until

from sidecar.control.client import Daemon, OutOfReach
from sidecar.errors import Failed, NotRunning
from sidecar.observe.feed import QUEUE_RECORDS


def ask(place: Place, method: str, path: str, body: bytes | None = None) -> tuple[int, dict]:
    connection = http.client.HTTPConnection("x", timeout=10)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(place.control)
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
        ("POST", "/v1/status", b"", 405, "answers GET only"),
        ("GET", "/v1/pause", None, 405, "answers POST only"),
        ("GET", "/v1/events?state=lost", None, 400, "no state 'lost'"),
        ("GET", "/v1/events?sate=dead", None, 400, "unknown field `sate`"),
        ("GET", "/v1/events?limit=many", None, 400, "limit"),
        ("GET", "/v1/events?before=x", None, 400, "no number"),
        ("GET", "/v1/events/77", None, 404, "no event 77"),
        ("GET", "/v1/dead?ids=1,x", None, 400, "'x' is no number"),
        ("GET", "/v1/dead/77", None, 404, "no dead letter"),
        ("POST", "/v1/dead/retry", b"{}", 400, "Nothing was chosen"),
        ("POST", "/v1/dead/discard", b"", 400, "Nothing was chosen"),
        ("POST", "/v1/dead/discard", b"{", 400, "The request is wrong"),
        ("POST", "/v1/dead/retry", b'{"all":"yes"}', 400, "Expected `bool`"),
        ("POST", "/v1/forget", b"{}", 400, "missing required field `user`"),
        ("GET", "/v1/delivered", None, 400, "missing required field `since_ms`"),
        ("POST", "/v1/import", b'{"events":[{}]}', 400, "propertyKey"),
    ],
)
def test_a_wrong_request_is_told_in_a_sentence(place: Place, method, path, body, status, said):
    with place.living():
        found, answer = ask(place, method, path, body)
    assert found == status
    assert list(answer) == ["error"]
    assert said in answer["error"]


def test_the_socket_is_for_the_daemons_user_only(place: Place):
    with place.living():
        assert stat.S_IMODE(os.stat(place.control).st_mode) == 0o600


def test_the_configuration_is_shown_with_secrets_masked(tmp_path):
    place = Place(tmp_path, '[[source]]\nwrite_key = "wk_very_secret"\n')
    with place.living() as daemon:
        config = daemon.asked.get("/v1/config")
    assert config["px"]["property_key"] == "AP-XXXXXXXXXX-2"
    assert "wk_very_secret" not in str(config)


def test_dead_letters_are_exported_as_a_stream(place: Place):
    with place.living() as daemon:
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(place.unix)
            line.sendall(msgspec.json.encode([{"type": "no"} for _ in range(700)]) + b"\n")
            line.recv(1_000_000)
        with daemon.asked.lines("/v1/dead/export", {"reason": "bad_event"}) as lines:
            found = list(lines)
        with daemon.asked.lines("/v1/dead/export", {"reason": "refused"}) as lines:
            assert list(lines) == []
    assert [one["id"] for one in found] == list(range(1, 701))


def test_a_slow_reader_is_told_what_it_missed(place: Place):
    with place.living() as daemon, daemon.asked.lines("/v1/tail", patience_s=5) as records:
        assert next(records)["what"] == "listening"
        text = "x" * 60_000  # a Unix socket and both ends hold some hundred KB of it
        for _ in range(3):
            daemon.do(lambda: [daemon.daemon.feed.publish({"text": text}) for _ in range(QUEUE_RECORDS)])
        missed = next(record["missed"] for record in records if "missed" in record)
    assert missed > 0


def test_a_reader_that_goes_away_is_forgotten(place: Place):
    with place.living() as daemon:
        with daemon.asked.lines("/v1/tail") as records:
            next(records)
            assert daemon.daemon.feed.listeners == 1
        wait_until(lambda: daemon.daemon.feed.listeners == 0, "the end of the subscription")


def test_a_tail_does_not_keep_a_daemon_from_stopping(place: Place):
    with place.living() as daemon, daemon.asked.lines("/v1/tail") as records:
        next(records)
        daemon.stop()
        assert list(records) == []


# The client ------------------------------------------------------------------------------------------------------------


def test_nobody_at_the_socket_is_told_with_what_to_do(tmp_path):
    path = tmp_path / "absent.sock"
    with pytest.raises(
        NotRunning, match=r"nobody answers at .*absent.sock; start it with `systemctl start px-sidecar`"
    ):
        Daemon(str(path)).get("/v1/status")


def test_a_socket_that_was_left_behind_is_nobody(tmp_path):
    path = tmp_path / "old.sock"
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(str(path))
    with pytest.raises(NotRunning, match="not running"):
        Daemon(str(path)).post("/v1/pause")


def test_a_path_that_no_socket_can_have_is_told(tmp_path):
    with pytest.raises(NotRunning, match="too long"):
        Daemon(str(tmp_path / ("x" * 200))).get("/v1/status")


def test_a_daemon_that_does_not_answer_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("sidecar.control.client.PATIENCE_S", 0.05)
    path = tmp_path / "stuck.sock"
    with socket.socket(socket.AF_UNIX) as stuck:
        stuck.bind(str(path))
        stuck.listen()
        with pytest.raises(OutOfReach, match="does not answer; look at `journalctl"):
            Daemon(str(path)).get("/v1/status")


def test_something_else_at_the_socket_is_told(tmp_path):
    path = tmp_path / "other.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        thread = threading.Thread(target=answer_otherwise, args=(other,))
        thread.start()
        with pytest.raises(Failed, match="no px-sidecar"):
            Daemon(str(path)).get("/v1/status")
        thread.join(5)


def answer_otherwise(other: socket.socket) -> None:
    connection, _ = other.accept()
    with connection:
        connection.recv(1000)
        connection.sendall(b"HTTP/1.1 500 No\r\nContent-Length: 5\r\n\r\nhello")
