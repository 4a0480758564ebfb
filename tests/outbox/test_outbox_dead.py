"""Dead letters: found by id, name, reason and time, made pending again, given up, exported; always in pages."""

import pytest
from outbox_files import NOW_MS, accept, check_account, dead, event, pending_ids, settle

from sidecar.outbox import Failure, Store
from sidecar.outbox.dead import Which, dead_page, discard, exported, retry


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "o.db", durability="process")
    yield store
    check_account(store)
    store.close()


@pytest.fixture
def buried(store):
    """Ten events: 1 to 4 refused, 5 and 6 failing (another name, later), 7 bad, 8 to 10 pending."""
    accept(store, [event(n) for n in range(1, 7)])
    accept(store, [event(7, bad="it has no type")], NOW_MS + 50)
    accept(store, [event(n) for n in range(8, 11)])
    settle(store, [dead(n) for n in range(1, 5)], NOW_MS)
    settle(store, [dead(n, reason="failing", name="Paid", status=503) for n in (5, 6)], NOW_MS + 100)
    return store


def ids_of(page):
    return [letter.id for letter in page.letters]


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        (Which(), [1, 2, 3, 4, 5, 6, 7]),
        (Which(ids=[6, 2, 9, 99]), [2, 6]),
        (Which(ids=[]), []),
        (Which(name="Paid"), [5, 6]),
        (Which(reason="bad_event"), [7]),
        (Which(since_ms=NOW_MS + 50), [5, 6, 7]),
        (Which(until_ms=NOW_MS + 50), [1, 2, 3, 4]),
        (Which(since_ms=NOW_MS + 50, until_ms=NOW_MS + 100), [7]),
        (Which(ids=[1, 5], reason="failing"), [5]),
        (Which(name="Nobody"), []),
    ],
)
def test_they_are_found(buried, which, expected):
    page = dead_page(buried, which)
    assert ids_of(page) == expected
    assert page.next_after is None


def test_everything_that_is_known_comes_with_them(buried):
    letter = dead_page(buried, Which(ids=[5])).letters[0]
    assert (letter.reason, letter.status, letter.name, letter.user) == ("failing", 503, "Paid", "u1")
    assert (letter.detail, letter.attempts, letter.payload) == ("PX did not like it", 1, b"{}")
    assert (letter.first_ms, letter.last_ms, letter.received_ms) == (NOW_MS + 100, NOW_MS + 100, NOW_MS)
    assert letter.body == event(5).body


def test_pages_follow_each_other(buried):
    pages, after_id = [], 0
    while after_id is not None:
        page = dead_page(buried, Which(), after_id=after_id, limit=3)
        pages.append(ids_of(page))
        after_id = page.next_after
    assert pages == [[1, 2, 3], [4, 5, 6], [7]]


def test_a_call_looks_at_a_bounded_number_of_rows(buried, monkeypatch):
    monkeypatch.setattr("sidecar.outbox.dead.SCAN_ROWS", 4)
    page = dead_page(buried, Which(name="Paid"))
    assert (ids_of(page), page.next_after) == ([], 4)
    assert ids_of(dead_page(buried, Which(name="Paid"), after_id=4)) == [5, 6]
    by_id = dead_page(buried, Which(ids=[8, 9, 10, 1, 5]))
    assert (ids_of(by_id), by_id.next_after) == ([1, 5], 9)


def retry_all(store, which, *, limit=2, high=lambda _event: False):
    moved, after_id, pages = [], 0, 0
    while after_id is not None:
        with store.transaction():
            page = retry(store, which, NOW_MS, high=high, after_id=after_id, limit=limit)
        moved += page.ids
        after_id = page.next_after
        pages += 1
    return moved, pages


def test_a_retried_letter_is_pending_again_under_its_id_with_its_body(buried):
    moved, pages = retry_all(buried, Which(reason="refused"))
    assert (moved, pages) == ([1, 2, 3, 4], 3)
    assert pending_ids(buried) == [1, 2, 3, 4, 8, 9, 10]
    assert buried.counters["dead:refused"] == 0
    assert buried.page(high=False, after_id=0).rows[0].body == event(1).body
    assert accept(buried, [event(1)]).repeated == 1


def test_the_class_is_decided_anew(buried):
    retry_all(buried, Which(ids=[1, 2]), high=lambda one: one["messageId"] == "m2")
    assert [row.id for row in buried.page(high=True, after_id=0).rows] == [2]


def test_a_retried_letter_starts_with_all_patience(store):
    accept(store, [event(1)])
    with store.transaction():
        store.note_failures([Failure(1, 20, NOW_MS, NOW_MS, 20, 10**9, "503")])
    settle(store, [dead(1, reason="failing", first_failed_ms=NOW_MS)])
    retry_all(store, Which())
    assert store.page(high=False, after_id=0).rows[0].failure is None


def test_a_letter_can_die_again(buried):
    retry_all(buried, Which(ids=[1]))
    settle(buried, [dead(1, reason="firewall")], NOW_MS + 500)
    assert ids_of(dead_page(buried, Which(reason="firewall"))) == [1]


def test_a_bad_event_can_be_retried_whatever_it_is(buried):
    seen = []
    retry_all(buried, Which(reason="bad_event"), high=lambda one: bool(seen.append(one)))
    assert seen[0]["messageId"] == "m7"
    assert 7 in pending_ids(buried)


def test_discarded_letters_are_dropped_and_counted(buried):
    with buried.transaction():
        moved = discard(buried, Which(reason="failing"), NOW_MS)
    assert moved == ([5, 6], None)
    assert (buried.counters["dead:failing"], buried.counters["dropped:discarded"]) == (0, 2)
    assert buried.connection.execute("SELECT state, reason FROM events WHERE id = 5").fetchone() == (5, "discarded")


def test_an_export_holds_the_event_as_privacy_lets_it_be_seen(buried):
    letter = dead_page(buried, Which(ids=[5])).letters[0]
    out = exported(letter, lambda one: {"event": one["event"]})
    assert out["event"] == {"event": "Searched"}
    assert (out["id"], out["reason"], out["status"], out["user"]) == (5, "failing", 503, "u1")
    assert not any(isinstance(value, bytes) for value in out.values())
    assert out["payload"] is None  # it could hold what is hidden, under another name


def test_the_payload_as_sent_is_shown_where_privacy_hides_nothing(buried):
    letter = dead_page(buried, Which(ids=[5])).letters[0]
    assert exported(letter, lambda one: one)["payload"] == {}


def test_many_letters_are_retried_in_pages(store):
    accept(store, [event(n) for n in range(3000)])
    settle(store, [dead(n) for n in range(1, 3001)])
    moved, pages = retry_all(store, Which(), limit=500)
    assert (len(moved), pages) == (3000, 7)
