"""A daemon on a damaged outbox: it delivers what was not hit, whether the damage is met at the start or on the way.

Delivery is in process, with a PX that takes everything, under virtual time; a few rounds are real processes.
"""

import json
import random
import tempfile
from pathlib import Path
from random import Random

import pytest
import trio
from outbox_files import IN_MEMORY, copied
from test_outbox_damage import Places, damage, fill, is_newer_schema, rows_of

from sidecar.clock import VirtualClock
from sidecar.config import load_text
from sidecar.daemon import Daemon, open_store
from sidecar.errors import ConfigError, Failed
from sidecar.outbox import InlineRunner, StoreFailed, recovery
from sidecar.px import Answer, Reply, Request
from sidecar.px.fake import FakeNetwork
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


class Taken:
    def __init__(self):
        self.ids = set()

    async def answer(self, request: Request) -> Reply:
        await trio.sleep(0.05)
        self.ids.add(json.loads(request.body).get("eventId"))
        return Answer(201, b"{}")


async def live(path: Path, px: Taken, for_s: float) -> bool:
    """One life of a daemon; whether it came to its end because nothing was pending any more."""
    config = load_text(f'{CONFIG}[outbox]\npath = "{path}"\ndurability = "process"\n')
    async with open_store(config, InlineRunner(), Notifier({})) as store:
        daemon = Daemon(
            config,
            store=store,
            network=FakeNetwork(px.answer),
            clock=VirtualClock(started_s=trio.current_time()),
            runner=InlineRunner(),
            random=Random(1),
        )
        done = []

        async def until_drained():
            with trio.move_on_after(for_s):
                while daemon.store.pending():
                    await trio.sleep(0.5)
                await trio.sleep(5)  # for housekeeping to look at everything
                done.append(True)

        await daemon.run(until_drained)
        return bool(done)


async def lives(path: Path, px: Taken) -> int:
    """Start after start, as a supervisor does; how many it took."""
    for start in range(1, STARTS + 1):
        try:
            if await live(path, px, 120):
                return start
        except BaseExceptionGroup as group:
            _, bugs = group.split(StoreFailed)
            if bugs is not None:
                raise
        except Failed:
            pass
    raise AssertionError(f"events are still pending after {STARTS} starts")


@pytest.mark.parametrize("checked_pages", [recovery.CHECKED_PAGES, 0])
async def test_what_was_not_hit_is_delivered(pristine, autojump_clock, monkeypatch, checked_pages):
    """With 0 as in a large file: nothing is checked at the start, and damage is met where it is read."""
    monkeypatch.setattr(recovery, "CHECKED_PAGES", checked_pages)
    path, rows = pristine
    places = Places(path)
    restarts = 0
    for seed in range(5000, 5000 + ROUNDS):
        dice = random.Random(seed)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            there = copied(path, Path(folder) / "x")
            where, begin, end = damage(there, dice)
            hit = places.hit(where, begin, end)
            px = Taken()
            try:
                restarts += await lives(there, px) - 1
            except ConfigError:
                assert is_newer_schema(there, where, begin, end), (seed, where, begin, end)
                continue
            pending = {json.loads(row[4])["messageId"] for one, row in rows.items() if row[0] < 4 and one not in hit}
            assert pending <= px.ids, (seed, where, begin, end)
    assert (restarts > 0) == (checked_pages == 0)
