"""A crash in the middle of a commit or a checkpoint is no damage: the outbox opens as of the commit before, or of this."""

from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from sim_disk import FRAME_BYTES, LOG_HEAD_BYTES, Files, cuts

from sidecar.outbox import NewEvent, Store
from sidecar.outbox.pages import commit_frames, log_of
from sidecar.outbox.recovery import damage_in

NOW_MS = 1_700_000_000_000


def accept(store: Store, *numbers: int) -> None:
    events = [NewEvent(0, False, "u", f"m{number}", b'{"messageId":"m%d"}' % number) for number in numbers]
    with store.transaction():
        store.accept([events], NOW_MS)


def around(path: Path, do: Callable[[Store], object]) -> tuple[Files, Files]:
    """The files of an outbox with events 1 to 6, whose log has been used twice, before and after ``do``."""
    store = Store(path)
    accept(store, 1, 2, 3)
    store.checkpoint(truncate=False)
    accept(store, 4)
    accept(store, 5, 6)
    before = Files.of(path)
    do(store)
    after = Files.of(path)
    store.connection.close()
    return before, after


def open_again(files: Files, path: Path) -> list[int]:
    """The ids of the events that are there, if the file is not called damaged."""
    files.write(path)
    assert damage_in(path) is None
    store = Store(path)
    ids = [one for (one,) in store.connection.execute("SELECT id FROM events ORDER BY id")]
    store.close()
    return ids


def test_wherever_a_commit_is_broken_off_what_was_committed_before_is_there(tmp_path: Path):
    before, after = around(tmp_path / "x.db", lambda store: accept(store, 7, 8))
    assert before.database == after.database
    found = []
    for number, cut in enumerate(cuts(before.log, after.log)):
        torn = Files(after.database, after.log[:cut] + before.log[cut:])
        found.append(open_again(torn, tmp_path / f"{number}.db"))
    assert len(found) > 8
    assert found[-1] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert found[:-1] == [[1, 2, 3, 4, 5, 6]] * (len(found) - 1)


def test_two_crashes_in_one_place_are_no_damage(tmp_path: Path):
    """What the first has left behind the second is of the same generation, and ends a transaction too."""
    _, after = around(tmp_path / "x.db", lambda store: accept(store, *range(7, 300)))
    after.write(tmp_path / "y.db")
    cut = LOG_HEAD_BYTES + FRAME_BYTES * commit_frames(log_of(tmp_path / "y.db"))[-1] - FRAME_BYTES // 2
    Files(after.database, after.log[:cut] + bytes(len(after.log) - cut)).write(tmp_path / "y.db")
    store = Store(tmp_path / "y.db")
    old = Files.of(tmp_path / "y.db")
    accept(store, 7)
    new = Files.of(tmp_path / "y.db")
    *_, ours, left = commit_frames(log_of(tmp_path / "y.db"))
    store.connection.close()
    assert left > ours + 1
    for number, cut in enumerate(cuts(old.log, new.log)):
        torn = Files(new.database, new.log[:cut] + old.log[cut:])
        assert open_again(torn, tmp_path / f"{number}.db")[:6] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("truncate", [False, True])
def test_wherever_a_checkpoint_is_broken_off_everything_is_there(tmp_path: Path, truncate: bool):
    before, after = around(tmp_path / "x.db", lambda store: store.checkpoint(truncate=truncate))
    assert before.database != after.database
    for number in range(50):
        torn = before.torn(after, Random(number))
        assert open_again(torn, tmp_path / f"{number}.db") == [1, 2, 3, 4, 5, 6]


def test_an_earlier_transaction_that_is_unsound_is_damage(tmp_path: Path):
    """All before the last one were synced: no crash makes them so."""
    _, files = around(tmp_path / "x.db", lambda store: accept(store, 7, 8))
    log = bytearray(files.log)
    log[FRAME_BYTES // 2] ^= 1
    damaged = Files(files.database, bytes(log))
    damaged.write(tmp_path / "y.db")
    assert damage_in(tmp_path / "y.db") == "its write-ahead log is damaged"
