"""A place for a daemon, one for each test."""

from pathlib import Path

import pytest
from living import Place


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)
