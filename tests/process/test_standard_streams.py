"""A supervisor that starts the command with a standard descriptor closed."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_closed_standard_descriptors_are_opened_on_dev_null(closed):
    check = "import os; from sidecar.cli import main; main(['--version'], standalone_mode=False); [os.fstat(n) for n in range(3)]"
    command = ["sh", "-c", f'exec "$0" -c "$1" {closed}', sys.executable, check]
    assert subprocess.run(command, timeout=30, check=False).returncode == 0
