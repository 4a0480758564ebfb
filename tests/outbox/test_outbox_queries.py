"""Queries: the newest events first, in bounded pages, and everything about one event."""

import pytest
from msgspec import structs
from outbox_files import NOW_MS, accept, event

from sidecar.events import name_of
from sidecar.outbox.dead import DeadLetterFilter, dead_page
from sidecar.outbox.queries import get_event, list_events, newest_delivery_ms
from sidecar.outbox.selection import EventFilter


def ids_of(page):
    return [event.id for event in page.events]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({}, [6, 5, 4, 3, 2, 1]),
        ({"state": "pending"}, [6, 5]),
        ({"state": "delivered"}, [1, 4]),
        ({"state": "dropped"}, [2]),
        ({"state": "dead"}, [3]),
        ({"user": "u1"}, [5, 3, 1]),
        ({"name": "Paid"}, [4]),
        ({"state": "delivered", "name": "Paid"}, [4]),
        ({"message_id": "m2"}, [2]),
        ({"message_id": "2"}, []),
        ({"sources": (1,)}, []),
        ({"state": "pending", "since_ms": NOW_MS + 1}, []),
        ({"limit": 2}, [6, 5]),
    ],
)
def test_a_listing_begins_with_the_newest(mixed, query, expected):
    how = {key: query.pop(key) for key in ("state", "limit") if key in query}
    assert ids_of(list_events(mixed, which=EventFilter(**query), **how)) == expected


@pytest.mark.parametrize("state", [None, "pending", "delivered"])
def test_pages_continue_without_gap_or_repeat(mixed, state):
    everything = ids_of(list_events(mixed, state=state))
    seen, before = [], None
    for _ in range(10):
        page = list_events(mixed, state=state, limit=1, before=before)
        seen += ids_of(page)
        before = page.next_before
        if before is None:
            break
    assert seen == everything


@pytest.mark.parametrize("bound", ["SCAN_IDS", "SCAN_ROWS"])
def test_a_call_examines_a_bounded_number_of_rows(mixed, monkeypatch, bound):
    """SQLite looks at SCAN_IDS rows; of those whose name has no number, SCAN_ROWS are decoded."""
    monkeypatch.setattr(f"sidecar.outbox.queries.{bound}", 2)
    if bound == "SCAN_ROWS":
        mixed.connection.execute("UPDATE events SET name = NULL")
    page = list_events(mixed, which=EventFilter(name="Paid"))
    assert (ids_of(page), page.next_before) == ([], (0, 5))
    assert ids_of(list_events(mixed, which=EventFilter(name="Paid"), before=page.next_before)) == [4]


@pytest.mark.parametrize("state", [None, "pending", "delivered", "dropped", "dead"])
def test_parts_of_a_listing_join_without_gap_or_repeat(mixed, monkeypatch, state):
    everything = ids_of(list_events(mixed, state=state))
    monkeypatch.setattr("sidecar.outbox.queries.SCAN_IDS", 1)
    mixed.connection.execute("UPDATE events SET settled_ms = settled_ms / 10 * 10 WHERE state > 3")  # the same moment
    seen, before, calls = [], None, 0
    while calls == 0 or before is not None:
        page = list_events(mixed, state=state, before=before)
        seen, before, calls = seen + ids_of(page), page.next_before, calls + 1
    assert sorted(seen) == sorted(everything)
    assert calls >= len(everything)


def test_a_name_is_found_by_type_for_calls_without_one(store):
    accept(
        store,
        [structs.replace(event(1), kind="page", name="Pricing", body=b'{"type":"page","messageId":"m1"}'), event(2)],
    )
    assert ids_of(list_events(store, which=EventFilter(name="page"))) == [1]
    assert ids_of(list_events(store, which=EventFilter(name=""))) == []


def test_a_page_is_found_by_its_own_name_too(store):
    """``names`` lists a page by its own name; ``trace --event`` with that name must find it."""
    body = b'{"type":"page","name":"Pricing","messageId":"m1"}'
    accept(store, [structs.replace(event(1), kind="page", name="Pricing", body=body), event(2)])
    assert ids_of(list_events(store, which=EventFilter(name="Pricing"))) == [1]
    store.connection.execute("UPDATE events SET name = NULL")
    assert ids_of(list_events(store, which=EventFilter(name="Pricing"))) == [1]


def test_an_unknown_state_raises_value_error(mixed):
    with pytest.raises(ValueError, match="unknown state 'lost'; use one of pending, delivered"):
        list_events(mixed, state="lost")


def test_an_event_is_returned_with_attempts_and_letter(mixed):
    pending = get_event(mixed, 5)
    assert (pending.event.state, pending.event.priority, pending.failure.detail) == (
        "pending",
        False,
        "PX answered 503",
    )
    assert get_event(mixed, 6).event.priority
    refused = get_event(mixed, 3)
    assert (refused.event.state, refused.letter.status, refused.failure) == ("dead", 400, None)
    assert (get_event(mixed, 1).event.status, get_event(mixed, 1).letter) == (201, None)
    assert get_event(mixed, 99) is None


@pytest.mark.parametrize(
    ("event", "name"),
    [
        ({"type": "track", "event": "Paid"}, "Paid"),
        ({"event": "Paid"}, "Paid"),
        ({"type": "page", "event": "x"}, "page"),
        ({"type": 7}, ""),
        ({"type": "track", "event": []}, ""),
    ],
)
def test_every_event_has_a_display_name(event, name):
    assert name_of(event) == name


def show_one(store) -> None:
    get_event(store, 3)


def read_status(store) -> None:
    store.oldest_pending_ms()
    newest_delivery_ms(store)


LISTINGS = {
    "events": lambda store, before: list_events(store, limit=1, before=before).next_before,
    "pending": lambda store, before: list_events(store, state="pending", limit=1, before=before).next_before,
    "delivered": lambda store, before: list_events(store, state="delivered", limit=1, before=before).next_before,
    "dead": lambda store, before: list_events(store, state="dead", limit=1, before=before).next_before,
    "by a filter": lambda store, before: list_events(store, which=FILTER, limit=1, before=before).next_before,
    "settled, by a filter": lambda store, before: (
        list_events(store, state="delivered", which=FILTER, limit=1, before=before).next_before
    ),
    "letters": lambda store, after: dead_page(store, DeadLetterFilter(), after_id=after or 0, limit=1).next_after,
    "one event": lambda store, _: show_one(store),
    "status": lambda store, _: read_status(store),
}
FILTER = EventFilter(name="Searched", user="u1", since_ms=1, until_ms=2 * NOW_MS)


@pytest.mark.parametrize("listing", LISTINGS)
def test_lists_and_status_use_indexes_and_sort_nothing(mixed, listing):
    """With ten million rows a scan, or a sort of what an index gives in order, takes minutes instead of milliseconds."""
    statements: list[str] = []
    mixed.connection.set_trace_callback(statements.append)
    position = LISTINGS[listing](mixed, None)
    if position is not None:
        LISTINGS[listing](mixed, position)
    mixed.connection.set_trace_callback(None)
    assert statements
    for statement in statements:
        plan = [row[3] for row in mixed.connection.execute("EXPLAIN QUERY PLAN " + statement)]
        assert not [step for step in plan if step.startswith("SCAN") or "TEMP B-TREE" in step], (statement, plan)
