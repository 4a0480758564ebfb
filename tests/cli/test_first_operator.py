"""The commands of a first-time operator, with real processes: init, check, run, send, status, tail, stop."""

import json
import os
import pty
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest


class Operator:
    """A folder with a configuration, and the commands run there."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        clean = {key: value for key, value in os.environ.items() if not key.startswith("PX_SIDECAR_")}
        self.environ = clean | {
            "PX_SIDECAR_CONFIG": str(folder / "config.toml"),
            "PX_SIDECAR_PX_BASE_URL": url,
            "PX_SIDECAR_LISTEN_HTTP": "",
            "PX_SIDECAR_LISTEN_UNIX": str(folder / "events.sock"),
            "PX_SIDECAR_LISTEN_CONTROL": str(folder / "control.sock"),
            "PX_SIDECAR_OUTBOX_PATH": str(folder / "outbox.db"),
        }
        self.processes: list[subprocess.Popen[bytes]] = []

    def run(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "sidecar", *arguments]
        return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60, env=self.environ)

    def start(self, *arguments: str, stdout: object = subprocess.DEVNULL) -> "subprocess.Popen[bytes]":
        log = (self.folder / f"{arguments[0]}.log").open("ab")
        with log:
            process = subprocess.Popen(
                [sys.executable, "-m", "sidecar", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=stdout,  # type: ignore[arg-type]
                stderr=log,
                env=self.environ,
            )
        self.processes.append(process)
        return process

    def start_daemon(self) -> "subprocess.Popen[bytes]":
        daemon = self.start("run")
        deadline_s = time.monotonic() + 20
        while not answers(self.folder / "control.sock"):
            assert daemon.poll() is None, (self.folder / "run.log").read_text()
            assert time.monotonic() < deadline_s
            time.sleep(0.02)
        return daemon


def answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


@pytest.fixture
def operator(px, disk_path: Path) -> Iterator[Operator]:
    operator = Operator(disk_path, px.url)
    yield operator
    for process in operator.processes:
        if process.poll() is None:
            process.kill()
        process.wait()


def test_init_check_run_send_and_status_work_in_turn(operator: Operator):
    init = operator.run("init", stdin="us\nAP-XXXXXXXXXX-2\nb2b-saas\n1\nsandbox-key\n")
    assert init.returncode == 0, init.stderr
    check = operator.run("check", "--live", "--json")
    assert check.returncode == 0, check.stdout
    daemon = operator.start_daemon()
    sent = operator.run("send", "Feature Used", "--user", "user-123", "--property", "n=1", "--wait", "--verify")
    assert sent.returncode == 0, sent.stderr
    assert "delivered: PX answered 201" in sent.stdout
    assert "verified" in sent.stdout
    status = operator.run("status")
    assert status.returncode == 0
    assert "idle, everything is delivered" in status.stdout
    assert operator.run("check").returncode == 0
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(20) == 0
    stopped = operator.run("status", "--json")
    assert stopped.returncode == 69
    assert json.loads(stopped.stdout)["delivered"] == 1
    logs = "".join(path.read_text() for path in operator.folder.glob("*.log"))
    assert "sandbox-key" not in logs + status.stdout + check.stdout + stopped.stdout


def test_tail_exits_0_on_ctrl_c(operator: Operator):
    operator.run("init", "--yes", "--property-key", "AP-XXXXXXXXXX-2")
    (operator.folder / "api_key").write_text("sandbox-key")
    operator.start_daemon()
    with (operator.folder / "tailed").open("wb") as out:
        tail = operator.start("tail", "--json", stdout=out)
    log = operator.folder / "tail.log"
    deadline_s = time.monotonic() + 20
    while "Watching" not in log.read_text():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    assert operator.run("send", "Feature Used", "--user", "u1", "--wait").returncode == 0
    tailed = operator.folder / "tailed"
    while b"delivered" not in tailed.read_bytes():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    tail.send_signal(signal.SIGINT)
    assert tail.wait(10) == 0
    records = [json.loads(line) for line in tailed.read_text().splitlines()]
    assert [record["what"] for record in records] == ["accepted", "delivered"]
    assert "Traceback" not in log.read_text()


def test_status_watch_redraws_and_exits_0_on_ctrl_c(operator: Operator):
    operator.run("init", "--yes", "--property-key", "AP-XXXXXXXXXX-2")
    (operator.folder / "api_key").write_text("sandbox-key")
    operator.start_daemon()
    operator.environ["TERM"] = "xterm"
    screen, child_side = pty.openpty()
    watch = operator.start("status", "--watch", stdout=child_side)
    os.close(child_side)
    output = b""
    while output.count(b"everything is delivered") < 2:
        output += os.read(screen, 65_536)
    assert b"\x1b[" in output  # escape sequences: colors and redrawing
    watch.send_signal(signal.SIGINT)
    assert watch.wait(10) == 0
    os.close(screen)
    assert "Traceback" not in (operator.folder / "status.log").read_text()
