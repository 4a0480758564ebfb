"""Completion in three shells, and the man page; both are generated from the verbs."""

import os
import shutil
import subprocess
import sys

import pytest

from sidecar.cli import VERBS
from sidecar.cli.manual import manual

COMMAND = [sys.executable, "-m", "sidecar"]


def complete(shell: str, *words: str) -> str:
    """Return what the completion function of the shell receives for the last word."""
    line = " ".join(("px-sidecar", *words))
    number = words[-1] if shell == "fish" else str(len(words))
    environ = os.environ | {"_PX_SIDECAR_COMPLETE": f"{shell}_complete", "COMP_WORDS": line, "COMP_CWORD": number}
    code = "from sidecar.cli import main; main(prog_name='px-sidecar')"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environ).stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_verbs_and_options_are_completed(shell: str):
    assert "status" in complete(shell, "sta")
    assert "demo" not in complete(shell, "sta")
    assert "--json" in complete(shell, "status", "--j")
    assert "list" in complete(shell, "dead", "li")
    if shell != "bash":
        assert VERBS["status"] in complete(shell, "sta")


def test_completing_a_verb_imports_no_verb():
    code = (
        "import sys, click; from click.shell_completion import ShellComplete; from sidecar.cli import VERBS, main\n"
        "found = main.shell_complete(click.Context(main), 're')\n"
        "assert [item.value for item in found] == [name for name in VERBS if name.startswith('re')], found\n"
        "assert not [name for name in sys.modules if name.startswith('sidecar.cli.')], sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_bash_script_completes_in_bash(tmp_path):
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("bash is not installed")
    code = "from sidecar.cli import main; main(prog_name='px-sidecar')"
    environ = os.environ | {"_PX_SIDECAR_COMPLETE": "bash_source"}
    script = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environ
    ).stdout
    program = tmp_path / "px-sidecar"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{code}"\n')
    program.chmod(0o755)
    asked = f'{script}\nCOMP_WORDS=(px-sidecar pau); COMP_CWORD=1; _px_sidecar_completion px-sidecar; echo "${{COMPREPLY[@]}}"'
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run([bash, "-c", asked], capture_output=True, text=True, check=True, env=os.environ | path)
    assert done.stdout.split() == ["pause"], done


def test_the_man_page_lists_verbs_options_and_exit_codes():
    page = manual()
    assert page.startswith(".TH PX-SIDECAR 1 ")
    for verb in VERBS:
        assert f"\n.SS {verb}" in page
    assert r"\-\-watch" in page
    assert "\n.SS dead retry" in page
    assert all(f"\n.B {code}\n" in page for code in (0, 1, 2, 69, 78))
    assert not [line for line in page.split("\n") if line.startswith("'")]
    if shutil.which("man") and shutil.which("groff"):
        command = ["groff", "-man", "-ww", "-z", "-Kutf8"]
        assert subprocess.run(command, input=page, capture_output=True, text=True, check=True).stderr == ""
