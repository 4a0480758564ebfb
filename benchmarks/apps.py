"""The apps that ``alternatives`` compares, each a separate process: ``python -m benchmarks.apps KIND '{…}'``.

All do the same work: one call per event at a steady rate, recorded in a file after the call has returned. Behind the call
is the SDK's queue in memory, a table with a sending thread, ``persist-queue`` with the same thread, or the sidecar's
socket. The two queues on disk are a simple implementation: in order, one request at a time, paced, retried after a second,
deleted when PX has answered.
"""

import json
import os
import sqlite3
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec
import trio

from benchmarks.traffic import USERS
from sidecar.http import Request, Response, serve, serve_connection

__all__ = ["KINDS", "Work", "left_on_disk"]

PACE_S = 1 / 190
RETRY_S = 1.0


class Work(msgspec.Struct, kw_only=True):
    """The work of an app. With ``events`` 0 it only sends the events that an earlier run left on disk."""

    url: str
    unix: str
    folder: str
    per_second: float
    events: int
    prefix: str
    timeout_s: float

    @property
    def calls_path(self) -> Path:
        """The file that records each call."""
        return Path(self.folder) / "called.ndjson"


def properties() -> dict[str, Any]:
    return {"feature_name": "Bulk Export", "plan": "enterprise", "row_count": 1500, "beta": False}


def px_body(user: str, message_id: str) -> bytes:
    """Return the body for PX, as the sidecar's mapping makes it."""
    event = {
        "identifyId": user, "propertyKey": "AP-XXXXXXXXXX-2", "userType": "USER", "eventName": "Feature Used",
        "eventId": message_id, "date": time.time_ns() // 1_000_000, "attributes": properties(),
    }  # fmt: skip
    return json.dumps(event).encode()


def call_all(work: Work, call: Callable[[str, str], None]) -> None:
    """Make one call per event, at the rate."""
    started_s = time.monotonic()
    with work.calls_path.open("ab", buffering=0) as calls:
        for number in range(work.events):
            time.sleep(max(0.0, started_s + number / work.per_second - time.monotonic()))
            message_id = f"{work.prefix}{number:08d}"
            call_s = time.monotonic()
            call(f"user-{number % USERS:04d}", message_id)
            calls.write(json.dumps([message_id, 1000 * (time.monotonic() - call_s)]).encode() + b"\n")


class _Sender(threading.Thread):
    """Sends the items of ``next_item`` in order, and calls ``sent`` after PX has answered."""

    def __init__(
        self, url: str, next_item: Callable[[], Any], body_of: Callable[[Any], bytes], sent: Callable[[Any], None]
    ):
        super().__init__(daemon=True)
        self._client = httpx.Client(headers={"X-APTRINSIC-API-KEY": "sandbox-key"}, timeout=30)
        self._url, self._next, self._body_of, self._sent = url + "/v1/events/custom", next_item, body_of, sent

    def run(self) -> None:
        headers = {"Content-Type": "application/json"}
        while True:
            item = self._next()
            if item is None:
                time.sleep(0.02)
                continue
            while True:
                try:
                    if self._client.post(self._url, content=self._body_of(item), headers=headers).is_success:
                        break
                except httpx.HTTPError:
                    pass
                time.sleep(RETRY_S)
            self._sent(item)
            time.sleep(PACE_S)


def sdk(work: Work) -> None:
    """Use the Segment SDK for Python as in its quick start, with an orderly shutdown."""
    from segment.analytics.client import Client

    client = Client("any", host=work.url)

    def call(user: str, message_id: str) -> None:
        client.track(user, "Feature Used", properties(), message_id=message_id)

    call_all(work, call)
    call_s = time.monotonic()
    client.shutdown()
    (Path(work.folder) / "leaving").write_text(f"{time.monotonic() - call_s:.3f}")


def naive(work: Work) -> None:
    """Use a table with one commit per event, and a sending thread."""
    path = Path(work.folder) / "naive.db"
    writer, reader = (sqlite3.connect(path, isolation_level=None, check_same_thread=False) for _ in range(2))
    writer.execute("PRAGMA journal_mode = WAL")
    writer.execute("PRAGMA synchronous = FULL")
    writer.execute("CREATE TABLE IF NOT EXISTS outbox (id INTEGER PRIMARY KEY, body BLOB)")

    def sent(row: tuple[int, bytes]) -> None:
        reader.execute("DELETE FROM outbox WHERE id = ?", (row[0],))

    def next_item() -> tuple[int, bytes] | None:
        row: tuple[int, bytes] | None = reader.execute("SELECT id, body FROM outbox ORDER BY id LIMIT 1").fetchone()
        return row

    _Sender(work.url, next_item, lambda row: row[1], sent).start()
    call_all(
        work, lambda user, id_: writer.execute("INSERT INTO outbox (body) VALUES (?)", (px_body(user, id_),)) and None
    )
    _wait(work, lambda: not left_on_disk("naive", work.folder))


def persist_queue(work: Work) -> None:
    """Use the SQLite queue with acknowledgments of ``persist-queue``."""
    queue = _ack_queue(work.folder)

    def next_item() -> Any:
        import persistqueue

        try:
            return queue.get(block=False)
        except persistqueue.Empty:
            return None

    _Sender(work.url, next_item, lambda body: body, queue.ack).start()
    call_all(work, lambda user, id_: queue.put(px_body(user, id_)) and None)
    _wait(work, lambda: queue.size == 0 and queue.unack_count() == 0)


def _ack_queue(folder: str) -> Any:
    import persistqueue

    return persistqueue.SQLiteAckQueue(str(Path(folder) / "persist-queue"), multithreading=True, auto_commit=True)


def sidecar(work: Work) -> None:
    """Use the sidecar's client over the Unix socket."""
    from sidecar.client import Client

    with Client(work.unix) as client:
        call_all(work, lambda user, id_: client.track(user, "Feature Used", properties(), message_id=id_) and None)


KINDS: dict[str, Callable[[Work], None]] = {
    "sdk": sdk,
    "naive": naive,
    "persist_queue": persist_queue,
    "sidecar": sidecar,
}


def _wait(work: Work, condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + work.timeout_s
    while time.monotonic() < deadline_s and not condition():
        time.sleep(0.2)
    os._exit(0)  # the sending thread may be busy: unfinished events are on disk


def left_on_disk(kind: str, folder: str) -> set[str]:
    """Return the message ids still in an app's queue."""
    if kind == "naive":
        with sqlite3.connect(Path(folder) / "naive.db") as connection:
            bodies = [row[0] for row in connection.execute("SELECT body FROM outbox")]
        connection.close()
    elif kind == "persist_queue":
        bodies = [row["data"] for row in _ack_queue(folder).queue() if int(row["status"]) < 5]
    else:
        bodies = []
    return {json.loads(body)["eventId"] for body in bodies}


# A stand-in for Segment ---------------------------------------------------------------------------------------------


def segment(port: int, path: str) -> None:
    """Accept batches as Segment does, and append the message ids to a file that survives restarts."""

    async def handler(request: Request) -> Response:
        with Path(path).open("ab") as log:  # noqa: ASYNC230 - the kernel takes it at once
            for event in msgspec.json.decode(request.body)["batch"] if request.body else ():
                log.write(event["messageId"].encode() + b"\n")
        return Response(200, b'{"success":true}')

    async def main() -> None:
        listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")
        await serve(listeners, lambda stream: serve_connection(stream, handler), max_connections=100)

    trio.run(main)


if __name__ == "__main__":
    if sys.argv[1] == "segment":
        segment(int(sys.argv[2]), sys.argv[3])
    else:
        KINDS[sys.argv[1]](msgspec.json.decode(sys.argv[2], type=Work))
