"""Accepting connections; and the server on real sockets and TLS."""

import errno
import logging
import ssl

import pytest
import trio
import trio.testing
import trustme
from http_wire import answers, echo

from sidecar.control import server as control_server
from sidecar.http import Hangup, Response, Shutdown, serve, serve_connection
from sidecar.observe import LogLines
from sidecar.receive import server as receive_server

REQUEST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi"


class FakeListener(trio.abc.Listener):
    """Accept what the test queues: a stream, or an error to raise."""

    def __init__(self) -> None:
        self._give, self._take = trio.open_memory_channel(1000)
        self.accepted = 0

    def connect(self) -> trio.abc.Stream:
        client, server = trio.testing.memory_stream_pair()
        self._give.send_nowait(server)
        return client

    def fail(self, error: Exception) -> None:
        self._give.send_nowait(error)

    async def accept(self):
        given = await self._take.receive()
        if isinstance(given, Exception):
            raise given
        self.accepted += 1
        return given

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


async def test_connections_beyond_the_limit_wait():
    listener = FakeListener()
    shutdown = Shutdown()

    async def connection(stream) -> None:
        await serve_connection(stream, echo, shutdown=shutdown)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: serve([listener], connection, max_connections=2, shutdown=shutdown))
        clients = [listener.connect() for _ in range(4)]
        await trio.testing.wait_all_tasks_blocked()
        assert listener.accepted == 2
        await clients[0].aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert listener.accepted == 3
        shutdown.set()


async def answered_after(number: int) -> list[BaseException]:
    """Fail to accept three times, then answer a client; return what was reported."""
    listener = FakeListener()
    reported: list[BaseException] = []
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                listener.fail(OSError(number, "not accepted"))
            client = listener.connect()
            nursery.start_soon(lambda: serve([listener], answer_one, max_connections=1, on_error=reported.append))
            await client.send_all(REQUEST)
            assert await client.receive_some() == b"answered"
            scope.cancel()
    return reported


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS])
async def test_accept_is_retried_when_resources_run_out(autojump_clock, number):
    reported = await answered_after(number)
    assert [error.errno for error in reported] == [number] * 3
    assert trio.current_time() == pytest.approx(0.3)


@pytest.mark.parametrize("number", [errno.ECONNABORTED, errno.EPROTO])
async def test_a_client_that_has_gone_is_no_error_of_the_listener(autojump_clock, number):
    """It ended the daemon where accept(2) reports such clients, as on macOS."""
    reported = await answered_after(number)
    assert reported == []
    assert trio.current_time() == 0


async def answer_one(stream) -> None:
    await stream.receive_some()
    await stream.send_all(b"answered")


async def test_other_accept_errors_are_raised():
    listener = FakeListener()
    listener.fail(OSError(errno.EBADF, "closed"))
    with pytest.raises(ExceptionGroup) as raised:
        await serve([listener], answer_one, max_connections=1)
    assert raised.group_contains(OSError, match="closed")


async def test_error_in_one_connection_does_not_end_another():
    listener = FakeListener()
    reported = []

    async def connection(stream) -> None:
        if await stream.receive_some() == b"bad":
            raise RuntimeError("mistake")
        await stream.send_all(b"fine")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: serve([listener], connection, max_connections=1, on_error=reported.append))
        bad, good = listener.connect(), listener.connect()
        await bad.send_all(b"bad")
        assert await bad.receive_some() == b""
        await good.send_all(b"good")
        assert await good.receive_some() == b"fine"
        nursery.cancel_scope.cancel()
    assert [str(error) for error in reported] == ["mistake"]


async def test_shutdown_ends_accepting_and_waits_for_connections():
    listener = FakeListener()
    shutdown = Shutdown()
    release, returned = trio.Event(), trio.Event()

    async def connection(stream) -> None:
        await release.wait()

    async def run() -> None:
        await serve([listener], connection, max_connections=5, shutdown=shutdown)
        returned.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        listener.connect()
        await trio.testing.wait_all_tasks_blocked()
        shutdown.set()
        shutdown.set()
        listener.connect()
        await trio.testing.wait_all_tasks_blocked()
        assert (listener.accepted, returned.is_set()) == (1, False)
        release.set()
    assert returned.is_set()


async def test_shutdown_before_the_start_accepts_nothing():
    shutdown = Shutdown()
    shutdown.set()
    listener = FakeListener()
    listener.connect()
    await serve([listener], answer_one, max_connections=5, shutdown=shutdown)
    assert listener.accepted == 0


@pytest.mark.parametrize("tls", [False, True])
async def test_a_closing_listener_serves_its_queue_and_no_later_client(tls):
    """Closed with clients in its queue, the kernel would reset them: some would send their request again."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    address = listener.socket.getsockname()
    served, shutdown = [], Shutdown()

    async def connection(stream) -> None:
        served.append(stream)

    clients = [await trio.open_tcp_stream(*address) for _ in range(3)]
    shutdown.set()
    accepting = trio.SSLListener(listener, ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)) if tls else listener
    await serve([accepting], connection, max_connections=2, shutdown=shutdown, close_listeners=True)
    assert len(served) == 2  # as many as there are slots
    with pytest.raises(OSError):
        await trio.open_tcp_stream(*address)
    for client in clients:
        await client.aclose()


async def tcp(handler, use) -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    shutdown = Shutdown()

    async def connection(stream) -> None:
        await serve_connection(stream, handler, shutdown=shutdown)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: serve(listeners, connection, max_connections=5, shutdown=shutdown))
        stream = await trio.open_tcp_stream("127.0.0.1", listeners[0].socket.getsockname()[1])
        await use(stream)
        await stream.aclose()
        shutdown.set()
    await listeners[0].aclose()


async def test_hangup_with_reset_sends_a_tcp_reset():
    async def handler(request):
        return Hangup(reset=True)

    async def use(stream) -> None:
        await stream.send_all(REQUEST)
        with pytest.raises(trio.BrokenResourceError, match="reset"):
            await stream.receive_some()

    await tcp(handler, use)


async def test_client_that_sends_too_much_reads_its_refusal():
    async def use(stream) -> None:
        await stream.send_all(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 50000000\r\n\r\n" + b"x" * 20_000_000)
        received = b""
        while data := await stream.receive_some():
            received += data
        assert answers(received)[0][0] == 413

    await tcp(echo, use)


async def test_large_answer_arrives_complete():
    async def handler(request):
        return Response(200, b"x" * 5_000_000)

    async def use(stream) -> None:
        await stream.send_all(REQUEST * 2)
        await stream.send_eof()
        received = bytearray()
        while data := await stream.receive_some():
            received += data
        assert [len(body) for _, _, body in answers(bytes(received))] == [5_000_000] * 2

    await tcp(handler, use)


async def test_tls_stream_is_served():
    authority = trustme.CA()
    server_context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(server_context)
    client_context = ssl.create_default_context()
    authority.configure_trust(client_context)
    client_end, server_end = trio.testing.memory_stream_pair()
    client = trio.SSLStream(client_end, client_context, server_hostname="localhost", https_compatible=True)
    server = trio.SSLStream(server_end, server_context, server_side=True, https_compatible=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_connection, server, echo)
        await client.send_all(REQUEST + b"nonsense\r\n\r\n")
        received = b""
        while data := await client.receive_some():
            received += data
            if b"bad_request" in received:
                await client.aclose()
                break
    good, refused = answers(received)
    assert (good[2], refused[0]) == (b"hi", 400)


@pytest.mark.parametrize("report", [receive_server._log_connection_error, control_server._log_error])
@pytest.mark.parametrize(
    ("number", "said"),
    [(errno.EMFILE, "raise LimitNOFILE"), (errno.ENFILE, "raise LimitNOFILE"), (errno.ENOMEM, "no memory left")],
)
def test_a_shortage_is_named_and_not_called_a_bug(report, number, said):
    """Of the control socket a missing descriptor was "a bug; report it"."""
    lines = LogLines()
    logging.getLogger("sidecar").addHandler(lines)
    try:
        report(OSError(number, "injected"))
    finally:
        logging.getLogger("sidecar").removeHandler(lines)
    (line,) = lines.after(0)
    assert said in line["message"]
    assert "bug" not in line["message"]
