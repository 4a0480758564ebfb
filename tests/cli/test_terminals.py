"""Every verb as a process of its own in odd terminals: narrow, without colors, the C locale, closed, full, a reader that goes.

How each verb is called is in ``test_every_verb.py``, which runs them in this process; what only a process can show is here.
"""

import fcntl
import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from running_daemon import DaemonDir
from test_every_verb import CALLS, ENDING, FILES, is_sentence, px, takes

pytestmark = [pytest.mark.whole, pytest.mark.timeout(900)]

CODES = (0, 1)
TIMEOUT_S = 60.0
# Python would otherwise switch a C locale to UTF-8 by itself (PEP 538, PEP 540).
C_LOCALE = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
# It is called with arguments beyond ASCII, which the C locale does not know.
NOT_ASCII = {verb for verb, arguments in CALLS.items() if not "".join(arguments).isascii()}
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def environ(**more: str) -> dict[str, str]:
    own = {"COLUMNS", "LANG", "LC_ALL", "NO_COLOR", "TERM"}
    kept = {key: value for key, value in os.environ.items() if key not in own and not key.startswith("PX_SIDECAR_")}
    return kept | more


def in_terminal(command: list[str], folder: Path, columns: int, env: dict[str, str]) -> tuple[int, str]:
    """Run a command in a terminal with this many columns; return exit code and all that it printed there."""
    master, slave = pty.openpty()
    with ExitStack() as stack:
        stack.callback(os.close, master)
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=env, cwd=folder)
        os.close(slave)
        printed, deadline_s = b"", time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline_s:
            if not select.select([master], [], [], 0.1)[0]:
                continue
            try:
                part = os.read(master, 65_536)
            except OSError:  # the other end is closed
                break
            printed += part
        else:
            process.kill()
        return process.wait(5), printed.decode()


def in_pipe(command: list[str], folder: Path, env: dict[str, str]) -> tuple[int, str]:
    ran = subprocess.run(
        command, env=env, cwd=folder, capture_output=True, stdin=subprocess.DEVNULL, timeout=TIMEOUT_S, check=False
    )
    return ran.returncode, (ran.stdout + ran.stderr).decode()


def reader_goes(command: list[str], folder: Path) -> tuple[int, str]:
    """As in ``| head -1``: the reader closes the pipe after the first bytes."""
    nothing, pipe = subprocess.DEVNULL, subprocess.PIPE
    with subprocess.Popen(command, env=environ(), cwd=folder, stdin=nothing, stdout=pipe, stderr=pipe) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        os.read(process.stdout.fileno(), 10)
        process.stdout.close()
        return process.wait(TIMEOUT_S), process.stderr.read().decode()


def into_full_disk(command: list[str], folder: Path) -> tuple[int, str]:
    with Path("/dev/full").open("wb") as full:
        nothing = subprocess.DEVNULL
        ran = subprocess.run(
            command, env=environ(), cwd=folder, stdin=nothing, stdout=full, stderr=subprocess.PIPE, check=False
        )
    return ran.returncode, ran.stderr.decode()


def without_streams(command: list[str], folder: Path) -> tuple[int, str]:
    """As a supervisor may start it, with standard input and output closed."""
    script = ["sh", "-c", 'exec "$0" "$@" 0<&- 1>&-', *command]
    ran = subprocess.run(script, env=environ(), cwd=folder, stderr=subprocess.PIPE, timeout=TIMEOUT_S, check=False)
    return ran.returncode, ran.stderr.decode()


Terminal = Callable[[list[str], Path], tuple[int, str]]
TERMINALS: dict[str, Terminal] = {
    "80 columns": lambda command, folder: in_terminal(command, folder, 80, environ(TERM="xterm", LANG="C.UTF-8")),
    "60 columns, no colors": lambda command, folder: in_terminal(command, folder, 60, environ(TERM="dumb")),
    "the C locale": lambda command, folder: in_pipe(command, folder, environ(**C_LOCALE)),
    "the C locale, at a terminal": lambda command, folder: in_terminal(
        command, folder, 80, environ(TERM="xterm", **C_LOCALE)
    ),
    "a reader that goes": reader_goes,
    "a full disk": into_full_disk,
    "closed streams": without_streams,
}


@pytest.fixture
def calls(tmp_path: Path):
    """The command line of every verb that ends by itself, with a daemon that has an event of each kind."""
    (tmp_path / "events.ndjson").write_text('{"type":"track","event":"Größe","userId":"u9","messageId":"m9"}\n')
    (tmp_path / "exported.ndjson").write_text("")
    files = {"EVENTS": str(tmp_path / "events.ndjson"), "EXPORTED": str(tmp_path / "exported.ndjson")}
    with DaemonDir(tmp_path).running(px) as daemon:
        daemon.track("ünal@example.com", "Größe → gewählt", properties={"ä": "日本\x1b[31m"})
        daemon.track("6f1c0c80-7f4c-4f3e-9d2a-1f7f8a1b2c3d" * 2, "Poison" + "N" * 100, properties={"ä": "→"})
        daemon.settle()
        daemon.client.post("/v1/pause")
        daemon.track("u3", "Waits")
        yield {
            verb: [
                *(sys.executable, "-m", "sidecar", *verb.split(), *(files.get(word, word) for word in CALLS[verb])),
                *(daemon.daemon_dir.flags if takes(verb, "--config") else []),
            ]
            for verb in ENDING
        }


@contextmanager
def tail(tmp_path: Path) -> Iterator[list[str]]:
    """The command line of ``tail``, while events come."""
    over = threading.Event()
    with DaemonDir(tmp_path).running(px) as daemon, ThreadPoolExecutor(1) as pool:

        def send() -> None:
            while not over.wait(0.2):
                daemon.track("ünal@example.com", "Größe → gewählt", properties={"ä": "日本\x1b[31m"})

        sending = pool.submit(send)
        try:
            yield [sys.executable, "-m", "sidecar", "tail", "--count", "3", *daemon.daemon_dir.flags]
        finally:
            over.set()
        sending.result()


@pytest.mark.parametrize("name", TERMINALS)
def test_every_verb_ends_well_in_every_terminal(calls: dict[str, list[str]], tmp_path: Path, name):
    wrong = {}
    for verb, command in calls.items():
        code, printed = TERMINALS[name](command, tmp_path)
        codes = (*CODES, 2) if "C locale" in name and verb in NOT_ASCII else CODES
        if code not in codes or "Traceback (most" in printed or "Exception ignored" in printed:
            wrong[verb] = (code, printed[-500:])
        elif "columns" in name and verb not in FILES | {"config reference"}:
            columns = int(name.split()[0])
            lines = re.split(r"[\r\n]+", ESCAPES.sub("", printed))
            # A sentence may be longer: the terminal wraps it. A table must not be.
            if wide := [line for line in lines if len(line) > columns and not is_sentence(line)]:
                wrong[verb] = (code, wide)
        if "no colors" in name and "\x1b" in printed:
            wrong[verb] = (code, "escape sequences")
    assert not wrong


NO_COLOR = {"NO_COLOR": lambda command, folder: in_terminal(command, folder, 80, environ(TERM="xterm", NO_COLOR="1"))}


@pytest.mark.parametrize("name", TERMINALS | NO_COLOR)
def test_tail_ends_well_in_every_terminal(tmp_path: Path, name):
    """It printed colors at terminals without escape sequences, and where NO_COLOR is set: click knows neither."""
    with tail(tmp_path) as command:
        code, printed = (TERMINALS | NO_COLOR)[name](command, tmp_path)
    assert code in CODES, printed
    assert "Traceback" not in printed
    assert "Exception ignored" not in printed
    if name in ("NO_COLOR", "60 columns, no colors"):
        assert "\x1b" not in printed


def test_nothing_printed_is_lost_where_the_disk_is_full(calls: dict[str, list[str]], tmp_path: Path):
    code, said = into_full_disk(calls["events list"], tmp_path)
    assert (code, said.strip()) == (
        1,
        "px-sidecar: The output cannot be written: no space is left there; free some space.",
    )


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_a_full_disk_behind_a_global_option_is_one_sentence(tmp_path: Path, option):
    """Both are printed before a verb is chosen: they were a traceback."""
    code, said = into_full_disk([sys.executable, "-m", "sidecar", option], tmp_path)
    assert (code, said.count("\n"), "no space is left" in said) == (1, 1, True)


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_what_is_kept_as_a_file_loses_no_character(calls: dict[str, list[str]], tmp_path: Path, encoding):
    """Latin-1 has no arrow: `dead export` wrote a question mark in its place, perhaps in the only copy of the letter."""
    env = environ(PYTHONIOENCODING=encoding)
    letter = subprocess.check_output(calls["dead export"], env=env, cwd=tmp_path, stderr=subprocess.DEVNULL)
    assert json.loads(letter.decode(encoding))["event"]["properties"] == {"ä": "→"}
    table = subprocess.check_output([*calls["names"], "--csv"], env=env, cwd=tmp_path, stderr=subprocess.DEVNULL)
    assert "Größe → gewählt" in table.decode(), "a file is UTF-8"
