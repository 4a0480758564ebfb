"""NDJSON on the Unix socket: a line is an event or an array of events; for each line, in order, one line back.

Theory
------
Two tasks share a connection. One reads lines, judges them and puts them before the outbox at once, so that a client
which writes without reading gets the benefit of group commit. The other waits for each line's commit in order and
writes what is owed. Between them is a bounded queue: a client that never reads is not read from any more, and one that
takes nothing for ``SEND_S`` is given up. Its events are stored all the same.

A line that is too long is answered when its end comes, and not kept meanwhile.
"""

from typing import Final

import trio

from sidecar.errors import SidecarError
from sidecar.http import Stopping
from sidecar.outbox import Note, Outbox
from sidecar.receive.intake import Answer, Intake, Opened, refusal

__all__ = ["serve_ndjson"]

OWED_MAX: Final = 256
SEND_S: Final = 30.0
_READ_BYTES: Final = 64 * 1024

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
    owe, owed = trio.open_memory_channel[Owed](OWED_MAX)
    lines = _Lines(intake, outbox, max_line_bytes)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_pay, stream, owed, intake)
        async with owe:
            try:
                await _read(stream, lines, owe, first, stopping)
            except _GONE:
                pass  # the client is gone, or takes nothing: there is nobody to answer


async def _read(
    stream: trio.abc.Stream, lines: "_Lines", owe: trio.MemorySendChannel[Owed], first: bytes, stopping: Stopping
) -> None:
    """Read and submit until the end of the stream or the stop."""
    with trio.CancelScope() as reading:
        unsubscribe = stopping.subscribe(reading.cancel)
        try:
            if stopping.is_set():
                reading.cancel()
            data = first
            while True:
                for one in lines.feed(data):
                    with trio.CancelScope(shield=True):  # it was read: it will be answered
                        await owe.send(one)
                data = bytes(await stream.receive_some(_READ_BYTES))
                if not data:
                    for one in lines.end():
                        await owe.send(one)
                    return
        finally:
            unsubscribe()


async def _pay(stream: trio.abc.Stream, owed: trio.MemoryReceiveChannel[Owed], intake: Intake) -> None:
    """Answer in order, several lines at once where several commits are done."""
    async with owed:
        async for one in owed:
            out = [(await _answer(one, intake)).body]
            while len(out) < OWED_MAX:
                try:
                    out.append((await _answer(owed.receive_nowait(), intake)).body)
                except (trio.WouldBlock, trio.EndOfChannel):
                    break
            try:
                with trio.fail_after(SEND_S):
                    await stream.send_all(b"\n".join(out) + b"\n")
            except (trio.TooSlowError, *_GONE):
                return  # the reader notices: the channel is closed


async def _answer(one: Owed, intake: Intake) -> Answer:
    if isinstance(one, Answer):
        return one
    opened, note = one
    try:
        return intake.accepted(opened, await note.wait())
    except SidecarError as error:
        return intake.not_stored(error)


class _Lines:
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
            return Answer(200, b'{"success":true,"accepted":0}')
        try:
            return opened, self._outbox.submit(opened.events)
        except SidecarError as error:
            return self._intake.not_stored(error)
