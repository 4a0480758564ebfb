"""What a lane makes of answers that are odd or broken behind their status line, and which of them end the connection."""

from collections.abc import Awaitable, Callable

import httpcore
import pytest
import trio
import trio.testing
from px_servers import EVENT

from sidecar.px import Kind, PxAnswer, Unknown, classify
from sidecar.px.connection import LIFE_S, REST_S, ConnectFailed, DirectLane

OK = b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\n{}"
TIMEOUT_S = 30.0
PAGE = b"<html><title>Request Rejected</title>Your support ID is 42</html>"


class OddServer:
    """Memory streams that answer the first request with ``first`` and all later ones properly.

    ``closes`` ends the connection after ``first``; else it stays open and silent until the next request.
    """

    def __init__(self, nursery: trio.Nursery, first: bytes, *, closes: bool) -> None:
        self._nursery, self._first, self._closes = nursery, first, closes
        self.requests = self.connections = 0

    async def dial(self) -> trio.abc.Stream:
        self.connections += 1
        ours, theirs = trio.testing.memory_stream_pair()
        self._nursery.start_soon(self._serve, theirs)
        return ours

    async def _serve(self, stream: trio.StapledStream) -> None:
        async for data in stream:
            assert data.endswith(EVENT.body), "head and body come in one piece"
            self.requests += 1
            await stream.send_all(self._first if self.requests == 1 else OK)
            if self.requests == 1 and self._closes:
                await stream.aclose()
                return

    def lane(self, age_clock_s: Callable[[], float] = trio.current_time) -> DirectLane:
        url = httpcore.URL("http://px.example")
        headers = [(b"Host", b"px.example")]
        return DirectLane(
            self.dial, url, lambda: headers, timeout_s=TIMEOUT_S, mask=lambda data: data, age_clock_s=age_clock_s
        )


@pytest.fixture
async def answered(nursery) -> Callable[..., Awaitable[tuple[object, int, float]]]:
    """Return the reply to a first request, the connections after a second one, and the seconds that the first took."""

    async def ask(first: bytes, *, closes: bool = False) -> tuple[object, int, float]:
        server = OddServer(nursery, first, closes=closes)
        lane, began_s = server.lane(), trio.current_time()
        reply = await lane.send(EVENT)
        took_s = trio.current_time() - began_s
        assert await lane.send(EVENT) == PxAnswer(201, b"{}")
        assert server.requests == 2, "a lane never retries by itself"
        await lane.aclose()
        return reply, server.connections, took_s

    return ask


# name: bytes, whether the server then closes, the kind of the reply, whether the connection is used again
ODD = {
    "illegal header name": (b"HTTP/1.1 201 Created\r\nBad Name: 1\r\n\r\n", False, Kind.DELIVERED, False),
    "illegal header value": (b"HTTP/1.1 201 Created\r\nX: a\x00b\r\nContent-Length: 0\r\n\r\n", False, Kind.DELIVERED, False),
    "a line that is not a header": (b"HTTP/1.1 201 Created\r\nnonsense\r\n\r\n{}", True, Kind.DELIVERED, False),
    "two lengths": (
        b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}", False, Kind.DELIVERED, False,
    ),
    "gzip, chunked": (
        b"HTTP/1.1 201 Created\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", False, Kind.DELIVERED, False,
    ),
    "bytes behind the body": (OK + b"more", False, Kind.DELIVERED, False),
    "a second answer behind the body": (OK + b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n", False, Kind.DELIVERED, False),
    "a body behind 204": (b"HTTP/1.1 204 No Content\r\n\r\n{}", False, Kind.DELIVERED, False),
    "the head breaks off": (b"HTTP/1.1 201 Created\r\nContent-Le", True, Kind.DELIVERED, False),
    "the status line breaks off behind the status": (b"HTTP/1.1 201 Cr", True, Kind.DELIVERED, False),
    "the head never ends": (b"HTTP/1.1 204 No Content\r\nX: y\r\n", False, Kind.DELIVERED, False),
    "the body never ends": (b"HTTP/1.1 201 Created\r\nContent-Length: 9\r\n\r\n{}", False, Kind.DELIVERED, False),
    "broken chunks": (
        b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n", False, Kind.DELIVERED, False,
    ),
    "early hints, then a broken head": (
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 201 Created\r\nBad Name: 1\r\n\r\n", False, Kind.DELIVERED,
        False,
    ),
    "chunked": (b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", False, Kind.DELIVERED, True),
    "HTTP/1.0 until the end": (b"HTTP/1.0 201 Created\r\n\r\n{}", True, Kind.DELIVERED, False),
    "a web page as success": (
        b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(PAGE), PAGE), False, Kind.FIREWALL, True,
    ),
    "a web page behind a broken head": (b"HTTP/1.1 200 OK\r\nBad Name: 1\r\n\r\n" + PAGE, True, Kind.FIREWALL, False),
    "an error behind a broken head": (
        b"HTTP/1.1 429 Slow Down\r\nBad Name: 1\r\nRetry-After: 7\r\n\r\n", False, Kind.TOO_FAST, False,
    ),
    "another version": (b"HTTP/2 201\r\nContent-Length: 0\r\n\r\n", False, Kind.DELIVERED, False),
    "two blanks": (b"HTTP/1.1  201 Created\r\nContent-Length: 0\r\n\r\n", False, Kind.DELIVERED, False),
    "a blank line before it": (b"\r\n\r\nHTTP/1.1 201 Created\r\n\r\n{}", True, Kind.DELIVERED, False),
    "small letters": (b"http/1.1 204 no content\r\n\r\n", True, Kind.DELIVERED, False),
    "half a status": (b"HTTP/1.1 20", True, Kind.AMBIGUOUS, False),
    "a status of four digits": (b"HTTP/1.1 2010 Created\r\n\r\n", True, Kind.AMBIGUOUS, False),
    "only informational answers": (b"HTTP/1.1 100 Continue\r\n\r\n", True, Kind.AMBIGUOUS, False),
    "another protocol": (b"SSH-2.0-OpenSSH_9.2\r\n", True, Kind.AMBIGUOUS, False),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
async def test_the_status_line_decides(name, answered, autojump_clock):
    data, closes, kind, reused = ODD[name]
    reply, connections, took_s = await answered(data, closes=closes)
    verdict = classify(reply, wall_ms=0)
    assert verdict.kind is kind
    assert connections == (1 if reused else 2)
    assert took_s <= REST_S + 0.01, "what follows a delivery is not waited for"


async def test_retry_after_is_read_after_a_broken_header(answered, autojump_clock):
    reply, *_ = await answered(b"HTTP/1.1 429 Slow\r\nBad Name: 1\r\nRETRY-AFTER:  7 \r\n\r\n")
    assert (reply.status, reply.retry_after, reply.cut) == (429, "7", True)


async def test_an_answer_that_never_comes_is_unknown_after_the_timeout(answered, autojump_clock):
    reply, _, took_s = await answered(b"")
    assert isinstance(reply, Unknown)
    assert took_s == pytest.approx(TIMEOUT_S)


async def test_a_busy_connection_is_renewed_within_its_life(autojump_clock, nursery):
    """A change of DNS is followed under load; without it 40 of 40 requests went to the old address."""
    server = OddServer(nursery, OK, closes=False)
    lane = server.lane()
    dialed_s, used_s = trio.current_time(), 0.0
    while server.connections < 4:
        before = server.connections
        await lane.send(EVENT)
        if server.connections != before:
            dialed_s = trio.current_time()
        used_s = max(used_s, trio.current_time() - dialed_s)
        await trio.sleep(1)
    assert 0.5 * LIFE_S <= used_s <= LIFE_S
    await lane.aclose()


async def test_a_connection_that_was_idle_in_suspend_is_not_reused(autojump_clock, nursery):
    """httpcore counts CLOCK_MONOTONIC: the next event met a connection that the server had closed, and was ambiguous."""
    server, suspended_s = OddServer(nursery, OK, closes=False), 0.0
    lane = server.lane(lambda: trio.current_time() + suspended_s)
    for _ in range(2):
        await lane.send(EVENT)
    assert server.connections == 1
    suspended_s = 10.0
    await lane.send(EVENT)
    assert server.connections == 2
    await lane.aclose()


class Recorder:
    """A departure that is due ``after_s`` seconds after the connection is there."""

    def __init__(self, after_s: float) -> None:
        self.after_s, self.asked_s, self.left_s = after_s, 0.0, 0.0

    def due_s(self) -> float:
        self.asked_s = self.asked_s or trio.current_time()
        return self.asked_s + self.after_s

    def left(self) -> None:
        self.left_s = trio.current_time()


async def test_permission_to_send_is_asked_after_connecting(autojump_clock, nursery):
    server, connect_s = OddServer(nursery, OK, closes=False), 2.0

    async def slowly() -> trio.abc.Stream:
        await trio.sleep(connect_s)
        return await server.dial()

    lane = DirectLane(
        slowly,
        httpcore.URL("http://px.example"),
        lambda: [(b"Host", b"x")],
        timeout_s=TIMEOUT_S,
        mask=bytes,
        age_clock_s=lambda: 0.0,
    )
    departure, began_s = Recorder(after_s=3.0), trio.current_time()
    assert (await lane.send(EVENT, departure)).status == 201
    assert departure.asked_s - began_s == pytest.approx(connect_s)
    assert departure.left_s - departure.asked_s == pytest.approx(3.0)
    await lane.aclose()


async def test_a_failed_connection_leaves_nothing_and_reports_no_departure(autojump_clock):
    async def fail() -> trio.abc.Stream:
        raise ConnectFailed(Unknown("as dial says"))

    lane = DirectLane(fail, httpcore.URL("http://px.example"), list, timeout_s=TIMEOUT_S, mask=bytes)
    departure = Recorder(after_s=0.0)
    assert await lane.send(EVENT, departure) == Unknown("as dial says")
    assert departure.left_s == 0.0
