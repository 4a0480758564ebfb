"""The signals that a running daemon obeys: stop, reload, or notice that its terminal was closed."""

import logging
import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress

import trio

__all__ = ["handle_signals"]

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
