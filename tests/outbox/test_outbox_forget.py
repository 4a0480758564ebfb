"""Forgetting users: pending and dead events, history, memory, and the text in the file."""

import pytest
from outbox_files import NOW_MS, accept, copied, dead, delivered, event, settle

from sidecar.mapping import Priority
from sidecar.outbox import NewEvent, Remembered, Store
from sidecar.outbox.forget import forget_users, user_matcher
from sidecar.outbox.queries import get_event, list_events
from sidecar.outbox.selection import EventFilter


def ids_of(page):
    return [event.id for event in page.events]


def forget(store, *users, checked_out=()):
    """Forget in all pages; return the totals."""
    total, after_id = [0, 0, 0, 0, []], 0
    while after_id is not None:
        with store.transaction():
            step = forget_users(store, users, NOW_MS + 9, checked_out=checked_out, after_id=after_id)
        total = [before + added for before, added in zip(total, step[:5], strict=True)]
        after_id = step.next_after
    return total


def test_forgetting_covers_pending_dead_history_and_memory(mixed):
    settle(mixed, [delivered(6, priority=Priority.HIGH, remember=Remembered("AP", "u1", b"acme"))], NOW_MS + 4)
    assert forget(mixed, "u1") == [1, 1, 1, 1, []]
    assert ids_of(list_events(mixed, which=EventFilter(user="u1"))) == []
    assert mixed.counters["dropped:forgotten"] == 2
    assert (mixed.counters["delivered"], mixed.counters["users"]) == (3, 0)
    for event_id in (3, 5):
        forgotten = get_event(mixed, event_id)
        assert (forgotten.event.state, forgotten.event.reason, forgotten.event.body) == ("dropped", "forgotten", b"{}")
        assert forgotten.letter is forgotten.failure is None
    assert ids_of(list_events(mixed, which=EventFilter(user="u0"))) == [6, 4, 2]


def test_checked_out_events_are_skipped(mixed):
    assert forget(mixed, "u1", checked_out={5}) == [0, 1, 1, 0, [5]]
    assert get_event(mixed, 5).event.state == "pending"


def test_events_are_matched_by_the_ids_in_their_body(store):
    bodies = (b'{"userId":42}', b'{"anonymousId":"42"}', b'{"userId":"420"}', b'{"properties":{"n":42}}', b"[42]")
    accept(store, [NewEvent(0, False, None, f"x{n}", body, None) for n, body in enumerate(bodies)])
    assert forget(store, "42")[0] == 2
    assert sorted(event.id for event in list_events(store, state="pending").events) == [3, 4, 5]


@pytest.mark.parametrize("settled", [(), (1, 2, 3)])
def test_repeats_of_forgotten_events_are_recognized(store, tmp_path, settled):
    """After a start an id would be read again from the body, which is empty now: it has to be in the table."""
    accept(store, [event(n) for n in range(1, 7)])
    settle(store, [delivered(event_id) for event_id in settled])
    forget(store, "u1")
    crashed = Store(copied(store.path, tmp_path / "crash"))
    assert accept(crashed, [event(n) for n in range(1, 7)]).repeated == 6
    crashed.close()


def test_forgotten_text_is_overwritten_in_the_file(store):
    accept(store, [event(n, user="secret-user" if n % 3 else "other", padding=50) for n in range(300)])
    settle(store, [delivered(n) for n in range(1, 100)])
    settle(store, [dead(n) for n in range(100, 200)])
    store.checkpoint(truncate=True)
    assert store.path.read_bytes().count(b"secret-user") > 400
    forget(store, "secret-user")
    store.checkpoint(truncate=True)
    assert store.path.read_bytes().count(b"secret-user") < 5
    assert store.path.with_name("o.db-wal").stat().st_size == 0


def test_forgetting_runs_in_bounded_steps(mixed, monkeypatch):
    monkeypatch.setattr("sidecar.outbox.forget.SCAN_ROWS", 2)
    assert forget(mixed, "u1", "u0")[:3] == [2, 1, 3]


def test_a_damaged_body_belongs_to_every_user_named_in_it():
    matches = user_matcher(["jane"])
    assert matches(None, b'{"userId":"jane"')
    assert not matches(None, b'{"userId":"john"')
    assert not matches(None, b'{"userId":"x","properties":{"text":"jane"}}')
