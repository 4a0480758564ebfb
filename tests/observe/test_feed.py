"""The live feed: publishing never waits for a reader, and a slow reader learns how many records it missed."""

import trio

from sidecar.observe import Feed


async def take(reader, count):
    return [await anext(reader) for _ in range(count)]


async def test_readers_get_what_is_published_while_subscribed(autojump_clock):
    feed = Feed()
    feed.publish({"id": 0})
    async with feed.subscribe() as first, feed.subscribe() as second:
        assert feed.listeners == 2
        feed.publish({"id": 1})
        feed.publish({"id": 2})
        assert await take(first, 2) == await take(second, 2) == [{"id": 1}, {"id": 2}]
    assert feed.listeners == 0
    feed.publish({"id": 3})


async def test_a_waiting_reader_is_woken(autojump_clock):
    feed = Feed()
    got = []

    async def read():
        async with feed.subscribe() as reader:
            async for record in reader:
                got.append((trio.current_time() - started_s, record["id"]))

    started_s = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        for index in range(3):
            await trio.sleep(1)
            feed.publish({"id": index})
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert got == [(1, 0), (2, 1), (3, 2)]
    assert feed.listeners == 0


async def test_a_slow_reader_gets_the_number_of_lost_records_in_order(autojump_clock):
    feed = Feed()
    async with feed.subscribe(capacity=3) as reader:
        for index in range(10):
            feed.publish({"id": index})
        assert await take(reader, 2) == [{"id": 0}, {"id": 1}]
        feed.publish({"id": 10})
        assert await take(reader, 3) == [{"id": 2}, {"missed": 7}, {"id": 10}]


async def test_lost_records_are_reported_when_the_queue_is_empty(autojump_clock):
    feed = Feed()
    async with feed.subscribe(capacity=2) as reader:
        for index in range(5):
            feed.publish({"id": index})
        assert await take(reader, 3) == [{"id": 0}, {"id": 1}, {"missed": 3}]
        with trio.move_on_after(10) as scope:
            await anext(reader)
        assert scope.cancelled_caught


async def test_a_slow_reader_does_not_delay_others(autojump_clock):
    feed = Feed()
    slow, fast = [], []

    async def read(into, pause_s, capacity):
        async with feed.subscribe(capacity) as reader:
            async for record in reader:
                into.append(record)
                await trio.sleep(pause_s)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read, slow, 5.0, 4)
        nursery.start_soon(read, fast, 0.0, 4)
        await trio.testing.wait_all_tasks_blocked()
        started_s = trio.current_time()
        for index in range(200):
            feed.publish({"id": index})
            await trio.sleep(0.1)
        assert trio.current_time() - started_s < 20.1
        await trio.sleep(60)
        nursery.cancel_scope.cancel()
    assert fast == [{"id": index} for index in range(200)]
    seen = [record for record in slow if "id" in record]
    assert len(seen) + sum(record.get("missed", 0) for record in slow) == 200
    assert len(seen) < 20


async def test_reading_is_a_checkpoint_even_if_records_wait(autojump_clock):
    feed = Feed()
    async with feed.subscribe() as reader, trio.open_nursery() as nursery:
        ran = trio.Event()

        async def other():
            ran.set()

        for index in range(50):
            feed.publish({"id": index})
        nursery.start_soon(other)
        await take(reader, 10)
        assert ran.is_set()
