"""The pytest plugin, as the tests of an app use it: in a pytest of its own."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import px_sidecar_client

TESTS = """
import os
from px_sidecar_client import Client

def test_events_are_those_that_px_got(px_sidecar):
    with Client(px_sidecar.path) as client:
        client.track("u-1", "Report Exported", {"rows": 3})
        client.track(None, "Of Nobody", anonymous_id="a")
    (event,) = px_sidecar.events()
    assert event["eventName"] == "Report Exported"
    assert event["attributes"] == {"rows": 3}
    assert px_sidecar.status()["dropped_by_reason"] == {"no_user": 1}

def test_each_test_has_a_sidecar_of_its_own(px_sidecar):
    assert px_sidecar.events() == []
    assert px_sidecar.status()["accepted"] == 0
"""


def run_pytest(folder: Path, *flags: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    # The app has imported the client before pytest registers it as a plugin.
    (folder / "conftest.py").write_text('import px_sidecar_client\npytest_plugins = ["px_sidecar_client"]\n')
    environ = os.environ | {
        "PYTHONPATH": str(Path(px_sidecar_client.__file__).parent),
        "http_proxy": "http://127.0.0.1:1",  # not the way to this host
        "no_proxy": "",
        "PATH": path or f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-W",
        "error",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        *flags,
        str(folder),
    ]
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=100)


def test_the_fixture_runs_a_sidecar_and_a_stand_in_for_px(tmp_path):
    (tmp_path / "test_app.py").write_text(TESTS)
    ran = run_pytest(tmp_path, "--durations=0")
    assert "2 passed" in ran.stdout, ran.stdout + ran.stderr
    setups = [float(seconds) for seconds in re.findall(r"([\d.]+)s setup", ran.stdout)]
    assert len(setups) == 2
    # Half a second on a machine that does nothing else. What bounds it is the start of two processes side by side.
    began_s = time.perf_counter()
    imports = "import sidecar.daemon, sidecar.cli.run"
    bare = [subprocess.Popen([sys.executable, "-c", imports]) for _ in range(2)]
    assert [process.wait(60) for process in bare] == [0, 0]
    assert min(setups) < 4 * (time.perf_counter() - began_s)
