"""What README.md says to type is typed."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from stage import Stage, wait_until

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def block(section: str, language: str, number: int = 0) -> str:
    """The ``number``-th block of code in a language below a heading."""
    text = re.split(rf"^## {section}$", README, flags=re.MULTILINE)[1]
    text = re.split(r"^## ", text, flags=re.MULTILINE)[0]
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)[number]


def type_in(stage: Stage, line: str) -> subprocess.CompletedProcess[str]:
    """Run a line as a person would, with this checkout's command and this test's addresses."""
    line = line.replace("127.0.0.1:8321", stage.http).replace("/run/px-sidecar/events.sock", str(stage.unix))
    folder = Path(sys.executable).parent
    environ = stage.environ(PX_SIDECAR_CONFIG=str(stage.folder / "config.toml"))
    environ["PATH"] = f"{folder}{os.pathsep}{environ['PATH']}"
    return subprocess.run(line, shell=True, env=environ, capture_output=True, text=True, timeout=60)


@pytest.fixture
def running(stage: Stage) -> Stage:
    stage.start_sandbox()
    stage.write_config()
    stage.start_daemon()
    return stage


def test_the_operating_section_works_as_it_is_written(running: Stage):
    lines = block("Operate", "sh").splitlines()
    assert len(lines) == 8
    for line in lines:
        ran = type_in(running, line)
        assert ran.returncode == 0, (line, ran)
        assert ran.stdout + ran.stderr, line
    assert running.status()["delivered"] == 1


def test_events_by_hand_are_answered_as_it_says(running: Stage):
    for line in block("Connect an app", "sh").splitlines():
        if line.startswith("echo") and shutil.which("nc") is None:
            continue
        ran = type_in(running, line)
        assert ran.stdout.strip() == '{"success":true,"accepted":1}', (line, ran)
    wait_until(lambda: running.status()["delivered"] >= 1, what="the delivery")


def test_the_client_example_works(running: Stage):
    code = block("Connect an app", "python").replace("Client()", f"Client({str(running.unix)!r})")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert running.status()["accepted"] == 1


def test_the_example_configuration_is_one(stage: Stage):
    path = stage.folder / "config.toml"
    path.write_text(block("Configure", "toml"))
    ran = type_in(stage, "px-sidecar config show --json")
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["mapping"]["attributes"]["drop"] == ["email"]


def test_the_mapping_example_gives_a_request(stage: Stage):
    stage.write_config()
    ran = type_in(stage, block("Configure", "sh").strip())
    assert json.loads(ran.stdout)["requests"][0]["body"]["attributes"] == {"featureName": "Export"}


def test_every_verb_that_it_names_exists_and_every_verb_is_named():
    from sidecar.cli import VERBS

    named = set(re.findall(r"`?px-sidecar(?: --instance NAME)? ([a-z]+)", README))
    assert named - set(VERBS) == set()
    assert set(VERBS) - named == set()
