"""A daemon whose disk fails: no event, settlement or task is lost. Each case was found by the simulation."""

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
from sidecar.daemon import Seams, build, serve
from sidecar.outbox import InlineRunner, Store, StoreFailed
from sidecar.px.network import FakeNetwork


class FalseErrors(sqlite3.Connection):
    """Reports an error for the next ``count`` commits, although they have happened."""

    count = 0

    def execute(self, sql, *rest):
        done = super().execute(sql, *rest)
        if sql == "COMMIT" and FalseErrors.count:
            FalseErrors.count -= 1
            error = sqlite3.OperationalError("injected")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR
            raise error
        return done


@asynccontextmanager
async def running(path: Path):
    daemon = build(
        load_text('[px]\nproperty_key = "AP-XXXXXXXXXX-2"\n'),
        Seams(
            store=Store(path, factory=FalseErrors),
            network=FakeNetwork(),
            clock=VirtualClock(started_s=trio.current_time()),
            runner=InlineRunner(),
            random=Random(1),
        ),
    )
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, daemon, stop.wait)
        await trio.sleep(5.5)
        yield daemon
        stop.set()
    daemon.store.close()


async def test_events_of_a_failed_commit_that_happened_are_delivered(tmp_path, autojump_clock):
    """The client's retry stored nothing new, so the dispatcher was not woken for an event that was on disk."""
    async with running(tmp_path / "o.db") as daemon:
        await trio.sleep(0.1)
        FalseErrors.count = 1
        with pytest.raises(StoreFailed):
            await daemon.outbox.accept([event(1)])
        assert FalseErrors.count == 0
        assert (await daemon.outbox.accept([event(1)])).repeated == 1
        with trio.fail_after(100):
            while daemon.store.pending():
                await trio.sleep(1)
    assert daemon.store.counters["delivered"] == 1


async def test_a_stop_commits_settlements_if_saving_state_fails(tmp_path, autojump_clock):
    """A failure to save the destination state once ended the writer before the queued settlements were committed."""
    async with running(tmp_path / "o.db") as daemon:
        await daemon.delivery_control.pause()
        await daemon.outbox.accept([event(1)])
        daemon.outbox.settle(delivered(1), more_expected=True)
        write, failed = daemon.outbox.write, []

        async def fails(call):
            if call.__name__ == "save":
                failed.append(call)
                raise StoreFailed("the disk fails")
            return await write(call)

        daemon.outbox.write = fails
    assert failed
    assert daemon.store.counters["delivered"] == 1


async def test_the_limit_watch_survives_a_failed_read(tmp_path, autojump_clock):
    """A read that failed once ended the watch, and with it the daemon."""
    async with running(tmp_path / "o.db") as daemon:
        read, reads = daemon.outbox.read, []

        async def fails(call):
            reads.append(call)
            if len(reads) == 1:
                raise StoreFailed("the disk fails")
            return await read(call)

        daemon.outbox.read = fails
        await trio.sleep(limits.ROUND_EVERY_S + 10)
        assert len(reads) > 1
