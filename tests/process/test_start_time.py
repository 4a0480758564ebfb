"""A start listens before it loads anything heavy, and a verb loads only what it uses."""

import json
import os
import socket
import sqlite3
import statistics
import subprocess
import sys
import time

import pytest
from process_harness import ProcessHarness, wait_until

from sidecar.outbox.lock import SCHEMA_VERSION, refuse_newer_schema

# Each takes longer to load than all that is needed to listen.
HEAVY = {
    "trio",
    "sqlite3",
    "sqlite_utils",
    "httpx",
    "httpcore",
    "h11",
    "ssl",
    "rich",
    "prometheus_client",
    "tomlkit",
    "numpy",
}
ROUNDS = 5


def loaded_by(code: str) -> set[str]:
    """The top-level modules in memory after ``code`` has run in a new process."""
    print_them = "import json, sys; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    # What measures coverage loads modules of its own.
    environ = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_PROCESS")}
    command = [sys.executable, "-c", f"{code}\n{print_them}"]
    out = subprocess.run(command, capture_output=True, check=True, timeout=60, env=environ)
    return set(json.loads(out.stdout.splitlines()[-1]))


def test_nothing_heavy_is_loaded_before_the_sockets_are_open():
    assert not loaded_by("import sidecar.cli.run") & HEAVY


def test_a_start_loads_nothing_that_only_some_hosts_use():
    assert not loaded_by("import sidecar.cli.run_daemon") & {
        *("httpx", "sqlite_utils", "rich", "prometheus_client", "tomlkit", "hiredis", "numpy", "difflib")
    }


def test_a_new_outbox_loads_no_numpy(tmp_path):
    """sqlite_utils imports it where it is installed; the daemon then held 12 MB more until its next start."""
    code = f"""
import pathlib, sys
from sidecar.outbox.database import open_database
open_database(pathlib.Path({str(tmp_path / "o.db")!r}), durability="process")
assert not {{"numpy", "pandas"}} & sys.modules.keys()
import numpy
"""
    (tmp_path / "numpy.py").touch()
    loaded = loaded_by(f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{code}")
    assert {"sqlite_utils", "numpy"} <= loaded


def test_the_list_of_verbs_loads_click_alone():
    assert not loaded_by("import sidecar.cli\ntry: sidecar.cli.main(['--help'])\nexcept SystemExit: pass") & {
        *HEAVY,
        "msgspec",
        "difflib",
    }


def test_status_loads_neither_the_daemon_nor_its_libraries():
    assert not loaded_by("import sidecar.cli.status") & (HEAVY - {"rich", "ssl"})  # http.client loads ssl


@pytest.mark.parametrize("package", ["config", "http", "observe", "outbox", "receive"])
def test_every_name_of_a_lazy_package_is_there(package):
    code = f"import sidecar.{package} as package\nfor name in package.__all__: getattr(package, name)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_an_unknown_name_of_a_lazy_package_is_an_attribute_error():
    import sidecar.outbox

    with pytest.raises(AttributeError, match="no attribute 'Outbocks'"):
        sidecar.outbox.Outbocks  # noqa: B018


def test_a_newer_schema_is_refused_before_anything_is_opened(tmp_path):
    path = tmp_path / "o.db"
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    connection.close()
    with pytest.raises(Exception, match="written by a newer px-sidecar"):
        refuse_newer_schema(path)


@pytest.mark.parametrize("content", [b"", b"SQLite format 3\x00", b"x" * 64, b"SQLite format 3\x00" + b"\xff" * 100])
def test_a_damaged_header_is_left_to_the_recovery(tmp_path, content):
    (tmp_path / "o.db").write_bytes(content)
    refuse_newer_schema(tmp_path / "o.db")
    refuse_newer_schema(tmp_path / "missing.db")


def connects(address: str) -> bool:
    host, _, port = address.partition(":")
    with socket.socket() as client:
        return client.connect_ex((host, int(port))) == 0


def test_a_second_process_with_the_same_outbox_never_listens(harness):
    harness.start_sandbox()
    harness.write_config()
    harness.start_daemon()
    other = ProcessHarness(harness.folder)
    config = other.write_config()
    second = other.start("run", "--config", str(config))
    listened = False
    while second.poll() is None:
        listened |= connects(other.http)
    assert not listened
    assert second.returncode == 1
    assert "is held by another process" in harness.log("run")


def wall_s(code: str) -> float:
    started_s = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    return time.perf_counter() - started_s


@pytest.mark.whole
def test_a_start_listens_before_another_process_has_loaded_trio(harness, monkeypatch):
    """Ratios of one run, as machines differ: to listening at most 1.1 × `import trio`, to ready at most 3 × that.

    Before, it was 3.2 × and 3.3 ×, because everything was loaded first.
    """
    for name in ("COVERAGE_PROCESS_CONFIG", "PYTHONDONTWRITEBYTECODE"):  # measured, or compiled each time, it is slower
        monkeypatch.delenv(name, raising=False)
    loaded_by("import sidecar.cli.run_daemon")  # compiled
    harness.write_config()
    listening, ready, trio_s = [], [], []
    for _ in range(ROUNDS):
        trio_s.append(wall_s("import trio"))
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
            systemd.bind(str(harness.folder / "notify"))
            systemd.settimeout(20)
            started_s = time.perf_counter()
            daemon = harness.start(
                "run", "--config", str(harness.folder / "config.toml"), NOTIFY_SOCKET=systemd.getsockname()
            )
            wait_until(lambda: connects(harness.http), what="listening")
            listening.append(time.perf_counter() - started_s)
            while b"READY=1" not in systemd.recv(4096):
                pass
            ready.append(time.perf_counter() - started_s)
        os.unlink(harness.folder / "notify")
        assert harness.stop(daemon) == 0
    limit_s = statistics.median(trio_s)
    assert statistics.median(listening) <= 1.1 * limit_s + 0.02  # the poll's own step
    assert statistics.median(ready) <= 3 * limit_s
