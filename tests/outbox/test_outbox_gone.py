"""The outbox is gone from its path and cannot be put back: nothing is stored, nothing is lost, and the process stays."""

import os
import shutil
import sqlite3
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
import trio
from outbox_files import accept, copied, delivered, event, pending_ids, raiser, settle, sqlite_error

from sidecar.clock import SystemClock, VirtualClock
from sidecar.errors import Failed
from sidecar.observe import DaemonTelemetry, RecordingTelemetry
from sidecar.outbox import Capacity, InlineRunner, Outbox, Store, StoreFailed, ThreadRunner, recovery, rescue, take_lock
from sidecar.outbox.accept_queue import WriteRequest
from sidecar.outbox.committer import Batch, Committer, Damaged, OutboxGone
from sidecar.outbox.pages import wal_path
from sidecar.outbox.rescue import FileWatch, OutboxReplaced, files_set_aside, mark_imported, rescued_files


@pytest.fixture
def store(tmp_path):
    (tmp_path / "state").mkdir()
    store = Store(tmp_path / "state" / "o.db")
    accept(store, [event(number) for number in range(5)])
    yield store
    store.close()


@asynccontextmanager
async def running(store):
    telemetry = RecordingTelemetry()
    outbox = Outbox(
        store,
        VirtualClock(started_s=trio.current_time()),
        Capacity(store.path, 2**30),
        InlineRunner(),
        telemetry=telemetry,
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outbox.run)
        yield outbox, telemetry
        outbox.stop()


def no_space(*_, **__):
    raise OSError(28, "No space left on device")


async def test_the_process_stays_until_the_file_can_be_put_back(store, monkeypatch, autojump_clock):
    """After ten failures the process ended, and with it the only copy of everything."""
    monkeypatch.setattr(rescue, "copy_database", no_space)
    async with running(store) as (outbox, telemetry):
        shutil.rmtree(store.path.parent)
        for number in range(30):
            with pytest.raises(OutboxGone, match="do not stop it"):
                await outbox.accept([event(f"refused{number}")])
            assert outbox.problem is not None
        monkeypatch.undo()
        await outbox.accept([event("after")])
        assert outbox.problem is None
    assert telemetry.storable == ["disk_error", ""]  # what the log says
    # The events that were refused while the first batch was committed are there as well: their clients send them again.
    assert {"after", *map(str, range(5))} <= {message_id(store, event_id) for event_id in pending_ids(store)}
    assert rescued_files(store.path) == []


def message_id(store, event_id):
    body = store.connection.execute("SELECT body FROM events WHERE id = ?", (event_id,)).fetchone()[0]
    return body.split(b'"')[3].decode()[1:]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), sqlite_error(sqlite3.SQLITE_FULL)])
def test_the_reserve_makes_room_for_the_copy(store, monkeypatch, error):
    """The outbox could not be put back on a full disk, while the reserve beside it stayed."""
    capacity = Capacity(store.path, 2**30)
    committer = Committer(store, capacity)
    assert committer.maintain(lambda *_: False, Batch(0)) == (False, None)
    reserve = store.path.with_name("o.db.reserve")
    assert reserve.exists()
    store.path.unlink()
    monkeypatch.setattr(rescue, "copy_database", raiser(error))
    assert isinstance(one_more(committer, "a")[0], OutboxGone)
    assert not reserve.exists()
    assert capacity.full is None


async def test_no_empty_file_is_made_by_reopening(store, monkeypatch, autojump_clock):
    """After an error of the disk the connection is opened again: where the file was gone, that made an empty outbox."""
    async with running(store) as (outbox, _):
        outbox._committer._suspect = True  # as after SQLITE_IOERR
        for file in store.path.parent.glob("o.db*"):
            file.unlink()
        await outbox.accept([event("after")])
    assert len(pending_ids(store)) == 6


async def test_a_file_that_vanished_while_not_open_is_not_recreated(store, monkeypatch, autojump_clock):
    async with running(store) as (outbox, _):
        outbox._committer._suspect = True  # as after SQLITE_IOERR
        with monkeypatch.context() as patch:
            patch.setattr("sidecar.outbox.store.open_database", raiser(Failed("The disk fails.")))
            with pytest.raises(StoreFailed, match="The disk fails"):
                await outbox.accept([event("refused")])
        aside = store.path.rename(store.path.with_name("aside"))
        with pytest.raises(StoreFailed, match="gone from its path"):
            await outbox.accept([event("refused")])
        assert not store.path.exists()
        aside.rename(store.path)
        await outbox.accept([event("after")])
    assert len(pending_ids(store)) == 6


def test_a_file_that_was_replaced_while_not_open_ends_the_process(store, monkeypatch):
    """It failed ten times and ended as after an error of the disk: the next start took the other file without a word."""
    committer = Committer(store, Capacity(store.path, 2**30))
    with monkeypatch.context() as patch:
        patch.setattr("sidecar.outbox.store.open_database", raiser(Failed("The disk fails.")))
        committer._suspect = True  # as after SQLITE_IOERR
        assert committer.run_batch(Batch(0)) is not None
    aside = store.path.rename(store.path.with_name("aside"))
    store.path.write_bytes(b"another file")
    with pytest.raises(OutboxReplaced, match="find the file that was moved away"):
        committer.run_batch(Batch(0))
    aside.rename(store.path)
    assert committer.run_batch(Batch(0)) is None


def test_half_a_copy_is_not_named_rescued(store, monkeypatch):
    watch = FileWatch(store)
    store.path.unlink()
    store.path.write_bytes(b"another file")

    def half(_connection, target, *_):
        target.write_bytes(b"half a copy")
        no_space()

    monkeypatch.setattr(rescue, "copy_database", half)
    with pytest.raises(OSError, match="No space"):
        watch.check()
    assert sorted(file.name for file in store.path.parent.iterdir()) == ["o.db", "o.db-shm", "o.db-wal"]


def test_the_copy_is_locked_before_it_is_renamed(store):
    claimed = []
    store.claim = lambda path=None: claimed.append((path, store.path.exists()))
    watch = FileWatch(store)
    store.path.unlink()
    watch.check()
    assert [(path is not None, there) for path, there in claimed] == [(True, False), (False, True)]


def test_a_large_copy_reports_that_it_is_alive(store, monkeypatch):
    monkeypatch.setattr("sidecar.outbox.database.BACKUP_PAGES", 2)
    alive = []
    watch = FileWatch(store, lambda: alive.append(watch.rescuing))
    store.path.unlink()
    watch.check()
    assert len(alive) > 5
    assert all(alive)
    assert not watch.rescuing


def test_a_folder_without_permission_is_not_a_missing_file(store, monkeypatch):
    watch = FileWatch(store)
    with monkeypatch.context() as patch:
        patch.setattr(rescue.os, "stat", raiser(PermissionError(13, "Permission denied")))
        with pytest.raises(PermissionError):
            watch.check()
    assert watch.check() is None
    assert rescued_files(store.path) == []


def test_rescued_and_damaged_files_are_named_until_they_are_gone(store):
    watch = FileWatch(store)
    store.path.unlink()
    store.path.write_bytes(b"another file")
    with pytest.raises(OutboxReplaced):
        watch.check()
    (copy,) = rescued_files(store.path)
    damaged = store.path.with_name("o.db.damaged-20260101T000000Z")
    # The copy that an import works with was named, too, as a file to import.
    for name in (damaged.name, damaged.name + "-wal", copy.name + ".importing", copy.name + ".importing-journal"):
        damaged.with_name(name).write_bytes(b"")
    rescued_sentence, damaged_sentence = files_set_aside(store.path)
    assert f"outbox import {copy}" in rescued_sentence
    assert f"{damaged} is a damaged outbox" in damaged_sentence
    mark_imported(copy)
    assert files_set_aside(store.path) == [damaged_sentence]
    damaged.unlink()
    assert files_set_aside(store.path) == []


def test_many_files_set_aside_take_few_lines(store):
    for number in range(9):
        store.path.with_name(f"o.db.damaged-2026010{number}T000000Z").write_bytes(b"")
    sentences = files_set_aside(store.path)
    assert len(sentences) == 4
    assert sentences[-1].startswith("6 more such files")


def test_a_failing_disk_is_a_problem_of_its_own():
    assert issubclass(OutboxGone, StoreFailed)


async def test_a_long_copy_in_the_store_thread_keeps_the_heartbeat(store):
    """The heartbeat was beaten in the store's thread, where trio's clock cannot be read: the process ended."""
    telemetry = DaemonTelemetry(SystemClock(), lambda: lambda event: event, version="0")
    outbox = Outbox(store, SystemClock(), Capacity(store.path, 2**30), ThreadRunner(), telemetry=telemetry)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outbox.run)
        store.path.unlink()
        await outbox.accept([event("after")])
        outbox.stop()
    assert len(pending_ids(store)) == 6


def test_a_file_that_was_put_there_meanwhile_is_not_overwritten(store, monkeypatch):
    """Between the look at the path and the end of a long copy an operator may put a backup there."""
    watch = FileWatch(store)
    store.path.unlink()
    real = rescue.copy_database

    def copy_slowly(*given):
        real(*given)
        store.path.write_bytes(b"a backup")
        wal_path(store.path).write_bytes(b"its log")

    with monkeypatch.context() as patch:
        patch.setattr(rescue, "copy_database", copy_slowly)
        with pytest.raises(FileExistsError):
            watch.check()
    assert store.path.read_bytes() == b"a backup"
    assert wal_path(store.path).read_bytes() == b"its log"
    with pytest.raises(OutboxReplaced):
        watch.check()


def test_a_folder_exchanged_during_the_look_is_no_missing_index(store, tmp_path, monkeypatch):
    """The file was in place and its index was not: the store was opened again, on the file of the other folder."""
    folder, other = store.path.parent, tmp_path / "other"
    other.mkdir()
    (other / "o.db").write_bytes(b"a backup")
    watch = FileWatch(store)
    real = rescue.file_id

    def exchange(path):
        if str(path).endswith("-shm") and other.exists():
            folder.rename(tmp_path / "away")
            other.rename(folder)
        return real(path)

    monkeypatch.setattr(rescue, "file_id", exchange)
    with pytest.raises(OutboxReplaced, match="its events are in"):
        watch.check()
    (copy,) = rescued_files(store.path)
    rescued = Store(copy)
    assert len(pending_ids(rescued)) == 5
    rescued.close()


def test_a_missing_index_is_made_again(store):
    watch = FileWatch(store)
    index = store.path.with_name("o.db-shm")
    index.unlink()
    assert "was made again" in (watch.check() or "")
    assert index.exists()
    assert watch.check() is None
    accept(store, [event("after")])
    assert len(pending_ids(store)) == 6


def test_a_link_that_leads_elsewhere_is_noticed(tmp_path):
    folder, other = tmp_path / "state", tmp_path / "other"
    folder.mkdir()
    other.mkdir()
    link = tmp_path / "link"
    link.symlink_to(folder)
    store = Store(folder / "o.db", configured=link / "o.db")
    watch = FileWatch(store)
    assert watch.check() is None
    link.unlink()
    link.symlink_to(other)
    with pytest.raises(OutboxReplaced, match="no longer leads to the outbox"):
        watch.check()
    store.close()


def test_a_file_removed_during_the_look_is_no_changed_link(tmp_path, monkeypatch):
    """It was there, and not by its link a moment later: the process ended with the only copy of the events."""
    folder = tmp_path / "state"
    folder.mkdir()
    (tmp_path / "link").symlink_to(folder)
    store = Store(folder / "o.db", configured=tmp_path / "link" / "o.db")
    accept(store, [event(number) for number in range(5)])
    watch = FileWatch(store)
    real = rescue.file_id

    def remove(path, *, follow=False):
        if follow and not store.path.with_name("removed").exists():
            store.path.rename(store.path.with_name("removed"))
        return real(path, follow=follow)

    monkeypatch.setattr(rescue, "file_id", remove)
    assert "was put back from memory" in (watch.check() or "")
    assert watch.check() is None
    assert len(pending_ids(store)) == 5
    store.close()


@pytest.mark.parametrize("size", [0, 4096])
def test_a_file_that_another_program_cuts_is_damage(store, size):
    for _ in range(3):
        store.checkpoint()
    watch = FileWatch(store)
    assert watch.check() is None
    with store.path.open("r+b") as file:
        file.truncate(size)
    with pytest.raises(sqlite3.DatabaseError, match="has cut it") as caught:
        watch.check()
    assert recovery.is_damage(caught.value)


def one_more(committer, name):
    batch = Batch(0)
    batch.accepts = [WriteRequest([event(name)])]
    return committer.run_batch(batch), batch.accepts[0].error


def test_a_copy_over_the_file_of_its_own_size_is_noticed(store, tmp_path):
    """Events were answered on pages of two files, and checkpoints mixed them."""
    accept(store, [event(f"e{number}") for number in range(300)])
    store.checkpoint(truncate=True)
    committer = Committer(store, Capacity(store.path, 2**30))
    assert one_more(committer, "a") == (None, None)
    backup = shutil.copy(store.path, tmp_path)
    settle(store, [delivered(number) for number in range(1, 4)])
    committer.maintain(lambda *_: False, Batch(0))
    store.checkpoint(truncate=True)
    committer.maintain(lambda *_: False, Batch(0))
    assert one_more(committer, "b") == (None, None)
    assert store.path.stat().st_size == Path(backup).stat().st_size
    shutil.copyfile(backup, store.path)
    problem, refused = one_more(committer, "c")
    assert isinstance(problem, Damaged)
    assert "another file over it" in str(problem)
    assert refused is not None


def test_a_smaller_copy_is_noticed_while_the_outbox_itself_may_shrink(store):
    """In the first minutes of a process SQLite may make the file smaller, so the size alone said nothing."""
    accept(store, [event(f"e{number}") for number in range(300)])
    store.checkpoint()
    committer = Committer(store, Capacity(store.path, 2**30))
    assert store.may_shrink
    assert one_more(committer, "a") == (None, None)
    os.truncate(store.path, store.path.stat().st_size - 4096)
    assert isinstance(one_more(committer, "b")[0], Damaged)


@pytest.mark.parametrize("missing", ["all", "a byte"])
def test_a_log_that_another_program_cuts_is_damage(store, missing):
    """Events were answered from a log without its beginning: a restart ignored it, and found none of them."""
    committer = Committer(store, Capacity(store.path, 2**30))
    assert one_more(committer, "a") == (None, None)
    log = wal_path(store.path)
    os.truncate(log, 0 if missing == "all" else log.stat().st_size - 1)
    problem, refused = one_more(committer, "b")
    assert isinstance(problem, Damaged)
    assert "cut its log" in str(problem)
    assert refused is not None
    assert recovery.recovery_is_unfinished(store.path)


def test_a_log_that_is_cut_during_a_call_is_noticed_at_the_next(store):
    committer = Committer(store, Capacity(store.path, 2**30))
    assert one_more(committer, "a") == (None, None)
    batch = Batch(0)
    batch.reads = [WriteRequest(lambda store: os.truncate(wal_path(store.path), 0))]
    assert committer.run_batch(batch) is None
    assert isinstance(one_more(committer, "b")[0], Damaged)


def test_a_log_that_this_process_empties_is_not_damage(store):
    committer = Committer(store, Capacity(store.path, 2**30))
    assert one_more(committer, "a") == (None, None)
    batch = Batch(0)
    batch.reads = [WriteRequest(lambda store: store.checkpoint(truncate=True))]
    assert committer.run_batch(batch) is None
    assert wal_path(store.path).stat().st_size == 0
    for name in "bc":
        assert one_more(committer, name) == (None, None)
    assert len(pending_ids(store)) == 8


@pytest.mark.parametrize("content", ["", "another database"])
def test_a_copy_without_the_tables_of_an_outbox_is_damage(store, tmp_path, content):
    """It was opened again as an outbox: a new, empty one was made there, and all events were gone without a word."""
    store.close()
    store.reopen()  # without a log SQLite takes the size of the file from the file
    committer = Committer(store, Capacity(store.path, 2**30))
    batch = Batch(0)
    batch.reads = [WriteRequest(Store.pending)]
    assert committer.run_batch(batch) is None
    other = tmp_path / "other.db"
    other.touch()
    if content:
        with closing(sqlite3.connect(other)) as connection:
            connection.execute("CREATE TABLE notes (note)")
    shutil.copyfile(other, store.path)
    assert isinstance(one_more(committer, "b")[0], Damaged)
    assert recovery.recovery_is_unfinished(store.path)


def test_a_file_that_another_program_leaves_intact_is_not_damage(store):
    """A `touch`, and the checkpoint of another program, change the time of the file as a copy over it does."""
    committer = Committer(store, Capacity(store.path, 2**30))
    assert one_more(committer, "a") == (None, None)
    os.utime(store.path, ns=(1, 1))
    assert one_more(committer, "b") == (None, None)
    with closing(sqlite3.connect(store.path)) as other:
        assert other.execute("PRAGMA wal_checkpoint").fetchone()[0] == 0
    assert one_more(committer, "c") == (None, None)
    with closing(sqlite3.connect(store.path)) as other:
        assert other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0
    assert wal_path(store.path).stat().st_size == 0
    assert one_more(committer, "d") == (None, None)


def test_a_vacuum_of_another_program_is_not_damage(store):
    """The file was smaller, which ended the daemon, and cost a recovery."""
    committer = Committer(store, Capacity(store.path, 2**30))
    with store.transaction():
        store.connection.execute("CREATE TABLE notes AS SELECT zeroblob(400000)")
        store.connection.execute("DELETE FROM notes")
    for _ in range(3):
        store.checkpoint()
    before_bytes = store.path.stat().st_size
    assert one_more(committer, "a") == (None, None)
    with closing(sqlite3.connect(store.path)) as other:
        other.execute("VACUUM")
        assert other.execute("PRAGMA wal_checkpoint").fetchone()[0] == 0
    assert one_more(committer, "b") == (None, None)
    assert store.path.stat().st_size < before_bytes
    assert not store.may_shrink
    os.truncate(store.path, store.path.stat().st_size - 4096)
    assert isinstance(one_more(committer, "c")[0], Damaged)


def test_own_writes_are_not_taken_for_those_of_another_program(store, monkeypatch):
    monkeypatch.setattr(recovery, "damage_in_use", lambda *_: pytest.fail("it was written by this process"))
    committer = Committer(store, Capacity(store.path, 2**30))
    store.connection.execute("PRAGMA wal_autocheckpoint = 1")
    for number in range(3):
        assert one_more(committer, f"w{number}") == (None, None)
        committer.maintain(lambda store, _: store.connection.execute("PRAGMA user_version") and False, Batch(0))


def test_a_file_that_sqlite_makes_smaller_is_not_damage(store):
    accept(store, [event(f"large{n}", padding=20_000) for n in range(50)])
    store.checkpoint()
    watch = FileWatch(store)
    assert watch.check() is None
    before = store.path.stat().st_size
    settle(store, [delivered(event_id) for event_id in pending_ids(store)])
    with store.transaction():
        store.connection.execute("DELETE FROM events")
    for _ in range(20):
        store.checkpoint()
        assert watch.check() is None
        store.vacuum()
        assert watch.check() is None
    assert store.path.stat().st_size < before
    assert not store.may_shrink


@pytest.mark.parametrize("names", [["o.db-wal"], ["o.db", "o.db-wal", "o.db-shm"]])
async def test_files_removed_before_the_watch_begins_are_missed(tmp_path, nursery, names):
    """What stood at the path when the watch began was taken for what is open: nothing there, and nothing missing."""
    store = Store(tmp_path / "o.db")
    accept(store, [event("before")])
    for name in names:
        (tmp_path / name).unlink()
    outbox = Outbox(store, SystemClock(), Capacity(store.path, 2**30), InlineRunner())
    nursery.start_soon(outbox.run)
    for number in range(5):
        await outbox.accept([event(number)])
    outbox.stop()
    again = Store(copied(store.path, tmp_path / "crashed"))
    assert len(pending_ids(again)) == 6
    again.close()
    store.close()


def test_a_failing_read_does_not_skip_the_look_at_the_path(store):
    """A batch with an error was answered without a look: an accept in it was lost with the file."""
    committer = Committer(store, Capacity(store.path, 2**30))
    store.path.unlink()
    batch = Batch(0)
    batch.accepts = [WriteRequest([event(9)])]
    batch.reads = [WriteRequest(raiser(sqlite_error(sqlite3.SQLITE_BUSY)))]
    assert isinstance(committer.run_batch(batch), OutboxGone)
    assert batch.accepts[0].error is not None


def test_a_file_that_is_moved_back_during_the_rescue_is_opened(tmp_path, monkeypatch):
    """The lock on the copy was taken for the only one: the process kept itself out of its own outbox, and ended."""
    path, away = tmp_path / "o.db", tmp_path / "away.db"
    lock = take_lock(path)
    store = Store(path, claim=lock.claim)
    accept(store, [event(1)])
    watch, copy = FileWatch(store), rescue.copy_database
    path.rename(away)

    def moved_back_meanwhile(*arguments):
        copy(*arguments)
        away.rename(path)

    monkeypatch.setattr(rescue, "copy_database", moved_back_meanwhile)
    with pytest.raises(FileExistsError):
        watch.check()
    assert watch.in_place()
    store.reopen()  # as the next batch does
    assert len(pending_ids(store)) == 1
    store.close()
    lock.release()
