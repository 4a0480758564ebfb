"""`px-sidecar dev`, as a developer runs it: no configuration, no key, a folder of the app."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Barrier

import pytest
from click.testing import CliRunner

from sidecar.cli import main
from sidecar.cli.dev import _config
from sidecar.errors import Failed
from sidecar.sandbox.server import free_ports

# What macOS and others lack, taken away before anything of px-sidecar is loaded; trio is adapted to each system when it is built.
OTHER_SYSTEM = """
import ctypes, os, pathlib, socket, time
import trio
del time.CLOCK_BOOTTIME, socket.SO_PEERCRED, socket.SOCK_CLOEXEC, socket.SOCK_NONBLOCK, os.posix_fallocate
if hasattr(os, "sched_getaffinity"):
    del os.sched_getaffinity
ctypes.CDLL = lambda *_: object()
read_text, is_linux = pathlib.Path.read_text, lambda path: str(path).startswith(("/proc/", "/sys/"))
def without_proc(path, *arguments, **named):
    if is_linux(path):
        raise FileNotFoundError(2, "No such file or directory", str(path))
    return read_text(path, *arguments, **named)
pathlib.Path.read_text = without_proc
from sidecar.cli import main
main()
"""


class Dev:
    def __init__(self, folder, *flags, python=("-m", "sidecar")):
        (port,) = free_ports(1)
        self.folder = folder
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, *python, "dev", "--listen", f":{port}", *flags]
        # Variables of an operator on the same host must not change it.
        environ = os.environ | {"PX_SIDECAR_LISTEN_HTTP": "127.0.0.1:1", "PX_SIDECAR_PX_API_KEY": "wrong"}
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.greeting = [*self._paragraph(), *self._paragraph()]

    def _paragraph(self):
        """Read lines up to an empty one."""
        lines = []
        for line in iter(self.process.stdout.readline, "\n"):
            assert line, self.process.stderr.read()
            lines.append(line)
        return lines

    def track(self, **fields):
        body = json.dumps({"event": "Feature Used", "userId": "u-1"} | fields).encode()
        with urllib.request.urlopen(f"{self.url}/v1/track", body, timeout=5) as answer:
            return json.load(answer)

    def line(self, word):
        """Read lines up to the first that holds ``word``."""
        for line in iter(self.process.stdout.readline, ""):
            if word in line:
                return line
        raise AssertionError(self.process.stderr.read())

    def interrupt(self):
        self.process.send_signal(signal.SIGINT)
        out, err = self.process.communicate(timeout=20)
        return out, err


@pytest.fixture
def short_folder():
    """A folder for sockets: pytest's own names are too long for them (unix(7))."""
    with TemporaryDirectory(prefix="pxs-") as folder:
        yield Path(folder)


@contextmanager
def running(folder, *flags, python=("-m", "sidecar")):
    dev = Dev(folder, *flags, python=python)
    try:
        yield dev
    finally:
        dev.process.terminate()  # not killed: it removes its folder
        try:
            dev.process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            dev.process.kill()
            dev.process.communicate()


def test_an_event_is_on_the_screen_and_ctrl_c_prints_the_account(tmp_path, short_folder):
    with running(short_folder) as dev:
        assert any(f"curl -s {dev.url}/v1/track" in line for line in dev.greeting)
        assert dev.track() == {"success": True, "accepted": 1}
        assert "Feature Used of u-1" in dev.line("delivered")
        dev.track(userId=None)
        dev.line("give the call a userId")
        assert (short_folder / "px-sidecar.sock").exists()
        assert any(f'Client("{short_folder.resolve()}/px-sidecar.sock")' in line for line in dev.greeting)
        out, err = dev.interrupt()
    assert out.splitlines()[-1] == "accepted=2 delivered=1 dropped=1 dead=0 pending=0 duplicates=0"
    assert err == ""
    assert dev.process.returncode == 0
    assert list(short_folder.iterdir()) == []


def test_other_verbs_work_with_the_configuration_that_it_prints(tmp_path, short_folder):
    """`send --verify` was refused for a missing API key, though the stand-in could be asked."""
    with running(short_folder) as dev:
        config = dev.line("Other verbs").split("--config ")[-1].strip()
        for verb in (["send", "Verified", "--user", "u-1", "--verify"], ["status"]):
            ran = subprocess.run(
                [sys.executable, "-m", "sidecar", *verb, "--config", config],
                capture_output=True,
                text=True,
                timeout=30,
                cwd=tmp_path,
            )
            assert ran.returncode == 0, (verb, ran.stdout, ran.stderr)


def test_state_is_kept_and_what_was_pending_is_delivered_later(tmp_path, short_folder):
    state = short_folder / "state"
    with running(tmp_path, "--state", str(state), "--fail", "outage") as dev:
        assert dev.track() == {"success": True, "accepted": 1}
        dev.line("waiting")
        assert "pending=1" in dev.interrupt()[0]
    with running(tmp_path, "--state", str(state)) as dev:
        dev.line("delivered")
        out, _ = dev.interrupt()
    assert out.splitlines()[-1] == "accepted=1 delivered=1 dropped=0 dead=0 pending=0 duplicates=0"


def test_a_port_in_use_is_one_sentence_with_what_to_do(tmp_path):
    with running(tmp_path) as dev:
        address = dev.url.removeprefix("http://")
        again = subprocess.run(
            [sys.executable, "-m", "sidecar", "dev", "--listen", address],
            capture_output=True,
            text=True,
            timeout=20,
            cwd=tmp_path,
        )
    assert again.returncode == 1
    assert "--listen" in again.stderr
    assert len(again.stderr.splitlines()) == 1


def test_a_second_session_leaves_the_folder_of_the_first_as_it_is(tmp_path):
    """It wrote its own addresses into the configuration, and cut the log of what PX got, before it failed."""
    state = tmp_path / "my state"
    with running(tmp_path, "--state", "my state") as dev:
        assert shlex.split(dev.line("Other verbs"))[-1].endswith("my state/config.toml"), "quoted for a shell"
        before = (state / "config.toml").read_text()
        options = ["dev", "--listen", f":{free_ports(1)[0]}", "--state", str(state)]
        result = CliRunner().invoke(main, options)
        assert (state / "config.toml").read_text() == before
    assert (result.exit_code, type(result.exception)) == (1, SystemExit)
    assert "(another process uses it); name another folder with --state" in result.stderr


@pytest.mark.parametrize("state", ["/proc/sys", "taken"])
def test_a_state_folder_that_cannot_be_written_is_one_sentence(tmp_path, monkeypatch, state):
    monkeypatch.chdir(tmp_path)
    Path("taken/config.toml").mkdir(parents=True)
    result = CliRunner().invoke(main, ["dev", "--listen", f":{free_ports(1)[0]}", "--state", state])
    assert (result.exit_code, type(result.exception)) == (1, SystemExit)
    assert "name another folder with --state" in result.stderr


def test_sessions_that_begin_together_take_different_ports(tmp_path):
    """Each chose the usual port of the stand-in before any of them listened on it, and all but one ended in a traceback."""

    def stand_in(number: int) -> str:
        folder = tmp_path / str(number)
        folder.mkdir()
        with running(folder) as dev:
            begun.wait(30)  # none ends before all have begun
            return dev.line("What PX got")

    begun = Barrier(4)
    with ThreadPoolExecutor(4) as threads:
        assert len(set(threads.map(stand_in, range(4)))) == 4


def test_a_closed_pipe_ends_it_without_a_traceback(tmp_path):
    with running(tmp_path) as dev:
        dev.process.stdout.close()
        deadline_s = time.monotonic() + 10
        while dev.process.poll() is None and time.monotonic() < deadline_s:
            try:
                dev.track()
            except OSError:
                break
            time.sleep(0.1)
        dev.process.wait(10)
        assert "Traceback" not in dev.process.stderr.read()
        dev.process.stdout = None


@pytest.mark.whole
def test_it_needs_no_call_that_only_linux_has(short_folder):
    with running(short_folder, python=("-c", OTHER_SYSTEM)) as dev:
        config = dev.line("Other verbs").split("--config ")[-1].strip()
        dev.track()
        dev.line("delivered")
        for verb in (["status"], ["check"], ["pause"], ["resume"], ["trace", "--user", "u-1"]):
            ran = subprocess.run(
                [sys.executable, "-c", OTHER_SYSTEM, *verb, "--config", config],
                capture_output=True,
                text=True,
                timeout=30,
            )
            assert ran.returncode == 0, (verb, ran.stdout, ran.stderr)
        out, err = dev.interrupt()
    assert out.splitlines()[-1] == "accepted=1 delivered=1 dropped=0 dead=0 pending=0 duplicates=0"
    assert err == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_every_way_to_end_it_prints_the_account(tmp_path, number):
    with running(tmp_path) as dev:
        dev.process.send_signal(number)
        out, _ = dev.process.communicate(timeout=20)
    assert out.splitlines()[-1].startswith("accepted=0")


def test_dev_overwrites_no_configuration_but_its_own(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text('[px]\nregion = "eu"\n')
    with pytest.raises(Failed, match="not overwritten"):
        _config(tmp_path, "127.0.0.1:8321", 8399)
    assert path.read_text() == '[px]\nregion = "eu"\n'
    path.unlink()
    for _ in range(2):
        _config(tmp_path, "127.0.0.1:8321", 8399)  # its own it replaces
