"""The client for apps, against a sidecar that is told how to behave."""

import contextlib
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import threading
import time
import uuid
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType

import pytest

from sidecar.client import Client, NotAccepted, Unavailable

ROOT = Path(__file__).resolve().parents[1]

STORED = {"success": True, "accepted": 1}


class Sidecar:
    """Answers each line through ``answer(event)``: a dict is sent, ``"hang up"`` closes, ``"silence"`` does nothing."""

    def __init__(self, path):
        self.path = str(path)
        self.events = []
        self.connections = 0
        self.answer = lambda event: STORED
        self._open = set()
        self.start()

    def start(self):
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen(64)
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def stop(self):
        """As a killed daemon would: the listener and all connections go, the path stays away."""
        os.unlink(self.path)
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                self.connections += 1
                self._open.add(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection):
        with contextlib.suppress(OSError), connection, connection.makefile("rb") as lines:
            for line in lines:
                event = json.loads(line)
                self.events.append(event)
                answer = self.answer(event)
                if answer == "hang up":
                    connection.shutdown(socket.SHUT_RDWR)
                    break
                if answer != "silence":
                    connection.sendall(answer if isinstance(answer, bytes) else json.dumps(answer).encode() + b"\n")
        self._open.discard(connection)


@pytest.fixture
def sidecar(tmp_path):
    one = Sidecar(tmp_path / "events.sock")
    yield one
    with contextlib.suppress(OSError):
        one.stop()


@pytest.fixture
def client(sidecar):
    with Client(sidecar.path, timeout_s=5) as one:
        yield one


def test_each_call_is_the_segment_event_of_its_kind(client, sidecar):
    client.identify("u", {"email": "a@b.c"})
    client.track("u", "Bought", {"price": 3})
    client.page("u", "Home", {"url": "/"})
    client.screen("u", "Start")
    client.group("u", "g", {"plan": "pro"})
    assert [{k: v for k, v in event.items() if k not in ("messageId", "timestamp")} for event in sidecar.events] == [
        {"type": "identify", "userId": "u", "traits": {"email": "a@b.c"}},
        {"type": "track", "userId": "u", "event": "Bought", "properties": {"price": 3}},
        {"type": "page", "userId": "u", "name": "Home", "properties": {"url": "/"}},
        {"type": "screen", "userId": "u", "name": "Start", "properties": {}},
        {"type": "group", "userId": "u", "groupId": "g", "traits": {"plan": "pro"}},
    ]
    assert sidecar.connections == 1


def test_the_call_returns_the_message_id_that_was_sent(client, sidecar):
    assert client.track("u", "E") == sidecar.events[0]["messageId"]
    assert client.track("u", "E", message_id="mine") == sidecar.events[1]["messageId"] == "mine"
    assert len({client.track("u", "E") for _ in range(20)}) == 20


def test_what_is_common_to_all_calls_goes_along(sidecar):
    at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    common = {"anonymous_id": "a", "context": {"ip": "1.2.3.4"}, "integrations": {"All": True}, "timestamp": at}
    with Client(sidecar.path, write_key="wk") as client:
        client.track(None, "E", **common)
        client.track(None, "E", timestamp="2026-01-02T00:00:00Z")
    first, second = sidecar.events
    del first["messageId"]
    assert first == {
        "type": "track", "event": "E", "properties": {}, "anonymousId": "a", "context": {"ip": "1.2.3.4"},
        "integrations": {"All": True}, "timestamp": "2026-01-02T03:04:05+00:00", "writeKey": "wk",
    }  # fmt: skip
    assert second["timestamp"] == "2026-01-02T00:00:00Z"


def test_the_time_of_the_call_is_the_default(client, sidecar):
    client.track("u", "E")
    sent = datetime.fromisoformat(sidecar.events[0]["timestamp"])
    assert abs(datetime.now(UTC) - sent) < timedelta(seconds=30)


def test_what_apps_put_into_properties_becomes_json(client, sidecar):
    one = uuid.uuid4()
    client.track(
        "u", "E",
        {"day": date(2026, 1, 2), "id": one, "price": Decimal("1.5"), "tags": {"a"}, "text": "line\nbreak \ud800 ü",
         "at": datetime(2026, 1, 2, tzinfo=UTC), "nan": float("nan")},
    )  # fmt: skip
    sent = sidecar.events[0]["properties"]
    assert sent["nan"] != sent.pop("nan")
    assert sent == {
        "day": "2026-01-02", "id": str(one), "price": 1.5, "tags": ["a"], "text": "line\nbreak \ud800 ü", "at": "2026-01-02T00:00:00+00:00",
    }  # fmt: skip


def test_a_value_without_a_form_in_json_is_the_callers_error_and_nothing_is_sent(client, sidecar):
    with pytest.raises(TypeError, match="object has no form in JSON"):
        client.track("u", "E", {"x": object()})
    assert sidecar.connections == 0
    client.track("u", "E")


@pytest.mark.parametrize(
    "answer",
    [
        {"success": False, "code": "bad_event", "message": "No type.", "error": "No type."},
        {
            "success": True,
            "accepted": 1,
            "refused": [{"index": 0, "messageId": "m", "code": "bad_event", "message": "No type."}],
        },
    ],
)
def test_a_refusal_reaches_the_caller_with_its_code(client, sidecar, answer):
    sidecar.answer = lambda event: answer
    with pytest.raises(NotAccepted, match=r"No type\. \(bad_event\)") as caught:
        client.track("u", "E")
    assert (caught.value.code, caught.value.message) == ("bad_event", "No type.")
    assert not isinstance(caught.value, Unavailable)
    sidecar.answer = lambda event: STORED
    client.track("u", "E")
    assert sidecar.connections == 1, "a refusal is an answer like others: the connection is kept"


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 400 Bad Request\r\n", b"[]\n", b'{"ok":true}\n', b"null\n", b'{"success":true}{"a":1}\n']
)
def test_an_answer_of_something_else_is_told(client, sidecar, answer):
    sidecar.answer = lambda event: answer
    with pytest.raises(NotAccepted, match=r"What answers there is no px-sidecar"):
        client.track("u", "E")


def test_an_answer_may_come_in_pieces(client, sidecar, monkeypatch):
    monkeypatch.setattr(socket.socket, "recv", lambda self, size, recv=socket.socket.recv: recv(self, 1))
    assert client.track("u", "E") == sidecar.events[0]["messageId"]


def test_a_connection_that_ends_before_the_answer_is_opened_again_with_the_same_message_id(client, sidecar):
    answers = iter(["hang up", STORED])
    sidecar.answer = lambda event: next(answers)
    client.track("u", "E")
    assert [event["messageId"] for event in sidecar.events] == [sidecar.events[0]["messageId"]] * 2
    assert sidecar.connections == 2


def test_a_restart_between_two_calls_costs_nothing(client, sidecar):
    client.track("u", "before")
    sidecar.stop()
    sidecar.start()
    client.track("u", "after")
    assert [event["event"] for event in sidecar.events] == ["before", "after"]


def test_a_sidecar_that_is_just_starting_is_waited_for(client, sidecar, monkeypatch):
    sidecar.stop()
    monkeypatch.setattr(time, "sleep", lambda seconds: sidecar.start())
    client.track("u", "E")
    assert len(sidecar.events) == 1


def test_the_second_failure_reaches_the_caller(client, sidecar):
    sidecar.answer = lambda event: "hang up"
    with pytest.raises(Unavailable, match="cannot be reached") as caught:
        client.track("u", "E")
    assert caught.value.maybe_accepted is True
    assert len(sidecar.events) == 2


def test_no_sidecar_is_told_with_the_path_and_was_certainly_not_accepted(tmp_path):
    with pytest.raises(
        Unavailable, match=r"/none\.sock cannot be reached \(No such file or directory\); is it running\?"
    ) as caught:
        Client(str(tmp_path / "none.sock"), timeout_s=0.2).track("u", "E")
    assert caught.value.maybe_accepted is False
    assert caught.value.code == "unavailable"


def test_the_wait_is_bounded_and_a_late_answer_is_not_taken_for_the_next_one(sidecar):
    client = Client(sidecar.path, timeout_s=0.1)
    sidecar.answer = lambda event: "silence" if event["event"] == "slow" else STORED
    began = time.monotonic()
    with pytest.raises(Unavailable, match="did not answer in time") as caught:
        client.track("u", "slow")
    assert time.monotonic() - began < 2
    assert caught.value.maybe_accepted is True
    client.track("u", "quick")
    assert sidecar.connections == 2
    client.close()


def test_a_full_queue_of_connections_is_waited_for_within_the_time(tmp_path):
    with socket.socket(socket.AF_UNIX) as listener, contextlib.ExitStack() as stack:
        listener.bind(str(tmp_path / "full"))
        listener.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
                waiting.setblocking(False)
                waiting.connect(str(tmp_path / "full"))
        began = time.monotonic()
        with pytest.raises(Unavailable, match="did not answer in time") as caught:
            Client(str(tmp_path / "full"), timeout_s=0.1).track("u", "E")
        assert 0.05 < time.monotonic() - began < 2
        assert caught.value.maybe_accepted is False


def test_threads_share_a_client_and_each_gets_its_own_answer(client, sidecar):
    sidecar.answer = lambda event: (
        {"success": False, "code": event["event"], "message": "m"} if event["event"] != "ok" else STORED
    )
    wrong = []

    def work(name):
        for _ in range(50):
            try:
                client.track("u", name)
                got = "ok"
            except NotAccepted as error:
                got = error.code
            if got != name:
                wrong.append((name, got))

    threads = [threading.Thread(target=work, args=(name,)) for name in ("ok", "a", "b", "c", "ok", "d")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(sidecar.events) == 300
    assert sidecar.connections == 1


def test_a_thread_does_not_wait_for_others_beyond_its_time(sidecar):
    client = Client(sidecar.path, timeout_s=0.3)
    sidecar.answer = lambda event: "silence"
    failures = []

    def work():
        began = time.monotonic()
        try:
            client.track("u", "E")
        except Unavailable:
            failures.append(time.monotonic() - began)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(failures) == 4
    assert max(failures) < 2


def test_time_used_up_by_other_threads_is_told_and_nothing_was_sent(sidecar):
    client = Client(sidecar.path, timeout_s=0.05)
    with client._line().lock, pytest.raises(Unavailable, match="Other threads used the time") as caught:
        client.track("u", "E")
    assert caught.value.maybe_accepted is False
    assert sidecar.events == []


def test_an_answer_without_end_is_not_kept(client, sidecar, monkeypatch):
    monkeypatch.setattr("sidecar.client.LONGEST_ANSWER_BYTES", 100_000)
    sidecar.answer = lambda event: b"x" * 300_000
    with pytest.raises(Unavailable, match="the answer does not end"):
        client.track("u", "E")


# Python 3.12 and later warn of forks in processes with threads; apps do it all the same, and this is about them.
forks = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def send_some(client, name, count):
    for _ in range(count):
        client.track("u", name)


@forks
def test_workers_forked_from_an_app_that_has_used_its_client_send_on_connections_of_their_own(client, sidecar):
    client.track("u", "before the fork")
    fork = multiprocessing.get_context("fork")
    workers = [fork.Process(target=send_some, args=(client, f"worker {number}", 30)) for number in range(3)]
    for worker in workers:
        worker.start()
    send_some(client, "parent", 30)
    for worker in workers:
        worker.join(20)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    client.track("u", "after the fork")
    names = [event["event"] for event in sidecar.events]
    assert {name: names.count(name) for name in set(names)} == {
        "before the fork": 1, "after the fork": 1, "parent": 30, "worker 0": 30, "worker 1": 30, "worker 2": 30,
    }  # fmt: skip
    assert sidecar.connections == 4, "one of the parent, used before and after, and one of each worker"


@forks
def test_a_fork_while_a_thread_is_waiting_does_not_lock_the_child_out(client, sidecar):
    sidecar.answer = lambda event: "silence" if event["event"] == "held" else STORED
    held = threading.Thread(target=client.track, args=("u", "held"), kwargs={"message_id": "held"})
    held.start()
    while not sidecar.events:
        time.sleep(0.001)
    worker = multiprocessing.get_context("fork").Process(target=send_some, args=(client, "child", 1))
    worker.start()
    worker.join(4)
    assert worker.exitcode == 0
    sidecar.answer = lambda event: STORED
    sidecar.stop()
    sidecar.start()  # what the thread was waiting for; its second try is answered
    held.join()


@forks
def test_a_child_that_uses_the_client_lets_go_of_the_parents_connection(client, sidecar):
    client.track("u", "E")
    parents = client._lines[os.getpid()]._socket.fileno()

    def child():
        client.track("u", "child")
        assert os.getpid() in client._lines
        assert len(client._lines) == 1
        assert not os.path.exists(f"/proc/self/fd/{parents}") or client._lines[os.getpid()]._socket.fileno() == parents

    worker = multiprocessing.get_context("fork").Process(target=child)
    worker.start()
    worker.join(10)
    assert worker.exitcode == 0


def test_importing_it_imports_nothing_heavy():
    script = (
        "import sys; before = set(sys.modules); import sidecar.client;"
        "print(*sorted({name.split('.')[0] for name in set(sys.modules) - before}))"
    )
    done = subprocess.run([sys.executable, "-S", "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = set(done.stdout.split())
    assert "sidecar" in loaded
    foreign = {name for name in loaded if name not in sys.stdlib_module_names and name != "sidecar"}
    assert not foreign
    assert not loaded & {"asyncio", "http", "urllib", "ssl", "sqlite3", "email", "logging", "multiprocessing"}


def test_a_mapping_that_is_no_dict_is_sent_as_one(client, sidecar):
    client.track("u", "E", {"plan": MappingProxyType({"name": "gold", "seats": 5})})
    assert sidecar.events[0]["properties"] == {"plan": {"name": "gold", "seats": 5}}
