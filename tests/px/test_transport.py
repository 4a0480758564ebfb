"""Lanes against real servers that do exactly what DESIGN 4 fears, and stay usable after each.

The servers are on loopback and the deadlines real but short, since sockets do not run on a virtual clock.
"""

import random
import socket
import ssl
import struct

import pytest
import trio
import trustme
from px_servers import CREATED, EVENT, KEY, Peer, answer, answering, read_request, serving

from sidecar.config import Px, Secret
from sidecar.errors import ConfigError
from sidecar.px import Answer, NotSent, Request, Unknown
from sidecar.px.transport import BODY_MAX_BYTES, HttpxNetwork

SHORT_S = 0.15


async def once_badly(stream, peer, behave):
    """The first request meets ``behave``, all later ones, on any connection, are answered well."""
    if not peer.requests:
        await read_request(stream, peer)
        await behave(stream)
    else:
        await answering(CREATED)(stream, peer)


def reset(stream: trio.SocketStream) -> None:
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def say_nothing(stream):
    await trio.sleep_forever()


async def close(stream):
    await stream.aclose()


async def reset_after_processing(stream):
    reset(stream)
    await stream.aclose()


async def half_a_status_line(stream):
    await stream.send_all(b"HTTP/1.1 2")
    await trio.sleep_forever()


async def headers_without_end(stream):
    await stream.send_all(b"HTTP/1.1 201 Created\r\nContent-Le")
    await stream.aclose()


async def drip_headers(stream):
    for byte in CREATED:
        await stream.send_all(bytes([byte]))
        await trio.sleep(0.05)


async def garbage(stream):
    await stream.send_all(b"\x00\xff\x13 it is a trap \r\n\r\n" * 10)
    await trio.sleep_forever()


async def endless_headers(stream):
    await stream.send_all(b"HTTP/1.1 200 OK\r\n")
    while True:
        await stream.send_all(b"X-Filler: " + b"x" * 1000 + b"\r\n")


async def another_protocol(stream):
    await stream.send_all(b"SSH-2.0-OpenSSH_9.2\r\n")
    await trio.sleep_forever()


UNKNOWN = [say_nothing, close, reset_after_processing, half_a_status_line, headers_without_end, drip_headers, garbage]
UNKNOWN += [endless_headers, another_protocol]


@pytest.mark.parametrize("behave", UNKNOWN, ids=lambda behave: behave.__name__)
async def test_no_readable_answer_is_unknown_and_the_lane_stays_usable(behave):
    async with serving(lambda stream, peer: once_badly(stream, peer, behave)) as peer:
        lane = peer.network(SHORT_S).lane()
        assert isinstance(await lane.send(EVENT), Unknown)
        assert repr(lane).endswith("idle, no connection>"), "what is in doubt is given up"
        assert await lane.send(EVENT) == Answer(201, b"{}", None, "application/json")
        assert repr(lane).endswith("idle, a connection>")
        await lane.aclose()
    assert len(peer.requests) == 2, "nothing is sent again by itself"


async def drip_body(stream):
    await stream.send_all(b"HTTP/1.1 503 Busy\r\nRetry-After: 7\r\nContent-Length: 1000\r\n\r\n")
    while True:
        await stream.send_all(b"x")
        await trio.sleep(0.02)


async def body_breaks_off(stream):
    await stream.send_all(b"HTTP/1.1 503 Busy\r\nRetry-After: 7\r\nContent-Length: 1000\r\n\r\nxxx")
    await stream.aclose()


async def chunks_of_nonsense(stream):
    await stream.send_all(b"HTTP/1.1 503 Busy\r\nRetry-After: 7\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\nqqq\r\n")
    await trio.sleep_forever()


async def endless_body(stream):
    await stream.send_all(b"HTTP/1.1 503 Busy\r\nRetry-After: 7\r\n\r\n")
    while True:
        await stream.send_all(b"x" * 50_000)


CUT = [drip_body, body_breaks_off, chunks_of_nonsense, endless_body]


@pytest.mark.parametrize("behave", CUT, ids=lambda behave: behave.__name__)
async def test_an_answer_whose_body_does_not_end_counts_by_its_status(behave):
    async with serving(lambda stream, peer: once_badly(stream, peer, behave)) as peer:
        lane = peer.network(SHORT_S).lane()
        reply = await lane.send(EVENT)
        assert isinstance(reply, Answer)
        assert (reply.status, reply.retry_after, reply.cut) == (503, "7", True)
        assert reply.body.startswith(b"x")
        assert len(reply.body) <= BODY_MAX_BYTES
        assert repr(lane).endswith("idle, no connection>")
        assert (await lane.send(EVENT)).status == 201
        await lane.aclose()


ANSWERS = {
    "chunked": (
        b"HTTP/1.1 400 Bad\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
        Answer(400, b"abcde"),
    ),
    "empty": (b"HTTP/1.1 204 No Content\r\n\r\n", Answer(204)),
    "redirect": (answer("302 Found", b"", b"Location: http://127.0.0.1:1/\r\n"), Answer(302)),
    "web page": (
        answer("403 Forbidden", b"<!doctype html>", b"content-type: text/html\r\n"),
        Answer(403, b"<!doctype html>", None, "text/html"),
    ),
    "early hints": (
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + CREATED,
        Answer(201, b"{}", None, "application/json"),
    ),
    "odd reason": (b"HTTP/1.1 429 \xe9\r\nRETRY-AFTER: 5\r\nContent-Length: 0\r\n\r\n", Answer(429, b"", "5")),
    "exactly the limit": (answer("400 Bad", b"y" * BODY_MAX_BYTES), Answer(400, b"y" * BODY_MAX_BYTES)),
}


@pytest.mark.parametrize("name", ANSWERS)
async def test_answers_are_read_on_one_connection(name):
    data, expected = ANSWERS[name]
    async with serving(answering(data)) as peer:
        lane = peer.network().lane()
        assert [await lane.send(EVENT) for _ in range(3)] == [expected] * 3
        assert peer.connections == 1
        await lane.aclose()


async def test_a_connection_that_the_server_closed_while_idle_is_replaced():
    async def one_answer(stream, peer):
        await read_request(stream, peer)
        await stream.send_all(CREATED)

    async with serving(one_answer) as peer:
        lane = peer.network().lane()
        for _ in range(3):
            assert (await lane.send(EVENT)).status == 201
            await trio.testing.wait_all_tasks_blocked(0.02)  # let the farewell arrive
        assert peer.connections == 3
        await lane.aclose()


async def test_a_connection_closed_while_we_write_is_unknown():
    async def hang_up_on_the_second(stream, peer):
        await read_request(stream, peer)
        await stream.send_all(CREATED)
        await stream.receive_some(10)
        reset(stream)

    async with serving(hang_up_on_the_second) as peer:
        lane = peer.network().lane()
        assert (await lane.send(EVENT)).status == 201
        assert isinstance(await lane.send(EVENT), Unknown)
        assert (await lane.send(EVENT)).status == 201
        await lane.aclose()


async def test_an_answer_before_the_request_was_read_counts():
    async def early(stream, peer):
        await stream.receive_some(1)
        await stream.send_all(answer("413 Too Large", b"", b"Connection: close\r\n"))
        await stream.send_eof()
        while await stream.receive_some():
            pass

    async with serving(early) as peer:
        lane = peer.network().lane()
        assert (await lane.send(Request("POST", EVENT.path, b"x" * 3_000_000))).status == 413
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
async def test_a_name_that_cannot_be_resolved_is_not_sent(hangs):
    trio.socket.set_custom_hostname_resolver(Resolver(hangs=hangs))
    lane = HttpxNetwork(Px(base_url="https://px.example"), Secret(KEY), SHORT_S).lane()
    assert isinstance(await lane.send(EVENT), NotSent)
    trio.socket.set_custom_hostname_resolver(None)


async def test_nobody_listening_is_not_sent_and_the_lane_connects_once_somebody_does():
    port = unused_port()
    lane = Peer(port).network().lane()
    reply = await lane.send(EVENT)
    assert isinstance(reply, NotSent)
    assert "connect" in reply.why
    listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, lambda stream: answering(CREATED)(stream, Peer(port)), listeners)
        assert (await lane.send(EVENT)).status == 201
        await lane.aclose()
        nursery.cancel_scope.cancel()


async def test_a_server_that_never_accepts_is_not_sent():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        fillers = [socket.socket() for _ in range(3)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        lane = Peer(listener.getsockname()[1]).network(SHORT_S).lane()
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

    async def handle(stream, peer):
        await answering(CREATED)(trio.SSLStream(stream, context, server_side=True, https_compatible=True), peer)

    return handle


async def test_tls_with_our_own_authority(authority, ca_file):
    async with serving(over_tls(authority)) as peer:
        lane = peer.network(base_url=f"https://127.0.0.1:{peer.port}", ca_file=ca_file).lane()
        assert [(await lane.send(EVENT)).status for _ in range(2)] == [201, 201]
        assert peer.connections == 1
        await lane.aclose()


async def test_a_certificate_nobody_vouches_for_is_not_sent(authority):
    async with serving(over_tls(authority)) as peer:
        lane = peer.network(base_url=f"https://127.0.0.1:{peer.port}").lane()
        reply = await lane.send(EVENT)
    assert isinstance(reply, NotSent)
    assert "certificate" in reply.why
    assert not peer.requests


async def test_a_certificate_for_another_name_is_not_sent(authority, ca_file):
    async with serving(over_tls(authority, "elsewhere.example")) as peer:
        lane = peer.network(base_url=f"https://127.0.0.1:{peer.port}", ca_file=ca_file).lane()
        assert isinstance(await lane.send(EVENT), NotSent)


async def test_a_server_that_is_silent_during_the_tls_handshake_is_not_sent(ca_file):
    async def silent(stream, peer):
        await trio.sleep_forever()

    async with serving(silent) as peer:
        lane = peer.network(SHORT_S, base_url=f"https://127.0.0.1:{peer.port}", ca_file=ca_file).lane()
        assert isinstance(await lane.send(EVENT), NotSent)


async def test_plain_http_goes_through_the_proxy():
    async with serving(answering(CREATED)) as peer:
        lane = peer.network(base_url="http://localhost:9", proxy=f"http://me:pass-word@127.0.0.1:{peer.port}").lane()
        assert (await lane.send(EVENT)).status == 201
        assert peer.requests[0].startswith(b"POST http://localhost:9/v1/events/custom HTTP/1.1\r\n")
        assert b"Proxy-Authorization: Basic " in peer.requests[0]
        await lane.aclose()


@pytest.mark.parametrize(("status", "expected"), [("407 Proxy Authentication Required", Answer), ("502 Bad", NotSent)])
async def test_a_proxy_that_does_not_let_us_through(status, expected):
    async with serving(answering(answer(status, b"no"))) as peer:
        lane = peer.network(base_url="https://px.example", proxy=f"http://me:pass-word@127.0.0.1:{peer.port}").lane()
        reply = await lane.send(EVENT)
        assert isinstance(reply, expected)
        assert KEY.encode() not in b"".join(peer.requests), "the key is for PX only"
        await lane.aclose()


async def test_the_environment_is_not_looked_at(monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{unused_port()}")
    async with serving(answering(CREATED)) as peer:
        lane = peer.network().lane()
        assert (await lane.send(EVENT)).status == 201
        await lane.aclose()


async def test_cookies_are_not_sent_back():
    async with serving(answering(answer("201 Created", b"", b"Set-Cookie: a=b\r\n"))) as peer:
        lane = peer.network().lane()
        await lane.send(EVENT)
        await lane.send(EVENT)
        assert b"cookie" not in peer.requests[1].lower()
        await lane.aclose()


# --- secrets ---


async def test_a_server_that_repeats_our_secrets_does_not_get_them_into_an_answer():
    async def echo(stream, peer):
        request = await read_request(stream, peer)
        headers = b"Retry-After: %s\r\nContent-Type: %s\r\n" % (KEY.encode(), KEY.encode())
        await stream.send_all(answer("400 Bad", request, headers))

    async with serving(echo) as peer:
        network = peer.network()
        lane = network.lane()
        reply = await lane.send(EVENT)
        assert KEY.encode() in peer.requests[0]
        assert KEY not in repr((reply, network, lane))
        assert b"X-APTRINSIC-API-KEY: ****" in reply.body
        await lane.aclose()


@pytest.mark.parametrize("key", ["", "with blank", "line\nbreak", "ключ"])
def test_a_key_that_no_header_can_carry_is_refused_without_showing_it(key):
    with pytest.raises(ConfigError) as caught:
        HttpxNetwork(Px(), Secret(key), 1)
    assert not key or key not in str(caught.value)


@pytest.mark.parametrize("proxy", ["ftp://me:pass-word@host", "socks5://me:pass-word@host:1", "pass-word", "http://"])
def test_a_proxy_that_is_none_is_refused_without_showing_its_password(proxy):
    with pytest.raises(ConfigError) as caught:
        HttpxNetwork(Px(proxy=proxy), Secret(KEY), 1)
    assert "pass-word" not in str(caught.value)


def test_a_certificate_file_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "not.pem").write_text("not a certificate")
    for name in ("missing.pem", "not.pem"):
        with pytest.raises(ConfigError, match=name):
            HttpxNetwork(Px(ca_file=str(tmp_path / name)), Secret(KEY), 1)


# --- cancellation (field_lessons M1 to M3) ---


async def test_lanes_survive_cancellation_at_any_moment():
    async def slowly(stream, peer):
        rng = random.Random(peer.connections)
        while await read_request(stream, peer):
            await trio.sleep(rng.uniform(0, 0.004))
            await stream.send_all(CREATED[:30])
            await trio.sleep(rng.uniform(0, 0.002))
            await stream.send_all(CREATED[30:])

    rng, outcomes = random.Random(7), {"answered": 0, "cancelled": 0}

    async def harass(lane):
        """Half of the requests are cancelled, however slow this machine is just now."""
        typical_s = 0.006
        for _ in range(40):
            with trio.move_on_after(rng.uniform(0, 2 * typical_s)) as scope:
                assert (await lane.send(EVENT)).status == 201
            typical_s *= 1.25 if scope.cancelled_caught else 0.8
            outcomes["cancelled" if scope.cancelled_caught else "answered"] += 1

    async with serving(slowly) as peer:
        network = peer.network()
        lanes = [network.lane() for _ in range(8)]
        async with trio.open_nursery() as nursery:
            for lane in lanes:
                nursery.start_soon(harass, lane)
        assert min(outcomes.values()) > 10, "both must happen for this to say anything"
        for lane in lanes:
            assert (await lane.send(EVENT)).status == 201
            await lane.aclose()


async def _two_sends(cancel_before=None):
    """Send twice, and be cancelled before the step of that number, if it comes so far; how many steps were begun."""

    class Steps(trio.abc.Instrument):
        begun = 0

        def before_task_step(self, task):
            if task is sender:
                if self.begun == cancel_before:
                    scope.cancel()
                self.begun += 1

    sender = trio.lowlevel.current_task()
    async with serving(answering(CREATED)) as peer:
        lane, steps = peer.network().lane(), Steps()
        with trio.CancelScope() as scope:
            trio.lowlevel.add_instrument(steps)
            await lane.send(EVENT)
            await lane.send(EVENT)
        trio.lowlevel.remove_instrument(steps)
        assert (await lane.send(EVENT)).status == 201
        await lane.aclose()
    return steps.begun, scope.cancelled_caught


async def test_a_lane_survives_cancellation_at_each_step():
    """How many steps there are is found out anew each time: what TLS, trio or a kernel changes must not hide the last."""
    steps, _ = await _two_sends()
    assert steps > 10
    cancelled = [(await _two_sends(number))[1] for number in range(steps)]
    assert cancelled[: steps - 2] == [True] * (steps - 2)  # the very last may have nothing left to be cancelled


async def test_a_lane_carries_one_request_at_a_time():
    async with serving(lambda stream, peer: once_badly(stream, peer, say_nothing)) as peer:
        lane = peer.network().lane()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lane.send, EVENT)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(AssertionError):
                await lane.send(EVENT)
            nursery.cancel_scope.cancel()
