"""What is physically possible on this machine: each figure of ``ingest`` and ``cost`` has its limit here.

``python -m benchmarks.limits serve PORT [judge]`` is a process of its own: a server on the same HTTP parser that stores
nothing. The others are called in a process of their own too, ``python -m benchmarks.limits group_commit …``.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import trio

from benchmarks.fill import fill, new_events
from sidecar.clock import SystemClock
from sidecar.config import Mapping, People
from sidecar.http import Request, Response, serve, serve_connection
from sidecar.mapping import compile_mapping
from sidecar.outbox import Outbox, Room, ThreadRunner, open_outbox
from sidecar.receive import Intake, Sources
from sidecar.receive.intake import BATCH

__all__ = ["bare_commits", "group_commit", "run_limit", "transport_alone"]

ROOM_BYTES = 64 * 2**30
WARM_UP_S = 1.0
# Building ten million rows on a slow disk.
TIMEOUT_S = 3600
ANSWER = b'{"success":true,"stored":false}'


def run_limit(name: str, *arguments: object, on: set[int] | None = None) -> Any:
    """Run one of this file's functions in a process of its own, and return its result."""
    command = [sys.executable, "-m", "benchmarks.limits", name, json.dumps(arguments)]
    if on is not None:
        command = ["taskset", "-c", ",".join(map(str, sorted(on))), *command]
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(command, capture_output=True, timeout=TIMEOUT_S, cwd=root, check=False)
    if done.returncode:
        raise RuntimeError(f"the limit {name} could not be measured: {done.stderr.decode()[-800:]}")
    return json.loads(done.stdout)


# The same rows without HTTP and JSON -----------------------------------------------------------------------------


def group_commit(path: str, events: int, batch: int, callers: int, durability: str) -> float:
    """Events per second through ``Outbox.accept``, by so many callers at once: the same tables, ids and commits."""
    return trio.run(_group_commit, Path(path), events, batch, callers, durability)


async def _group_commit(path: Path, events: int, batch: int, callers: int, durability: str) -> float:
    runner = ThreadRunner()
    store = await runner.run(lambda: open_outbox(path, durability="disk" if durability == "disk" else "process"))
    outbox = Outbox(store, SystemClock(), Room(path, ROOM_BYTES), runner)
    batches = iter([new_events(start, start + batch) for start in range(0, events, batch)])
    took_s = 0.0

    async def caller() -> None:
        for one in batches:
            await outbox.accept(one)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(outbox.run)
        began_s = time.perf_counter()
        async with trio.open_nursery() as all_callers:
            for _ in range(callers):
                all_callers.start_soon(caller)
        took_s = time.perf_counter() - began_s
        outbox.stop()
    await runner.run(store.close)
    return events / took_s


def bare_commits(path: str, count: int) -> float:
    """Milliseconds of one fsynced commit of one row into the same table by plain ``sqlite3``: the median."""
    store = open_outbox(Path(path), durability="disk")
    connection, took_ms = store.connection, []
    for event in new_events(0, count):
        began_s = time.perf_counter()
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(
            "INSERT INTO events (state, source, user, received_ms, body) VALUES (0, 0, ?, 0, ?)",
            (event.user, event.body),
        )
        connection.execute("COMMIT")
        took_ms.append(1000 * (time.perf_counter() - began_s))
    connection.close()
    return median(took_ms)


# The same parser without a store -----------------------------------------------------------------------------------


def serve_nothing(port: int, judge: bool) -> None:
    """Serve until killed: HTTP is parsed and answered; with ``judge`` the event is decoded and judged too."""
    mapper = compile_mapping(Mapping(), People())
    intake = Intake(Sources([], lambda _digest, _key: 0), mapper, max_event_bytes=32 * 1024)

    async def handler(request: Request) -> Response:
        if judge:
            intake.open(request.body, "track" if request.path == "/v1/track" else BATCH, None, trusted=False)
        return Response(200, ANSWER)

    async def connection(stream: trio.abc.Stream) -> None:
        await serve_connection(stream, handler)

    async def main() -> None:
        listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")
        await serve(listeners, connection, max_connections=1000)

    trio.run(main)


# The transport without anything around it ---------------------------------------------------------------------------


def transport_alone(url: str, per_second: float, seconds: float) -> dict[str, float]:
    """CPU per request of ``httpx.AsyncHTTPTransport`` alone, paced, over lanes of one connection, as the daemon's are."""
    return trio.run(_transport_alone, url, per_second, seconds)


async def _transport_alone(url: str, per_second: float, seconds: float) -> dict[str, float]:
    idle: list[httpx.AsyncHTTPTransport] = []
    body = json.dumps(
        {
            "identifyId": "user-0001", "propertyKey": "AP-XXXXXXXXXX-2", "userType": "USER", "eventName": "Feature Used",
            "date": 1772360430123, "accountId": "acme-corp", "eventId": "ID" * 12,
            "attributes": {"featureName": "Bulk Export", "plan": "enterprise", "rowCount": 1500, "beta": False},
        }
    ).encode()  # fmt: skip
    headers = [
        (b"Host", url.partition("//")[2].encode()), (b"X-APTRINSIC-API-KEY", b"sandbox-key"),
        (b"Content-Type", b"application/json"), (b"Accept", b"application/json"),
        (b"Content-Length", b"%d" % len(body)),
    ]  # fmt: skip
    target = httpx.URL(url + "/v1/events/custom")
    limits = httpx.Limits(max_connections=1, max_keepalive_connections=1)
    cpu_s = sent = 0.0

    async def send() -> None:
        nonlocal sent
        transport = idle.pop() if idle else httpx.AsyncHTTPTransport(verify=False, limits=limits)
        request = httpx.Request("POST", target, headers=headers, content=body)
        response = await transport.handle_async_request(request)
        assert isinstance(response.stream, httpx.AsyncByteStream)
        async for _ in response.stream:
            pass
        await response.aclose()
        assert response.status_code == 201, response.status_code
        sent += 1
        idle.append(transport)

    async with trio.open_nursery() as nursery:
        began_s = trio.current_time()
        for number in range(int(per_second * (WARM_UP_S + seconds))):
            await trio.sleep_until(began_s + number / per_second)
            if number == int(per_second * WARM_UP_S):
                cpu_s, sent = time.process_time(), 0
            nursery.start_soon(send)
    cpu_s = time.process_time() - cpu_s
    for transport in idle:
        await transport.aclose()
    return {"cpu_ms": 1000 * cpu_s / sent, "sent": sent}


# Preparing ---------------------------------------------------------------------------------------------------------


def filled(path: str, pending: int, delivered: int, dead: int) -> None:
    """Build an outbox, in a process of its own so that this one stays small."""
    fill(Path(path), pending=pending, delivered=delivered, dead=dead, say=lambda text: print(text, file=sys.stderr))


_NAMES: dict[str, Callable[..., Any]] = {
    "group_commit": group_commit,
    "bare_commits": bare_commits,
    "transport_alone": transport_alone,
    "filled": filled,
    "serve_nothing": serve_nothing,
}

if __name__ == "__main__":
    print(json.dumps(_NAMES[sys.argv[1]](*json.loads(sys.argv[2]))))
