"""Many NDJSON clients together occupy bounded memory, and slow ones do not exclude others."""

import pytest
import trio
import trio.testing
from receive_harness import MAX_EVENT_BYTES, MAX_REQUEST_BYTES, receiving
from test_receive_ndjson import OK, DisconnectedStream, NonReadingStream, line, read_lines

from sidecar.http import LARGE_BYTES, budget
from sidecar.outbox import Accepted, WriteRequest
from sidecar.receive import ndjson

LONG = 3_000
# Of 16 parts of half of it, four are for large bodies: less than one line of the harness may have.
SMALL = 2**17
MIB = 2**20


def long_line(number: int) -> bytes:
    return line(number).rstrip() + b" " * LONG + b"\n"


async def test_long_line_waits_for_a_slot_and_short_ones_do_not(tmp_path, monkeypatch):
    monkeypatch.setattr(ndjson, "LARGE_BYTES", 1_000)
    async with receiving(tmp_path / "o.db", max_memory=SMALL) as harness:
        first, second, third = (harness.connect("unix") for _ in range(3))
        whole = long_line(1)
        await first.send_all(whole[:2_000])
        await trio.testing.wait_all_tasks_blocked()
        await second.send_all(long_line(2)[:2_000])
        await trio.testing.wait_all_tasks_blocked()
        assert harness.memory.unix.statistics().large_waiting == 1
        await third.send_all(line(3))
        assert await read_lines(third, 1) == [OK]
        await first.send_all(whole[2_000:])
        assert await read_lines(first, 1) == [OK]
        await second.send_all(long_line(2)[2_000:] + long_line(4))
        assert await read_lines(second, 2) == [OK, OK]
        assert harness.memory.unix.statistics().large_bytes == 0


async def until_closed(stream) -> list[bytes]:
    got = b""
    while data := await stream.receive_some(65_536):
        got += data
    return got.splitlines(keepends=True)


async def test_slow_long_line_is_answered_timeout_and_frees_its_slot(tmp_path, monkeypatch, autojump_clock):
    monkeypatch.setattr(ndjson, "LARGE_BYTES", 1_000)
    async with receiving(tmp_path / "o.db") as harness:
        stream = harness.connect("unix")
        began_s = trio.current_time()
        await stream.send_all(line(1) + long_line(2)[:2_000])
        stored, refused = await until_closed(stream)
        assert trio.current_time() - began_s == ndjson.WAIT_S
        assert stored == OK
        assert b'"code":"timeout"' in refused
        assert harness.memory.unix.statistics().large_bytes == 0
        assert harness.refused == ["timeout"]


@pytest.mark.parametrize("others_wait_at_once", [True, False])
async def test_slow_long_line_gives_its_slot_to_others_that_wait(
    tmp_path, monkeypatch, autojump_clock, others_wait_at_once
):
    monkeypatch.setattr(ndjson, "LARGE_BYTES", 1_000)
    async with receiving(tmp_path / "o.db", max_memory=SMALL) as harness:
        first, second, third = (harness.connect("unix") for _ in range(3))
        await first.send_all(long_line(1)[:2_000])
        await trio.testing.wait_all_tasks_blocked()
        await trio.sleep(0 if others_wait_at_once else 20)
        began_s = trio.current_time()
        await second.send_all(long_line(2)[:2_000])
        assert b'"code":"busy"' in (await until_closed(first))[0]
        assert trio.current_time() - began_s == (ndjson.LONG_LINE_S if others_wait_at_once else 0)
        await third.send_all(long_line(3)[:2_000])
        assert b'"code":"busy"' in (await until_closed(second))[0]
        await third.send_all(long_line(3)[2_000:])
        assert await read_lines(third, 1) == [OK]
        assert harness.memory.unix.statistics().large_bytes == 0


async def test_too_long_line_holds_no_slot_while_it_is_skipped(tmp_path, monkeypatch, autojump_clock):
    monkeypatch.setattr(ndjson, "LARGE_BYTES", 1_000)
    async with receiving(tmp_path / "o.db") as harness:
        stream = harness.connect("unix")
        await stream.send_all(b"{" + b" " * 30_000)
        await trio.sleep(10 * ndjson.LONG_LINE_S)
        await stream.send_all(b"\n" + line(1))
        too_large, stored = await read_lines(stream, 2)
        assert b'"code":"too_large"' in too_large
        assert stored == OK


def expanding_line(number: int) -> bytes:
    """A line of eight events, 8 KB."""
    return b"[" + b",".join(line(f"{number}-{at}", p="x" * 900).strip() for at in range(8)) + b"]\n"


async def test_long_lines_of_all_clients_wait_for_commits(tmp_path, monkeypatch, autojump_clock):
    """Each of 60 clients submitted long lines of up to 4 MiB to a disk that hung."""
    monkeypatch.setattr(ndjson, "LARGE_BYTES", 1_000)
    monkeypatch.setattr(ndjson, "_READ_BYTES", 100)
    async with receiving(tmp_path / "o.db", max_memory=2 * 16 * 20_000) as harness:
        harness.runner.shut()
        streams = [harness.connect("unix") for _ in range(5)]
        for at, stream in enumerate(streams):
            harness.nursery.start_soon(stream.send_all, b"".join(expanding_line(10 * at + more) for more in range(8)))
            await trio.testing.wait_all_tasks_blocked()
        # The share, and what one line may exceed it by.
        assert 60_000 < harness.memory.unix.statistics().parsed_bytes < 75_000
        harness.runner.gate.set()
        for stream in streams:
            await read_lines(stream, 8)
        assert harness.count() == 5 * 8 * 8
        assert harness.refused == []
        assert harness.memory.unix.statistics() == (0, 0, 0, 0)


async def test_wait_for_commits_takes_nothing_from_the_clients_time(tmp_path, monkeypatch, autojump_clock):
    monkeypatch.setattr(ndjson, "LARGE_BYTES", 1_000)
    async with receiving(tmp_path / "o.db") as harness:
        harness.memory.unix.add(64 * MIB)
        stream, other = harness.connect("unix"), harness.connect("unix")
        await stream.send_all(long_line(1)[:2_000])
        await trio.sleep(ndjson.WAIT_S - 1)
        await other.send_all(long_line(2)[:2_000])
        harness.memory.unix.add(-64 * MIB)
        await trio.sleep(ndjson.WAIT_S - 1)
        await stream.send_all(long_line(1)[2_000:])
        assert await read_lines(stream, 1) == [OK]


async def test_long_line_without_space_in_time_is_answered_busy(tmp_path, monkeypatch, autojump_clock):
    monkeypatch.setattr(ndjson, "LARGE_BYTES", 1_000)
    async with receiving(tmp_path / "o.db") as harness:
        harness.memory.unix.add(64 * MIB)
        stream = harness.connect("unix")
        await stream.send_all(long_line(1)[:2_000])
        assert b'"code":"busy"' in (await until_closed(stream))[0]
        assert trio.current_time() == pytest.approx(budget.WAIT_S)
        harness.memory.unix.add(-64 * MIB)
        assert harness.memory.unix.statistics() == (0, 0, 0, 0)


async def test_client_that_does_not_read_holds_up_no_long_line(tmp_path, monkeypatch, autojump_clock):
    """Events counted until the client took the responses before theirs, and not until their commit."""
    monkeypatch.setattr(ndjson, "LARGE_BYTES", 1_000)
    monkeypatch.setattr(ndjson, "_READ_BYTES", 100)
    async with receiving(tmp_path / "o.db", max_memory=2 * 16 * 20_000) as harness:
        harness.runner.shut()
        harness.nursery.start_soon(harness.server.handle_unix, NonReadingStream(b"{}\n" + expanding_line(1) * 6))
        await trio.testing.wait_all_tasks_blocked()
        assert harness.memory.unix.statistics().parsed_bytes > 60_000
        stream = harness.connect("unix")
        await stream.send_all(expanding_line(2))
        await trio.testing.wait_all_tasks_blocked()
        began_s = trio.current_time()
        harness.runner.gate.set()
        assert b'"accepted":8' in (await read_lines(stream, 1))[0]
        assert trio.current_time() - began_s < 1


async def test_reading_ahead_of_the_disk_is_bounded_for_all_clients(tmp_path):
    async with receiving(tmp_path / "o.db", max_memory=20 * MIB * 2 * 16 // 3) as harness:
        submitted, write = [], WriteRequest([], MIB)
        harness.outbox.submit = lambda events, behind: submitted.append(events) or write
        streams = [harness.connect("unix") for _ in range(50)]
        for stream in streams:
            padded = b"".join(line(number).rstrip() + b" " * 15_000 + b"\n" for number in range(10))
            harness.nursery.start_soon(stream.send_all, padded)
        await trio.testing.wait_all_tasks_blocked()
        # Each connection may exceed the bound by one read, and each may have its first read.
        assert len(submitted) < 20 + 3 * len(streams)
        write.result = Accepted(1, 0)
        write.done.set()
        for stream in streams:
            await read_lines(stream, 10)
        assert len(submitted) == 500
        assert harness.memory.unix.statistics() == (0, 0, 0, 0)


async def test_disconnected_client_gives_its_budget_back(tmp_path, autojump_clock):
    async with receiving(tmp_path / "o.db") as harness:
        write = WriteRequest([], MAX_EVENT_BYTES)
        harness.outbox.submit = lambda events, behind: write
        harness.shutdown.set()
        await harness.server.handle_unix(NonReadingStream(line(1) * 10))
        assert harness.memory.unix.statistics() == (0, 0, 0, 0)


@pytest.mark.parametrize("client", [DisconnectedStream, NonReadingStream])
async def test_lines_count_until_their_commit_without_a_client(tmp_path, autojump_clock, client):
    """Clients that left or did not read gave the budget back while the outbox still held their events."""
    async with receiving(tmp_path / "o.db") as harness:
        harness.runner.shut()
        harness.nursery.start_soon(harness.server.handle_unix, client(b"{}\n" + line(1) * 10))  # {} is answered at once
        await trio.sleep(2 * ndjson.SEND_S)
        assert harness.memory.unix.statistics().parsed_bytes > 10 * len(line(1))
        assert harness.memory.unix.statistics().held_bytes == 0
        harness.runner.gate.set()
        await trio.testing.wait_all_tasks_blocked()
        assert harness.memory.unix.statistics() == (0, 0, 0, 0)
        assert harness.count() == 1


async def test_lines_of_an_evicted_client_count_until_their_commit(tmp_path, autojump_clock):
    async with receiving(tmp_path / "o.db", max_memory=SMALL) as harness:
        harness.runner.shut()
        streams = [harness.connect("unix") for _ in range(5)]
        for number, stream in enumerate(streams):
            await stream.send_all(line(number) + long_line(number + 10)[:3_050])
            await trio.testing.wait_all_tasks_blocked()
        counted_bytes = harness.memory.unix.statistics().parsed_bytes
        await trio.sleep(2 * ndjson.STOP_S)
        assert harness.refused == ["busy"]
        assert harness.memory.unix.statistics().parsed_bytes == counted_bytes
        harness.runner.gate.set()


async def test_a_client_that_does_not_read_is_bounded_by_itself(tmp_path, autojump_clock):
    """Responses that were ready were not counted: clients that never read held a megabyte each."""
    async with receiving(tmp_path / "o.db", max_memory=2 * 2**20) as harness:
        left = []

        async def never_reads() -> None:
            await harness.server.handle_unix(NonReadingStream(line(1) * 2_000))
            left.append(trio.current_time())

        for _ in range(20):
            harness.nursery.start_soon(never_reads)
            await trio.testing.wait_all_tasks_blocked()
            assert harness.memory.unix.statistics().held_bytes <= 2**20 * 3 // 16
        assert len(left) > 10, "those that did not read for the longest time are gone"
        assert await harness.lines(*[{"type": "page", "userId": "u"}] * 3) == [{"success": True, "accepted": 1}] * 3
        await trio.sleep(ndjson.SEND_S + 1)
        assert len(left) == 20
        assert harness.memory.unix.statistics() == (0, 0, 0, 0)


async def test_an_evicted_unfinished_line_is_answered_busy(tmp_path, autojump_clock):
    async with receiving(tmp_path / "o.db", max_memory=SMALL) as harness:
        streams = [harness.connect("unix") for _ in range(5)]
        for number, stream in enumerate(streams):
            await stream.send_all(line(number) + long_line(number + 10)[:3_050])
            await trio.testing.wait_all_tasks_blocked()
        stored, busy = await read_lines(streams[0], 2)
        assert stored == OK
        assert b'"code":"busy"' in busy
        await streams[-1].send_all(b"\n")
        assert await read_lines(streams[-1], 2) == [OK, OK]


async def test_only_the_end_of_a_long_line_waits_for_its_turn(tmp_path, monkeypatch):
    """Each piece waited for a whole large body of others: a line of 1.1 MiB took 10 s, and longer ones ended with 408."""
    monkeypatch.setattr(ndjson, "LARGE_BYTES", 1_000)
    async with receiving(tmp_path / "o.db") as harness:
        working = harness.memory.unix.working
        stream = harness.connect("unix")
        async with working:
            for piece in (b'{"type":"track","event":"E","userId":"u"', *[b" " * 1_000] * 4):
                await stream.send_all(piece)
                await trio.testing.wait_all_tasks_blocked()
                assert working.statistics().tasks_waiting == 0
            await stream.send_all(b"}\n")
            await trio.testing.wait_all_tasks_blocked()
            assert working.statistics().tasks_waiting == 1
        assert await read_lines(stream, 1) == [OK]


@pytest.mark.parametrize(
    "data",
    [b"[" + b"1," * 300 + b"1]\n", b"{}\n" * 300, b'{"event":"' + b"x" * LARGE_BYTES],
    ids=["an array of many", "many lines", "a long line"],
)
async def test_what_may_take_long_is_not_judged_at_once(tmp_path, data):
    async with receiving(tmp_path / "o.db") as harness:
        lines = ndjson.LineParser(harness.parser, harness.outbox, MAX_REQUEST_BYTES)
        assert lines.feed_at_once(data) is None
        assert lines.unfinished_bytes == 0  # nothing was done: `feed` takes it whole


async def test_a_line_that_is_judged_at_once_may_come_in_pieces(tmp_path):
    async with receiving(tmp_path / "o.db") as harness:
        lines = ndjson.LineParser(harness.parser, harness.outbox, MAX_REQUEST_BYTES)
        assert lines.feed_at_once(line(1)[:20]) == []
        assert lines.unfinished_bytes == 20
        assert len(lines.feed_at_once(line(1)[20:] + line(2) + b"[]\n")) == 3
        assert lines.unfinished_bytes == 0
