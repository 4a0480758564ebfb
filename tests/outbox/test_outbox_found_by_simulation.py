"""How the outbox and its daemon once broke their promises, as the simulation found it; each test is named after it."""

import sqlite3
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest
import trio
from outbox_files import delivered, event

from sidecar.clock import VirtualClock
from sidecar.config import load_text
from sidecar.control import limits
from sidecar.daemon import Daemon
from sidecar.outbox import InlineRunner, Store, StoreFailed
from sidecar.px.fake import FakeNetwork


class Lying(sqlite3.Connection):
    """Reports that as many of the next commits failed as ``lies`` says, although they happened."""

    lies = 0

    def execute(self, sql, *rest):
        done = super().execute(sql, *rest)
        if sql == "COMMIT" and Lying.lies:
            Lying.lies -= 1
            error = sqlite3.OperationalError("injected")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR
            raise error
        return done


@asynccontextmanager
async def running(path: Path):
    daemon = Daemon(
        load_text('[px]\nproperty_key = "AP-XXXXXXXXXX-2"\n'),
        store=Store(path, factory=Lying),
        network=FakeNetwork(),
        clock=VirtualClock(started_s=trio.current_time()),
        runner=InlineRunner(),
        random=Random(1),
    )
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(daemon.run, stop.wait)
        await trio.sleep(5.5)
        yield daemon
        stop.set()
    daemon.store.close()


async def test_an_event_whose_commit_failed_and_happened_all_the_same_waited_for_the_next_one(tmp_path, autojump_clock):
    """The client sent it again, which stored nothing new; so nobody told the dispatcher that there was something."""
    async with running(tmp_path / "o.db") as daemon:
        await trio.sleep(0.1)
        Lying.lies = 1
        with pytest.raises(StoreFailed):
            await daemon.outbox.accept([event(1)])
        assert Lying.lies == 0
        assert (await daemon.outbox.accept([event(1)])).repeated == 1
        with trio.fail_after(100):
            while daemon.store.pending():
                await trio.sleep(1)
    assert daemon.store.counters["delivered"] == 1


async def test_a_stop_on_an_ill_disk_left_settlements_behind_when_the_last_note_failed(tmp_path, autojump_clock):
    """What the next process should know could not be stored; that ended the writer before it had committed the rest."""
    async with running(tmp_path / "o.db") as daemon:
        await daemon.desk.pause()
        await daemon.outbox.accept([event(1)])
        daemon.outbox.settle(delivered(1), more_expected=True)
        write = daemon.outbox.write

        async def fails(call):
            if call.__name__ == "save":
                raise StoreFailed("the disk is ill")
            return await write(call)

        daemon.outbox.write = fails
    assert daemon.store.counters["delivered"] == 1


async def test_a_look_for_px_limits_that_could_not_be_taken_ended_the_daemon(tmp_path, autojump_clock):
    async with running(tmp_path / "o.db") as daemon:
        read, asked = daemon.outbox.read, []

        async def fails(call):
            asked.append(call)
            if len(asked) == 1:
                raise StoreFailed("the disk is ill")
            return await read(call)

        daemon.outbox.read = fails
        await trio.sleep(limits.ROUND_EVERY_S + 10)
        assert len(asked) > 1
