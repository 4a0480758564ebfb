"""Sandboxes that are closed after the test, and had no mistake in them."""

import pytest
from sandbox_client import NOW_MS

from sidecar.clock import VirtualClock
from sidecar.sandbox import Sandbox


@pytest.fixture
def make_box():
    """Makes sandboxes and closes them."""
    made = []

    def make(**options) -> Sandbox:
        made.append(Sandbox(**{"clock": VirtualClock(start_wall_ms=NOW_MS), **options}))
        return made[-1]

    yield make
    for box in made:
        assert box.errors == []
        box.close()
