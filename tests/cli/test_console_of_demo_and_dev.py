"""``demo --console`` and ``dev --console``: the page on real traffic, and nothing left behind."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from console_process import ConsoleProcess, wait_for

from sidecar.sandbox.server import free_ports

pytestmark = pytest.mark.whole


@contextmanager
def console_of(*command: str) -> Iterator[tuple[ConsoleProcess, Path]]:
    """Run a verb with its console in a temporary folder that is short enough for a Unix socket."""
    with tempfile.TemporaryDirectory(prefix="pxs-") as folder:
        process = subprocess.Popen(
            [sys.executable, "-m", "sidecar", *command, "--console"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=folder,
            env={**os.environ, "TMPDIR": folder, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        try:
            yield ConsoleProcess(process), Path(folder)
        finally:
            process.send_signal(signal.SIGHUP)
            process.communicate(timeout=30)
            assert not list(Path(folder).iterdir())


def levels(console: ConsoleProcess) -> dict[str, str]:
    return {check["what"]: check["level"] for check in console.get("/v1/checks")[1]["findings"]}


def test_demo_shows_its_events_and_ends_with_the_terminal():
    with console_of("demo", "--events", "300", "--users", "20") as (console, folder):
        console.sign_in()
        wait_for(lambda: (console.get("/v1/status")[1].get("delivered") or 0) > 20, "deliveries", 30)
        assert levels(console)["API key"] == "ok"
    assert not folder.exists()


def test_dev_shows_events_checks_and_gives_a_code_for_another_tab():
    (port,) = free_ports(1)
    with console_of("dev", "--listen", f":{port}") as (console, _):
        console.sign_in()
        event = {"type": "track", "event": "Opened", "userId": "u1"}
        assert console.post("/v1/send", {"event": event})[0] == 200
        wait_for(lambda: console.get("/v1/status")[1]["delivered"] == 1, "the delivery")
        assert levels(console)["API key"] == "ok"
        code = console.press_enter().partition("#code=")[2]
        assert console.request("POST", "/session", {"code": code}, token=False)[0] == 200
