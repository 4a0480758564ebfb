"""Lanes against misbehaving servers: each outcome is classified, and the lane stays usable.

The servers are on loopback. The deadlines are real but short, since sockets do not run on a virtual clock.
"""

import random
import socket
import ssl
import struct

import pytest
import trio
import trustme
from px_servers import CREATED, EVENT, KEY, LoopbackServer, answer, answering, read_request, serving

from sidecar.config import PxConfig, Secret
from sidecar.errors import ConfigError
from sidecar.px import Kind, NotSent, PxAnswer, PxRequest, Unknown, classify
from sidecar.px.transport import BODY_MAX_BYTES, HttpxNetwork

SHORT_S = 0.4


async def misbehave_once(stream, server, behave):
    """Handle the first request with ``behave``, and answer all later ones, on any connection, normally."""
    if not server.requests:
        await read_request(stream, server)
        await behave(stream)
    else:
        await answering(CREATED)(stream, server)


class Never:
    """A departure that is never due."""

    def due_s(self):
        return trio.current_time() + 0.05

    def left(self):
        raise AssertionError


def reset(stream: trio.SocketStream) -> None:
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def never_answer(stream):
    await trio.sleep_forever()


async def close(stream):
    await stream.aclose()


async def reset_after_processing(stream):
    reset(stream)
    await stream.aclose()


async def half_a_status_line(stream):
    await stream.send_all(b"HTTP/1.1 2")
    await trio.sleep_forever()


async def drip_headers(stream):
    for byte in CREATED:
        await stream.send_all(bytes([byte]))
        await trio.sleep(0.05)


async def garbage(stream):
    await stream.send_all(b"\x00\xff\x13 this is not HTTP \r\n\r\n" * 10)
    await trio.sleep_forever()


async def another_protocol(stream):
    await stream.send_all(b"SSH-2.0-OpenSSH_9.2\r\n")
    await trio.sleep_forever()


UNKNOWN = [never_answer, close, reset_after_processing, half_a_status_line, drip_headers, garbage]
UNKNOWN += [another_protocol]


@pytest.mark.parametrize("behave", UNKNOWN, ids=lambda behave: behave.__name__)
async def test_an_unreadable_answer_is_unknown_and_the_lane_usable(behave):
    async with serving(lambda stream, server: misbehave_once(stream, server, behave)) as server:
        lane = server.network(SHORT_S).lane()
        assert isinstance(await lane.send(EVENT), Unknown)
        assert repr(lane).endswith("idle, no connection>"), "a connection in an unknown state is closed"
        assert await lane.send(EVENT) == PxAnswer(201, b"{}", None, "application/json")
        assert repr(lane).endswith("idle, a connection>")
        await lane.aclose()
    assert len(server.requests) == 2, "a lane never retries by itself"


async def drip_body(stream):
    await stream.send_all(b"HTTP/1.1 503 Busy\r\nRetry-After: 7\r\nContent-Length: 1000\r\n\r\n")
    while True:
        await stream.send_all(b"x")
        await trio.sleep(0.02)


async def body_breaks_off(stream):
    await stream.send_all(b"HTTP/1.1 503 Busy\r\nRetry-After: 7\r\nContent-Length: 1000\r\n\r\nxxx")
    await stream.aclose()


async def invalid_chunks(stream):
    await stream.send_all(b"HTTP/1.1 503 Busy\r\nRetry-After: 7\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\nqqq\r\n")
    await trio.sleep_forever()


async def endless_body(stream):
    await stream.send_all(b"HTTP/1.1 503 Busy\r\nRetry-After: 7\r\n\r\n")
    while True:
        await stream.send_all(b"x" * 50_000)


CUT = [drip_body, body_breaks_off, invalid_chunks, endless_body]


@pytest.mark.parametrize("behave", CUT, ids=lambda behave: behave.__name__)
async def test_an_unfinished_answer_counts_by_its_status(behave):
    async with serving(lambda stream, server: misbehave_once(stream, server, behave)) as server:
        lane = server.network(SHORT_S).lane()
        reply = await lane.send(EVENT)
        assert isinstance(reply, PxAnswer)
        assert (reply.status, reply.retry_after, reply.cut) == (503, "7", True)
        assert reply.body.startswith(b"x")
        assert len(reply.body) <= BODY_MAX_BYTES
        assert repr(lane).endswith("idle, no connection>")
        assert (await lane.send(EVENT)).status == 201
        await lane.aclose()


ANSWERS = {
    "chunked": (
        b"HTTP/1.1 400 Bad\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
        PxAnswer(400, b"abcde"),
    ),
    "empty": (b"HTTP/1.1 204 No Content\r\n\r\n", PxAnswer(204)),
    "redirect": (answer("302 Found", b"", b"Location: http://127.0.0.1:1/\r\n"), PxAnswer(302)),
    "web page": (
        answer("403 Forbidden", b"<!doctype html>", b"content-type: text/html\r\n"),
        PxAnswer(403, b"<!doctype html>", None, "text/html"),
    ),
    "early hints": (
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + CREATED,
        PxAnswer(201, b"{}", None, "application/json"),
    ),
    "odd reason": (b"HTTP/1.1 429 \xe9\r\nRETRY-AFTER: 5\r\nContent-Length: 0\r\n\r\n", PxAnswer(429, b"", "5")),
    "exactly the limit": (answer("400 Bad", b"y" * BODY_MAX_BYTES), PxAnswer(400, b"y" * BODY_MAX_BYTES)),
}


@pytest.mark.parametrize("name", ANSWERS)
async def test_answers_share_one_connection(name):
    data, expected = ANSWERS[name]
    async with serving(answering(data)) as server:
        lane = server.network().lane()
        assert [await lane.send(EVENT) for _ in range(3)] == [expected] * 3
        assert server.connections == 1
        await lane.aclose()


async def test_a_connection_closed_while_idle_is_replaced():
    async def one_answer(stream, server):
        await read_request(stream, server)
        await stream.send_all(CREATED)

    async with serving(one_answer) as server:
        lane = server.network().lane()
        for _ in range(3):
            assert (await lane.send(EVENT)).status == 201
            await trio.testing.wait_all_tasks_blocked(0.02)  # let the end of file arrive
        assert server.connections == 3
        await lane.aclose()


async def test_a_connection_closed_during_the_request_is_unknown():
    async def close_on_the_second(stream, server):
        await read_request(stream, server)
        await stream.send_all(CREATED)
        await stream.receive_some(10)
        reset(stream)

    async with serving(close_on_the_second) as server:
        lane = server.network().lane()
        assert (await lane.send(EVENT)).status == 201
        assert isinstance(await lane.send(EVENT), Unknown)
        assert (await lane.send(EVENT)).status == 201
        await lane.aclose()


async def test_an_answer_before_the_request_was_read_counts():
    async def early(stream, server):
        await stream.receive_some(1)
        await stream.send_all(answer("413 Too Large", b"", b"Connection: close\r\n"))
        await stream.send_eof()
        while await stream.receive_some():
            pass

    async with serving(early) as server:
        lane = server.network().lane()
        assert (await lane.send(PxRequest("POST", EVENT.path, b"x" * 3_000_000))).status == 413
        await lane.aclose()


def unused_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


class Resolver(trio.abc.HostnameResolver):
    def __init__(self, *, hangs: bool) -> None:
        self.hangs = hangs

    async def getaddrinfo(self, host, port, family=0, type=0, proto=0, flags=0):
        if self.hangs:
            await trio.sleep_forever()
        raise socket.gaierror(-2, "Name or service not known")

    async def getnameinfo(self, sockaddr, flags):
        raise NotImplementedError


@pytest.mark.parametrize("hangs", [False, True])
async def test_a_failed_or_hanging_name_resolution_is_not_sent(hangs):
    trio.socket.set_custom_hostname_resolver(Resolver(hangs=hangs))
    lane = HttpxNetwork(PxConfig(base_url="https://px.example"), Secret(KEY), SHORT_S).lane()
    reply = await lane.send(EVENT)
    trio.socket.set_custom_hostname_resolver(None)
    assert isinstance(reply, NotSent)
    assert "px.example" in reply.why
    assert hangs or reply.why == "connect error: px.example: Name or service not known"
    assert hangs or "DNS" in reply.advice


async def test_a_refused_connection_is_not_sent_and_the_lane_recovers():
    port = unused_port()
    lane = LoopbackServer(port).network().lane()
    reply = await lane.send(EVENT)
    assert reply == NotSent(f"connect error: 127.0.0.1 port {port}: Connection refused")
    listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        await nursery.start(
            trio.serve_listeners, lambda stream: answering(CREATED)(stream, LoopbackServer(port)), listeners
        )
        assert (await lane.send(EVENT)).status == 201
        await lane.aclose()
        nursery.cancel_scope.cancel()


async def test_a_connection_that_is_never_accepted_is_not_sent():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        fillers = [socket.socket() for _ in range(3)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        lane = LoopbackServer(listener.getsockname()[1]).network(SHORT_S).lane()
        reply = await lane.send(EVENT)
        for filler in fillers:
            filler.close()
    assert isinstance(reply, NotSent)


# --- TLS and proxies ---


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
def ca_file(authority, tmp_path):
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return str(tmp_path / "ca.pem")


def over_tls(authority, name="127.0.0.1"):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(name).configure_cert(context)

    async def handle(stream, server):
        await answering(CREATED)(trio.SSLStream(stream, context, server_side=True, https_compatible=True), server)

    return handle


async def test_a_certificate_of_the_ca_file_is_trusted(authority, ca_file):
    async with serving(over_tls(authority)) as server:
        lane = server.network(base_url=f"https://127.0.0.1:{server.port}", ca_file=ca_file).lane()
        assert [(await lane.send(EVENT)).status for _ in range(2)] == [201, 201]
        assert server.connections == 1
        await lane.aclose()


async def test_an_untrusted_certificate_is_not_sent(authority):
    async with serving(over_tls(authority)) as server:
        lane = server.network(base_url=f"https://127.0.0.1:{server.port}").lane()
        reply = await lane.send(EVENT)
    assert isinstance(reply, NotSent)
    assert "certificate" in reply.why
    assert "px.ca_file" in reply.advice
    assert not server.requests


async def test_a_certificate_for_another_name_is_not_sent(authority, ca_file):
    async with serving(over_tls(authority, "elsewhere.example")) as server:
        lane = server.network(base_url=f"https://127.0.0.1:{server.port}", ca_file=ca_file).lane()
        assert isinstance(await lane.send(EVENT), NotSent)


async def test_a_server_without_tls_is_named_as_such():
    async def plain(stream, server):
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with serving(plain) as server:
        reply = await server.network(base_url=f"https://127.0.0.1:{server.port}").lane().send(EVENT)
    assert isinstance(reply, NotSent)
    assert "does not speak TLS" in reply.advice


async def test_a_proxy_that_is_away_is_named_as_such():
    lane = LoopbackServer(0).network(base_url="https://px.example", proxy=f"http://127.0.0.1:{unused_port()}").lane()
    reply = await lane.send(EVENT)
    await lane.aclose()
    assert isinstance(reply, NotSent)
    assert "the proxy in px.proxy runs" in reply.advice


async def test_an_unanswered_tls_handshake_is_not_sent(ca_file):
    async def silent(stream, server):
        await trio.sleep_forever()

    async with serving(silent) as server:
        lane = server.network(SHORT_S, base_url=f"https://127.0.0.1:{server.port}", ca_file=ca_file).lane()
        assert isinstance(await lane.send(EVENT), NotSent)


async def test_plain_http_goes_through_the_proxy():
    async with serving(answering(CREATED)) as server:
        lane = server.network(
            base_url="http://localhost:9", proxy=f"http://me:pass-word@127.0.0.1:{server.port}"
        ).lane()
        assert (await lane.send(EVENT)).status == 201
        assert server.requests[0].startswith(b"POST http://localhost:9/v1/events/custom HTTP/1.1\r\n")
        assert b"Proxy-Authorization: Basic " in server.requests[0]
        await lane.aclose()


BROKEN_HEAD = b"HTTP/1.1 201 Created\r\nBad Name: 1\r\n\r\n{}"


def tunnel(authority, answers, connect_answer=b"HTTP/1.1 200 Connection established\r\n\r\n"):
    """A proxy that is the destination of its own tunnels, too."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("px.example").configure_cert(context)

    async def handle(stream, server):
        await read_request(stream, server)
        await stream.send_all(connect_answer)
        inner = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
        for data in answers:
            if await read_request(inner, server):
                await inner.send_all(data)

    return handle


@pytest.mark.parametrize("first", [BROKEN_HEAD, b"HTTP/1.1 204 No Content\r\nX: y\r\n"], ids=["broken head", "cut off"])
async def test_the_status_line_decides_through_a_proxy_too(authority, ca_file, first):
    """h11 refused the answer, and the event was sent again for as long as the server answered so."""
    async with serving(tunnel(authority, [first])) as server:
        proxy = f"http://127.0.0.1:{server.port}"
        lane = server.network(0.5, base_url="https://px.example", proxy=proxy, ca_file=ca_file).lane()
        reply = await lane.send(EVENT)
        assert (reply.status, reply.cut) == (int(first[9:12]), True)
        assert server.requests[0].startswith(b"CONNECT px.example:443 ")
        await lane.aclose()
    async with serving(answering(BROKEN_HEAD)) as server:
        lane = server.network(base_url="http://localhost:9", proxy=f"http://127.0.0.1:{server.port}").lane()
        assert [(await lane.send(EVENT)).status for _ in range(2)] == [201, 201]
        assert server.connections == 2
        await lane.aclose()


@pytest.mark.parametrize(
    "first",
    [b"HTTP/1.1 204 No Content\r\nX: y\r\n", b"HTTP/1.1 201 Created\r\nContent-Length: 9\r\n\r\n{}"],
    ids=["head", "body"],
)
async def test_a_delivery_that_stalls_through_a_proxy_is_ended(authority, ca_file, first, monkeypatch):
    """The next event of the user waited for the whole timeout."""
    monkeypatch.setattr("sidecar.px.proxy_lane.REST_S", 0.2)

    async def stalling(stream, server):
        await tunnel(authority, [first])(stream, server)
        await trio.sleep_forever()

    async with serving(stalling) as server:
        proxy = f"http://127.0.0.1:{server.port}"
        lane = server.network(30.0, base_url="https://px.example", proxy=proxy, ca_file=ca_file).lane()
        with trio.fail_after(5):
            assert (await lane.send(EVENT)).status == int(first[9:12])
        await lane.aclose()


async def test_the_answer_to_connect_is_no_answer_of_px(authority, ca_file):
    answer_to_connect = b"HTTP/1.1 201 Created\r\nBad Name: 1\r\n\r\n"
    async with serving(tunnel(authority, [], answer_to_connect)) as server:
        proxy = f"http://127.0.0.1:{server.port}"
        lane = server.network(base_url="https://px.example", proxy=proxy, ca_file=ca_file).lane()
        assert not isinstance(await lane.send(EVENT), PxAnswer)
        assert len(server.requests) == 1
        await lane.aclose()


async def test_bytes_behind_a_body_are_no_answer_through_a_proxy(authority, ca_file):
    """They were taken for the answer to the next event, which PX then never got."""
    async with serving(tunnel(authority, [CREATED + CREATED, CREATED])) as server:
        proxy = f"http://127.0.0.1:{server.port}"
        lane = server.network(base_url="https://px.example", proxy=proxy, ca_file=ca_file).lane()
        assert [(await lane.send(EVENT)).status for _ in range(2)] == [201, 201]
        assert sum(request.startswith(b"POST ") for request in server.requests) == 2
        assert server.connections == 2
        await lane.aclose()


async def test_a_tunnel_is_used_again(authority, ca_file):
    async with serving(tunnel(authority, [CREATED, CREATED])) as server:
        proxy = f"http://127.0.0.1:{server.port}"
        lane = server.network(base_url="https://px.example", proxy=proxy, ca_file=ca_file).lane()
        assert [(await lane.send(EVENT)).status for _ in range(2)] == [201, 201]
        assert server.connections == 1
        await lane.aclose()


@pytest.mark.parametrize(
    ("status", "expected"), [("407 Proxy Authentication Required", PxAnswer), ("502 Bad", NotSent)]
)
async def test_a_refusal_of_the_proxy_is_not_an_answer_of_px(status, expected):
    async with serving(answering(answer(status, b"no"))) as server:
        lane = server.network(
            base_url="https://px.example", proxy=f"http://me:pass-word@127.0.0.1:{server.port}"
        ).lane()
        reply = await lane.send(EVENT)
        assert isinstance(reply, expected)
        assert expected is PxAnswer or "px.example: change its rules" in reply.advice
        assert KEY.encode() not in b"".join(server.requests), "the proxy must not see the key"
        await lane.aclose()


@pytest.mark.parametrize("answered", [b"", b"SSH-2.0-OpenSSH_9.2\r\n"])
async def test_a_proxy_that_opens_no_tunnel_has_sent_nothing(answered):
    """It counted as ambiguous: each event backed off by itself and was called a possible duplicate."""

    async def hang_up(stream, server):
        await read_request(stream, server)
        await stream.send_all(answered)

    async with serving(hang_up) as server:
        proxy = f"http://127.0.0.1:{server.port}"
        lane = server.network(base_url="https://px.example", proxy=proxy).lane()
        reply = await lane.send(EVENT)
        await lane.aclose()
    assert isinstance(reply, NotSent)
    assert "the proxy in px.proxy runs" in reply.advice


async def test_nothing_is_sent_through_a_proxy_before_it_may_leave():
    """The headers alone are no event: PX drops a request whose body does not come."""
    async with serving(answering(CREATED)) as server:
        proxy = f"http://127.0.0.1:{server.port}"
        lane = server.network(SHORT_S, base_url="http://localhost:9", proxy=proxy).lane()
        reply = await lane.send(EVENT, Never())
        await lane.aclose()
    assert isinstance(reply, NotSent)
    assert reply.held


async def test_a_connection_without_permission_is_not_an_absent_px():
    """In a fleet whose day was spent, status said that PX cannot be reached, and to check the network."""
    async with serving(answering(CREATED)) as server:
        lane = server.network(SHORT_S).lane()
        reply = await lane.send(EVENT, Never())
        await lane.aclose()
    assert server.requests == []
    assert isinstance(reply, NotSent)
    assert reply.held
    assert classify(reply, wall_ms=0).kind is Kind.HELD


async def test_proxies_in_the_environment_are_ignored(monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{unused_port()}")
    async with serving(answering(CREATED)) as server:
        lane = server.network().lane()
        assert (await lane.send(EVENT)).status == 201
        await lane.aclose()


async def test_cookies_are_not_sent_back():
    async with serving(answering(answer("201 Created", b"", b"Set-Cookie: a=b\r\n"))) as server:
        lane = server.network().lane()
        await lane.send(EVENT)
        await lane.send(EVENT)
        assert b"cookie" not in server.requests[1].lower()
        await lane.aclose()


# --- secrets ---


async def test_a_new_key_is_sent_on_open_connections_too():
    async with serving(answering(CREATED)) as server:
        network = server.network()
        lane = network.lane()
        await lane.send(EVENT)
        network.use_key(Secret("another-key"))
        await lane.send(EVENT)
        await lane.aclose()
        assert KEY.encode() in server.requests[0]
        assert b"X-APTRINSIC-API-KEY: another-key" in server.requests[1]
        assert server.connections == 1
        assert network.mask_secrets(f"{KEY} another-key".encode()) == b"**** ****", "an answer to the old one may come"


async def test_an_echoed_secret_is_masked_in_the_answer():
    async def echo(stream, server):
        request = await read_request(stream, server)
        headers = b"Retry-After: %s\r\nContent-Type: %s\r\n" % (KEY.encode(), KEY.encode())
        await stream.send_all(answer("400 Bad", request, headers))

    async with serving(echo) as server:
        network = server.network()
        lane = network.lane()
        reply = await lane.send(EVENT)
        assert KEY.encode() in server.requests[0]
        assert KEY not in repr((reply, network, lane))
        assert b"X-APTRINSIC-API-KEY: ****" in reply.body
        await lane.aclose()


@pytest.mark.parametrize("key", ["", "with blank", "line\nbreak", "ключ"])
def test_a_key_unfit_for_a_header_is_refused_without_showing_it(key):
    with pytest.raises(ConfigError) as caught:
        HttpxNetwork(PxConfig(), Secret(key), 1)
    assert not key or key not in str(caught.value)


@pytest.mark.parametrize("proxy", ["ftp://me:pass-word@host", "socks5://me:pass-word@host:1", "pass-word", "http://"])
def test_an_invalid_proxy_is_refused_without_its_password(proxy):
    with pytest.raises(ConfigError) as caught:
        HttpxNetwork(PxConfig(proxy=proxy), Secret(KEY), 1)
    assert "pass-word" not in str(caught.value)


def test_a_proxy_that_cannot_be_looked_up_is_refused():
    """A look-up of such a name raises UnicodeError, which no lane expects."""
    with pytest.raises(ConfigError, match="parts between dots"):
        HttpxNetwork(PxConfig(proxy="http://me:pass-word@a..b:3128"), Secret(KEY), 1)


def test_an_unreadable_certificate_file_is_refused(tmp_path):
    (tmp_path / "not.pem").write_text("not a certificate")
    for name in ("missing.pem", "not.pem"):
        with pytest.raises(ConfigError, match=name):
            HttpxNetwork(PxConfig(ca_file=str(tmp_path / name)), Secret(KEY), 1)


# --- cancellation (sidecar/px/README.md#what-a-lane-costs) ---


async def test_lanes_survive_cancellation_at_any_moment():
    async def slowly(stream, server):
        rng = random.Random(server.connections)
        while await read_request(stream, server):
            await trio.sleep(rng.uniform(0, 0.004))
            await stream.send_all(CREATED[:30])
            await trio.sleep(rng.uniform(0, 0.002))
            await stream.send_all(CREATED[30:])

    rng, outcomes = random.Random(7), {"answered": 0, "cancelled": 0}

    async def send_and_cancel(lane):
        """Cancel about half of the requests, at any speed of the machine."""
        typical_s = 0.006
        for _ in range(40):
            with trio.move_on_after(rng.uniform(0, 2 * typical_s)) as scope:
                assert (await lane.send(EVENT)).status == 201
            typical_s *= 1.25 if scope.cancelled_caught else 0.8
            outcomes["cancelled" if scope.cancelled_caught else "answered"] += 1

    async with serving(slowly) as server:
        network = server.network()
        lanes = [network.lane() for _ in range(8)]
        async with trio.open_nursery() as nursery:
            for lane in lanes:
                nursery.start_soon(send_and_cancel, lane)
        assert min(outcomes.values()) > 10, "the test needs both outcomes"
        for lane in lanes:
            assert (await lane.send(EVENT)).status == 201
            await lane.aclose()


async def _two_sends(cancel_before=None):
    """Send twice, cancelled before the step of that number if it is reached. Return the steps begun and whether it was."""

    class Steps(trio.abc.Instrument):
        begun = 0

        def before_task_step(self, task):
            if task is sender:
                if self.begun == cancel_before:
                    scope.cancel()
                self.begun += 1

    sender = trio.lowlevel.current_task()
    async with serving(answering(CREATED)) as server:
        lane, steps = server.network().lane(), Steps()
        with trio.CancelScope() as scope:
            trio.lowlevel.add_instrument(steps)
            await lane.send(EVENT)
            await lane.send(EVENT)
        trio.lowlevel.remove_instrument(steps)
        assert (await lane.send(EVENT)).status == 201
        await lane.aclose()
    return steps.begun, scope.cancelled_caught


async def test_a_lane_survives_cancellation_at_each_step():
    """The number of steps is counted in each run, so that a change in trio or the kernel cannot leave steps untested."""
    steps, _ = await _two_sends()
    assert steps > 5
    cancelled = [(await _two_sends(number))[1] for number in range(steps)]
    assert cancelled[: steps - 2] == [True] * (steps - 2)  # the last ones may have nothing left to cancel


async def test_a_lane_carries_one_request_at_a_time():
    async with serving(lambda stream, server: misbehave_once(stream, server, never_answer)) as server:
        lane = server.network().lane()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lane.send, EVENT)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(AssertionError):
                await lane.send(EVENT)
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "proxy",
    [
        "http://user:p#MARKED@proxy:3128",
        "http://user:p/MARKED@proxy:3128",
        "http://u:?MARKED@h:1",
        "http://u#MARKED@h:1",
    ],
)
def test_a_proxy_password_with_special_characters_gets_a_hint(proxy):
    with pytest.raises(ConfigError, match="percent-encoded") as caught:
        HttpxNetwork(PxConfig(proxy=proxy), Secret(KEY), 1.0)
    assert "MARKED" not in str(caught.value)


@pytest.mark.parametrize(
    "proxy", ["proxy:3128", "socks5://proxy:1080", "http://proxy:99999", " http://proxy:1 ", "http://"]
)
def test_an_address_that_is_not_a_proxy_gets_the_right_form(proxy):
    with pytest.raises(ConfigError, match="write http://host:port or"):
        HttpxNetwork(PxConfig(proxy=proxy), Secret(KEY), 1.0)
