"""What all tests share: how many examples property tests try, and a harness for real processes.

``ci`` is the default: few examples, the same ones every time. ``--hypothesis-profile=long`` looks for new ones.
"""

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, settings
from process_harness import ProcessHarness

settings.register_profile("ci", max_examples=60, derandomize=True, deadline=None, database=None)
settings.register_profile(
    "long", max_examples=20_000, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
settings.load_profile("ci")

NOT_A_LOCAL_DISK = {"tmpfs", "ramfs", "nfs", "smb2", "cifs", "v9fs"}  # as `stat -f` names them


def pytest_configure() -> None:
    # A shell ignores SIGINT in background jobs, and the programs that tests start would inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def harness() -> Iterator[ProcessHarness]:
    # The directories that pytest makes have long names, and the path of a Unix socket is limited to 107 bytes (unix(7)).
    with TemporaryDirectory(prefix="pxs-") as folder:
        harness = ProcessHarness(Path(folder))
        try:
            yield harness
        finally:
            harness.end()


@pytest.fixture
def disk_path(tmp_path: Path) -> Iterator[Path]:
    """Return a new directory on a local disk: `tmp_path`, or one in /var/tmp if /tmp is a tmpfs."""
    if is_on_local_disk(tmp_path):
        yield tmp_path
        return
    if not is_on_local_disk(Path("/var/tmp")):
        pytest.skip("neither the directory of pytest nor /var/tmp is on a local disk")
    with TemporaryDirectory(prefix="pxs-", dir="/var/tmp") as folder:
        yield Path(folder)


def is_on_local_disk(folder: Path) -> bool:
    stat = subprocess.run(["stat", "-f", "-c", "%T", str(folder)], capture_output=True, text=True, check=False)
    return stat.returncode == 0 and stat.stdout.strip() not in NOT_A_LOCAL_DISK
