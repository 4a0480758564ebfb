"""A real user without root: `init` writes below the home directory, and every verb finds it without a flag."""

import contextlib
import json
import os
import pwd
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from process_harness import KEY, ProcessHarness, wait_until

from sidecar.config.file import DEFAULT_PATH

ROOT = Path(__file__).parents[2]
# A user that needs no root can be made by root alone.
pytestmark = [
    pytest.mark.whole,
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("useradd"), reason="needs root, to make a user"),
    pytest.mark.skipif(Path(DEFAULT_PATH).exists(), reason=f"{DEFAULT_PATH} is this host's configuration"),
]
NAME = "pxs-plain-user"


class PlainUser:
    """A user with a home of its own; commands run through ``su``, without this process's environment."""

    def __init__(self, home: Path, python: str, more: dict[str, str]) -> None:
        self.home = home
        self._python = python
        self._environ = {"HOME": str(home), "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"} | more

    def command(self, *arguments: str) -> list[str]:
        words = ["env", "-i", *(f"{key}={value}" for key, value in self._environ.items()), self._python, *arguments]
        script = " ".join("'" + word.replace("'", "'\\''") + "'" for word in words)
        return ["su", NAME, "-s", "/bin/sh", "-c", f"cd {self.home} && exec {script}"]

    def run(self, *verb: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        command = self.command("-m", "sidecar", *verb)
        return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60, check=False)


def reachable_python(try_it) -> str | None:
    """Return an interpreter that any user can run: this one, or the system's of the same version."""
    usual = f"/usr/bin/python{sys.version_info[0]}.{sys.version_info[1]}"
    for python in (sys.executable, usual):
        if Path(python).exists() and try_it(python):
            return python
    return None


@pytest.fixture
def user(harness: ProcessHarness) -> Iterator[PlainUser]:
    harness.start_sandbox()
    libraries = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *sys.path}
    more = {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "sidecar/client"), *filter(None, map(str, libraries))]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PX_SIDECAR_PX_BASE_URL": harness.sandbox_url,
        "PX_SIDECAR_LISTEN_HTTP": harness.http,
    }
    with TemporaryDirectory(prefix="pxs-") as folder:
        Path(folder).chmod(0o755)
        home = Path(folder, "home")
        subprocess.run(["useradd", "--create-home", "--home-dir", home, "--no-log-init", NAME], check=True)
        try:

            def works(python: str) -> bool:
                tried = PlainUser(home, python, more).command("-c", "import sidecar.cli, trio, msgspec, click")
                return subprocess.run(tried, capture_output=True, check=False).returncode == 0

            python = reachable_python(works)
            if python is None:
                pytest.skip("no interpreter with these libraries that another user can run")
            yield PlainUser(home, python, more)
        finally:
            harness.end()
            subprocess.run(["userdel", "--force", NAME], check=True, capture_output=True)


def test_a_user_without_root_goes_from_init_to_a_delivered_event(harness: ProcessHarness, user: PlainUser):
    made = user.run("init", "--yes", "--property-key", "AP-XXXXXXXXXX-2", "--key-from", "-", stdin=f"{KEY}\n")
    assert made.returncode == 0, made.stderr
    config = user.home / ".config/px-sidecar/config.toml"
    key_file = config.with_name("api_key")
    assert config.exists()
    assert key_file.stat().st_mode & 0o777 == 0o600
    assert key_file.stat().st_uid == pwd.getpwnam(NAME).pw_uid
    assert (user.home / ".config/systemd/user/px-sidecar.service").exists()

    assert "`systemctl --user start px-sidecar`" in user.run("status").stderr

    with (harness.folder / "run.log").open("ab") as log:
        daemon = subprocess.Popen(
            user.command("-m", "sidecar", "run"), stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )
    harness.processes.append(daemon)
    wait_until(lambda: daemon.poll() is not None or user.run("status").returncode == 0, what="the daemon's start")
    assert daemon.poll() is None, harness.log("run")

    sent = user.run("send", "Feature Used", "--user", "u1", "--wait")
    assert sent.returncode == 0, sent.stderr
    assert "delivered" in sent.stdout
    assert f"Using {config}." in sent.stderr
    checked = json.loads(user.run("check", "--json").stdout)
    assert [result for result in checked["findings"] if result["level"] == "error"] == []
    for verb in (["events", "list"], ["config", "show"], ["pause"], ["resume"], ["reload"], ["dead", "list"]):
        ran = user.run(*verb)
        assert ran.returncode == 0, (verb, ran.stderr)
    assert (user.home / ".local/state/px-sidecar/outbox.db").exists()
    with contextlib.suppress(ProcessLookupError):
        daemon.terminate()
    wait_until(lambda: user.run("status").returncode == 69, what="the end")
