"""Operations on many events: counted, discarded and marked page by page, never one in flight."""

import pytest
from msgspec import structs
from outbox_files import NOW_MS, accept, delivered, event, pending_ids, settle

from sidecar.mapping import Priority
from sidecar.outbox import EventState, Failure, Via
from sidecar.outbox.backlog import count_page, delivered_page, discard_page, mark_resent
from sidecar.outbox.queries import get_event
from sidecar.outbox.selection import EventFilter


def count(store, kind="pending", **which):
    counted, after = 0, 0
    while after is not None:
        page, after = count_page(store, EventFilter(**which), kind=kind, after_id=after)
        counted += page
    return counted


def discard(store, *, checked_out=(), **which):
    """Discard all that is selected, and return their number and the ids in flight."""
    discarded, in_flight, after = 0, [], 0
    while after is not None:
        with store.transaction():
            page = discard_page(store, EventFilter(**which), NOW_MS + 9, checked_out=checked_out, after_id=after)
        discarded, in_flight, after = discarded + page.discarded, in_flight + page.in_flight, page.next_after
    return discarded, in_flight


@pytest.fixture(params=[1, 20_000], ids=["small pages", "one page"])
def backlog(store, monkeypatch, request):
    """1 delivered; 2 to 7 pending: 3 and 6 are "Paid", 4 is high, 5 low, 6 parked, 7 of source 2 and later."""
    monkeypatch.setattr("sidecar.outbox.backlog.SCAN_IDS", request.param)
    priorities = {4: Priority.HIGH, 5: Priority.LOW}
    accept(
        store,
        [
            event(
                n, user=f"u{n % 2}", priority=priorities.get(n, Priority.NORMAL), name="Paid" if n % 3 == 0 else "Seen"
            )
            for n in range(1, 7)
        ],
    )
    accept(store, [event(7, user="u1", source=2, name="Seen")], NOW_MS + 5)
    settle(store, [delivered(1)])
    with store.transaction():
        store.park([6])
    return store


@pytest.mark.parametrize(
    ("which", "ids"),
    [
        ({}, [2, 3, 4, 5, 6, 7]),
        ({"name": "Paid"}, [3, 6]),
        ({"name": "Paid", "user": "u0"}, [6]),
        ({"sources": (2,)}, [7]),
        ({"sources": (0,), "name": "Seen"}, [2, 4, 5]),
        ({"since_ms": NOW_MS + 1}, [7]),
        ({"until_ms": NOW_MS + 5, "user": "u1"}, [3, 5]),
        ({"name": "Nothing"}, []),
        ({"priority": Priority.LOW}, [5]),
        ({"priority": Priority.NORMAL, "name": "Paid"}, [3, 6]),
    ],
)
def test_what_is_counted_is_discarded_and_nothing_else(backlog, which, ids):
    kept = [row for row in range(2, 8) if row not in ids]
    assert count(backlog, **which) == len(ids)
    assert discard(backlog, **which) == (len(ids), [])
    assert [row for row in range(2, 8) if get_event(backlog, row).event.state == "pending"] == kept
    assert {get_event(backlog, row).event.reason for row in ids} <= {"discarded"}
    assert backlog.counters["dropped:discarded"] == len(ids)


def test_an_event_in_flight_is_never_discarded(backlog):
    assert discard(backlog, checked_out={3}, name="Paid") == (1, [3])
    assert get_event(backlog, 3).event.state == "pending"


def test_a_name_without_number_is_found_in_the_body(backlog):
    backlog.connection.execute("UPDATE events SET name = NULL WHERE id < 5")
    backlog.connection.execute("UPDATE events SET name = 0 WHERE id >= 5")
    assert count(backlog, name="Paid") == 2
    assert discard(backlog, name="Paid") == (2, [])


def test_failed_attempts_stay_in_the_history_of_a_discarded_event(backlog):
    with backlog.transaction():
        backlog.record_failures([Failure(3, 2, NOW_MS, NOW_MS, 1, 0, "PX answered 503")])
    discard(backlog, name="Paid")
    row = get_event(backlog, 3).event
    assert (row.attempts, "503" in (row.history or "")) == (2, True)
    assert backlog.connection.execute("SELECT count(*) FROM retries").fetchone() == (0,)


def test_an_event_is_resent_once_and_its_copy_never(backlog):
    settle(backlog, [delivered(2), delivered(3)], NOW_MS + 1)
    assert count(backlog, "resend") == 3
    assert count(backlog, "resend", since_ms=NOW_MS + 1) == 2
    rows, following = delivered_page(backlog, EventFilter(name="Paid"), after_id=0)
    while following is not None:
        more, following = delivered_page(backlog, EventFilter(name="Paid"), after_id=following)
        rows += more
    assert [row.id for row in rows] == [3]
    with backlog.transaction():
        mark_resent(backlog, [3, 4])
    assert count(backlog, "resend") == 2
    assert get_event(backlog, 4).event.reason is None, "a pending event is not marked"
    accept(backlog, [structs.replace(event(8), via=Via.RESEND)])
    settle(backlog, [delivered(8)])
    assert count(backlog, "resend") == 2


def test_people_calls_are_not_resent(store):
    accept(store, [structs.replace(event(1), kind="identify", name="")])
    settle(store, [delivered(1)])
    assert count(store, "resend") == 0


def test_people_calls_of_the_first_format_are_not_resent(store):
    """Their rows have no number of a name: the body says what they are."""
    for number, kind in enumerate(("identify", "track"), 1):
        body = b'{"type":"%b","event":"Seen"}' % kind.encode()
        accept(store, [structs.replace(event(number), kind=kind, name="Seen", body=body)])
    store.connection.execute("UPDATE events SET name = NULL")
    settle(store, [delivered(1), delivered(2)])
    assert count(store, "resend") == 1
    assert [row.id for row in delivered_page(store, EventFilter(), after_id=0)[0]] == [2]


def test_a_page_changes_a_bounded_number_of_events(backlog, monkeypatch):
    monkeypatch.setattr("sidecar.outbox.backlog.PAGE_ROWS", 2)
    with backlog.transaction():
        page = discard_page(backlog, EventFilter(), NOW_MS, checked_out=(), after_id=0)
    assert page.discarded <= 2
    assert page.next_after is not None
    assert discard(backlog) == (6 - page.discarded, [])
    assert pending_ids(backlog) == []
    assert backlog.connection.execute("SELECT count(*) FROM low_parked").fetchone() == (0,)
    assert backlog.connection.execute("SELECT count(*) FROM events WHERE state < 4").fetchone() == (0,)
    assert EventState.DROPPED == 5
