"""CI's own rules: stages, limits, packages and workflows fit together."""

import os
import re
import shutil
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


WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def jobs(workflow: Path) -> dict[str, str]:
    """The text of each job."""
    _, _, text = workflow.read_text(encoding="utf-8").partition("\njobs:\n")
    names = re.split(r"^  (\w+):.*\n", text, flags=re.MULTILINE)[1:]
    return dict(zip(names[::2], names[1::2], strict=True))


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_to_commits(workflow):
    """A tag or a branch of an action can be moved; .github/dependabot.yml proposes newer commits."""
    text = workflow.read_text(encoding="utf-8")
    used = re.findall(r"uses: (.*)", text)
    assert used
    for action in used:
        assert re.match(r"\./|[\w.-]+/[\w.-]+@[0-9a-f]{40} # v\d", action), action
    # Later steps run code of others: the token of the checkout is not left for them.
    assert text.count("actions/checkout@") == text.count("persist-credentials: false")


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_may_read_and_only_publishing_jobs_may_write(workflow):
    assert "\npermissions:\n  contents: read\n\n" in workflow.read_text(encoding="utf-8")
    allowed = {
        "sign": {"id-token", "attestations"},
        "index": {"id-token"},
        "image": {"packages", "id-token", "attestations"},
        "page": {"contents"},
    }
    for name, text in jobs(workflow).items():
        assert set(re.findall(r"^      ([\w-]+): write", text, re.MULTILINE)) == allowed.get(name, set()), name
        assert ("write" in text) == (name in allowed), name


def test_a_release_publishes_only_what_is_tagged_tested_and_signed():
    found = jobs(ROOT / ".github" / "workflows" / "release.yml")
    assert "needs: [ci, build, deb]\n    if: github.event_name == 'push'" in found["sign"]
    assert all("needs: sign\n" in found[name] and "environment: release" in found[name] for name in ("index", "image"))
    assert "needs: [index, image]\n" in found["page"]
    # The action must run once in a job, and publishes the two projects from the folders that the steps write.
    assert found["index"].count("uses: pypa/gh-action-pypi-publish@") == 1
    assert "project: [px-sidecar, px-sidecar-client]" in found["index"]


def test_a_workflow_gives_the_stages_the_time_of_their_limits():
    """The limit of a stage ends it with a summary; that of a job ends everything without a word."""
    limits = {row[0]: int(row[1]) for row in table("STAGES")}
    setup = re.search(r"^SETUP_LIMIT=(\d+)$", RUN, re.MULTILINE)
    assert setup
    for name, text in jobs(ROOT / ".github" / "workflows" / "ci.yml").items():
        minutes = re.search(r"timeout-minutes: (\d+)", text)
        assert minutes, name
        for stages in re.findall(r"run: \.ci/run(.*)", text):
            needed = sum(limits[stage] for stage in stages.split() or STAGES)
            assert int(minutes[1]) > int(setup[1]) + needed, name


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_steps_that_workflows_name_exist(workflow):
    for script, words in re.findall(r"run: \.ci/(run|release)(.*)", workflow.read_text(encoding="utf-8")):
        text = (ROOT / ".ci" / script).read_text(encoding="utf-8")
        for word in words.split():
            prefix = {"run": "stage", "release": "step"}[script]
            assert word == "--push" or f"\n{prefix}_{word}() " in text, word


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
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


def copy_of_release(folder: Path, version: str, changelog: str) -> Path:
    """A checkout with `.ci/release` and what it reads of a version."""
    (folder / ".ci").mkdir()
    for name in ("release", "release-tools.txt"):
        shutil.copy(ROOT / ".ci" / name, folder / ".ci")
    (folder / "pyproject.toml").write_text(f'[project]\nversion = "{version}"\n', encoding="utf-8")
    (folder / "CHANGELOG.md").write_text(changelog, encoding="utf-8")
    return folder / ".ci" / "release"


def run_release(script: Path, *steps: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    folder = script.parents[1]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GITHUB_")}
    environ = {**clean, "DIST": str(folder / "dist"), "PATH": f"{folder}/bin:{os.environ['PATH']}", **environ}
    return subprocess.run([script, *steps], capture_output=True, text=True, check=False, env=environ)


@pytest.mark.parametrize(
    ("tag", "heading", "said"),
    [
        ("v1.2.0", "## [1.2.0] - 2026-12-01", ""),
        ("v1.2.1", "## [1.2.0] - 2026-12-01", "The tag is v1.2.1, the version is 1.2.0; tag v1.2.0."),
        ("v1.2.0", "## [1.2.0] - unreleased", "CHANGELOG.md has no date for version 1.2.0"),
        ("v1.2.0", "## [Unreleased]", "CHANGELOG.md has no date for version 1.2.0"),
    ],
)
def test_every_step_on_a_wrong_tag_fails(tmp_path, tag, heading, said):
    """The first jobs of the workflow end there; the check before was in the last one, behind the package index."""
    script = copy_of_release(tmp_path, "1.2.0", f"# Changelog\n\n{heading}\n\n- Text.\n")
    done = run_release(script, "notes", GITHUB_REF_TYPE="tag", GITHUB_REF_NAME=tag)
    assert (done.returncode, said in done.stderr) == (1 if said else 0, True), done.stderr
    assert (tmp_path / "dist" / "NOTES.md").exists() == (not said)


@pytest.mark.parametrize(("version", "final"), [("1.2.0", True), ("1.2.0rc1", False)])
def test_a_pre_release_is_neither_latest_nor_a_final_release(tmp_path, version, final):
    script = copy_of_release(tmp_path, version, f"## [{version}] - 2026-12-01\n")
    (tmp_path / "systemd" / "containers").mkdir(parents=True)
    image = shutil.copy(ROOT / "systemd/containers/build-image", tmp_path / "systemd/containers")
    (tmp_path / "systemd" / "containers" / "Containerfile").touch()
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist" / "file.whl").touch()
    programs = {
        "git": r"printf 'pyproject.toml\0'",
        "gh": 'printf "%s " gh "$@" >>"$(dirname "$0")/calls"',
        "docker": """printf '%s ' docker "$@" >>"$(dirname "$0")/calls"
            while [ "$1" != --metadata-file ]; do shift; done; echo '{"a": {"b": 1}, "containerimage.digest": "sha256:12ab"}' >"$2" """,
    }
    (tmp_path / "bin").mkdir()
    for name, text in programs.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / ".ci/release").chmod(0o755)
    Path(image).chmod(0o755)
    outputs = tmp_path / "outputs"
    on_tag = {"GITHUB_REF_TYPE": "tag", "GITHUB_REF_NAME": f"v{version}", "GITHUB_OUTPUT": str(outputs)}
    done = run_release(script, "image", "--push", REGISTRY="ghcr.io/Owner", **on_tag)
    assert done.returncode == 0, done.stderr
    assert outputs.read_text() == "name=ghcr.io/owner/px-sidecar\ndigest=sha256:12ab\n"
    assert run_release(script, "publish", **on_tag).returncode == 0
    calls = (tmp_path / "bin" / "calls").read_text()
    assert f"--tag ghcr.io/owner/px-sidecar:{version} " in calls
    assert ("--tag ghcr.io/owner/px-sidecar:latest " in calls) == final
    assert (" --prerelease " in calls) == (not final)
    assert f"{tmp_path}/dist/file.whl" in calls
    assert run_release(script, "publish").returncode == 1, "without a tag"


def test_a_new_version_is_written_wherever_the_old_one_stands(tmp_path):
    script = copy_of_release(tmp_path, "0", "")
    names = ["pyproject.toml", "sidecar/__init__.py", "systemd/containers"]
    subprocess.run(["cp", "-r", "--parents", *names, str(tmp_path)], cwd=ROOT, check=True)
    found = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert found
    assert run_release(script, "version", "8.7.6").returncode == 0
    changed = [path for path in tmp_path.rglob("*") if path.is_file() and "8.7.6" in path.read_text(encoding="utf-8")]
    assert len(changed) == 7
    left = [path for path in changed if re.search(rf"(?<![\d.=]){re.escape(found[1])}(?![\d.])", path.read_text())]
    assert left == []
