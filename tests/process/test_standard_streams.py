"""A supervisor that starts the command with a standard descriptor closed, or with one that takes nothing."""

import os
import subprocess
import sys

import pytest
from process_harness import is_ok, wait_until


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_closed_standard_descriptors_are_opened_on_dev_null(closed):
    check = "import os; from sidecar.cli import main; main(['--version'], standalone_mode=False); [os.fstat(n) for n in range(3)]"
    command = ["sh", "-c", f'exec "$0" -c "$1" {closed}', sys.executable, check]
    assert subprocess.run(command, timeout=30, check=False).returncode == 0


@pytest.fixture(params=["stalled", "broken"])
def standard_error(request):
    """The writing end of a pipe that is full, or that nobody reads any more."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        while True:
            os.write(writer, bytes(4096))
    except BlockingIOError:
        os.set_blocking(writer, True)
    if request.param == "broken":
        os.close(reader)
    yield writer
    os.close(writer)
    if request.param == "stalled":
        os.close(reader)


def started(harness, standard_error):
    command = [sys.executable, "-m", "sidecar", "run", "--config", str(harness.folder / "config.toml")]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=standard_error, env=harness.environ()
    )
    harness.processes.append(process)
    return process


def test_a_warning_that_cannot_be_printed_stops_no_start(harness, standard_error):
    harness.write_config(listen="allow_remote = true")  # without a [[source]] the start warns
    process = started(harness, standard_error)
    url = f"http://{harness.http}/health"
    wait_until(lambda: is_ok(url) or process.poll() is not None, what="the daemon's start")
    assert harness.stop(process) == 0


def test_an_error_that_cannot_be_printed_keeps_its_exit_code(harness, standard_error):
    """With a pipe that takes nothing the process stayed, without a listener; with one that is closed it ended with 1."""
    harness.write_config("[nonsense]")
    assert started(harness, standard_error).wait(20) == 78
