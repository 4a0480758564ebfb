"""Recovery: what counts as damage, what is kept, and that a crash at any moment continues at the next start."""

import errno
import os
import sqlite3
import time
from contextlib import closing
from datetime import datetime
from pathlib import Path

import pytest
from outbox_files import (
    accept,
    check_counters,
    copied,
    delivered,
    event,
    pending_ids,
    raiser,
    settle,
    sqlite_error,
)

from sidecar.errors import ConfigError, Failed
from sidecar.outbox import Store, open_outbox, recovery
from sidecar.outbox.capacity import RESERVE
from sidecar.outbox.database import damaged
from sidecar.outbox.recovery import contradiction, damage_in, mark_damaged
from sidecar.outbox.rescue import files_set_aside, rescued_files
from sidecar.outbox.salvage import salvage
from sidecar.outbox.schema import SCHEMA_VERSION

EVENTS = 400


@pytest.fixture
def path(tmp_path):
    """A closed outbox with events."""
    store = Store(tmp_path / "o.db", durability="process")
    accept(store, [event(n, user=f"u{n}", padding=300) for n in range(EVENTS)])
    store.close()
    return tmp_path / "o.db"


@pytest.fixture
def store(tmp_path):
    """An open store; the test may close it."""
    store = Store(tmp_path / "outbox.db", durability="process")
    yield store
    store.close()


def overwrite_page(path: Path, page: int) -> None:
    data = bytearray(path.read_bytes())
    data[page * 4096 : (page + 1) * 4096] = os.urandom(4096)
    path.write_bytes(data)


def names(path: Path) -> set[str]:
    return {file.name for file in path.parent.iterdir()} - {path.name + ".lock"}


def test_an_undamaged_outbox_is_not_touched(path):
    before = path.read_bytes()
    assert damage_in(path) is None
    store = open_outbox(path, durability="process")
    assert (store.notice, store.pending()) == ("", EVENTS)
    store.close()
    assert path.read_bytes()[100:] == before[100:]
    assert not any("damaged" in name for name in names(path))


def test_a_damaged_outbox_is_set_aside_with_a_notice(path):
    overwrite_page(path, 40)
    damaged_bytes = path.read_bytes()
    store = open_outbox(path, durability="process")
    (kept,) = [file for file in path.parent.iterdir() if ".damaged-" in file.name]
    assert kept.read_bytes() == damaged_bytes
    assert kept.name in store.notice
    lost = store.counters["dropped:damaged"]
    assert 0 < lost < 20
    assert f"{EVENTS - lost} pending events" in store.notice
    assert f"{lost} events are lost" in store.notice
    assert len(pending_ids(store)) == EVENTS - lost == store.pending()
    assert store.counters["accepted"] == EVENTS
    repeated = accept(store, [event(n, user=f"u{n}", padding=300) for n in range(EVENTS)])
    assert repeated.repeated >= EVENTS - lost  # ids of lost events are known too if their page is undamaged
    store.close()


@pytest.mark.parametrize("moment", ["set_aside", "salvage", "replace", "unlink"])
def test_a_crash_during_recovery_continues_at_the_next_start(path, monkeypatch, moment):
    class Killed(BaseException):
        pass

    def killed(*_, **__):
        raise Killed

    overwrite_page(path, 20)
    with monkeypatch.context() as patch:
        if moment in ("set_aside", "salvage"):
            original = getattr(recovery, moment)
            patch.setattr(recovery, moment, lambda *a, **k: (original(*a, **k), killed()))
        elif moment == "replace":
            original = Path.replace
            patch.setattr(
                Path, "replace", lambda self, to: killed() if self.name.endswith(".recovering") else original(self, to)
            )
        else:
            original = Path.unlink
            patch.setattr(
                Path, "unlink", lambda self, **k: killed() if self.name.endswith(".recover") else original(self, **k)
            )
        with pytest.raises(Killed):
            open_outbox(path, durability="process")
    store = open_outbox(path, durability="process")
    assert "set aside as" in store.notice
    assert store.pending() > EVENTS - 20
    store.close()
    assert sum(".damaged-" in name for name in names(path)) == 1
    assert not {name for name in names(path) if "recover" in name}


def test_a_file_that_cannot_be_opened_is_not_damaged(path, monkeypatch):
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("PRAGMA locking_mode = EXCLUSIVE")
    holder.execute("BEGIN EXCLUSIVE")
    monkeypatch.setattr("sidecar.outbox.database.BUSY_TIMEOUT_S", 0.1)
    with pytest.raises(Failed, match="locked"):
        open_outbox(path, durability="process")
    holder.close()
    path.unlink()
    path.mkdir()
    with pytest.raises(Failed, match="cannot be opened"):
        open_outbox(path, durability="process")
    assert names(path) == {"o.db"}


def test_a_newer_schema_is_not_set_aside(path):
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    connection.close()
    with pytest.raises(ConfigError, match="newer px-sidecar"):
        open_outbox(path, durability="process")
    assert not any("damaged" in name for name in names(path))


def test_a_file_of_another_program_is_not_set_aside(path):
    path.write_bytes(b"[px]\nproperty_key = 'x'\n" * 900)
    with pytest.raises(ConfigError, match="is not an outbox"):
        open_outbox(path, durability="process")
    assert names(path) == {"o.db"}


def test_an_empty_file_is_recovered_from_its_log(tmp_path):
    store = Store(tmp_path / "o.db", durability="process")
    accept(store, [event(n) for n in range(10)])
    copy = copied(tmp_path / "o.db", tmp_path / "killed")
    store.close()
    copy.write_bytes(b"")
    recovered = open_outbox(copy, durability="process")
    assert recovered.pending() == 10
    recovered.close()


def test_a_damage_marker_leads_to_one_recovery(path):
    mark_damaged(path)
    store = open_outbox(path, durability="process")
    assert "while it was in use" in store.notice
    assert store.pending() == EVENTS
    store.close()
    store = open_outbox(path, durability="process")
    assert store.notice == ""
    store.close()


def test_two_recoveries_in_one_second_keep_both_damaged_files(path, monkeypatch):
    class Now(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 1, 2, 3, 4, 5, tzinfo=tz)

    monkeypatch.setattr(recovery, "datetime", Now)
    for _ in range(2):
        overwrite_page(path, 20)
        open_outbox(path, durability="process").close()
    kept = sorted(name for name in names(path) if ".damaged-" in name and not name.endswith("-wal"))
    assert kept == ["o.db.damaged-20260102T030405Z", "o.db.damaged-20260102T030405Zx"]


def test_an_index_that_lost_an_event_contradicts_the_counters(path):
    store = Store(path, durability="process")
    assert contradiction(store) is None
    store.connection.execute("DROP INDEX pending")
    store.connection.execute("CREATE INDEX pending ON events (state, id) WHERE state < 0")
    store.counters["pending_high"] = 1
    assert "counts 1 pending events and holds none" in (contradiction(store) or "")
    store.connection.close()


def test_a_lost_quota_is_estimated_from_the_attempts(path):
    """Without its rows the quota of the day is computed from the attempts of settled events."""
    store = Store(path, durability="process")
    now_ms = 1_700_000_000_000
    with store.transaction():
        store.connection.execute(
            "UPDATE events SET state = 4, settled_ms = ?, status = 201, attempts = 2 WHERE id <= 50", (now_ms,)
        )
        store.count("pending_normal", -50)
        store.count("delivered", 50)
    store.close()
    mark_damaged(path)
    store = open_outbox(path, durability="process")
    assert sum(row[3] for row in store.quota_rows()) == 100
    store.close()


def test_the_damage_check_of_a_large_file_is_fast(tmp_path):
    store = Store(tmp_path / "o.db", durability="process")
    for first in range(0, 60_000, 5_000):
        accept(store, [event(n, padding=300) for n in range(first, first + 5_000)])
    store.close()
    started_s = time.perf_counter()
    assert damage_in(tmp_path / "o.db") is None
    assert time.perf_counter() - started_s < 0.05


def test_damage_in_a_block_leaves_a_marker_for_the_next_start(store):
    accept(store, [event(1)])
    with pytest.raises(Failed, match="the next start sets it aside"), recovery.damage_marker(store.path):
        raise damaged("a page is damaged")
    store.close()
    again = recovery.open_outbox(store.path, durability="process")
    assert "was damaged" in again.notice
    assert pending_ids(again) == [1]
    check_counters(again)
    again.close()


def test_another_error_in_a_block_leaves_no_marker(store):
    with pytest.raises(sqlite3.OperationalError, match="injected"), recovery.damage_marker(store.path):
        raise sqlite_error(sqlite3.SQLITE_BUSY)
    store.close()
    again = recovery.open_outbox(store.path, durability="process")
    assert again.notice == ""
    again.close()


def test_an_open_error_without_damage_sets_nothing_aside(tmp_path, monkeypatch):
    path = tmp_path / "outbox.db"
    Store(path, durability="process").close()
    monkeypatch.setattr(recovery, "Store", raiser(sqlite_error(sqlite3.SQLITE_BUSY)))
    with pytest.raises(sqlite3.OperationalError, match="injected"):
        recovery.open_outbox(path, durability="process")
    assert [file.name for file in tmp_path.iterdir() if "damaged" in file.name] == []


def test_damage_that_only_opening_detects_is_recovered(tmp_path, monkeypatch):
    path = tmp_path / "outbox.db"
    first = Store(path, durability="process")
    accept(first, [event(1), event(2)])
    first.close()
    real, tries = recovery.Store, []

    def once(*given, **more):
        tries.append(1)
        if len(tries) == 1:
            raise damaged("a page is damaged")
        return real(*given, **more)

    monkeypatch.setattr(recovery, "Store", once)
    again = recovery.open_outbox(path, durability="process")
    assert "a page is damaged" in again.notice
    assert pending_ids(again) == [1, 2]
    again.close()


def test_a_failed_recovery_continues_at_the_next_start(tmp_path, monkeypatch):
    path = tmp_path / "outbox.db"
    first = Store(path, durability="process")
    accept(first, [event(1)])
    first.close()
    recovery.mark_damaged(path)
    monkeypatch.setattr(recovery, "salvage", raiser(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(Failed, match="could not be recovered yet"):
        recovery.open_outbox(path, durability="process")
    monkeypatch.undo()
    again = recovery.open_outbox(path, durability="process")
    assert pending_ids(again) == [1]
    again.close()


def test_a_damaged_file_is_kept_until_it_is_recovered(path, monkeypatch):
    """With a disk too full for the recovery, `check` said to remove the only copy of all events."""
    mark_damaged(path)
    with monkeypatch.context() as patch:
        patch.setattr(recovery, "salvage", raiser(OSError(errno.ENOSPC, "No space left on device")))
        with pytest.raises(Failed):
            open_outbox(path, durability="process")
    (sentence,) = files_set_aside(path)
    assert "keep it" in sentence
    assert "remove" not in sentence
    open_outbox(path, durability="process").close()
    (sentence,) = files_set_aside(path)
    assert "remove it when you no longer need it" in sentence


@pytest.mark.parametrize("content", ["a backup", "not an outbox"])
def test_a_file_put_in_place_before_the_recovery_is_not_its_result(path, monkeypatch, content):
    """A backup was taken for the recovered outbox: "no event is known to be lost", and the damaged file was to be removed."""
    backup = path.with_name("backup.db")
    if content == "a backup":
        with closing(Store(backup)) as store:
            accept(store, [event("of the backup")])
    else:
        backup.write_bytes(b"not an outbox" * 100)
    mark_damaged(path)
    with monkeypatch.context() as patch:
        patch.setattr(recovery, "salvage", raiser(OSError(errno.ENOSPC, "No space left on device")))
        with pytest.raises(Failed, match="could not be recovered yet"):
            open_outbox(path, durability="process")
    backup.rename(path)
    if content == "a backup":
        with closing(open_outbox(path, durability="process")) as store:
            assert "outbox import" in store.notice
            assert len(pending_ids(store)) == 1
    else:
        with pytest.raises(ConfigError, match="not an outbox"):
            open_outbox(path, durability="process")
    (rescued,) = rescued_files(path)
    salvage(rescued, path.with_name("salvaged.db"), why="", progress=lambda: None)
    with closing(Store(path.with_name("salvaged.db"))) as store:
        assert len(pending_ids(store)) == EVENTS
    assert not recovery.recovery_is_unfinished(path)


def without_record(store: Store, table: str, name: str) -> None:
    store.connection.execute(f"DELETE FROM {table} WHERE name = ?", (name,))


def recovered_after(path: Path, change) -> Store:
    """Change the closed outbox as damage may, and recover it."""
    store = Store(path, durability="process")
    change(store)
    store.connection.close()
    mark_damaged(path)
    return open_outbox(path, durability="process")


@pytest.mark.parametrize("name", ["accepted", "delivered"])
def test_damage_never_lowers_what_was_accepted(path, name):
    """The counter of accepted events was on a damaged page: afterwards it was the number of rows that were found."""

    def change(store):
        settle(store, [delivered(event_id) for event_id in range(1, 101)])
        with store.transaction():
            store.connection.execute("DELETE FROM events WHERE state = 4")
        without_record(store, "counters", name)

    store = recovered_after(path, change)
    assert store.counters["accepted"] == EVENTS
    assert store.counters["next_id"] == EVENTS
    assert "no event is known to be lost" not in store.notice or name == "accepted"
    if name == "delivered":
        assert "100 events are lost or were settled and pruned" in store.notice
    store.close()


def test_all_counters_lost_says_that_losses_are_not_known(path):
    def change(store):
        settle(store, [delivered(event_id) for event_id in range(1, 101)])
        with store.transaction():
            store.flush_ids(everything=True)
            store.connection.execute("DELETE FROM events WHERE state = 4")
        store.connection.execute("DELETE FROM counters")

    store = recovered_after(path, change)
    assert store.counters["accepted"] == EVENTS
    assert (store.pending(), store.counters["dropped:damaged"]) == (EVENTS - 100, 100)
    assert "no event is known to be lost" not in store.notice
    store.close()


def test_damaged_frames_of_the_log_are_not_called_lossless(tmp_path):
    store = Store(tmp_path / "o.db", durability="process")
    accept(store, [event(n) for n in range(10)])
    for n in range(10, 14):
        accept(store, [event(n)])
    copy = copied(tmp_path / "o.db", tmp_path / "killed")
    store.close()
    log = copy.with_name("o.db-wal")
    data = bytearray(log.read_bytes())
    data[len(data) - 5 * 4120] ^= 1
    log.write_bytes(data)
    recovered = open_outbox(copy, durability="process")
    assert "damaged parts of the log held is not known" in recovered.notice
    recovered.close()


def test_a_failed_recovery_says_what_it_needs_and_leaves_nothing(path, monkeypatch):
    overwrite_page(path, 40)
    (path.with_name("o.db.reserve")).write_bytes(b"r")
    monkeypatch.setattr(recovery, "_free_bytes", lambda _folder: 4096)

    def full(_source, target, **_):
        target.write_bytes(b"half a copy")
        raise sqlite_error(sqlite3.SQLITE_FULL)

    monkeypatch.setattr(recovery, "salvage", full)
    with pytest.raises(Failed, match=r"needs up to .* beside the damaged file, so free .* on the disk of"):
        open_outbox(path, durability="process")
    assert not {name for name in names(path) if "recovering" in name or "reserve" in name}
    monkeypatch.undo()
    open_outbox(path, durability="process").close()


@pytest.mark.parametrize(("free_bytes", "kept"), [(0, False), (recovery.OPENING_BYTES, True)])
def test_a_start_on_a_full_disk_uses_the_reserve(path, monkeypatch, free_bytes, kept):
    """After a clean stop there is no log, and without space for one the daemon did not start beside a reserve of 24 MiB."""
    reserve = path.with_name(path.name + RESERVE)
    reserve.write_bytes(b"reserved")
    monkeypatch.setattr(recovery, "_free_bytes", lambda _folder: free_bytes)
    open_outbox(path, durability="process").close()
    assert reserve.exists() == kept


def test_a_salvage_is_one_complete_file(path):
    overwrite_page(path, 40)
    salvage(path, path.with_name("new.db"), why="", progress=lambda: None)
    assert {name for name in names(path) if name.startswith("new")} == {"new.db"}
    copy = copied(path.with_name("new.db"), path.parent / "copy")
    store = Store(copy, durability="process")
    assert store.pending() > EVENTS - 20
    store.close()


def test_caps_of_the_day_survive_damage(path):
    store = recovered_after(path, lambda store: store.connection.execute("INSERT INTO caps VALUES (3, 20000, 17)"))
    assert store.cap_rows() == [(3, 20000, 17)]
    store.close()
