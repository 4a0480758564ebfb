"""Real processes for tests: a sandbox and a daemon in a directory of their own, started, killed and started again."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sidecar.sandbox.server import free_ports

STARTED_S = 20.0
KEY = "sandbox-key"


def wait_until(condition: Callable[[], object], timeout_s: float = STARTED_S, *, what: str = "it") -> None:
    """Poll until ``condition()`` is true. Raises AssertionError that names ``what`` after ``timeout_s``."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, f"{what} did not happen within {timeout_s} s"
        time.sleep(0.02)


def get_json(url: str) -> Any:
    """Return the decoded JSON of a GET."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)


def is_ok(url: str) -> bool:
    """Return whether a GET is answered 200 within a second."""
    try:
        with urllib.request.urlopen(url, timeout=1) as answer:
            return answer.status == 200
    except (OSError, http.client.HTTPException):
        return False


# Runs a command with a listening socket at descriptor 3, as systemd's socket activation does (sd_listen_fds(3)).
ACTIVATE = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="http")
os.execv(sys.argv[2], sys.argv[2:])
"""


class ProcessHarness:
    """The directory, the sandbox and the daemon of one test, each in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.unix = folder / "events.sock"
        self.control = folder / "control.sock"
        self.outbox = folder / "outbox.db"
        http_port, self.sandbox_port = free_ports(2)
        self.http = f"127.0.0.1:{http_port}"
        self.sandbox_url = f"http://127.0.0.1:{self.sandbox_port}"
        self.processes: list[subprocess.Popen[bytes]] = []

    def environ(self, **more: str) -> dict[str, str]:
        """The environment without this machine's ``PX_SIDECAR_`` variables, with the sandbox's key and ``more``."""
        clean = {key: value for key, value in os.environ.items() if not key.startswith("PX_SIDECAR_")}
        return clean | {"PX_SIDECAR_PX_API_KEY": KEY} | more

    def write_config(
        self, more: str = "", *, px: str = "", listen: str = "", deliver: str = "", mapping: str = ""
    ) -> Path:
        """Write ``config.toml``: ``px``, ``listen``, ``deliver`` and ``mapping`` into their tables, ``more`` at the end."""
        path = self.folder / "config.toml"
        path.write_text(
            f"""[px]
property_key = "AP-XXXXXXXXXX-2"
base_url = "{self.sandbox_url}"
{px}
[listen]
http = "{self.http}"
unix = "{self.unix}"
control = "{self.control}"
{listen}
[outbox]
path = "{self.outbox}"
[deliver]
{deliver}
[mapping]
{mapping}
[mapping.fields]
eventId = "messageId"
{more}
"""
        )
        return path

    def start(self, *arguments: str, http: socket.socket | None = None, **environ: str) -> subprocess.Popen[bytes]:
        """Start a verb in the background, with its output in ``VERB.log``. It inherits the listening socket ``http``."""
        command = [sys.executable, "-m", "sidecar", *arguments]
        if http is not None:
            command = [sys.executable, "-c", ACTIVATE, str(http.fileno()), *command]
        with (self.folder / f"{arguments[0]}.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environ(**environ),
                pass_fds=() if http is None else (http.fileno(),),
            )
        self.processes.append(process)
        return process

    def start_sandbox(self, *options: str) -> subprocess.Popen[bytes]:
        """Start the stand-in for PX and wait until it answers."""
        process = self.start("sandbox", "--port", str(self.sandbox_port), *options)
        wait_until(lambda: is_ok(f"{self.sandbox_url}/sandbox/report"), what="the sandbox's start")
        return process

    def start_daemon(self, *, http: socket.socket | None = None, **environ: str) -> subprocess.Popen[bytes]:
        """Start the daemon and wait until ``/health`` is 200."""
        process = self.start("run", "--config", str(self.folder / "config.toml"), http=http, **environ)
        wait_until(lambda: process.poll() is not None or is_ok(f"http://{self.http}/health"), what="the daemon's start")
        assert process.poll() is None, self.log("run")
        return process

    def run(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run a verb to its end."""
        return subprocess.run(
            [sys.executable, "-m", "sidecar", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            env=self.environ(**environ),
        )

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """End a process with SIGKILL."""
        process.send_signal(signal.SIGKILL)
        process.wait()

    def stop(self, process: subprocess.Popen[bytes], number: int = signal.SIGTERM) -> int:
        """Send a signal, wait for the end of the process, and return its exit code."""
        process.send_signal(number)
        return process.wait(20)

    def log(self, verb: str) -> str:
        """Everything that the verb has printed so far."""
        return (self.folder / f"{verb}.log").read_text(errors="replace")

    def post(self, path: str, body: bytes, headers: dict[str, str] | None = None) -> tuple[int, dict[str, str], bytes]:
        """POST to the daemon, and return status, headers (lower-case names) and body."""
        connection = http.client.HTTPConnection(self.http, timeout=10)
        try:
            connection.request("POST", path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def status(self) -> dict[str, Any]:
        """The daemon's ``/status``."""
        return get_json(f"http://{self.http}/status")

    def arrived(self) -> list[dict[str, Any]]:
        """The events that the sandbox stored, in the order of arrival."""
        with urllib.request.urlopen(f"{self.sandbox_url}/sandbox/events", timeout=30) as answer:
            return [json.loads(line) for line in answer.read().splitlines()]

    def report(self) -> dict[str, Any]:
        """The sandbox's report: requests, statuses, rates."""
        return get_json(f"{self.sandbox_url}/sandbox/report")

    def end(self) -> None:
        """Kill every process that was started here."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
