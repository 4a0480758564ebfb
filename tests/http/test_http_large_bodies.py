"""What a crowd can make us hold: large bodies, and those that are to be inflated, have a bounded number of places."""

import gzip
import random
from contextlib import AsyncExitStack

import pytest
import trio
import trio.testing
from http_wire import answers, echo, post, served

from sidecar.http import Limits, Places, Response

LARGE_BYTES = Places.LARGE_BYTES
LARGE = post(b"x" * (3 * LARGE_BYTES))
PACKED = post(gzip.compress(b"small"), b"Content-Encoding: gzip")
BEGUN = LARGE[: 2 * LARGE_BYTES]


def taken(places: Places) -> tuple[int, int]:
    return places.large.borrowed_tokens, places.packed.borrowed_tokens


def bodies(data: bytes) -> list[bytes]:
    return [body for _, _, body in answers(data)]


async def test_a_large_body_waits_for_the_one_before_it_and_small_ones_pass_both():
    places = Places(1)
    async with served(places=places) as first, served(places=places) as second, served() as third:
        await first.send(BEGUN)
        await first.until_quiet()
        await second.send(LARGE)
        assert await second.until_quiet() == b""
        await third.send(post(b"small"))
        assert bodies(await third.until_quiet()) == [b"small"]
        await first.send(LARGE[2 * LARGE_BYTES :])
        assert len(bodies(await first.until_quiet())[0]) == 3 * LARGE_BYTES
        assert len(bodies(await second.until_quiet())[0]) == 3 * LARGE_BYTES
    assert taken(places) == (0, 0)


async def test_a_packed_body_is_not_inflated_before_it_has_a_place():
    places = Places(1)
    go_on = trio.Event()

    async def slow(request):
        await go_on.wait()
        return Response(200, request.body)

    async with served(slow, places=places) as first, served(slow, places=places) as second:
        await first.send(PACKED * 3)
        await first.until_quiet()
        await second.send(PACKED)
        await second.until_quiet()
        assert (len(first.requests), len(second.requests)) == (1, 0)
        go_on.set()
        assert bodies(await first.until_quiet()) == [b"small"] * 3
        assert bodies(await second.until_quiet()) == [b"small"]
    assert taken(places) == (0, 0)


@pytest.mark.parametrize("data", [LARGE, PACKED], ids=["large", "packed"])
async def test_who_waits_for_a_place_in_vain_is_told_that_we_are_busy_and_not_that_he_was_slow(autojump_clock, data):
    """He was told 408, at which some SDKs drop what they sent; a 503 they all send again."""
    places = Places(1)
    for kind in (places.large, places.packed):
        await kind.acquire_on_behalf_of("somebody who keeps it")
    async with served(places=places, limits=Limits(body_s=30)) as client:
        await client.send(post(b"before") + data)
        before, refused = answers(await client.rest())
        assert (before[2], refused[0]) == (b"before", 503)
        assert b"busy" in refused[2]
        assert trio.current_time() == pytest.approx(30, abs=3)
        assert [request.body for request in client.requests] == [b"before"]


async def test_who_got_a_place_late_has_as_long_for_the_rest_as_others(autojump_clock):
    """What it had waited for us counted as its own: the rest had to come in what was left of its 30 s."""
    places = Places(1)
    await places.large.acquire_on_behalf_of("another")
    async with served(places=places, limits=Limits(body_s=30)) as client:
        await client.send(BEGUN)
        await trio.sleep(29)
        places.large.release_on_behalf_of("another")
        await trio.sleep(4)
        await client.send(LARGE[len(BEGUN) :])
        assert len(bodies(await client.until_quiet())[0]) == 3 * LARGE_BYTES
    assert taken(places) == (0, 0)


async def test_who_is_slow_with_a_large_body_loses_its_place_soon_and_keeps_no_packed_one_out(autojump_clock):
    places = Places(1)
    async with served(places=places) as slow, served(places=places) as second, served(places=places) as packed:
        await slow.send(BEGUN)
        await slow.until_quiet()
        await second.send(LARGE)
        await packed.send(PACKED)
        assert bodies(await packed.until_quiet()) == [b"small"]
        assert answers(await slow.rest())[0][0] == 408
        assert trio.current_time() == pytest.approx(Limits().large_s, abs=3)
        assert len(bodies(await second.until_quiet())[0]) == 3 * LARGE_BYTES


async def test_a_body_that_is_large_and_packed_takes_both_places_and_gives_both_back():
    places = Places(1)
    large_and_packed = post(gzip.compress(random.Random(1).randbytes(2 * LARGE_BYTES)), b"Content-Encoding: gzip")
    async with served(places=places) as first, served(places=places) as second:
        for client in (first, second):
            await client.send(large_and_packed)
            assert len(bodies(await client.until_quiet())[0]) == 2 * LARGE_BYTES
    assert taken(places) == (0, 0)


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

    places = Places(1)
    async with served(handler, places=places) as client:
        await client.send(BEGUN)
        await client.until_quiet()
        assert taken(places) == (1, 0)
        await ending(client)
        await client.until_quiet()
        assert taken(places) == (0, 0)


@pytest.mark.parametrize("bad", [post(b"no", b"Content-Encoding: gzip"), post(b"x", b"Content-Encoding: br")])
async def test_a_refused_body_gives_its_place_back_before_its_client_has_left(bad):
    places = Places(1)
    async with served(places=places) as client:
        await client.send(bad)
        await client.until_quiet()
        assert not client.ended.is_set()
        assert taken(places) == (0, 0)


async def test_a_place_is_not_kept_by_an_answer_that_goes_on_for_ever():
    async def handler(request):
        async def parts():
            while True:
                yield b"x"
                await trio.sleep_forever()

        return Response(200, parts())

    places = Places(1)
    async with AsyncExitStack() as stack:
        for _ in range(3):
            client = await stack.enter_async_context(served(handler, places=places))
            await client.send(PACKED)
            assert (await client.until_quiet()).endswith(b"1\r\nx\r\n")
        assert taken(places) == (0, 0)


async def test_a_stop_lets_who_waits_for_a_place_finish():
    places = Places(1)
    await places.large.acquire_on_behalf_of("somebody else")
    async with served(places=places) as client:
        await client.send(LARGE)
        await client.until_quiet()
        client.stopping.set()
        await client.until_quiet()
        places.large.release_on_behalf_of("somebody else")
        ((status, headers, body),) = answers(await client.rest())
        assert (status, headers[b"connection"], len(body)) == (200, b"close", 3 * LARGE_BYTES)
