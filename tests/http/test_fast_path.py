"""What a plain socket takes at once is sent at once, and only the rest is waited for."""

import socket

import pytest
import trio
import trio.testing

from sidecar.http.fast_path import fast_path


def connected() -> tuple[trio.SocketStream, socket.socket]:
    ours, theirs = socket.socketpair()
    return trio.SocketStream(trio.socket.from_stdlib_socket(ours)), theirs


async def test_send_now_sends_what_the_socket_takes():
    stream, client = connected()
    async with stream:
        fast = fast_path(stream)
        assert fast.send_now(b"answer\n") == 7
        assert client.recv(100) == b"answer\n"
        sent = [fast.send_now(b"x" * 65_536) for _ in range(1_000)]
        assert sent[0] == 65_536
        assert sent[-1] == 0
        client.close()


async def test_send_all_waits_for_the_rest():
    stream, client = connected()
    received = bytearray()

    def read() -> None:
        while data := client.recv(65_536):
            received.extend(data)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, read)
        async with stream:
            await fast_path(stream).send_all(bytes(range(256)) * 40_000)
    client.close()
    assert received == bytes(range(256)) * 40_000


async def test_sending_to_a_client_that_has_gone_breaks():
    stream, client = connected()
    client.close()
    async with stream:
        with pytest.raises(trio.BrokenResourceError):
            fast_path(stream).send_now(b"answer\n")


async def test_other_streams_take_nothing_at_once():
    stream, _client = trio.testing.memory_stream_pair()
    assert fast_path(stream).send_now(b"answer\n") == 0
