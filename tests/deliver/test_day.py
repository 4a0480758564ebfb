"""The day's quota in the whole daemon, over days of virtual time: never more, across restarts and steps of the clock.

The day of full size, 990,000 requests a day and 3,000,000 events, is ``-m slow`` and takes about half an hour.
"""

import json
import math
from random import Random

import pytest
import trio
from test_delivery import CREATED, LATENCY_S, Px, event, most_in_a_second

from sidecar.clock import VirtualClock
from sidecar.config import load_text
from sidecar.daemon import Daemon
from sidecar.outbox import InlineRunner, Store
from sidecar.px import Reply, Request
from sidecar.px.fake import FakeNetwork

DAY_S = 86_400
PER_DAY = 300
ACCEPTED_AT_ONCE = 5_000


@pytest.fixture(autouse=True)
def unhurried(monkeypatch):
    """Proofs of life and housekeeping once a minute: a virtual day has 86,400 seconds."""
    monkeypatch.setattr("sidecar.daemon.PROOF_EVERY_S", 60.0)
    monkeypatch.setattr("sidecar.outbox.writer.KEEP_INTERVAL_S", 60.0)


def most_in_a_day(times_s: list[float]) -> int:
    return most_in_a_second([at_s / DAY_S for at_s in times_s])


class Created(Px):
    """A PX that stores everything, and keeps no more of it than the numbers: there may be millions."""

    def __init__(self) -> None:
        super().__init__(lambda _one, _px: CREATED)
        self.numbers: set[int] = set()

    async def answer(self, request: Request) -> Reply:
        self.requests_s.append(trio.current_time())
        self.numbers.add(json.loads(request.body)["attributes"]["n"])
        await trio.sleep(LATENCY_S)
        return CREATED


class Days:
    """One host: a file, a clock that boots once, and daemons that come and go."""

    def __init__(self, folder, px: Px, deliver: str, per_day: int = PER_DAY) -> None:
        self.clock = VirtualClock(started_s=trio.current_time())
        self.px = px
        self._folder = folder
        self._config = load_text(f'[px]\nproperty_key = "AP-XXXXXXXXXX-2"\n[deliver]\nper_day = {per_day}\n{deliver}')

    def daemon(self) -> Daemon:
        return Daemon(
            self._config,
            store=Store(self._folder / "outbox.db"),
            network=FakeNetwork(self.px.answer),
            clock=self.clock,
            runner=InlineRunner(),
            random=Random(1),
        )

    async def live(self, for_s: float, *, crash: bool = False, events: int = 0) -> int:
        """A daemon lives for so long, or until nothing is pending; how many events are pending at its end."""
        daemon = self.daemon()
        stop = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(daemon.run, stop.wait)
            for start in range(0, events, ACCEPTED_AT_ONCE):
                numbers = range(start, min(start + ACCEPTED_AT_ONCE, events))
                await daemon.outbox.accept([event(number, f"u{number}") for number in numbers])
            with trio.move_on_after(for_s):
                while daemon.store.pending():
                    await trio.sleep(30)
            if crash:
                nursery.cancel_scope.cancel()
            else:
                stop.set()
        pending = daemon.store.pending()
        daemon.store.connection.close()
        return pending


@pytest.mark.timeout(3 * 3_600)
@pytest.mark.parametrize(
    ("deliver", "per_day", "events"),
    [
        ("", PER_DAY, 2 * PER_DAY),
        ('pace = "spread"', PER_DAY, 2 * PER_DAY),
        ("reserve_for_high = 0.0", PER_DAY, 2 * PER_DAY),
        pytest.param("", 990_000, 3_000_000, marks=pytest.mark.slow),
    ],
)
async def test_no_day_ever_holds_more_and_nothing_waits_longer_than_it_must(
    tmp_path, autojump_clock, deliver, per_day, events
):
    px = Created()
    days = Days(tmp_path, px, deliver, per_day)
    began_s = trio.current_time()
    pending = await days.live(3_600, events=events)
    step, crashes = 0, 0
    while pending:
        step += 1
        days.clock.wall_step_ms = [0, DAY_S * 1000, -DAY_S * 1000][step % 3]
        crash = step % 2 == 0
        crashes += crash
        pending = await days.live(7 * 3_600, crash=crash)
        assert trio.current_time() - began_s < 5 * DAY_S
    assert most_in_a_day(px.requests_s) <= per_day
    assert len(px.numbers) == events
    # A crash loses what is left of a lease, and that is never more than a hundredth of the day.
    usable = per_day * (1.0 if "0.0" in deliver else 0.9) - per_day // 100 * crashes
    least_days = events / usable if "spread" in deliver else math.ceil(events / usable) - 1
    assert trio.current_time() - began_s < (least_days + 0.35) * DAY_S + 3_600


async def test_calendar_days_start_at_midnight(tmp_path, autojump_clock):
    px = Created()
    days = Days(tmp_path, px, 'day = "utc"\nreserve_for_high = 0.0')
    to_midnight_s = DAY_S - days.clock.wall_ms() / 1000 % DAY_S
    assert await days.live(to_midnight_s - 600, events=2 * PER_DAY) == PER_DAY
    assert await days.live(3_600) == 0
    assert len(px.requests_s) == 2 * PER_DAY
