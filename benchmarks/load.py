"""The load generator, a process of its own: ``python -m benchmarks.load '{"address": …}'`` prints what it measured.

Raw sockets, requests that are built before the clock starts, and one look at the kernel for all connections at once:
about 10 µs of processor time a request, so that one core of it saturates one core of any server in Python.

Two ways: as fast as answers come (each connection keeps ``ahead`` requests out and sends the next upon an answer), or
at a ``rate`` per second on one connection, where each answer is noted with the time it came.
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
from benchmarks.traffic import event_bytes, message_id

__all__ = ["Load", "Measured", "paced", "run_load"]


class Load(msgspec.Struct, kw_only=True):
    """What to send where."""

    address: str
    """A port on 127.0.0.1, or the path of a Unix socket."""
    form: str = "http"
    """http | ndjson"""
    batch: int = 1
    """Events of a request; 1 sends single calls (HTTP) or an object a line (NDJSON)."""
    connections: int = 1
    ahead: int = 1
    events: int = 0
    rate: float = 0.0
    """Events per second on one connection; 0: as fast as answers come."""
    users: int = 1000


class Measured(msgspec.Struct, kw_only=True):
    """What came of it."""

    events: int
    seconds: float
    cpu_s: float
    """Processor time of the generator while it sent: near ``seconds`` means that it was the bottleneck."""
    p50_ms: float
    p99_ms: float
    max_ms: float
    spread_ms: list[float]
    answered: dict[str, float] = {}
    """With a rate: message id to CLOCK_BOOTTIME of its answer."""

    @property
    def per_second(self) -> float:
        return self.events / self.seconds


def run_load(load: Load, *, on: set[int] | None = None, timeout_s: float = 600) -> Measured:
    """Run a generator to its end, on the cores ``on``. Raises RuntimeError if a request was not answered with success."""
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
    """The bytes of one request that begins with event ``number``."""
    if load.batch == 1:
        body = event_bytes(number, load.users)
    else:
        body = b"[%b]" % b",".join([event_bytes(number + at, load.users) for at in range(load.batch)])
        if load.form == "http":
            body = b'{"batch":%b}' % body
    if load.form == "ndjson":
        return body + b"\n"
    path = b"/v1/track" if load.batch == 1 else b"/v1/batch"
    head = b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % (path, len(body)) + body


def connect(address: str) -> socket.socket:
    if address.isdigit():
        connection = socket.create_connection(("127.0.0.1", int(address)))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    else:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(address)
    return connection


class _Connection:
    """One socket with the requests that are out on it."""

    def __init__(self, load: Load) -> None:
        self.socket = connect(load.address)
        self.out: deque[float] = deque()
        self._ndjson = load.form == "ndjson"
        self._rest = b""

    def send(self, data: bytes) -> None:
        self.out.append(time.perf_counter())
        self.socket.sendall(data)

    def answers(self) -> int:
        """Read what is there; how many whole answers that completes. Raises RuntimeError for one that is no success."""
        data = self._rest + self.socket.recv(65536)
        if self._ndjson:
            whole, newline, self._rest = data.rpartition(b"\n")
            answers = (whole + newline).count(b"\n")
            good = whole.count(b'"success":true')
        else:
            # One answer at a time is out on a connection, and it is a JSON object without another inside.
            whole, self._rest = (data, b"") if data.endswith(b"}") else (b"", data)
            answers = 1 if whole else 0
            good = whole.count(b" 200 OK\r\n") if b'"success":true' in whole or b'"stored":false' in whole else 0
        if not data or good != answers or b'"refused"' in whole or b'"repeated"' in whole:
            raise RuntimeError(f"not an answer of success: {data[:300]!r}")
        return answers


def flat_out(load: Load) -> Measured:
    """As fast as answers come."""
    requests = deque([request(load, number) for number in range(0, load.events, load.batch)])
    count = len(requests)
    connections = [_Connection(load) for _ in range(load.connections)]
    by_number = {one.socket.fileno(): one for one in connections}
    poll = select.epoll()
    for number in by_number:
        poll.register(number, select.EPOLLIN)
    took_s: list[float] = []
    cpu_s, began_s = time.process_time(), time.perf_counter()
    for one in connections:
        for _ in range(load.ahead):
            if requests:
                one.send(requests.popleft())
    while len(took_s) < count:
        for number, _event in poll.poll(10):
            one = by_number[number]
            for _ in range(one.answers()):
                took_s.append(time.perf_counter() - one.out.popleft())
                if requests:
                    one.send(requests.popleft())
    seconds = time.perf_counter() - began_s
    return measured(count * load.batch, seconds, time.process_time() - cpu_s, took_s)


def paced(load: Load) -> Measured:
    """At a rate, on one connection, each answer waited for."""
    one = _Connection(load)
    answered: dict[str, float] = {}
    took_s: list[float] = []
    cpu_s, began_s = time.process_time(), time.perf_counter()
    for number in range(load.events):
        time.sleep(max(0.0, began_s + number / load.rate - time.perf_counter()))
        one.send(request(load, number))
        while not one.answers():
            pass
        took_s.append(time.perf_counter() - one.out.popleft())
        answered[message_id(number)] = time.clock_gettime(time.CLOCK_BOOTTIME)
    found = measured(load.events, time.perf_counter() - began_s, time.process_time() - cpu_s, took_s)
    found.answered = answered
    return found


def measured(events: int, seconds: float, cpu_s: float, took_s: list[float]) -> Measured:
    took_ms = [1000 * one for one in took_s]
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
    given: dict[str, Any] = json.loads(arguments[0])
    load = msgspec.convert(given, Load)
    found = paced(load) if load.rate else flat_out(load)
    sys.stdout.buffer.write(msgspec.json.encode(found))


if __name__ == "__main__":
    main(sys.argv[1:])
