"""What the outbox says and does where the system refuses it: locks, folders, lack of room, damage found in the middle."""

import errno
import os
import sqlite3

import pytest
from outbox_files import NOW_MS, accept, check_account, delivered, event, pending_ids

from sidecar.errors import Failed
from sidecar.outbox import DiskFull, Room, Store, StoreFailed, committer, recovery
from sidecar.outbox.committer import Committer, Damaged, Note, Work
from sidecar.outbox.database import WAL_BYTES, damaged, take_lock, wal_bytes
from sidecar.outbox.forget import theirs


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path / "outbox.db", durability="process")
    yield made
    made.close()


def sqlite_error(code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("injected")
    error.sqlite_errorcode = code
    return error


def raiser(error: Exception):
    def call(*_, **__):
        raise error

    return call


# --- lock and folder ---


def test_a_lock_that_the_file_system_cannot_give_is_told_apart_from_one_that_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr("fcntl.flock", raiser(OSError(errno.ENOLCK, "No locks available")))
    with pytest.raises(Failed, match=r"cannot be taken \(No locks available\); is its file system local"):
        take_lock(tmp_path / "outbox.db")


def test_of_a_folder_that_cannot_be_looked_at_the_log_has_its_usual_size(tmp_path):
    assert wal_bytes(tmp_path / "nowhere") == WAL_BYTES


def test_a_folder_that_is_not_there_is_said_when_the_file_is_opened(tmp_path):
    with pytest.raises(Failed, match="nowhere"):
        Store(tmp_path / "nowhere" / "outbox.db", durability="process")


# --- room ---


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_reserve_that_finds_no_room_means_a_full_disk(tmp_path, monkeypatch, code):
    room = Room(tmp_path / "outbox.db", 2**30)
    monkeypatch.setattr(os, "posix_fallocate", raiser(OSError(code, "no room")))
    room.lay_by()
    assert room.full == "disk_full"
    assert not (tmp_path / "outbox.db.reserve").exists()
    monkeypatch.undo()
    room.lay_by()
    assert room.full is None


def test_a_reserve_that_cannot_be_made_otherwise_is_an_error(tmp_path, monkeypatch):
    room = Room(tmp_path / "outbox.db", 2**30)
    monkeypatch.setattr(os, "posix_fallocate", raiser(OSError(errno.EIO, "I/O error")))
    with pytest.raises(OSError, match="I/O error"):
        room.lay_by()


# --- housekeeping ---


def test_housekeeping_on_a_folder_that_fails_is_told_and_tried_again(store, monkeypatch):
    work = Committer(store, Room(store.path, 2**30))
    monkeypatch.setattr(Room, "lay_by", raiser(OSError(errno.EIO, "I/O error")))
    more, problem = work.keep_house(lambda *_: True, NOW_MS)
    assert not more
    assert isinstance(problem, StoreFailed)
    assert "I/O error" in str(problem)
    monkeypatch.undo()
    assert work.keep_house(lambda *_: True, NOW_MS) == (True, None)


def test_a_full_disk_in_housekeeping_refuses_events_but_is_no_illness(store):
    room = Room(store.path, 2**30)
    work = Committer(store, room)
    assert work.keep_house(raiser(sqlite_error(sqlite3.SQLITE_FULL)), NOW_MS) == (False, None)
    assert room.full == "disk_full"


def test_a_mistake_in_housekeeping_is_not_taken_for_an_ill_disk(store):
    work = Committer(store, Room(store.path, 2**30))
    with pytest.raises(sqlite3.OperationalError, match="injected"):
        work.keep_house(raiser(sqlite_error(sqlite3.SQLITE_ERROR)), NOW_MS)


def test_housekeeping_finds_an_account_that_does_not_add_up(store, monkeypatch):
    work = Committer(store, Room(store.path, 2**30))
    monkeypatch.setattr(recovery, "contradiction", lambda _: "a counter is below zero")
    more, problem = work.keep_house(lambda *_: False, NOW_MS)
    assert not more
    assert "a counter is below zero" in str(problem)
    _, problem = work.keep_house(lambda *_: False, NOW_MS)
    assert isinstance(problem, Damaged), "the second time it is no slip of one read"


# --- commits ---


def test_an_io_error_on_a_disk_without_room_is_a_full_disk(store, monkeypatch):
    room = Room(store.path, 2**30)
    work = Committer(store, room)
    asked = Work(NOW_MS, ())
    asked.writes.append(Note(raiser(sqlite_error(sqlite3.SQLITE_IOERR))))
    monkeypatch.setattr(Room, "free_bytes", lambda _: committer.NO_ROOM_BYTES - 1)
    work.trip(asked)
    assert isinstance(asked.writes[0].error, DiskFull)
    assert room.full == "disk_full"


def test_a_mistake_in_settling_is_an_error_of_the_program_and_settles_nothing(store, monkeypatch):
    accept(store, [event(1)])
    work = Committer(store, Room(store.path, 2**30))
    asked = Work(NOW_MS, ())
    asked.settlements.append(delivered(1))
    monkeypatch.setattr(Store, "settle", raiser(ValueError("a mistake")))
    with pytest.raises(ValueError, match="a mistake"):
        work.trip(asked)
    assert pending_ids(store) == [1]


def test_with_one_event_that_cannot_be_stored_and_an_ill_disk_all_learn_of_the_disk(store, monkeypatch):
    work = Committer(store, Room(store.path, 2**30))
    asked = Work(NOW_MS, ())
    asked.accepts += [Note([event(1)]), Note([event(2)])]
    asked.settlements.append(delivered(1))
    monkeypatch.setattr(Store, "accept", raiser(ValueError("a mistake")))
    tries = []

    def settle(*_):
        tries.append(1)
        if len(tries) > 1:
            raise sqlite_error(sqlite3.SQLITE_BUSY)

    monkeypatch.setattr(Store, "settle", settle)
    problem = work.trip(asked)
    assert isinstance(problem, StoreFailed)
    assert [note.error for note in asked.accepts] == [problem, problem]


def test_damage_in_a_folder_that_cannot_be_written_is_said_with_both(store, monkeypatch):
    work = Committer(store, Room(store.path, 2**30))
    monkeypatch.setattr(recovery, "mark", raiser(OSError(errno.EROFS, "Read-only file system")))
    asked = Work(NOW_MS, ())
    asked.reads.append(Note(raiser(damaged("a page is not what it was"))))
    work.trip(asked)
    said = str(asked.reads[0].error)
    assert "a page is not what it was" in said
    assert "Read-only file system" in said


# --- damage ---


def test_damage_that_is_found_by_the_way_is_noted_for_the_next_start(store):
    accept(store, [event(1)])
    with pytest.raises(Failed, match="set aside at the next start"), recovery.marking(store.path):
        raise damaged("a page is not what it was")
    store.close()
    again = recovery.open_outbox(store.path, durability="process")
    assert "was damaged" in again.notice
    assert pending_ids(again) == [1]
    check_account(again)
    again.close()


def test_another_error_by_the_way_is_not_taken_for_damage(store):
    with pytest.raises(sqlite3.OperationalError, match="injected"), recovery.marking(store.path):
        raise sqlite_error(sqlite3.SQLITE_BUSY)
    store.close()
    again = recovery.open_outbox(store.path, durability="process")
    assert again.notice == ""
    again.close()


def test_an_error_while_opening_that_is_no_damage_sets_nothing_aside(tmp_path, monkeypatch):
    path = tmp_path / "outbox.db"
    Store(path, durability="process").close()
    monkeypatch.setattr(recovery, "Store", raiser(sqlite_error(sqlite3.SQLITE_BUSY)))
    with pytest.raises(sqlite3.OperationalError, match="injected"):
        recovery.open_outbox(path, durability="process")
    assert [one.name for one in tmp_path.iterdir() if "damaged" in one.name] == []


def test_damage_that_only_opening_shows_is_recovered(tmp_path, monkeypatch):
    path = tmp_path / "outbox.db"
    first = Store(path, durability="process")
    accept(first, [event(1), event(2)])
    first.close()
    real, tries = recovery.Store, []

    def once(*given, **more):
        tries.append(1)
        if len(tries) == 1:
            raise damaged("a page is not what it was")
        return real(*given, **more)

    monkeypatch.setattr(recovery, "Store", once)
    again = recovery.open_outbox(path, durability="process")
    assert "a page is not what it was" in again.notice
    assert pending_ids(again) == [1, 2]
    again.close()


def test_a_recovery_that_fails_is_gone_on_with_at_the_next_start(tmp_path, monkeypatch):
    path = tmp_path / "outbox.db"
    first = Store(path, durability="process")
    accept(first, [event(1)])
    first.close()
    recovery.mark(path)
    monkeypatch.setattr(recovery, "salvage", raiser(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(Failed, match="could not be recovered yet"):
        recovery.open_outbox(path, durability="process")
    monkeypatch.undo()
    again = recovery.open_outbox(path, durability="process")
    assert pending_ids(again) == [1]
    again.close()


# --- a damaged body ---


def test_a_body_that_cannot_be_read_belongs_to_whoever_stands_in_it():
    is_theirs = theirs(["somebody"])
    assert is_theirs(None, b'{"userId":"somebody"')
    assert not is_theirs(None, b'{"userId":"anybody"')
    assert not is_theirs(None, b'{"userId":"x","properties":{"said":"somebody"}}')
