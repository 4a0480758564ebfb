"""The physical limits of this machine for the figures of ``ingest`` and ``cost``.

Each limit is a function that runs in its own process, ``python -m benchmarks.limits NAME '[ARGUMENTS]'``: a server on the
same HTTP parser that stores nothing, the same rows without HTTP and JSON, one bare commit, the bare transport.
"""

import json
import sqlite3
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
from benchmarks.results import percentile
from sidecar.clock import SystemClock
from sidecar.config import load_text
from sidecar.http import Request, Response, serve, serve_connection
from sidecar.mapping import LiveSettings, compile_settings
from sidecar.outbox import Capacity, Outbox, ThreadRunner, open_outbox
from sidecar.receive import EventParser
from sidecar.receive.parse import BATCH

__all__ = ["bare_commits", "group_commit", "run_limit", "transport_alone"]

MAX_BYTES = 64 * 2**30
WARM_UP_S = 1.0
# Enough for building ten million rows on a slow disk.
TIMEOUT_S = 3600
ANSWER = b'{"success":true,"stored":false}'


def run_limit(name: str, *arguments: object, on: set[int] | None = None) -> Any:
    """Run a function of this file in its own process and return its result. Raises RuntimeError if it fails."""
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
    """Measure events per second through ``Outbox.accept`` with concurrent callers: the same tables, ids and commits."""
    return trio.run(_group_commit, Path(path), events, batch, callers, durability)


async def _group_commit(path: Path, events: int, batch: int, callers: int, durability: str) -> float:
    runner = ThreadRunner()
    store = await runner.run(lambda: open_outbox(path, durability="disk" if durability == "disk" else "process"))
    outbox = Outbox(store, SystemClock(), Capacity(path, MAX_BYTES), runner)
    batches = iter([new_events(start, start + batch) for start in range(0, events, batch)])
    took_s = 0.0

    async def caller() -> None:
        for events in batches:
            await outbox.accept(events)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(outbox.run)
        started_s = time.perf_counter()
        async with trio.open_nursery() as all_callers:
            for _ in range(callers):
                all_callers.start_soon(caller)
        took_s = time.perf_counter() - started_s
        outbox.stop()
    await runner.run(store.close)
    return events / took_s


def bare_commits(path: str, count: int) -> float:
    """Measure one fsynced commit of one row with plain ``sqlite3``: the median, in milliseconds."""
    store = open_outbox(Path(path), durability="disk")
    connection, took_ms = store.connection, []
    for event in new_events(0, count):
        started_s = time.perf_counter()
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(
            "INSERT INTO events (state, source, user, received_ms, body) VALUES (0, 0, ?, 0, ?)",
            (event.user, event.body),
        )
        connection.execute("COMMIT")
        took_ms.append(1000 * (time.perf_counter() - started_s))
    connection.close()
    return median(took_ms)


def paced_commits(path: str, per_second: float, seconds: float) -> dict[str, float]:
    """Measure a row of the same size in a synced transaction, again and again at a pace: what no design avoids."""
    connection = sqlite3.connect(path, isolation_level=None)
    for pragma in ("journal_mode = WAL", "synchronous = FULL"):
        connection.execute(f"PRAGMA {pragma}").fetchall()
    connection.execute("CREATE TABLE events (id INTEGER PRIMARY KEY, user TEXT, body BLOB)")
    events = new_events(0, max(2, int(per_second * seconds)))
    took_ms: list[float] = []
    cpu_s, started_s = time.process_time(), time.perf_counter()
    for number, event in enumerate(events):
        time.sleep(max(0.0, started_s + number / per_second - time.perf_counter()))
        began_s = time.perf_counter()
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO events (user, body) VALUES (?, ?)", (event.user, event.body))
        connection.execute("COMMIT")
        took_ms.append(1000 * (time.perf_counter() - began_s))
    cpu_ms = 1000 * (time.process_time() - cpu_s) / len(events)
    connection.close()
    return {"cpu_ms": cpu_ms, "p50_ms": percentile(took_ms, 0.5), "p99_ms": percentile(took_ms, 0.99)}


# The same parser without a store -----------------------------------------------------------------------------------


def serve_nothing(port: int, parse_events: bool) -> None:
    """Serve until killed: parse HTTP and answer; with ``parse_events`` also decode and validate the events."""
    parser = EventParser(LiveSettings(compile_settings(load_text(""), {}, {})))

    async def handler(request: Request) -> Response:
        if parse_events:
            parser.parse(request.body, "track" if request.path == "/v1/track" else BATCH, None, trusted=False)
        return Response(200, ANSWER)

    async def connection(stream: trio.abc.Stream) -> None:
        await serve_connection(stream, handler)

    async def main() -> None:
        listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")
        await serve(listeners, connection, max_connections=1000)

    trio.run(main)


# The transport alone ---------------------------------------------------------------------------


def transport_alone(url: str, per_second: float, seconds: float) -> dict[str, float]:
    """Measure CPU per request of ``httpx.AsyncHTTPTransport`` alone, paced, over lanes of one connection as in the daemon."""
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
        started_s = trio.current_time()
        for number in range(int(per_second * (WARM_UP_S + seconds))):
            await trio.sleep_until(started_s + number / per_second)
            if number == int(per_second * WARM_UP_S):
                cpu_s, sent = time.process_time(), 0
            nursery.start_soon(send)
    cpu_s = time.process_time() - cpu_s
    for transport in idle:
        await transport.aclose()
    return {"cpu_ms": 1000 * cpu_s / sent, "sent": sent}


# Preparing ---------------------------------------------------------------------------------------------------------


def filled(path: str, pending: int, delivered: int, dead: int) -> None:
    """Build an outbox in a separate process, so that the memory of the benchmark stays small."""
    fill(Path(path), pending=pending, delivered=delivered, dead=dead, report=lambda text: print(text, file=sys.stderr))


_NAMES: dict[str, Callable[..., Any]] = {
    "group_commit": group_commit,
    "bare_commits": bare_commits,
    "paced_commits": paced_commits,
    "transport_alone": transport_alone,
    "filled": filled,
    "serve_nothing": serve_nothing,
}

if __name__ == "__main__":
    print(json.dumps(_NAMES[sys.argv[1]](*json.loads(sys.argv[2]))))
