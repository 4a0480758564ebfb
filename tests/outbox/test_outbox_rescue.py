"""The file is removed, moved or replaced under the running outbox: what is answered is found by the next start."""

import errno
import os
import shutil
from contextlib import closing
from datetime import datetime

import pytest
import trio
import trio.testing
from outbox_files import accept, copied, event, pending_ids, raiser

from sidecar.clock import SystemClock
from sidecar.outbox import Capacity, InlineRunner, Outbox, Store, rescue
from sidecar.outbox.pages import wal_path
from sidecar.outbox.rescue import FileWatch, OutboxReplaced, rescued_files


@pytest.fixture
def store(tmp_path):
    (tmp_path / "state").mkdir()
    store = Store(tmp_path / "state" / "o.db")
    accept(store, [event(number) for number in range(5)])
    yield store
    store.close()


def taken_away(store, how, tmp_path):
    folder = store.path.parent
    match how:
        case "removed with its log":
            for file in folder.glob("o.db*"):
                file.unlink()
        case "removed alone":
            store.path.unlink()
        case "renamed":
            store.path.rename(folder / "old.db")
        case "the log removed":
            (folder / "o.db-wal").unlink()
        case "its folder moved":
            folder.rename(tmp_path / "elsewhere")
        case "its folder removed":
            shutil.rmtree(folder)


WAYS = ["removed with its log", "removed alone", "renamed", "the log removed", "its folder moved", "its folder removed"]


@pytest.mark.parametrize("how", WAYS)
def test_a_missing_file_is_put_back_with_everything(store, how, tmp_path):
    watch = FileWatch(store)
    assert watch.check() is None
    taken_away(store, how, tmp_path)
    accept(store, [event("after")])
    repaired = watch.check()
    assert repaired is not None
    assert str(store.path) in repaired
    assert watch.check() is None
    accept(store, [event("later")])
    store.close()
    again = Store(store.path)
    assert len(pending_ids(again)) == 7
    assert accept(again, [event("after")]).repeated == 1
    again.close()
    assert rescued_files(store.path) == []


def test_a_file_system_without_hard_links_gets_its_outbox_back(store, monkeypatch):
    watch = FileWatch(store)
    store.path.unlink()
    monkeypatch.setattr(os, "link", raiser(OSError(errno.EPERM, "Operation not permitted")))
    assert "put back" in (watch.check() or "")
    assert watch.check() is None
    assert rescued_files(store.path) == []


def test_a_copy_that_cannot_be_renamed_is_used_again(store, monkeypatch):
    """Each attempt made another copy of the whole outbox, every five seconds, until the disk was full."""
    watch = FileWatch(store)
    store.path.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(rescue, "_name", raiser(OSError(errno.EIO, "I/O error")))
        for hour in range(3):
            patch.setattr(rescue, "RESCUED", f".rescued-{hour}-")  # the time of another second
            with pytest.raises(OSError, match="I/O error"):
                watch.check()
    assert len(rescued_files(store.path)) == 1
    assert "put back" in (watch.check() or "")
    assert rescued_files(store.path) == []
    assert len(pending_ids(store)) == 5


def test_a_copy_is_not_used_again_once_the_file_was_back(store, monkeypatch):
    """A copy of before held none of the events that were stored since, and would have been put in their place."""
    watch = FileWatch(store)
    aside = store.path.rename(store.path.with_name("aside.db"))
    with monkeypatch.context() as patch:
        patch.setattr(store, "claim", raiser(OSError(errno.EIO, "I/O error")))
        with pytest.raises(OSError, match="I/O error"):
            watch.check()
    aside.rename(store.path)
    assert watch.check() is None
    accept(store, [event("later")])
    store.path.unlink()
    assert "put back" in (watch.check() or "")
    assert len(pending_ids(store)) == 6


def test_a_copy_in_its_place_is_not_taken_for_another_file(store, monkeypatch):
    """The folder could not be synced: the next look found the copy that it had just put there, and ended the daemon."""
    watch = FileWatch(store)
    store.path.unlink()
    real = rescue.sync

    def sync(path):
        if path == store.path.parent and store.path.exists():
            raise OSError(errno.EIO, "I/O error")
        real(path)

    with monkeypatch.context() as patch:
        patch.setattr(rescue, "sync", sync)
        with pytest.raises(OSError, match="I/O error"):
            watch.check()
    assert "put back" in (watch.check() or "")
    assert watch.check() is None
    assert len(pending_ids(store)) == 5


def test_another_file_in_its_place_is_never_overwritten(store, tmp_path):
    watch = FileWatch(store)
    other = tmp_path / "backup.db"
    other.write_bytes(b"a backup")
    other.rename(store.path)
    accept(store, [event("after")])
    with pytest.raises(OutboxReplaced, match="outbox import") as caught:
        watch.check()
    assert caught.value.exit_code == 78
    assert store.path.read_bytes() == b"a backup"
    (copy,) = rescued_files(store.path)
    rescued = Store(copy)
    assert len(pending_ids(rescued)) == 6
    rescued.close()


def test_a_rescued_file_is_never_overwritten_by_another(store, tmp_path, monkeypatch):
    """Two rescues with one time, as a clock without a battery gives: the second took the place of the first."""

    class Stopped(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(1970, 1, 1, tzinfo=tz)

    monkeypatch.setattr(rescue, "datetime", Stopped)
    for name in ("first", "second"):
        accept(store, [event(name)])
        watch = FileWatch(store)
        (tmp_path / "backup.db").write_bytes(b"a backup")
        (tmp_path / "backup.db").rename(store.path)
        with pytest.raises(OutboxReplaced):
            watch.check()
        if name == "first":
            store.path.unlink()
            store.reopen()  # as the next start
    first, second = rescued_files(store.path)
    for copy, events in ((first, 6), (second, 1)):
        with closing(Store(copy)) as rescued:
            assert len(pending_ids(rescued)) == events


@pytest.mark.parametrize("target", ["elsewhere/o.db", "nowhere/o.db", "o.db"])
def test_a_link_in_its_place_counts_as_another_file(store, tmp_path, target):
    """Moved away with a link to it left behind, the file seemed in its place: a restart found it without its log.

    A link that leads nowhere, or to itself, made the daemon wait for permission and space that it had.
    """
    watch = FileWatch(store)
    (tmp_path / "elsewhere").mkdir()
    store.path.rename(tmp_path / "elsewhere" / "o.db")
    store.path.symlink_to(store.path if target == "o.db" else tmp_path / target)
    accept(store, [event("after")])
    with pytest.raises(OutboxReplaced, match="outbox import"):
        watch.check()
    assert store.path.is_symlink()
    (copy,) = rescued_files(store.path)
    rescued = Store(copy)
    assert len(pending_ids(rescued)) == 6
    rescued.close()


@pytest.mark.parametrize("own_log", [False, True])
def test_a_file_in_its_place_keeps_only_a_log_of_its_own(store, tmp_path, own_log):
    """Killed before it had closed the file, the process left a log that the next start applied to the operator's backup."""
    with closing(Store(tmp_path / "b.db")) as backup:
        accept(backup, [event(f"b{number}") for number in range(3)])
        copied(tmp_path / "b.db", tmp_path / "copy")  # with its log
    watch = FileWatch(store)
    accept(store, [event("after")])
    os.replace(tmp_path / "copy" / "b.db", store.path)
    if own_log:
        os.replace(tmp_path / "copy" / "b.db-wal", wal_path(store.path))
    with pytest.raises(OutboxReplaced):
        watch.check()
    assert wal_path(store.path).exists() == own_log
    killed = Store(copied(store.path, tmp_path / "killed"))
    assert len(pending_ids(killed)) == (3 if own_log else 0)
    killed.close()


async def test_no_event_is_answered_that_a_restart_would_not_find(store, nursery):
    outbox = Outbox(store, SystemClock(), Capacity(store.path, 2**30), InlineRunner())
    nursery.start_soon(outbox.run)
    store.path.unlink()
    await outbox.accept([event("after")])
    left = {file.name: file.read_bytes() for file in store.path.parent.iterdir()}
    crashed = store.path.parent.parent / "crashed"
    crashed.mkdir()
    for name, content in left.items():
        (crashed / name).write_bytes(content)
    again = Store(crashed / "o.db")
    assert len(pending_ids(again)) == 6
    again.close()
    outbox.stop()


async def test_the_writer_ends_with_exit_code_78_if_the_file_was_replaced(store, nursery):
    outbox = Outbox(store, SystemClock(), Capacity(store.path, 2**30), InlineRunner())
    refused = []

    async def accept_one():
        try:
            await outbox.accept([event("after")])
        except Exception as error:
            refused.append(error)

    nursery.start_soon(accept_one)
    store.path.unlink()
    store.path.write_bytes(b"another file")
    with pytest.raises(OutboxReplaced):
        await outbox.run()
    await trio.testing.wait_all_tasks_blocked()
    assert refused
