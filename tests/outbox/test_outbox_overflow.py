"""A full outbox: history is deleted first, then events are refused, or the oldest are dropped if configured."""

import pytest
from outbox_files import NOW_MS, accept, check_counters, copied, dead, delivered, event, pending_ids, settle

from sidecar.mapping import Priority
from sidecar.outbox import Store
from sidecar.outbox.overflow import Overflow
from sidecar.outbox.steps import CHANGED_BYTES


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "o.db", durability="process")
    accept(store, [event(n, padding=800, priority=n % 10 == 0) for n in range(1, 4001)])
    yield store
    check_counters(store)
    store.close()


def free_space(store, surplus_bytes, protected=None, overflow=None):
    with store.transaction():
        return (overflow or Overflow()).free_space(store, surplus_bytes, protected)


def test_without_history_nothing_is_deleted(store):
    assert free_space(store, 100_000) == 100_000
    assert store.pending() == 4000


def test_the_oldest_history_is_deleted_first(store):
    settle(store, [delivered(n, priority=n % 10 == 0) for n in range(1, 1501)])
    assert free_space(store, 100_000, protected=frozenset()) <= 0
    assert store.counters["dropped:outbox_full"] == 0
    assert store.connection.execute("SELECT min(id) FROM events").fetchone() == (501,)


def test_the_oldest_pending_events_of_any_class_are_dropped(store):
    before = store.used_bytes()
    assert free_space(store, 100_000, protected=frozenset()) <= 0
    assert store.used_bytes() <= before - 100_000
    assert store.counters["dropped:outbox_full"] == 500
    assert min(pending_ids(store)) == 501
    assert store.connection.execute("SELECT count(*) FROM events WHERE id <= 500").fetchone() == (0,)


def test_large_events_are_not_dropped_by_the_hundred(tmp_path):
    """One event of 30 KB that did not fit cost the 500 oldest ones, 15 MB of a backlog."""
    store = Store(tmp_path / "large.db", durability="process")
    accept(store, [event(n, padding=30_000) for n in range(1, 201)])
    assert free_space(store, 30_000, protected=frozenset()) <= 0
    assert store.counters["dropped:outbox_full"] <= CHANGED_BYTES // 30_000 + 1
    check_counters(store)
    store.close()


def test_protected_events_are_not_dropped(store):
    protected = {1, 2, 3, 250}
    free_space(store, 100_000, protected=protected)
    assert protected <= set(pending_ids(store))


def test_parked_rows_are_dropped_but_not_dead_letters(store):
    settle(store, [dead(n, priority=n % 10 == 0) for n in range(1, 701)])
    with store.transaction():
        store.park(range(701, 801))
    free_space(store, 50_000, protected=frozenset())
    assert store.counters["dead:refused"] == 700
    assert store.parked_users(priority=Priority.NORMAL) == []


def test_a_call_is_bounded_and_continues_where_the_last_ended(store, monkeypatch):
    monkeypatch.setattr("sidecar.outbox.overflow.CALL_ROWS", 1000)
    settle(store, [dead(n, priority=n % 10 == 0) for n in range(1, 1201)])
    overflow = Overflow()
    assert free_space(store, 100_000, frozenset(), overflow) == 100_000
    assert free_space(store, 50_000, frozenset(), overflow) <= 0
    assert min(pending_ids(store)) > 1200
    settle(store, [delivered(n, priority=n % 10 == 0) for n in pending_ids(store)])


def test_repeats_of_dropped_events_are_recognized_after_a_crash(store, tmp_path):
    free_space(store, 100_000, protected=frozenset())
    crashed = Store(copied(store.path, tmp_path / "crash"))
    assert accept(crashed, [event(1)]).repeated == 1
    check_counters(crashed)
    crashed.close()


def test_accepting_after_dropping_in_one_transaction_keeps_ids(store):
    with store.transaction():
        Overflow().free_space(store, 100_000, frozenset())
        store.accept([[event(5000), event(7)]], NOW_MS)
    assert store.counters["ids_flushed_to"] == 4000
    store.reopen()
    assert accept(store, [event(n) for n in (5000, 7, 3999)]).repeated == 3


# --- Room -----------------------------------------------------------------------------------------------------------
