"""One connection: answers, order, ends, deadlines, and what a client can and cannot do to it."""

import gzip

import h11
import pytest
import trio
import trio.testing
from http_wire import answers, echo, served
from hypothesis import given
from hypothesis import strategies as st

from sidecar.http import Hangup, Limits, Raw, Response, serve_connection


def post(body=b"", *headers: bytes, version: bytes = b"1.1", method: bytes = b"POST") -> bytes:
    lines = [method + b" /p HTTP/" + version, b"Host: x", b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


async def test_answers_come_in_the_order_of_the_requests_and_in_one_piece():
    async with served() as client:
        await client.send(post(b"one") + post(b"two") + post(b"three"))
        received = await client.until_quiet()
        await client.end()
        assert [body for _, _, body in answers(received)] == [b"one", b"two", b"three"]
        assert await client.rest() == b""


async def test_bytes_that_were_read_before_count():
    async with served(first=post(b"one")[:20]) as client:
        await client.send(post(b"one")[20:])
        await client.end()
        assert [body for _, _, body in answers(await client.rest())] == [b"one"]


@given(st.lists(st.binary(max_size=40), max_size=4), st.lists(st.integers(0, 500), max_size=6))
def test_any_cut_of_the_bytes_gives_the_same_answers(bodies, cuts):
    data = b"".join(post(body) for body in bodies)

    async def main() -> bytes:
        async with served() as client:
            start = 0
            for cut in [*sorted(cuts), len(data)]:
                await client.send(data[start:cut])
                await trio.testing.wait_all_tasks_blocked()
                start = max(start, min(cut, len(data)))
            await client.end()
            return await client.rest()

    assert [body for _, _, body in answers(trio.run(main))] == bodies


BITS = [
    b"POST / HTTP/1.1\r\n", b"Host: x\r\n", b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"\r\n", b"abc",
    b"3\r\nabc\r\n", b"0\r\n\r\n", b"Expect: 100-continue\r\n", b"Content-Encoding: gzip\r\n", b"Connection: Upgrade\r\n",
    b"Upgrade: h2c\r\n", b"CONNECT x:1 HTTP/1.1\r\n", b"HEAD http://a@b/c?d HTTP/1.0\r\n", b"Connection: close\r\n", b"\0", b"\n",
]  # fmt: skip


@given(st.lists(st.one_of(st.sampled_from(BITS), st.binary(max_size=5)), max_size=14), st.booleans())
def test_no_bytes_crash_it_or_make_it_hang(bits, half_close):
    async def main() -> None:
        async with served() as client:
            for bit in bits:
                try:
                    await client.send(bit)
                except trio.BrokenResourceError:
                    break
                await trio.testing.wait_all_tasks_blocked()
            if half_close:
                await client.end()
            await client.ended.wait()
            assert client.errors == []
        assert trio.current_time() <= 2 * (Limits().idle_s + Limits().linger_s)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def test_an_answer_is_exactly_this():
    async def handler(request):
        return Response(200, b'{"success":true}', headers=(("X-A", "b"),))

    async with served(handler) as client:
        await client.send(post(b"x", b"Connection: close"))
        first, date, *rest = (await client.rest()).split(b"\r\n")
        assert first == b"HTTP/1.1 200 OK"
        assert sorted([date, *rest])[-1].startswith(b"{")
        text = b"\r\n".join([first, date, *rest])
        assert b"Content-Type: application/json\r\n" in text
        assert b"Connection: close\r\n" in text
        assert b"X-A: b\r\n" in text
        assert text.endswith(b'Content-Length: 16\r\n\r\n{"success":true}')


@pytest.mark.parametrize(
    ("version", "header", "kept"),
    [(b"1.1", None, True), (b"1.1", b"close", False), (b"1.0", None, False), (b"1.0", b"keep-alive", True)],
)
async def test_the_connection_is_kept_as_the_client_asks(version, header, kept):
    headers = [b"Connection: " + header] if header else []
    async with served() as client:
        await client.send(post(b"x", *headers, version=version))
        received = await client.until_quiet()
        ((_, answered, body),) = answers(received)
        assert body == b"x"
        assert client.ended.is_set() is not kept
        assert answered.get(b"connection") == (
            None if version == b"1.1" and kept else b"keep-alive" if kept else b"close"
        )


async def test_a_client_that_half_closes_after_its_request_is_answered():
    async with served() as client:
        await client.send(post(b"from nc"))
        await client.end()
        assert answers(await client.rest())[0][2] == b"from nc"


async def test_head_has_the_length_and_no_body():
    async def handler(request):
        return Response(200, b"12345")

    async with served(handler) as client:
        await client.send(post(method=b"HEAD") + post(method=b"GET"))
        await client.end()
        first, second = answers(await client.rest(), (b"HEAD", b"GET"))
        assert (first[1][b"content-length"], first[2]) == (b"5", b"")
        assert second[2] == b"12345"


@pytest.mark.parametrize("status", [204, 304])
async def test_an_answer_that_cannot_have_a_body_has_none(status):
    async def handler(request):
        return Response(status, b"")

    async with served(handler) as client:
        await client.send(post())
        await client.end()
        assert b"Content-Length" not in await client.rest()


async def test_a_client_that_expects_100_is_told_to_go_on():
    async with served() as client:
        data = post(b"body", b"Expect: 100-continue")
        await client.send(data[:-4])
        assert await client.until_quiet() == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send(data[-4:])
        await client.end()
        assert answers(await client.rest())[0][2] == b"body"


async def test_a_client_that_expects_100_for_too_much_is_refused_at_once():
    async with served(limits=Limits(max_body_bytes=10)) as client:
        await client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 11\r\nExpect: 100-continue\r\n\r\n")
        assert answers(await client.until_quiet())[0][0] == 413


def worded(code, message, status):
    return Response(400, f'{{"success":false,"code":"{code}"}}'.encode())


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", "bad_request"),
        (b"\0\0\0\0", "bad_request"),
        (post(b"x" * 101), "too_large"),
        (post(gzip.compress(b"x" * 10_000), b"Content-Encoding: gzip"), "too_large"),
        (post(b"no", b"Content-Encoding: gzip"), "bad_encoding"),
        (post(b"x", b"X: " + b"y" * 2000), "headers_too_large"),
    ],
)
async def test_a_refusal_is_worded_by_the_caller_and_ends_the_connection(data, code):
    limits = Limits(max_body_bytes=100, max_header_bytes=1000)
    async with served(limits=limits, refuse=worded) as client:
        await client.send(post(b"good") + data + post(b"behind"))
        good, refused = answers(await client.until_quiet())
        assert good[2] == b"good"
        assert refused[0] == 400
        assert refused[1][b"connection"] == b"close"
        assert refused[2] == f'{{"success":false,"code":"{code}"}}'.encode()
        assert len(client.requests) == 1


async def test_after_a_refusal_the_server_reads_on_for_a_bounded_time(autojump_clock):
    async with served(limits=Limits(max_body_bytes=10, linger_s=2)) as client:
        await client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
        await client.until_quiet()
        started = trio.current_time()
        await client.send_for_ever(b"x" * 100, every_s=0.1)
        assert 1.9 <= trio.current_time() - started <= 2.2


async def test_an_idle_connection_is_closed_without_a_word(autojump_clock):
    async with served(limits=Limits(idle_s=120)) as client:
        await client.send(post(b"x"))
        await client.until_quiet()
        started = trio.current_time()
        assert await client.rest() == b""
        assert trio.current_time() - started == pytest.approx(120, abs=1)


async def test_blank_lines_do_not_keep_a_connection(autojump_clock):
    async with served(limits=Limits(idle_s=120)) as client:
        await client.send_for_ever(b"\r\n", every_s=1)
        assert trio.current_time() == pytest.approx(120, abs=2)


@pytest.mark.parametrize(
    ("begin", "limit_s"),
    [(b"POST / HTTP/1.1\r\nX: ", 10), (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n", 30)],
    ids=["header", "body"],
)
async def test_a_dripping_client_is_answered_408_at_the_deadline(autojump_clock, begin, limit_s):
    async with served() as client, trio.open_nursery() as nursery:
        await client.send(begin)
        nursery.start_soon(client.send_for_ever, b"a", 0.5)
        assert answers(await client.rest())[0][0] == 408
        assert trio.current_time() == pytest.approx(limit_s, abs=1)


async def test_a_handler_has_no_deadline(autojump_clock):
    async def handler(request):
        await trio.sleep(50_000)
        return Response(200, b"late")

    async with served(handler) as client:
        await client.send(post())
        await client.end()
        assert answers(await client.rest())[0][2] == b"late"


async def test_a_client_that_does_not_take_its_answer_is_let_go(autojump_clock):
    blocked, server_end = trio.testing.memory_stream_pair()

    async def full() -> None:
        await trio.sleep_forever()

    server_end.send_stream.send_all_hook = full
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_connection, server_end, echo)
        await blocked.send_all(post(b"x"))
    assert trio.current_time() == pytest.approx(Limits().idle_s, abs=2)


async def test_a_client_that_leaves_does_not_cancel_its_request():
    finished = []
    go_on = trio.Event()

    async def handler(request):
        await go_on.wait()
        finished.append(request.body)
        return Response()

    async with served(handler) as client:
        await client.send(post(b"one") + post(b"two"))
        await trio.testing.wait_all_tasks_blocked()
        await client.stream.aclose()
        await trio.testing.wait_all_tasks_blocked()
        go_on.set()
        await client.ended.wait()
        assert finished == [b"one", b"two"]
        assert client.errors == []


async def test_a_failing_handler_costs_its_request_and_its_connection_only():
    async def handler(request):
        raise RuntimeError("mistake")

    async with served(handler) as client:
        await client.send(post(b"x") + post(b"y"))
        ((status, headers, body),) = answers(await client.until_quiet())
        assert (status, headers[b"connection"]) == (500, b"close")
        assert b"mistake" not in body
        assert [str(error) for error in client.errors] == ["mistake"]


async def test_a_hangup_closes_without_an_answer():
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
async def test_a_stream_arrives_whole_and_ends_the_connection(autojump_clock, version, chunked):
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


async def test_a_stream_stops_when_its_client_goes_away_even_if_it_is_silent(autojump_clock):
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


async def test_a_stream_that_fails_is_cut_so_that_the_client_can_tell(autojump_clock):
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


async def test_stopping_closes_an_idle_connection_at_once():
    async with served() as client:
        await client.send(post(b"x"))
        await client.until_quiet()
        client.stopping.set()
        assert await client.rest() == b""


async def test_stopping_finishes_what_has_begun_to_arrive():
    async with served() as client:
        await client.send(post(b"one") + post(b"two")[:10])
        received = await client.until_quiet()
        client.stopping.set()
        await trio.testing.wait_all_tasks_blocked()
        await client.send(post(b"two")[10:])
        first, second = answers(received + await client.until_quiet())
        assert b"connection" not in first[1]
        assert (second[1][b"connection"], second[2]) == (b"close", b"two")


async def test_stopping_lets_a_handler_finish_and_says_close():
    go_on = trio.Event()

    async def handler(request):
        await go_on.wait()
        return Response(200, request.body)

    async with served(handler) as client:
        await client.send(post(b"one") + post(b"two"))
        await trio.testing.wait_all_tasks_blocked()
        client.stopping.set()
        go_on.set()
        first, second = answers(await client.until_quiet())
        assert b"connection" not in first[1]
        assert (second[1][b"connection"], second[2]) == (b"close", b"two")


async def test_a_request_that_arrives_in_the_instant_of_the_stop_is_answered():
    done = []

    async def handler(request):
        await trio.lowlevel.checkpoint()
        done.append(request.body)
        return Response(200, request.body)

    async with served(handler) as client:
        await trio.testing.wait_all_tasks_blocked()
        # No checkpoint between these two: the server wakes with the bytes and with its scope cancelled.
        client.server_end.receive_stream.put_data(post(b"x"))
        client.stopping.set()
        ((_, headers, body),) = answers(await client.until_quiet())
        assert (body, headers[b"connection"], done) == (b"x", b"close", [b"x"])


async def test_a_stop_ends_a_stream(autojump_clock):
    closed = []

    async def handler(request):
        return Response(200, counting(10_000, closed))

    async with served(handler) as client:
        await client.send(post())
        await trio.sleep(3.5)
        client.stopping.set()
        assert (await client.rest()).endswith(b"3,\r\n")
        assert closed == [True]
