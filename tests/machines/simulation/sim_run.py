"""Run a scenario: in virtual time, with a seeded scheduler and the sizes that the scenario sets.

Everything happens in one trio run in one thread, so that a seed always gives the same run.
"""

import gc
import logging
import math
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import trio
from sim_check import check
from sim_disk import IN_MEMORY
from sim_scenario import KEPT_WITH_WRONG_CLOCKS, Scenario
from sim_world import World
from trio._core import _run as scheduler

import sidecar.control.delivery_control
import sidecar.control.idle_rules
import sidecar.control.limits
import sidecar.control.watch
import sidecar.daemon
import sidecar.deliver.dispatcher
import sidecar.deliver.order
import sidecar.deliver.quota
import sidecar.outbox.accept_queue
import sidecar.outbox.capacity
import sidecar.outbox.database
import sidecar.outbox.dead
import sidecar.outbox.housekeeping
import sidecar.outbox.retention
import sidecar.outbox.store
import sidecar.outbox.writer

__all__ = ["Run", "run"]

InstrumentFactory = Callable[[World], trio.abc.Instrument]
SIZES: tuple[tuple[str, Any, str], ...] = (
    ("page_rows", sidecar.deliver.dispatcher, "PAGE_ROWS"),
    ("queue_max", sidecar.deliver.dispatcher, "PARKED_ROWS"),
    ("queue_max", sidecar.deliver.dispatcher, "QUEUE_MAX"),
    ("ready_low", sidecar.deliver.dispatcher, "READY_LOW"),
    ("queue_max", sidecar.deliver.order, "QUEUE_MAX"),
    ("waiting_max", sidecar.deliver.order, "WAITING_MAX"),
    ("commit_rows", sidecar.outbox.accept_queue, "COMMIT_ROWS"),
    ("commit_rows", sidecar.outbox.accept_queue, "SLICE_ROWS"),
    ("lease_share", sidecar.deliver.quota, "LEASE_SHARE"),
    ("scan_rows", sidecar.outbox.dead, "SCAN_ROWS"),
)


class Run(NamedTuple):
    """The result of a run: its log, its error or None, and how often each kind of trouble occurred."""

    lines: list[str]
    error: BaseException | None
    coverage: Counter[str]


class JumpingClock(trio.abc.Clock):
    """A clock that stands still while a task can run, and jumps to the next deadline when all tasks wait.

    ``trio.testing.MockClock`` waits for a moment of real time before each jump. Nothing here comes from outside, so this
    clock jumps at once.
    """

    def __init__(self) -> None:
        self.now_s = 0.0

    def start_clock(self) -> None:
        """Do nothing: time starts at 0."""

    def current_time(self) -> float:
        return self.now_s

    def deadline_to_sleep_time(self, deadline: float) -> float:
        if deadline == math.inf:
            return 1.0  # trio closes a real socket at the end of a run
        self.now_s = max(self.now_s, deadline)
        return 0.0


_get_events = scheduler.TheIOManager.get_events


def _poll_kernel(manager: Any, timeout_s: float) -> Any:
    """Poll the kernel only for a real wait: without one there are no events, and the call would cost time."""
    return _get_events(manager, timeout_s) if timeout_s > 0 else []


@contextmanager
def _patched(scenario: Scenario):
    """Set the sizes of the scenario, and turn off the heartbeat, which would hide a missing wake-up."""
    knobs = scenario.knobs
    pages = knobs.get("wal_pages", 64)
    wal_limit = lambda _folder: pages * 4096  # noqa: E731 - a value, not a function
    patches: list[tuple[Any, str, Any]] = [
        (sidecar.daemon, "PROBE_EVERY_S", 1e6),
        (sidecar.outbox.housekeeping, "STEP_EVERY_S", _housekeeping_interval_s(scenario)),
        (sidecar.outbox.retention, "discard_ids", sidecar.outbox.dead.discard_ids),  # replaced by ``sim_monitor.py``
        (sidecar.control.limits, "ROUND_EVERY_S", 1e6),
        (sidecar.control.limits, "NAMES_EVERY_S", 1e6),
        (sidecar.control.idle_rules, "ROUND_EVERY_S", 1e6),
        (sidecar.control.delivery_control, "SAVE_EVERY_S", 1.0 if scenario.least_per_day > 1000 else 600.0),
        (sidecar.control.watch, "TICK_S", 1e6),  # a tick a second would be all that a run of days does
        (sidecar.outbox.database, "wal_bytes", wal_limit),
        (sidecar.outbox.capacity, "wal_bytes", wal_limit),
        (scheduler.TheIOManager, "get_events", _poll_kernel),
    ]
    patches += [(module, name, knobs[knob]) for knob, module, name in SIZES if knob in knobs]
    originals = [(module, name, getattr(module, name)) for module, name, _ in patches]
    defaults = sidecar.outbox.store.Store.__init__.__kwdefaults__
    newest = defaults["newest_ids"]
    try:
        for module, name, value in patches:
            setattr(module, name, value)
        defaults["newest_ids"] = knobs.get("newest_ids", newest)
        yield
    finally:
        for module, name, value in originals:
            setattr(module, name, value)
        defaults["newest_ids"] = newest


def _housekeeping_interval_s(scenario: Scenario) -> float:
    """Return an interval short enough to matter and long enough for a run of days."""
    if scenario.least_per_day <= 1000:
        return 3600.0
    if scenario.kept.keep_dead == KEPT_WITH_WRONG_CLOCKS:
        return 300.0
    return 10.0 if scenario.kept.expires_soon() else 900.0


def run(scenario: Scenario, instrument: InstrumentFactory | None = None) -> Run:
    """Run a scenario and check its result.

    ``instrument`` makes a trio instrument that sees every step of every task, and may interfere.
    """
    logging.getLogger("sidecar").setLevel(logging.CRITICAL + 1)
    with (
        TemporaryDirectory(dir=IN_MEMORY) as folder,
        _patched(scenario),
        _seeded(scenario.seed),
        _garbage_collector_off(),
    ):
        return _simulate(scenario, Path(folder), instrument)


def _simulate(scenario: Scenario, folder: Path, instrument: InstrumentFactory | None) -> Run:
    worlds: list[World] = []

    async def main() -> None:
        worlds.append(World(scenario, folder))
        if instrument is not None:
            trio.lowlevel.add_instrument(instrument(worlds[0]))
        await worlds[0].run()

    error: BaseException | None = None
    try:
        trio.run(main, clock=JumpingClock())
        check(worlds[0])
    except Exception as failure:
        error = failure
    return Run(worlds[0].lines, error, worlds[0].total_coverage())


@contextmanager
def _seeded(seed: int):
    """Seed the order in which trio runs tasks, as pytest-trio does for hypothesis."""
    deterministic = scheduler._ALLOW_DETERMINISTIC_SCHEDULING
    scheduler._ALLOW_DETERMINISTIC_SCHEDULING = True
    scheduler._r.seed(seed)
    try:
        yield
    finally:
        scheduler._ALLOW_DETERMINISTIC_SCHEDULING = deterministic


@contextmanager
def _garbage_collector_off():
    """Turn the garbage collector off: it costs time, and it would clear weak references at unpredictable moments."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
