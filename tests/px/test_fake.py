"""The network that ships for simulations behaves like the real one as far as its users can tell."""

import trio

from sidecar.px import Answer, Request
from sidecar.px.fake import FakeNetwork

EVENT = Request("POST", "/v1/events/custom", b"{}")


async def test_without_a_script_everything_is_delivered():
    network = FakeNetwork()
    assert (await network.lane().send(EVENT)).status == 201
    assert network.sent == [EVENT]


async def test_a_script_takes_its_time_and_lanes_run_side_by_side(autojump_clock):
    async def slow(request):
        await trio.sleep(10)
        return Answer(503)

    network = FakeNetwork(slow)
    lanes = [network.lane() for _ in range(5)]
    started_s = trio.current_time()
    async with trio.open_nursery() as nursery:
        for lane in lanes:
            nursery.start_soon(lane.send, EVENT)
    assert trio.current_time() - started_s == 10
    assert (network.lanes, network.most_at_once, network.at_once) == (5, 5, 0)


async def test_a_cancelled_lane_is_usable(autojump_clock):
    async def hang_once(request):
        if len(network.sent) == 1:
            await trio.sleep_forever()
        return Answer(201)

    network = FakeNetwork(hang_once)
    lane = network.lane()
    with trio.move_on_after(1):
        await lane.send(EVENT)
    assert (await lane.send(EVENT)).status == 201
