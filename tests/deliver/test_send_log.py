"""The ceiling by our own send log, on real clocks: no tolerance, whatever the machine is doing, across restarts."""

from random import Random

import trio
from test_delivery import event

from sidecar.clock import SystemClock
from sidecar.config import load_text
from sidecar.daemon import Daemon
from sidecar.outbox import Store, ThreadRunner
from sidecar.px import Answer, Request
from sidecar.px.fake import FakeNetwork

CEILING = 190
LIVES_S = (1.3, 0.4, 1.2, 0.9)


async def answer(_request: Request) -> Answer:
    await trio.sleep(0.02)
    return Answer(201, b"{}")


async def live(folder, for_s: float, log_s: list[float], *, crash: bool, events: list) -> None:
    """A daemon lives for so long on the same outbox; every send is logged at the moment it is decided."""
    daemon = Daemon(
        load_text('[px]\nproperty_key = "AP-XXXXXXXXXX-2"'),
        store=Store(folder / "outbox.db"),
        network=FakeNetwork(answer),
        clock=SystemClock(),
        runner=ThreadRunner(),
        random=Random(1),
    )
    bucket, stop = daemon.delivery.dispatcher.bucket, trio.Event()
    take = bucket.take

    def logged(now_s: float) -> None:
        log_s.append(now_s)
        take(now_s)

    bucket.take = logged  # type: ignore[method-assign]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(daemon.run, stop.wait)
        if events:
            await daemon.outbox.accept(events)
        await trio.sleep(for_s)
        if crash:
            nursery.cancel_scope.cancel()
        stop.set()
    daemon.store.connection.close()


async def test_no_second_ever_holds_more_than_the_ceiling_through_restarts_and_crashes(tmp_path):
    log_s: list[float] = []
    events = [event(number, f"u{number}") for number in range(1_000)]
    for number, for_s in enumerate(LIVES_S):
        await live(tmp_path, for_s, log_s, crash=number % 2 == 1, events=[] if number else events)
    most = first = 0
    for last, at_s in enumerate(log_s):
        while log_s[first] <= at_s - 1.0:
            first += 1
        most = max(most, last - first + 1)
    assert 100 < most <= CEILING
    assert len(log_s) > 200
