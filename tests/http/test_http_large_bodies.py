"""What a crowd can make us hold: large bodies, and those that are to be inflated, have a bounded number of places."""

import gzip
from contextlib import AsyncExitStack

import pytest
import trio
import trio.testing
from http_wire import answers, echo, post, served

from sidecar.http import Limits, Response
from sidecar.http.connection import LARGE_BYTES

LARGE = post(b"x" * (3 * LARGE_BYTES))
PACKED = post(gzip.compress(b"small"), b"Content-Encoding: gzip")
BEGUN = LARGE[: 2 * LARGE_BYTES]


def bodies(data: bytes) -> list[bytes]:
    return [body for _, _, body in answers(data)]


async def test_a_large_body_waits_for_the_one_before_it_and_small_ones_pass_both():
    places = trio.CapacityLimiter(1)
    async with served(large_bodies=places) as first, served(large_bodies=places) as second, served() as third:
        await first.send(BEGUN)
        await first.until_quiet()
        await second.send(LARGE)
        assert await second.until_quiet() == b""
        await third.send(post(b"small"))
        assert bodies(await third.until_quiet()) == [b"small"]
        await first.send(LARGE[2 * LARGE_BYTES :])
        assert len(bodies(await first.until_quiet())[0]) == 3 * LARGE_BYTES
        assert len(bodies(await second.until_quiet())[0]) == 3 * LARGE_BYTES
    assert places.borrowed_tokens == 0


async def test_a_packed_body_is_not_inflated_before_it_has_a_place():
    places = trio.CapacityLimiter(1)
    go_on = trio.Event()

    async def slow(request):
        await go_on.wait()
        return Response(200, request.body)

    async with served(slow, large_bodies=places) as first, served(slow, large_bodies=places) as second:
        await first.send(PACKED * 3)
        await first.until_quiet()
        await second.send(PACKED)
        await second.until_quiet()
        assert (len(first.requests), len(second.requests)) == (1, 0)
        go_on.set()
        assert bodies(await first.until_quiet()) == [b"small"] * 3
        assert bodies(await second.until_quiet()) == [b"small"]
    assert places.borrowed_tokens == 0


@pytest.mark.parametrize("data", [LARGE, PACKED], ids=["large", "packed"])
async def test_who_waits_for_a_place_in_vain_is_refused_at_the_deadline_of_the_body(autojump_clock, data):
    places = trio.CapacityLimiter(1)
    await places.acquire_on_behalf_of("somebody who keeps it")
    async with served(large_bodies=places, limits=Limits(body_s=30)) as client:
        await client.send(post(b"before") + data)
        before, refused = answers(await client.rest())
        assert (before[2], refused[0]) == (b"before", 408)
        assert trio.current_time() == pytest.approx(30, abs=3)
        assert [request.body for request in client.requests] == [b"before"]


async def leave(client):
    await client.stream.aclose()


async def half_close(client):
    await client.end()


async def drip(client):
    await client.rest()


async def finish(client):
    await client.send(LARGE[2 * LARGE_BYTES :])


@pytest.mark.parametrize("ending", [leave, half_close, drip, finish])
@pytest.mark.parametrize("fails", [False, True])
async def test_a_place_is_given_back_however_the_request_ends(autojump_clock, ending, fails):
    async def handler(request):
        assert not fails
        return await echo(request)

    places = trio.CapacityLimiter(1)
    async with served(handler, large_bodies=places) as client:
        await client.send(BEGUN)
        await client.until_quiet()
        assert places.borrowed_tokens == 1
        await ending(client)
        await client.until_quiet()
        assert places.borrowed_tokens == 0


@pytest.mark.parametrize("bad", [post(b"no", b"Content-Encoding: gzip"), post(b"x", b"Content-Encoding: br")])
async def test_a_refused_body_gives_its_place_back_before_its_client_has_left(bad):
    places = trio.CapacityLimiter(1)
    async with served(large_bodies=places) as client:
        await client.send(bad)
        await client.until_quiet()
        assert not client.ended.is_set()
        assert places.borrowed_tokens == 0


async def test_a_place_is_not_kept_by_an_answer_that_goes_on_for_ever():
    async def handler(request):
        async def parts():
            while True:
                yield b"x"
                await trio.sleep_forever()

        return Response(200, parts())

    places = trio.CapacityLimiter(1)
    async with AsyncExitStack() as stack:
        for _ in range(3):
            client = await stack.enter_async_context(served(handler, large_bodies=places))
            await client.send(PACKED)
            assert (await client.until_quiet()).endswith(b"1\r\nx\r\n")
        assert places.borrowed_tokens == 0


async def test_a_stop_lets_who_waits_for_a_place_finish():
    places = trio.CapacityLimiter(1)
    await places.acquire_on_behalf_of("somebody else")
    async with served(large_bodies=places) as client:
        await client.send(LARGE)
        await client.until_quiet()
        client.stopping.set()
        await client.until_quiet()
        places.release_on_behalf_of("somebody else")
        ((status, headers, body),) = answers(await client.rest())
        assert (status, headers[b"connection"], len(body)) == (200, b"close", 3 * LARGE_BYTES)
