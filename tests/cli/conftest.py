"""The command line as tests call it: in this process, with what it printed and its exit code."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from click.testing import CliRunner
from living import Place

from sidecar.cli import main


class Ran(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


def run(*arguments: str, stdin: str | bytes | None = None, **environ: str) -> Ran:
    result = CliRunner().invoke(main, list(arguments), input=stdin, env=environ)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Ran(result.exit_code, result.stdout, result.stderr)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    """Run a verb without what this machine may have configured."""
    for name in ("PX_SIDECAR_CONFIG", "PX_SIDECAR_LISTEN_CONTROL", "STATE_DIRECTORY", "CREDENTIALS_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    return run
