"""``px-sidecar demo --fleet``: real daemons, one ceiling, an account at the end."""

import subprocess
import sys

import pytest
from fleet_engine import find_server


@pytest.mark.skipif(find_server() is None, reason="neither redis-server nor valkey-server is installed")
def test_the_demo_of_a_fleet_loses_nothing():
    command = [sys.executable, "-m", "sidecar", "demo", "--fleet", "2", "--events", "300"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=110)
    assert ran.stdout.splitlines()[-1] == "accepted=300 delivered=300 dropped=0 dead=0 duplicates=0 lost=0"
    assert ran.returncode == 0
