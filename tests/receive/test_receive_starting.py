"""Clients that connect before the outbox is open wait for it; none is refused, and none waits long."""

import contextlib
import json
from functools import partial

import trio
from receive_harness import answers, read_all, receiving, track

from sidecar.config import ListenConfig
from sidecar.receive import StartingServer, bind_listeners
from sidecar.receive.starting import WAIT_S

BODY = json.dumps(track()).encode()
POST = b"POST /v1/track HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)


@contextlib.asynccontextmanager
async def starting(tmp_path):
    """A daemon that is starting, and functions that open a TCP and a Unix connection to it."""
    sockets = bind_listeners(ListenConfig(http="127.0.0.1:0", unix=str(tmp_path / "e.sock")), {})
    server = StartingServer()
    try:
        async with trio.open_nursery() as nursery, contextlib.AsyncExitStack() as clients:
            await nursery.start(partial(server.serve, sockets, descriptors=1_000))

            async def tcp():
                return await clients.enter_async_context(await trio.open_tcp_stream(*sockets.http[0].getsockname()))

            async def unix():
                return await clients.enter_async_context(await trio.open_unix_socket(str(tmp_path / "e.sock")))

            yield server, tcp, unix
            await clients.aclose()
            server.shutdown.set()
            with trio.fail_after(10):
                await server.ended.wait()
            nursery.cancel_scope.cancel()
    finally:
        sockets.close()


async def test_clients_wait_and_are_answered_once_the_outbox_is_open(tmp_path):
    async with receiving(tmp_path / "o.db") as harness, starting(tmp_path) as (server, tcp, unix):
        over_http, lines = await tcp(), await unix()
        await over_http.send_all(POST)
        await lines.send_all(BODY.replace(b"m1", b"m2") + b"\n")
        await trio.sleep(0.05)
        assert harness.count() == 0
        server.open(harness.server)
        (answer,) = answers(bytes(await over_http.receive_some(4096)))
        assert answer.json == {"success": True, "accepted": 1}
        assert await lines.receive_some(4096) == b'{"success":true,"accepted":1}\n'
        late = await tcp()
        await late.send_all(POST)
        (answer,) = answers(bytes(await late.receive_some(4096)))
        assert answer.json == {"success": True, "accepted": 0, "repeated": 1}
        harness.shutdown.set()


async def test_a_client_that_waited_too_long_is_answered_busy(tmp_path, monkeypatch):
    monkeypatch.setattr("sidecar.receive.starting.WAIT_S", 0.1)
    assert WAIT_S == 5
    async with starting(tmp_path) as (_, tcp, unix):
        for connect in (tcp, unix):
            stream = await connect()
            await stream.send_all(POST)
            (answer,) = answers(await read_all(stream))
            assert (answer.status, answer.json["code"], answer.headers["retry-after"]) == (503, "busy", "5")
        lines = await unix()
        await lines.send_all(BODY + b"\n")
        assert json.loads(await read_all(lines))["code"] == "busy"
        garbage = await tcp()
        await garbage.send_all(b"POST /v1/batch HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n")
        assert answers(await read_all(garbage))[0].status == 503, "not 413, at which SDKs drop their events"


async def test_health_is_answered_starting_at_once(tmp_path):
    async with starting(tmp_path) as (_, tcp, _unix):
        stream = await tcp()
        await stream.send_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        with trio.fail_after(2):
            (answer,) = answers(await read_all(stream))
        assert (answer.status, answer.json["healthy"], answer.json["problems"]) == (503, False, ["starting"])


async def test_clients_that_go_while_they_wait_do_no_harm(tmp_path):
    async with receiving(tmp_path / "o.db") as harness, starting(tmp_path) as (server, tcp, unix):
        for connect in (tcp, unix):
            stream = await connect()
            await stream.send_all(POST)
            await stream.aclose()
        await trio.sleep(0.05)
        server.open(harness.server)
        harness.shutdown.set()


async def test_silent_clients_of_a_long_start_are_served_once_it_is_open(tmp_path, monkeypatch):
    monkeypatch.setattr("sidecar.receive.starting.WAIT_S", 0.1)
    async with receiving(tmp_path / "o.db") as harness, starting(tmp_path) as (server, tcp, unix):
        lines, over_http = await unix(), await tcp()
        await trio.sleep(0.3)
        server.open(harness.server)
        await lines.send_all(BODY + b"\n")
        assert json.loads(await lines.receive_some(4096)) == {"success": True, "accepted": 1}
        await over_http.send_all(POST)
        assert answers(bytes(await over_http.receive_some(4096)))[0].status == 200
        harness.shutdown.set()


async def test_a_silent_client_of_a_long_start_does_not_hold_up_the_stop(tmp_path, monkeypatch):
    monkeypatch.setattr("sidecar.receive.starting.WAIT_S", 0.1)
    async with starting(tmp_path) as (server, _tcp, unix):
        await unix()
        await trio.sleep(0.3)
        server.shutdown.set()
        with trio.fail_after(5):
            await server.ended.wait()


async def test_lines_that_begin_with_a_blank_are_answered_in_json(tmp_path, monkeypatch):
    monkeypatch.setattr("sidecar.receive.starting.WAIT_S", 0.1)
    async with starting(tmp_path) as (_server, _tcp, unix):
        lines = await unix()
        await lines.send_all(b"\n" + BODY + b"\n")
        assert json.loads(await lines.receive_some(4096))["code"] == "busy"
