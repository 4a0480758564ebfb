"""Fixtures of the outbox tests: a store whose counters are checked at the end, and one with an event in each state."""

import pytest
from outbox_files import NOW_MS, accept, check_counters, dead, delivered, dropped, event, settle

from sidecar.outbox import Failure, Store


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "o.db", durability="process")
    yield store
    check_counters(store)
    store.close()


@pytest.fixture
def mixed(store):
    """A store with 1 delivered last, 2 dropped, 3 dead, 4 delivered, 5 pending and failed once, 6 pending and high."""
    accept(
        store, [event(n, user=f"u{n % 2}", priority=n == 6, name="Paid" if n == 4 else "Searched") for n in range(1, 7)]
    )
    settle(store, [dropped(2), delivered(4)], NOW_MS + 1)
    settle(store, [dead(3)], NOW_MS + 2)
    settle(store, [delivered(1)], NOW_MS + 3)
    with store.transaction():
        store.record_failures([Failure(5, 1, NOW_MS, NOW_MS, 1, 0, "PX answered 503")])
    return store
