"""The memory of many clients together is bounded: large bodies, unfinished requests, and answers that are not read."""

import gc
import gzip
import random
from contextlib import AsyncExitStack

import pytest
import trio
import trio.testing
from http_wire import answers, echo, post, served

from sidecar.http import LARGE_BYTES, BudgetExceeded, Holder, Limits, MemoryBudget, Response, in_slices
from sidecar.http.budget import PAUSE_S, WAITING_BYTES

MIB = 2**20
LARGE = post(b"x" * (3 * LARGE_BYTES))
BOMB = post(gzip.compress(b"x" * 3 * LARGE_BYTES), b"Content-Encoding: gzip")
BEGUN = LARGE[: 2 * LARGE_BYTES]
# Its large share is smaller than one body: one body at a time.
SMALL = 2**19


def nothing_is_held(budget: MemoryBudget) -> bool:
    return budget.statistics() == (0, 0, 0, 0)


def bodies(data: bytes) -> list[bytes]:
    return [body for _, _, body in answers(data)]


async def test_large_body_waits_for_memory_and_small_ones_do_not():
    budget = MemoryBudget(SMALL)
    async with served(budget=budget) as first, served(budget=budget) as second, served(budget=budget) as third:
        await first.send(BEGUN)
        await first.until_quiet()
        await second.send(LARGE)
        assert await second.until_quiet() == b""
        assert budget.statistics().large_waiting == 1
        await third.send(post(b"small"))
        assert bodies(await third.until_quiet()) == [b"small"]
        await first.send(LARGE[2 * LARGE_BYTES :])
        assert len(bodies(await first.until_quiet())[0]) == 3 * LARGE_BYTES
        assert len(bodies(await second.until_quiet())[0]) == 3 * LARGE_BYTES
    assert nothing_is_held(budget)


async def test_a_body_that_inflates_to_a_large_one_waits_for_memory():
    budget = MemoryBudget(SMALL)
    release = trio.Event()

    async def slow(request):
        await release.wait()
        return Response(200, request.body)

    async with served(slow, budget=budget) as first, served(slow, budget=budget) as second:
        await first.send(BOMB * 3)
        await first.until_quiet()
        await second.send(BOMB)
        await second.until_quiet()
        assert (len(first.requests), len(second.requests)) == (1, 0)
        release.set()
        assert [len(body) for body in bodies(await first.until_quiet())] == [3 * LARGE_BYTES] * 3
        assert [len(body) for body in bodies(await second.until_quiet())] == [3 * LARGE_BYTES]
    assert nothing_is_held(budget)


async def test_a_compressed_body_that_stays_small_waits_for_nothing():
    budget = MemoryBudget(SMALL)
    await budget.reserve(MIB)
    async with served(budget=budget) as client:
        await client.send(post(gzip.compress(b"small"), b"Content-Encoding: gzip"))
        assert bodies(await client.until_quiet()) == [b"small"]


@pytest.mark.parametrize("data", [LARGE, BOMB], ids=["large", "compressed"])
async def test_no_memory_in_time_is_answered_503(autojump_clock, data):
    """It was 408, at which some SDKs drop their events; all of them repeat a 503."""
    budget = MemoryBudget(SMALL)
    await budget.reserve(MIB)
    async with served(budget=budget, limits=Limits(body_s=30)) as client:
        await client.send(post(b"before") + data)
        before, refused = answers(await client.rest())
        assert (before[2], refused[0]) == (b"before", 503)
        assert b"busy" in refused[2]
        assert trio.current_time() == pytest.approx(30, abs=3)
        assert [request.body for request in client.requests] == [b"before"]


async def test_the_newest_is_refused_when_too_many_large_bodies_wait(autojump_clock):
    budget = MemoryBudget(SMALL)
    await budget.reserve(MIB)
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(served(budget=budget)) for _ in range(5)]
        for client in clients:
            await client.send(BEGUN)
            await trio.testing.wait_all_tasks_blocked()
        assert budget.statistics().large_waiting == 2
        assert [client.ended.is_set() or bool(client.received) for client in clients[:2]] == [False, False]
        for client in clients[2:]:
            assert answers(await client.rest())[0][0] == 503


async def test_body_deadline_begins_when_memory_is_reserved(autojump_clock):
    """The wait for memory counted against the client, which had to send the rest in what was left of its 30 s."""
    budget = MemoryBudget(SMALL)
    await budget.reserve(MIB)
    async with served(budget=budget, limits=Limits(body_s=30)) as client:
        await client.send(BEGUN)
        await trio.sleep(29)
        budget.release(MIB)
        await trio.sleep(4)
        await client.send(LARGE[len(BEGUN) :])
        assert len(bodies(await client.until_quiet())[0]) == 3 * LARGE_BYTES
    assert nothing_is_held(budget)


@pytest.mark.parametrize("head_start_s", [0, 20])
async def test_slow_large_body_gives_its_memory_to_others_that_wait(autojump_clock, head_start_s):
    """It had 5 s even if no other waited, and was answered 408, at which some SDKs drop their events."""
    budget = MemoryBudget(SMALL)
    async with served(budget=budget) as slow, served(budget=budget) as next_one, served(budget=budget) as last:
        await slow.send(BEGUN)
        await slow.until_quiet()
        await trio.sleep(head_start_s)
        await next_one.send(BEGUN)
        await next_one.until_quiet()
        await last.send(LARGE)
        assert answers(await slow.rest())[0][0] == 503
        began_s = trio.current_time()
        assert began_s - head_start_s == pytest.approx(0 if head_start_s else Limits().large_s, abs=3)
        assert answers(await next_one.rest())[0][0] == 503
        assert trio.current_time() - began_s == pytest.approx(Limits().large_s, abs=3)
        assert len(bodies(await last.until_quiet())[0]) == 3 * LARGE_BYTES
    assert nothing_is_held(budget)


async def test_slow_large_body_is_answered_408_if_no_other_waits(autojump_clock):
    budget = MemoryBudget(SMALL)
    async with served(budget=budget) as slow:
        await slow.send(BEGUN)
        assert answers(await slow.rest())[0][0] == 408
        assert trio.current_time() == pytest.approx(Limits().body_s, abs=3)
    assert nothing_is_held(budget)


async def test_large_compressed_body_reserves_once_for_both():
    """With a second reservation for what it inflates to, two such bodies waited for each other."""
    budget = MemoryBudget(4 * MIB)
    large_and_compressed = post(gzip.compress(random.Random(1).randbytes(2 * LARGE_BYTES)), b"Content-Encoding: gzip")
    async with served(budget=budget) as first, served(budget=budget) as second:
        for client in (first, second):
            await client.send(large_and_compressed)
        for client in (first, second):
            assert len(bodies(await client.until_quiet())[0]) == 2 * LARGE_BYTES
    assert nothing_is_held(budget)


async def disconnect(client):
    await client.stream.aclose()


async def half_close(client):
    await client.end()


async def stall(client):
    await client.rest()


async def finish(client):
    await client.send(LARGE[2 * LARGE_BYTES :])


@pytest.mark.parametrize("ending", [disconnect, half_close, stall, finish])
@pytest.mark.parametrize("fails", [False, True])
async def test_memory_is_given_back_however_the_request_ends(autojump_clock, ending, fails):
    async def handler(request):
        assert not fails
        return await echo(request)

    budget = MemoryBudget(SMALL)
    async with served(handler, budget=budget) as client:
        await client.send(BEGUN)
        await client.until_quiet()
        assert budget.statistics().large_bytes == 3 * LARGE_BYTES
        await ending(client)
        await client.until_quiet()
        assert nothing_is_held(budget)


@pytest.mark.parametrize("bad", [b"no" * LARGE_BYTES, b"\x1f\x8b" + b"no" * LARGE_BYTES])
async def test_refused_body_gives_its_memory_back_before_lingering(bad):
    budget = MemoryBudget(SMALL)
    async with served(budget=budget) as client:
        await client.send(post(bad, b"Content-Encoding: gzip"))
        await client.until_quiet()
        assert not client.ended.is_set()
        assert nothing_is_held(budget)


async def test_streamed_answer_holds_no_memory():
    async def handler(request):
        async def parts():
            while True:
                yield b"x"
                await trio.sleep_forever()

        return Response(200, parts())

    budget = MemoryBudget(SMALL)
    async with AsyncExitStack() as stack:
        for _ in range(3):
            client = await stack.enter_async_context(served(handler, budget=budget))
            await client.send(BOMB)
            assert (await client.until_quiet()).endswith(b"1\r\nx\r\n")
        assert nothing_is_held(budget)


async def test_shutdown_lets_a_body_that_waits_for_memory_finish():
    budget = MemoryBudget(SMALL)
    await budget.reserve(MIB)
    async with served(budget=budget) as client:
        await client.send(LARGE)
        await client.until_quiet()
        client.shutdown.set()
        await client.until_quiet()
        budget.release(MIB)
        ((status, headers, body),) = answers(await client.rest())
        assert (status, headers[b"connection"], len(body)) == (200, b"close", 3 * LARGE_BYTES)


# What clients hold as long as they like -------------------------------------------------------------------------------

HEAD = b"POST /p HTTP/1.1\r\nX: " + b"y" * 20_000
BODY = post(b"x" * 30_000)[:25_000]


@pytest.mark.parametrize("part", [HEAD, BODY], ids=["head", "body"])
async def test_the_slowest_is_evicted_when_unfinished_ones_take_too_much(part):
    budget = MemoryBudget(SMALL)  # 96 KiB of it for unfinished requests
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(served(budget=budget)) for _ in range(8)]
        for client in clients:
            await client.send(part)
            await trio.testing.wait_all_tasks_blocked()
            assert budget.statistics().held_bytes <= 3 * SMALL // 16
        assert answers(await clients[0].rest())[0][0] == 503
        held_up = [client for client in clients if client.ended.is_set()]
        assert clients[-1] not in held_up
        await clients[-1].send(BODY if part is HEAD else post(b"x" * 30_000)[25_000:])
    assert nothing_is_held(budget)


async def test_a_whole_request_is_answered_however_full_it_is():
    budget = MemoryBudget(SMALL)
    async with AsyncExitStack() as stack:
        for _ in range(8):
            await (await stack.enter_async_context(served(budget=budget))).send(BODY)
        client = await stack.enter_async_context(served(budget=budget))
        await client.send(post(b"x" * 30_000))
        assert len(bodies(await client.until_quiet())[0]) == 30_000


class NeverRead(trio.abc.Stream):
    """A client that has sent requests and does not read: sending to it blocks."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    async def receive_some(self, max_bytes=None):
        await trio.lowlevel.checkpoint()
        piece, self.data = self.data[:max_bytes], self.data[max_bytes:]
        if not piece:
            await trio.sleep_forever()
        return piece

    async def send_all(self, data):
        await trio.sleep_forever()

    async def wait_send_all_might_not_block(self):
        await trio.sleep_forever()

    async def aclose(self):
        await trio.lowlevel.checkpoint()


async def test_answers_that_are_not_read_are_bounded(autojump_clock):
    from sidecar.http import serve_connection

    budget = MemoryBudget(SMALL)
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(lambda: serve_connection(NeverRead(post(b"x" * 20_000)), echo, budget=budget))
            await trio.testing.wait_all_tasks_blocked()
            assert budget.statistics().held_bytes <= 3 * SMALL // 16
        assert len(nursery.child_tasks) < 6, "those that did not read for the longest time are gone"
        async with served(budget=budget) as client:
            await client.send(post(b"x" * 20_000))
            assert len(bodies(await client.until_quiet())[0]) == 20_000
        nursery.cancel_scope.cancel()
    assert nothing_is_held(budget)


async def test_requests_after_one_that_is_handled_are_bounded():
    budget = MemoryBudget(SMALL)
    release = trio.Event()

    async def slow(request):
        await release.wait()
        return Response(200, b"ok")

    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(served(slow, budget=budget)) for _ in range(10)]
        for client in clients:
            await client.send(post(b"x" * 10_000) * 5)
            await trio.testing.wait_all_tasks_blocked()
            assert budget.statistics().held_bytes <= 3 * SMALL // 16
        release.set()
        evicted, last = answers(await clients[0].rest()), answers(await clients[-1].until_quiet())
        assert [status for status, *_ in evicted] == [200, 503], "what is being handled is answered first"
        assert [status for status, *_ in last] == [200] * 5


def test_progress_moves_a_holder_to_the_end_of_the_line():
    budget, evicted = MemoryBudget(16_000), []
    first, second, third = (Holder(lambda name=name: evicted.append(name)) for name in ("first", "second", "third"))
    budget.hold(first, 1_000)
    budget.hold(second, 1_000)
    budget.hold(first, 900, progress=True)
    budget.hold(third, 2_000)
    assert evicted == ["second"]
    assert budget.statistics().held_bytes == 2_900


async def test_a_cancelled_wait_reserves_nothing():
    budget = MemoryBudget(SMALL)
    await budget.reserve(MIB)
    with trio.move_on_after(0):
        await budget.reserve(MIB)
    assert budget.statistics().large_waiting == 0
    budget.release(MIB)
    assert nothing_is_held(budget)


async def test_the_wait_for_memory_is_bounded_by_the_bytes_that_wait():
    budget = MemoryBudget(SMALL)
    await budget.reserve(MIB)
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(budget.reserve, 1)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(BudgetExceeded):
            await budget.reserve(1)
        budget.release(MIB)


def steps(*slices: str, log: list[str] | None = None):
    """Work that takes these slices; each is noted as it begins."""
    for number, name in enumerate(slices):
        if log is not None:
            log.append(name)
        if number < len(slices) - 1:
            yield
    return slices[-1]


async def test_small_requests_do_not_wait_for_the_commits_of_a_large_one(autojump_clock):
    """A batch of 5 MiB filled the share of parsed events by itself: no other request was served until it was stored."""
    budget = MemoryBudget(16 * MIB)
    budget.add(8 * MIB, large=True)
    assert await budget.work(lambda: steps("small"), 1_000) == ("small", False)
    with pytest.raises(BudgetExceeded):
        await budget.work(lambda: steps("large"), LARGE_BYTES)
    budget.add(4 * MIB)
    with pytest.raises(BudgetExceeded):
        await budget.work(lambda: steps("small"), 1_000)
    budget.add(-12 * MIB, large=True)
    budget.add(0)
    assert await budget.work(lambda: steps("large"), LARGE_BYTES) == ("large", True)


async def test_a_small_body_holds_only_its_bytes_while_it_waits(autojump_clock):
    """Thousands of requests had each judged 256 events and waited for their turn with them: 800 MB."""
    budget, log = MemoryBudget(16 * MIB), []
    budget.add(4 * MIB, large=True)
    async with trio.open_nursery() as nursery:
        for name in "ab":
            nursery.start_soon(budget.work, lambda name=name: steps(name, f"{name}, second", log=log), 1_000)
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(log) == ["a", "b"]  # the first slice of each, and nothing of it is kept
        assert await budget.work(lambda: steps("small"), 1_000) == ("small", False)
        budget.add(-4 * MIB, large=True)
    assert sorted(log[2:]) == ["a", "a, second", "b", "b, second"]
    assert [name[0] for name in log[2:]] in (list("aabb"), list("bbaa"))  # one after the other


async def test_a_large_request_that_waits_for_space_holds_up_no_other_group():
    tcp = MemoryBudget(16 * MIB)
    unix = MemoryBudget(16 * MIB, tcp.working)
    tcp.add(4 * MIB)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tcp.work, lambda: steps("tcp"), LARGE_BYTES)
        await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(5):
            assert await unix.work(lambda: steps("a", "unix"), LARGE_BYTES) == ("unix", True)
        tcp.add(-4 * MIB)


async def test_a_body_of_tiny_parts_is_not_parsed_before_its_turn(autojump_clock):
    """The first slice of each was parsed and thrown away: with thousands at once that alone took a second."""
    budget, log = MemoryBudget(16 * MIB), []
    budget.add(4 * MIB, large=True)
    with pytest.raises(BudgetExceeded):
        await budget.work(lambda: steps("a", "b", log=log), 1_000, has_tiny_parts=True)
    assert log == []
    budget.add(-4 * MIB, large=True)
    assert await budget.work(lambda: steps("a", "b", log=log), 1_000, has_tiny_parts=True) == ("b", True)
    assert log == ["a", "b"]


async def test_requests_that_wait_for_space_have_turns_by_size_and_by_age(autojump_clock):
    budget, served_in = MemoryBudget(16 * MIB), []
    budget.add(4 * MIB)

    async def ask(size_bytes: int) -> None:
        await budget.work(lambda: steps("done"), size_bytes)
        served_in.append(size_bytes)
        budget.next_turn()

    async with trio.open_nursery() as nursery:
        for size_bytes in (900, 800, 700, 10, 600):
            nursery.start_soon(ask, size_bytes)
            await trio.testing.wait_all_tasks_blocked()
        budget.add(-4 * MIB)
    assert served_in == [900, 10, 800, 600, 700]


async def test_the_largest_is_refused_where_too_many_wait(autojump_clock):
    budget, refused = MemoryBudget(16 * 2**16 + 8 * 5 * WAITING_BYTES), []
    budget.add(MIB)

    async def ask(size_bytes: int) -> None:
        try:
            await budget.work(lambda: steps("done"), size_bytes)
        except BudgetExceeded:
            refused.append(size_bytes)

    async with trio.open_nursery() as nursery:
        for size_bytes in (50_000, 60_000, 20_000, 100, 30_000):
            nursery.start_soon(ask, size_bytes)
            await trio.testing.wait_all_tasks_blocked()
        assert refused == [60_000]
        budget.add(-MIB)
        for _ in range(3):
            await trio.testing.wait_all_tasks_blocked()
            budget.next_turn()
    assert refused == [60_000]


@pytest.mark.parametrize("end", ["answered", "refused", "unfinished"])
async def test_a_connection_leaves_nothing_to_the_garbage_collector(end):
    """Each left two reference cycles: with thousands that came and went, full collections held up all others."""
    budget = MemoryBudget(16 * MIB)
    async with served(budget=budget) as connection:
        await connection.send({"answered": post(b"x"), "refused": b"nonsense\r\n\r\n"}.get(end, BEGUN[:1_000]))
        await connection.until_quiet()
        gc.collect()
        gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        gc.collect()
        left = [thing for thing in gc.garbage if type(thing).__module__.startswith("sidecar.http")]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
    assert left == []


async def test_a_large_work_pauses_after_each_slice(mock_clock):
    """A loop that never sleeps leaves the store's thread half a millisecond of waiting for each row."""
    done = 0

    def work():
        nonlocal done
        for done in range(1, 4):  # noqa: B007 - counts the slices
            yield

    async with trio.open_nursery() as nursery:
        nursery.start_soon(in_slices, work())
        for slices in (1, 2, 3):
            await trio.testing.wait_all_tasks_blocked()
            assert done == slices
            mock_clock.jump(PAUSE_S)
