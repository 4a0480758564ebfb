"""How a connection ends: failing handlers, hangups, streams, shutdown."""

import h11
import pytest
import trio
import trio.testing
from http_wire import answers, post, served

from sidecar.http import Hangup, IdleConnections, Raw, Response, Shutdown, serve_connection


async def test_handler_error_is_answered_500_and_reported():
    async def handler(request):
        raise RuntimeError("mistake")

    async with served(handler) as client:
        await client.send(post(b"x") + post(b"y"))
        ((status, headers, body),) = answers(await client.until_quiet())
        assert (status, headers[b"connection"]) == (500, b"close")
        assert b"mistake" not in body
        assert [str(error) for error in client.errors] == ["mistake"]


async def test_hangup_closes_without_an_answer():
    async def handler(request):
        return Hangup() if request.body == b"x" else Response(200, b"before")

    async with served(handler) as client:
        await client.send(post(b"a") + post(b"x") + post(b"b"))
        assert [body for _, _, body in answers(await client.rest())] == [b"before"]


async def test_raw_sends_exactly_its_bytes():
    async def parts():
        yield b"HTTP/1.1 2"
        yield b""
        yield b"01 half an ans"

    async def handler(request):
        return Raw(parts())

    async with served(handler) as client:
        await client.send(post())
        assert await client.rest() == b"HTTP/1.1 201 half an ans"


async def counting(upto: int, closed: list[bool]):
    try:
        for number in range(upto):
            yield b"%d," % number
            await trio.sleep(1)
        yield b""
    finally:
        closed.append(True)


@pytest.mark.parametrize(("version", "chunked"), [(b"1.1", True), (b"1.0", False)])
async def test_stream_arrives_complete_and_ends_the_connection(autojump_clock, version, chunked):
    closed = []

    async def handler(request):
        return Response(200, counting(3, closed), "text/plain")

    async with served(handler) as client:
        await client.send(post(version=version))
        received = await client.rest()
        ((status, headers, body),) = answers(received)
        assert (status, body, headers[b"connection"]) == (200, b"0,1,2,", b"close")
        assert (b"transfer-encoding" in headers) is chunked
        assert closed == [True]


async def test_silent_stream_ends_when_its_client_disconnects(autojump_clock):
    closed = []

    async def silent():
        try:
            yield b"first"
            await trio.sleep_forever()
        finally:
            closed.append(True)

    async def handler(request):
        return Response(200, silent())

    async with served(handler) as client:
        await client.send(post())
        await trio.sleep(1)
        assert closed == []
        await client.stream.aclose()
        await client.ended.wait()
        assert closed == [True]


async def test_a_stream_may_wait_longer_than_idle_connections(autojump_clock):
    """The head set the time of an idle connection, which nothing took back before the first part."""

    async def slow():
        for part in (b"first", b"second"):
            await trio.sleep(1_000)
            yield part

    async def handler(request):
        return Response(200, slow())

    for idle in (IdleConnections(120), None):
        async with served(handler, idle=idle) as client:
            await client.send(post())
            ((_, _, body),) = answers(await client.rest())
            assert body == b"firstsecond"


async def test_failing_stream_ends_without_its_last_chunk(autojump_clock):
    async def failing():
        yield b"half"
        raise RuntimeError("mistake")

    async def handler(request):
        return Response(200, failing())

    async with served(handler) as client:
        await client.send(post())
        received = await client.rest()
        assert received.endswith(b"half\r\n")
        with pytest.raises(h11.RemoteProtocolError):
            answers(received)
        assert len(client.errors) == 1


async def test_shutdown_closes_an_idle_connection_at_once():
    async with served() as client:
        await client.send(post(b"x"))
        await client.until_quiet()
        client.shutdown.set()
        assert await client.rest() == b""


async def test_shutdown_waits_a_second_for_the_first_byte(autojump_clock):
    async with served() as late, served() as silent:
        await trio.testing.wait_all_tasks_blocked()
        late.shutdown.set()
        silent.shutdown.set()
        await trio.sleep(0.9)
        assert not silent.server_closed.is_set()
        await late.send(post(b"x"))
        ((status, headers, body),) = answers(await late.rest())
        assert (status, headers[b"connection"], body) == (200, b"close", b"x")
        with trio.fail_after(0.2):
            assert await silent.rest() == b""


async def test_shutdown_finishes_a_request_that_began_to_arrive():
    async with served() as client:
        await client.send(post(b"one") + post(b"two")[:10])
        received = await client.until_quiet()
        client.shutdown.set()
        await trio.testing.wait_all_tasks_blocked()
        await client.send(post(b"two")[10:])
        first, second = answers(received + await client.until_quiet())
        assert b"connection" not in first[1]
        assert (second[1][b"connection"], second[2]) == (b"close", b"two")


async def test_shutdown_lets_a_handler_finish_and_sends_close():
    release = trio.Event()

    async def handler(request):
        await release.wait()
        return Response(200, request.body)

    async with served(handler) as client:
        await client.send(post(b"one") + post(b"two"))
        await trio.testing.wait_all_tasks_blocked()
        client.shutdown.set()
        release.set()
        first, second = answers(await client.until_quiet())
        assert b"connection" not in first[1]
        assert (second[1][b"connection"], second[2]) == (b"close", b"two")


async def test_request_arriving_with_the_shutdown_is_answered():
    done = []

    async def handler(request):
        await trio.lowlevel.checkpoint()
        done.append(request.body)
        return Response(200, request.body)

    async with served(handler) as client:
        await trio.testing.wait_all_tasks_blocked()
        # No checkpoint between these two lines: the server wakes up with the bytes and with its scope cancelled.
        client.server_end.receive_stream.put_data(post(b"x"))
        client.shutdown.set()
        ((_, headers, body),) = answers(await client.until_quiet())
        assert (body, headers[b"connection"], done) == (b"x", b"close", [b"x"])


@pytest.mark.parametrize("idle", [None, IdleConnections(120)], ids=["own deadline", "idle connections"])
@pytest.mark.parametrize("when", ["before the answer", "while it is sent"])
async def test_shutdown_waits_ten_seconds_for_a_client_to_read(autojump_clock, when, idle):
    """It waited for as long as a client may be idle, two minutes, and systemd killed the process after 30 s."""
    shutdown, handled = Shutdown(), trio.Event()
    client, server = trio.testing.lockstep_stream_pair()  # it buffers nothing

    async def handler(request):
        await handled.wait()
        return Response(200, b"x")

    async with trio.open_nursery() as nursery:
        if idle is not None:
            nursery.start_soon(idle.run)

        async def serve():
            await serve_connection(server, handler, shutdown=shutdown, idle=idle)
            nursery.cancel_scope.cancel()

        nursery.start_soon(serve)
        await client.send_all(post() * 3)
        await trio.sleep(20)
        if when == "while it is sent":
            handled.set()
            await trio.testing.wait_all_tasks_blocked()
        began_s = trio.current_time()
        shutdown.set()
        handled.set()
    assert 10 <= trio.current_time() - began_s <= 13


async def test_shutdown_ends_a_stream(autojump_clock):
    closed = []

    async def handler(request):
        return Response(200, counting(10_000, closed))

    async with served(handler) as client:
        await client.send(post())
        await trio.sleep(3.5)
        client.shutdown.set()
        assert (await client.rest()).endswith(b"3,\r\n")
        assert closed == [True]


async def test_head_of_a_stream_has_no_body(autojump_clock):
    closed = []

    async def parts():
        try:
            yield b"never"
        finally:
            closed.append(True)

    async def handler(request):
        return Response(200, parts())

    async with served(handler) as client:
        await client.send(post(method=b"HEAD"))
        received = await client.rest()
        assert b"200 OK" in received
        assert received.endswith(b"\r\n\r\n")


async def test_header_with_a_line_break_is_never_sent():
    async def handler(request):
        return Response(200, b"", headers=(("X-A", "b\r\nX-Evil: 1"),))

    async with served(handler) as client:
        await client.send(post())
        received = await client.rest()
        assert b"X-Evil" not in received
        ((status, _, _),) = answers(received)
        assert status == 500
        assert [type(error) for error in client.errors] == [ValueError]
