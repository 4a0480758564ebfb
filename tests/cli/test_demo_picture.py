"""The live picture of the demo, without a demo."""

import io

import pytest
from rich.console import Console

from sidecar.cli import demo_picture
from sidecar.cli.demo_picture import Progress


@pytest.mark.parametrize(("encoding", "bar"), [("utf-8", "█"), ("ascii", "@")])
def test_a_terminal_that_is_not_utf_8_gets_bars_that_it_can_show(monkeypatch, encoding, bar):
    """Question marks stood in their place."""
    monkeypatch.setattr(demo_picture, "BAR_EVERY_S", 0.0)
    console = Console(file=io.TextIOWrapper(io.BytesIO(), encoding=encoding), width=80, color_system=None)
    progress = Progress(ceiling_per_s=1, events=10, ascii_only=console.options.ascii_only)
    progress.start()
    progress.record_delivered(10)
    with console.capture() as captured:
        console.print(progress)
    shown = captured.get()
    assert bar in shown
    shown.encode(encoding)
