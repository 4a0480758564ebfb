"""Runs a scenario: under a clock that jumps, with a seeded scheduler and the sizes that the scenario wants.

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
from sim_account import check
from sim_disk import IN_MEMORY
from sim_scenario import Scenario
from sim_world import World
from trio._core import _run as scheduler

import sidecar.control.limits
import sidecar.daemon
import sidecar.deliver.dispatcher
import sidecar.deliver.order
import sidecar.deliver.quota
import sidecar.outbox.database
import sidecar.outbox.dead
import sidecar.outbox.ids
import sidecar.outbox.room
import sidecar.outbox.writer

__all__ = ["Run", "run"]

Watch = Callable[[World], trio.abc.Instrument]
SIZES: tuple[tuple[str, Any, str], ...] = (
    ("page_rows", sidecar.deliver.dispatcher, "PAGE_ROWS"),
    ("queue_max", sidecar.deliver.dispatcher, "ASIDE_ROWS"),
    ("queue_max", sidecar.deliver.dispatcher, "QUEUE_MAX"),
    ("ready_low", sidecar.deliver.dispatcher, "READY_LOW"),
    ("queue_max", sidecar.deliver.order, "QUEUE_MAX"),
    ("waiting_max", sidecar.deliver.order, "WAITING_MAX"),
    ("commit_rows", sidecar.outbox.writer, "COMMIT_ROWS"),
    ("lease_share", sidecar.deliver.quota, "LEASE_SHARE"),
    ("scan_rows", sidecar.outbox.dead, "SCAN_ROWS"),
)


class Run(NamedTuple):
    """How a run went: its log, what was wrong if anything was, and how often it met each kind of trouble."""

    lines: list[str]
    error: BaseException | None
    met: Counter[str]


class JumpingClock(trio.abc.Clock):
    """Time stands still while anybody can run; when all wait it is at once the time that the first waits for.

    Unlike ``trio.testing.MockClock`` it does not look twice whether really nothing happens: here nothing comes from
    outside.
    """

    def __init__(self) -> None:
        self.now_s = 0.0

    def start_clock(self) -> None:
        """There is nothing to start."""

    def current_time(self) -> float:
        return self.now_s

    def deadline_to_sleep_time(self, deadline: float) -> float:
        if deadline == math.inf:
            return 1.0  # the end of a run has to do with a real socket
        self.now_s = max(self.now_s, deadline)
        return 0.0


_ask_kernel = scheduler.TheIOManager.get_events


def _news(manager: Any, timeout_s: float) -> Any:
    """What the kernel tells. Where trio does not wait in earnest there is nothing, and asking would cost time."""
    return _ask_kernel(manager, timeout_s) if timeout_s > 0 else []


@contextmanager
def _patched(scenario: Scenario):
    """The sizes that the scenario wants, an idle kernel, and no heartbeat: it would hide a wake-up that was forgotten."""
    knobs = scenario.knobs
    pages = knobs.get("wal_pages", 64)
    small_log = lambda _folder: pages * 4096  # noqa: E731 - a value, not a function
    wanted: list[tuple[Any, str, Any]] = [
        (sidecar.daemon, "PROOF_EVERY_S", 1e6),
        (sidecar.outbox.writer, "KEEP_INTERVAL_S", _keep_interval_s(scenario)),
        (sidecar.control.limits, "ROUND_EVERY_S", 1e6),
        (sidecar.outbox.database, "wal_bytes", small_log),
        (sidecar.outbox.room, "wal_bytes", small_log),
        (scheduler.TheIOManager, "get_events", _news),
    ]
    wanted += [(place, name, knobs[knob]) for knob, place, name in SIZES if knob in knobs]
    before = [(place, name, getattr(place, name)) for place, name, _ in wanted]
    defaults = sidecar.outbox.ids.MessageIds.__init__.__kwdefaults__
    newest = defaults["newest"]
    try:
        for place, name, value in wanted:
            setattr(place, name, value)
        defaults["newest"] = knobs.get("newest_ids", newest)
        yield
    finally:
        for place, name, value in before:
            setattr(place, name, value)
        defaults["newest"] = newest


def _keep_interval_s(scenario: Scenario) -> float:
    """Housekeeping often enough to matter, and not so often that a run of days is nothing else."""
    if scenario.least_per_day <= 1000:
        return 3600.0
    return 10.0 if scenario.kept.is_soon_over() else 900.0


def run(scenario: Scenario, watch: Watch | None = None) -> Run:
    """Run a scenario and check its account.

    ``watch`` gives an instrument that is told of every step of every task, and may interfere.
    """
    logging.getLogger("sidecar").setLevel(logging.CRITICAL + 1)
    with TemporaryDirectory(dir=IN_MEMORY) as folder, _patched(scenario), _seeded(scenario.seed), _without_collector():
        return _simulate(scenario, Path(folder), watch)


def _simulate(scenario: Scenario, folder: Path, watch: Watch | None) -> Run:
    worlds: list[World] = []

    async def main() -> None:
        worlds.append(World(scenario, folder))
        if watch is not None:
            trio.lowlevel.add_instrument(watch(worlds[0]))
        await worlds[0].run()

    error: BaseException | None = None
    try:
        trio.run(main, clock=JumpingClock())
        check(worlds[0])
    except Exception as wrong:
        error = wrong
    return Run(worlds[0].lines, error, worlds[0].everything_met())


@contextmanager
def _seeded(seed: int):
    """Who runs first is thrown with the seed's dice, as pytest-trio does it for hypothesis."""
    deterministic = scheduler._ALLOW_DETERMINISTIC_SCHEDULING
    scheduler._ALLOW_DETERMINISTIC_SCHEDULING = True
    scheduler._r.seed(seed)
    try:
        yield
    finally:
        scheduler._ALLOW_DETERMINISTIC_SCHEDULING = deterministic


@contextmanager
def _without_collector():
    """The collector of garbage costs time, and what is only weakly referred to would go at some moment of its own."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
