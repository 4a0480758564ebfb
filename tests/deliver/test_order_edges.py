"""User queues at their edges: bounds, probes, rows of an earlier process, what goes first."""

import random

import pytest
from order_parts import WINDOW, finish_all, ids, queues_of, row, take, take_head

from sidecar.deliver.order import QUEUE_MAX, UserQueues
from sidecar.mapping import Priority
from sidecar.outbox import Row
from sidecar.outbox.records import Failure

LARGEST_ID = 2**63 - 1
U = (False, "u")


# --- the state of an event ---


def test_loaded_event_has_its_memory_and_earlier_failures():
    queues = UserQueues(by_user=True, window=WINDOW)
    queues.load(Row(1, False, 0, "a", 0, b"{}", Failure(1, 3, 0, 0, 0, 0, "later")), "memory of a")
    queues.load(row(2, "b"))
    first, second = queues.events[1], queues.events[2]
    assert (first.memory, first.attempts, second.memory, second.attempts) == ("memory of a", 3, None, 0)


def test_only_a_waiting_event_has_a_due_time():
    queues = queues_of(row(1), row(2))
    assert (queues.events[1].due_s, queues.events[2].due_s) == (0.0, 0.0)
    first = take_head(queues)
    queues.retry_at(first, 0.5)
    assert first.due_s == 0.5
    assert queues.head(0.5) is first
    assert first.due_s == 0.0


# --- capacity ---


def test_one_byte_below_the_window_leaves_capacity():
    queues = queues_of(row(1, body=b" " * (16 * 2**20 - 1)))
    assert queues.capacity() == WINDOW - 1
    queues.load(row(2, "b", body=b" "))
    assert queues.capacity() == 0


def test_waiting_heads_take_no_capacity():
    queues = queues_of(*(row(number, f"u{number}") for number in range(1, 11)))
    assert queues.capacity() == WINDOW - 10
    for _ in range(4):
        queues.retry_at(take_head(queues), 9.0)
    assert queues.capacity() == WINDOW - 6


def test_twenty_thousand_waiting_heads_fill_the_capacity():
    queues = UserQueues(by_user=True, window=WINDOW)
    for number in range(1, 20_001):
        assert queues.capacity() == min(WINDOW, 20_001 - number)
        queues.load(row(number, None))
        queues.retry_at(take_head(queues), 9.0)
    assert queues.capacity() == 0
    assert len(list(queues.waiting())) == 20_000


def test_ready_counts_the_heads_of_both_classes():
    queues = queues_of(row(1, "a"), row(2, "a"), row(3, "b"), row(4, "c", priority=Priority.HIGH))
    assert queues.ready() == 3
    take(queues)
    assert queues.ready() == 2


# --- what goes first ---


@pytest.mark.parametrize("number", [2, LARGEST_ID])
def test_event_with_another_request_goes_before_all(number):
    queues = queues_of(row(number, "a"), row(number - 1, "b", priority=Priority.HIGH))
    queues.take(queues.events[number])
    queues.put_first(queues.events[number])
    assert ids([take(queues), take(queues)]) == [number, number - 1]


def test_outage_is_probed_with_the_oldest_of_both_classes():
    queues = queues_of(row(2, "a"), row(3, "b", priority=Priority.HIGH), row(4, "c"))
    assert ids([queues.oldest(0.0)]) == [2]
    queues.take(queues.events[2])
    assert ids([queues.oldest(0.0)]) == [3]
    queues.take(queues.events[3])
    queues.take(queues.events[4])
    assert queues.oldest(0.0) is None
    queues.retry_at(queues.events[4], 5.0)
    assert queues.oldest(4.9) is None
    assert ids([queues.oldest(5.0)]) == [4]


def test_retries_become_ready_as_they_are_due():
    queues = queues_of(*(row(number, f"u{number}") for number in (1, 2, 3)))
    for event, due_s in zip([take_head(queues) for _ in range(3)], (30.0, 10.0, 20.0), strict=True):
        queues.retry_at(event, due_s)
    assert queues.next_due_s() == 10.0
    assert sorted(event.id for event in queues.waiting()) == [1, 2, 3]
    assert ids([take(queues, 10.0), take(queues, 10.0), take(queues, 20.0)]) == [2, None, 3]
    assert queues.next_due_s() == 30.0


@pytest.mark.parametrize("seed", range(20))
def test_taking_probes_keeps_the_order_of_the_rest(seed):
    rng = random.Random(seed)
    numbers = rng.sample(range(1, 100), 20)
    queues = queues_of(*(row(number, f"u{number}") for number in numbers))
    probes = set()
    for _ in range(5):
        probe = queues.any_ready(0.0, rng.random())
        assert probe is not None
        queues.take(probe)
        probes.add(probe.id)
    assert finish_all(queues) == sorted(set(numbers) - probes)


@pytest.mark.parametrize("seed", range(20))
def test_withdrawing_keeps_the_order_of_ready_events(seed):
    rng = random.Random(seed)
    numbers = rng.sample(range(1, 100), 20)
    queues = queues_of(*(row(number, f"u{number}") for number in numbers))
    gone = set(rng.sample(numbers, 6))
    queues.withdraw(lambda withdrawn: withdrawn.id in gone)
    assert finish_all(queues) == sorted(set(numbers) - gone)


@pytest.mark.parametrize("seed", range(20))
def test_withdrawing_keeps_the_order_of_waiting_events(seed):
    rng = random.Random(seed)
    queues = queues_of(*(row(number, f"u{number}") for number in range(1, 21)))
    due_s = {}
    for _ in range(20):
        event = take_head(queues)
        due_s[event.id] = rng.uniform(1, 100)
        queues.retry_at(event, due_s[event.id])
    gone = set(rng.sample(range(1, 21), 6))
    queues.withdraw(lambda withdrawn: withdrawn.id in gone)
    retried = []
    while queues.next_due_s() < float("inf"):
        retried.append(take_head(queues, queues.next_due_s()).id)
    assert retried == sorted(set(due_s) - gone, key=lambda number: due_s[number])


# --- waiting and parking ---


@pytest.mark.parametrize("due_s", [0.0, 0.5, 10.0])
def test_newer_events_of_a_waiting_user_are_parked(due_s):
    queues = queues_of(row(1))
    queues.retry_at(take_head(queues), due_s)
    queues.load(row(2))
    assert queues.to_park() == [2]


def test_newer_events_are_queued_once_the_retry_is_due():
    queues = queues_of(row(1))
    queues.retry_at(take_head(queues), 1.0)
    queues.head(1.0)
    queues.load(row(2))
    assert queues.to_park() == []
    assert finish_all(queues) == [1, 2]


def test_user_with_an_empty_queue_is_queued_again():
    queues = queues_of(row(1))
    assert finish_all(queues) == [1]
    queues.load(row(2))
    assert finish_all(queues) == [2]


def test_requeued_event_can_be_withdrawn():
    queues = queues_of(row(1))
    queues.requeue(take_head(queues))
    assert [event.id for event in queues.withdraw(lambda _row: True)] == [1]


def test_user_without_parked_rows_is_queued_again():
    queues = queues_of(*(row(number, "u") for number in range(1, QUEUE_MAX + 2)))
    queues.to_park()
    assert finish_all(queues) == [1, 2, 3, 4]
    for number in range(10, 10 + QUEUE_MAX + 1):
        queues.load(row(number, "b"))  # one more than fits, and not marked as parked in the file yet
    queues.load_parked(U, [(row(5), None)], more=False)
    queues.load(row(20))
    assert queues.to_park() == [14]
    assert 20 in queues.events


def test_empty_parked_page_is_followed_by_the_next():
    queues = UserQueues(by_user=True, window=WINDOW)
    queues.mark_parked([(U, 50)])
    queues.read_up_to(False, 50)
    assert queues.wants_parked() == (U, 0)
    queues.load_parked(U, [], more=True)
    assert queues.wants_parked() == (U, 0)
    queues.load_parked(U, [(row(50), None)], more=True)
    assert queues.wants_parked() is None, "enough is loaded"
    assert finish_all(queues) == [50]
    assert queues.wants_parked() == (U, 50)
    queues.load_parked(U, [], more=False)
    assert queues.wants_parked() is None


# --- rows parked by an earlier process ---


@pytest.mark.parametrize("high", [False, True])
def test_parked_rows_are_read_once_the_read_position_passed(high):
    keys = [(high, name) for name in "abc"]
    queues = UserQueues(by_user=True, window=WINDOW)
    queues.mark_parked([(keys[1], 20), (keys[2], 30), (keys[0], 10)])
    queues.read_up_to(high, 9)
    assert queues.wants_parked() is None
    queues.read_up_to(high, 10)
    assert queues.wants_parked() == (keys[0], 0)
    queues.load_parked(keys[0], [], more=False)
    assert queues.wants_parked() is None
    queues.read_up_to(high, float("inf"))
    assert queues.wants_parked() == (keys[1], 0)


def test_parked_rows_wait_for_the_loaded_rows_of_their_user():
    queues = UserQueues(by_user=True, window=WINDOW)
    queues.mark_parked([(U, 50)])
    queues.load(row(7))
    queues.read_up_to(False, 60)
    assert queues.wants_parked() is None
    assert finish_all(queues) == [7]
    assert queues.wants_parked() == (U, 0)


def test_parked_and_newer_rows_are_not_loaded_by_the_backlog():
    queues = UserQueues(by_user=True, window=WINDOW)
    queues.mark_parked([(U, 50)])
    for number in (49, 50, 51):
        queues.load(row(number))
    assert list(queues.events) == [49]
    assert queues.to_park() == [50, 51]


def test_row_beyond_the_queue_is_not_overtaken():
    queues = UserQueues(by_user=True, window=WINDOW)
    queues.mark_parked([(U, 50)])
    for number in range(1, QUEUE_MAX + 2):
        queues.load(row(number))
    assert queues.to_park() == [5]
    assert finish_all(queues) == [1, 2, 3, 4]
    queues.load(row(6))
    assert queues.to_park() == [6]


def test_a_released_user_that_was_withdrawn_is_read_back():
    """Its parked rows were asked for by nobody: later events of the user stayed until a restart."""
    queues = queues_of(row(1))
    identify = take_head(queues)
    queues.release_user(identify)  # its people call has failed for a minute
    queues.retry_at(identify, 10.0)
    queues.withdraw(lambda row: row.user == "u")
    queues.to_park()
    queues.load(row(2))
    queues.to_park()
    assert queues.wants_parked() is not None


def test_what_follows_a_withdrawn_event_does_not_overtake_it():
    """A withdrawn event whose discarding failed stays pending."""
    queues = queues_of(row(1, body=b"match"), row(2))
    queues.withdraw(lambda row: row.body == b"match")
    assert take(queues) is None
    assert sorted(queues.to_park()) == [1, 2]
