"""A full outbox: history makes room first, then events are refused, or the oldest go where that is wanted."""

import pytest
from outbox_files import NOW_MS, accept, check_account, copied, dead, delivered, event, pending_ids, settle

from sidecar.outbox import DiskFull, OutboxFull, Room, Store
from sidecar.outbox.overflow import Overflow


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "o.db", durability="process")
    accept(store, [event(n, padding=800, high=n % 10 == 0) for n in range(1, 4001)])
    yield store
    check_account(store)
    store.close()


def make_room(store, surplus_bytes, protected=None, overflow=None):
    with store.transaction():
        return (overflow or Overflow()).make_room(store, surplus_bytes, protected)


def test_without_history_nothing_goes(store):
    assert make_room(store, 100_000) == 100_000
    assert len(store.page(high=False, after_id=0, limit=5000).rows) == 3600


def test_history_goes_first_and_oldest_first(store):
    settle(store, [delivered(n, high=n % 10 == 0) for n in range(1, 1501)])
    assert make_room(store, 100_000, protected=frozenset()) <= 0
    assert store.counters["dropped:outbox_full"] == 0
    assert store.connection.execute("SELECT min(id) FROM events").fetchone() == (501,)


def test_dropping_takes_the_oldest_whatever_their_class(store):
    before = store.used_bytes()
    assert make_room(store, 100_000, protected=frozenset()) <= 0
    assert store.used_bytes() <= before - 100_000
    assert store.counters["dropped:outbox_full"] == 500
    assert min(pending_ids(store)) == 501
    assert store.connection.execute("SELECT count(*) FROM events WHERE id <= 500").fetchone() == (0,)


def test_what_is_in_flight_stays(store):
    protected = {1, 2, 3, 250}
    make_room(store, 100_000, protected=protected)
    assert protected <= set(pending_ids(store))


def test_dead_letters_and_rows_set_aside_are_told_apart(store):
    settle(store, [dead(n, high=n % 10 == 0) for n in range(1, 701)])
    with store.transaction():
        store.set_aside(range(701, 801))
    make_room(store, 50_000, protected=frozenset())
    assert store.counters["dead:refused"] == 700
    assert store.users_aside(high=False) == []


def test_a_look_is_bounded_and_goes_on_where_it_ended(store, monkeypatch):
    monkeypatch.setattr("sidecar.outbox.overflow.CALL_ROWS", 1000)
    settle(store, [dead(n, high=n % 10 == 0) for n in range(1, 1201)])
    overflow = Overflow()
    assert make_room(store, 100_000, frozenset(), overflow) == 100_000
    assert make_room(store, 50_000, frozenset(), overflow) <= 0
    assert min(pending_ids(store)) > 1200
    settle(store, [delivered(n, high=n % 10 == 0) for n in pending_ids(store)])


def test_repeats_of_dropped_events_are_known_after_a_crash(store, tmp_path):
    make_room(store, 100_000, protected=frozenset())
    crashed = Store(copied(store.path, tmp_path / "crash"))
    assert accept(crashed, [event(1)]).repeated == 1
    check_account(crashed)
    crashed.close()


def test_accepting_in_the_transaction_that_made_room_keeps_ids_in_step(store):
    with store.transaction():
        Overflow().make_room(store, 100_000, frozenset())
        store.accept([[event(5000), event(7)]], NOW_MS)
    assert store.counters["ids_flushed_to"] == 4000
    store.reopen()
    assert accept(store, [event(n) for n in (5000, 7, 3999)]).repeated == 3


# --- Room -----------------------------------------------------------------------------------------------------------


def test_room_is_refused_above_the_ceiling_and_given_below_the_low_water(tmp_path):
    room = Room(tmp_path / "o.db", 1000)
    for used, full in ((980, None), (1001, "outbox_full"), (960, "outbox_full"), (949, None), (1000, None)):
        room.measure(used)
        assert room.full == full
    room.measure(1001)
    with pytest.raises(OutboxFull, match=r"outbox\.max_bytes"):
        room.check()


def test_room_is_short_before_it_is_full(tmp_path):
    room = Room(tmp_path / "o.db", 1000)
    room.measure(900)
    assert not room.short
    room.measure(901)
    assert room.short


def test_an_outbox_that_drops_is_never_full(tmp_path):
    room = Room(tmp_path / "o.db", 1000, when_full="drop_oldest")
    room.measure(5000)
    assert isinstance(room.refuse(), OutboxFull)
    room.check()


def test_the_reserve_is_laid_by_once_and_given_up(tmp_path):
    room = Room(tmp_path / "o.db", 2**30)
    reserve = tmp_path / "o.db.reserve"
    room.lay_by()
    assert reserve.stat().st_size > 20 * 2**20
    room.lay_by()
    assert isinstance(room.give_up_reserve(), DiskFull)
    assert not reserve.exists()
    with pytest.raises(DiskFull, match="taken again by themselves"):
        room.check()
    room.lay_by()
    room.check()


def test_a_reserve_that_was_cut_short_is_made_anew(tmp_path):
    """Found by reading: an empty file, as a crash between creating and filling it leaves, counted as a reserve."""
    (tmp_path / "o.db.reserve").touch()
    Room(tmp_path / "o.db", 2**30).lay_by()
    assert (tmp_path / "o.db.reserve").stat().st_size > 20 * 2**20


def test_the_reserve_is_not_laid_by_from_the_last_bytes(tmp_path, monkeypatch):
    room = Room(tmp_path / "o.db", 2**30)
    monkeypatch.setattr(room, "free_bytes", lambda: room._reserve_bytes + 1000)
    room.lay_by()
    assert room.full == "disk_full"
    assert not (tmp_path / "o.db.reserve").exists()


def test_a_folder_that_went_away_is_an_error(tmp_path):
    (tmp_path / "gone").mkdir()
    room = Room(tmp_path / "gone" / "o.db", 2**30)
    (tmp_path / "gone").rmdir()
    with pytest.raises(OSError, match="No such file"):
        room.lay_by()
