"""The store: accepting, settling, pages, counters, and that no query scans the backlog."""

import sqlite3

import pytest
from outbox_files import (
    NOW_MS,
    accept,
    check_counters,
    copied,
    dead,
    delivered,
    dropped,
    event,
    pending_ids,
    rolled_back,
    settle,
)

from sidecar.mapping import NO_ACCOUNT, Priority
from sidecar.outbox import Failure, NewEvent, Remembered, Row, Store


def ids(page):
    return [row.id for row in page.rows]


def test_pages_return_events_by_class_in_order(store):
    events = [event(1), event(2, priority=Priority.HIGH, user="u2", source=3), event(3, user=None)]
    assert accept(store, events)[:2] == (3, 0)
    normal = store.page(priority=Priority.NORMAL, after_id=0)
    assert normal.rows == [
        Row(1, False, 0, "u1", NOW_MS, events[0].body, None, account=NO_ACCOUNT),
        Row(3, False, 0, None, NOW_MS, events[2].body, None, account=NO_ACCOUNT),
    ]
    assert store.page(priority=Priority.HIGH, after_id=0).rows == [
        Row(2, True, 3, "u2", NOW_MS, events[1].body, None, account=NO_ACCOUNT)
    ]
    assert not normal.more


def test_pages_respect_the_limit_and_report_more(store):
    accept(store, [event(n) for n in range(7)])
    first = store.page(priority=Priority.NORMAL, after_id=0, limit=3)
    assert (ids(first), first.more) == ([1, 2, 3], True)
    last = store.page(priority=Priority.NORMAL, after_id=6, limit=3)
    assert (ids(last), last.more) == ([7], False)


def test_a_bad_event_is_dead_at_once(store):
    accept(store, [event(1, bad="it has no type", priority=Priority.HIGH), event(2)])
    assert pending_ids(store) == [2]
    assert store.counters["dead:bad_event"] == 1
    assert store.connection.execute("SELECT id, reason, name, detail, first_ms FROM dead").fetchall() == [
        (1, "bad_event", "Searched", "it has no type", NOW_MS)
    ]


def test_a_bad_event_may_be_any_json(store):
    accept(store, [NewEvent(0, False, None, "a", b"[1,2]", "not an object"), NewEvent(0, False, None, "b", b"3", "no")])
    assert store.counters["dead:bad_event"] == 2
    store.reopen()


def test_an_error_rolls_the_transaction_back(store):
    accept(store, [event(1)])
    with rolled_back(store):
        store.accept([[event(2)]], NOW_MS)
        store.settle([delivered(1)], NOW_MS)
    assert pending_ids(store) == [1]
    assert accept(store, [event(2)]) == (1, 0, ())
    assert pending_ids(store) == [1, 2]


def test_each_final_state_is_counted_by_its_reason(store):
    accept(store, [event(n, priority=n == 4) for n in range(1, 5)])
    settle(
        store, [delivered(1), dropped(2, reason="no_user"), dead(3), dead(4, reason="failing", priority=Priority.HIGH)]
    )
    names = ("delivered", "dropped:no_user", "dead:refused", "dead:failing", "pending_normal", "pending_high")
    assert [store.counters[name] for name in names] == [1, 1, 1, 1, 0, 0]


def test_settling_twice_counts_once(store):
    accept(store, [event(1)])
    settle(store, [delivered(1), dropped(1)])
    settle(store, [dead(1)])
    assert store.counters["delivered"] == 1
    assert store.counters["pending_normal"] == 0


def test_failed_attempts_are_kept_until_the_event_is_settled(store):
    accept(store, [event(1), event(2)])
    failure = Failure(1, 3, NOW_MS, NOW_MS + 5, 2, 1000, "PX answered 503")
    with store.transaction():
        store.record_failures([Failure(1, 2, NOW_MS, NOW_MS, 1, 0, "earlier"), failure])
    assert [row.failure for row in store.page(priority=Priority.NORMAL, after_id=0).rows] == [failure, None]
    settle(store, [delivered(1)])  # without first_failed_ms, which is optional
    with store.transaction():
        store.record_failures([failure])
    assert store.connection.execute("SELECT count(*) FROM retries").fetchone() == (0,)


def test_memory_is_stored_with_settlements_and_read_with_pages(store):
    accept(store, [event(1), event(2), event(3, user="u2")])
    known = Remembered("AP-1", "u1", b"acme")
    settle(store, [delivered(1, remember=known)])
    assert store.page(priority=Priority.NORMAL, after_id=0).known == [known]
    settle(store, [delivered(2, remember=known._replace(known=b"globex"))])
    assert store.counters["users"] == 1
    accept(store, [event(4)])
    assert store.page(priority=Priority.NORMAL, after_id=0).known[0].known == b"globex"


def test_parked_rows_are_skipped_by_pages_and_found_by_user(store):
    accept(store, [event(1), event(2, user="u2"), event(3), event(4, user="u2", priority=Priority.HIGH)])
    with store.transaction():
        store.park([1, 3, 4])
        store.park([3])
    assert pending_ids(store) == [2]
    assert store.parked_users(priority=Priority.NORMAL) == ["u1"]
    assert store.parked_users(priority=Priority.HIGH) == ["u2"]
    assert ids(store.parked_page(priority=Priority.NORMAL, user="u1", after_id=1, limit=10)) == [3]
    assert store.parked_page(priority=Priority.HIGH, user="u2", after_id=0, limit=10).rows[0].priority is Priority.HIGH
    settle(store, [delivered(1), delivered(3), delivered(4, priority=Priority.HIGH)])
    assert store.parked_users(priority=Priority.NORMAL) == store.parked_users(priority=Priority.HIGH) == []


def test_parking_takes_three_statements_for_any_number(store):
    """With three for each row, the store's thread waited for the interpreter before each, while a body was parsed."""
    accept(store, [event(number) for number in range(1, 41)])
    statements: list[str] = []
    store.connection.set_trace_callback(statements.append)
    with store.transaction():
        store.park(range(1, 41))
    store.connection.set_trace_callback(None)
    assert len([text for text in statements if text.startswith(("UPDATE events", "INSERT OR IGNORE INTO low"))]) == 3
    assert pending_ids(store) == []


@pytest.mark.parametrize("priority", list(Priority))
def test_parked_rows_of_all_users_are_read_in_pages(store, priority):
    accept(store, [event(number, user=f"u{number % 3}", priority=priority) for number in range(1, 9)])
    with store.transaction():
        store.park([1, 2, 3, 4, 6, 7, 8])
    after, read = ("", 0), []
    while rows := store.parked_rows(priority=priority, after=after, limit=2).rows:
        after = (rows[-1].user, rows[-1].id)
        read += [(row.user, row.id) for row in rows]
    assert read == [("u0", 3), ("u0", 6), ("u1", 1), ("u1", 4), ("u1", 7), ("u2", 2), ("u2", 8)]


def test_a_row_without_a_user_is_not_parked(store):
    accept(store, [event(1, user=None), event(2, user="")])
    with store.transaction():
        store.park([1, 2])
    assert pending_ids(store) == [1]
    assert store.parked_users(priority=Priority.NORMAL) == [""]


def test_event_ids_are_never_reused(store):
    accept(store, [event(1), event(2)])
    settle(store, [delivered(1), delivered(2)])
    with store.transaction():
        store.keep_ids_of(2)
        store.connection.execute("DELETE FROM events")
    store.reopen()
    accept(store, [event(3)])
    assert pending_ids(store) == [3]


def test_a_crash_after_the_commit_loses_nothing(store, tmp_path):
    accept(store, [event(1), event(2)])
    settle(store, [delivered(1)])
    crashed = Store(copied(store.path, tmp_path / "crash"))
    check_counters(crashed)
    assert pending_ids(crashed) == [2]
    assert crashed.counters == store.counters
    crashed.close()


def test_closing_moves_all_ids_to_their_table(tmp_path):
    store = Store(tmp_path / "o.db")
    accept(store, [event(n) for n in range(100)])
    store.close()
    store = Store(tmp_path / "o.db")
    assert len(store.ids) == 0
    assert accept(store, [event(5)]).repeated == 1
    store.close()


def test_closing_on_a_failed_disk_raises_nothing(tmp_path):
    store = Store(tmp_path / "o.db")
    store.connection.close()
    store.close()


def test_sources_keep_their_numbers_and_follow_their_product(store):
    with store.transaction():
        first = store.source(b"one", "AP-1")
        second = store.source(b"two", "AP-2")
        assert store.source(b"one", "AP-3") == first != second
    assert store.source_products() == {first: "AP-3", second: "AP-2"}


def test_meta_values_survive_a_reopen(store):
    assert store.get_meta("paused") is None
    with store.transaction():
        store.set_meta("paused", "yes")
    store.reopen()
    assert store.get_meta("paused") == "yes"


def test_the_oldest_pending_time_is_that_of_each_class(store):
    assert store.oldest_pending_ms() == {}
    accept(store, [event(1)], NOW_MS + 5)
    accept(store, [event(2, priority=Priority.HIGH)], NOW_MS + 9)
    assert store.oldest_pending_ms() == {Priority.NORMAL: NOW_MS + 5, Priority.HIGH: NOW_MS + 9}
    settle(store, [delivered(1)])
    assert store.oldest_pending_ms() == {Priority.HIGH: NOW_MS + 9}


def test_backlog_queries_use_the_partial_indexes(store):
    """With a bound state alone SQLite does not use a partial index: a page once scanned ten million rows."""
    accept(store, [event(1)])
    statements = []
    store.connection.set_trace_callback(statements.append)
    store.page(priority=Priority.HIGH, after_id=3)
    store.parked_page(priority=Priority.NORMAL, user="u", after_id=3, limit=3)
    store.parked_rows(priority=Priority.NORMAL, after=("u", 3), limit=3)
    store.parked_users(priority=Priority.HIGH)
    store.oldest_pending_ms()
    store.connection.set_trace_callback(None)
    for statement in statements:
        plan = [row[3] for row in store.connection.execute("EXPLAIN QUERY PLAN " + statement)]
        assert "INDEX pending" in plan[0] or "INDEX aside" in plan[0], (statement, plan)
        assert not any("TEMP B-TREE" in step for step in plan), (statement, plan)


def test_counters_in_another_thread_are_those_of_one_commit(store):
    """They were once changed in place, and a reader saw ``accepted`` without ``pending``."""
    accept(store, [event(1)])
    seen = store.counters
    before = dict(seen)
    accept(store, [event(2)])
    assert dict(seen) == before != dict(store.counters)


def test_the_wal_is_reused_under_load(tmp_path, monkeypatch):
    monkeypatch.setattr("sidecar.outbox.database.wal_bytes", lambda _folder: 200_000)
    store = Store(tmp_path / "wal.db", durability="process")
    for number in range(100):
        accept(store, [event(f"{number}-{n}", padding=1000) for n in range(50)])
    assert store.used_bytes() > 5_000_000
    assert store.path.with_name("wal.db-wal").stat().st_size < 1_000_000
    store.close()


def test_free_pages_are_returned_once_nothing_is_pending(store):
    """The pragma was once stepped only once, so that a step returned one page instead of 256."""
    accept(store, [event(n, padding=2000) for n in range(1000)])
    before = store.used_bytes()
    settle(store, [delivered(n) for n in range(1, 1001)])
    with store.transaction():
        store.keep_ids_of(1000)
        store.connection.execute("DELETE FROM events")
    steps = 0
    while store.vacuum():
        steps += 1
    assert 1 < steps < 6
    store.checkpoint()
    assert store.path.stat().st_size < before / 4


def test_free_pages_are_kept_while_events_are_pending(store):
    accept(store, [event(n, padding=2000) for n in range(100)])
    settle(store, [delivered(n) for n in range(1, 100)])
    with store.transaction():
        store.connection.execute("DELETE FROM events WHERE state = 4")
    assert not store.vacuum()
    assert store.connection.execute("PRAGMA freelist_count").fetchone()[0] > 0


def test_an_sql_error_does_not_break_the_connection(store):
    with pytest.raises(sqlite3.IntegrityError), store.transaction():
        store.connection.execute("INSERT INTO events (id) VALUES (1)")
    assert accept(store, [event(1)]).stored == 1
    assert store.page(priority=Priority.NORMAL, after_id=0).rows[0].id == 1


def test_unpark_all_restores_the_order(store):
    """Without it an export put newer events of a user first, if older ones were parked when the daemon stopped."""
    accept(store, [event(n) for n in range(4)])
    with store.transaction():
        store.park([2, 3])
        store.unpark_all()
    assert [row.id for row in store.page(priority=Priority.NORMAL, after_id=0).rows] == [1, 2, 3, 4]
    assert store.parked_users(priority=Priority.NORMAL) == []


def test_a_failed_open_closes_the_connection(tmp_path):
    """The connection once stayed open beside the one that recovered the file; Python 3.13 warned of it."""
    opened = []

    class Ill(sqlite3.Connection):
        def execute(self, sql, *values):
            if "FROM counters" in sql:
                opened.append(self)
                raise sqlite3.DatabaseError("database disk image is malformed")
            return super().execute(sql, *values)

    with pytest.raises(sqlite3.DatabaseError, match="malformed"):
        Store(tmp_path / "o.db", factory=Ill)
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        opened[0].commit()
