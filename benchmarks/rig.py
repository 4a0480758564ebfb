"""The processes of a benchmark, and their resource usage from the kernel.

With two cores or more, ``split_cores`` gives the daemon the first core, and load and sandbox the others, so that they do
not compete; each benchmark says where it does so.
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
from sidecar.sandbox.server import free_ports

__all__ = ["Rig", "Usage", "free_port", "open_rig", "split_cores", "usage", "wait_until"]

START_TIMEOUT_S = 60.0
KEY = "sandbox-key"
# An installation has no numpy; here matplotlib brings it along, and sqlite-utils would import it into the daemon (12 MB).
DAEMON = "import sys; sys.modules['numpy'] = None; from sidecar.cli import main; main()"
POLL_S = 0.002
LOG_PAGE = 10_000


def cores() -> list[int]:
    """Return the cores that this run may use."""
    return sorted(os.sched_getaffinity(0))


def split_cores() -> tuple[set[int], set[int]]:
    """Return the daemon's core and the cores of all other processes; with one core both are that core."""
    available = cores()
    return {available[0]}, set(available[1:] or available)


class Usage(NamedTuple):
    """The resource usage of a process so far, all threads together."""

    cpu_s: float
    switches: int
    written_bytes: int
    resident_bytes: int
    peak_bytes: int

    def since(self, before: "Usage") -> "Usage":
        """Return the difference to an earlier reading; memory is the current one."""
        return Usage(
            self.cpu_s - before.cpu_s,
            self.switches - before.switches,
            self.written_bytes - before.written_bytes,
            self.resident_bytes,
            self.peak_bytes,
        )


def usage(pid: int) -> Usage:
    """Read the usage of a process from its processor clock (clock_getcpuclockid(3), nanoseconds) and /proc."""
    folder = Path(f"/proc/{pid}")
    switches = 0
    for task in (folder / "task").iterdir():
        try:
            lines = _fields(task / "status")
        except (FileNotFoundError, ProcessLookupError):
            continue  # a thread that has just ended
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


def wait_until(condition: Callable[[], object], timeout_s: float, what: str) -> float:
    """Wait for the condition and return the seconds it took. Raises TimeoutError."""
    started_s = time.monotonic()
    while not condition():
        if time.monotonic() - started_s > timeout_s:
            raise TimeoutError(f"{what} did not happen within {timeout_s:g} s")
        time.sleep(POLL_S)
    return time.monotonic() - started_s


@contextmanager
def open_rig() -> Iterator["Rig"]:
    """Yield a rig in a new folder below $TMPDIR, which should be a real disk; everything is removed at the end."""
    with tempfile.TemporaryDirectory(prefix="px-sidecar-bench-") as folder:
        rig = Rig(Path(folder))
        try:
            yield rig
        finally:
            rig.end()


class Rig:
    """A folder with a sandbox and a daemon that can be started, killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.unix = folder / "events.sock"
        self.outbox = folder / "outbox.db"
        self.http_port, self.sandbox_port = free_ports(2)
        self.processes: list[subprocess.Popen[bytes]] = []

    def configure(
        self, *, outbox: str = "", deliver: str = "", px_port: int | None = None, scheme: str = "http"
    ) -> None:
        """Write the daemon's configuration. Without ``px_port``, PX is the sandbox of this rig, running or not."""
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
        """Start the sandbox and wait until it answers. ``on``: the cores it may use."""
        process = self.start(["-m", "sidecar", "sandbox", "--port", str(self.sandbox_port), *options], on)
        self.wait_for(process, self.sandbox_port, "/sandbox/faults", "the sandbox's start")
        return process

    def start_daemon(self, *, on: set[int] | None = None) -> subprocess.Popen[bytes]:
        """Start the daemon and wait until it accepts events. ``on``: the cores it may use."""
        process = self.launch_daemon(on=on)
        self.wait_for(process, self.http_port, "/health", "the daemon's start")
        return process

    def launch_daemon(self, *, on: set[int] | None = None) -> subprocess.Popen[bytes]:
        """Start the daemon without waiting for it."""
        return self.start(["-c", DAEMON, "run", "--config", str(self.folder / "config.toml")], on)

    def start(self, arguments: list[str], on: set[int] | None = None) -> subprocess.Popen[bytes]:
        """Start a Python process of this repository; ``log`` returns its output."""
        return self.start_program([sys.executable, *arguments], on)

    def start_program(self, command: list[str], on: set[int] | None = None) -> subprocess.Popen[bytes]:
        """Start any program; ``log`` returns its output."""
        # Settings of this shell for either program (GOMAXPROCS, GOGC) would be measured, too.
        environ = {key: value for key, value in os.environ.items() if not key.startswith(("PX_SIDECAR_", "GO"))}
        environ["PX_SIDECAR_PX_API_KEY"] = KEY
        before = os.sched_getaffinity(0)
        if on is not None:
            os.sched_setaffinity(0, on)  # inherited by the child at its start
        try:
            with (self.folder / "processes.log").open("ab") as log:
                process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environ)
        finally:
            os.sched_setaffinity(0, before)
        self.processes.append(process)
        return process

    def wait_for(self, process: subprocess.Popen[bytes], port: int, path: str, what: str) -> None:
        """Wait until ``GET path`` is answered without a 5xx. Raises TimeoutError; RuntimeError if the process ends."""

        def answers() -> bool:
            if process.poll() is not None:
                raise RuntimeError(f"a process ended with {process.returncode}; its log ends with: {self.log()[-800:]}")
            try:
                return self.ask(port, path)[0] < 500
            except OSError:
                return False

        wait_until(answers, START_TIMEOUT_S, what)

    def log(self) -> str:
        return (self.folder / "processes.log").read_text(errors="replace")

    @staticmethod
    def ask(port: int, path: str, method: str = "GET", body: bytes = b"") -> tuple[int, bytes]:
        """Send one HTTP request on loopback; return status and body."""
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            connection.request(method, path, body or None)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def status(self) -> dict[str, Any]:
        """Return the status of the daemon."""
        status: dict[str, Any] = json.loads(self.ask(self.http_port, "/status")[1])
        return status

    def report(self) -> dict[str, Any]:
        """Return the report of the sandbox."""
        report: dict[str, Any] = json.loads(self.ask(self.sandbox_port, "/sandbox/report")[1])
        return report

    def arrivals(self) -> list[LogEntry]:
        """Return every event stored at the sandbox, in order of arrival."""
        arrivals: list[LogEntry] = []
        start: int | None = 0
        while start is not None:
            page = json.loads(self.ask(self.sandbox_port, f"/sandbox/log?start={start}&limit={LOG_PAGE}")[1])
            arrivals += [LogEntry(**entry) for entry in page["entries"] if entry["stored"]]
            start = page["next"]
        return arrivals

    def faults(self, **faults: Any) -> None:
        """Set the faults of the sandbox."""
        status, body = self.ask(self.sandbox_port, "/sandbox/faults", "POST", json.dumps(faults).encode())
        assert status == 200, body

    def stop(self, process: subprocess.Popen[bytes], number: int = signal.SIGTERM) -> None:
        process.send_signal(number)
        process.wait(60)

    def delete_outbox(self) -> None:
        """Delete the outbox, so that the next daemon starts with an empty one."""
        for path in self.folder.glob("outbox.db*"):
            path.unlink()

    def end(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()
