"""On a disk that is really full, settlement continues in the reserve, and accepting starts again without a restart."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.whole

SCENARIO = Path(__file__).with_name("disk_full_scenario.py")
ROOT = SCENARIO.parent.parent.parent


def in_a_namespace(*command):
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests/support'}:{SCENARIO.parent}"}
    return subprocess.run(
        ["unshare", "--mount", *command], capture_output=True, text=True, check=False, timeout=100, env=environment
    )


def can_mount():
    return shutil.which("unshare") is not None and in_a_namespace("true").returncode == 0


@pytest.mark.skipif(os.geteuid() != 0 or not can_mount(), reason="only root may mount a small file system")
@pytest.mark.parametrize("size", ["16m", "48m"])
def test_a_full_disk_stops_accepting_but_not_settling(tmp_path, size):
    done = in_a_namespace(sys.executable, str(SCENARIO), str(tmp_path), size)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["accepted"] > 500
    assert report["full"] == "disk_full"
    assert report["reserve_released"]
    assert report["settled"] == report["accepted"] == report["delivered_at_last"]
    assert report["accepted_again"] == report["pending_at_last"] == 1
    assert report["reserve_again"] == report["reserve_bytes"]
    assert report["integrity"] == "ok"
