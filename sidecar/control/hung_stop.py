"""The end of a stop that waits for a hung disk: without it SIGTERM would wait until the supervisor kills the process."""

import logging
from collections.abc import Callable
from typing import Final, Protocol

import trio

from sidecar.outbox import Outbox

__all__ = ["HUNG_S", "end_if_disk_hangs"]

# A call of the outbox takes milliseconds; one that has run for so long waits for a disk that hangs.
HUNG_S: Final = 5.0
LOG_S: Final = 0.5  # for the thread that writes the log

log = logging.getLogger(__name__)


class Busy(Protocol):
    """Runs the calls to the outbox's file."""

    def busy_s(self) -> float:
        """Return for how long the present call has run; 0 if there is none."""
        ...


async def end_if_disk_hangs(
    stop: trio.Event, runner: Busy, outbox: Outbox, stop_timeout_s: float, end: Callable[[], object]
) -> None:
    """Call ``end``, which ends the process at once, if the disk still hangs ``stop_timeout_s`` after ``stop``.

    What waits for the disk was not answered: clients send it again. An outbox that is being put back is waited for
    without limit, because only this process has it.
    """
    await stop.wait()
    await trio.sleep(stop_timeout_s)
    while (busy_s := runner.busy_s()) < HUNG_S or outbox.rescuing:  # noqa: ASYNC110 - nothing tells when a call begins to hang
        await trio.sleep(0.5)
    log.error(
        "Stopped without closing the outbox: its disk has not answered for %.0f s. Events that wait for it were not "
        "answered, and clients send them again; check the disk.",
        busy_s,
    )
    await trio.sleep(LOG_S)
    end()
