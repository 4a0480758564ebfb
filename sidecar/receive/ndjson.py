"""NDJSON on the Unix socket: a line is an event or an array of events; for each line, in order, one line back.

Theory
------
Two tasks share a connection. One reads lines, judges them and puts them before the outbox at once, so that a client
which writes without reading gets the benefit of group commit. The other waits for each line's commit in order and
writes what is owed, no later than that. What is owed is bounded in lines and in bytes: beyond it nothing more is read.

A client that takes nothing for ``SEND_S`` is given up. One that has gone is read to its end: what it had written before
it went is stored, and nobody is answered.

A line that is too long is answered when its end comes, and not kept meanwhile.
"""

import logging
from collections import deque
from typing import Final

import trio

from sidecar.errors import SidecarError
from sidecar.http import Stopping
from sidecar.outbox import Note, Outbox
from sidecar.receive.intake import Answer, Intake, Opened, nothing_to_store, refusal

__all__ = ["Lines", "serve_ndjson"]

log = logging.getLogger(__name__)

# Reading stops at so many answers owed, or so many bytes of events behind them; one read may go beyond.
OWED_MAX: Final = 256
OWED_MAX_BYTES: Final = 4 * 2**20
SEND_S: Final = 30.0
# Thousands of tiny lines fit in; judging them must not keep the others waiting.
_READ_BYTES: Final = 16 * 1024

_GONE = (trio.BrokenResourceError, trio.ClosedResourceError)

Owed = Answer | tuple[Opened, Note]


async def serve_ndjson(
    stream: trio.abc.Stream,
    intake: Intake,
    outbox: Outbox,
    *,
    first: bytes,
    max_line_bytes: int,
    stopping: Stopping,
) -> None:
    """Serve one connection until its end; ``first`` are bytes that were read already. The caller closes the stream.

    Once ``stopping`` is set nothing more is read; what was read is stored and answered. An app may keep its connection
    idle for its whole life. Nothing a client sends or fails to send raises here.
    """
    debts = _Debts()
    lines = Lines(intake, outbox, max_line_bytes)
    async with trio.open_nursery() as nursery:

        async def pay() -> None:
            if not await debts.pay(stream, intake):
                nursery.cancel_scope.cancel()

        nursery.start_soon(pay)
        debts.add(lines.feed(first))
        try:
            await _read(stream, lines, debts, stopping)
        except _GONE:
            pass  # the client has gone in the middle of a line
        debts.end()


async def _read(stream: trio.abc.Stream, lines: "Lines", debts: "_Debts", stopping: Stopping) -> None:
    """Read and submit until the end of the stream or the stop."""
    with trio.CancelScope() as reading:
        unsubscribe = stopping.subscribe(reading.cancel)
        try:
            if stopping.is_set():
                reading.cancel()
            while True:
                await debts.bearable()
                data = await stream.receive_some(_READ_BYTES)
                if not data:
                    debts.add(lines.end())
                    return
                debts.add(lines.feed(bytes(data)))
        finally:
            unsubscribe()


class _Debts:
    """The answers that one client is owed, in order."""

    def __init__(self) -> None:
        self._due: deque[Owed] = deque()
        self._bytes = 0
        self._ended = self._gone = False
        self._changed = trio.Event()

    def add(self, owed: list[Owed]) -> None:
        """More is owed."""
        if owed and not self._gone:
            self._due.extend(owed)
            self._bytes += sum(map(_weight, owed))
            self._change()

    def end(self) -> None:
        """No more will be owed."""
        self._ended = True
        self._change()

    async def bearable(self) -> None:
        """Wait until so little is owed that more may be read."""
        while len(self._due) > OWED_MAX or self._bytes > OWED_MAX_BYTES:
            await self._changed.wait()

    async def pay(self, stream: trio.abc.Stream, intake: Intake) -> bool:
        """Answer until the end, or until the client has gone; False if it takes nothing.

        Several lines at once where several are done, but none waits for the commit of a later one.
        """
        try:
            while self._due or not self._ended:
                if not self._due:
                    await self._changed.wait()
                    continue
                out = [await self._next(intake)]
                while self._due and _is_done(self._due[0]) and len(out) < OWED_MAX:
                    out.append(await self._next(intake))
                with trio.fail_after(SEND_S):
                    await stream.send_all(b"\n".join(out) + b"\n")
        except _GONE:
            self._gone = True
            self._due.clear()
            self._bytes = 0
            self._change()
        except trio.TooSlowError:
            return False
        return True

    async def _next(self, intake: Intake) -> bytes:
        answer = await _answer(self._due[0], intake)
        self._bytes -= _weight(self._due.popleft())
        self._change()
        return answer.body

    def _change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


def _weight(one: Owed) -> int:
    return len(one.body) if isinstance(one, Answer) else one[1].size_bytes


def _is_done(one: Owed) -> bool:
    return isinstance(one, Answer) or one[1].done.is_set()


async def _answer(one: Owed, intake: Intake) -> Answer:
    if isinstance(one, Answer):
        return one
    opened, note = one
    try:
        return intake.accepted(opened, await note.wait())
    except SidecarError as error:
        return intake.not_stored(error)
    except Exception as error:  # the lines behind it are owed their answers too
        log.error("A line could not be stored: %r", error)
        return refusal("internal", "The server failed at this line; its log says why.", 500)


class Lines:
    """Cuts bytes into lines and submits them. Holds at most one unfinished line, and of a too long one nothing."""

    def __init__(self, intake: Intake, outbox: Outbox, max_bytes: int) -> None:
        self._intake = intake
        self._outbox = outbox
        self._max_bytes = max_bytes
        self._rest = bytearray()
        self._skipping = False

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
