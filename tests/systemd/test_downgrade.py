"""The package's preinst, as dpkg runs it: a downgrade that could not read the outbox is refused, any other is not."""

import shutil
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from sidecar.outbox import Store
from sidecar.outbox.schema import SCHEMA_VERSION

PREINST = Path(__file__).resolve().parents[2] / "systemd" / "debian" / "preinst"

pytestmark = pytest.mark.skipif(
    shutil.which("dpkg") is None or not Path("/usr/bin/python3").exists(), reason="needs dpkg and Debian's python3"
)


@pytest.fixture
def preinst(tmp_path):
    """Run the script of version 1.2.0 with its outboxes below ``tmp_path``, and return what it says and its status."""
    text = PREINST.read_text().replace("@FORMAT@", str(SCHEMA_VERSION)).replace("@VERSION@", "1.2.0")
    script = tmp_path / "preinst"
    script.write_text(text.replace("/var/lib/px-sidecar", str(tmp_path)))

    def run(*arguments: str) -> tuple[str, int]:
        done = subprocess.run(["sh", str(script), *arguments], capture_output=True, text=True, check=False)
        assert done.stdout == ""
        return done.stderr, done.returncode

    return run


def outbox(path: Path, file_format: int) -> Path:
    path.parent.mkdir(exist_ok=True)
    Store(path).close()
    with closing(sqlite3.connect(path)) as database:
        database.execute(f"PRAGMA user_version = {file_format}")
    return path


def test_a_downgrade_to_a_version_that_reads_the_outbox_proceeds(preinst, tmp_path):
    outbox(tmp_path / "outbox.db", SCHEMA_VERSION)
    assert preinst("upgrade", "1.3.0") == ("", 0)


def test_a_downgrade_that_cannot_read_the_outbox_is_refused(preinst, tmp_path):
    path = outbox(tmp_path / "outbox.db", SCHEMA_VERSION + 1)
    said, status = preinst("upgrade", "1.3.0")
    assert status == 1
    assert said.startswith(f"px-sidecar 1.2.0 cannot read {path}, which px-sidecar 1.3.0 has written (file format ")
    assert "px-sidecar drain" in said
    assert said.count("\n") == 1


def test_a_downgrade_by_removal_and_installation_is_refused(preinst, tmp_path):
    """dpkg names the version whose configuration is left; a first installation names none."""
    outbox(tmp_path / "outbox.db", SCHEMA_VERSION + 1)
    said, status = preinst("install", "1.3.0")
    assert (status, "Use 1.3.0" in said) == (1, True)
    assert preinst("install", "1.1.0") == ("", 0)


def test_the_outbox_of_an_instance_counts(preinst, tmp_path):
    path = outbox(tmp_path / "eu" / "outbox.db", SCHEMA_VERSION + 1)
    said, status = preinst("upgrade", "1.3.0")
    assert (status, str(path) in said) == (1, True)


def test_a_format_that_only_the_log_has_counts(preinst, tmp_path):
    """The daemon of the newer version runs: page 1 of the file itself is still the older one."""
    path = outbox(tmp_path / "outbox.db", SCHEMA_VERSION)
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA wal_autocheckpoint = 0")
        database.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
        database.commit()
        assert int.from_bytes(path.read_bytes()[60:64]) == SCHEMA_VERSION
        assert preinst("upgrade", "1.3.0")[1] == 1


@pytest.mark.parametrize("arguments", [("install",), ("upgrade", "1.1.0"), ("upgrade", "1.2.0")], ids=" ".join)
def test_an_installation_and_an_upgrade_go_on(preinst, tmp_path, arguments):
    outbox(tmp_path / "outbox.db", SCHEMA_VERSION + 1)
    assert preinst(*arguments) == ("", 0)


def test_an_outbox_that_is_not_a_database_does_not_stop_a_package(preinst, tmp_path):
    (tmp_path / "outbox.db").write_bytes(b"x")
    assert preinst("upgrade", "1.3.0") == ("", 0)
