"""CI's own rules: stages, limits, packages and workflows fit together."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
RUN = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
STAGES = ["quick", "whole", "machines", "fleet", "coverage", "console", "sdk", "images", "systemd", "lowest"]


def table(name: str) -> list[list[str]]:
    """The rows of a table in `.ci/run`."""
    found = re.search(rf"^{name}='\n(.*?)^'$", RUN, re.DOTALL | re.MULTILINE)
    assert found
    return [line.split() for line in found[1].splitlines()]


def test_ci_runs_these_stages_in_this_order():
    assert [row[0] for row in table("STAGES")] == STAGES
    listed = subprocess.run([ROOT / ".ci" / "run", "list"], capture_output=True, text=True, check=True).stdout
    assert re.findall(r"^  (\w+) +at most", listed, re.MULTILINE) == STAGES


def test_every_stage_has_a_limit_and_a_function():
    for name, limit, *_ in table("STAGES"):
        assert 0 < int(limit) <= 30, name
        assert f"\nstage_{name}() {{\n" in RUN, name


def test_packages_are_for_stages_that_exist():
    for stages, package, *proof in table("PACKAGES"):
        assert stages == "*" or set(stages.split(",")) <= set(STAGES), package
        assert proof, package


def test_an_unknown_stage_is_refused_with_the_list():
    done = subprocess.run([ROOT / ".ci" / "run", "nothing"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "There is no stage “nothing”." in done.stderr
    assert "quick" in done.stderr


def test_the_second_block_of_the_readme_sets_up_and_tests():
    blocks = re.findall(
        r"^```\w*\n(.*?)^```$", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    assert blocks[0].strip().endswith("px-sidecar demo")
    setup, _, tests = blocks[1].strip().rpartition(" && ")
    assert setup.startswith("python3 -m venv .venv && ")
    assert tests.startswith(".venv/bin/pytest")


@pytest.mark.parametrize("workflow", sorted((ROOT / ".github" / "workflows").glob("*.yml")), ids=lambda path: path.name)
def test_workflows_run_what_developers_run(workflow):
    """Every shell step of a workflow is a script of this repository, apart from apt-get."""
    for command in re.findall(r"^ *(?:- )?run: (?!\|)(.*)$", workflow.read_text(encoding="utf-8"), re.MULTILINE):
        assert re.match(r"(\.ci/(run|release)\b|apt-get )", command), command


def test_releases_are_made_of_these_steps():
    listed = subprocess.run([ROOT / ".ci" / "release", "list"], capture_output=True, text=True, check=True).stdout
    steps = ["dist", "client", "check", "sbom", "audit", "deb", "image", "notes", "sums", "publish"]
    assert re.findall(r"^  (\w+) ", listed, re.MULTILINE) == steps
    script = (ROOT / ".ci" / "release").read_text(encoding="utf-8")
    assert all(f"\nstep_{step}() " in script for step in steps)


@pytest.mark.parametrize("arguments", [["nothing"], ["version", "1.2"], ["version", ""]], ids=" ".join)
def test_a_wrong_step_or_version_of_a_release_is_refused(arguments):
    done = subprocess.run([ROOT / ".ci" / "release", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
