"""Each test of the control API gets the directory of a daemon of its own."""

from pathlib import Path

import pytest
from running_daemon import DaemonDir


@pytest.fixture
def daemon_dir(tmp_path: Path) -> DaemonDir:
    return DaemonDir(tmp_path)
