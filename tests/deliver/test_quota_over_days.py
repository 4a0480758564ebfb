"""The day's quota in the whole daemon over host of virtual time: never exceeded, across restarts and clock steps.

The day of full size, 990,000 requests a day and 3,000,000 events, is ``-m slow`` and takes about half an hour.
"""

import json
import math
from random import Random

import pytest
import trio
from delivery_harness import CREATED, LATENCY_S, ScriptedPx, create_all, most_in_a_second, new_event

from sidecar.clock import VirtualClock
from sidecar.config import load_text
from sidecar.daemon import Application, Seams, build, serve
from sidecar.outbox import InlineRunner, Store
from sidecar.px import PxRequest, Reply
from sidecar.px.network import FakeNetwork

DAY_S = 86_400
PER_DAY = 300
ACCEPTED_AT_ONCE = 5_000


@pytest.fixture(autouse=True)
def rare_housekeeping(monkeypatch):
    """Run heartbeat probes and housekeeping once a minute: a virtual day has 86,400 seconds."""
    monkeypatch.setattr("sidecar.daemon.PROBE_EVERY_S", 60.0)
    monkeypatch.setattr("sidecar.outbox.housekeeping.STEP_EVERY_S", 60.0)


def most_in_a_day(times_s: list[float]) -> int:
    return most_in_a_second([at_s / DAY_S for at_s in times_s])


class CountingPx(ScriptedPx):
    """A PX that stores everything and keeps only the numbers of the events: there may be millions."""

    def __init__(self) -> None:
        super().__init__(create_all)
        self.numbers: set[int] = set()

    async def answer(self, request: PxRequest) -> Reply:
        self.requests_s.append(trio.current_time())
        self.numbers.add(json.loads(request.body)["attributes"]["n"])
        await trio.sleep(LATENCY_S)
        return CREATED


class HostOverDays:
    """One host: an outbox, a clock that boots once, and one daemon after the other."""

    def __init__(self, folder, px: ScriptedPx, deliver: str, per_day: int = PER_DAY) -> None:
        self.clock = VirtualClock(started_s=trio.current_time())
        self.px = px
        self._folder = folder
        self._config = load_text(f'[px]\nproperty_key = "AP-XXXXXXXXXX-2"\n[deliver]\nper_day = {per_day}\n{deliver}')

    def daemon(self) -> Application:
        store, network = Store(self._folder / "outbox.db"), FakeNetwork(self.px.answer)
        return build(self._config, Seams(store, network, self.clock, InlineRunner(), Random(1)))

    async def run(self, for_s: float, *, crash: bool = False, events: int = 0) -> int:
        """Run a daemon for ``for_s`` or until nothing is pending; return how many events are pending at its end."""
        daemon = self.daemon()
        stop = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, daemon, stop.wait)
            for start in range(0, events, ACCEPTED_AT_ONCE):
                numbers = range(start, min(start + ACCEPTED_AT_ONCE, events))
                await daemon.outbox.accept([new_event(number, f"u{number}") for number in numbers])
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
        pytest.param("", PER_DAY, 2 * PER_DAY, marks=pytest.mark.whole),
        pytest.param('pace = "spread"', PER_DAY, 2 * PER_DAY, marks=pytest.mark.whole),
        pytest.param("reserve_for_high = 0.0", PER_DAY, 2 * PER_DAY, marks=pytest.mark.whole),
        pytest.param("", 990_000, 3_000_000, marks=pytest.mark.slow),
    ],
)
async def test_no_day_exceeds_the_quota_and_no_event_waits_too_long(tmp_path, autojump_clock, deliver, per_day, events):
    px = CountingPx()
    host = HostOverDays(tmp_path, px, deliver, per_day)
    began_s = trio.current_time()
    pending = await host.run(3_600, events=events)
    step, crashes = 0, 0
    while pending:
        step += 1
        host.clock.wall_step_ms = [0, DAY_S * 1000, -DAY_S * 1000][step % 3]
        crash = step % 2 == 0
        crashes += crash
        pending = await host.run(7 * 3_600, crash=crash)
        assert trio.current_time() - began_s < 5 * DAY_S
    assert most_in_a_day(px.requests_s) <= per_day
    assert len(px.numbers) == events
    # A crash loses what is left of a lease, and that is never more than a hundredth of the day.
    usable = per_day * (1.0 if "0.0" in deliver else 0.9) - per_day // 100 * crashes
    least_days = events / usable if "spread" in deliver else math.ceil(events / usable) - 1
    assert trio.current_time() - began_s < (least_days + 0.35) * DAY_S + 3_600


async def test_calendar_days_start_at_midnight(tmp_path, autojump_clock):
    px = CountingPx()
    host = HostOverDays(tmp_path, px, 'day = "utc"\nreserve_for_high = 0.0')
    to_midnight_s = DAY_S - host.clock.wall_ms() / 1000 % DAY_S
    assert await host.run(to_midnight_s - 600, events=2 * PER_DAY) == PER_DAY
    assert await host.run(3_600) == 0
    assert len(px.requests_s) == 2 * PER_DAY
