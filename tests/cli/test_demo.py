"""``px-sidecar demo`` with few events, in a pipe and in a terminal."""

import os
import pty
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.whole

EVENTS = 300
COMMAND = [sys.executable, "-m", "sidecar", "demo", "--events", str(EVENTS), "--users", "20"]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short folder: the path of a Unix socket is limited to 107 bytes, and tmp_path is longer."""
    with tempfile.TemporaryDirectory(prefix="pxs-") as path:
        yield Path(path)


def outcome_counts(last_line: str) -> dict[str, int]:
    return {name: int(number) for name, number in re.findall(r"(\w+)=(\d+)", last_line)}


def assert_nothing_lost(output: str) -> None:
    counts = outcome_counts(output.strip().splitlines()[-1])
    assert counts.pop("duplicates") <= 128
    assert counts == {"accepted": EVENTS, "delivered": EVENTS, "dropped": 0, "dead": 0, "lost": 0}


def test_the_demo_loses_nothing_and_removes_its_folder(folder: Path):
    # A proxy is not the way to this host.
    environ = {**os.environ, "TMPDIR": str(folder), "http_proxy": "http://127.0.0.1:1", "no_proxy": ""}
    ended = subprocess.run(COMMAND, env=environ, capture_output=True, text=True, timeout=100)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert_nothing_lost(ended.stdout)
    assert "kill -9 of the daemon" in ended.stdout
    assert "the Unix socket, HTTP and the Segment SDK" in ended.stdout
    assert not list(folder.iterdir())


def test_the_demo_draws_in_a_terminal_and_can_keep_its_folder(folder: Path):
    terminal, child_side = pty.openpty()
    environ = {**os.environ, "TMPDIR": str(folder), "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "30"}
    process = subprocess.Popen(
        [*COMMAND, "--keep"], env=environ, stdin=child_side, stdout=child_side, stderr=child_side
    )
    os.close(child_side)
    output = b""
    while True:
        try:
            data = os.read(terminal, 65_536)
        except OSError:  # EIO: the other end of the pseudo-terminal is closed
            break
        output += data
    os.close(terminal)
    assert process.wait(10) == 0, output.decode()
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", output.decode())
    assert_nothing_lost(text)
    assert "px-sidecar demo" in text
    assert "delivered/s" in text
    assert "the daemon is down; the apps retry" in text
    assert max(len(line) for line in text.replace("\r", "\n").splitlines() if "│" in line) <= 80
    (kept,) = folder.iterdir()
    assert {"config.toml", "outbox.db", "run.log", "sandbox.log"} <= {path.name for path in kept.iterdir()}


@pytest.mark.parametrize("flag", [["--console"], ["--keep"], ["--users", "5"]], ids=str)
def test_the_demo_of_a_fleet_refuses_what_it_would_ignore(verb, flag):
    ran = verb("demo", "--fleet", "2", *flag)
    assert ran.code == 2
    assert "leave out --users, --keep and --console" in ran.err
