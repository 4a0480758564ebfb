"""The console of verbs, at terminals of odd kinds."""

import io
import sys

import pytest

from sidecar.cli.screen import console, fields


@pytest.mark.parametrize("kind", ["dumb", "xterm"])
def test_lines_are_as_wide_as_the_terminal_of_any_kind(monkeypatch: pytest.MonkeyPatch, kind: str):
    """With TERM=dumb they had 80 columns, and each line wrapped."""
    monkeypatch.setenv("TERM", kind)
    monkeypatch.setenv("COLUMNS", "40")
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stdout", stream)
    console().print(fields([("quota", "0 of 990,000 requests of the day, 99,000 kept")]))
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    assert all(len(line.replace("\x1b[2m", "").replace("\x1b[0m", "")) <= 40 for line in lines)
