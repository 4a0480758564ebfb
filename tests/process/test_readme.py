"""The commands and examples in README.md work as written."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import px_sidecar_client
import pytest
from process_harness import ProcessHarness, wait_until

from sidecar.sandbox.server import free_ports

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def block(section: str, language: str, number: int = 0) -> str:
    """Return the ``number``-th block of code in a language below a heading."""
    text = re.split(rf"^## {section}$", README, flags=re.MULTILINE)[1]
    text = re.split(r"^## ", text, flags=re.MULTILINE)[0]
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)[number]


def type_in(harness: ProcessHarness, line: str) -> subprocess.CompletedProcess[str]:
    """Run a line in a shell, with this checkout's command and this test's addresses."""
    line = line.replace("127.0.0.1:8321", harness.http).replace("/run/px-sidecar/events.sock", str(harness.unix))
    folder = Path(sys.executable).parent
    environ = harness.environ(PX_SIDECAR_CONFIG=str(harness.folder / "config.toml"))
    environ["PATH"] = f"{folder}{os.pathsep}{environ['PATH']}"
    return subprocess.run(line, shell=True, env=environ, capture_output=True, text=True, timeout=60)


@pytest.fixture
def running(harness: ProcessHarness) -> ProcessHarness:
    harness.start_sandbox()
    harness.write_config()
    harness.start_daemon()
    return harness


def test_the_commands_to_operate_work(running: ProcessHarness):
    lines = block("Operate", "sh").splitlines()
    assert len(lines) == 8
    for line in lines:
        ran = type_in(running, line)
        assert ran.returncode == 0, (line, ran)
        assert ran.stdout + ran.stderr, line
    assert running.status()["delivered"] == 1


def test_the_commands_to_send_events_are_answered_with_success(running: ProcessHarness):
    for line in block("Connect an app", "sh").splitlines():
        if line.startswith("echo") and shutil.which("nc") is None:
            continue
        ran = type_in(running, line)
        assert ran.stdout.strip() == '{"success":true,"accepted":1}', (line, ran)
    wait_until(lambda: running.status()["delivered"] >= 1, what="the delivery")


def test_the_client_example_works(running: ProcessHarness):
    code = block("Connect an app", "python", 1).replace("Client()", f"Client({str(running.unix)!r})")
    environ = os.environ | {"PYTHONPATH": str(Path(px_sidecar_client.__file__).parent)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, env=environ)
    assert done.returncode == 0, done.stderr
    assert running.status()["accepted"] == 1


def test_a_second_client_beside_the_vendors_works(running: ProcessHarness):
    pytest.importorskip("segment.analytics", reason="the Segment SDK is not installed")
    code = block("Connect an app", "python", 0).replace("http://127.0.0.1:8321", f"http://{running.http}")
    # The vendor's own client must not leave this machine.
    code = code.replace('Client("YOUR_SEGMENT_WRITE_KEY")', 'Client("YOUR_SEGMENT_WRITE_KEY", send=False)')
    done = subprocess.run([sys.executable, "-c", code + "px.flush()\n"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert running.status()["accepted"] == 1


@pytest.mark.whole
def test_a_second_client_for_node_works(running: ProcessHarness):
    folder = Path(__file__).parents[1] / "sdk" / "node"
    if shutil.which("node") is None or not (folder / "node_modules").exists():
        pytest.skip("node or its packages are not installed")
    code = block("Connect an app", "js").replace("http://127.0.0.1:8321", f"http://{running.http}")
    code = code.replace('writeKey: "YOUR_SEGMENT_WRITE_KEY"', 'writeKey: "x", disable: true')
    path = folder / "second_client.mjs"
    path.write_text(code + "await px.closeAndFlush({ timeout: 5000 });\n")
    try:
        done = subprocess.run(["node", str(path)], capture_output=True, text=True, timeout=60, cwd=folder)
    finally:
        path.unlink()
    assert done.returncode == 0, done.stderr
    assert running.status()["accepted"] == 1


def test_the_command_of_the_first_minute_starts(tmp_path: Path):
    line = block("Your own event in a minute", "sh").strip()
    assert line == ".venv/bin/px-sidecar dev"
    with subprocess.Popen(
        [sys.executable, "-m", "sidecar", "dev", "--listen", f"127.0.0.1:{free_ports(1)[0]}"],
        cwd=tmp_path, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            assert any("curl -s" in line for line in iter(process.stdout.readline, ""))
        finally:
            process.terminate()


def test_the_example_configuration_loads(harness: ProcessHarness):
    path = harness.folder / "config.toml"
    path.write_text(block("Configure", "toml"))
    ran = type_in(harness, "px-sidecar config show --json")
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["mapping"]["attributes"]["drop"] == ["email"]


def test_the_mapping_example_maps_to_a_request(harness: ProcessHarness):
    harness.write_config()
    ran = type_in(harness, block("Configure", "sh").strip())
    assert json.loads(ran.stdout)["requests"][0]["body"]["attributes"] == {"featureName": "Export"}


def test_the_readme_names_exactly_the_verbs_that_exist():
    from sidecar.cli import VERBS

    named = set(re.findall(r"`?px-sidecar(?: --instance NAME)? ([a-z]+)", README))
    assert named - set(VERBS) == set()
    assert set(VERBS) - named == set()
