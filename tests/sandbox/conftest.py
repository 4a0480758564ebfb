"""Fixtures: sandboxes that are closed after the test and have raised no error."""

import pytest
from sandbox_client import NOW_MS

from sidecar.clock import VirtualClock
from sidecar.sandbox import Sandbox


@pytest.fixture
def make_box():
    """Create sandboxes, and close them after the test."""
    boxes = []

    def make(**options) -> Sandbox:
        boxes.append(Sandbox(**{"clock": VirtualClock(start_wall_ms=NOW_MS), **options}))
        return boxes[-1]

    yield make
    for box in boxes:
        assert box.errors == []
        box.close()
