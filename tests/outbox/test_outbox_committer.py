"""The committer: what a failed call means for its batch, and what the callers get."""

import errno
import os
import sqlite3
from pathlib import Path

import pytest
from outbox_files import NOW_MS, accept, delivered, event, pending_ids, raiser, sqlite_error

from sidecar.outbox import Capacity, DiskFull, Store, StoreFailed, recovery
from sidecar.outbox.committer import DISK_FULL_BYTES, QUIET_STEPS, Batch, Committer, Damaged, WriteRequest
from sidecar.outbox.database import damaged


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path / "outbox.db", durability="process")
    yield made
    made.close()


def test_maintenance_reports_a_failing_folder_and_is_retried(store, monkeypatch):
    committer = Committer(store, Capacity(store.path, 2**30))
    monkeypatch.setattr(Capacity, "allocate_reserve", raiser(OSError(errno.EIO, "I/O error")))
    more, problem = committer.maintain(lambda *_: True, Batch(NOW_MS))
    assert not more
    assert isinstance(problem, StoreFailed)
    assert "I/O error" in str(problem)
    monkeypatch.undo()
    assert committer.maintain(lambda *_: True, Batch(NOW_MS)) == (True, None)


def test_the_log_is_checkpointed_once_after_a_quiet_time(store, monkeypatch):
    """A checkpoint each second cost a lone event a third sync, and a third of all bytes that it writes."""
    checkpoints = []
    monkeypatch.setattr(Store, "checkpoint", lambda _store, **_how: checkpoints.append(len(seen)))
    committer = Committer(store, Capacity(store.path, 2**30))
    seen = []

    def second(*, with_event=False):
        if with_event:
            accept(store, [event(len(seen))])
        seen.append(with_event)
        assert committer.maintain(lambda *_: False, Batch(NOW_MS)) == (False, None)

    for _ in range(50):
        second(with_event=True)
    assert checkpoints == []
    for _ in range(100):
        second()
    assert checkpoints == [50 + QUIET_STEPS]
    second(with_event=True)
    for _ in range(QUIET_STEPS):
        second()
    assert len(checkpoints) == 2


@pytest.mark.parametrize("full", ["nearly", "disk_full"])
def test_the_log_is_checkpointed_at_each_step_while_space_is_short(store, monkeypatch, full):
    checkpoints = []
    monkeypatch.setattr(Store, "checkpoint", lambda _store, **_how: checkpoints.append(1))
    capacity = Capacity(store.path, 1 if full == "nearly" else 2**30)
    committer = Committer(store, capacity)
    if full == "disk_full":
        capacity.full = full
        for name in ("measure", "allocate_reserve"):
            monkeypatch.setattr(Capacity, name, lambda *_: None)
    for _ in range(3):
        committer.maintain(lambda *_: False, Batch(NOW_MS))
    assert len(checkpoints) == 3


def test_a_full_disk_in_maintenance_only_refuses_events(store):
    capacity = Capacity(store.path, 2**30)
    committer = Committer(store, capacity)
    assert committer.maintain(raiser(sqlite_error(sqlite3.SQLITE_FULL)), Batch(NOW_MS)) == (False, None)
    assert capacity.full == "disk_full"


def test_a_wrong_statement_in_maintenance_is_raised(store):
    committer = Committer(store, Capacity(store.path, 2**30))
    with pytest.raises(sqlite3.OperationalError, match="injected"):
        committer.maintain(raiser(sqlite_error(sqlite3.SQLITE_ERROR)), Batch(NOW_MS))


def test_maintenance_reports_counters_that_contradict_the_rows(store, monkeypatch):
    committer = Committer(store, Capacity(store.path, 2**30))
    monkeypatch.setattr(recovery, "contradiction", lambda _: "a counter is below zero")
    more, problem = committer.maintain(lambda *_: False, Batch(NOW_MS))
    assert not more
    assert "a counter is below zero" in str(problem)
    _, problem = committer.maintain(lambda *_: False, Batch(NOW_MS))
    assert isinstance(problem, Damaged), "the second time it is not a single failed read"


def test_an_io_error_without_free_bytes_is_a_full_disk(store, monkeypatch):
    capacity = Capacity(store.path, 2**30)
    committer = Committer(store, capacity)
    batch = Batch(NOW_MS)
    batch.writes.append(WriteRequest(raiser(sqlite_error(sqlite3.SQLITE_IOERR))))
    monkeypatch.setattr(Capacity, "free_bytes", lambda _: DISK_FULL_BYTES - 1)
    committer.run_batch(batch)
    assert isinstance(batch.writes[0].error, DiskFull)
    assert capacity.full == "disk_full"


@pytest.mark.parametrize(
    ("code", "owner", "call", "expected"),
    [
        (sqlite3.SQLITE_IOERR, os, "statvfs", "disk_error"),
        (sqlite3.SQLITE_FULL, Path, "unlink", "disk_full"),
    ],
)
def test_an_error_met_while_one_is_judged_ends_nothing(store, monkeypatch, code, owner, call, expected):
    """The folder was gone or read-only by then, and its error ended the daemon."""
    committer = Committer(store, Capacity(store.path, 2**30))
    batch = Batch(NOW_MS)
    batch.accepts.append(WriteRequest([event(1)]))
    monkeypatch.setattr(Store, "accept", raiser(sqlite_error(code)))
    monkeypatch.setattr(owner, call, raiser(OSError(errno.EIO, "I/O error")))
    committer.run_batch(batch)
    assert batch.accepts[0].error.code == expected


def test_a_program_error_while_settling_settles_nothing(store, monkeypatch):
    accept(store, [event(1)])
    committer = Committer(store, Capacity(store.path, 2**30))
    batch = Batch(NOW_MS)
    batch.settlements.append(delivered(1))
    monkeypatch.setattr(Store, "settle", raiser(ValueError("a mistake")))
    with pytest.raises(ValueError, match="a mistake"):
        committer.run_batch(batch)
    assert pending_ids(store) == [1]


def test_a_disk_error_goes_to_all_callers_of_a_split_batch(store, monkeypatch):
    committer = Committer(store, Capacity(store.path, 2**30))
    batch = Batch(NOW_MS)
    batch.accepts += [WriteRequest([event(1)]), WriteRequest([event(2)])]
    batch.settlements.append(delivered(1))
    monkeypatch.setattr(Store, "accept", raiser(ValueError("a mistake")))
    tries = []

    def settle(*_):
        tries.append(1)
        if len(tries) > 1:
            raise sqlite_error(sqlite3.SQLITE_BUSY)

    monkeypatch.setattr(Store, "settle", settle)
    problem = committer.run_batch(batch)
    assert isinstance(problem, StoreFailed)
    assert [request.error for request in batch.accepts] == [problem, problem]


def test_damage_in_a_read_only_folder_reports_both(store, monkeypatch):
    committer = Committer(store, Capacity(store.path, 2**30))
    monkeypatch.setattr(recovery, "mark_damaged", raiser(OSError(errno.EROFS, "Read-only file system")))
    batch = Batch(NOW_MS)
    batch.reads.append(WriteRequest(raiser(damaged("a page is damaged"))))
    committer.run_batch(batch)
    message = str(batch.reads[0].error)
    assert "a page is damaged" in message
    assert "Read-only file system" in message
