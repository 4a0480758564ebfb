"""A look at a file tells which one it is and how large, and does not ask for its times unless it has to."""

import ctypes
import os
import sqlite3
from types import SimpleNamespace

import pytest

from sidecar.outbox import Store
from sidecar.outbox.file_status import file_id, untimed_look
from sidecar.outbox.rescue import FileWatch


def test_look_tells_what_stat_tells(tmp_path):
    file = tmp_path / "outbox.db-wal"
    look = untimed_look(str(file))
    assert look() == (None, 0)
    for text in ("one", "three"):
        file.write_text(text)
        assert look() == (file_id(file), len(text))
    file.replace(tmp_path / "moved")
    file.write_text("another")
    assert look() == (file_id(file), 7) != untimed_look(str(tmp_path / "moved"))()


def test_look_sees_a_link_itself(tmp_path):
    (tmp_path / "file").write_text("x" * 1_000)
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert untimed_look(str(tmp_path / "link"))() == (file_id(tmp_path / "link"), (tmp_path / "link").lstat().st_size)


def test_look_through_a_file_finds_nothing(tmp_path):
    (tmp_path / "file").touch()
    assert untimed_look(str(tmp_path / "file" / "below"))() == (None, 0)


def test_look_raises_what_stat_raises(tmp_path):
    with pytest.raises(OSError, match="File name too long"):
        untimed_look(str(tmp_path / ("x" * 300)))()


@pytest.mark.parametrize("library", [SimpleNamespace(), SimpleNamespace(statx=lambda *_: -1)], ids=["none", "refused"])
def test_look_without_statx_is_the_same(tmp_path, monkeypatch, library):
    file = tmp_path / "file"
    file.write_text("text")
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: library)
    assert untimed_look(str(file))() == (file_id(file), 4)


def test_log_is_looked_at_without_its_times(tmp_path, monkeypatch):
    """Asked for its times after each commit, its next sync wrote the inode, too, and took 137 µs instead of 96."""
    store = Store(tmp_path / "outbox.db")
    watch = FileWatch(store)
    stat, seen = os.stat, []

    def recorded(path, *args, **kwargs):
        seen.append(str(path))
        return stat(path, *args, **kwargs)

    monkeypatch.setattr(os, "stat", recorded)
    watch.written()
    assert watch.check() is None
    assert not watch.was_written()
    assert seen
    assert not [path for path in seen if path.endswith("-wal")]
    store.close()


def test_a_log_that_grows_is_measured(tmp_path):
    store = Store(tmp_path / "outbox.db")
    watch = FileWatch(store)
    watch.check()
    before_bytes = watch.log_bytes
    with store.transaction():
        store.connection.execute("CREATE TABLE filler (text)")
        store.connection.execute("INSERT INTO filler VALUES (?)", ("x" * 100_000,))
    watch.check()
    assert watch.log_bytes == (tmp_path / "outbox.db-wal").stat().st_size > before_bytes + 100_000
    store.close()
    assert sqlite3.connect(tmp_path / "outbox.db").execute("SELECT count(*) FROM filler").fetchone() == (1,)
