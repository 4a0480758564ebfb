"""`px-sidecar outbox import FILE.db`: what was rescued or comes from a backup is taken in once."""

import shutil
import sqlite3

import pytest
from outbox_files import accept, dead, delivered, event, settle, sqlite_error
from running_daemon import DaemonDir, always

from sidecar.control import outbox_file
from sidecar.outbox import Store
from sidecar.outbox.pages import wal_path


@pytest.fixture
def rescued(daemon_dir: DaemonDir):
    """The outbox, and a rescued file beside it: one of its 6 events is delivered there, one dead, two are here, too."""
    with daemon_dir.running() as daemon:
        daemon.client.post("/v1/pause")
    path = daemon_dir.outbox.with_name("outbox.db.rescued-20260102T030405Z")
    store = Store(path)
    with store.transaction():
        source = store.source(b"f" * 32, "AP-XXXXXXXXXX-2")
    accept(store, [event(n, user=f"u{n}", source=source * (n % 2)) for n in range(1, 7)])
    settle(store, [delivered(1), dead(2)])
    store.close()
    store = Store(daemon_dir.outbox)
    with store.transaction():
        store.source(b"e" * 32, "AP-XXXXXXXXXX-2")
        source = store.source(b"f" * 32, "AP-XXXXXXXXXX-2")
    accept(store, [event(n, user=f"u{n}", source=source * (n % 2)) for n in (3, 4)])
    store.close()
    return path


def test_a_rescued_file_is_taken_in_once_and_named_until_then(daemon_dir: DaemonDir, verb, rescued):
    warnings = verb("status", "--json", *daemon_dir.flags).json["warnings"]
    assert [f"outbox import {rescued}" in warning for warning in warnings] == [True]
    before = rescued.read_bytes()
    first = verb("outbox", "import", str(rescued), "--json", *daemon_dir.flags)
    # Two are stored here already, recognized although another source has the same product.
    assert first.json == {"accepted": 2, "repeated": 2, "dead": 1, "file": str(rescued)}
    assert rescued.read_bytes() == before
    again = verb("outbox", "import", str(rescued), "--dead", *daemon_dir.flags)
    assert again.out.startswith("1 event was imported; 4 were already stored.\nThe file is now ")
    status = verb("status", "--json", *daemon_dir.flags).json
    assert (status["pending"], status["warnings"]) == (5, [])
    assert not rescued.exists()
    assert not list(rescued.parent.glob("*importing*"))


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), sqlite_error(sqlite3.SQLITE_FULL)])
def test_a_copy_that_cannot_be_written_is_an_error_and_leaves_nothing(
    daemon_dir: DaemonDir, verb, rescued, monkeypatch, error
):
    """SQLite's own error of a full disk ended in a traceback, and half a copy kept the disk full."""

    def salvage(_file, copy, **_how):
        copy.write_bytes(b"half of it")
        raise error

    monkeypatch.setattr(outbox_file, "salvage", salvage)
    refused = verb("outbox", "import", str(rescued), *daemon_dir.flags)
    assert refused.code == 1
    assert "free" in refused.err
    assert not list(rescued.parent.glob("*importing*"))


def test_check_names_files_that_were_set_aside(daemon_dir: DaemonDir, verb, rescued):
    damaged = daemon_dir.outbox.with_name("outbox.db.damaged-20260102T030405Z")
    damaged.write_bytes(b"x")
    findings = verb("check", "--json", *daemon_dir.flags).json["findings"]
    sentences = [finding["message"] for finding in findings if finding["level"] == "warning"]
    assert any(str(rescued) in sentence and "outbox import" in sentence for sentence in sentences)
    assert any(str(damaged) in sentence and "remove it" in sentence for sentence in sentences)


def test_a_file_in_use_or_recovered_already_is_refused(daemon_dir: DaemonDir, verb, rescued):
    own = verb("outbox", "import", str(daemon_dir.outbox), *daemon_dir.flags)
    assert own.code == 1
    assert "is the outbox of this configuration itself" in own.err
    damaged = daemon_dir.outbox.with_name("outbox.db.damaged-20260102T030405Z")
    shutil.copy(rescued, damaged)
    refused = verb("outbox", "import", str(damaged), *daemon_dir.flags)
    assert (refused.code, "was recovered when it was set aside" in refused.err) == (1, True)


def test_a_damaged_file_of_another_place_is_taken_in(daemon_dir: DaemonDir, verb, rescued, tmp_path):
    store = Store(rescued)
    accept(store, [event("in the log")])
    elsewhere = tmp_path / "elsewhere.db"
    shutil.copy(rescued, elsewhere)
    shutil.copy(wal_path(rescued), wal_path(elsewhere))
    store.close()
    with elsewhere.open("r+b") as file:
        file.write(b"damaged")
    done = verb("outbox", "import", str(elsewhere), "--json", *daemon_dir.flags)
    assert done.json == {"accepted": 3, "repeated": 2, "dead": 1, "file": str(elsewhere)}
    assert elsewhere.exists()


def test_a_running_daemon_takes_a_rescued_file_in(daemon_dir: DaemonDir, verb, rescued):
    with daemon_dir.running(always(201)) as daemon:
        daemon.client.post("/v1/resume")
        verb("outbox", "import", str(rescued), *daemon_dir.flags)
        daemon.settle()
        assert daemon.client.get("/v1/status")["delivered"] == 4
