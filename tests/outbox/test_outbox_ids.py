"""Recognising repeats: within a call, across commits and restarts, after the row is gone, and for how long."""

import pytest
from outbox_files import HOUR_MS, NOW_MS, accept, check_account, copied, dead, delivered, event, settle, undone

from sidecar.outbox import Keeper, NewEvent, Store
from sidecar.outbox.ids import MessageIds, digest_of

DAY_MS = 24 * HOUR_MS


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "o.db", durability="process")
    yield store
    check_account(store)
    store.close()


def keeper(*, delivered_ms=DAY_MS, ids_ms=DAY_MS, dead_ms=30 * DAY_MS):
    return Keeper(delivered_ms=delivered_ms, ids_ms=ids_ms, dead_ms=dead_ms, max_users=100)


def keep(store, keeper, now_ms, steps=3):
    for _ in range(steps):
        with store.transaction():
            keeper.step(store, now_ms)


def is_repeat(store, number, now_ms=NOW_MS):
    return accept(store, [event(number)], now_ms).repeated == 1


def test_the_first_of_two_in_one_call_wins(store):
    first, second = event(1), event(1)._replace(body=b"{}")
    assert accept(store, [first, second, event(2)]) == (2, 1)
    assert store.page(high=False, after_id=0).rows[0].body == first.body


def test_groups_of_one_commit_know_each_other(store):
    with store.transaction():
        outcomes = store.accept([[event(1)], [event(1), event(2)], []], NOW_MS)
    assert outcomes == [(1, 0), (1, 1), (0, 0)]
    assert store.counters["repeated"] == 1


def test_two_calls_in_one_transaction_know_each_other(store):
    with store.transaction():
        store.accept([[event(1)]], NOW_MS)
        assert store.accept([[event(1), event(2)]], NOW_MS) == [(1, 1)]


def test_sources_do_not_share_ids(store):
    accept(store, [event(1)])
    assert accept(store, [event(1, source=1)]).stored == 1


def test_a_source_and_an_id_are_told_apart():
    assert digest_of(1, "1") != digest_of(11, "")
    assert digest_of(0, "\ud800") != digest_of(0, "?")


def test_an_id_of_an_undone_commit_was_never_seen(store):
    with undone(store):
        store.accept([[event(1)]], NOW_MS)
    assert not is_repeat(store, 1)


def test_a_repeat_is_known_after_a_crash(store, tmp_path):
    accept(store, [event(1), event(2, bad="it is bad")])
    crashed = Store(copied(store.path, tmp_path / "crash"))
    assert is_repeat(crashed, 1)
    assert is_repeat(crashed, 2)
    crashed.close()


def test_a_row_whose_body_holds_no_id_does_not_stop_a_start(store):
    """Found by reading: bad events can be any JSON, and were looked into like objects with a text id."""
    bodies = (b"[]", b'"text"', b"7", b'{"messageId":7}', b"{}", b"\xff not json")
    accept(store, [NewEvent(0, False, None, f"x{n}", body, None) for n, body in enumerate(bodies)])
    store.reopen()
    assert accept(store, [NewEvent(0, False, None, "", b"{}", None)]).stored == 1


def fill(store, count, *, newest):
    store.ids = MessageIds(store.connection, newest=newest)
    for start in range(0, count, 10):
        accept(store, [event(n) for n in range(start, min(start + 10, count))])


def test_repeats_are_known_before_and_after_the_newest_move_to_their_table(store):
    fill(store, 95, newest=30)
    assert store.counters["ids_flushed_to"] == 90
    assert len(store.ids) == 5
    assert all(is_repeat(store, n) for n in range(95))
    store.reopen()
    assert len(store.ids) == 5
    assert all(is_repeat(store, n) for n in range(95))


def test_a_batch_moves_in_slices_and_is_known_all_the_while(store, tmp_path, monkeypatch):
    """Found by measuring: with a million ids one commit in many took 200 ms, for the whole batch at once."""
    monkeypatch.setattr("sidecar.outbox.ids.SLICE", 3)
    monkeypatch.setattr("sidecar.outbox.ids.SLICE_PER_ID", 0)
    fill(store, 30, newest=20)
    in_table = []
    for number in range(30, 40):
        in_table.append(store.connection.execute("SELECT count(*) FROM ids").fetchone()[0])
        accept(store, [event(number)])
        crashed = Store(copied(store.path, tmp_path / str(number)), durability="process")
        assert accept(crashed, [event(n) for n in range(number + 1)]).repeated == number + 1
        crashed.close()
        with undone(store):
            store.flush_ids(20)
        assert all(digest_of(0, f"m{n}") not in store.ids.unseen([digest_of(0, f"m{n}")]) for n in range(number + 1))
    assert in_table == [3, 6, 9, 12, 15, 18, 20, 20, 20, 20]
    assert store.counters["ids_flushed_to"] == 20


def test_everything_moves_at_once_where_a_row_has_to_go(store, tmp_path, monkeypatch):
    monkeypatch.setattr("sidecar.outbox.ids.SLICE", 3)
    monkeypatch.setattr("sidecar.outbox.ids.SLICE_PER_ID", 0)
    fill(store, 30, newest=20)
    with store.transaction():
        store.flush_ids()
        store.keep_ids_of(30)
        store.connection.execute("DELETE FROM events")
        store.count("pending_normal", -30)
        store.count("dropped:discarded", 30)
    assert len(store.ids) == 0
    crashed = Store(copied(store.path, tmp_path / "crash"))
    assert accept(crashed, [event(n) for n in range(30)]).repeated == 30
    crashed.close()


def test_an_undone_move_keeps_the_newest(store):
    fill(store, 20, newest=1000)
    with undone(store):
        store.flush_ids(all_of_them=True)
    assert store.counters["ids_flushed_to"] == 0
    assert all(is_repeat(store, n) for n in range(20))


def test_moving_twice_in_one_transaction_counts_once(store):
    """Found by reading: the second move added its distance to the first one's, and a start forgot newer ids."""
    fill(store, 20, newest=1000)
    with store.transaction():
        store.flush_ids(all_of_them=True)
        store.flush_ids(all_of_them=True)
    assert store.counters["ids_flushed_to"] == 20


def test_more_ids_than_one_probe_holds_are_looked_up(store):
    fill(store, 10, newest=5)
    assert accept(store, [event(n) for n in range(2500)]) == (2490, 10)


def test_a_repeat_is_known_after_its_row_was_pruned(store):
    accept(store, [event(1), event(2)])
    settle(store, [delivered(1), delivered(2)])
    keep(store, keeper(delivered_ms=0), NOW_MS + 10)
    assert store.connection.execute("SELECT count(*) FROM events").fetchone() == (0,)
    assert is_repeat(store, 1)
    store.reopen()
    assert is_repeat(store, 2)


def test_an_id_is_forgotten_after_its_time(store):
    accept(store, [event(1)])
    settle(store, [delivered(1)])
    for hour in range(24):
        keep(store, keeper(), NOW_MS + hour * HOUR_MS)
    assert is_repeat(store, 1, NOW_MS + DAY_MS)
    keep(store, keeper(), NOW_MS + DAY_MS + DAY_MS // 8 + HOUR_MS)
    assert not is_repeat(store, 1, NOW_MS + DAY_MS + HOUR_MS)


def test_few_ids_are_forgotten_too(store):
    """Found by reading: ids in memory never aged, so that on a quiet host a repeat was known for ever."""
    accept(store, [event(1)])
    keep(store, keeper(), NOW_MS + 4 * HOUR_MS)
    assert len(store.ids) == 0
    assert is_repeat(store, 1)


@pytest.mark.parametrize("state", ["pending", "aside", "dead"])
def test_an_id_is_never_forgotten_while_its_event_is(store, state):
    accept(store, [event(1)])
    with store.transaction():
        store.flush_ids(all_of_them=True)
        if state == "aside":
            store.set_aside([1])
        if state == "dead":
            store.settle([dead(1)], NOW_MS)
    late_ms = NOW_MS + 20 * DAY_MS
    keep(store, keeper(), late_ms)
    assert is_repeat(store, 1, late_ms)


def test_ids_from_the_future_age_from_now_on(store):
    """The clock was set back by years: they would be known for years, and the table would grow."""
    accept(store, [event(1)], NOW_MS + 1000 * DAY_MS)
    settle(store, [delivered(1)], NOW_MS)
    with store.transaction():
        store.flush_ids(all_of_them=True)
    keep(store, keeper(delivered_ms=0), NOW_MS)
    assert is_repeat(store, 1)
    keep(store, keeper(delivered_ms=0), NOW_MS + 2 * DAY_MS)
    assert not is_repeat(store, 1)


def test_the_sweeper_passes_the_whole_table_in_steps(store):
    accept(store, [event(n) for n in range(50)])
    settle(store, [delivered(n) for n in range(1, 51)])
    with store.transaction():
        store.flush_ids(all_of_them=True)
        gone = [store.ids.sweep(NOW_MS // 1000 + 1, NOW_MS // 1000, rows=20) for _ in range(5)]
    assert gone == [20, 20, 10, 0, 0]


def test_behind_a_backlog_no_event_is_looked_up(store):
    """With ten million pending for more than a day, each step looked at thousands of random pages: deliveries stood
    still for a third of a second, and `status` with them."""
    accept(store, [event(n) for n in range(30)])
    settle(store, [delivered(n) for n in range(1, 11)])  # 1 to 10 are settled, the backlog begins at 11
    settle(store, [delivered(n) for n in range(21, 31)])
    looked_up: list[str] = []
    with store.transaction():
        store.flush_ids(all_of_them=True)
        store.connection.set_trace_callback(looked_up.append)
        gone = store.ids.sweep(NOW_MS // 1000 + 1, NOW_MS // 1000)
        store.connection.set_trace_callback(None)
    assert gone == 10
    assert any("event_id < 11" in statement for statement in looked_up)
    settle(store, [delivered(n) for n in range(11, 21)])
    with store.transaction():
        gone = [store.ids.sweep(NOW_MS // 1000 + 1, NOW_MS // 1000) for _ in range(2)]
    assert sum(gone) == 20
