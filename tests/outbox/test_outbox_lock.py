"""One outbox, one process: even without the lock file, by a second name, and through a link."""

import errno
import os
import subprocess
import sys

import pytest
from outbox_files import raiser

from sidecar.config import load_text
from sidecar.daemon import open_locked
from sidecar.errors import Failed
from sidecar.outbox import InlineRunner, Store, hold_lock, real_path, take_lock
from sidecar.systemd import Notifier

OTHER = """
import sys
from pathlib import Path
from sidecar.errors import Failed
from sidecar.outbox import Store, take_lock
try:
    lock = take_lock(Path(sys.argv[1]).resolve())
    Store(Path(sys.argv[1]).resolve(), claim=lock.claim)
except Failed as error:
    sys.exit(f"refused: {error}")
"""


def open_elsewhere(path) -> str:
    """Try to open the outbox in another process; return what it says, empty if it was let in."""
    ended = subprocess.run([sys.executable, "-c", OTHER, str(path)], capture_output=True, text=True, check=False)
    assert ended.returncode in (0, 1), ended.stderr
    return ended.stderr


@pytest.fixture
def held(tmp_path):
    """The path of an outbox that this process has open."""
    path = tmp_path / "state" / "o.db"
    path.parent.mkdir()
    lock = take_lock(path)
    store = Store(path, claim=lock.claim)
    yield path
    store.close()
    lock.release()


def test_a_removed_lock_file_lets_no_other_process_in(held):
    held.with_name("o.db.lock").unlink()
    assert "held by another process" in open_elsewhere(held)


def test_a_second_name_lets_no_other_process_in(held, tmp_path):
    os.link(held, tmp_path / "second.db")
    assert "held by another process" in open_elsewhere(tmp_path / "second.db")


@pytest.mark.parametrize("of", ["file", "folder"])
def test_a_link_lets_no_other_process_in(held, tmp_path, of):
    link = tmp_path / "link"
    link.symlink_to(held if of == "file" else held.parent)
    assert "held by another process" in open_elsewhere(link if of == "file" else link / "o.db")


def test_the_lock_outlives_what_sqlite_does(held):
    """Closing any other descriptor of the file would drop SQLite's locks; flock's are independent."""
    store = Store(held)
    store.reopen()
    store.close()
    held.with_name("o.db.lock").unlink()
    assert "held by another process" in open_elsewhere(held)


def test_the_path_of_the_outbox_has_no_links_in_it(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    config = load_text(f'[px]\nproperty_key = "AP-XXXXXXXXXX-2"\n[outbox]\npath = "{tmp_path}/link/o.db"\n')
    assert real_path(config) == tmp_path.resolve() / "real" / "o.db"


def test_a_file_that_is_renamed_to_the_outbox_is_locked_before(tmp_path):
    path = tmp_path / "o.db"
    lock = take_lock(path)
    lock.claim(tmp_path / "copy.db")
    (tmp_path / "copy.db").rename(path)
    (tmp_path / "o.db.lock").unlink()
    assert "held by another process" in open_elsewhere(path)
    lock.release()
    with pytest.raises(Failed, match="cannot be written"):
        take_lock(tmp_path / "missing" / "o.db")


def test_a_full_disk_does_not_keep_the_lock_from_being_taken(tmp_path, monkeypatch):
    """The pid in the lock file is for people, and its five bytes kept a daemon from starting and settling."""
    monkeypatch.setattr(os, "pwrite", raiser(OSError(errno.ENOSPC, "No space left on device")))
    take_lock(tmp_path / "o.db").release()


async def test_the_file_that_is_locked_is_the_one_that_is_opened(tmp_path):
    """A link that changed between the two steps of a start led to a file that this process had not locked."""
    for name in ("locked", "other"):
        (tmp_path / name).mkdir()
    link = tmp_path / "link"
    link.symlink_to("locked")
    config = load_text(f'[outbox]\npath = "{link}/o.db"\n')
    with hold_lock(config) as lock:
        link.unlink()
        link.symlink_to("other")
        async with open_locked(config, lock, InlineRunner(), Notifier({})) as store:
            assert store.path == tmp_path / "locked" / "o.db"
    assert not list((tmp_path / "other").iterdir())
