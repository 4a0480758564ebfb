"""Ctrl-C at every question and bar ends a verb with one line, no traceback, and nothing done by halves."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from running_daemon import DaemonDir

from sidecar.px import PxAnswer, PxRequest, Reply
from sidecar.sandbox.server import free_ports

pytestmark = pytest.mark.whole  # each case is a process of its own in a terminal

CTRL_C = b"\x03"
DEADLINE_S = 30.0

# The question or bar that is shown, and the verb. DEAD is a folder with dead letters, EVENTS and EXPORTED are files.
WITH_DAEMON = {
    "dead discard": (["dead", "discard", "--all"], rb"Go ahead\?"),
    "dead retry": (["dead", "retry", "--all"], rb"Go ahead\?"),
    "events discard": (["events", "discard", "--all"], rb"Go ahead\?"),
    "resend": (["resend", "--all"], rb"Go ahead\?"),
    "backfill": (["backfill", "EVENTS"], rb"Go ahead\?"),
    "drain": (["drain"], rb"pending|waiting|drain"),
    "tail": (["tail"], rb"."),
    "status --watch": (["status", "--watch"], rb"pending|paused"),
    "console": (["console", "--no-browser"], rb"http://"),
    "reconcile": (["reconcile"], rb"."),
    "send --wait": (["send", "Waits", "--user", "u1", "--wait"], rb"waiting"),
}
ALONE = {
    "init, region": (["init", "--config", "NEW"], rb"(?i)region"),
    "init, product key": (["init", "--config", "NEW", "--region", "eu"], rb"Product key"),
    "init, preset": (["init", "--config", "NEW", "--region", "eu", "--property-key", "AP-XXXXXXXXXX-2"], rb"Preset"),
    "init, hosts": (
        ["init", "--config", "NEW", "--region", "eu", "--property-key", "AP-XXXXXXXXXX-2", "--preset", "none"],
        rb"Hosts",
    ),
    "init, API key": (
        *(
            [
                "init",
                "--config",
                "NEW",
                "--property-key",
                "AP-XXXXXXXXXX-2",
                "--preset",
                "none",
                "--hosts",
                "1",
                "--region",
                "us",
            ],
        ),
        rb"API key \(hidden",
    ),
    "sandbox": (["sandbox", "--port", "0"], rb"Ctrl-C"),
    "demo": (["demo", "--events", "4000"], rb"."),
    "dev": (["dev", "--listen", f"127.0.0.1:{free_ports(1)[0]}"], rb"curl"),
    "map at a terminal": (["map"], rb"."),
}


async def px(request: PxRequest) -> Reply:
    return PxAnswer(400 if b"Poison" in request.body else 201, b"{}", content_type="application/json")


def in_terminal(arguments: list[str], shows: bytes, folder: Path, columns: int = 80) -> tuple[int, str]:
    """Run a verb in a terminal, press Ctrl-C once it shows something, and return exit code and all it printed."""
    master, slave = pty.openpty()
    start = (
        "import os, fcntl, struct, sys, termios\n"
        f"fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack('HHHH', 24, {columns}, 0, 0))\n"
        "os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
        "os.execv(sys.executable, [sys.executable, '-m', 'sidecar', *sys.argv[1:]])"
    )
    environ = {key: value for key, value in os.environ.items() if not key.startswith("PX_SIDECAR_")}
    environ |= {"TERM": "xterm", "XDG_STATE_HOME": str(folder), "XDG_RUNTIME_DIR": str(folder)}
    environ.pop("COLUMNS", None)
    process = subprocess.Popen(
        [sys.executable, "-c", start, *arguments], stdin=slave, stdout=slave, stderr=slave, env=environ, cwd=folder
    )
    os.close(slave)
    printed, pressed_s, deadline_s = b"", 0.0, time.monotonic() + DEADLINE_S
    try:
        while time.monotonic() < deadline_s:
            if select.select([master], [], [], 0.05)[0]:
                try:
                    part = os.read(master, 65_536)
                except OSError:  # the other end is closed
                    part = b""
                if not part:
                    break
                printed += part
            # Again after a while: the first one may have come before the verb asked.
            if re.search(shows, printed) and time.monotonic() > pressed_s + 3:
                os.write(master, CTRL_C)
                pressed_s = time.monotonic()
        code = process.wait(5)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
        os.close(master)
    return code, printed.decode(errors="replace")


def assert_ended_well(code: int, printed: str) -> None:
    assert "Traceback" not in printed, printed
    assert "Exception" not in printed, printed
    assert code in (0, 1, 130, -signal.SIGINT), (code, printed)


@pytest.mark.parametrize("name", WITH_DAEMON)
def test_ctrl_c_at_a_question_or_bar_of_a_verb_with_a_daemon(tmp_path: Path, name):
    arguments, shows = WITH_DAEMON[name]
    (tmp_path / "events.ndjson").write_text('{"type":"track","event":"A","userId":"u9","messageId":"m9"}\n')
    with DaemonDir(tmp_path).running(px) as daemon:
        daemon.track("u1", "Fine")
        daemon.track("u2", "Poison")
        daemon.settle()
        daemon.client.post("/v1/pause" if name != "drain" else "/v1/resume")
        if name != "drain":
            daemon.track("u3", "Waits")
        before = daemon.status()
        words = [str(tmp_path / "events.ndjson") if word == "EVENTS" else word for word in arguments]
        code, printed = in_terminal([*words, *daemon.daemon_dir.flags], shows, tmp_path)
        assert_ended_well(code, printed)
        after = daemon.status()
    if "Go ahead" in printed:
        assert (after["dead"], after["pending"], after["dropped"]) == (
            before["dead"],
            before["pending"],
            before["dropped"],
        )


@pytest.mark.parametrize("name", ALONE)
def test_ctrl_c_of_a_verb_without_a_daemon(tmp_path: Path, name):
    arguments, shows = ALONE[name]
    words = [str(tmp_path / "new.toml") if word == "NEW" else word for word in arguments]
    assert_ended_well(*in_terminal(words, shows, tmp_path))
    assert not (tmp_path / "new.toml").exists()


def test_demo_fits_60_columns(tmp_path: Path):
    code, printed = in_terminal(["demo", "--events", "400"], rb"\Znever", tmp_path, columns=60)
    assert code == 0, printed
    # Colors and movements of the cursor take no column; a picture is drawn over and over.
    lines = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", printed))
    # A sentence may be longer: the terminal wraps it.
    wide = [line for line in lines if len(line) > 60 and (line[0] in "│╭╰" or "  " in line.strip())]
    assert not wide
    assert "lost=0" in printed
