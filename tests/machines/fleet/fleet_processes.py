"""Real daemons under one ceiling: processes, engines, and a proxy that delays, cuts and redirects connections."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fleet_engine import EngineClient, EngineServer

from sidecar.sandbox.server import free_ports

PX_SIDECAR = [sys.executable, "-m", "sidecar"]
BATCH = 500
CONFIG = """
[px]
api_key = "sandbox-key"
property_key = "AP-SANDBOX-2"
base_url = "http://127.0.0.1:{px}"
[listen]
http = "127.0.0.1:{port}"
unix = ""
control = "{folder}/control.sock"
[outbox]
path = "{folder}/outbox.db"
[fleet]
name = "test"
{fleet}
"""


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=20) as answer:
        return json.load(answer)


def until(condition: Callable[[], bool], within_s: float, what: str) -> float:
    """Wait until ``condition`` holds, and return how long it took; a daemon that does not answer yet is waited for."""
    began_s = time.monotonic()
    while True:
        try:
            if condition():
                return time.monotonic() - began_s
        except OSError:
            pass
        assert time.monotonic() - began_s < within_s, f"not within {within_s} s: {what}"
        time.sleep(0.1)


class DelayingProxy:
    """A TCP address that passes bytes on to a Unix socket, each way ``delay_s`` later. ``point_at`` changes the target."""

    def __init__(self, target: Path | None, delay_s: float = 0.002) -> None:
        self._target, self._delay_s = target, delay_s
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def point_at(self, target: Path | None) -> None:
        """End all connections and lead new ones to ``target``; None: they are closed at once."""
        with self._lock:
            self._target = target
            for connection in self._open:
                _shut(connection)
            self._open.clear()

    def close(self) -> None:
        _shut(self._listener)
        self._listener.close()
        self.point_at(None)

    def _accept(self) -> None:
        while True:
            try:
                ours, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(ours,), daemon=True).start()

    def _serve(self, ours: socket.socket) -> None:
        theirs = socket.socket(socket.AF_UNIX)
        with ours, theirs:
            with self._lock:
                if self._target is None:
                    return
                try:
                    theirs.connect(str(self._target))
                except OSError:
                    return
                self._open |= {ours, theirs}
            ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            back = threading.Thread(target=self._pump, args=(theirs, ours), daemon=True)
            back.start()
            self._pump(ours, theirs)
            back.join()
            with self._lock:
                self._open -= {ours, theirs}

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65_536):
                time.sleep(self._delay_s)
                sink.sendall(data)
        except OSError:
            pass
        _shut(source)
        _shut(sink)


def _shut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass


class FleetProcesses:
    """The sandbox and ``hosts`` daemons; ``fleet_of`` returns the lines of [fleet] for a host's number."""

    def __init__(self, folder: Path, hosts: int, fleet_of: Callable[[int], str]) -> None:
        self.folder, self.hosts = folder, hosts
        self.px, *self.ports = free_ports(1 + hosts)
        self.sent = 0
        self.sandbox = self._start("sandbox", "--port", str(self.px), "--latency", "20ms")
        self.daemons: list[subprocess.Popen[bytes]] = []
        for host, port in enumerate(self.ports):
            home = self.home(host)
            home.mkdir(parents=True)
            text = CONFIG.format(px=self.px, port=port, folder=home, fleet=fleet_of(host))
            (home / "config.toml").write_text(text)
            self.daemons.append(self._start_host(host))

    def home(self, host: int) -> Path:
        return self.folder / f"h{host}"

    def _start_host(self, host: int) -> "subprocess.Popen[bytes]":
        return self._start("run", "--config", str(self.home(host) / "config.toml"))

    def _start(self, *arguments: str) -> "subprocess.Popen[bytes]":
        environ = {name: value for name, value in os.environ.items() if not name.startswith("PX_SIDECAR_")}
        with (self.folder / "log.txt").open("ab") as log:
            return subprocess.Popen([*PX_SIDECAR, *arguments], env=environ, stdout=log, stderr=log)

    # What is there ----------------------------------------------------------------------------------------------------

    def fleet_facts(self, host: int) -> dict[str, Any]:
        facts = get(f"http://127.0.0.1:{self.ports[host]}/status")["fleet"]
        assert isinstance(facts, dict)
        return facts

    def states(self) -> set[str]:
        return {self.fleet_facts(host)["state"] for host in range(self.hosts)}

    def promised(self) -> float:
        """Return the smallest promise of a host."""
        return min(float(self.fleet_facts(host)["alone"]) for host in range(self.hosts))

    def report(self) -> dict[str, Any]:
        report = get(f"http://127.0.0.1:{self.px}/sandbox/report")
        assert isinstance(report, dict)
        return report

    def rate(self, for_s: float) -> float:
        """Return the events a second that arrive in the next ``for_s``."""
        before, began_s = self.report()["distinct"], time.monotonic()
        time.sleep(for_s)
        after = self.report()["distinct"]
        return float(after - before) / (time.monotonic() - began_s)

    # What happens -----------------------------------------------------------------------------------------------------

    def share(self, within_s: float = 90.0) -> None:
        """Wait until all hosts share and have a promise."""
        until(lambda: self.states() == {"sharing"}, within_s, "all hosts share")

    def send(self, host: int, count: int) -> None:
        """Give events to one host, each of another user."""
        while count:
            part = min(count, BATCH)
            first, self.sent, count = self.sent, self.sent + part, count - part
            events = [
                {"type": "track", "event": "E", "userId": f"u{number}", "messageId": f"m{number}"}
                for number in range(first, first + part)
            ]
            request = urllib.request.Request(
                f"http://127.0.0.1:{self.ports[host]}/v1/batch", json.dumps({"batch": events}).encode()
            )
            with urllib.request.urlopen(request, timeout=30) as answer:
                answer.read()

    def send_all(self, count: int) -> None:
        """Give the same number of events to each host."""
        for host in range(self.hosts):
            self.send(host, count)

    def restart(self, host: int, signal_number: int) -> None:
        """End the process of a host, and start another one on the same outbox."""
        self.daemons[host].send_signal(signal_number)
        self.daemons[host].wait(30)
        self.daemons[host] = self._start_host(host)

    @contextmanager
    def frozen(self, hosts: range) -> Iterator[None]:
        """Stop the processes of these hosts meanwhile."""
        for host in hosts:
            self.daemons[host].send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            for host in hosts:
                self.daemons[host].send_signal(signal.SIGCONT)

    def all_arrived(self, within_s: float) -> None:
        until(lambda: self.report()["distinct"] == self.sent, within_s, "all events arrived")

    def close(self) -> None:
        processes = [*self.daemons, self.sandbox]
        for process in processes:
            process.send_signal(signal.SIGCONT)
            process.send_signal(signal.SIGTERM)
        for process in processes:
            process.wait(30)


class Replicated:
    """A primary and its replicas, each a process with a Unix socket and a TCP port."""

    def __init__(self, folder: Path, program: str, replicas: int) -> None:
        self.ports = free_ports(1 + replicas)
        self.servers: list[EngineServer] = []
        for number, port in enumerate(self.ports):
            home = folder / f"e{number}"
            home.mkdir()
            options = ("--port", str(port), "--repl-diskless-sync-delay", "0")
            if number:
                options += ("--replicaof", f"127.0.0.1 {self.ports[0]}")
            self.servers.append(EngineServer(home, program, options))
        until(lambda: self.connected_replicas(0) == replicas, 30, "the replicas follow")

    def connected_replicas(self, number: int) -> int:
        info = self.command(number, "INFO", "replication").decode()
        return info.count("state=online")

    def command(self, number: int, *parts: str) -> Any:
        client = EngineClient(self.servers[number].path)
        try:
            return client.command(*parts)
        finally:
            client.close()

    def promote(self, number: int, followers: tuple[int, ...]) -> None:
        """Make a replica the primary of ``followers``, and wait until they follow it."""
        self.command(number, "REPLICAOF", "NO", "ONE")
        for follower in followers:
            self.command(follower, "REPLICAOF", "127.0.0.1", str(self.ports[number]))
        until(lambda: self.connected_replicas(number) == len(followers), 30, "the replicas follow the new primary")

    def close(self) -> None:
        for server in self.servers:
            server.process.send_signal(signal.SIGCONT)
            server.kill()
