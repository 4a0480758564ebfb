"""Many connections, a handler that fails, and a shutdown with requests in progress."""

import contextlib
import json
import logging
import socket
from functools import partial

import pytest
import trio
import trio.testing
from receive_harness import ReceiveHarness, answers, read_all, receiving, track

from sidecar.config import ListenConfig
from sidecar.receive import bind_listeners
from sidecar.receive.unix_sockets import bind_unix

OK = b'{"success":true,"accepted":1}'


def request(number: int = 1) -> bytes:
    body = json.dumps(track(number)).encode()
    return b"POST /v1/track HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


@contextlib.asynccontextmanager
async def serving(harness: ReceiveHarness, listen: ListenConfig, *, descriptors: int = 1_000, inherited=None):
    """Serve real sockets; at the end of the block the shutdown must end the server within the time limit."""
    sockets = bind_listeners(listen, inherited or {})
    try:
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                await nursery.start(partial(harness.serve, sockets, descriptors=descriptors))
                yield sockets
                harness.shutdown.set()
    finally:
        sockets.close()


async def connect(listener: socket.socket) -> trio.SocketStream:
    return await trio.open_tcp_stream(*listener.getsockname()[:2])


async def exchange(stream: trio.abc.Stream, data: bytes) -> list:
    await stream.send_all(data)
    return answers(bytes(await stream.receive_some(65_536)))


async def test_full_tcp_does_not_exclude_clients_of_the_unix_socket(tmp_path):
    listen = ListenConfig(http="127.0.0.1:0", unix=str(tmp_path / "events.sock"))
    async with (
        receiving(tmp_path / "o.db") as harness,
        serving(harness, listen, descriptors=1) as sockets,
        contextlib.AsyncExitStack() as stack,
    ):
        clients = [await stack.enter_async_context(await connect(sockets.http[0])) for _ in range(16)]
        for client in clients:
            assert (await exchange(client, request(1)))[0].status == 200
        late = await stack.enter_async_context(await connect(sockets.http[0]))
        await late.send_all(request(2))
        async with await trio.open_unix_socket(listen.unix) as stream:
            assert (await exchange(stream, request(3)))[0].body == OK
        assert [event["messageId"] for event in harness.stored()] == ["m1", "m3"]
        await clients[0].aclose()
        assert answers(bytes(await late.receive_some(1_000)))[0].body == OK


class GatedOutbox:
    """An outbox that accepts requests only after ``release``."""

    size_bytes = 0
    sliced = False

    def __init__(self, harness: ReceiveHarness) -> None:
        self.release = trio.Event()
        self.submitted = trio.Event()
        self._submit = harness.outbox.submit
        harness.outbox.submit = self._submit_later

    def _submit_later(self, events):
        self.submitted.set()
        self._events = events
        return self

    async def wait(self):
        events = self._events
        await self.release.wait()
        return await self._submit(events).wait()


async def test_shutdown_answers_what_was_read_with_close(tmp_path):
    async with receiving(tmp_path / "o.db") as harness:
        gated = GatedOutbox(harness)
        async with (
            serving(harness, ListenConfig(http="127.0.0.1:0", unix="")) as sockets,
            await connect(sockets.http[0]) as busy,
            await connect(sockets.http[0]) as idle,
        ):
            await busy.send_all(request())
            await gated.submitted.wait()
            harness.shutdown.set()
            assert await read_all(idle) == b""
            assert harness.count() == 0
            gated.release.set()
            (answer,) = answers(await read_all(busy))
            assert (answer.status, answer.body, answer.headers["connection"]) == (200, OK, "close")
            assert harness.count() == 1


async def test_client_that_disconnects_early_loses_no_event(tmp_path):
    async with receiving(tmp_path / "o.db") as harness:
        gated = GatedOutbox(harness)
        async with serving(harness, ListenConfig(http="127.0.0.1:0", unix="")) as sockets:
            async with await connect(sockets.http[0]) as hasty:
                await hasty.send_all(request(1))
                await gated.submitted.wait()
            gated.release.set()
            async with await connect(sockets.http[0]) as stream:
                assert (await exchange(stream, request(2)))[0].body == OK
            assert {event["messageId"] for event in harness.stored()} == {"m1", "m2"}


async def test_a_listener_that_starts_after_the_shutdown_is_closed(tmp_path):
    async with receiving(tmp_path / "o.db") as harness:
        harness.shutdown.set()
        async with serving(harness, ListenConfig(http="127.0.0.1:0", unix="")) as sockets:
            address = sockets.http[0].getsockname()
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(OSError):
                await trio.open_tcp_stream(*address)
        assert harness.count() == 0


@contextlib.contextmanager
def logged_by(name: str):
    """Collect the messages of one logger; pytest's own fixture is switched off in this project."""
    messages: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    logger, handler = logging.getLogger(name), Collect()
    logger.addHandler(handler)
    try:
        yield messages
    finally:
        logger.removeHandler(handler)


@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_internal_error_is_answered_500_and_logged(tmp_path, kind):
    async with receiving(tmp_path / "o.db") as harness:
        submit, harness.outbox.submit = harness.outbox.submit, None
        with logged_by("sidecar.receive.server") as messages:
            (answer,) = answers(await harness.exchange(request(), kind))
        assert (answer.status, answer.json["code"], answer.headers["connection"]) == (500, "internal", "close")
        assert len(messages) == 1
        assert messages[0].startswith("POST /v1/track failed: TypeError")
        harness.outbox.submit = submit
        assert (await harness.post("/v1/track", track(), kind=kind)).body == OK


async def test_clients_of_a_reopened_socket_are_served_at_a_stop(tmp_path):
    """They waited in the queue of a listener that was closed, and were reset."""
    async with receiving(tmp_path / "o.db") as harness:
        with bind_unix(tmp_path / "e.sock", 0o600) as listener, contextlib.ExitStack() as stack:
            clients = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(3)]
            for number, client in enumerate(clients):
                client.connect(str(tmp_path / "e.sock"))
                client.sendall(json.dumps(track(number)).encode() + b"\n")
                client.settimeout(5)
            harness.shutdown.set()
            with trio.fail_after(20):
                await harness.server.serve_reopened(listener, descriptors=1_000)
            assert [client.recv(100) for client in clients] == [OK + b"\n"] * 3


async def test_a_reopened_socket_leaves_descriptors_to_others(tmp_path):
    async with receiving(tmp_path / "o.db") as harness:
        with bind_unix(tmp_path / "e.sock", 0o600) as listener, contextlib.ExitStack() as stack:
            harness.nursery.start_soon(partial(harness.server.serve_reopened, listener, descriptors=64))
            for number in range(20):
                client = stack.enter_context(socket.socket(socket.AF_UNIX))
                client.connect(str(tmp_path / "e.sock"))
                client.sendall(json.dumps(track(number)).encode() + b"\n")
                client.settimeout(5)
            await trio.testing.wait_all_tasks_blocked(0.1)
            assert len(harness.accepted) == 16
            harness.shutdown.set()
