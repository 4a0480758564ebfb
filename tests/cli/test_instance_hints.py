"""With `--instance NAME` each command that a verb or the daemon names is that daemon's."""

import ast
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from running_daemon import DaemonDir, always, wait_until

from sidecar import cli
from sidecar.config import ConfigFile, LogConfig
from sidecar.errors import with_instance
from sidecar.observe import LogLines, configure

CHECKS = {"check.py"}  # whose texts are results of `check`, which names it in each
SOURCES = sorted(path for path in Path(cli.__file__).parent.glob("*.py") if path.name not in CHECKS)


@pytest.mark.parametrize(
    ("plain", "named"),
    [
        ("run `px-sidecar status --json`", "run `px-sidecar --instance acme status --json`"),
        ("`systemctl start px-sidecar` or", "`systemctl start px-sidecar@acme` or"),
        ("`systemctl enable --now px-sidecar`", "`systemctl enable --now px-sidecar@acme`"),
        ("check `journalctl -u px-sidecar` and", "check `journalctl -u px-sidecar@acme` and"),
        ("px-sidecar 0.1.0: idle", "px-sidecar 0.1.0: idle"),
        ("`systemctl restart px-sidecar.socket`", "`systemctl restart px-sidecar.socket`"),
        ("`px-sidecar`", "`px-sidecar`"),
    ],
)
def test_commands_in_a_sentence_name_the_instance(plain, named):
    assert with_instance(plain, "acme") == named
    assert with_instance(named, "acme") == named
    assert with_instance(plain, "") == plain


def hints_without_a_name(tree: ast.AST) -> Iterator[int]:
    """The lines of texts that name a command and are neither docstrings nor errors, nor in `hint`."""
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or not isinstance(node.value, str) or "`px-sidecar " not in node.value:
            continue
        above = [node]
        while above[-1] in parents:
            above.append(parents[above[-1]])
        called = {getattr(call.func, "id", "") for call in above if isinstance(call, ast.Call)}
        if not (
            "hint" in called or isinstance(above[1], ast.Expr) or any(isinstance(line, ast.Raise) for line in above)
        ):
            yield node.lineno


def test_each_hint_of_a_verb_names_the_instance():
    """Errors get the name where the group prints them, results of checks in `check`."""
    found = [f"{path.name}:{line}" for path in SOURCES for line in hints_without_a_name(ast.parse(path.read_text()))]
    assert found == []


@pytest.fixture
def acme(tmp_path, monkeypatch) -> DaemonDir:
    """The folder of the instance `acme`, whose file is where `--instance acme` looks for it."""
    daemon_dir = DaemonDir(tmp_path)
    (tmp_path / "acme.toml").write_bytes(daemon_dir.file.read_bytes())
    monkeypatch.setattr("sidecar.config.file.DEFAULT_PATH", str(tmp_path / "config.toml"))
    return daemon_dir


def test_status_and_check_name_the_instance(acme, verb):
    file = ConfigFile(instance="acme", environ={})
    with acme.running(always(400), config_file=file) as daemon:
        daemon.track("u1", "Feature Used")
        wait_until(lambda: daemon.status()["dead"] == 1, "a dead letter")
        daemon.client.post("/v1/pause")
        status = daemon.status()
        shown = verb("--instance", "acme", "status").out
        checked = verb("--instance", "acme", "check").out
    assert "`px-sidecar --instance acme resume`" in status["reasons"][0]
    assert "`px-sidecar --instance acme dead list`" in [problem["message"] for problem in status["problems"]][1]
    for text in (shown, checked):
        assert "px-sidecar --instance acme resume" in " ".join(text.split())
    assert "`px-sidecar " not in shown.replace("`px-sidecar --instance acme ", "")


def test_log_lines_name_the_instance():
    stream, lines = io.StringIO(), LogLines()
    log, root = logging.getLogger("sidecar.test"), logging.getLogger()
    before = list(root.handlers)
    try:
        configure(LogConfig(), stream, {}, lines=lines, instance="acme")
        log.warning("Delivery is paused: %s", "run `px-sidecar resume`.")
    finally:
        for handler in [handler for handler in root.handlers if handler not in before]:
            root.removeHandler(handler)
    expected = "Delivery is paused: run `px-sidecar --instance acme resume`."
    assert json.loads(stream.getvalue())["message"] == expected
    assert lines.after(0)[-1]["message"] == expected


def test_alert_rules_name_the_instance(verb):
    printed = verb("--instance", "acme", "config", "alerts").out
    assert "`px-sidecar --instance acme status`" in printed
    assert "`systemctl status px-sidecar@acme`" in printed
    assert "`px-sidecar status`" in verb("config", "alerts").out
    as_json = verb("--instance", "acme", "config", "alerts", "--json").out
    assert as_json.count("`px-sidecar --instance acme ") == printed.count("`px-sidecar --instance acme ")
