"""The store: what is accepted, settled, read back in pages, and that no query walks the backlog."""

import sqlite3

import pytest
from outbox_files import (
    NOW_MS,
    accept,
    check_account,
    copied,
    dead,
    delivered,
    dropped,
    event,
    pending_ids,
    settle,
    undone,
)

from sidecar.outbox import Failure, NewEvent, Remembered, Row, Store


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "o.db", durability="process")
    yield store
    check_account(store)
    store.close()


def ids(page):
    return [row.id for row in page.rows]


def test_events_come_back_as_they_went_in_by_class_and_in_order(store):
    events = [event(1), event(2, high=True, user="u2", source=3), event(3, user=None)]
    assert accept(store, events) == (3, 0)
    normal = store.page(high=False, after_id=0)
    assert normal.rows == [
        Row(1, False, 0, "u1", NOW_MS, events[0].body, None),
        Row(3, False, 0, None, NOW_MS, events[2].body, None),
    ]
    assert store.page(high=True, after_id=0).rows == [Row(2, True, 3, "u2", NOW_MS, events[1].body, None)]
    assert not normal.more


def test_pages_end_where_they_are_told_to_and_say_whether_there_is_more(store):
    accept(store, [event(n) for n in range(7)])
    first = store.page(high=False, after_id=0, limit=3)
    assert (ids(first), first.more) == ([1, 2, 3], True)
    last = store.page(high=False, after_id=6, limit=3)
    assert (ids(last), last.more) == ([7], False)


def test_a_bad_event_is_dead_at_once(store):
    accept(store, [event(1, bad="it has no type", high=True), event(2)])
    assert pending_ids(store) == [2]
    assert store.counters["dead:bad_event"] == 1
    assert store.connection.execute("SELECT id, reason, name, detail, first_ms FROM dead").fetchall() == [
        (1, "bad_event", "Searched", "it has no type", NOW_MS)
    ]


def test_a_bad_event_may_be_anything(store):
    accept(store, [NewEvent(0, False, None, "a", b"[1,2]", "not an object"), NewEvent(0, False, None, "b", b"3", "no")])
    assert store.counters["dead:bad_event"] == 2
    store.reopen()


def test_what_a_transaction_did_is_undone_by_an_error(store):
    accept(store, [event(1)])
    with undone(store):
        store.accept([[event(2)]], NOW_MS)
        store.settle([delivered(1)], NOW_MS)
    assert pending_ids(store) == [1]
    assert accept(store, [event(2)]) == (1, 0)
    assert pending_ids(store) == [1, 2]


def test_each_final_state_is_counted_by_its_reason(store):
    accept(store, [event(n, high=n == 4) for n in range(1, 5)])
    settle(store, [delivered(1), dropped(2, reason="no_user"), dead(3), dead(4, reason="failing", high=True)])
    names = ("delivered", "dropped:no_user", "dead:refused", "dead:failing", "pending_normal", "pending_high")
    assert [store.counters[name] for name in names] == [1, 1, 1, 1, 0, 0]


def test_an_event_that_is_settled_twice_counts_once(store):
    accept(store, [event(1)])
    settle(store, [delivered(1), dropped(1)])
    settle(store, [dead(1)])
    assert store.counters["delivered"] == 1
    assert store.counters["pending_normal"] == 0


def test_failed_attempts_are_kept_until_the_event_is_settled(store):
    accept(store, [event(1), event(2)])
    failure = Failure(1, 3, NOW_MS, NOW_MS + 5, 2, 1000, "PX answered 503")
    with store.transaction():
        store.note_failures([Failure(1, 2, NOW_MS, NOW_MS, 1, 0, "earlier"), failure])
    assert [row.failure for row in store.page(high=False, after_id=0).rows] == [failure, None]
    settle(store, [delivered(1)])  # without first_failed_ms: whoever settles need not know
    with store.transaction():
        store.note_failures([failure])
    assert store.connection.execute("SELECT count(*) FROM retries").fetchone() == (0,)


def test_memory_is_written_with_the_settlement_and_comes_with_the_page(store):
    accept(store, [event(1), event(2), event(3, user="u2")])
    known = Remembered("AP-1", "u1", b"acme")
    settle(store, [delivered(1, remember=known)])
    assert store.page(high=False, after_id=0).known == [known]
    settle(store, [delivered(2, remember=known._replace(known=b"globex"))])
    assert store.counters["users"] == 1
    accept(store, [event(4)])
    assert store.page(high=False, after_id=0).known[0].known == b"globex"


def test_rows_set_aside_are_left_out_of_pages_and_found_by_user(store):
    accept(store, [event(1), event(2, user="u2"), event(3), event(4, user="u2", high=True)])
    with store.transaction():
        store.set_aside([1, 3, 4])
        store.set_aside([3])
    assert pending_ids(store) == [2]
    assert store.users_aside(high=False) == ["u1"]
    assert store.users_aside(high=True) == ["u2"]
    assert ids(store.aside_page(high=False, user="u1", after_id=1, limit=10)) == [3]
    assert store.aside_page(high=True, user="u2", after_id=0, limit=10).rows[0].high
    settle(store, [delivered(1), delivered(3), delivered(4, high=True)])
    assert store.users_aside(high=False) == store.users_aside(high=True) == []


def test_a_row_without_a_user_cannot_be_lost_by_setting_it_aside(store):
    accept(store, [event(1, user=None), event(2, user="")])
    with store.transaction():
        store.set_aside([1, 2])
    assert pending_ids(store) == [1]
    assert store.users_aside(high=False) == [""]


def test_ids_are_never_given_again(store):
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
    check_account(crashed)
    assert pending_ids(crashed) == [2]
    assert crashed.counters == store.counters
    crashed.close()


def test_a_clean_stop_leaves_no_ids_to_be_read_again(tmp_path):
    store = Store(tmp_path / "o.db")
    accept(store, [event(n) for n in range(100)])
    store.close()
    store = Store(tmp_path / "o.db")
    assert len(store.ids) == 0
    assert accept(store, [event(5)]).repeated == 1
    store.close()


def test_closing_after_the_disk_failed_is_no_error(tmp_path):
    store = Store(tmp_path / "o.db")
    store.connection.close()
    store.close()


def test_sources_keep_their_numbers_and_follow_their_product(store):
    with store.transaction():
        first = store.source(b"one", "AP-1")
        second = store.source(b"two", "AP-2")
        assert store.source(b"one", "AP-3") == first != second
    assert store.source_products() == {first: "AP-3", second: "AP-2"}


def test_small_texts_are_kept(store):
    assert store.get_meta("paused") is None
    with store.transaction():
        store.set_meta("paused", "yes")
    store.reopen()
    assert store.get_meta("paused") == "yes"


def test_the_oldest_pending_event_is_known_whatever_its_class(store):
    assert store.oldest_pending_ms() is None
    accept(store, [event(1)], NOW_MS + 5)
    accept(store, [event(2, high=True)], NOW_MS + 9)
    assert store.oldest_pending_ms() == NOW_MS + 5
    settle(store, [delivered(1)])
    assert store.oldest_pending_ms() == NOW_MS + 9


def test_no_look_at_the_backlog_walks_the_table(store):
    """Found by reading plans: with a bound state SQLite did not use the partial index, and walked ten million rows."""
    accept(store, [event(1)])
    statements = []
    store.connection.set_trace_callback(statements.append)
    store.page(high=True, after_id=3)
    store.aside_page(high=False, user="u", after_id=3, limit=3)
    store.users_aside(high=True)
    store.oldest_pending_ms()
    store.connection.set_trace_callback(None)
    for statement in statements:
        plan = [row[3] for row in store.connection.execute("EXPLAIN QUERY PLAN " + statement)]
        assert "INDEX pending" in plan[0] or "INDEX aside" in plan[0], (statement, plan)


def test_counters_in_another_thread_are_those_of_one_commit(store):
    """Found by reading: they were changed one by one, and a look from outside saw accepted without pending."""
    accept(store, [event(1)])
    seen = store.counters
    before = dict(seen)
    accept(store, [event(2)])
    assert dict(seen) == before != dict(store.counters)


def test_the_wal_is_used_again_from_its_beginning_under_load(tmp_path, monkeypatch):
    monkeypatch.setattr("sidecar.outbox.database.wal_bytes", lambda _folder: 200_000)
    store = Store(tmp_path / "wal.db", durability="process")
    for number in range(100):
        accept(store, [event(f"{number}-{n}", padding=1000) for n in range(50)])
    assert store.used_bytes() > 5_000_000
    assert store.path.with_name("wal.db-wal").stat().st_size < 1_000_000
    store.close()


def test_space_is_given_back_once_nothing_is_pending(store):
    """Found by measuring: the pragma was stepped once, so that a step gave one page back instead of 256."""
    accept(store, [event(n, padding=2000) for n in range(1000)])
    before = store.used_bytes()
    settle(store, [delivered(n) for n in range(1, 1001)])
    with store.transaction():
        store.keep_ids_of(1000)
        store.connection.execute("DELETE FROM events")
    steps = 0
    while store.tidy():
        steps += 1
    assert 1 < steps < 6
    store.checkpoint()
    assert store.path.stat().st_size < before / 4


def test_free_pages_are_left_alone_while_there_is_a_backlog(store):
    accept(store, [event(n, padding=2000) for n in range(100)])
    settle(store, [delivered(n) for n in range(1, 100)])
    with store.transaction():
        store.connection.execute("DELETE FROM events WHERE state = 4")
    assert not store.tidy()
    assert store.connection.execute("PRAGMA freelist_count").fetchone()[0] > 0


def test_an_error_inside_a_call_does_not_end_the_connection(store):
    with pytest.raises(sqlite3.IntegrityError), store.transaction():
        store.connection.execute("INSERT INTO events (id) VALUES (1)")
    assert accept(store, [event(1)]).stored == 1
    assert store.page(high=False, after_id=0).rows[0].id == 1


def test_what_is_set_aside_can_be_brought_back_to_its_place(store):
    """An export gave the newest of a user first, where they had not been set aside yet when the daemon stopped."""
    accept(store, [event(n) for n in range(4)])
    with store.transaction():
        store.set_aside([2, 3])
        store.bring_back()
    assert [row.id for row in store.page(high=False, after_id=0).rows] == [1, 2, 3, 4]
    assert store.users_aside(high=False) == []


def test_a_file_that_cannot_be_read_while_it_is_opened_is_closed_again(tmp_path):
    """Found by Python 3.13: the connection stayed open beside the one that recovered the file."""
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
