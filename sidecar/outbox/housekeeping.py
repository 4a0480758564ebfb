"""Housekeeping: the task that keeps the outbox file small, its reserve allocated and its WAL short.

It asks the writer for one bounded step at a time, and the writer runs a step when nothing else is due. ``retention.py``
decides what a step deletes; when the outbox is nearly full, history is deleted whatever its age.
"""

import logging
from collections.abc import Awaitable, Callable
from typing import Final, NoReturn

import trio

from sidecar.config import Config
from sidecar.errors import SidecarError
from sidecar.mapping.settings import LiveSettings
from sidecar.outbox.retention import Retention
from sidecar.outbox.steps import ROWS_MOST, next_rows
from sidecar.outbox.store import Store
from sidecar.outbox.writer import Outbox

__all__ = ["STEP_EVERY_S", "repeat_step", "run_housekeeping"]

STEP_EVERY_S: Final = 1.0
STEP_AGAIN_S: Final = 0.05

log = logging.getLogger(__name__)


def retention_of(config: Config) -> Retention:
    """Return the retention times of this configuration."""
    return Retention(
        delivered_ms=round(config.outbox.keep_delivered * 1000),
        ids_ms=round(config.outbox.keep_ids * 1000),
        dead_ms=round(config.outbox.keep_dead * 1000),
        max_users=config.identity.max_users,
    )


async def run_housekeeping(outbox: Outbox, settings: LiveSettings) -> NoReturn:
    """Run one step of housekeeping a second, and sooner while there is more to do. Never returns, never raises.

    A step that fails is retried a second later; the writer decides when repeated failures end the process.
    """
    trust = outbox.clock_trust
    scale, is_wrong, rows = trust.scale(), False, ROWS_MOST

    async def prepare() -> None:
        nonlocal scale, is_wrong, rows
        rows = next_rows(rows, outbox.maintenance_took_s)
        if (problem := trust.problem()) and not is_wrong:
            log.warning("%s", problem)
        elif is_wrong and not problem:
            log.info("The clock of this host is set, or has held since its jump: it is no longer reported.")
        is_wrong = bool(problem)
        # In this thread, and before the step: a jump while the step waits changes nothing that it discards.
        scale = trust.scale()
        trust.forget_spans(retention_of(settings.now.config).longest_ms)
        if fix := trust.receipts_to_fix():
            trust.receipts_fixed(await outbox.write(lambda store, _now_ms: fix.step(store)))

    def step(store: Store, now_ms: int) -> bool:
        retention = retention_of(settings.now.config)
        return retention.prune_step(store, now_ms, scale=scale, hurry=outbox.capacity.nearly_full, rows=rows)

    await repeat_step(outbox, step, prepare)


async def _nothing() -> None:
    """Prepare nothing."""


async def repeat_step(
    outbox: Outbox, step: Callable[[Store, int], bool], prepare: Callable[[], Awaitable[None]] = _nothing
) -> NoReturn:
    """Ask the writer for ``step(store, now_ms)`` again and again, after ``prepare``; see ``run_housekeeping``."""
    pause_s = STEP_EVERY_S
    while True:
        await trio.sleep(pause_s)
        try:
            await prepare()
            more = await outbox.maintain(step)
        except SidecarError:
            more = False  # the writer reports what is wrong with the disk
        pause_s = STEP_AGAIN_S if more else STEP_EVERY_S
