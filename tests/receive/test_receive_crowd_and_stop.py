"""Too many at once, a request at which we fail, and a stop with work in hand."""

import contextlib
import json
import logging
import socket
from functools import partial

import pytest
import trio
import trio.testing
from receive_help import Rooms, answers, read_all, receiving, track

from sidecar.config import Listen
from sidecar.receive import bind_listeners

OK = b'{"success":true,"accepted":1}'


def request(number: int = 1) -> bytes:
    body = json.dumps(track(number)).encode()
    return b"POST /v1/track HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


@contextlib.asynccontextmanager
async def serving(rooms: Rooms, listen: Listen, *, descriptors: int = 1_000, inherited=None):
    """The front at its sockets; at the end of the block it must stop by itself when told to."""
    opened = bind_listeners(listen, inherited or {})
    try:
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                await nursery.start(partial(rooms.front.serve, opened, descriptors=descriptors))
                yield opened
                rooms.stopping.set()
    finally:
        opened.close()


async def tcp(one: socket.socket) -> trio.SocketStream:
    return await trio.open_tcp_stream(*one.getsockname()[:2])


async def ask(stream: trio.abc.Stream, data: bytes) -> list:
    await stream.send_all(data)
    return answers(bytes(await stream.receive_some(65_536)))


async def test_a_crowd_on_one_way_in_keeps_nobody_out_of_another(tmp_path):
    listen = Listen(http="127.0.0.1:0", unix=str(tmp_path / "events.sock"))
    async with (
        receiving(tmp_path / "o.db") as rooms,
        serving(rooms, listen, descriptors=1) as opened,
        contextlib.AsyncExitStack() as stack,
    ):
        crowd = [await stack.enter_async_context(await tcp(opened.http[0])) for _ in range(16)]
        for one in crowd:
            assert (await ask(one, request(1)))[0].status == 200
        late = await stack.enter_async_context(await tcp(opened.http[0]))
        await late.send_all(request(2))
        async with await trio.open_unix_socket(listen.unix) as stream:
            assert (await ask(stream, request(3)))[0].body == OK
        assert [event["messageId"] for event in rooms.stored()] == ["m1", "m3"]
        await crowd[0].aclose()
        assert answers(bytes(await late.receive_some(1_000)))[0].body == OK


class Held:
    """An outbox to which requests come only once they are let go."""

    size_bytes = 0

    def __init__(self, rooms: Rooms) -> None:
        self.go = trio.Event()
        self.asked = trio.Event()
        self._submit = rooms.outbox.submit
        rooms.outbox.submit = self._held

    def _held(self, events):
        self.asked.set()
        self._events = events
        return self

    async def wait(self):
        events = self._events
        await self.go.wait()
        return await self._submit(events).wait()


async def test_at_a_stop_what_was_read_is_stored_and_answered_with_the_end_of_the_connection(tmp_path):
    async with receiving(tmp_path / "o.db") as rooms:
        held = Held(rooms)
        async with (
            serving(rooms, Listen(http="127.0.0.1:0", unix="")) as opened,
            await tcp(opened.http[0]) as busy,
            await tcp(opened.http[0]) as idle,
        ):
            await busy.send_all(request())
            await held.asked.wait()
            rooms.stopping.set()
            assert await read_all(idle) == b""
            assert rooms.count() == 0
            held.go.set()
            (said,) = answers(await read_all(busy))
            assert (said.status, said.body, said.headers["connection"]) == (200, OK, "close")
            assert rooms.count() == 1


async def test_a_client_that_goes_before_its_answer_loses_nothing_and_blocks_nobody(tmp_path):
    async with receiving(tmp_path / "o.db") as rooms:
        held = Held(rooms)
        async with serving(rooms, Listen(http="127.0.0.1:0", unix="")) as opened:
            async with await tcp(opened.http[0]) as hasty:
                await hasty.send_all(request(1))
                await held.asked.wait()
            held.go.set()
            async with await tcp(opened.http[0]) as stream:
                assert (await ask(stream, request(2)))[0].body == OK
            assert {event["messageId"] for event in rooms.stored()} == {"m1", "m2"}


async def test_a_stop_before_the_start_serves_nobody(tmp_path):
    async with receiving(tmp_path / "o.db") as rooms:
        rooms.stopping.set()
        async with serving(rooms, Listen(http="127.0.0.1:0", unix="")):
            pass


@contextlib.contextmanager
def logged_by(name: str):
    """The messages that one logger is given; pytest's own fixture is switched off in this project."""
    told: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append(record.getMessage())

    logger, handler = logging.getLogger(name), Collect()
    logger.addHandler(handler)
    try:
        yield told
    finally:
        logger.removeHandler(handler)


@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_a_request_at_which_we_fail_gets_500_is_told_and_the_next_one_is_served(tmp_path, kind):
    async with receiving(tmp_path / "o.db") as rooms:
        submit, rooms.outbox.submit = rooms.outbox.submit, None
        with logged_by("sidecar.receive.front") as told:
            (said,) = answers(await rooms.exchange(request(), kind))
        assert (said.status, said.json["code"], said.headers["connection"]) == (500, "internal", "close")
        assert len(told) == 1
        assert told[0].startswith("POST /v1/track failed: TypeError")
        rooms.outbox.submit = submit
        assert (await rooms.post("/v1/track", track(), kind=kind)).body == OK
