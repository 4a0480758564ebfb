"""A stream that never blocks: lines wait in a bounded queue and are written by a thread.

Standard error can stop taking lines: a pipe whose reader is suspended, a terminal after Ctrl-S, `docker logs` in blocking
mode. A log call would then block the loop, and with it every client, every delivery and the watchdog.
"""

import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final, TextIO

__all__ = ["MISSING", "QueuedStream"]

MISSING: Final = "The log could not be written for a while; %d lines are missing here."

LINES_MAX: Final = 2_000
CLOSE_TIMEOUT_S: Final = 1.0


class QueuedStream:
    """Writes what it is given to ``stream`` in a thread of its own, in order.

    While the stream takes nothing, the newest ``lines_max`` texts wait; further ones are dropped. What it refuses, as a full
    disk does, is lost. The line ``note(n)`` says how many: before the first text that is written afterwards, or at the end.
    """

    def __init__(
        self,
        stream: TextIO,
        *,
        lines_max: int = LINES_MAX,
        note: Callable[[int], str] = lambda count: f"{MISSING % count}\n",
    ) -> None:
        self._stream = stream
        self._note = note
        # A number stands for that many texts which were dropped there.
        self._queue: queue.Queue[str | int | None] = queue.Queue(lines_max)
        self._dropped = 0
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def write(self, text: str) -> int:
        """Queue a text; never waits."""
        try:
            if self._dropped:
                self._queue.put_nowait(self._dropped)
                self._dropped = 0
            self._queue.put_nowait(text)
        except queue.Full:
            self._dropped += 1
        return len(text)

    @property
    def pending(self) -> bool:
        """True while texts wait to be written."""
        return not self._queue.empty()

    def flush(self) -> None:
        """Do nothing: the thread writes each text at once."""

    def isatty(self) -> bool:
        """Return True if the stream is a terminal."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """The descriptor of the stream. Raises OSError if it has none."""
        return self._stream.fileno()

    def close(self) -> None:
        """Give the thread ``CLOSE_TIMEOUT_S`` to write what is queued; what the stream does not take by then is lost."""
        deadline_s = time.monotonic() + CLOSE_TIMEOUT_S
        try:
            if self._dropped:
                self._queue.put(self._dropped, timeout=CLOSE_TIMEOUT_S)
                self._dropped = 0
            self._queue.put(None, timeout=max(0.0, deadline_s - time.monotonic()))
        except queue.Full:
            return
        self._thread.join(max(0.0, deadline_s - time.monotonic()))

    def _run(self) -> None:
        missing = 0
        while (text := self._queue.get()) is not None:
            if isinstance(text, int):
                missing += text
                continue
            try:
                if missing:
                    self._put(self._note(missing))
                    missing = 0
                self._put(text)
            except (OSError, ValueError):
                missing += 1  # closed, or a disk that is full: the next line may pass
        if missing:
            with suppress(OSError, ValueError):
                self._put(self._note(missing))

    def _put(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
