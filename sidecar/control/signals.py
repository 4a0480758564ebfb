"""The signals that a running daemon obeys: stop, reload, or notice that its terminal was closed; the end of a stop that hangs."""

import logging
import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, Protocol

import trio

from sidecar.outbox import Outbox

__all__ = ["HUNG_S", "end_if_disk_hangs", "handle_signals"]

# A call of the outbox takes milliseconds, or BUSY_TIMEOUT_S if another program holds a lock; one that has run for so long waits
# for a disk that hangs.
HUNG_S: Final = 8.0
LOG_S: Final = 0.5  # for the thread that writes the log

log = logging.getLogger(__name__)


async def handle_signals(
    reload: Callable[[], Awaitable[object]], stop: trio.Event, everything: trio.CancelScope
) -> None:
    """Reload on SIGHUP; stop in order on the first SIGTERM or SIGINT, and at once on the second.

    SIGHUP also says that the terminal of a daemon in the foreground was closed, and then stops it: it would run on
    unseen, and hold the outbox against the next start.
    """
    # One reload runs and one waits: it reads what all signals until then have meant. A reload may hang on a disk.
    wanted, requests = trio.open_memory_channel[None](1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_reload_upon, requests, reload)
        await _receive_signals(wanted, stop, everything)


async def _reload_upon(requests: trio.MemoryReceiveChannel[None], reload: Callable[[], Awaitable[object]]) -> None:
    async for _ in requests:
        await reload()


async def _receive_signals(
    wanted: trio.MemorySendChannel[None], stop: trio.Event, everything: trio.CancelScope
) -> None:
    # `nohup` ignores SIGHUP: such a process is to outlive its terminal.
    in_foreground = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN and _has_terminal()
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        async for number in signals:
            if number == signal.SIGHUP and not (in_foreground and not _has_terminal()):
                with suppress(trio.WouldBlock):
                    wanted.send_nowait(None)
            elif stop.is_set():
                log.warning(
                    "Stopping at once on a second signal; requests in flight are sent again after the next start."
                )
                everything.cancel()
            else:
                log.info("Stopping on %s.", signal.Signals(number).name)
                stop.set()


def _has_terminal() -> bool:
    """Return whether this process has a controlling terminal that is still there (tty(4))."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


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
