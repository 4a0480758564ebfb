"""The control sockets during a start that takes long."""

import json

import pytest
import trio

from sidecar.control import server
from sidecar.control.server import refuse_while_starting
from sidecar.receive.unix_sockets import bind_unix


@pytest.fixture
def listener(tmp_path):
    with bind_unix(tmp_path / "c.sock", 0o600) as bound:
        yield bound


async def test_a_call_during_a_long_start_is_answered_with_the_reason(listener, monkeypatch):
    monkeypatch.setattr(server, "STARTING_S", 0.0)
    async with refuse_while_starting(listener, None), await trio.open_unix_socket(listener.getsockname()) as stream:
        await stream.send_all(b"GET /v1/status HTTP/1.1\r\nHost: px-sidecar\r\nConnection: close\r\n\r\n")
        answer = b"".join([part async for part in stream])
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ")
    assert "is starting" in json.loads(body)["error"]


async def test_a_call_during_a_usual_start_waits_in_the_queue(listener):
    async with await trio.open_unix_socket(listener.getsockname()) as stream:
        async with refuse_while_starting(listener):
            await stream.send_all(b"GET /v1/status HTTP/1.1\r\n\r\n")
        listening = trio.SocketListener(trio.socket.from_stdlib_socket(listener))
        with trio.fail_after(5):
            accepted = await listening.accept()
            async with accepted:
                assert (await accepted.receive_some()).startswith(b"GET")
