"""A daemon on a damaged outbox delivers undamaged events, whether damage is detected at the start or when it is read.

The daemon runs in this process under virtual time, against a PX that accepts everything.
"""

import json
import random
import tempfile
from pathlib import Path
from random import Random

import pytest
import trio
from outbox_damage import RowLocations, damage, fill, is_newer_schema, rows_of
from outbox_files import IN_MEMORY, copied

from sidecar.clock import VirtualClock
from sidecar.config import load_text
from sidecar.daemon import Seams, build, open_store, serve
from sidecar.errors import ConfigError, Failed
from sidecar.outbox import InlineRunner, StoreFailed, recovery
from sidecar.px import PxAnswer, PxRequest, Reply
from sidecar.px.network import FakeNetwork
from sidecar.systemd import Notifier

ROUNDS = 60
STARTS = 4
CONFIG = (
    '[px]\nproperty_key = "AP-XXXXXXXXXX-2"\n[deliver]\nper_second = 190\n[mapping.fields]\neventId = "messageId"\n'
)


@pytest.fixture(scope="module")
def pristine():
    with tempfile.TemporaryDirectory(dir=IN_MEMORY if IN_MEMORY.is_dir() else None) as folder:
        store = fill(Path(folder) / "o.db")
        yield copied(store.path, Path(folder) / "as_killed"), rows_of(store)
        store.close()


class RecordingPx:
    """Answers 201 and records the event ids."""

    def __init__(self):
        self.ids = set()

    async def answer(self, request: PxRequest) -> Reply:
        await trio.sleep(0.05)
        self.ids.add(json.loads(request.body).get("eventId"))
        return PxAnswer(201, b"{}")


async def run_daemon(path: Path, px: RecordingPx, for_s: float) -> bool:
    """Run a daemon until nothing is pending, or for ``for_s``; return True if nothing is pending any more."""
    config = load_text(f'{CONFIG}[outbox]\npath = "{path}"\ndurability = "process"\n')
    async with open_store(config, InlineRunner(), Notifier({})) as store:
        daemon = build(
            config,
            Seams(
                store=store,
                network=FakeNetwork(px.answer),
                clock=VirtualClock(started_s=trio.current_time()),
                runner=InlineRunner(),
                random=Random(1),
            ),
        )
        drained = []

        async def until_drained():
            with trio.move_on_after(for_s):
                while daemon.store.pending():
                    await trio.sleep(0.5)
                await trio.sleep(5)  # housekeeping compares indexes and counters meanwhile
                drained.append(True)

        await serve(daemon, until_drained)
        return bool(drained)


async def supervise(path: Path, px: RecordingPx) -> int:
    """Start the daemon again, as a supervisor does, until nothing is pending; return the number of starts."""
    for start in range(1, STARTS + 1):
        try:
            if await run_daemon(path, px, 120):
                return start
        except BaseExceptionGroup as group:
            _, bugs = group.split(StoreFailed)
            if bugs is not None:
                raise
        except Failed:
            pass
    raise AssertionError(f"events are still pending after {STARTS} starts")


@pytest.mark.whole
@pytest.mark.parametrize("checked_pages", [recovery.CHECKED_PAGES, 0])
async def test_undamaged_events_are_delivered(pristine, autojump_clock, monkeypatch, checked_pages):
    """With 0 the file counts as large: nothing is checked at the start, and damage is detected when it is read."""
    monkeypatch.setattr(recovery, "CHECKED_PAGES", checked_pages)
    path, rows = pristine
    locations = RowLocations(path)
    restarts = 0
    for seed in range(5000, 5000 + ROUNDS):
        dice = random.Random(seed)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            damaged = copied(path, Path(folder) / "x")
            where, begin, end = damage(damaged, dice)
            hit = locations.hit(where, begin, end)
            px = RecordingPx()
            try:
                restarts += await supervise(damaged, px) - 1
            except ConfigError:
                assert is_newer_schema(where, begin, end), (seed, where, begin, end)
                continue
            undamaged = [row for event_id, row in rows.items() if row[0] < 4 and event_id not in hit]
            assert {json.loads(row[4])["messageId"] for row in undamaged} <= px.ids, (seed, where, begin, end)
    assert (restarts > 0) == (checked_pages == 0)
