"""One connection: answers and their order, keep-alive, refusals, deadlines."""

import gzip

import pytest
import trio
import trio.testing
from http_wire import answers, echo, post, served
from hypothesis import given
from hypothesis import strategies as st

from sidecar.http import IdleConnections, Limits, Response, serve_connection


async def test_pipelined_answers_come_in_order_and_in_one_piece():
    async with served() as client:
        await client.send(post(b"one") + post(b"two") + post(b"three"))
        received = await client.until_quiet()
        await client.end()
        assert [body for _, _, body in answers(received)] == [b"one", b"two", b"three"]
        assert await client.rest() == b""


async def test_bytes_read_before_are_part_of_the_first_request():
    async with served(first=post(b"one")[:20]) as client:
        await client.send(post(b"one")[20:])
        await client.end()
        assert [body for _, _, body in answers(await client.rest())] == [b"one"]


@given(st.lists(st.binary(max_size=40), max_size=4), st.lists(st.integers(0, 500), max_size=6))
def test_answers_do_not_depend_on_how_bytes_are_cut(bodies, cuts):
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
def test_no_bytes_make_a_connection_crash_or_hang(bits, half_close):
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


async def test_bytes_of_an_answer():
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
async def test_keep_alive_follows_the_client(version, header, kept):
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


async def test_half_closed_client_is_answered():
    async with served() as client:
        await client.send(post(b"from nc"))
        await client.end()
        assert answers(await client.rest())[0][2] == b"from nc"


async def test_head_answer_has_a_length_and_no_body():
    async def handler(request):
        return Response(200, b"12345")

    async with served(handler) as client:
        await client.send(post(method=b"HEAD") + post(method=b"GET"))
        await client.end()
        first, second = answers(await client.rest(), (b"HEAD", b"GET"))
        assert (first[1][b"content-length"], first[2]) == (b"5", b"")
        assert second[2] == b"12345"


@pytest.mark.parametrize("status", [204, 304])
async def test_204_and_304_have_no_body_and_no_length(status):
    async def handler(request):
        return Response(status, b"")

    async with served(handler) as client:
        await client.send(post())
        await client.end()
        assert b"Content-Length" not in await client.rest()


async def test_expect_100_is_answered_before_the_body():
    async with served() as client:
        data = post(b"body", b"Expect: 100-continue")
        await client.send(data[:-4])
        assert await client.until_quiet() == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send(data[-4:])
        await client.end()
        assert answers(await client.rest())[0][2] == b"body"


async def test_expect_100_for_too_large_a_body_is_refused_at_once():
    async with served(limits=Limits(max_body_bytes=10)) as client:
        await client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 11\r\nExpect: 100-continue\r\n\r\n")
        assert answers(await client.until_quiet())[0][0] == 413


def json_refusal(code, message, status):
    return Response(400, f'{{"success":false,"code":"{code}"}}'.encode())


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", "bad_request"),
        (b"\0\0\0\0", "bad_request"),
        (post(b"x" * 101), "too_large"),
        (post(gzip.compress(b"x" * 10_000, mtime=0), b"Content-Encoding: gzip"), "too_large"),
        (post(b"no", b"Content-Encoding: gzip"), "bad_encoding"),
        (post(b"x", b"X: " + b"y" * 2000), "headers_too_large"),
    ],
)
async def test_refusal_is_built_by_the_caller_and_ends_connection(data, code):
    limits = Limits(max_body_bytes=100, max_header_bytes=1000)
    async with served(limits=limits, refuse=json_refusal) as client:
        await client.send(post(b"good") + data + post(b"behind"))
        good, refused = answers(await client.until_quiet())
        assert good[2] == b"good"
        assert refused[0] == 400
        assert refused[1][b"connection"] == b"close"
        assert refused[2] == f'{{"success":false,"code":"{code}"}}'.encode()
        assert len(client.requests) == 1


async def test_lingering_after_a_refusal_is_bounded(autojump_clock):
    async with served(limits=Limits(max_body_bytes=10, linger_s=2)) as client:
        await client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
        await client.until_quiet()
        started = trio.current_time()
        await client.send_repeatedly(b"x" * 100, every_s=0.1)
        assert 1.9 <= trio.current_time() - started <= 2.2


async def test_discarding_costs_no_wake_up_for_each_packet(autojump_clock):
    """A client that sent headers without end had the server read each of its packets: a quarter of a core for one."""
    async with served(limits=Limits(max_header_bytes=1_000, linger_s=2)) as client:
        await client.send(b"GET / HTTP/1.1\r\n" + b"X: %b\r\n" % (b"y" * 2_000))
        await client.until_quiet()
        reads = 0
        receive_some = client.server_end.receive_some

        async def counted(max_bytes):
            nonlocal reads
            reads += 1
            return await receive_some(max_bytes)

        client.server_end.receive_some = counted
        await client.send_repeatedly(b"y" * 1_000, every_s=0.001)
        assert 10 < reads <= 101


BY_ITSELF_OR_SHARED = pytest.mark.parametrize("shared", [False, True], ids=["by itself", "shared"])


def idle_after(idle_s: float, *, shared: bool) -> IdleConnections | None:
    return IdleConnections(idle_s) if shared else None


@BY_ITSELF_OR_SHARED
async def test_idle_connection_is_closed_without_an_answer(autojump_clock, shared):
    async with served(limits=Limits(idle_s=120), idle=idle_after(120, shared=shared)) as client:
        await client.send(post(b"x"))
        await client.until_quiet()
        started = trio.current_time()
        assert await client.rest() == b""
        assert trio.current_time() - started == pytest.approx(120, abs=1)


@BY_ITSELF_OR_SHARED
async def test_blank_lines_do_not_extend_the_idle_deadline(autojump_clock, shared):
    async with served(limits=Limits(idle_s=120), idle=idle_after(120, shared=shared)) as client:
        await client.send_repeatedly(b"\r\n", every_s=1)
        assert trio.current_time() == pytest.approx(120, abs=2)


@pytest.mark.parametrize(
    ("begin", "limit_s"),
    [(b"POST / HTTP/1.1\r\nX: ", 10), (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n", 30)],
    ids=["header", "body"],
)
@BY_ITSELF_OR_SHARED
async def test_slow_request_is_answered_408_at_its_deadline(autojump_clock, begin, limit_s, shared):
    async with served(idle=idle_after(120, shared=shared)) as client, trio.open_nursery() as nursery:
        await trio.sleep(115)  # with its own deadline, not with what was left to be idle
        await client.send(begin)
        nursery.start_soon(client.send_repeatedly, b"a", 0.5)
        assert answers(await client.rest())[0][0] == 408
        assert trio.current_time() - 115 == pytest.approx(limit_s, abs=1)


@BY_ITSELF_OR_SHARED
async def test_handler_has_no_deadline(autojump_clock, shared):
    async def handler(request):
        await trio.sleep(50_000)
        return Response(200, b"late")

    async with served(handler, idle=idle_after(120, shared=shared)) as client:
        await client.send(post())
        await client.end()
        assert answers(await client.rest())[0][2] == b"late"


@BY_ITSELF_OR_SHARED
@pytest.mark.parametrize(("size", "timeout_s"), [(1, Limits().idle_s), (100_000, Limits().large_s)])
async def test_unread_answer_closes_connection_sooner_if_large(autojump_clock, size, timeout_s, shared):
    blocked, server_end = trio.testing.memory_stream_pair()

    async def full() -> None:
        await trio.sleep_forever()

    server_end.send_stream.send_all_hook = full
    idle = idle_after(Limits().idle_s, shared=shared)
    async with trio.open_nursery() as nursery:
        if idle is not None:
            nursery.start_soon(idle.run)
        await blocked.send_all(post(b"x" * size))
        await serve_connection(server_end, echo, idle=idle)
        nursery.cancel_scope.cancel()
    assert trio.current_time() == pytest.approx(timeout_s, abs=2)


async def test_disconnect_does_not_cancel_the_handler():
    finished = []
    release = trio.Event()

    async def handler(request):
        await release.wait()
        finished.append(request.body)
        return Response()

    async with served(handler) as client:
        await client.send(post(b"one") + post(b"two"))
        await trio.testing.wait_all_tasks_blocked()
        await client.stream.aclose()
        await trio.testing.wait_all_tasks_blocked()
        release.set()
        await client.ended.wait()
        assert finished == [b"one", b"two"]
        assert client.errors == []
