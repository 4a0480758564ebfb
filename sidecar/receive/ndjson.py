"""NDJSON on the Unix socket: a line is an event or an array of events; for each line, in order, one line back.

Theory
------
Two tasks share a connection. One reads lines, judges them and puts them before the outbox at once, so that a client
which writes without reading gets the benefit of group commit. The other waits for each line's commit in order and
writes what is owed, no later than that.

What is owed is bounded: in events that are not committed yet, which only the disk can hold up, and in answers that are
not taken yet. Those are kept as bare bytes, so that a client may write some 30,000 lines before it reads; beyond it
nothing more is read from it. One that takes nothing for ``SEND_S`` and writes nothing either, or may not, is given up.
A client that has gone is read to its end: what it had written before it went is stored, and nobody is answered.

A line that is too long is answered when its end comes, and not kept meanwhile.

What all connections hold together is bounded too (``Crowd``): few of them at a time may be in the middle of a long line,
each for a short while, and beyond so many bytes that wait for the disk each waits for its own before it is read on.
"""

import logging
from collections import deque
from typing import Final

import trio

from sidecar.errors import SidecarError
from sidecar.http import Stopping
from sidecar.outbox import Note, Outbox
from sidecar.receive.held import Held
from sidecar.receive.intake import Answer, Intake, Opened, nothing_to_store, refusal

__all__ = ["Crowd", "Lines", "serve_ndjson"]

log = logging.getLogger(__name__)

# Reading stops at so many lines that wait for their commit, so many bytes of events in them, or so many bytes of
# answers that the client has not taken; one read may go beyond.
WAITING_MAX: Final = 1_000
WAITING_MAX_BYTES: Final = 4 * 2**20
ANSWERS_MAX_BYTES: Final = 2**20
# How long a client may take for a piece of its answers, counted from what it wrote last; and for all once we stop.
SEND_S: Final = 30.0
STOP_S: Final = 10.0
_SEND_BYTES: Final = 64 * 1024
# Thousands of tiny lines fit in; judging them must not keep the others waiting.
_READ_BYTES: Final = 16 * 1024

# A line is long from here on; how long a client may take for the rest of one, once it has a place.
LONG_LINE_BYTES: Final = 64 * 1024
LONG_LINE_S: Final = 5.0

_too_slow: Final = refusal("timeout", f"The line did not end within {LONG_LINE_S:.0f} s.", 408)
_GONE = (trio.BrokenResourceError, trio.ClosedResourceError)

Owed = Answer | tuple[Opened, Note]


class Crowd:
    """What the connections that share it hold together: long lines that have not ended, and events not committed yet."""

    def __init__(self, long_lines: int) -> None:
        self.long_lines = trio.CapacityLimiter(long_lines)
        self.held = Held()


async def serve_ndjson(
    stream: trio.abc.Stream,
    intake: Intake,
    outbox: Outbox,
    *,
    first: bytes,
    max_line_bytes: int,
    crowd: Crowd,
    stopping: Stopping,
) -> None:
    """Serve one connection until its end; ``first`` are bytes that were read already. The caller closes the stream.

    Once ``stopping`` is set nothing more is read; what was read is stored and answered. An app may keep its connection
    idle for its whole life. Nothing a client sends or fails to send raises here.
    """
    debts = _Debts(stream, intake, crowd)
    lines = Lines(intake, outbox, max_line_bytes)
    try:
        async with trio.open_nursery() as nursery:

            async def pay() -> None:
                if not await debts.pay():
                    nursery.cancel_scope.cancel()

            nursery.start_soon(pay)
            debts.add(lines.feed(first))
            try:
                await _read(stream, lines, debts, crowd, stopping)
            except _GONE:
                pass  # the client has gone in the middle of a line
            except trio.TooSlowError:
                intake.count("timeout")
                debts.add([_too_slow])
            debts.end()
            if stopping.is_set():
                nursery.cancel_scope.deadline = trio.current_time() + STOP_S
    finally:
        debts.let_go()


async def _read(stream: trio.abc.Stream, lines: "Lines", debts: "_Debts", crowd: Crowd, stopping: Stopping) -> None:
    """Read and submit until the end of the stream or the stop. Raises TooSlowError in the middle of a long line."""
    with trio.CancelScope() as reading:
        unsubscribe = stopping.subscribe(reading.cancel)
        try:
            if stopping.is_set():
                reading.cancel()
            while True:
                await debts.bearable()
                if lines.begun_bytes < LONG_LINE_BYTES:
                    goes_on = await _read_some(stream, lines, debts)
                else:
                    goes_on = await _read_long_line(stream, lines, debts, crowd)
                if not goes_on:
                    return
        finally:
            unsubscribe()


async def _read_some(stream: trio.abc.Stream, lines: "Lines", debts: "_Debts") -> bool:
    """Read once; False at the end of the stream."""
    data = await stream.receive_some(_READ_BYTES)
    debts.add(lines.feed(bytes(data)) if data else lines.end())
    return bool(data)


async def _read_long_line(stream: trio.abc.Stream, lines: "Lines", debts: "_Debts", crowd: Crowd) -> bool:
    """Read the rest of a line, once there is a place for a long one; False at the end of the stream."""
    async with crowd.long_lines:
        with trio.fail_after(LONG_LINE_S):
            goes_on, begun_bytes = True, 0
            while goes_on and lines.begun_bytes > begun_bytes:
                begun_bytes = lines.begun_bytes
                goes_on = await _read_some(stream, lines, debts)
    return goes_on


class _Debts:
    """The answers that one client is owed, in order: first those that are ready, then those that wait for a commit."""

    def __init__(self, stream: trio.abc.Stream, intake: Intake, crowd: Crowd) -> None:
        self._stream = stream
        self._intake = intake
        self._crowd = crowd
        self._ready = bytearray()
        self._waiting: deque[Owed] = deque()
        self._waiting_bytes = 0
        self._ended = self._gone = False
        self._changed = trio.Event()
        self._sending = trio.CancelScope()

    def add(self, owed: list[Owed]) -> None:
        """The client wrote something, for which it is owed this."""
        self._sending.deadline = trio.current_time() + SEND_S
        if owed:
            self._waiting.extend(owed)
            self._weigh(sum(map(_weight, owed)))
            self._change()

    def end(self) -> None:
        """No more will be owed."""
        self._ended = True
        self._change()

    def let_go(self) -> None:
        """The connection has ended; what is still owed is nobody's any more."""
        self._weigh(-self._waiting_bytes)

    async def bearable(self) -> None:
        """Wait until so little is owed that more may be read."""
        while True:
            first = self._first_waiting()
            if first is not None and (
                len(self._waiting) > WAITING_MAX
                or self._waiting_bytes > WAITING_MAX_BYTES
                or self._crowd.held.is_full()
            ):
                await first.done.wait()
            elif len(self._ready) > ANSWERS_MAX_BYTES:
                await self._changed.wait()
            else:
                return

    async def pay(self) -> bool:
        """Answer until the end, or until the client has gone; False if it takes nothing.

        Several lines at once where several are done, but none waits for the commit of a later one.
        """
        try:
            while True:
                first = self._first_waiting()
                if self._ready:
                    if not await self._send():
                        return False
                elif first is not None:
                    await first.done.wait()
                elif self._ended:
                    return True
                else:
                    await self._changed.wait()
        except _GONE:
            self._gone = True
            self._ready.clear()
            self._change()
            return True

    async def _send(self) -> bool:
        """Send a piece of what is ready; False if the client does not take it in time."""
        piece = bytes(self._ready[:_SEND_BYTES])
        with trio.move_on_after(SEND_S) as self._sending:
            await self._stream.send_all(piece)
        if self._sending.cancelled_caught:
            return False
        del self._ready[: len(piece)]
        self._change()
        return True

    def _first_waiting(self) -> Note | None:
        """Make ready what is done; then the note of the first line that is not."""
        waiting = self._waiting
        while waiting:
            first = waiting[0]
            if not isinstance(first, Answer) and not first[1].done.is_set():
                return first[1]
            answer = _answer(first, self._intake)
            self._weigh(-_weight(waiting.popleft()))
            if not self._gone:
                self._ready += answer.body
                self._ready += b"\n"
        return None

    def _weigh(self, more_bytes: int) -> None:
        self._waiting_bytes += more_bytes
        self._crowd.held.more(more_bytes)

    def _change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


def _weight(one: Owed) -> int:
    return len(one.body) if isinstance(one, Answer) else one[1].size_bytes


def _answer(one: Owed, intake: Intake) -> Answer:
    """The answer for a line that is done with."""
    if isinstance(one, Answer):
        return one
    opened, note = one
    if note.error is None:
        return intake.accepted(opened, note.answer)
    if isinstance(note.error, SidecarError):
        return intake.not_stored(note.error)
    # The lines behind it are owed their answers too.
    log.error("A line could not be stored: %r", note.error)
    return refusal("internal", "The server failed at this line; its log says why.", 500)


class Lines:
    """Cuts bytes into lines and submits them. Holds at most one unfinished line, and of a too long one nothing."""

    def __init__(self, intake: Intake, outbox: Outbox, max_bytes: int) -> None:
        self._intake = intake
        self._outbox = outbox
        self._max_bytes = max_bytes
        self._rest = bytearray()
        self._skipping = False

    @property
    def begun_bytes(self) -> int:
        """How much is kept of a line that has not ended."""
        return len(self._rest)

    def feed(self, data: bytes) -> list[Owed]:
        """The answers owed for the lines that end in ``data``."""
        *whole, rest = data.split(b"\n")
        owed = [one for part in whole if (one := self._end_line(part)) is not None]
        self._keep(rest)
        return owed

    def end(self) -> list[Owed]:
        """The stream has ended: what is left counts as a line."""
        one = self._end_line(b"")
        return [] if one is None else [one]

    def _keep(self, part: bytes) -> None:
        if self._skipping or len(self._rest) + len(part) > self._max_bytes:
            self._skipping = True
            self._rest.clear()
        else:
            self._rest += part

    def _end_line(self, part: bytes) -> Owed | None:
        self._keep(part)
        line, skipped = bytes(self._rest).strip(), self._skipping
        self._rest.clear()
        self._skipping = False
        if skipped:
            self._intake.count("too_large")
            return refusal(
                "too_large",
                f"The line is longer than {self._max_bytes:,} bytes (outbox.max_request_bytes); send less per line.",
            )
        return self._submit(line) if line else None

    def _submit(self, line: bytes) -> Owed:
        opened = self._intake.open(line, None, None, trusted=True)
        if isinstance(opened, Answer):
            return opened
        if not opened.events:
            return nothing_to_store
        try:
            return opened, self._outbox.submit(opened.events)
        except SidecarError as error:
            return self._intake.not_stored(error)
