"""The database file: its settings and mode, the lock, and which files are refused."""

import errno
import os
import sqlite3
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from outbox_files import accept, event, raiser

from sidecar.errors import ConfigError, Failed
from sidecar.outbox import Store, take_lock
from sidecar.outbox.database import PAGE_BYTES, WAL_BYTES, has_wal_reset_bug, insert_columns, open_database, wal_bytes
from sidecar.outbox.schema import SCHEMA_VERSION

needs_user = pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")


def pragma(connection, name):
    return connection.execute(f"PRAGMA {name}").fetchone()[0]


@pytest.mark.parametrize(("durability", "synchronous"), [("disk", 2), ("process", 1)])
def test_settings_for_durability_are_in_force(tmp_path, durability, synchronous):
    connection = open_database(tmp_path / "o.db", durability=durability)
    assert pragma(connection, "journal_mode") == "wal"
    assert pragma(connection, "synchronous") == synchronous
    assert pragma(connection, "auto_vacuum") == 2  # incremental
    assert pragma(connection, "secure_delete") == 1
    assert pragma(connection, "page_size") == PAGE_BYTES
    assert pragma(connection, "wal_autocheckpoint") == wal_bytes(tmp_path) // PAGE_BYTES
    assert pragma(connection, "journal_size_limit") == 2 * wal_bytes(tmp_path)
    assert pragma(connection, "user_version") == SCHEMA_VERSION
    connection.close()


def test_files_have_mode_0600_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        store = Store(tmp_path / "o.db")
    finally:
        os.umask(before)
    assert {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {
        "o.db": 0o600, "o.db-wal": 0o600, "o.db-shm": 0o600,
    }  # fmt: skip
    store.close()


def test_a_setting_that_sqlite_ignores_raises_failed(tmp_path):
    class Stubborn(sqlite3.Connection):
        def execute(self, sql, *rest):
            return super().execute("PRAGMA journal_mode" if sql.startswith("PRAGMA journal_mode =") else sql, *rest)

    with pytest.raises(Failed, match="did not accept journal_mode = wal"):
        open_database(tmp_path / "o.db", durability="disk", factory=Stubborn)


def test_a_second_process_is_refused_with_the_holders_pid(tmp_path):
    lock = take_lock(tmp_path / "o.db")
    code = (
        "import sys; from pathlib import Path; from sidecar.errors import Failed; from sidecar.outbox import take_lock\n"
        "try: take_lock(Path(sys.argv[1]))\n"
        "except Failed as error: print(error); sys.exit(error.exit_code)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "o.db")]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert f"held by another process (pid {os.getpid()})" in refused.stdout
    lock.release()
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_a_released_lock_can_be_taken_again(tmp_path):
    lock = take_lock(tmp_path / "o.db")
    with pytest.raises(Failed, match="held by another process"):
        take_lock(tmp_path / "o.db")
    lock.release()
    again = take_lock(tmp_path / "o.db")
    assert (tmp_path / "o.db.lock").read_text() == str(os.getpid())
    again.release()


def test_a_missing_folder_raises_failed(tmp_path):
    with pytest.raises(Failed, match=r"outbox folder .*nowhere cannot be written \(No such file"):
        take_lock(tmp_path / "nowhere" / "o.db")
    with pytest.raises(Failed, match="cannot be opened for writing"):
        open_database(tmp_path / "nowhere" / "o.db", durability="disk")


@needs_user
def test_a_read_only_folder_raises_failed(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(Failed, match="Permission denied"):
        take_lock(tmp_path / "o.db")


def test_a_read_only_file_raises_failed(tmp_path):
    Store(tmp_path / "o.db").close()

    class ReadOnly(sqlite3.Connection):
        def __init__(self, path, **options):
            super().__init__(f"file:{path}?mode=ro&immutable=1", **options, uri=True)

    with pytest.raises(Failed, match=r"cannot be opened for writing|did not accept"):
        open_database(tmp_path / "o.db", durability="disk", factory=ReadOnly)


def test_a_newer_schema_raises_config_error(tmp_path):
    Store(tmp_path / "o.db").close()
    with sqlite3.connect(tmp_path / "o.db") as other:
        other.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    other.close()
    with pytest.raises(ConfigError, match="newer px-sidecar") as caught:
        Store(tmp_path / "o.db")
    assert caught.value.exit_code == 78


def test_a_file_that_is_not_a_database_raises_config_error(tmp_path):
    (tmp_path / "o.db").write_bytes(b"this is not a database" * 100)
    with pytest.raises(ConfigError, match="damaged or is not an outbox"):
        Store(tmp_path / "o.db")


def test_an_interrupted_first_start_is_completed(tmp_path):
    connection = sqlite3.connect(tmp_path / "o.db", isolation_level=None)
    connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    connection.execute("PRAGMA journal_mode = wal")
    connection.close()
    store = Store(tmp_path / "o.db")
    assert accept(store, [event(1)]).stored == 1
    store.close()


def test_a_failed_migration_is_rolled_back(tmp_path):
    class NoSources(sqlite3.Connection):
        def execute(self, sql, *rest):
            if "CREATE TABLE sources" in sql:
                raise sqlite3.OperationalError("injected")
            return super().execute(sql, *rest)

    with pytest.raises(Failed):
        open_database(tmp_path / "o.db", durability="disk", factory=NoSources)
    connection = open_database(tmp_path / "o.db", durability="disk")
    assert pragma(connection, "user_version") == SCHEMA_VERSION
    connection.close()


def test_the_wal_is_smaller_on_a_small_file_system(tmp_path, monkeypatch):
    class Small:
        f_blocks, f_frsize = 4096, 4096

    monkeypatch.setattr(os, "statvfs", lambda _folder: Small)
    assert wal_bytes(tmp_path) == 4096 * 4096 // 24


def test_a_lock_that_the_file_system_lacks_raises_failed(tmp_path, monkeypatch):
    monkeypatch.setattr("fcntl.flock", raiser(OSError(errno.ENOLCK, "No locks available")))
    with pytest.raises(Failed, match=r"cannot be taken \(No locks available\); put the outbox on a local"):
        take_lock(tmp_path / "outbox.db")


def test_the_wal_has_its_default_size_in_an_unreadable_folder(tmp_path):
    assert wal_bytes(tmp_path / "nowhere") == WAL_BYTES


def test_a_store_in_a_missing_folder_raises_failed(tmp_path):
    with pytest.raises(Failed, match="nowhere"):
        Store(tmp_path / "nowhere" / "outbox.db", durability="process")


@pytest.mark.parametrize(
    ("version", "has_it"),
    [
        ((3, 6, 23), False),
        ((3, 7, 0), True),
        ((3, 40, 1), True),
        ((3, 44, 5), True),
        ((3, 44, 6), False),
        ((3, 45, 0), True),
        ((3, 50, 6), True),
        ((3, 50, 7), False),
        ((3, 51, 2), True),
        ((3, 51, 3), False),
        ((3, 52, 0), False),
    ],
)
def test_the_wal_reset_bug_is_in_the_versions_that_sqlite_names(version, has_it):
    assert has_wal_reset_bug(version) is has_it


@given(st.lists(st.tuples(st.integers(0, 1), st.sampled_from([b"", b"a"]), st.none()), max_size=200))
def test_columns_are_inserted_as_rows_in_their_order(rows):
    """Whether all rows agree in what they usually do or not, and into whichever statements they are divided."""
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, a INTEGER, b BLOB, c TEXT) STRICT")
    columns = {"b": [b for _, b, _ in rows], "id": list(range(1, len(rows) + 1))}
    usual = {"a": [a for a, _, _ in rows], "c": [c for _, _, c in rows]}
    insert_columns(connection, "INTO t", columns, usual, {})
    stored = connection.execute("SELECT * FROM t ORDER BY id").fetchall()
    connection.close()
    assert stored == [(number, *row) for number, row in enumerate(rows, 1)]


@pytest.mark.parametrize(("odd", "expected"), [(7, [83, 7, 4]), (8, [241, 13, 4])], ids=["alike", "one differs"])
def test_what_all_rows_have_alike_is_passed_once(odd, expected):
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE t (a INTEGER, b INTEGER, c INTEGER, d INTEGER)")
    passed = []

    class Counting:
        def execute(self, statement, values):
            passed.append(len(values))
            connection.execute(statement, values)

    insert_columns(Counting(), "INTO t", {"b": list(range(85))}, {"a": [7] * 84 + [odd], "c": [None] * 85}, {"d": 5})
    rows = connection.execute("SELECT a, b, c, d FROM t").fetchall()
    connection.close()
    assert rows == [(odd if number == 84 else 7, number, None, 5) for number in range(85)]
    assert passed == expected
