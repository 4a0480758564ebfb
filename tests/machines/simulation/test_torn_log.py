"""A crash within a commit or checkpoint is not damage: the outbox opens as before or after that commit."""

from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from sim_disk import FRAME_BYTES, LOG_HEAD_BYTES, Files, cuts

from sidecar.outbox import NewEvent, Store
from sidecar.outbox.pages import commit_frames, wal_path
from sidecar.outbox.recovery import damage_in

NOW_MS = 1_700_000_000_000


def accept(store: Store, *numbers: int) -> None:
    events = [NewEvent(0, False, "u", f"m{number}", b'{"messageId":"m%d"}' % number) for number in numbers]
    with store.transaction():
        store.accept([events], NOW_MS)


def files_around(path: Path, change: Callable[[Store], object]) -> tuple[Files, Files]:
    """Return the files of an outbox with events 1 to 6 and a reused log, before and after ``change``."""
    store = Store(path)
    accept(store, 1, 2, 3)
    store.checkpoint(truncate=False)
    accept(store, 4)
    accept(store, 5, 6)
    before = Files.of(path)
    change(store)
    after = Files.of(path)
    store.connection.close()
    return before, after


def open_again(files: Files, path: Path) -> list[int]:
    """Open the files, which must not be reported as damaged, and return the ids of their events."""
    files.write(path)
    assert damage_in(path) is None
    store = Store(path)
    ids = [event_id for (event_id,) in store.connection.execute("SELECT id FROM events ORDER BY id")]
    store.close()
    return ids


def test_a_torn_commit_leaves_the_state_before_it(tmp_path: Path):
    before, after = files_around(tmp_path / "x.db", lambda store: accept(store, 7, 8))
    assert before.database == after.database
    ids_by_cut = []
    for number, cut in enumerate(cuts(before.log, after.log)):
        torn = Files(after.database, after.log[:cut] + before.log[cut:])
        ids_by_cut.append(open_again(torn, tmp_path / f"{number}.db"))
    assert len(ids_by_cut) > 8
    assert ids_by_cut[-1] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert ids_by_cut[:-1] == [[1, 2, 3, 4, 5, 6]] * (len(ids_by_cut) - 1)


def test_two_crashes_at_one_position_are_not_damage(tmp_path: Path):
    """Frames that the first crash left behind the second are of the same generation and may end a transaction, too."""
    _, after = files_around(tmp_path / "x.db", lambda store: accept(store, *range(7, 300)))
    after.write(tmp_path / "y.db")
    cut = LOG_HEAD_BYTES + FRAME_BYTES * commit_frames(wal_path(tmp_path / "y.db"))[-1] - FRAME_BYTES // 2
    Files(after.database, after.log[:cut] + bytes(len(after.log) - cut)).write(tmp_path / "y.db")
    store = Store(tmp_path / "y.db")
    old = Files.of(tmp_path / "y.db")
    accept(store, 7)
    new = Files.of(tmp_path / "y.db")
    *_, newest, leftover = commit_frames(wal_path(tmp_path / "y.db"))
    store.connection.close()
    assert leftover > newest + 1
    for number, cut in enumerate(cuts(old.log, new.log)):
        torn = Files(new.database, new.log[:cut] + old.log[cut:])
        assert open_again(torn, tmp_path / f"{number}.db")[:6] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("truncate", [False, True])
def test_a_torn_checkpoint_loses_nothing(tmp_path: Path, truncate: bool):
    before, after = files_around(tmp_path / "x.db", lambda store: store.checkpoint(truncate=truncate))
    assert before.database != after.database
    for number in range(50):
        torn = before.torn(after, Random(number))
        assert open_again(torn, tmp_path / f"{number}.db") == [1, 2, 3, 4, 5, 6]


def test_an_unsound_earlier_transaction_is_damage(tmp_path: Path):
    """All transactions before the last one are synced, so no crash can make them unsound."""
    _, files = files_around(tmp_path / "x.db", lambda store: accept(store, 7, 8))
    log = bytearray(files.log)
    log[FRAME_BYTES // 2] ^= 1
    damaged = Files(files.database, bytes(log))
    damaged.write(tmp_path / "y.db")
    assert damage_in(tmp_path / "y.db") == "its write-ahead log is damaged"
