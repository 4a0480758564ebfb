"""A harness for receive: the real server, parser and outbox over memory streams, under virtual time."""

import base64
import json
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import trio
import trio.testing

from sidecar.clock import VirtualClock
from sidecar.config import Secret, SourceConfig, load_text
from sidecar.control.delivery_control import load_settings
from sidecar.http import Response, Shutdown
from sidecar.mapping import LiveSettings
from sidecar.observe import RecordingTelemetry
from sidecar.outbox import Capacity, InlineRunner, Outbox, Store
from sidecar.receive import BoundSockets, ClientMemory, EventParser, IngestServer, Routes
from sidecar.receive.server import serve_listeners

MAX_EVENT_BYTES = 2_000
MAX_REQUEST_BYTES = 20_000


class HttpAnswer(NamedTuple):
    """One HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class GatedRunner(InlineRunner):
    """Runs store calls at once; while the gate is shut they wait, as for a disk that hangs."""

    def __init__(self) -> None:
        self.gate = trio.Event()
        self.gate.set()

    def shut(self) -> None:
        self.gate = trio.Event()

    async def run(self, call: Any) -> Any:
        await self.gate.wait()
        return await super().run(call)


class ReceiveHarness:
    """Receive and outbox, connected as in the daemon."""

    def __init__(
        self,
        path: Path,
        *,
        sources: Sequence[tuple[str, str]] = (),
        foreign_hosts: bool = False,
        own_hosts: Collection[str] = (),
        max_memory: int = 64 * 2**20,
    ) -> None:
        self.store = Store(path, durability="process")
        self.capacity = Capacity(path, 2**30)
        self.telemetry = RecordingTelemetry()
        self.runner = GatedRunner()
        self.outbox = Outbox(self.store, VirtualClock(), self.capacity, self.runner, telemetry=self.telemetry)
        config = load_text(f"[outbox]\nmax_event_bytes = {MAX_EVENT_BYTES}\nmax_request_bytes = {MAX_REQUEST_BYTES}\n")
        known = [SourceConfig(write_key=Secret(key), property_key=to) for key, to in sources]
        self.settings = LiveSettings(load_settings(msgspec.structs.replace(config, source=known), self.store))
        self.parser = EventParser(self.settings)
        self.shutdown = Shutdown()
        pages = {"/cluster-info": cluster_info}
        self.memory = ClientMemory(max_memory)
        self.routes = Routes(
            self.parser,
            self.outbox,
            self.telemetry,
            pages,
            self.memory,
            own_hosts=own_hosts,
            foreign_hosts=foreign_hosts,
        )
        self.server = IngestServer(
            self.routes,
            self.parser,
            self.outbox,
            self.telemetry,
            self.memory,
            max_request_bytes=MAX_REQUEST_BYTES,
            shutdown=self.shutdown,
        )
        self.nursery: trio.Nursery

    @property
    def refused(self) -> list[str]:
        """The codes of all refusals that were reported, in order."""
        return self.telemetry.refused

    @property
    def accepted(self) -> list[str]:
        """The message ids of all events that were reported as accepted."""
        return [event.message_id for event in self.telemetry.accepted]

    async def serve(self, sockets: BoundSockets, *, descriptors: int = 1_000, task_status: Any = None) -> None:
        """Serve real sockets until the shutdown."""
        await serve_listeners(
            sockets,
            self.server.handle_tcp,
            self.server.handle_unix,
            descriptors=descriptors,
            shutdown=self.shutdown,
            task_status=task_status or trio.TASK_STATUS_IGNORED,
        )

    def connect(self, kind: str = "tcp") -> trio.StapledStream:
        """Open a connection, ``tcp`` or ``unix``; return the client's end."""
        client_end, server_end = trio.testing.memory_stream_pair()
        self.nursery.start_soon(self._serve, getattr(self.server, f"handle_{kind}"), server_end)
        return client_end

    def serve_stream(self, stream: trio.abc.Stream) -> None:
        """Serve the server's end of a Unix socket in the background."""
        self.nursery.start_soon(self._serve, self.server.handle_unix, stream)

    async def _serve(self, handle: Any, stream: trio.abc.Stream) -> None:
        await handle(stream)
        await stream.aclose()

    async def exchange(self, data: bytes, kind: str = "tcp") -> bytes:
        """Send ``data`` and the end of the stream; return all that the server sends."""
        stream = self.connect(kind)
        await stream.send_all(data)
        await stream.send_eof()
        return await read_all(stream)

    async def post(self, path: str, body: Any, *headers: str, kind: str = "tcp") -> HttpAnswer:
        """Post a body (JSON unless it is bytes) on a new connection; return the answer."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        head = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(data)}", *headers]
        (answer,) = answers(await self.exchange("\r\n".join(head).encode() + b"\r\n\r\n" + data, kind))
        return answer

    async def lines(self, *lines: Any) -> list[Any]:
        """Send lines to the Unix socket; return their parsed answers."""
        data = b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)
        return [json.loads(line) for line in (await self.exchange(data, "unix")).splitlines()]

    def stored(self) -> list[dict[str, Any]]:
        """The bodies of all stored events, in order."""
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
        return [
            known.get(source) for (source,) in self.store.connection.execute("SELECT source FROM events ORDER BY id")
        ]


async def cluster_info() -> Response:
    return Response(200, b'{"nodeCount":1}')


@asynccontextmanager
async def receiving(path: Path, **options: Any) -> AsyncIterator[ReceiveHarness]:
    """Run the harness for the time of the block; then cut all connections and stop the writer."""
    harness = ReceiveHarness(path, **options)
    try:
        async with trio.open_nursery() as writer:
            writer.start_soon(harness.outbox.run)
            async with trio.open_nursery() as nursery:
                harness.nursery = nursery
                yield harness
                nursery.cancel_scope.cancel()
            harness.outbox.stop()
    finally:
        harness.store.close()


async def read_all(stream: trio.abc.ReceiveStream) -> bytes:
    got = b""
    try:
        while data := await stream.receive_some(65_536):
            got += data
    except trio.BrokenResourceError:
        pass
    return got


def answers(data: bytes) -> list[HttpAnswer]:
    """Parse the answers in ``data``, each with a Content-Length; ``100 Continue`` counts as one."""
    parsed = []
    while data:
        head, _, data = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        length = int(headers.get("content-length", 0))
        parsed.append(HttpAnswer(int(first.split()[1]), headers, data[:length]))
        data = data[length:]
    return parsed


def basic(key: str) -> str:
    return "Authorization: Basic " + base64.b64encode(key.encode()).decode()


def track(number: int | str = 1, **more: Any) -> dict[str, Any]:
    return {"type": "track", "event": "Feature Used", "userId": "u1", "messageId": f"m{number}", **more}
