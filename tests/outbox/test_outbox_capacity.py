"""Capacity: when events are refused and accepted again, and the reserve for a full disk."""

import errno
import os

import pytest
from outbox_files import raiser

from sidecar.outbox import Capacity, DiskFull, OutboxFull
from sidecar.outbox.readers import LOG_NORMAL


def test_full_begins_at_max_bytes_and_ends_below_low_water(tmp_path):
    capacity = Capacity(tmp_path / "o.db", 1000)
    for used, full in ((980, None), (1001, "outbox_full"), (960, "outbox_full"), (949, None), (1000, None)):
        capacity.measure(used)
        assert capacity.full == full
    capacity.measure(1001)
    with pytest.raises(OutboxFull, match=r"outbox\.max_bytes"):
        capacity.check()


def test_nearly_full_begins_before_full(tmp_path):
    capacity = Capacity(tmp_path / "o.db", 1000)
    capacity.measure(900)
    assert not capacity.nearly_full
    capacity.measure(901)
    assert capacity.nearly_full


def test_drop_oldest_is_never_full(tmp_path):
    capacity = Capacity(tmp_path / "o.db", 1000, when_full="drop_oldest")
    capacity.measure(5000)
    assert isinstance(capacity.refuse(), OutboxFull)
    capacity.check()


def test_the_reserve_is_allocated_once_and_released(tmp_path):
    capacity = Capacity(tmp_path / "o.db", 2**30)
    reserve = tmp_path / "o.db.reserve"
    capacity.allocate_reserve()
    assert reserve.stat().st_size > 20 * 2**20
    capacity.allocate_reserve()
    assert isinstance(capacity.release_reserve(), DiskFull)
    assert not reserve.exists()
    with pytest.raises(DiskFull, match="accepted again"):
        capacity.check()
    capacity.allocate_reserve()
    capacity.check()


def test_an_incomplete_reserve_is_allocated_again(tmp_path):
    """A crash between creating and allocating leaves an empty file, which once counted as a reserve."""
    (tmp_path / "o.db.reserve").touch()
    Capacity(tmp_path / "o.db", 2**30).allocate_reserve()
    assert (tmp_path / "o.db.reserve").stat().st_size > 20 * 2**20


def test_the_reserve_needs_a_margin_of_free_bytes(tmp_path, monkeypatch):
    capacity = Capacity(tmp_path / "o.db", 2**30)
    monkeypatch.setattr(capacity, "free_bytes", lambda: capacity.reserve_bytes + 1000)
    capacity.allocate_reserve()
    assert capacity.full == "disk_full"
    assert not (tmp_path / "o.db.reserve").exists()


def test_a_missing_folder_raises_os_error(tmp_path):
    (tmp_path / "gone").mkdir()
    capacity = Capacity(tmp_path / "gone" / "o.db", 2**30)
    (tmp_path / "gone").rmdir()
    with pytest.raises(OSError, match="No such file"):
        capacity.allocate_reserve()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_reserve_that_does_not_fit_means_a_full_disk(tmp_path, monkeypatch, code):
    capacity = Capacity(tmp_path / "outbox.db", 2**30)
    monkeypatch.setattr(os, "posix_fallocate", raiser(OSError(code, "no space")))
    capacity.allocate_reserve()
    assert capacity.full == "disk_full"
    assert not (tmp_path / "outbox.db.reserve").exists()
    monkeypatch.undo()
    capacity.allocate_reserve()
    assert capacity.full is None


def test_any_other_error_of_the_reserve_is_raised(tmp_path, monkeypatch):
    capacity = Capacity(tmp_path / "outbox.db", 2**30)
    monkeypatch.setattr(os, "posix_fallocate", raiser(OSError(errno.EIO, "I/O error")))
    with pytest.raises(OSError, match="I/O error"):
        capacity.allocate_reserve()


@pytest.mark.parametrize("when_full", ["refuse", "drop_oldest"])
def test_what_the_log_filled_is_usable_once_the_log_is_back(tmp_path, when_full):
    """The rows alone are above the mark below which a full outbox accepts again, and below the one where it stops."""
    capacity = Capacity(tmp_path / "o.db", 1000, when_full=when_full)
    normal_bytes = LOG_NORMAL * capacity.log_copied_at_bytes
    capacity.measure(970, normal_bytes + 31)
    assert capacity.full == "outbox_full"
    assert capacity.full_by_log
    capacity.measure(970, normal_bytes)
    assert capacity.full is None


def test_what_rows_filled_stays_full_when_the_log_is_back(tmp_path):
    capacity = Capacity(tmp_path / "o.db", 1000)
    capacity.measure(1001, LOG_NORMAL * capacity.log_copied_at_bytes + 1)
    assert not capacity.full_by_log
    capacity.measure(960, 0)
    assert capacity.full == "outbox_full"
