"""What all tests share: how many examples property tests try, and a stage for real processes.

``ci`` is the default: few examples, the same ones every time. ``--hypothesis-profile=long`` looks for new ones.
"""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, settings
from stage import Stage

settings.register_profile("ci", max_examples=60, derandomize=True, deadline=None, database=None)
settings.register_profile(
    "long", max_examples=20_000, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
settings.load_profile("ci")


@pytest.fixture
def stage() -> Iterator[Stage]:
    # pytest's own folders have long names, and a socket's path has 107 bytes at most
    with TemporaryDirectory(prefix="pxs-") as folder:
        made = Stage(Path(folder))
        try:
            yield made
        finally:
            made.end()
