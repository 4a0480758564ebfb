"""Many clients that write lines: what they make us hold together is bounded, and the slow keep nobody else out."""

import trio
import trio.testing
from receive_help import MAX_EVENT_BYTES, receiving
from test_receive_ndjson import OK, Clogged, line, read_lines

from sidecar.outbox import Accepted, Note
from sidecar.receive import held, ndjson

LONG = 3_000


def long_line(number: int) -> bytes:
    return line(number).rstrip() + b" " * LONG + b"\n"


async def test_a_long_line_waits_for_the_one_before_it_and_short_ones_pass_both(tmp_path, monkeypatch):
    monkeypatch.setattr(ndjson, "LONG_LINE_BYTES", 1_000)
    async with receiving(tmp_path / "o.db") as rooms:
        rooms.front._crowd = ndjson.Crowd(1)
        first, second, third = (rooms.connect("unix") for _ in range(3))
        whole = long_line(1)
        await first.send_all(whole[:2_000])
        await trio.testing.wait_all_tasks_blocked()
        await second.send_all(long_line(2)[:2_000])
        await trio.testing.wait_all_tasks_blocked()
        assert rooms.front._crowd.long_lines.statistics().tasks_waiting == 1
        await third.send_all(line(3))
        assert await read_lines(third, 1) == [OK]
        await first.send_all(whole[2_000:])
        assert await read_lines(first, 1) == [OK]
        await second.send_all(long_line(2)[2_000:] + long_line(4))
        assert await read_lines(second, 2) == [OK, OK]
        assert rooms.front._crowd.long_lines.borrowed_tokens == 0


async def test_who_is_slow_with_a_long_line_is_told_so_and_loses_his_place(tmp_path, monkeypatch, autojump_clock):
    monkeypatch.setattr(ndjson, "LONG_LINE_BYTES", 1_000)
    async with receiving(tmp_path / "o.db") as rooms:
        stream = rooms.connect("unix")
        began_s = trio.current_time()
        await stream.send_all(line(1) + long_line(2)[:2_000])
        got = b""
        while data := await stream.receive_some(65_536):
            got += data
        assert trio.current_time() - began_s == ndjson.LONG_LINE_S
        stored, refused = got.splitlines(keepends=True)
        assert stored == OK
        assert b'"code":"timeout"' in refused
        assert rooms.front._crowd.long_lines.borrowed_tokens == 0
        assert rooms.refused == ["timeout"]


async def test_a_line_that_is_too_long_holds_no_place_while_it_is_passed_over(tmp_path, monkeypatch, autojump_clock):
    monkeypatch.setattr(ndjson, "LONG_LINE_BYTES", 1_000)
    async with receiving(tmp_path / "o.db") as rooms:
        stream = rooms.connect("unix")
        await stream.send_all(b"{" + b" " * 30_000)
        await trio.sleep(10 * ndjson.LONG_LINE_S)
        await stream.send_all(b"\n" + line(1))
        too_large, stored = await read_lines(stream, 2)
        assert b'"code":"too_large"' in too_large
        assert stored == OK


async def test_all_together_are_not_read_ahead_of_the_disk_without_bound(tmp_path, monkeypatch):
    monkeypatch.setattr(held, "HELD_MAX_BYTES", 20 * MAX_EVENT_BYTES)
    async with receiving(tmp_path / "o.db") as rooms:
        submitted, note = [], Note([], MAX_EVENT_BYTES)
        rooms.outbox.submit = lambda events: submitted.append(events) or note
        streams = [rooms.connect("unix") for _ in range(50)]
        for stream in streams:
            padded = b"".join(line(number).rstrip() + b" " * 15_000 + b"\n" for number in range(10))
            rooms.nursery.start_soon(stream.send_all, padded)
        await trio.testing.wait_all_tasks_blocked()
        # Each connection may have one read more than the bound, and each its first.
        assert len(submitted) < 20 + 3 * len(streams)
        note.answer = Accepted(1, 0)
        note.done.set()
        for stream in streams:
            await read_lines(stream, 10)
        assert len(submitted) == 500
        assert rooms.front._crowd.held.bytes == 0


async def test_what_a_client_owed_that_was_given_up_weighs_on_nobody(tmp_path, autojump_clock):
    async with receiving(tmp_path / "o.db") as rooms:
        note = Note([], MAX_EVENT_BYTES)
        rooms.outbox.submit = lambda events: note
        rooms.stopping.set()
        await rooms.front.unix(Clogged(line(1) * 10))
        assert rooms.front._crowd.held.bytes == 0
