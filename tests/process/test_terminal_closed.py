"""Closing the terminal of `run` ends it; SIGHUP reloads a daemon whose terminal is there, or that never had one."""

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from process_harness import ProcessHarness, is_ok, wait_until

from sidecar.control.client import DaemonClient


class Terminal:
    """A daemon in the foreground of a terminal of its own; ``nohup`` starts it as that command does."""

    def __init__(self, harness: ProcessHarness, *, nohup: bool = False) -> None:
        self.master, slave = pty.openpty()
        self._run = (
            "import os, fcntl, signal, sys, termios\n"
            "os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
            f"{'signal.signal(signal.SIGHUP, signal.SIG_IGN)' if nohup else ''}\n"
            "os.execv(sys.executable, [sys.executable, '-m', 'sidecar', *sys.argv[1:]])"
        )
        command = [sys.executable, "-c", self._run, "run", "--config", str(harness.folder / "config.toml")]
        self.process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=harness.environ())
        os.close(slave)
        harness.processes.append(self.process)
        url = f"http://{harness.http}/health"
        wait_until(lambda: self.process.poll() is not None or is_ok(url), what="the daemon's start")
        assert self.process.poll() is None, self.read()

    def read(self) -> str:
        return os.read(self.master, 1 << 16).decode(errors="replace")

    def close(self) -> None:
        os.close(self.master)


@pytest.fixture
def configured(harness: ProcessHarness) -> Iterator[ProcessHarness]:
    harness.write_config(deliver="hosts = 1")
    yield harness
    harness.end()


def changed(harness: ProcessHarness) -> None:
    harness.write_config(deliver="hosts = 2")


def hosts(harness: ProcessHarness) -> bool:
    return harness.status()["ceiling"] == 95


def audit(harness: ProcessHarness) -> list[dict[str, Any]]:
    changes: list[dict[str, Any]] = DaemonClient(str(harness.control)).get("/v1/audit")["changes"]
    return changes


def test_closing_the_terminal_stops_the_daemon_in_order(configured: ProcessHarness):
    """It continued without a terminal, and the next start failed at the lock of the outbox."""
    terminal = Terminal(configured)
    terminal.close()
    assert terminal.process.wait(20) == 0
    assert not configured.unix.exists()


def test_sighup_reloads_a_daemon_whose_terminal_is_there(configured: ProcessHarness):
    terminal = Terminal(configured)
    changed(configured)
    terminal.process.send_signal(signal.SIGHUP)
    wait_until(lambda: hosts(configured), what="the reload")
    terminal.close()
    assert terminal.process.wait(20) == 0


def test_a_daemon_under_nohup_outlives_its_terminal(configured: ProcessHarness):
    terminal = Terminal(configured, nohup=True)
    terminal.close()
    changed(configured)
    terminal.process.send_signal(signal.SIGHUP)
    wait_until(lambda: hosts(configured), what="the reload")
    assert terminal.process.poll() is None


def test_sighup_reloads_a_daemon_without_a_terminal(configured: ProcessHarness):
    configured.write_config(deliver="hosts = 1")
    daemon = configured.start_daemon()
    changed(configured)
    daemon.send_signal(signal.SIGHUP)
    wait_until(lambda: hosts(configured), what="the reload")
    wait_until(lambda: len(audit(configured)) == 1, what="its row in the audit trail")
    assert daemon.poll() is None
    assert [(row["who"], row["action"]) for row in audit(configured)] == [("SIGHUP", "reload")]
