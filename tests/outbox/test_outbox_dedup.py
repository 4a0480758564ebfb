"""Dedup: repeats are recognized within a call, across commits, restarts and pruning, and for how long."""

import json

import pytest
from msgspec import structs
from outbox_files import HOUR_MS, NOW_MS, accept, copied, dead, delivered, event, rolled_back, settle

from sidecar.config import load_text
from sidecar.control.delivery_control import load_settings
from sidecar.http import LARGE_BYTES
from sidecar.mapping import LiveSettings, Priority
from sidecar.outbox import NewEvent, Retention, Store
from sidecar.outbox.clock_trust import AgeScale, ClockSpan
from sidecar.outbox.dedup import DedupIndex, digest_of, digests_of
from sidecar.receive.parse import EventParser

DAY_MS = 24 * HOUR_MS
OLD = ("seen_s < ?", [NOW_MS // 1000 + 1])


def retention(*, delivered_ms=DAY_MS, ids_ms=DAY_MS, dead_ms=30 * DAY_MS):
    return Retention(delivered_ms=delivered_ms, ids_ms=ids_ms, dead_ms=dead_ms, max_users=100)


def prune(store, retention, now_ms, steps=3):
    for _ in range(steps):
        with store.transaction():
            retention.prune_step(store, now_ms)


def is_repeat(store, number, now_ms=NOW_MS):
    return accept(store, [event(number)], now_ms).repeated == 1


def test_the_first_of_two_repeats_in_one_call_is_stored(store):
    first, second = event(1), structs.replace(event(1), body=b"{}")
    assert accept(store, [first, second, event(2)]) == (2, 1, (1,))
    assert store.page(priority=Priority.NORMAL, after_id=0).rows[0].body == first.body


def test_repeats_are_recognized_across_groups_of_a_call(store):
    with store.transaction():
        outcomes = store.accept([[event(1)], [event(1), event(2)], []], NOW_MS)
    assert [outcome[:2] for outcome in outcomes] == [(1, 0), (1, 1), (0, 0)]
    assert store.counters["repeated"] == 1


def test_repeats_are_recognized_across_calls_in_a_transaction(store):
    with store.transaction():
        store.accept([[event(1)]], NOW_MS)
        assert store.accept([[event(1), event(2)]], NOW_MS) == [(1, 1, (0,))]


def test_sources_do_not_share_message_ids(store):
    accept(store, [event(1)])
    assert accept(store, [event(1, source=1)]).stored == 1


def test_the_digest_separates_source_and_id():
    assert digest_of(1, "1", "track", "E") != digest_of(11, "", "track", "E")
    assert digest_of(0, "\ud800", "track", "E") != digest_of(0, "?", "track", "E")


def test_the_digests_of_a_batch_are_those_of_its_events():
    events = [event(number, source=source) for number, source in enumerate([0, 0, 3, 0, 1])]
    events.append(structs.replace(event(9), message_id="\ud800", kind="page", name="Home"))
    assert digests_of(events) == [digest_of(new.source, new.message_id, new.kind, new.name) for new in events]


def test_an_id_of_a_rolled_back_commit_is_not_known(store):
    with rolled_back(store):
        store.accept([[event(1)]], NOW_MS)
    assert not is_repeat(store, 1)


def test_a_repeat_is_recognized_after_a_crash(store, tmp_path):
    accept(store, [event(1), event(2, bad="it is bad")])
    crashed = Store(copied(store.path, tmp_path / "crash"))
    assert is_repeat(crashed, 1)
    assert is_repeat(crashed, 2)
    crashed.close()


@pytest.mark.parametrize("kind", ["track", "page", "identify", "nothing", 7])
@pytest.mark.parametrize("padding", [3_000, 30_000], ids=["too large", "far too large"])
def test_a_repeat_of_a_shortened_event_is_known_after_a_crash(store, tmp_path, kind, padding):
    """A shortened event has its type under another name; after a crash it was stored a second time."""
    settings = load_settings(load_text("[outbox]\nmax_event_bytes = 1000\n"), store)
    call = {"type": kind, "event": "E", "name": "Home", "userId": "u", "messageId": "m", "p": "x" * padding}
    body = json.dumps({"batch": [call]}).encode() + b" " * LARGE_BYTES

    def repeated(outbox):
        parsed = EventParser(LiveSettings(settings)).parse(body, "batch", None, trusted=True)
        assert b"shortened" in parsed.events[0].body
        return accept(outbox, parsed.events).repeated

    assert repeated(store) == 0
    crashed = Store(copied(store.path, tmp_path / "crash"))
    assert repeated(crashed) == 1
    crashed.close()


def test_a_body_without_an_id_does_not_stop_a_start(store):
    """Bad events can be any JSON; a start once failed on bodies that are not objects with a text id."""
    bodies = (b"[]", b'"text"', b"7", b'{"messageId":7}', b"{}", b"\xff not json")
    accept(store, [NewEvent(0, False, None, f"x{n}", body, None) for n, body in enumerate(bodies)])
    store.reopen()
    assert accept(store, [NewEvent(0, False, None, "", b"{}", None)]).stored == 1


def fill(store, count, *, newest):
    store.ids = DedupIndex(store.connection, newest=newest)
    for start in range(0, count, 10):
        accept(store, [event(n) for n in range(start, min(start + 10, count))])


def test_repeats_are_recognized_in_memory_and_in_the_table(store):
    fill(store, 95, newest=30)
    assert store.counters["ids_flushed_to"] == 90
    assert len(store.ids) == 5
    assert all(is_repeat(store, n) for n in range(95))
    store.reopen()
    assert len(store.ids) == 5
    assert all(is_repeat(store, n) for n in range(95))


def test_a_batch_moves_in_slices_and_stays_known(store, tmp_path, monkeypatch):
    """With a million ids, the commit that moved a whole batch at once took 200 ms."""
    monkeypatch.setattr("sidecar.outbox.dedup.SLICE", 3)
    monkeypatch.setattr("sidecar.outbox.dedup.SLICE_PER_ID", 0)
    fill(store, 30, newest=20)
    in_table = []
    for number in range(30, 40):
        in_table.append(store.connection.execute("SELECT count(*) FROM ids").fetchone()[0])
        accept(store, [event(number)])
        crashed = Store(copied(store.path, tmp_path / str(number)), durability="process")
        assert accept(crashed, [event(n) for n in range(number + 1)]).repeated == number + 1
        crashed.close()
        with rolled_back(store):
            store.flush_ids(20)
        digests = [digest_of(0, f"m{n}", "track", "Searched") for n in range(number + 1)]
        assert store.ids.unseen(digests) == set()
    assert in_table == [3, 6, 9, 12, 15, 18, 20, 20, 20, 20]
    assert store.counters["ids_flushed_to"] == 20


def test_all_ids_move_at_once_before_rows_are_deleted(store, tmp_path, monkeypatch):
    monkeypatch.setattr("sidecar.outbox.dedup.SLICE", 3)
    monkeypatch.setattr("sidecar.outbox.dedup.SLICE_PER_ID", 0)
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


def test_a_rolled_back_move_keeps_the_ids_in_memory(store):
    fill(store, 20, newest=1000)
    with rolled_back(store):
        store.flush_ids(everything=True)
    assert store.counters["ids_flushed_to"] == 0
    assert all(is_repeat(store, n) for n in range(20))


def test_two_moves_in_one_transaction_count_once(store):
    """The second move once advanced the counter twice, and the next start did not read newer ids again."""
    fill(store, 20, newest=1000)
    with store.transaction():
        store.flush_ids(everything=True)
        store.flush_ids(everything=True)
    assert store.counters["ids_flushed_to"] == 20


def test_more_ids_than_one_probe_holds_are_looked_up(store):
    fill(store, 10, newest=5)
    assert accept(store, [event(n) for n in range(2500)])[:2] == (2490, 10)


def test_a_repeat_is_recognized_after_its_row_is_pruned(store):
    accept(store, [event(1), event(2)])
    settle(store, [delivered(1), delivered(2)])
    prune(store, retention(delivered_ms=0), NOW_MS + 10)
    assert store.connection.execute("SELECT count(*) FROM events").fetchone() == (0,)
    assert is_repeat(store, 1)
    store.reopen()
    assert is_repeat(store, 2)


def test_an_id_expires_after_keep_ids(store):
    accept(store, [event(1)])
    settle(store, [delivered(1)])
    for hour in range(24):
        prune(store, retention(), NOW_MS + hour * HOUR_MS)
    assert is_repeat(store, 1, NOW_MS + DAY_MS)
    prune(store, retention(), NOW_MS + DAY_MS + DAY_MS // 8 + HOUR_MS)
    assert not is_repeat(store, 1, NOW_MS + DAY_MS + HOUR_MS)


def test_ids_on_a_quiet_host_expire_too(store):
    """Ids in memory once never expired: a quiet host recognized a repeat without limit of time."""
    accept(store, [event(1)])
    prune(store, retention(), NOW_MS + 4 * HOUR_MS)
    assert len(store.ids) == 0
    assert is_repeat(store, 1)


@pytest.mark.parametrize("state", ["pending", "parked", "dead"])
def test_an_id_does_not_expire_before_its_event(store, state):
    accept(store, [event(1)])
    with store.transaction():
        store.flush_ids(everything=True)
        if state == "parked":
            store.park([1])
        if state == "dead":
            store.settle([dead(1)], NOW_MS)
    late_ms = NOW_MS + 20 * DAY_MS
    prune(store, retention(), late_ms)
    assert is_repeat(store, 1, late_ms)


def test_an_id_of_a_clock_that_was_ahead_is_as_old_as_it_is(store):
    """Ids would stay for years and the table would grow; set to the time of the look, they would stay a day too long."""
    ahead_ms = 1000 * DAY_MS
    accept(store, [event(1)], NOW_MS + ahead_ms)
    settle(store, [delivered(1)], NOW_MS)
    with store.transaction():
        store.flush_ids(everything=True)
    span = ClockSpan(NOW_MS + ahead_ms - 1000, NOW_MS + ahead_ms + 1000, -ahead_ms)
    for now_ms, known in ((NOW_MS, True), (NOW_MS + DAY_MS - 2000, True), (NOW_MS + DAY_MS + 2000, False)):
        with store.transaction():
            retention(delivered_ms=0).prune_step(store, now_ms, scale=AgeScale(now_ms, spans=(span,)))
            store.ids.expire(("0", []))  # to the end of the table, so that the next step begins with it again
        assert is_repeat(store, 1) == known


def test_no_id_is_forgotten_while_the_clock_is_not_believed(store):
    accept(store, [event(1)])
    settle(store, [delivered(1)], NOW_MS)
    with store.transaction():
        store.flush_ids(everything=True)
        late_ms = NOW_MS + 1000 * DAY_MS
        retention(delivered_ms=0).prune_step(store, late_ms, scale=AgeScale(late_ms, believed=False))
    assert is_repeat(store, 1)


def test_expire_scans_the_table_in_steps(store):
    accept(store, [event(n) for n in range(50)])
    settle(store, [delivered(n) for n in range(1, 51)])
    with store.transaction():
        store.flush_ids(everything=True)
        deleted = [store.ids.expire(OLD, rows=20) for _ in range(5)]
    assert deleted == [20, 20, 10, 0, 0]


def test_expire_looks_up_no_events_after_the_oldest_pending_one(store):
    """With ten million events pending for more than a day, each step once read thousands of random pages, and deliveries
    waited a third of a second."""
    accept(store, [event(n) for n in range(30)])
    settle(store, [delivered(n) for n in range(1, 11)])  # 1 to 10 are settled, the backlog begins at 11
    settle(store, [delivered(n) for n in range(21, 31)])
    looked_up: list[str] = []
    with store.transaction():
        store.flush_ids(everything=True)
        store.connection.set_trace_callback(looked_up.append)
        deleted = store.ids.expire(OLD)
        store.connection.set_trace_callback(None)
    assert deleted == 10
    assert any("event_id < 11" in statement for statement in looked_up)
    settle(store, [delivered(n) for n in range(11, 21)])
    with store.transaction():
        deleted = [store.ids.expire(OLD) for _ in range(2)]
    assert sum(deleted) == 20


def test_an_event_is_looked_up_by_its_digest(store):
    """`import --back` looked at every id in memory for each event: 20,000 of them held the writer for 1.4 s a page."""

    def known_as(number):
        new = event(number)
        return store.ids.event_of(digest_of(new.source, new.message_id, new.kind, new.name))

    accept(store, [event(1), event(2)])
    in_memory = [known_as(number) for number in (1, 2, 3)]
    with store.transaction():
        store.flush_ids(everything=True)
    in_the_table = [known_as(number) for number in (1, 2, 3)]
    assert in_memory == in_the_table == [1, 2, None]
