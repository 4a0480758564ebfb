"""A disk that hangs: health and watchdog turn within seconds of the oldest write that waits, and signals still work."""

import os
import signal
import threading
from contextlib import asynccontextmanager
from functools import partial
from random import Random

import pytest
import trio
import trio.testing
from outbox_files import event

from sidecar import daemon
from sidecar.clock import VirtualClock
from sidecar.config import load_text
from sidecar.control import signals
from sidecar.control.pages import UNHEALTHY_AFTER_S, health_problems
from sidecar.control.signals import end_if_disk_hangs, handle_signals
from sidecar.daemon import Seams, build, serve
from sidecar.observe import heartbeats
from sidecar.outbox import InlineRunner, Store, ThreadRunner
from sidecar.outbox.database import BUSY_TIMEOUT_S
from sidecar.px.network import FakeNetwork
from sidecar.systemd import Notifier


class HangingRunner(InlineRunner):
    """The calls to the store hang while ``hung``, as in a thread that waits for a disk; none is abandoned."""

    def __init__(self) -> None:
        self.resumed = trio.Event()
        self.resumed.set()

    def hang(self) -> None:
        self.resumed = trio.Event()

    async def run(self, call):
        with trio.CancelScope(shield=True):
            await self.resumed.wait()
        return await super().run(call)


class WatchdogTimes(Notifier):
    def __init__(self) -> None:
        super().__init__({})
        self.fed_s: list[float] = []

    def watchdog(self) -> None:
        self.fed_s.append(trio.current_time())


@asynccontextmanager
async def running(tmp_path, monkeypatch):
    monkeypatch.setattr(daemon, "watchdog_s", lambda: 30.0)
    runner, notifier = HangingRunner(), WatchdogTimes()
    store = Store(tmp_path / "o.db")
    clock = VirtualClock(started_s=trio.current_time())
    config = load_text('[px]\nproperty_key = "AP-XXXXXXXXXX-2"\n')
    app = build(config, Seams(store, FakeNetwork(), clock, runner, Random(1), notifier))
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, app, stop.wait)
        await trio.sleep(5)
        yield app, runner, notifier
        runner.resumed.set()
        stop.set()
    store.close()


def problems(app) -> list[str]:
    return health_problems(app.telemetry.heartbeats, app.outbox)


@pytest.mark.parametrize("after_s", [0.0, 0.3, 0.9, 2.5])
async def test_health_turns_within_5_s_of_the_oldest_write(tmp_path, monkeypatch, autojump_clock, after_s):
    async with running(tmp_path, monkeypatch) as (app, runner, notifier):
        await trio.sleep(after_s)
        runner.hang()
        hung_s = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(app.outbox.accept, [event(1)])
            await trio.sleep(3.9)
            assert problems(app) == []  # a slow disk is not a hung one
            await trio.sleep(1.2)
            assert problems(app) == ["the writer has made no progress for 5 s"]
            await trio.sleep(60)
            assert notifier.fed_s[-1] <= hung_s + UNHEALTHY_AFTER_S
            runner.resumed.set()
        await trio.sleep(2)
        assert problems(app) == []
        assert notifier.fed_s[-1] >= trio.current_time() - 1.5


async def test_a_hung_disk_is_logged_once_and_so_is_its_end(tmp_path, monkeypatch, autojump_clock):
    """Status sent its reader to the log, which said nothing until the watchdog ended the process."""
    said: list[str] = []
    monkeypatch.setattr(heartbeats.log, "error", lambda text, *values, **_: said.append(text % values))
    monkeypatch.setattr(heartbeats.log, "info", lambda text, *values: said.append(text % values))
    async with running(tmp_path, monkeypatch) as (_app, runner, _notifier):
        runner.hang()
        await trio.sleep(60)
        assert len(said) == 1
        assert said[0].startswith("The outbox has finished no write for 5 s: its disk does not answer")
        runner.resumed.set()
        await trio.sleep(5)
        assert said[1:] == ["The writer makes progress again."]


async def test_an_idle_daemon_writes_nothing_to_prove_that_it_can(tmp_path, monkeypatch, autojump_clock):
    async with running(tmp_path, monkeypatch) as (app, _runner, notifier):
        await trio.sleep(600)  # the start is copied from the log into the file once
        files = [tmp_path / name for name in ("o.db", "o.db-wal")]
        before = [(file.stat().st_mtime_ns, file.stat().st_size) for file in files]
        changes = app.store.connection.total_changes
        await trio.sleep(120)
        assert app.store.connection.total_changes == changes
        assert [(file.stat().st_mtime_ns, file.stat().st_size) for file in files] == before
        assert len(notifier.fed_s) > 100


class Hung:
    """A runner whose present call began at ``since_s``; None: there is none."""

    def __init__(self) -> None:
        self.since_s: float | None = None

    def busy_s(self) -> float:
        return 0.0 if self.since_s is None else trio.current_time() - self.since_s


async def test_a_stop_ends_within_its_timeout_although_the_disk_hangs(tmp_path, monkeypatch, autojump_clock):
    async with running(tmp_path, monkeypatch) as (app, _runner, _notifier), trio.open_nursery() as nursery:
        stop, ended, hung, said = trio.Event(), [], Hung(), []
        monkeypatch.setattr(signals.log, "error", lambda text, *values: said.append(text % values))
        end = lambda: ended.append(trio.current_time())  # noqa: E731
        nursery.start_soon(end_if_disk_hangs, stop, hung, app.outbox, 10.0, end)
        hung.since_s = stopped_s = trio.current_time()
        stop.set()
        await trio.sleep(9.9)
        assert ended == []
        await trio.sleep(1)
        assert len(ended) == 1
        assert ended[0] <= stopped_s + 10.6
        assert "its disk has not answered for 10 s" in said[0]


async def test_a_stop_waits_for_a_slow_disk_a_lock_and_a_rescue(tmp_path, monkeypatch, autojump_clock):
    async with running(tmp_path, monkeypatch) as (app, _runner, _notifier), trio.open_nursery() as nursery:
        stop, ended, hung = trio.Event(), [], Hung()
        nursery.start_soon(end_if_disk_hangs, stop, hung, app.outbox, 10.0, lambda: ended.append(1))
        stop.set()
        for _ in range(20):
            hung.since_s = trio.current_time()
            await trio.sleep(BUSY_TIMEOUT_S + 1)  # as long as a call waits for the lock of another program
        monkeypatch.setattr(type(app.outbox), "rescuing", True)
        await trio.sleep(600)
        assert ended == []
        monkeypatch.setattr(type(app.outbox), "rescuing", False)
        await trio.sleep(2)
        assert ended == [1]


async def test_the_runner_knows_for_how_long_its_call_has_run():
    runner, done = ThreadRunner(), threading.Event()
    assert runner.busy_s() == 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(runner.run, lambda: done.wait(10))
        await trio.sleep(0.2)
        nursery.start_soon(runner.run, lambda: None)  # waits
        await trio.testing.wait_all_tasks_blocked()
        assert 0.1 < runner.busy_s() < 5
        done.set()
    assert runner.busy_s() == 0


async def test_sigterm_works_during_a_reload_that_hangs(tmp_path, monkeypatch, autojump_clock):
    """The signals were read by the task that reloads: SIGTERM waited for the disk as the reload did."""
    async with running(tmp_path, monkeypatch) as (app, _runner, _notifier):
        began, stop = trio.Event(), trio.Event()
        begun = 0

        async def read():
            nonlocal begun
            begun += 1
            began.set()
            await trio.sleep_forever()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(handle_signals, partial(app.reloader.reload, read), stop, nursery.cancel_scope)
            await trio.testing.wait_all_tasks_blocked()
            for _ in range(4):
                os.kill(os.getpid(), signal.SIGHUP)
            await began.wait()
            os.kill(os.getpid(), signal.SIGTERM)
            with trio.fail_after(1):
                await stop.wait()
            assert begun == 1
            nursery.cancel_scope.cancel()
