"""The limit watch: users, sessions and names near PX's silent limits."""

from outbox_files import HOUR_MS, NOW_MS, accept, delivered, settle

from sidecar.outbox import NewEvent
from sidecar.outbox.limit_watch import FrequentItems, LimitWatch, NearLimit


def busy(number, *, user="u1", session=None):
    context = b'"context":{"session":{"id":"%b"}},' % session.encode() if session else b""
    body = b'{%b"messageId":"m%d","type":"track","event":"E%d"}' % (context, number, number % 10)
    return NewEvent(0, False, user, f"m{number}", body, kind="track", name=f"E{number % 10}")


def watched(store, watch, now_ms=NOW_MS + HOUR_MS):
    while watch.step(store, now_ms):
        pass
    return watch.near


def deliver_all(store, events, now_ms=NOW_MS):
    first = store.counters["next_id"] + 1
    accept(store, events, now_ms)
    settle(store, [delivered(first + n) for n in range(len(events))], now_ms)


def test_users_and_sessions_near_a_limit_are_listed(store):
    deliver_all(store, [busy(n, user="busy", session="s1" if n < 450 else f"s{n}") for n in range(800)])
    deliver_all(store, [busy(n, user="calm") for n in range(1000, 1799)])
    watch = LimitWatch(lambda event: event["event"])
    assert watched(store, watch) == [NearLimit("user", "busy", 800, 1000), NearLimit("session", "s1", 450, 500)]


def test_many_distinct_names_are_listed(store):
    deliver_all(store, [busy(n) for n in range(100)])
    watch = LimitWatch(lambda event: event["messageId"])
    assert watched(store, watch) == []
    deliver_all(store, [busy(n, user=f"u{n}") for n in range(100, 1600)])
    assert watched(store, watch) == [NearLimit("names", "", 1600, 2000)]


def test_only_custom_events_of_the_last_day_count(store):
    deliver_all(store, [busy(n) for n in range(900)], NOW_MS - 25 * HOUR_MS)
    deliver_all(store, [busy(n) for n in range(900, 1700)])
    assert watched(store, LimitWatch(lambda _one: None)) == []
    assert [near.seen for near in watched(store, LimitWatch(lambda event: event["event"]))] == [800]


def test_a_step_is_bounded_and_a_round_covers_all_rows(store, monkeypatch):
    monkeypatch.setattr("sidecar.outbox.limit_watch.STEP_ROWS", 300)
    deliver_all(store, [busy(n) for n in range(900)])
    watch = LimitWatch(lambda event: event["event"])
    assert [watch.step(store, NOW_MS) for _ in range(4)] == [True, True, True, False]
    assert watch.near == [NearLimit("user", "u1", 900, 1000)]


def test_frequent_items_are_found_with_few_counters():
    frequent = FrequentItems(counters=10)
    for number in range(1000):
        frequent.add(f"rare{number}")
        if number % 4 == 0:
            frequent.add("often")
    (text, most), *_ = frequent.above(240)
    assert text == "often"
    assert 250 <= most <= 250 + 1250 / 10
