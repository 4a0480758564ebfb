"""Verbs that start px-sidecar again use the program that was started: the Debian package's libraries are its own."""

import subprocess
import sys
from pathlib import Path

import pytest

from sidecar.cli.common import own_command
from sidecar.cli.init_user import unit_text

ROOT = Path(__file__).parents[2]
PROGRAM = """#!{python} -sP
import sys
sys.path[:0] = {path!r}
from sidecar.cli import main
main()
"""


def test_a_module_starts_itself_as_a_module(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/sidecar/__main__.py"])
    assert own_command() == [sys.executable, "-m", "sidecar"]


def test_a_program_starts_itself(monkeypatch, tmp_path):
    program = tmp_path / "px-sidecar"
    program.write_text("#!/bin/sh\n")
    monkeypatch.setattr(sys, "argv", [str(program)])
    assert own_command() == [sys.executable, "-m", "sidecar"], "it cannot be run"
    program.chmod(0o755)
    assert own_command() == [str(program)]
    assert f"ExecStart={program} run --config" in unit_text(tmp_path / "config.toml")


@pytest.mark.whole
def test_the_demo_works_where_only_the_program_finds_its_libraries(tmp_path):
    """As the Debian package's: its `demo` failed with "No module named sidecar"."""
    program = tmp_path / "px-sidecar"
    # The base interpreter has none of these libraries, as on a host with the package.
    program.write_text(PROGRAM.format(python=sys._base_executable, path=[str(ROOT), *filter(None, sys.path)]))
    program.chmod(0o755)
    command = [program, "demo", "--events", "40"]
    environ = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONNOUSERSITE": "1"}
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environ, cwd=tmp_path, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.splitlines()[-1].endswith("lost=0")
