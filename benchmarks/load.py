"""The load generator, a separate process: ``python -m benchmarks.load '{"address": …}'`` prints what it measured.

It uses raw sockets, builds requests before the clock starts, and polls all connections with one system call: about 10 µs of
processor time per request, so that one core of load saturates one core of any server in Python.

Two modes: as fast as answers come (each connection keeps ``ahead`` requests in flight and sends the next one after an
answer), or at a ``rate`` per second on one connection, recording the time of each answer.
"""

import json
import select
import socket
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.results import percentile, spread
from benchmarks.traffic import event_bytes, message_id, otlp_bytes

__all__ = ["Load", "Measured", "connect", "request", "run_load", "run_paced"]

_HEAD = b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
_OTLP = b'{"resourceLogs":[{"scopeLogs":[{"scope":{"name":"analytics-python","version":"2.3.4"},"logRecords":[%b]}]}]}'
# What the answer of px-sidecar, of the server that stores nothing, and of an OTLP receiver that took all records contains.
_SUCCESS = (b'"success":true', b'"stored":false', b'{"partialSuccess":{}}')


class Load(msgspec.Struct, kw_only=True):
    """What to send, and where."""

    address: str
    """A port on 127.0.0.1, or the path of a Unix socket."""
    form: str = "http"
    """http | ndjson | otlp (logs as JSON over HTTP)"""
    batch: int = 1
    """Events per request; 1 sends single calls (HTTP) or one object per line (NDJSON)."""
    connections: int = 1
    ahead: int = 1
    events: int = 0
    rate: float = 0.0
    """Events per second on one connection; 0: as fast as answers come."""
    users: int = 1000


class Measured(msgspec.Struct, kw_only=True):
    """The measurement."""

    events: int
    seconds: float
    cpu_s: float
    """Processor time of the generator: close to ``seconds`` it was the bottleneck."""
    p50_ms: float
    p99_ms: float
    max_ms: float
    spread_ms: list[float]
    answered: dict[str, float] = {}
    """With a rate: message id → CLOCK_BOOTTIME of its answer."""

    @property
    def per_second(self) -> float:
        return self.events / self.seconds


def run_load(load: Load, *, on: set[int] | None = None, timeout_s: float = 600) -> Measured:
    """Run a generator on the cores ``on`` until it ends. Raises RuntimeError if a request does not succeed."""
    command = [sys.executable, "-m", "benchmarks.load", msgspec.json.encode(load).decode()]
    if on is not None:
        command = ["taskset", "-c", ",".join(map(str, sorted(on))), *command]
    done = subprocess.run(
        command, capture_output=True, timeout=timeout_s, cwd=Path(__file__).resolve().parent.parent, check=False
    )
    if done.returncode:
        raise RuntimeError(f"the load generator failed: {done.stderr.decode()[-800:]}")
    return msgspec.json.decode(done.stdout, type=Measured)


def request(load: Load, number: int) -> bytes:
    """Return the bytes of one request, starting with event ``number``."""
    if load.form == "otlp":
        body = _OTLP % b",".join([otlp_bytes(number + at, load.users) for at in range(load.batch)])
        return _HEAD % (b"/v1/logs", len(body)) + body
    if load.batch == 1:
        body = event_bytes(number, load.users)
    else:
        body = b"[%b]" % b",".join([event_bytes(number + at, load.users) for at in range(load.batch)])
        if load.form == "http":
            body = b'{"batch":%b}' % body
    if load.form == "ndjson":
        return body + b"\n"
    path = b"/v1/track" if load.batch == 1 else b"/v1/batch"
    return _HEAD % (path, len(body)) + body


def connect(address: str) -> socket.socket:
    if address.isdigit():
        connection = socket.create_connection(("127.0.0.1", int(address)))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    else:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(address)
    return connection


class _Connection:
    """One socket, and the send times of its unanswered requests."""

    def __init__(self, load: Load) -> None:
        self.socket = connect(load.address)
        self.sent_s: deque[float] = deque()
        self._ndjson = load.form == "ndjson"
        self._rest = b""

    def send(self, data: bytes) -> None:
        self.sent_s.append(time.perf_counter())
        self.socket.sendall(data)

    def answers(self) -> int:
        """Read available data; return the number of answers it completes. Raises RuntimeError for an answer without success."""
        data = self._rest + self.socket.recv(65536)
        if self._ndjson:
            complete, newline, self._rest = data.rpartition(b"\n")
            answers = (complete + newline).count(b"\n")
            good = complete.count(b'"success":true')
        else:
            # One answer at a time is pending per connection, and it is a JSON object without nested objects.
            complete, self._rest = (data, b"") if data.endswith(b"}") else (b"", data)
            answers = 1 if complete else 0
            good = complete.count(b" 200 OK\r\n") if any(text in complete for text in _SUCCESS) else 0
        if not data or good != answers or b'"refused"' in complete or b'"repeated"' in complete:
            raise RuntimeError(f"not a successful answer: {data[:300]!r}")
        return answers


def run_unpaced(load: Load) -> Measured:
    """Send as fast as answers come."""
    requests = deque([request(load, number) for number in range(0, load.events, load.batch)])
    count = len(requests)
    connections = [_Connection(load) for _ in range(load.connections)]
    by_number = {connection.socket.fileno(): connection for connection in connections}
    poll = select.epoll()
    for number in by_number:
        poll.register(number, select.EPOLLIN)
    took_s: list[float] = []
    cpu_s, started_s = time.process_time(), time.perf_counter()
    for connection in connections:
        for _ in range(load.ahead):
            if requests:
                connection.send(requests.popleft())
    while len(took_s) < count:
        for number, _event in poll.poll(10):
            connection = by_number[number]
            for _ in range(connection.answers()):
                took_s.append(time.perf_counter() - connection.sent_s.popleft())
                if requests:
                    connection.send(requests.popleft())
    seconds = time.perf_counter() - started_s
    return summarize(count * load.batch, seconds, time.process_time() - cpu_s, took_s)


def run_paced(load: Load) -> Measured:
    """Send at a rate on one connection, waiting for each answer."""
    connection = _Connection(load)
    answered: dict[str, float] = {}
    took_s: list[float] = []
    cpu_s, started_s = time.process_time(), time.perf_counter()
    for number in range(load.events):
        time.sleep(max(0.0, started_s + number / load.rate - time.perf_counter()))
        connection.send(request(load, number))
        while not connection.answers():
            pass
        took_s.append(time.perf_counter() - connection.sent_s.popleft())
        answered[message_id(number)] = time.clock_gettime(time.CLOCK_BOOTTIME)
    result = summarize(load.events, time.perf_counter() - started_s, time.process_time() - cpu_s, took_s)
    result.answered = answered
    return result


def summarize(events: int, seconds: float, cpu_s: float, took_s: list[float]) -> Measured:
    took_ms = [1000 * answer_s for answer_s in took_s]
    return Measured(
        events=events,
        seconds=seconds,
        cpu_s=cpu_s,
        p50_ms=percentile(took_ms, 0.5),
        p99_ms=percentile(took_ms, 0.99),
        max_ms=max(took_ms),
        spread_ms=spread(took_ms),
    )


def main(arguments: list[str]) -> None:
    options: dict[str, Any] = json.loads(arguments[0])
    load = msgspec.convert(options, Load)
    result = run_paced(load) if load.rate else run_unpaced(load)
    sys.stdout.buffer.write(msgspec.json.encode(result))


if __name__ == "__main__":
    main(sys.argv[1:])
