"""Events that wait for a retry: their bodies have a bound of their own, and a people call lets its user continue."""

import pytest
from order_parts import row, take_head

from sidecar.deliver.order import RELOAD_ROWS, WAITING_BYTES, WINDOW_BYTES, UserQueues
from sidecar.mapping import PRIORITIES, Priority

BODY = b"x" * 32_768
USERS = 512


@pytest.fixture
def waiting() -> UserQueues:
    """512 users whose events of 32 KiB wait for a retry."""
    queues = UserQueues(by_user=True, window=USERS * 2)
    for number in range(1, USERS + 1):
        queues.load(row(number, f"u{number}", body=BODY))
        queues.retry_at(take_head(queues), 100.0)
    return queues


def test_waiting_events_do_not_fill_the_window(waiting):
    assert USERS * len(BODY) >= WINDOW_BYTES
    assert waiting.capacity() == USERS * 2
    held_bytes = sum(len(event.row.body) for event in waiting.events.values())
    assert WAITING_BYTES - len(BODY) < held_bytes <= WAITING_BYTES


def test_withdrawn_events_leave_their_room_to_others(waiting):
    waiting.withdraw(lambda _: True)
    first = USERS + 1
    for number in range(first, first + USERS):
        waiting.load(row(number, f"v{number}", body=BODY))
        waiting.retry_at(take_head(waiting), 100.0)
    held_bytes = sum(len(event.row.body) for event in waiting.events.values())
    assert WAITING_BYTES - len(BODY) < held_bytes <= WAITING_BYTES


def test_a_due_event_without_a_body_is_read_again(waiting):
    held = [event.id for event in waiting.events.values() if event.row.body]
    assert waiting.to_reload() == []
    ready = waiting.head(100.0)
    assert ready is not None
    assert ready.id == min(held)
    ids = waiting.to_reload()
    assert len(ids) == RELOAD_ROWS
    assert not set(ids) & set(held)
    gone, *found = ids
    waiting.reloaded(ids, {number: row(number, f"u{number}", body=BODY) for number in found})
    assert gone not in waiting.events
    assert all(waiting.events[number].row.body == BODY for number in found)
    assert waiting.ready() == len(held) + len(found)
    assert not set(waiting.to_reload()) & set(ids)


def test_bodies_that_are_read_again_count_in_the_window(waiting):
    waiting.head(100.0)
    while ids := waiting.to_reload():
        waiting.reloaded(ids, {number: row(number, f"u{number}", body=BODY) for number in ids})
    assert waiting.capacity() == 0


def test_no_body_is_read_again_while_the_window_is_full(waiting):
    for number in range(1_000, 1_000 + WINDOW_BYTES // len(BODY)):
        waiting.load(row(number, f"v{number}", body=BODY))
    waiting.head(100.0)
    assert waiting.to_reload() == []


def test_a_released_event_waits_alone():
    queues = UserQueues(by_user=True, window=40)
    for number in (1, 2, 3):
        queues.load(row(number, "u"))
    event = take_head(queues)
    queues.release_user(event)
    queues.retry_at(event, 100.0)
    assert queues.to_park() == []
    following = take_head(queues)
    assert following.id == 2
    queues.done(following)
    assert take_head(queues).id == 3
    assert queues.head(99.0) is None
    again = queues.head(100.0)
    assert again is event
    queues.take(event)
    queues.done(event)


def test_users_ready_are_counted_by_class():
    queues = UserQueues(by_user=True, window=40)
    queues.load(row(1, "a"))
    queues.load(row(2, "b"))
    queues.load(row(3, "c", priority=Priority.HIGH))
    assert PRIORITIES == (Priority.HIGH, Priority.NORMAL, Priority.LOW)
    assert queues.ready_by_class() == (1, 2, 0)


def test_event_withdrawn_during_a_read_is_read_afterwards():
    """It stayed parked until a restart: the place to read back from moved to the last row of the page."""
    queues = UserQueues(by_user=True, window=100)
    for number in range(1, 8):
        queues.load(row(number))
    event = queues.head(0.0)
    queues.take(event)
    queues.release_user(event)  # a people call that failed for a minute
    queues.retry_at(event, 100.0)
    assert queues.to_park() == [5, 6, 7]
    for _ in range(2, 5):
        queues.take(head := queues.head(0.0))
        queues.done(head)
    key, _ = queues.wants_parked()
    assert queues.withdraw(lambda row: row.id == 1) == [event]  # while the page is read
    queues.load_parked(key, [(row(number), None) for number in (5, 6, 7)], more=False)
    assert queues.to_park() == [1]
    for _ in range(5, 8):
        queues.take(head := queues.head(0.0))
        queues.done(head)
    assert queues.wants_parked() == (key, 0)
