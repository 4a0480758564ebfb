"""Looking into the outbox, forgetting users, and watching for PX's silent limits."""

import pytest
from outbox_files import HOUR_MS, NOW_MS, accept, check_account, copied, dead, delivered, dropped, event, settle

from sidecar.outbox import Failure, NewEvent, Remembered, Store
from sidecar.outbox.forget import forget_users
from sidecar.outbox.lookup import name_of, recent, show
from sidecar.outbox.watch import Frequent, Near, Watch


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "o.db", durability="process")
    yield store
    check_account(store)
    store.close()


@pytest.fixture
def mixed(store):
    """1 delivered last, 2 dropped, 3 dead, 4 delivered, 5 pending and failed once, 6 pending and high."""
    accept(store, [event(n, user=f"u{n % 2}", high=n == 6, name="Paid" if n == 4 else "Searched") for n in range(1, 7)])
    settle(store, [dropped(2), delivered(4)], NOW_MS + 1)
    settle(store, [dead(3)], NOW_MS + 2)
    settle(store, [delivered(1)], NOW_MS + 3)
    with store.transaction():
        store.note_failures([Failure(5, 1, NOW_MS, NOW_MS, 1, 0, "PX answered 503")])
    return store


def ids_of(page):
    return [one.id for one in page.events]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, [6, 5, 4, 3, 2, 1]),
        ({"state": "pending"}, [6, 5]),
        ({"state": "delivered"}, [1, 4]),
        ({"state": "dropped"}, [2]),
        ({"state": "dead"}, [3]),
        ({"user": "u1"}, [5, 3, 1]),
        ({"name": "Paid"}, [4]),
        ({"state": "delivered", "name": "Paid"}, [4]),
        ({"matches": lambda one: one["messageId"] == "m2"}, [2]),
        ({"limit": 2}, [6, 5]),
    ],
)
def test_the_newest_come_first(mixed, asked, expected):
    assert ids_of(recent(mixed, **asked)) == expected


@pytest.mark.parametrize("state", [None, "pending", "delivered"])
def test_pages_follow_each_other_without_gap_or_repeat(mixed, state):
    everything = ids_of(recent(mixed, state=state))
    seen, before = [], None
    for _ in range(10):
        page = recent(mixed, state=state, limit=1, before=before)
        seen += ids_of(page)
        before = page.next_before
        if before is None:
            break
    assert seen == everything


def test_a_call_looks_at_a_bounded_number_of_rows(mixed, monkeypatch):
    monkeypatch.setattr("sidecar.outbox.lookup.SCAN_ROWS", 2)
    page = recent(mixed, name="Paid")
    assert (ids_of(page), page.next_before) == ([], (0, 5))
    assert ids_of(recent(mixed, name="Paid", before=page.next_before)) == [4]


def test_an_unknown_state_is_told(mixed):
    with pytest.raises(ValueError, match="no state 'lost'; it is one of pending, delivered"):
        recent(mixed, state="lost")


def test_one_event_is_shown_with_all_that_is_known(mixed):
    pending = show(mixed, 5)
    assert (pending.event.state, pending.event.high, pending.failure.detail) == ("pending", False, "PX answered 503")
    assert show(mixed, 6).event.high
    buried = show(mixed, 3)
    assert (buried.event.state, buried.letter.status, buried.failure) == ("dead", 400, None)
    assert (show(mixed, 1).event.status, show(mixed, 1).letter) == (201, None)
    assert show(mixed, 99) is None


@pytest.mark.parametrize(
    ("one", "name"),
    [
        ({"type": "track", "event": "Paid"}, "Paid"),
        ({"event": "Paid"}, "Paid"),
        ({"type": "page", "event": "x"}, "page"),
        ({"type": 7}, ""),
        ({"type": "track", "event": []}, ""),
    ],
)
def test_an_event_has_a_name_for_people(one, name):
    assert name_of(one) == name


# --- Forgetting ---------------------------------------------------------------------------------------------------


def forget(store, *users, in_use=()):
    total, after_id = [0, 0, 0, 0, []], 0
    while after_id is not None:
        with store.transaction():
            step = forget_users(store, users, NOW_MS + 9, in_use=in_use, after_id=after_id)
        total = [one + more for one, more in zip(total, step[:5], strict=True)]
        after_id = step.next_after
    return total


def test_a_user_leaves_pending_dead_history_and_memory(mixed):
    settle(mixed, [delivered(6, high=True, remember=Remembered("AP", "u1", b"acme"))], NOW_MS + 4)
    assert forget(mixed, "u1") == [1, 1, 1, 1, []]
    assert ids_of(recent(mixed, user="u1")) == []
    assert mixed.counters["dropped:forgotten"] == 2
    assert (mixed.counters["delivered"], mixed.counters["users"]) == (3, 0)
    for event_id in (3, 5):
        gone = show(mixed, event_id)
        assert (gone.event.state, gone.event.reason, gone.event.body) == ("dropped", "forgotten", b"{}")
        assert gone.letter is gone.failure is None
    assert ids_of(recent(mixed, user="u0")) == [6, 4, 2]


def test_what_the_dispatcher_holds_is_left_to_it(mixed):
    assert forget(mixed, "u1", in_use={5}) == [0, 1, 1, 0, [5]]
    assert show(mixed, 5).event.state == "pending"


def test_a_user_is_found_inside_events_too(store):
    bodies = (b'{"userId":42}', b'{"anonymousId":"42"}', b'{"userId":"420"}', b'{"properties":{"n":42}}', b"[42]")
    accept(store, [NewEvent(0, False, None, f"x{n}", body, None) for n, body in enumerate(bodies)])
    assert forget(store, "42")[0] == 2
    assert sorted(one.id for one in recent(store, state="pending").events) == [3, 4, 5]


@pytest.mark.parametrize("settled", [(), (1, 2, 3)])
def test_repeats_of_forgotten_events_are_still_known(store, tmp_path, settled):
    """Found by reading: after a start the id is read again from the body, which is empty now."""
    accept(store, [event(n) for n in range(1, 7)])
    settle(store, [delivered(one) for one in settled])
    forget(store, "u1")
    crashed = Store(copied(store.path, tmp_path / "crash"))
    assert accept(crashed, [event(n) for n in range(1, 7)]).repeated == 6
    crashed.close()


def test_forgotten_text_is_overwritten_in_the_file(store):
    accept(store, [event(n, user="somebody-secret" if n % 3 else "other", padding=50) for n in range(300)])
    settle(store, [delivered(n) for n in range(1, 100)])
    settle(store, [dead(n) for n in range(100, 200)])
    store.checkpoint(truncate=True)
    assert store.path.read_bytes().count(b"somebody-secret") > 400
    forget(store, "somebody-secret")
    store.checkpoint(truncate=True)
    assert store.path.read_bytes().count(b"somebody-secret") < 5
    assert store.path.with_name("o.db-wal").stat().st_size == 0


def test_forgetting_goes_in_steps(mixed, monkeypatch):
    monkeypatch.setattr("sidecar.outbox.forget.SCAN_ROWS", 2)
    assert forget(mixed, "u1", "u0")[:3] == [2, 1, 3]


# --- PX's silent limits -------------------------------------------------------------------------------------------


def busy(number, *, user="u1", session=None):
    context = b'"context":{"session":{"id":"%b"}},' % session.encode() if session else b""
    body = b'{%b"messageId":"m%d","type":"track","event":"E%d"}' % (context, number, number % 10)
    return NewEvent(0, False, user, f"m{number}", body, None)


def watched(store, watch, now_ms=NOW_MS + HOUR_MS):
    while watch.step(store, now_ms):
        pass
    return watch.near


def deliver_all(store, events, now_ms=NOW_MS):
    first = store.counters["next_id"] + 1
    accept(store, events, now_ms)
    settle(store, [delivered(first + n) for n in range(len(events))], now_ms)


def test_users_and_sessions_near_a_limit_are_named(store):
    deliver_all(store, [busy(n, user="busy", session="s1" if n < 450 else f"s{n}") for n in range(800)])
    deliver_all(store, [busy(n, user="calm") for n in range(1000, 1799)])
    watch = Watch(lambda one: one["event"])
    assert watched(store, watch) == [Near("user", "busy", 800, 1000), Near("session", "s1", 450, 500)]


def test_many_distinct_names_are_told(store):
    deliver_all(store, [busy(n) for n in range(100)])
    watch = Watch(lambda one: one["messageId"])
    assert watched(store, watch) == []
    deliver_all(store, [busy(n, user=f"u{n}") for n in range(100, 1600)])
    assert watched(store, watch) == [Near("names", "", 1600, 2000)]


def test_only_custom_events_of_the_last_day_count(store):
    deliver_all(store, [busy(n) for n in range(900)], NOW_MS - 25 * HOUR_MS)
    deliver_all(store, [busy(n) for n in range(900, 1700)])
    assert watched(store, Watch(lambda _one: None)) == []
    assert [one.seen for one in watched(store, Watch(lambda one: one["event"]))] == [800]


def test_a_step_reads_a_bounded_number_of_rows_and_a_round_all(store, monkeypatch):
    monkeypatch.setattr("sidecar.outbox.watch.STEP_ROWS", 300)
    deliver_all(store, [busy(n) for n in range(900)])
    watch = Watch(lambda one: one["event"])
    assert [watch.step(store, NOW_MS) for _ in range(4)] == [True, True, True, False]
    assert watch.near == [Near("user", "u1", 900, 1000)]


def test_the_frequent_are_found_with_few_counters():
    frequent = Frequent(counters=10)
    for number in range(1000):
        frequent.add(f"rare{number}")
        if number % 4 == 0:
            frequent.add("often")
    (who, most), *_ = frequent.above(240)
    assert who == "often"
    assert 250 <= most <= 250 + 1250 / 10
