"""``FakeNetwork`` behaves as the real network does, as far as delivery can tell."""

import trio

from sidecar.px import PxAnswer, PxRequest
from sidecar.px.network import FakeNetwork

EVENT = PxRequest("POST", "/v1/events/custom", b"{}")


async def test_the_default_script_delivers_everything():
    network = FakeNetwork()
    assert (await network.lane().send(EVENT)).status == 201
    assert network.sent == [EVENT]


async def test_lanes_run_concurrently_while_the_script_waits(autojump_clock):
    async def slow(request):
        await trio.sleep(10)
        return PxAnswer(503)

    network = FakeNetwork(slow)
    lanes = [network.lane() for _ in range(5)]
    started_s = trio.current_time()
    async with trio.open_nursery() as nursery:
        for lane in lanes:
            nursery.start_soon(lane.send, EVENT)
    assert trio.current_time() - started_s == 10
    assert (network.lanes, network.max_in_flight, network.in_flight) == (5, 5, 0)


async def test_a_cancelled_lane_is_usable(autojump_clock):
    async def hang_once(request):
        if len(network.sent) == 1:
            await trio.sleep_forever()
        return PxAnswer(201)

    network = FakeNetwork(hang_once)
    lane = network.lane()
    with trio.move_on_after(1):
        await lane.send(EVENT)
    assert (await lane.send(EVENT)).status == 201
