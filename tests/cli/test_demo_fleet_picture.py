"""The picture of ``px-sidecar demo --fleet``."""

import sys

import pytest

from sidecar.cli.demo_fleet import _picture, _width


def test_a_second_at_the_ceiling_fills_the_picture():
    line = _picture(7, [100, 90], 57).plain
    assert line == f"   7s  {'A' * 30}{'B' * 27}| 190"


@pytest.mark.parametrize(("terminal", "width"), [(200, 57), (70, 57), (50, 37), (13, 1)])
def test_the_picture_fits_a_narrow_terminal(monkeypatch, terminal, width):
    """Each line took 70 columns, and wrapped."""
    monkeypatch.setenv("COLUMNS", str(terminal))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert _width() == width
    assert terminal < 20 or len(_picture(7, [100, 90], _width()).plain) <= terminal
