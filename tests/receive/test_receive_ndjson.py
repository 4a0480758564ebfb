"""The Unix socket: protocol detection, and NDJSON."""

import json

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from receive_harness import MAX_REQUEST_BYTES, answers, read_all, receiving, track

from sidecar.outbox import Accepted, WriteRequest
from sidecar.receive import ndjson

OK = b'{"success":true,"accepted":1}\n'


def line(number: int | str = 1, **more) -> bytes:
    return json.dumps(track(number, **more)).encode() + b"\n"


async def read_lines(stream: trio.abc.ReceiveStream, count: int) -> list[bytes]:
    got = b""
    while got.count(b"\n") < count:
        data = await stream.receive_some(65_536)
        assert data, f"ended after {got!r}"
        got += data
    return got.splitlines(keepends=True)


@pytest.mark.parametrize("blanks", [b"", b"\n", b"\r\n\t ", b" " * 10_000])
@pytest.mark.parametrize("what", [line(), b"[%b]\n" % line().strip()])
async def test_bracket_first_selects_ndjson(tmp_path, blanks: bytes, what: bytes):
    async with receiving(tmp_path / "o.db") as harness:
        assert await harness.exchange(blanks + what, "unix") == OK


BOM = b"\xef\xbb\xbf"


@pytest.mark.parametrize(
    "data",
    [
        BOM + line(),
        b"\n" + BOM + b"\n" + line(),
        BOM + b"\n" + line(),
        line() + BOM + b"\n",
        BOM + b"\n" + BOM + line(),  # it was refused as neither NDJSON nor HTTP, unless it came in two pieces
        BOM + BOM + line() + BOM + BOM + b"\n",
    ],
)
@pytest.mark.parametrize("cut", [1, 2, 3, 1_000])
async def test_byte_order_mark_is_skipped(tmp_path, data: bytes, cut: int):
    """.NET's StreamWriter begins with one; all lines of such a stream were refused with one answer."""
    async with receiving(tmp_path / "o.db") as harness:
        stream = harness.connect("unix")
        for start in range(0, len(data), cut):
            await stream.send_all(data[start : start + cut])
            await trio.testing.wait_all_tasks_blocked()
        await stream.send_eof()
        assert await read_all(stream) == OK


async def test_byte_order_mark_before_every_line_and_before_http(tmp_path):
    async with receiving(tmp_path / "o.db") as harness:
        assert await harness.exchange(b"".join(BOM + line(number) for number in range(3)), "unix") == OK * 3
        wire = BOM + b"GET /cluster-info HTTP/1.1\r\n\r\n"
        assert answers(await harness.exchange(wire, "unix"))[0].status == 200


@pytest.mark.parametrize("blanks", [b"", b"\r\n"])
async def test_letter_first_selects_http(tmp_path, blanks: bytes):
    async with receiving(tmp_path / "o.db") as harness:
        body = line().strip()
        wire = blanks + b"POST /v1/track HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        (answer,) = answers(await harness.exchange(wire, "unix"))
        assert (answer.status, answer.body) == (200, OK.strip())


@pytest.mark.parametrize("first", [b'"text"\n', b"1\n", b"\0", b"\x16\x03\x01", b"-", b"\xef\xbb{}", b"\xef\xbb\xbf-"])
async def test_any_other_first_byte_gets_one_error_line(tmp_path, first: bytes):
    async with receiving(tmp_path / "o.db") as harness:
        stream = harness.connect("unix")
        await stream.send_all(first)
        (answer,) = (await read_all(stream)).splitlines()
        assert json.loads(answer)["code"] == "bad_json"
        assert harness.refused == ["bad_json"]


async def test_idle_client_is_kept_until_it_closes(tmp_path, autojump_clock):
    async with receiving(tmp_path / "o.db") as harness:
        stream = harness.connect("unix")
        await trio.sleep(2_000)
        await stream.send_all(line())
        assert await read_lines(stream, 1) == [OK]
        await trio.sleep(2_000)
        await stream.send_eof()
        assert await read_all(stream) == b""


async def test_lines_are_answered_in_order_after_their_commit(tmp_path):
    async with receiving(tmp_path / "o.db") as harness:
        received = await harness.lines(
            track(1),
            [track(2), {"type": "odd", "messageId": "o"}],
            {"type": "track", "userId": "u"},
            b"{nonsense",
            [],
            {"batch": [track(3), track(1)], "context": {"app": 1}},
            [track(1), track(2)],
            b"7",
        )
        assert [answer.get("accepted", answer.get("code")) for answer in received] == [
            1,
            2,
            "bad_event",
            "bad_json",
            0,
            1,
            0,
            "bad_event",
        ]
        assert [answer["success"] for answer in received] == [True, True, False, False, True, True, True, False]
        assert received[1]["refused"][0]["messageId"] == "o"
        assert received[6]["repeated"] == 2
        assert [event["messageId"] for event in harness.stored()] == ["m1", "m2", "o", "m3"]


@pytest.mark.parametrize("ending", [b"", b"\n", b"\r\n", b"\n\n\n \n"])
async def test_blank_lines_are_ignored_and_an_open_last_line_counts(tmp_path, ending: bytes):
    async with receiving(tmp_path / "o.db") as harness:
        data = line(1) + b"\n \r\n\t\n" + line(2).replace(b"\n", b"\r\n") + line(3).strip() + ending
        assert await harness.exchange(data, "unix") == OK * 3


async def test_bad_events_beside_good_ones_are_reported(tmp_path):
    """They were answered, but no metric counted them, as it does those of an HTTP batch."""
    async with receiving(tmp_path / "o.db") as harness:
        (answer,) = await harness.lines([1, track(1), {"type": "track", "userId": "u"}])
        assert len(answer["refused"]) == 2
        assert harness.refused == ["bad_event"] * 2


async def test_too_long_line_is_answered_and_skipped(tmp_path):
    async with receiving(tmp_path / "o.db") as harness:
        long = b'{"p":"' + b"x" * MAX_REQUEST_BYTES * 10 + b'"}\n'
        received = [
            json.loads(answer) for answer in (await harness.exchange(line(1) + long + line(2), "unix")).splitlines()
        ]
        assert [answer.get("code") for answer in received] == [None, "too_large", None]
        assert f"{MAX_REQUEST_BYTES:,} bytes" in received[1]["message"]
        assert harness.refused == ["too_large"]
        assert harness.count() == 2


async def test_line_may_be_as_long_as_a_request(tmp_path):
    async with receiving(tmp_path / "o.db") as harness:
        exact = line().strip()
        exact = exact[:-1] + b" " * (MAX_REQUEST_BYTES - len(exact)) + b"}"
        assert await harness.exchange(exact + b"\n", "unix") == OK
        answer = json.loads(await harness.exchange(exact + b" \n", "unix"))
        assert answer["code"] == "too_large"


async def test_client_may_send_many_lines_before_it_reads(tmp_path):
    async with receiving(tmp_path / "o.db") as harness:
        stream = harness.connect("unix")
        for start in range(0, 5_000, 500):
            await stream.send_all(b"".join(line(number) for number in range(start, start + 500)))
        await stream.send_eof()
        assert await read_all(stream) == OK * 5_000
        assert harness.count() == 5_000


async def test_socket_client_may_write_20000_lines_before_it_reads(tmp_path):
    client, server_end = (trio.SocketStream(end) for end in trio.socket.socketpair())
    async with receiving(tmp_path / "o.db") as harness, client:
        harness.serve_stream(server_end)
        with trio.fail_after(60):
            await client.send_all(b"".join(line(number, pad="x" * 100) for number in range(20_000)))
            await client.send_eof()
            assert await read_all(client) == OK * 20_000
        assert harness.count() == 20_000


async def test_writing_client_is_not_disconnected_for_not_reading(tmp_path, autojump_clock):
    async with receiving(tmp_path / "o.db") as harness:
        late = LateReadingStream([line(number) for number in range(20)], every_s=ndjson.SEND_S * 0.9)
        await harness.server.handle_unix(late)
        assert bytes(late.got) == OK * 20


async def test_failed_line_does_not_affect_other_answers(tmp_path):
    async with receiving(tmp_path / "o.db") as harness:
        submit = harness.outbox.submit

        def failing(events, behind):
            write = submit(events, behind=behind)
            if events[0].message_id == "m2":
                write = WriteRequest(events)
                write.error = RuntimeError("a bug")
                write.done.set()
            return write

        harness.outbox.submit = failing
        received = await harness.lines(track(1), track(2), track(3))
        assert [answer.get("code", answer.get("accepted")) for answer in received] == [1, "internal", 1]


async def test_lines_after_a_large_one_are_stored_after_it(tmp_path, monkeypatch):
    """Small requests are committed between two slices of a large one; not those of the same connection."""
    monkeypatch.setattr("sidecar.outbox.accept_queue.SLICE_ROWS", 3)
    async with receiving(tmp_path / "o.db") as harness:
        many = [track(number) for number in range(10)]
        received = await harness.lines(many, track("late"), track("later"))
        assert [answer["accepted"] for answer in received] == [10, 1, 1]
        rows = harness.store.connection.execute("SELECT body FROM events ORDER BY id DESC LIMIT 3").fetchall()
        assert [json.loads(row[0])["messageId"] for row in rows] == ["mlater", "mlate", "m9"]


async def test_a_large_line_is_stored_after_small_ones_before_it(tmp_path, monkeypatch):
    """Both wait for one commit: the account of the large one's events is the one that the `group` before it gives."""
    monkeypatch.setattr("sidecar.outbox.accept_queue.SLICE_ROWS", 3)
    async with receiving(tmp_path / "o.db") as harness:
        harness.runner.shut()
        harness.nursery.start_soon(harness.outbox.accept, [])
        await trio.testing.wait_all_tasks_blocked()
        stream = harness.connect("unix")
        group = {"type": "group", "userId": "u", "groupId": "acme", "messageId": "g"}
        many = [track(number, userId="u") for number in range(4)]
        await stream.send_all(json.dumps(group).encode() + b"\n" + json.dumps(many).encode() + b"\n")
        await trio.testing.wait_all_tasks_blocked()
        harness.runner.gate.set()
        assert len(await read_lines(stream, 2)) == 2
        rows = harness.store.connection.execute("SELECT account FROM events ORDER BY id").fetchall()
        assert rows == [("acme",)] * 5


async def test_answer_does_not_wait_for_a_later_commit(tmp_path):
    async with receiving(tmp_path / "o.db") as harness:
        stream = harness.connect("unix")
        first, second = WriteRequest([]), WriteRequest([])
        writes = [first, second]
        harness.outbox.submit = lambda _events, behind: writes.pop(0)
        await stream.send_all(line(1) + line(2))
        await trio.testing.wait_all_tasks_blocked()
        first.result = second.result = Accepted(1, 0)
        first.done.set()
        with trio.fail_after(5):
            assert len(await read_lines(stream, 1)) == 1
        second.done.set()
        assert len(await read_lines(stream, 1)) == 1


class NonReadingStream(trio.abc.HalfCloseableStream):
    """The server's end of a client that sends ``data`` and reads nothing."""

    def __init__(self, data: bytes) -> None:
        self.left = data
        self.taken = 0

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        if not self.left:
            await trio.sleep_forever()
        data, self.left = self.left[:1000], self.left[1000:]
        self.taken += len(data)
        return data

    async def send_all(self, data: bytes) -> None:
        await trio.sleep_forever()

    async def wait_send_all_might_not_block(self) -> None:
        await trio.sleep_forever()

    async def send_eof(self) -> None:
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("lines", [10, 10_000])
async def test_client_that_never_reads_is_bounded_and_disconnected(tmp_path, autojump_clock, monkeypatch, lines):
    monkeypatch.setattr(ndjson, "UNREAD_BYTES_MAX", 1_000 * len(OK))
    async with receiving(tmp_path / "o.db") as harness:
        endless = NonReadingStream(b"".join(line(number) for number in range(lines)))
        began_s = trio.current_time()
        await harness.server.handle_unix(endless)
        assert trio.current_time() - began_s == pytest.approx(ndjson.SEND_S, abs=1)
        assert endless.taken < (1_100 + ndjson.PENDING_LINES_MAX) * len(line(1000))
        await trio.testing.wait_all_tasks_blocked()
        assert 0 < harness.count() <= endless.taken // len(line(0))


async def test_reading_large_lines_ahead_of_the_disk_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(ndjson, "PENDING_BYTES_MAX", 50_000)
    async with receiving(tmp_path / "o.db") as harness:
        submitted = []
        write = WriteRequest([], 15_000)
        harness.outbox.submit = lambda events, behind: submitted.append(events) or write
        stream = harness.connect("unix")
        harness.nursery.start_soon(stream.send_all, b"".join(line(n) + b" " * 19_000 + b"\n" for n in range(100)))
        await trio.testing.wait_all_tasks_blocked()
        assert len(submitted) < 20
        write.result = Accepted(1, 0)
        write.done.set()
        await read_lines(stream, 100)
        assert len(submitted) == 100


class LateReadingStream(NonReadingStream):
    """The server's end of a client that writes a line every ``every_s`` seconds, and reads only after all are written."""

    def __init__(self, lines: list[bytes], every_s: float) -> None:
        super().__init__(b"")
        self.lines = lines
        self.every_s = every_s
        self.reads = trio.Event()
        self.got = bytearray()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if not self.lines:
            self.reads.set()
            return b""
        await trio.sleep(self.every_s)
        return self.lines.pop(0)

    async def send_all(self, data: bytes) -> None:
        await self.reads.wait()
        self.got += data


class DisconnectedStream(NonReadingStream):
    """The server's end of a client that has written and disconnected."""

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return await super().receive_some() if self.left else b""

    async def send_all(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        raise trio.BrokenResourceError


async def test_lines_of_a_disconnected_client_are_stored(tmp_path):
    async with receiving(tmp_path / "o.db") as harness:
        await harness.server.handle_unix(DisconnectedStream(b"".join(line(number) for number in range(2_000))))
        await trio.testing.wait_all_tasks_blocked()
        assert harness.count() == 2_000


async def test_disconnect_within_a_line_keeps_complete_lines(tmp_path):
    async with receiving(tmp_path / "o.db") as harness:
        stream = harness.connect("unix")
        await stream.send_all(line(1) + line(2)[:30])
        assert await read_lines(stream, 1) == [OK]
        await stream.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert [event["messageId"] for event in harness.stored()] == ["m1"]


@pytest.mark.parametrize("rest", [b"", b'{"type":"track","event":"half'])
async def test_shutdown_answers_complete_lines_and_drops_half_a_line(tmp_path, rest: bytes):
    async with receiving(tmp_path / "o.db") as harness:
        stream = harness.connect("unix")
        await stream.send_all(line(1) + line(2) + rest)
        await trio.testing.wait_all_tasks_blocked()
        harness.shutdown.set()
        assert await read_all(stream) == OK * 2
        assert harness.count() == 2


async def test_last_line_arriving_with_the_shutdown_is_answered(tmp_path):
    async with receiving(tmp_path / "o.db") as harness:
        stream = harness.connect("unix")
        await stream.send_all(line(1))
        await trio.testing.wait_all_tasks_blocked()
        await stream.send_all(line(2).strip())
        await trio.testing.wait_all_tasks_blocked()
        await stream.send_eof()
        harness.shutdown.set()
        answer = await read_all(stream)
        assert answer == OK * harness.count()


async def test_connection_accepted_at_shutdown_does_not_delay_it(tmp_path, autojump_clock):
    async with receiving(tmp_path / "o.db") as harness:
        harness.shutdown.set()
        silent, quick = harness.connect("unix"), harness.connect("unix")
        await quick.send_all(line(1))
        with trio.fail_after(5):
            assert await read_all(silent) == b""
            assert await read_all(quick) == OK


async def test_shutdown_waits_a_second_for_the_first_line(tmp_path, autojump_clock):
    async with receiving(tmp_path / "o.db") as harness:
        late = harness.connect("unix")
        await trio.testing.wait_all_tasks_blocked()
        harness.shutdown.set()
        await trio.sleep(0.9)
        await late.send_all(line(1))
        with trio.fail_after(1):
            assert await read_all(late) == OK


async def test_idle_connection_ends_with_the_shutdown(tmp_path, autojump_clock):
    async with receiving(tmp_path / "o.db") as harness:
        silent, used = harness.connect("unix"), harness.connect("unix")
        await used.send_all(line(1))
        assert await read_lines(used, 1) == [OK]
        harness.shutdown.set()
        with trio.fail_after(5):
            assert await read_all(silent) + await read_all(used) == b""


class SlowReadingStream(NonReadingStream):
    """The server's end of a client that sends ``data``, ends its side, and reads a piece every ``every_s`` seconds."""

    def __init__(self, data: bytes, every_s: float) -> None:
        super().__init__(data)
        self.every_s = every_s

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return await super().receive_some() if self.left else b""

    async def send_all(self, data: bytes) -> None:
        await trio.sleep(self.every_s)


async def test_shutdown_does_not_wait_for_a_half_closed_client(tmp_path, autojump_clock):
    """The shutdown was looked at when reading ended; a client that had ended its side before delayed it by minutes."""
    async with receiving(tmp_path / "o.db") as harness:
        ended = trio.Event()

        async def serve() -> None:
            await harness.server.handle_unix(SlowReadingStream(b"{}\n" * 3_000, every_s=25))
            ended.set()

        harness.nursery.start_soon(serve)
        await trio.sleep(1)
        harness.shutdown.set()
        began_s = trio.current_time()
        await ended.wait()
        assert trio.current_time() - began_s == pytest.approx(ndjson.STOP_S)


async def test_full_outbox_is_answered_on_each_line(tmp_path):
    async with receiving(tmp_path / "o.db") as harness:
        harness.capacity.full = "outbox_full"
        received = await harness.lines(track(1), track(2))
        assert [answer["code"] for answer in received] == ["outbox_full"] * 2
        harness.capacity.full = None
        assert (await harness.lines(track(1)))[0]["accepted"] == 1


odd_line = st.one_of(
    st.just(b""),
    st.binary(max_size=30).map(lambda data: data.replace(b"\n", b"")),
    st.builds(lambda n: line(n).strip(), st.integers(0, 3)),
    st.just(b"{" + b"x" * MAX_REQUEST_BYTES),
    st.just(b'[{"type":"page"},7]'),
)


@given(st.lists(odd_line, max_size=10), st.randoms(use_true_random=False))
async def test_any_lines_get_one_answer_each_however_cut(tmp_path_factory, lines, random):
    async with receiving(tmp_path_factory.mktemp("any") / "o.db") as harness:
        data = b"{}\n" + b"\n".join(lines)
        stream = harness.connect("unix")

        async def send() -> None:
            left = data
            while left:
                size = random.choice([1, 7, 100, 30_000])
                await stream.send_all(left[:size])
                left = left[size:]
            await stream.send_eof()

        harness.nursery.start_soon(send)
        received = [json.loads(answer) for answer in (await read_all(stream)).splitlines()]
        assert len(received) == 1 + sum(1 for text in lines if text.strip())
        assert sum(answer.get("accepted", 0) for answer in received) == harness.count()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60), st.sampled_from(["tcp", "unix"]))
async def test_garbage_neither_crashes_nor_hangs(tmp_path_factory, autojump_clock, data: bytes, kind: str):
    async with receiving(tmp_path_factory.mktemp("any") / "o.db") as harness:
        with trio.fail_after(300):
            await harness.exchange(data, kind)
        with trio.fail_after(10):
            assert (await harness.post("/v1/track", track())).status == 200
