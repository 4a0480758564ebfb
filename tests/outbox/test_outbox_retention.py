"""Retention: what is pruned and when, in steps whose cost does not depend on the backlog."""

import pytest
from outbox_files import HOUR_MS, NOW_MS, accept, dead, delivered, dropped, event, pending_ids, settle

from sidecar.mapping import Priority
from sidecar.outbox import Remembered, Retention
from sidecar.outbox.clock_trust import AgeScale, ClockSpan
from sidecar.outbox.lookup import catalogue

DAY_MS = 24 * HOUR_MS


def step(store, now_ms, *, hurry=False, max_users=100, scale=None):
    retention = Retention(delivered_ms=DAY_MS, ids_ms=DAY_MS, dead_ms=30 * DAY_MS, max_users=max_users)
    with store.transaction():
        return retention.prune_step(store, now_ms, hurry=hurry, scale=scale)


def rows(store):
    return [row[0] for row in store.connection.execute("SELECT id FROM events ORDER BY id")]


def test_settled_rows_are_pruned_after_keep_delivered(store):
    accept(store, [event(n) for n in range(4)])
    settle(store, [delivered(1), dropped(2)], NOW_MS)
    settle(store, [dead(3)], NOW_MS)
    step(store, NOW_MS + DAY_MS)
    assert rows(store) == [1, 2, 3, 4]
    step(store, NOW_MS + DAY_MS + 1)
    assert rows(store) == [3, 4]
    assert (store.counters["delivered"], store.counters["dropped:unmapped"]) == (1, 1)


def test_rows_are_pruned_by_settlement_time_not_by_id(store):
    accept(store, [event(n) for n in range(3)])
    settle(store, [delivered(3)], NOW_MS)
    settle(store, [delivered(1)], NOW_MS + 2 * HOUR_MS)
    step(store, NOW_MS + DAY_MS + HOUR_MS)
    assert rows(store) == [1, 2]


def test_hurry_prunes_history_whatever_its_age(store):
    accept(store, [event(n) for n in range(3)])
    settle(store, [delivered(1), dead(2)])
    step(store, NOW_MS, hurry=True)
    assert rows(store) == [2, 3]


def test_a_step_is_bounded_and_reports_more_work(store):
    accept(store, [event(n) for n in range(1200)])
    settle(store, [delivered(n) for n in range(1, 1201)])
    late_ms = NOW_MS + 2 * DAY_MS
    assert step(store, late_ms)
    assert len(rows(store)) == 700
    assert step(store, late_ms)
    assert step(store, late_ms)
    assert not step(store, late_ms)


def test_pruning_does_not_scan_the_backlog(store):
    """A scan in id order took hours to pass ten million pending rows, and history stayed on disk meanwhile."""
    accept(store, [event(n) for n in range(3000)])
    settle(store, [delivered(3000)])
    step(store, NOW_MS + 2 * DAY_MS)
    assert 3000 not in rows(store)


def test_dead_letters_are_discarded_after_keep_dead(store):
    accept(store, [event(n) for n in range(2)])
    settle(store, [dead(1)], NOW_MS)
    settle(store, [dead(2, reason="failing")], NOW_MS + DAY_MS)
    step(store, NOW_MS + 30 * DAY_MS + 1)
    assert store.counters["dead:refused"] == 0
    assert store.counters["dropped:discarded"] == 1
    assert store.counters["dead:failing"] == 1
    step(store, NOW_MS + 31 * DAY_MS + 2)
    assert rows(store) == [2]


def test_rows_of_a_clock_that_was_ahead_are_as_old_as_they_are(store):
    """The clock was ahead by years at the settlement and is right again: the row must not stay for years."""
    accept(store, [event(1), event(2)])
    ahead_ms = 5000 * DAY_MS
    settle(store, [delivered(1), dead(2)], NOW_MS + ahead_ms)
    span = ClockSpan(NOW_MS + ahead_ms - 1000, NOW_MS + ahead_ms + 1000, -ahead_ms)
    for days, left in ((0, [1, 2]), (0.9, [1, 2]), (1.1, [2]), (29.9, [2]), (30.1, [2]), (31.2, [])):
        now_ms = NOW_MS + int(days * DAY_MS)
        step(store, now_ms, scale=AgeScale(now_ms, spans=(span,)))
        assert rows(store) == left, days
    assert store.counters["dropped:discarded"] == 1


@pytest.mark.parametrize("now_ms", [NOW_MS + 40 * DAY_MS, NOW_MS + 80 * 365 * DAY_MS, 0])
def test_nothing_is_pruned_by_age_while_the_clock_is_not_believed(store, now_ms):
    accept(store, [event(n) for n in range(3)])
    settle(store, [delivered(1), dropped(2), dead(3)])
    settled = store.connection.execute("SELECT id, settled_ms FROM events").fetchall()
    step(store, now_ms, scale=AgeScale(now_ms, believed=False), max_users=0)
    assert store.connection.execute("SELECT id, settled_ms FROM events").fetchall() == settled


def test_hurry_prunes_also_what_a_wrong_clock_settled(store):
    accept(store, [event(n) for n in range(2)])
    settle(store, [delivered(1)], NOW_MS + 5000 * DAY_MS)
    settle(store, [delivered(2)], 0)
    step(store, NOW_MS, scale=AgeScale(NOW_MS, believed=False), hurry=True)
    assert rows(store) == []


def test_the_least_recently_seen_users_are_forgotten_first(store):
    accept(store, [event(n) for n in range(3)])
    for number in range(3):
        settle(store, [delivered(number + 1, remember=Remembered("AP", f"u{number}", b"x"))], NOW_MS + number)
    assert step(store, NOW_MS, max_users=1)
    assert [row[0] for row in store.connection.execute("SELECT user FROM users")] == ["u2"]
    assert not step(store, NOW_MS, max_users=1)


def test_any_event_of_a_user_counts_as_seen(store):
    """Only changes of a user's memory once counted, so that the most active users could be forgotten first."""
    accept(store, [event(1, user="old"), event(2, user="new")])
    settle(store, [delivered(1, remember=Remembered("AP", "old", b"x"))], NOW_MS)
    settle(store, [delivered(2, remember=Remembered("AP", "new", b"x"))], NOW_MS + HOUR_MS)
    accept(store, [event(3, user="old")], NOW_MS + 3 * HOUR_MS)
    settle(store, [delivered(3)], NOW_MS + 3 * HOUR_MS)
    assert step(store, NOW_MS + 3 * HOUR_MS, max_users=1)
    assert [row[0] for row in store.connection.execute("SELECT user FROM users")] == ["old"]


def test_pending_events_are_never_pruned(store):
    accept(store, [event(n, priority=n % 2 == 0) for n in range(10)])
    with store.transaction():
        store.park([1])
    for day in range(100):
        step(store, NOW_MS + day * DAY_MS, hurry=True)
    assert sorted(pending_ids(store)) == list(range(2, 11))
    assert store.parked_page(priority=Priority.HIGH, user="u1", after_id=0, limit=5).rows[0].id == 1


def test_counts_of_names_outlive_a_crash(store):
    """They were written at a clean close alone."""
    accept(store, [event(number) for number in range(10)])
    step(store, NOW_MS)
    store.reopen()
    assert [row.events for row in catalogue(store)] == [10]
