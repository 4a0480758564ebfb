"""Housekeeping: what is due goes, what is not stays, and a step costs the same whatever is pending."""

import pytest
from outbox_files import HOUR_MS, NOW_MS, accept, check_account, dead, delivered, dropped, event, pending_ids, settle

from sidecar.outbox import Keeper, Remembered, Store

DAY_MS = 24 * HOUR_MS


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "o.db", durability="process")
    yield store
    check_account(store)
    store.close()


def step(store, now_ms, *, hurry=False, max_users=100):
    keeper = Keeper(delivered_ms=DAY_MS, ids_ms=DAY_MS, dead_ms=30 * DAY_MS, max_users=max_users)
    with store.transaction():
        return keeper.step(store, now_ms, hurry=hurry)


def rows(store):
    return [row[0] for row in store.connection.execute("SELECT id FROM events ORDER BY id")]


def test_bodies_of_settled_events_go_after_their_time_and_not_before(store):
    accept(store, [event(n) for n in range(4)])
    settle(store, [delivered(1), dropped(2)], NOW_MS)
    settle(store, [dead(3)], NOW_MS)
    step(store, NOW_MS + DAY_MS)
    assert rows(store) == [1, 2, 3, 4]
    step(store, NOW_MS + DAY_MS + 1)
    assert rows(store) == [3, 4]
    assert (store.counters["delivered"], store.counters["dropped:unmapped"]) == (1, 1)


def test_what_was_settled_last_stays_longest_whatever_its_id(store):
    accept(store, [event(n) for n in range(3)])
    settle(store, [delivered(3)], NOW_MS)
    settle(store, [delivered(1)], NOW_MS + 2 * HOUR_MS)
    step(store, NOW_MS + DAY_MS + HOUR_MS)
    assert rows(store) == [1, 2]


def test_history_goes_at_once_when_room_is_short(store):
    accept(store, [event(n) for n in range(3)])
    settle(store, [delivered(1), dead(2)])
    step(store, NOW_MS, hurry=True)
    assert rows(store) == [2, 3]


def test_a_step_is_small_and_says_that_there_is_more(store):
    accept(store, [event(n) for n in range(1200)])
    settle(store, [delivered(n) for n in range(1, 1201)])
    late_ms = NOW_MS + 2 * DAY_MS
    assert step(store, late_ms)
    assert len(rows(store)) == 700
    assert step(store, late_ms)
    assert step(store, late_ms)
    assert not step(store, late_ms)


def test_pruning_does_not_walk_through_the_backlog(store):
    """Found by reading: the walk in id order took hours to pass ten million pending rows, and history stayed."""
    accept(store, [event(n) for n in range(3000)])
    settle(store, [delivered(3000)])
    step(store, NOW_MS + 2 * DAY_MS)
    assert 3000 not in rows(store)


def test_dead_letters_are_discarded_after_their_time(store):
    accept(store, [event(n) for n in range(2)])
    settle(store, [dead(1)], NOW_MS)
    settle(store, [dead(2, reason="failing")], NOW_MS + DAY_MS)
    step(store, NOW_MS + 30 * DAY_MS + 1)
    assert store.counters["dead:refused"] == 0
    assert store.counters["dropped:discarded"] == 1
    assert store.counters["dead:failing"] == 1
    step(store, NOW_MS + 31 * DAY_MS + 2)
    assert rows(store) == [2]


def test_what_was_settled_in_the_future_is_kept_from_now_on(store):
    """The clock was wrong by years when it was settled, and is right again: it must not stay for years."""
    accept(store, [event(1), event(2)])
    settle(store, [delivered(1), dead(2)], NOW_MS + 5000 * DAY_MS)
    step(store, NOW_MS)
    assert rows(store) == [1, 2]
    step(store, NOW_MS + 31 * DAY_MS)
    assert rows(store) == [2]
    assert store.counters["dropped:discarded"] == 1


def test_the_longest_unseen_users_are_forgotten_first(store):
    accept(store, [event(n) for n in range(3)])
    for number in range(3):
        settle(store, [delivered(number + 1, remember=Remembered("AP", f"u{number}", b"x"))], NOW_MS + number)
    assert step(store, NOW_MS, max_users=1)
    assert [row[0] for row in store.connection.execute("SELECT user FROM users")] == ["u2"]
    assert not step(store, NOW_MS, max_users=1)


def test_a_user_whose_events_go_on_is_seen_and_stays(store):
    """Only the user's own changes counted, so that the most active users could leave first."""
    accept(store, [event(1, user="old"), event(2, user="new")])
    settle(store, [delivered(1, remember=Remembered("AP", "old", b"x"))], NOW_MS)
    settle(store, [delivered(2, remember=Remembered("AP", "new", b"x"))], NOW_MS + HOUR_MS)
    accept(store, [event(3, user="old")], NOW_MS + 3 * HOUR_MS)
    settle(store, [delivered(3)], NOW_MS + 3 * HOUR_MS)
    assert step(store, NOW_MS + 3 * HOUR_MS, max_users=1)
    assert [row[0] for row in store.connection.execute("SELECT user FROM users")] == ["old"]


def test_pending_events_are_never_touched(store):
    accept(store, [event(n, high=n % 2 == 0) for n in range(10)])
    with store.transaction():
        store.set_aside([1])
    for day in range(100):
        step(store, NOW_MS + day * DAY_MS, hurry=True)
    assert sorted(pending_ids(store)) == list(range(2, 11))
    assert store.aside_page(high=True, user="u1", after_id=0, limit=5).rows[0].id == 1
