"""The ceiling by our own send log on real clocks: without tolerance, under any load of the machine, across restarts."""

from random import Random

import trio
from delivery_harness import new_event

from sidecar.clock import SystemClock
from sidecar.config import load_text
from sidecar.daemon import Seams, build, serve
from sidecar.outbox import Store, ThreadRunner
from sidecar.px import PxAnswer, PxRequest
from sidecar.px.network import FakeNetwork

CEILING = 190
RUNS_S = (1.3, 0.4, 1.2, 0.9)


async def answer(_request: PxRequest) -> PxAnswer:
    await trio.sleep(0.02)
    return PxAnswer(201, b"{}")


async def run_daemon(folder, for_s: float, log_s: list[float], *, crash: bool, events: list) -> None:
    """Run a daemon for ``for_s`` on the outbox in ``folder``; log every send at the moment of its decision."""
    daemon = build(
        load_text('[px]\nproperty_key = "AP-XXXXXXXXXX-2"'),
        Seams(
            store=Store(folder / "outbox.db"),
            network=FakeNetwork(answer),
            clock=SystemClock(),
            runner=ThreadRunner(),
            random=Random(1),
        ),
    )
    bucket, stop = daemon.delivery.dispatcher.limiter.bucket, trio.Event()
    take = bucket.take

    def logged(now_s: float) -> None:
        log_s.append(now_s)
        take(now_s)

    bucket.take = logged  # type: ignore[method-assign]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, daemon, stop.wait)
        if events:
            await daemon.outbox.accept(events)
        await trio.sleep(for_s)
        if crash:
            nursery.cancel_scope.cancel()
        stop.set()
    daemon.store.connection.close()


async def test_no_second_exceeds_the_ceiling_across_restarts(tmp_path):
    log_s: list[float] = []
    events = [new_event(number, f"u{number}") for number in range(1_000)]
    for number, for_s in enumerate(RUNS_S):
        await run_daemon(tmp_path, for_s, log_s, crash=number % 2 == 1, events=[] if number else events)
    most = first = 0
    for last, at_s in enumerate(log_s):
        while log_s[first] <= at_s - 1.0:
            first += 1
        most = max(most, last - first + 1)
    assert 100 < most <= CEILING
    assert len(log_s) > 200
