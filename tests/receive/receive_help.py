"""What the receive tests share: the real routes, intake and outbox over memory streams, under virtual time."""

import base64
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import trio
import trio.testing

from sidecar.clock import VirtualClock
from sidecar.config import People, Secret, Source
from sidecar.config.schema import Mapping
from sidecar.http import Request, Response, Stopping
from sidecar.mapping import compile_mapping
from sidecar.outbox import InlineRunner, Outbox, Room, Store
from sidecar.receive import Front, Intake, Routes, Sources

MAX_EVENT_BYTES = 2_000
MAX_REQUEST_BYTES = 20_000


class Said(NamedTuple):
    """One HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Rooms:
    """Receive and outbox, joined as the daemon joins them."""

    def __init__(self, path: Path, *, sources: Sequence[tuple[str, str]] = (), max_bytes: int = 2**30) -> None:
        self.store = Store(path, durability="process")
        self.room = Room(path, max_bytes)
        self.outbox = Outbox(self.store, VirtualClock(), self.room, InlineRunner())
        self.refused: list[str] = []
        self.told: list[str] = []
        with self.store.transaction():
            known = Sources([Source(write_key=Secret(key), property_key=to) for key, to in sources], self.store.source)
        self.intake = Intake(
            known,
            compile_mapping(Mapping(), People()),
            max_event_bytes=MAX_EVENT_BYTES,
            count=self.refused.append,
        )
        self.intake.tell = lambda events: self.told.extend(event.message_id for event in events)
        self.stopping = Stopping()
        self.routes = Routes(self.intake, self.outbox, {"/cluster-info": cluster_info})
        self.front = Front(
            self.routes, self.intake, self.outbox, max_request_bytes=MAX_REQUEST_BYTES, stopping=self.stopping
        )
        self.nursery: trio.Nursery

    def connect(self, kind: str = "tcp") -> trio.StapledStream:
        """The client's end of a new connection, ``tcp`` or ``unix``."""
        ours, theirs = trio.testing.memory_stream_pair()
        self.nursery.start_soon(self._serve, getattr(self.front, kind), theirs)
        return ours

    async def _serve(self, connection: Any, stream: trio.abc.Stream) -> None:
        await connection(stream)
        await stream.aclose()

    async def exchange(self, data: bytes, kind: str = "tcp") -> bytes:
        """All that is said to ``data`` and the end of the stream."""
        stream = self.connect(kind)
        await stream.send_all(data)
        await stream.send_eof()
        return await read_all(stream)

    async def post(self, path: str, body: Any, *headers: str, kind: str = "tcp") -> Said:
        """Post a body (JSON unless it is bytes) on a connection of its own."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        head = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(data)}", *headers]
        (said,) = answers(await self.exchange("\r\n".join(head).encode() + b"\r\n\r\n" + data, kind))
        return said

    async def lines(self, *lines: Any) -> list[Any]:
        """The answers to some lines on the Unix socket."""
        data = b"".join((one if isinstance(one, bytes) else json.dumps(one).encode()) + b"\n" for one in lines)
        return [json.loads(line) for line in (await self.exchange(data, "unix")).splitlines()]

    def stored(self) -> list[dict[str, Any]]:
        """All events that are stored, as kept, in order."""
        rows = self.store.connection.execute("SELECT body FROM events ORDER BY id").fetchall()
        return [json.loads(body) for (body,) in rows]

    def count(self) -> int:
        return self.store.connection.execute("SELECT count(*) FROM events").fetchone()[0]

    def dead(self) -> list[tuple[str, str]]:
        """Reason and detail of every dead letter."""
        return self.store.connection.execute("SELECT reason, detail FROM dead ORDER BY id").fetchall()

    def products(self) -> list[str | None]:
        """The property key of each stored event's source."""
        known = self.store.source_products()
        return [known.get(one) for (one,) in self.store.connection.execute("SELECT source FROM events ORDER BY id")]


async def cluster_info() -> Response:
    return Response(200, b'{"nodeCount":1}')


@asynccontextmanager
async def receiving(path: Path, **options: Any) -> AsyncIterator[Rooms]:
    """The rooms, for as long as the block lasts; then all connections are cut and the writer stops."""
    rooms = Rooms(path, **options)
    try:
        async with trio.open_nursery() as writer:
            writer.start_soon(rooms.outbox.run)
            async with trio.open_nursery() as nursery:
                rooms.nursery = nursery
                yield rooms
                nursery.cancel_scope.cancel()
            rooms.outbox.stop()
    finally:
        rooms.store.close()


async def read_all(stream: trio.abc.ReceiveStream) -> bytes:
    got = b""
    try:
        while data := await stream.receive_some(65_536):
            got += data
    except trio.BrokenResourceError:
        pass
    return got


def answers(data: bytes) -> list[Said]:
    """The answers in ``data``, each with a Content-Length; ``100 Continue`` counts as one."""
    found = []
    while data:
        head, _, data = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        length = int(headers.get("content-length", 0))
        found.append(Said(int(first.split()[1]), headers, data[:length]))
        data = data[length:]
    return found


def basic(key: str) -> str:
    return "Authorization: Basic " + base64.b64encode(key.encode()).decode()


def track(number: int | str = 1, **more: Any) -> dict[str, Any]:
    return {"type": "track", "event": "Feature Used", "userId": "u1", "messageId": f"m{number}", **more}


def request_of(path: str, body: bytes) -> Request:
    return Request("POST", path, "", [], body, "1.1", True)
