"""A crowd of idle, slow, flooding and greedy clients: a well-behaved one hardly notices, and memory stays within bounds."""

import json
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

import pytest
from stage import Stage

from sidecar.receive.front import LARGE_BODIES

CROWD = Path(__file__).with_name("crowd.py")
IDLE = 2_000
SLOW = 200
ROUNDS = 3
REQUESTS = 150
SPARE = 500
ALLOWED = 2.0
ALLOWED_CPU_SHARE = 0.5
GREEDY = 100
GREEDY_BYTES = 4_000_000
BOUND_BYTES = 1.3 * LARGE_BODIES * GREEDY_BYTES  # a buffer that grows takes an eighth more than it holds


@pytest.fixture(autouse=True)
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the daemons here, time and memory are measured: no coverage in them."""
    monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)


def answer_s(connection: socket.socket, number: int) -> float:
    body = json.dumps({"event": "E", "userId": "u", "messageId": f"m{number}"}).encode()
    request = b"POST /v1/track HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    began_s = time.perf_counter()
    connection.sendall(request)
    answer = connection.recv(4096)
    took_s = time.perf_counter() - began_s
    assert answer.startswith(b"HTTP/1.1 200 "), answer
    return took_s


def cpu_s(pid: int) -> float:
    """The processor time that all threads of a process have used."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


@contextmanager
def crowd(stage: Stage) -> Iterator[None]:
    """The crowd, for as long as the block lasts."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    idle = min(IDLE, hard - SLOW - SPARE)
    assert idle > 0, "so few open files are allowed that there can be no crowd"
    command = [sys.executable, str(CROWD), *stage.http.split(":"), str(idle), str(SLOW)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    stage.processes.append(process)
    assert process.stdout.readline() == b"ready %d\n" % idle
    yield
    stage.kill(process)


@contextmanager
def connected(stage: Stage) -> Iterator[socket.socket]:
    host, port = stage.http.split(":")
    with socket.create_connection((host, int(port)), 30) as connection:
        yield connection


def test_a_crowd_keeps_nobody_out_and_costs_little(stage: Stage):
    """What it costs is counted in processor time, which does not depend on what else this machine does."""
    stage.write_config()
    pid = stage.start_daemon().pid
    with connected(stage) as known, crowd(stage):
        began_s, began_cpu_s = time.perf_counter(), cpu_s(pid)
        time.sleep(2)
        share = (cpu_s(pid) - began_cpu_s) / (time.perf_counter() - began_s)
        with connected(stage) as late:
            for number in range(20):
                answer_s(known, 2 * number)
                answer_s(late, 2 * number + 1)
    assert share <= ALLOWED_CPU_SHARE


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


def push(clients: list[socket.socket], each_bytes: int) -> None:
    """Send so much on each of them, as far as somebody takes it: until for half a second nobody has."""
    left = dict.fromkeys(clients, each_bytes)
    taken_s = time.monotonic()
    while time.monotonic() < taken_s + 0.5:
        for client in [client for client, bytes_left in left.items() if bytes_left]:
            try:
                left[client] -= client.send(bytes(min(left[client], 65_536)))
                taken_s = time.monotonic()
            except BlockingIOError:
                continue  # it waits for its place
        time.sleep(0.005)


def test_what_greedy_clients_never_finish_is_held_within_bounds_and_keeps_no_small_event_out(stage: Stage):
    stage.write_config()
    pid = stage.start_daemon().pid
    with connected(stage) as small, ExitStack() as stack:
        answer_s(small, 0)
        quiet_bytes = resident_bytes(pid)
        greedy = [stack.enter_context(connected(stage)) for _ in range(GREEDY)]
        for client in greedy:
            client.sendall(b"POST /v1/batch HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % GREEDY_BYTES)
            client.setblocking(False)
        push(greedy, GREEDY_BYTES - 1)
        answer_s(small, 1)
        held_bytes = resident_bytes(pid) - quiet_bytes
    assert LARGE_BODIES * GREEDY_BYTES / 2 < held_bytes < BOUND_BYTES < GREEDY * GREEDY_BYTES / 2


@pytest.mark.slow
def test_a_well_behaved_client_is_answered_within_twice_its_quiet_time(stage: Stage, capsys):
    """On a quiet machine. What else it does may spoil some rounds; what we do wrong spoils all."""
    stage.write_config()
    stage.start_daemon()
    ratios = []
    with connected(stage) as client:
        for turn in range(ROUNDS):
            first = turn * 2 * REQUESTS
            quiet_s = median(answer_s(client, first + number) for number in range(REQUESTS))
            with crowd(stage):
                crowded_s = median(answer_s(client, first + REQUESTS + number) for number in range(REQUESTS))
            ratios.append(crowded_s / quiet_s)
    with capsys.disabled():
        print(f"\n{quiet_s * 1e3:.2f} ms in quiet, in the crowd " + ", ".join(f"{one:.2f}" for one in ratios))
    assert min(ratios) <= ALLOWED
