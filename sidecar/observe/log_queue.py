"""A stream that never blocks: lines wait in a bounded queue and are written by a thread.

Standard error can stop taking lines: a pipe whose reader is suspended, a terminal after Ctrl-S, `docker logs` in blocking
mode. A log call would then block the loop, and with it every client, every delivery and the watchdog.
"""

import queue
import threading
from typing import Final, TextIO

__all__ = ["QueuedStream"]

LINES_MAX: Final = 2_000
CLOSE_TIMEOUT_S: Final = 1.0


class QueuedStream:
    """Writes what it is given to ``stream`` in a thread of its own, in order.

    While the stream takes nothing, the newest ``lines_max`` texts wait; further ones are dropped, and the first text that
    is written afterwards is preceded by a line that says how many. Text for a closed stream is
    discarded: no other place could report it.
    """

    def __init__(self, stream: TextIO, *, lines_max: int = LINES_MAX) -> None:
        self._stream = stream
        self._queue: queue.Queue[str | None] = queue.Queue(lines_max)
        self._dropped = 0
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def write(self, text: str) -> int:
        """Queue a text; never waits."""
        try:
            if self._dropped:
                self._queue.put_nowait(
                    f"The log could not be written for a while; {self._dropped} lines are missing here.\n"
                )
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
        try:
            self._queue.put_nowait(None)
        except queue.Full:
            return
        self._thread.join(CLOSE_TIMEOUT_S)

    def _run(self) -> None:
        while (text := self._queue.get()) is not None:
            try:
                self._stream.write(text)
                self._stream.flush()
            except (OSError, ValueError):
                continue  # closed, or a disk that is full: the next line may pass
