"""The processes of a benchmark, and what the kernel knows of them.

On a machine with two cores or more, ``apart`` gives the daemon the first core and the load and the sandbox the others,
so that the one does not steal from the other; the benchmarks say where they do so.
"""

import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from sidecar.sandbox.journal import LogEntry
from sidecar.sandbox.ports import free_ports

__all__ = ["Rig", "Usage", "apart", "free_port", "open_rig", "usage", "wait_until"]

STARTED_S = 60.0
KEY = "sandbox-key"
# The daemon as an installation has it: numpy comes with matplotlib, which only the pictures need, and sqlite-utils would
# load it into the daemon if it finds it (12 MB).
DAEMON = "import sys; sys.modules['numpy'] = None; from sidecar.cli import main; main()"
POLL_S = 0.002
LOG_PAGE = 10_000


def cores() -> list[int]:
    """The cores that this run may use."""
    return sorted(os.sched_getaffinity(0))


def apart() -> tuple[set[int], set[int]]:
    """The daemon's core, and the cores of everybody else; with a single core both are that one."""
    own = cores()
    return {own[0]}, set(own[1:] or own)


class Usage(NamedTuple):
    """What a process has used so far, its threads together."""

    cpu_s: float
    switches: int
    written_bytes: int
    resident_bytes: int
    peak_bytes: int

    def since(self, before: "Usage") -> "Usage":
        """The difference to an earlier look; memory as it is now."""
        return Usage(
            self.cpu_s - before.cpu_s,
            self.switches - before.switches,
            self.written_bytes - before.written_bytes,
            self.resident_bytes,
            self.peak_bytes,
        )


def usage(pid: int) -> Usage:
    """What the process has used so far, by its processor clock (clock_getcpuclockid(3), nanoseconds) and /proc."""
    folder = Path(f"/proc/{pid}")
    switches = 0
    for task in (folder / "task").iterdir():
        try:
            lines = _fields(task / "status")
        except (FileNotFoundError, ProcessLookupError):
            continue  # a thread that just ended
        switches += int(lines["voluntary_ctxt_switches"]) + int(lines["nonvoluntary_ctxt_switches"])
    status = _fields(folder / "status")
    written = int(_fields(folder / "io")["write_bytes"])
    resident, peak = (int(status[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    return Usage(time.clock_gettime(~pid << 3 | 2), switches, written, resident, peak)


def _fields(path: Path) -> dict[str, str]:
    pairs = (line.partition(":") for line in path.read_text().splitlines())
    return {name: value.strip() for name, _, value in pairs}


def free_port() -> int:
    return free_ports(1)[0]


def wait_until(true: Callable[[], object], timeout_s: float, what: str) -> float:
    """Wait for it and return the seconds it took. Raises TimeoutError."""
    began_s = time.monotonic()
    while not true():
        if time.monotonic() - began_s > timeout_s:
            raise TimeoutError(f"{what} did not happen within {timeout_s:g} s")
        time.sleep(POLL_S)
    return time.monotonic() - began_s


@contextmanager
def open_rig() -> Iterator["Rig"]:
    """A rig in a folder of its own below $TMPDIR (a real disk, please); all of it is gone at the end."""
    with tempfile.TemporaryDirectory(prefix="px-sidecar-bench-") as folder:
        rig = Rig(Path(folder))
        try:
            yield rig
        finally:
            rig.end()


class Rig:
    """A folder with a sandbox and a daemon that are started, killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.unix = folder / "events.sock"
        self.outbox = folder / "outbox.db"
        self.http_port, self.sandbox_port = free_ports(2)
        self.processes: list[subprocess.Popen[bytes]] = []

    def configure(
        self, *, outbox: str = "", deliver: str = "", px_port: int | None = None, scheme: str = "http"
    ) -> None:
        """Write the daemon's configuration. Without ``px_port`` PX is this rig's sandbox, running or not."""
        (self.folder / "config.toml").write_text(
            f"""[px]
property_key = "AP-XXXXXXXXXX-2"
base_url = "{scheme}://127.0.0.1:{px_port or self.sandbox_port}"
[listen]
http = "127.0.0.1:{self.http_port}"
unix = "{self.unix}"
control = "{self.folder / "control.sock"}"
[outbox]
path = "{self.outbox}"
{outbox}
[deliver]
{deliver}
[mapping.fields]
eventId = "messageId"
"""
        )

    def start_sandbox(self, *options: str, on: set[int] | None = None) -> subprocess.Popen[bytes]:
        """Start the sandbox; returns when it answers. ``on``: the cores it may use."""
        process = self.start(["-m", "sidecar", "sandbox", "--port", str(self.sandbox_port), *options], on)
        wait_until(lambda: self._answers(process, self.sandbox_port), STARTED_S, "the sandbox's start")
        return process

    def start_daemon(self, *, on: set[int] | None = None) -> subprocess.Popen[bytes]:
        """Start the daemon; returns when it accepts events. ``on``: the cores it may use."""
        process = self.start(["-c", DAEMON, "run", "--config", str(self.folder / "config.toml")], on)
        wait_until(lambda: self._answers(process, self.http_port, "/health"), STARTED_S, "the daemon's start")
        return process

    def start(self, arguments: list[str], on: set[int] | None = None) -> subprocess.Popen[bytes]:
        """Start a Python process of ours. What it prints is in ``log``."""
        environ = {key: value for key, value in os.environ.items() if not key.startswith("PX_SIDECAR_")}
        environ["PX_SIDECAR_PX_API_KEY"] = KEY
        before = os.sched_getaffinity(0)
        if on is not None:
            os.sched_setaffinity(0, on)  # inherited by the child from its first instruction on
        try:
            with (self.folder / "processes.log").open("ab") as log:
                process = subprocess.Popen(
                    [sys.executable, *arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environ
                )
        finally:
            os.sched_setaffinity(0, before)
        self.processes.append(process)
        return process

    def _answers(self, process: subprocess.Popen[bytes], port: int, path: str = "/sandbox/faults") -> bool:
        if process.poll() is not None:
            raise RuntimeError(f"a process ended with {process.returncode}; it said: {self.log()[-800:]}")
        try:
            return self.ask(port, path)[0] == 200
        except OSError:
            return False

    def log(self) -> str:
        return (self.folder / "processes.log").read_text(errors="replace")

    @staticmethod
    def ask(port: int, path: str, method: str = "GET", body: bytes = b"") -> tuple[int, bytes]:
        """One HTTP request on loopback."""
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            connection.request(method, path, body or None)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def status(self) -> dict[str, Any]:
        """The daemon's status."""
        status: dict[str, Any] = json.loads(self.ask(self.http_port, "/status")[1])
        return status

    def report(self) -> dict[str, Any]:
        """The sandbox's figures."""
        report: dict[str, Any] = json.loads(self.ask(self.sandbox_port, "/sandbox/report")[1])
        return report

    def arrivals(self) -> list[LogEntry]:
        """Every event that arrived at the sandbox and was stored, in order."""
        found: list[LogEntry] = []
        start: int | None = 0
        while start is not None:
            page = json.loads(self.ask(self.sandbox_port, f"/sandbox/log?start={start}&limit={LOG_PAGE}")[1])
            found += [LogEntry(**entry) for entry in page["entries"] if entry["stored"]]
            start = page["next"]
        return found

    def faults(self, **faults: Any) -> None:
        """Change what the sandbox does wrong."""
        status, body = self.ask(self.sandbox_port, "/sandbox/faults", "POST", json.dumps(faults).encode())
        assert status == 200, body

    def stop(self, process: subprocess.Popen[bytes], number: int = signal.SIGTERM) -> None:
        process.send_signal(number)
        process.wait(60)

    def forget_outbox(self) -> None:
        """Remove the outbox, so that the next daemon starts with an empty one."""
        for path in self.folder.glob("outbox.db*"):
            path.unlink()

    def end(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()
