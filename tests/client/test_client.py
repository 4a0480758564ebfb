"""The client for apps, against a scripted sidecar."""

import ast
import contextlib
import json
import multiprocessing
import os
import signal
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

import px_sidecar_client
import pytest
from px_sidecar_client import Client, NotAccepted, NullClient, Unavailable

ROOT = Path(__file__).resolve().parents[2]

STORED = {"success": True, "accepted": 1}


class ScriptedSidecar:
    """Answer each line by ``answer(event)``: a dict or bytes are sent, "close" closes, "silence" does nothing."""

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
        """Close the listener and all connections, as a kill does, and remove the path."""
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
                if answer == "close":
                    connection.shutdown(socket.SHUT_RDWR)
                    break
                if answer != "silence":
                    connection.sendall(answer if isinstance(answer, bytes) else json.dumps(answer).encode() + b"\n")
        self._open.discard(connection)


@pytest.fixture
def sidecar(tmp_path):
    scripted = ScriptedSidecar(tmp_path / "events.sock")
    yield scripted
    with contextlib.suppress(OSError):
        scripted.stop()


@pytest.fixture
def client(sidecar):
    with Client(sidecar.path, timeout_s=5) as connected:
        yield connected


def test_each_method_sends_the_segment_event_of_its_type(client, sidecar):
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


def test_a_call_returns_the_message_id_it_sent(client, sidecar):
    assert client.track("u", "E") == sidecar.events[0]["messageId"]
    assert client.track("u", "E", message_id="mine") == sidecar.events[1]["messageId"] == "mine"
    assert len({client.track("u", "E") for _ in range(20)}) == 20


def test_common_arguments_are_sent(sidecar):
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


def test_the_timestamp_defaults_to_now(client, sidecar):
    client.track("u", "E")
    sent = datetime.fromisoformat(sidecar.events[0]["timestamp"])
    assert abs(datetime.now(UTC) - sent) < timedelta(seconds=30)


def test_python_values_become_json(client, sidecar):
    order_id = uuid.uuid4()
    client.track(
        "u", "E",
        {"day": date(2026, 1, 2), "id": order_id, "price": Decimal("1.5"), "tags": {"a"}, "text": "line\nbreak \ud800 ü",
         "at": datetime(2026, 1, 2, tzinfo=UTC), "nan": float("nan")},
    )  # fmt: skip
    sent = sidecar.events[0]["properties"]
    assert sent["nan"] != sent.pop("nan")
    assert sent == {
        "day": "2026-01-02", "id": str(order_id), "price": 1.5, "tags": ["a"], "text": "line\nbreak \ud800 ü", "at": "2026-01-02T00:00:00+00:00",
    }  # fmt: skip


def test_a_value_json_cannot_represent_raises_and_sends_nothing(client, sidecar):
    with pytest.raises(TypeError, match="object cannot be written as JSON"):
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
def test_a_refusal_raises_not_accepted_with_its_code(client, sidecar, answer):
    sidecar.answer = lambda event: answer
    with pytest.raises(NotAccepted, match=r"No type\. \(bad_event\)") as caught:
        client.track("u", "E")
    assert (caught.value.code, caught.value.message) == ("bad_event", "No type.")
    assert not isinstance(caught.value, Unavailable)
    sidecar.answer = lambda event: STORED
    client.track("u", "E")
    assert sidecar.connections == 1, "a refusal keeps the connection"


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 400 Bad Request\r\n", b"[]\n", b'{"ok":true}\n', b"null\n", b'{"success":true}{"a":1}\n']
)
def test_an_answer_of_another_program_raises_not_accepted(client, sidecar, answer):
    sidecar.answer = lambda event: answer
    with pytest.raises(NotAccepted, match=r"The peer is not a px-sidecar"):
        client.track("u", "E")


def test_an_answer_may_arrive_in_pieces(client, sidecar, monkeypatch):
    monkeypatch.setattr(socket.socket, "recv", lambda self, size, recv=socket.socket.recv: recv(self, 1))
    assert client.track("u", "E") == sidecar.events[0]["messageId"]


def test_a_lost_answer_is_retried_with_the_same_message_id(client, sidecar):
    answers = iter(["close", STORED])
    sidecar.answer = lambda event: next(answers)
    client.track("u", "E")
    assert [event["messageId"] for event in sidecar.events] == [sidecar.events[0]["messageId"]] * 2
    assert sidecar.connections == 2


def test_a_restart_between_two_calls_goes_unnoticed(client, sidecar):
    client.track("u", "before")
    sidecar.stop()
    sidecar.start()
    client.track("u", "after")
    assert [event["event"] for event in sidecar.events] == ["before", "after"]


def test_an_absent_socket_is_retried_once(client, sidecar, monkeypatch):
    sidecar.stop()
    monkeypatch.setattr(time, "sleep", lambda seconds: sidecar.start())
    client.track("u", "E")
    assert len(sidecar.events) == 1


def test_a_second_failure_raises_unavailable(client, sidecar):
    sidecar.answer = lambda event: "close"
    with pytest.raises(Unavailable, match="cannot be reached") as caught:
        client.track("u", "E")
    assert caught.value.maybe_accepted is True
    assert len(sidecar.events) == 2


def test_a_socket_of_another_group_names_the_group(client, sidecar, monkeypatch):
    """It said: start it, or give its socket to the client; the sidecar ran, and that was its socket."""

    def refused(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(px_sidecar_client, "_connect", refused)
    with pytest.raises(Unavailable, match="may not use the socket; add it to the socket's group") as caught:
        client.track("u", "E")
    assert caught.value.maybe_accepted is False


def test_an_absent_sidecar_is_named_and_has_accepted_nothing(tmp_path):
    with pytest.raises(
        Unavailable, match=r"/none\.sock cannot be reached \(No such file or directory\); start it, or give its socket"
    ) as caught:
        Client(str(tmp_path / "none.sock"), timeout_s=0.2).track("u", "E")
    assert caught.value.maybe_accepted is False
    assert caught.value.code == "unavailable"


def test_a_late_answer_is_not_taken_for_the_next_one(sidecar):
    client = Client(sidecar.path, timeout_s=0.1)
    sidecar.answer = lambda event: "silence" if event["event"] == "slow" else STORED
    started_s = time.monotonic()
    with pytest.raises(Unavailable, match="did not answer in time") as caught:
        client.track("u", "slow")
    assert time.monotonic() - started_s < 2
    assert caught.value.maybe_accepted is True
    client.track("u", "quick")
    assert sidecar.connections == 2
    client.close()


def test_a_full_backlog_is_polled_until_the_timeout(tmp_path):
    with socket.socket(socket.AF_UNIX) as listener, contextlib.ExitStack() as stack:
        listener.bind(str(tmp_path / "full"))
        listener.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
                waiting.setblocking(False)
                waiting.connect(str(tmp_path / "full"))
        started_s = time.monotonic()
        with pytest.raises(Unavailable, match="did not answer in time") as caught:
            Client(str(tmp_path / "full"), timeout_s=0.1).track("u", "E")
        assert 0.05 < time.monotonic() - started_s < 2
        assert caught.value.maybe_accepted is False


def test_each_thread_gets_the_answer_to_its_own_event(client, sidecar):
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


def test_a_thread_waits_for_others_no_longer_than_its_timeout(sidecar):
    client = Client(sidecar.path, timeout_s=0.3)
    sidecar.answer = lambda event: "silence"
    failures = []

    def work():
        started_s = time.monotonic()
        try:
            client.track("u", "E")
        except Unavailable:
            failures.append(time.monotonic() - started_s)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(failures) == 4
    assert max(failures) < 2


def test_a_thread_that_gets_no_turn_has_sent_nothing(sidecar, monkeypatch):
    reading, release, receive = threading.Event(), threading.Event(), socket.socket.recv

    def wait_and_receive(connection, size):
        reading.set()
        release.wait(20)
        return receive(connection, size)

    monkeypatch.setattr(socket.socket, "recv", wait_and_receive)
    client = Client(sidecar.path, timeout_s=0.05)
    holder = threading.Thread(target=client.track, args=("u", "first"))
    holder.start()
    assert reading.wait(20)
    with pytest.raises(Unavailable, match="Other threads used up the time") as caught:
        client.track("u", "second")
    release.set()
    holder.join()
    assert caught.value.maybe_accepted is False
    client.close()
    assert [event["event"] for event in sidecar.events] == ["first"]


def test_an_endless_answer_is_abandoned(client, sidecar, monkeypatch):
    monkeypatch.setattr("px_sidecar_client.MAX_ANSWER_BYTES", 100_000)
    sidecar.answer = lambda event: b"x" * 300_000
    with pytest.raises(Unavailable, match="the answer does not end"):
        client.track("u", "E")


# Python 3.12 and later warn of forks in processes with threads. Apps do this nevertheless, so it has to work.
forks = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def send_some(client, name, count):
    for _ in range(count):
        client.track("u", name)


@forks
def test_forked_workers_use_their_own_connections(client, sidecar):
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
    assert sidecar.connections == 4, "one of the parent, and one of each worker"


@forks
def test_a_fork_during_a_call_does_not_lock_the_child_out(client, sidecar):
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
    sidecar.start()  # the restart makes the waiting thread retry, and the retry is answered
    held.join()


def connections_to(path):
    """Return the inodes of this process's sockets that are connected to ``path``."""
    inodes = set()
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as copy:
            if copy.getpeername() == path:
                inodes.add(os.fstat(copy.fileno()).st_ino)
    return inodes


@forks
def test_a_child_closes_its_copy_of_the_parents_connection(client, sidecar):
    client.track("u", "E")
    parents = connections_to(sidecar.path)
    assert len(parents) == 1

    def child():
        assert connections_to(sidecar.path) == parents
        client.track("u", "child")
        own = connections_to(sidecar.path)
        assert len(own) == 1
        assert not own & parents

    worker = multiprocessing.get_context("fork").Process(target=child)
    worker.start()
    worker.join(10)
    assert worker.exitcode == 0
    client.track("u", "E")
    assert connections_to(sidecar.path) == parents, "the child has closed only its copy"


def test_importing_the_client_is_cheap():
    script = (
        "import sys; before = set(sys.modules); import px_sidecar_client;"
        "print(*sorted({name.split('.')[0] for name in set(sys.modules) - before}))"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT / "sidecar" / "client",
    )
    loaded = set(done.stdout.split())
    assert "px_sidecar_client" in loaded
    foreign = {name for name in loaded if name not in sys.stdlib_module_names and name != "px_sidecar_client"}
    assert not foreign
    assert not loaded & {"asyncio", "http", "urllib", "ssl", "sqlite3", "email", "logging", "multiprocessing"}


def test_any_mapping_is_sent_as_an_object(client, sidecar):
    client.track("u", "E", {"plan": MappingProxyType({"name": "gold", "seats": 5})})
    assert sidecar.events[0]["properties"] == {"plan": {"name": "gold", "seats": 5}}


def cyclic():
    value = {}
    value["self"] = value
    return value


def nested(levels):
    value = []
    for _ in range(levels):
        value = [value]
    return value


class Broken(dict):
    def items(self):
        raise KeyError("the app's own bug")


@pytest.mark.parametrize(
    "value",
    [cyclic(), nested(100_000), Broken(a=1), {(1, 2): 3}, 10**5000],
    ids=["cycle", "depth", "broken", "key", "digits"],
)
def test_every_value_that_cannot_be_written_raises_type_error(client, sidecar, value):
    with pytest.raises(TypeError):
        client.track("u", "E", {"x": value})
    assert sidecar.events == []
    client.track("u", "after")


@pytest.mark.parametrize("path", ["/tmp/a\0b", "/tmp/" + "x" * 200, "/tmp/\ud800"])
def test_an_impossible_path_raises_unavailable(path):
    with pytest.raises(Unavailable, match="cannot be reached"):
        Client(path, timeout_s=0.2).track("u", "E")


def test_a_deeply_nested_answer_is_of_another_program(client, sidecar):
    sidecar.answer = lambda event: b"[" * 100_000 + b"\n"
    with pytest.raises(NotAccepted, match="The peer is not a px-sidecar"):
        client.track("u", "E")


def test_a_signal_handler_may_call_during_a_call(client, sidecar):
    """The handler runs in the thread that holds the lock and waits for an answer."""

    def answer(event):
        if event["event"] == "outer":
            signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
            time.sleep(0.05)
        return {"success": False, "code": event["event"], "message": "m"}

    sidecar.answer = answer
    codes = []

    def handler(*_):
        try:
            client.track("u", "inner")
        except NotAccepted as error:
            codes.append(error.code)

    previous = signal.signal(signal.SIGUSR1, handler)
    try:
        started_s = time.monotonic()
        with pytest.raises(NotAccepted) as caught:
            client.track("u", "outer")
    finally:
        signal.signal(signal.SIGUSR1, previous)
    assert caught.value.code == "outer"
    assert codes == ["inner"]
    assert time.monotonic() - started_s < 2


def test_a_call_in_the_middle_of_a_call_uses_a_connection_of_its_own(client, sidecar, monkeypatch):
    """As a finalizer does, at any line of the client."""
    inner = []

    def connect(path, deadline_s, connect=px_sidecar_client._connect):
        if not inner:
            inner.append(None)
            client.track("u", "inner")
        return connect(path, deadline_s)

    monkeypatch.setattr(px_sidecar_client, "_connect", connect)
    client.track("u", "outer")
    client.track("u", "next")
    assert [event["event"] for event in sidecar.events] == ["inner", "outer", "next"]
    assert sidecar.connections == 2


def test_close_inside_a_call_takes_effect_after_it(client, sidecar, monkeypatch):
    def exchange(connection, line, deadline_s, exchange=px_sidecar_client._exchange):
        client._channels[os.getpid()].close()
        return exchange(connection, line, deadline_s)

    monkeypatch.setattr(px_sidecar_client, "_exchange", exchange)
    client.track("u", "E")
    client.track("u", "E")
    assert sidecar.connections == 2


def test_with_on_error_no_call_raises(sidecar):
    errors = []

    def on_error(error):
        errors.append(error)
        raise RuntimeError("a handler with a bug")

    with Client(sidecar.path, on_error=on_error) as client:
        sidecar.answer = lambda event: {"success": False, "code": "bad_event", "message": "m"}
        assert client.track("u", "E", message_id="mine") == "mine"
        client.track("u", "E", {"x": object()})
    assert [type(error) for error in errors] == [NotAccepted, TypeError]
    assert client.skipped == 0


def test_on_error_returns_at_once_for_a_second(tmp_path, monkeypatch):
    now_s = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now_s[0])
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)
    errors = []
    client = Client(str(tmp_path / "none.sock"), on_error=errors.append)
    for _ in range(5):
        client.track("u", "E")
    assert (len(errors), client.skipped) == (1, 4)
    now_s[0] += 1.0
    client.track("u", "E")
    assert (len(errors), client.skipped) == (2, 4)


def test_the_null_client_keeps_events_as_they_would_be_sent():
    with NullClient("/nowhere", timeout_s=1) as client:
        message_id = client.track("u", "E", {"day": date(2026, 1, 2)}, context={"groupId": "g"})
        with pytest.raises(TypeError):
            client.track("u", "E", {"x": object()})
    (event,) = client.events
    assert event["messageId"] == message_id
    assert event["properties"] == {"day": "2026-01-02"}
    assert event["context"] == {"groupId": "g"}


def test_the_file_parses_with_python_3_8():
    source = Path(px_sidecar_client.__file__).read_text(encoding="utf-8")
    ast.parse(source, feature_version=(3, 8))


def test_the_alias_has_the_same_classes():
    import sidecar.client as alias

    assert alias.Client is Client
    assert alias.NotAccepted is NotAccepted
