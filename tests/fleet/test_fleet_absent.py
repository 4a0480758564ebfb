"""Without [fleet] no code of the fleet, and no hiredis, is loaded."""

import subprocess
import sys


def test_the_daemon_loads_no_fleet_code_without_a_fleet():
    code = (
        "import sys, sidecar.daemon, sidecar.cli.run, sidecar.cli.status\n"
        "print([name for name in sys.modules if name.startswith(('sidecar.fleet', 'hiredis'))])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
