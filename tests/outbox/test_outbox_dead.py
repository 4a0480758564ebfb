"""Dead letters: listed by id, name, reason and time, retried, discarded and exported, always in pages."""

import pytest
from msgspec import structs
from outbox_files import NOW_MS, accept, dead, event, pending_ids, settle

from sidecar.mapping import Priority
from sidecar.outbox import Failure, Via
from sidecar.outbox.dead import DeadLetterFilter, dead_page, discard, exported, retry


@pytest.fixture
def dead_letters(store):
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
        (DeadLetterFilter(), [1, 2, 3, 4, 5, 6, 7]),
        (DeadLetterFilter(ids=[6, 2, 9, 99]), [2, 6]),
        (DeadLetterFilter(ids=[]), []),
        (DeadLetterFilter(name="Paid"), [5, 6]),
        (DeadLetterFilter(reason="bad_event"), [7]),
        (DeadLetterFilter(since_ms=NOW_MS + 50), [5, 6, 7]),
        (DeadLetterFilter(until_ms=NOW_MS + 50), [1, 2, 3, 4]),
        (DeadLetterFilter(since_ms=NOW_MS + 50, until_ms=NOW_MS + 100), [7]),
        (DeadLetterFilter(ids=[1, 5], reason="failing"), [5]),
        (DeadLetterFilter(name="Unknown"), []),
    ],
)
def test_a_filter_selects_letters(dead_letters, which, expected):
    page = dead_page(dead_letters, which)
    assert ids_of(page) == expected
    assert page.next_after is None


def test_a_letter_holds_reason_attempts_and_event(dead_letters):
    letter = dead_page(dead_letters, DeadLetterFilter(ids=[5])).letters[0]
    assert (letter.reason, letter.status, letter.name, letter.user) == ("failing", 503, "Paid", "u1")
    assert (letter.detail, letter.attempts, letter.payload) == ("PX refused it", 1, b"{}")
    assert (letter.first_ms, letter.last_ms, letter.received_ms) == (NOW_MS + 100, NOW_MS + 100, NOW_MS)
    assert letter.body == event(5).body


def test_pages_continue_without_gap_or_repeat(dead_letters):
    pages, after_id = [], 0
    while after_id is not None:
        page = dead_page(dead_letters, DeadLetterFilter(), after_id=after_id, limit=3)
        pages.append(ids_of(page))
        after_id = page.next_after
    assert pages == [[1, 2, 3], [4, 5, 6], [7]]


def test_a_call_examines_a_bounded_number_of_rows(dead_letters, monkeypatch):
    monkeypatch.setattr("sidecar.outbox.dead.SCAN_ROWS", 4)
    page = dead_page(dead_letters, DeadLetterFilter(name="Paid"))
    assert (ids_of(page), page.next_after) == ([], 4)
    assert ids_of(dead_page(dead_letters, DeadLetterFilter(name="Paid"), after_id=4)) == [5, 6]
    by_id = dead_page(dead_letters, DeadLetterFilter(ids=[8, 9, 10, 1, 5]))
    assert (ids_of(by_id), by_id.next_after) == ([1, 5], 9)


def retry_all(store, which, *, limit=2, priority_of=lambda _event: Priority.NORMAL):
    moved, after_id, pages = [], 0, 0
    while after_id is not None:
        with store.transaction():
            page = retry(store, which, NOW_MS, priority_of=priority_of, after_id=after_id, limit=limit)
        moved += page.ids
        after_id = page.next_after
        pages += 1
    return moved, pages


def test_a_retried_letter_is_pending_with_its_id_and_body(dead_letters):
    moved, pages = retry_all(dead_letters, DeadLetterFilter(reason="refused"))
    assert (moved, pages) == ([1, 2, 3, 4], 3)
    assert pending_ids(dead_letters) == [1, 2, 3, 4, 8, 9, 10]
    assert dead_letters.counters["dead:refused"] == 0
    assert dead_letters.page(priority=Priority.NORMAL, after_id=0).rows[0].body == event(1).body
    assert accept(dead_letters, [event(1)]).repeated == 1


def test_a_retry_decides_the_class_again(dead_letters):
    retry_all(
        dead_letters, DeadLetterFilter(ids=[1, 2]), priority_of=lambda event: Priority(event["messageId"] == "m2")
    )
    assert [row.id for row in dead_letters.page(priority=Priority.HIGH, after_id=0).rows] == [2]


def test_a_retried_copy_stays_in_class_low(store):
    accept(store, [structs.replace(event(1), via=Via.RESEND, priority=Priority.LOW)])
    settle(store, [dead(1, priority=Priority.LOW)])
    retry_all(store, DeadLetterFilter(ids=[1]))
    assert store.counters["pending_low"] == 1


def test_a_retried_letter_has_no_failed_attempts(store):
    accept(store, [event(1)])
    with store.transaction():
        store.record_failures([Failure(1, 20, NOW_MS, NOW_MS, 20, 10**9, "503")])
    settle(store, [dead(1, reason="failing", first_failed_ms=NOW_MS)])
    retry_all(store, DeadLetterFilter())
    assert store.page(priority=Priority.NORMAL, after_id=0).rows[0].failure is None


def test_a_retried_letter_can_be_refused_again(dead_letters):
    retry_all(dead_letters, DeadLetterFilter(ids=[1]))
    settle(dead_letters, [dead(1, reason="firewall")], NOW_MS + 500)
    assert ids_of(dead_page(dead_letters, DeadLetterFilter(reason="firewall"))) == [1]


def test_a_bad_event_can_be_retried(dead_letters):
    seen = []
    retry_all(
        dead_letters, DeadLetterFilter(reason="bad_event"), priority_of=lambda event: Priority(bool(seen.append(event)))
    )
    assert seen[0]["messageId"] == "m7"
    assert 7 in pending_ids(dead_letters)


def test_discarded_letters_are_dropped_and_counted(dead_letters):
    with dead_letters.transaction():
        moved = discard(dead_letters, DeadLetterFilter(reason="failing"), NOW_MS)
    assert moved == ([5, 6], None)
    assert (dead_letters.counters["dead:failing"], dead_letters.counters["dropped:discarded"]) == (0, 2)
    assert dead_letters.connection.execute("SELECT state, reason FROM events WHERE id = 5").fetchone() == (
        5,
        "discarded",
    )


def test_an_export_holds_the_redacted_event(dead_letters):
    letter = dead_page(dead_letters, DeadLetterFilter(ids=[5])).letters[0]
    out = exported(letter, lambda event, _hashed: {"event": event["event"]})
    assert out["event"] == {"event": "Searched"}
    assert (out["id"], out["reason"], out["status"], out["user"]) == (5, "failing", 503, "u1")
    assert not any(isinstance(value, bytes) for value in out.values())
    assert out["payload"] is None  # it could hold hidden values under another name


def test_an_export_shows_the_payload_if_nothing_is_redacted(dead_letters):
    letter = dead_page(dead_letters, DeadLetterFilter(ids=[5])).letters[0]
    assert exported(letter, lambda event, _hashed: event)["payload"] == {}


def test_many_letters_are_retried_in_pages(store):
    accept(store, [event(n) for n in range(3000)])
    settle(store, [dead(n) for n in range(1, 3001)])
    moved, pages = retry_all(store, DeadLetterFilter(), limit=500)
    assert (len(moved), pages) == (3000, 7)
