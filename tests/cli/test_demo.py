"""``px-sidecar demo``, as README has a stranger begin: the whole scene with few events, piped and in a terminal."""

import os
import pty
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

EVENTS = 300
COMMAND = [sys.executable, "-m", "sidecar", "demo", "--events", str(EVENTS), "--users", "20"]


@pytest.fixture
def folder() -> Iterator[Path]:
    """The name of a Unix socket may have 107 bytes, and pytest's own folders are long."""
    with tempfile.TemporaryDirectory(prefix="pxs-") as path:
        yield Path(path)


def account(last_line: str) -> dict[str, int]:
    return {name: int(number) for name, number in re.findall(r"(\w+)=(\d+)", last_line)}


def assert_nothing_lost(said: str) -> None:
    found = account(said.strip().splitlines()[-1])
    assert found.pop("duplicates") <= 128
    assert found == {"accepted": EVENTS, "delivered": EVENTS, "dropped": 0, "dead": 0, "lost": 0}


def test_the_demo_ends_with_an_account_in_which_nothing_is_lost_and_leaves_nothing_behind(folder: Path):
    environ = {**os.environ, "TMPDIR": str(folder)}
    ended = subprocess.run(COMMAND, env=environ, capture_output=True, text=True, timeout=100)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert_nothing_lost(ended.stdout)
    assert "kill -9 of the daemon" in ended.stdout
    assert "the Unix socket, HTTP and the Segment SDK" in ended.stdout
    assert not list(folder.iterdir())


def test_in_a_terminal_the_demo_draws_what_happens_and_keeps_its_folder_if_asked_to(folder: Path):
    ours, theirs = pty.openpty()
    environ = {**os.environ, "TMPDIR": str(folder), "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "30"}
    process = subprocess.Popen([*COMMAND, "--keep"], env=environ, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    said = b""
    while True:
        try:
            piece = os.read(ours, 65_536)
        except OSError:  # how a pseudo-terminal says that its other end is closed
            break
        said += piece
    os.close(ours)
    assert process.wait(10) == 0, said.decode()
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", said.decode())
    assert_nothing_lost(text)
    assert "px-sidecar demo" in text
    assert "delivered/s" in text
    assert "the daemon is dead; the apps keep trying" in text
    assert max(len(line) for line in text.replace("\r", "\n").splitlines() if "│" in line) <= 80
    (kept,) = folder.iterdir()
    assert {"config.toml", "outbox.db", "run.log", "sandbox.log"} <= {path.name for path in kept.iterdir()}
