"""The Unix socket: which protocol it is, and the rules of NDJSON (DESIGN 2, "Unix socket")."""

import json

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from receive_help import MAX_REQUEST_BYTES, answers, read_all, receiving, track

from sidecar.outbox import Accepted, Note
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
async def test_a_bracket_first_begins_ndjson(tmp_path, blanks: bytes, what: bytes):
    async with receiving(tmp_path / "o.db") as rooms:
        assert await rooms.exchange(blanks + what, "unix") == OK


@pytest.mark.parametrize("blanks", [b"", b"\r\n"])
async def test_a_letter_first_begins_http(tmp_path, blanks: bytes):
    async with receiving(tmp_path / "o.db") as rooms:
        body = line().strip()
        wire = blanks + b"POST /v1/track HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        (said,) = answers(await rooms.exchange(wire, "unix"))
        assert (said.status, said.body) == (200, OK.strip())


@pytest.mark.parametrize("first", [b'"text"\n', b"1\n", b"\0", b"\x16\x03\x01", b"-", b"\xef\xbb\xbf{}"])
async def test_anything_else_first_gets_one_line_and_the_end(tmp_path, first: bytes):
    async with receiving(tmp_path / "o.db") as rooms:
        stream = rooms.connect("unix")
        await stream.send_all(first)
        (said,) = (await read_all(stream)).splitlines()
        assert json.loads(said)["code"] == "bad_json"
        assert rooms.refused == ["bad_json"]


async def test_a_client_that_says_nothing_is_let_be_and_its_end_is_the_end(tmp_path, autojump_clock):
    async with receiving(tmp_path / "o.db") as rooms:
        stream = rooms.connect("unix")
        await trio.sleep(2_000)
        await stream.send_all(line())
        assert await read_lines(stream, 1) == [OK]
        await trio.sleep(2_000)
        await stream.send_eof()
        assert await read_all(stream) == b""


async def test_each_line_is_answered_in_order_after_its_commit(tmp_path):
    async with receiving(tmp_path / "o.db") as rooms:
        said = await rooms.lines(
            track(1),
            [track(2), {"type": "odd", "messageId": "o"}],
            {"type": "track", "userId": "u"},
            b"{nonsense",
            [],
            {"batch": [track(3), track(1)], "context": {"app": 1}},
            [track(1), track(2)],
            b"7",
        )
        assert [one.get("accepted", one.get("code")) for one in said] == [
            1,
            2,
            "bad_event",
            "bad_json",
            0,
            1,
            0,
            "bad_event",
        ]
        assert [one["success"] for one in said] == [True, True, False, False, True, True, True, False]
        assert said[1]["refused"][0]["messageId"] == "o"
        assert said[6]["repeated"] == 2
        assert [event["messageId"] for event in rooms.stored()] == ["m1", "m2", "o", "m3"]


@pytest.mark.parametrize("ending", [b"", b"\n", b"\r\n", b"\n\n\n \n"])
async def test_blank_lines_are_ignored_and_the_last_line_counts_at_the_end(tmp_path, ending: bytes):
    async with receiving(tmp_path / "o.db") as rooms:
        data = line(1) + b"\n \r\n\t\n" + line(2).replace(b"\n", b"\r\n") + line(3).strip() + ending
        assert await rooms.exchange(data, "unix") == OK * 3


async def test_a_line_that_is_too_long_is_answered_and_passed_over(tmp_path):
    async with receiving(tmp_path / "o.db") as rooms:
        long = b'{"p":"' + b"x" * MAX_REQUEST_BYTES * 10 + b'"}\n'
        said = [json.loads(one) for one in (await rooms.exchange(line(1) + long + line(2), "unix")).splitlines()]
        assert [one.get("code") for one in said] == [None, "too_large", None]
        assert f"{MAX_REQUEST_BYTES:,} bytes" in said[1]["message"]
        assert rooms.refused == ["too_large"]
        assert rooms.count() == 2


async def test_a_line_may_be_as_long_as_a_request(tmp_path):
    async with receiving(tmp_path / "o.db") as rooms:
        exact = line().strip()
        exact = exact[:-1] + b" " * (MAX_REQUEST_BYTES - len(exact)) + b"}"
        assert await rooms.exchange(exact + b"\n", "unix") == OK
        said = json.loads(await rooms.exchange(exact + b" \n", "unix"))
        assert said["code"] == "too_large"


async def test_a_client_may_send_many_lines_before_it_reads(tmp_path):
    async with receiving(tmp_path / "o.db") as rooms:
        stream = rooms.connect("unix")
        for start in range(0, 5_000, 500):
            await stream.send_all(b"".join(line(number) for number in range(start, start + 500)))
        await stream.send_eof()
        assert await read_all(stream) == OK * 5_000
        assert rooms.count() == 5_000


async def test_a_client_on_a_real_socket_may_write_twenty_thousand_lines_before_it_reads(tmp_path):
    theirs, ours = (trio.SocketStream(one) for one in trio.socket.socketpair())
    async with receiving(tmp_path / "o.db") as rooms, theirs:
        rooms.nursery.start_soon(rooms._serve, rooms.front.unix, ours)
        with trio.fail_after(60):
            await theirs.send_all(b"".join(line(number, pad="x" * 100) for number in range(20_000)))
            await theirs.send_eof()
            assert await read_all(theirs) == OK * 20_000
        assert rooms.count() == 20_000


async def test_a_client_that_goes_on_writing_is_not_hurried_to_read(tmp_path, autojump_clock):
    async with receiving(tmp_path / "o.db") as rooms:
        late = Late([line(number) for number in range(20)], every_s=ndjson.SEND_S * 0.9)
        await rooms.front.unix(late)
        assert bytes(late.got) == OK * 20


async def test_a_line_that_fails_in_the_store_costs_no_other_its_answer(tmp_path):
    async with receiving(tmp_path / "o.db") as rooms:
        submit = rooms.outbox.submit

        def failing(events):
            note = submit(events)
            if events[0].message_id == "m2":
                note = Note(events)
                note.error = RuntimeError("a bug")
                note.done.set()
            return note

        rooms.outbox.submit = failing
        said = await rooms.lines(track(1), track(2), track(3))
        assert [one.get("code", one.get("accepted")) for one in said] == [1, "internal", 1]


async def test_an_answer_does_not_wait_for_the_commit_of_a_later_line(tmp_path):
    async with receiving(tmp_path / "o.db") as rooms:
        stream = rooms.connect("unix")
        first, second = notes = [Note([]), Note([])]
        left = list(notes)
        rooms.outbox.submit = lambda _events: left.pop(0)
        await stream.send_all(line(1) + line(2))
        await trio.testing.wait_all_tasks_blocked()
        first.answer = second.answer = Accepted(1, 0)
        first.done.set()
        with trio.fail_after(5):
            assert len(await read_lines(stream, 1)) == 1
        second.done.set()
        assert len(await read_lines(stream, 1)) == 1


class Clogged(trio.abc.HalfCloseableStream):
    """The server's end of a client that sends ``data`` and takes nothing."""

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
async def test_a_reader_that_takes_nothing_is_not_read_from_and_given_up(tmp_path, autojump_clock, monkeypatch, lines):
    monkeypatch.setattr(ndjson, "ANSWERS_MAX_BYTES", 1_000 * len(OK))
    async with receiving(tmp_path / "o.db") as rooms:
        endless = Clogged(b"".join(line(number) for number in range(lines)))
        began_s = trio.current_time()
        await rooms.front.unix(endless)
        assert trio.current_time() - began_s == pytest.approx(ndjson.SEND_S, abs=1)
        assert endless.taken < (1_100 + ndjson.WAITING_MAX) * len(line(1000))
        await trio.testing.wait_all_tasks_blocked()
        assert 0 < rooms.count() <= endless.taken // len(line(0))


async def test_large_lines_are_not_read_ahead_of_the_disk_without_bound(tmp_path, monkeypatch):
    monkeypatch.setattr(ndjson, "WAITING_MAX_BYTES", 50_000)
    async with receiving(tmp_path / "o.db") as rooms:
        submitted = []
        note = Note([], 15_000)
        rooms.outbox.submit = lambda events: submitted.append(events) or note
        stream = rooms.connect("unix")
        rooms.nursery.start_soon(stream.send_all, b"".join(line(n) + b" " * 19_000 + b"\n" for n in range(100)))
        await trio.testing.wait_all_tasks_blocked()
        assert len(submitted) < 20
        note.answer = Accepted(1, 0)
        note.done.set()
        await read_lines(stream, 100)
        assert len(submitted) == 100


class Late(Clogged):
    """The server's end of a client that writes a line now and then, and reads only once it has written all."""

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


class Gone(Clogged):
    """The server's end of a client that has written and gone."""

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return await super().receive_some() if self.left else b""

    async def send_all(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        raise trio.BrokenResourceError


async def test_what_a_client_wrote_before_it_went_is_stored(tmp_path):
    async with receiving(tmp_path / "o.db") as rooms:
        await rooms.front.unix(Gone(b"".join(line(number) for number in range(2_000))))
        await trio.testing.wait_all_tasks_blocked()
        assert rooms.count() == 2_000


async def test_a_client_that_breaks_off_in_a_line_leaves_what_was_whole(tmp_path):
    async with receiving(tmp_path / "o.db") as rooms:
        stream = rooms.connect("unix")
        await stream.send_all(line(1) + line(2)[:30])
        assert await read_lines(stream, 1) == [OK]
        await stream.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert [event["messageId"] for event in rooms.stored()] == ["m1"]


@pytest.mark.parametrize("rest", [b"", b'{"type":"track","event":"half'])
async def test_at_a_stop_what_was_read_is_answered_and_half_a_line_is_dropped(tmp_path, rest: bytes):
    async with receiving(tmp_path / "o.db") as rooms:
        stream = rooms.connect("unix")
        await stream.send_all(line(1) + line(2) + rest)
        await trio.testing.wait_all_tasks_blocked()
        rooms.stopping.set()
        assert await read_all(stream) == OK * 2
        assert rooms.count() == 2


async def test_a_line_at_the_end_of_the_stream_is_answered_though_a_stop_comes_with_it(tmp_path):
    async with receiving(tmp_path / "o.db") as rooms:
        stream = rooms.connect("unix")
        await stream.send_all(line(1))
        await trio.testing.wait_all_tasks_blocked()
        await stream.send_all(line(2).strip())
        await trio.testing.wait_all_tasks_blocked()
        await stream.send_eof()
        rooms.stopping.set()
        said = await read_all(stream)
        assert said == OK * rooms.count()


async def test_a_connection_that_is_accepted_as_the_stop_comes_does_not_hold_it_up(tmp_path, autojump_clock):
    async with receiving(tmp_path / "o.db") as rooms:
        rooms.stopping.set()
        silent, quick = rooms.connect("unix"), rooms.connect("unix")
        await quick.send_all(line(1))
        with trio.fail_after(5):
            assert await read_all(silent) == b""
            assert await read_all(quick) == OK


async def test_a_stop_waits_a_moment_for_a_connection_that_has_said_nothing_yet(tmp_path, autojump_clock):
    async with receiving(tmp_path / "o.db") as rooms:
        late = rooms.connect("unix")
        await trio.testing.wait_all_tasks_blocked()
        rooms.stopping.set()
        await trio.sleep(0.9)
        await late.send_all(line(1))
        with trio.fail_after(1):
            assert await read_all(late) == OK


async def test_an_idle_connection_ends_with_the_stop(tmp_path, autojump_clock):
    async with receiving(tmp_path / "o.db") as rooms:
        silent, used = rooms.connect("unix"), rooms.connect("unix")
        await used.send_all(line(1))
        assert await read_lines(used, 1) == [OK]
        rooms.stopping.set()
        with trio.fail_after(5):
            assert await read_all(silent) + await read_all(used) == b""


async def test_while_there_is_no_room_each_line_is_told_so(tmp_path):
    async with receiving(tmp_path / "o.db") as rooms:
        rooms.room.full = "outbox_full"
        said = await rooms.lines(track(1), track(2))
        assert [one["code"] for one in said] == ["outbox_full"] * 2
        rooms.room.full = None
        assert (await rooms.lines(track(1)))[0]["accepted"] == 1


odd_line = st.one_of(
    st.just(b""),
    st.binary(max_size=30).map(lambda data: data.replace(b"\n", b"")),
    st.builds(lambda n: line(n).strip(), st.integers(0, 3)),
    st.just(b"{" + b"x" * MAX_REQUEST_BYTES),
    st.just(b'[{"type":"page"},7]'),
)


@given(st.lists(odd_line, max_size=10), st.randoms(use_true_random=False))
async def test_any_lines_get_an_answer_each_however_they_are_cut(tmp_path_factory, lines, random):
    async with receiving(tmp_path_factory.mktemp("any") / "o.db") as rooms:
        data = b"{}\n" + b"\n".join(lines)
        stream = rooms.connect("unix")

        async def send() -> None:
            left = data
            while left:
                size = random.choice([1, 7, 100, 30_000])
                await stream.send_all(left[:size])
                left = left[size:]
            await stream.send_eof()

        rooms.nursery.start_soon(send)
        said = [json.loads(one) for one in (await read_all(stream)).splitlines()]
        assert len(said) == 1 + sum(1 for one in lines if one.strip())
        assert sum(one.get("accepted", 0) for one in said) == rooms.count()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60), st.sampled_from(["tcp", "unix"]))
async def test_garbage_neither_crashes_nor_hangs(tmp_path_factory, autojump_clock, data: bytes, kind: str):
    async with receiving(tmp_path_factory.mktemp("any") / "o.db") as rooms:
        with trio.fail_after(300):
            await rooms.exchange(data, kind)
        with trio.fail_after(10):
            assert (await rooms.post("/v1/track", track())).status == 200
