"""The order of users where one thing passes into another: bounds, probes, what an earlier run left, what goes first."""

import random

import pytest
from test_order import WINDOW, ids, order, row, take

from sidecar.deliver.order import QUEUE_MAX, Item, Order
from sidecar.outbox import Row
from sidecar.outbox.records import Failure

LARGEST_ID = 2**63 - 1
U = (False, "u")


def out(made: Order, now_s: float = 0.0) -> Item:
    item = take(made, now_s)
    assert item is not None
    return item


def finish(made: Order) -> list[int]:
    """Take and finish until nothing is ready; the ids in the order of their turns."""
    came = []
    while (item := take(made)) is not None:
        came.append(item.id)
        made.done(item)
    return came


# --- what is known of an event ---


def test_an_event_brings_its_memory_and_its_earlier_failures():
    made = Order(by_user=True, window=WINDOW)
    made.load(Row(1, False, 0, "a", 0, b"{}", Failure(1, 3, 0, 0, 0, 0, "later")), "memory of a")
    made.load(row(2, "b"))
    first, second = made.items[1], made.items[2]
    assert (first.memory, first.attempts, second.memory, second.attempts) == ("memory of a", 3, None, 0)


def test_only_what_waits_is_due_later():
    made = order(row(1), row(2))
    assert (made.items[1].due_s, made.items[2].due_s) == (0.0, 0.0)
    first = out(made)
    made.retry_at(first, 0.5)
    assert first.due_s == 0.5
    assert made.head(0.5) is first
    assert first.due_s == 0.0


# --- room ---


def test_one_byte_less_than_the_window_leaves_room():
    made = order(row(1, body=b" " * (16 * 2**20 - 1)))
    assert made.room() == WINDOW - 1
    made.load(row(2, "b", body=b" "))
    assert made.room() == 0


def test_waiting_heads_take_no_room():
    made = order(*(row(number, f"u{number}") for number in range(1, 11)))
    assert made.room() == WINDOW - 10
    for _ in range(4):
        made.retry_at(out(made), 9.0)
    assert made.room() == WINDOW - 6


def test_twenty_thousand_waiting_heads_are_enough():
    made = Order(by_user=True, window=WINDOW)
    for number in range(1, 20_001):
        assert made.room() == min(WINDOW, 20_001 - number)
        made.load(row(number, None))
        made.retry_at(out(made), 9.0)
    assert made.room() == 0
    assert len(list(made.waiting())) == 20_000


def test_ready_are_the_heads_of_both_classes():
    made = order(row(1, "a"), row(2, "a"), row(3, "b"), row(4, "c", high=True))
    assert made.ready() == 3
    take(made)
    assert made.ready() == 2


# --- what goes first ---


@pytest.mark.parametrize("number", [2, LARGEST_ID])
def test_what_has_something_more_to_send_goes_before_all(number):
    made = order(row(number, "a"), row(number - 1, "b", high=True))
    made.take(made.items[number])
    made.go_on(made.items[number])
    assert ids([take(made), take(made)]) == [number, number - 1]


def test_an_outage_is_probed_with_the_oldest_of_both_classes():
    made = order(row(2, "a"), row(3, "b", high=True), row(4, "c"))
    assert ids([made.oldest(0.0)]) == [2]
    made.take(made.items[2])
    assert ids([made.oldest(0.0)]) == [3]
    made.take(made.items[3])
    made.take(made.items[4])
    assert made.oldest(0.0) is None
    made.retry_at(made.items[4], 5.0)
    assert made.oldest(4.9) is None
    assert ids([made.oldest(5.0)]) == [4]


def test_retries_become_ready_one_by_one_as_they_are_due():
    made = order(*(row(number, f"u{number}") for number in (1, 2, 3)))
    for item, due_s in zip([out(made) for _ in range(3)], (30.0, 10.0, 20.0), strict=True):
        made.retry_at(item, due_s)
    assert made.next_due_s() == 10.0
    assert sorted(item.id for item in made.waiting()) == [1, 2, 3]
    assert ids([take(made, 10.0), take(made, 10.0), take(made, 20.0)]) == [2, None, 3]
    assert made.next_due_s() == 30.0


@pytest.mark.parametrize("seed", range(20))
def test_what_stays_keeps_its_order_when_others_are_taken_out_of_the_middle(seed):
    rng = random.Random(seed)
    numbers = rng.sample(range(1, 100), 20)
    made = order(*(row(number, f"u{number}") for number in numbers))
    probes = set()
    for _ in range(5):
        probe = made.another(0.0, rng.random())
        assert probe is not None
        made.take(probe)
        probes.add(probe.id)
    assert finish(made) == sorted(set(numbers) - probes)


@pytest.mark.parametrize("seed", range(20))
def test_what_stays_keeps_its_order_when_others_are_withdrawn(seed):
    rng = random.Random(seed)
    numbers = rng.sample(range(1, 100), 20)
    made = order(*(row(number, f"u{number}") for number in numbers))
    gone = set(rng.sample(numbers, 6))
    made.withdraw(lambda one: one.id in gone)
    assert finish(made) == sorted(set(numbers) - gone)


@pytest.mark.parametrize("seed", range(20))
def test_what_waits_keeps_its_order_when_others_are_withdrawn(seed):
    rng = random.Random(seed)
    made = order(*(row(number, f"u{number}") for number in range(1, 21)))
    due_s = {}
    for _ in range(20):
        item = out(made)
        due_s[item.id] = rng.uniform(1, 100)
        made.retry_at(item, due_s[item.id])
    gone = set(rng.sample(range(1, 21), 6))
    made.withdraw(lambda one: one.id in gone)
    came = []
    while made.next_due_s() < float("inf"):
        came.append(out(made, made.next_due_s()).id)
    assert came == sorted(set(due_s) - gone, key=lambda number: due_s[number])


# --- waiting and setting aside ---


@pytest.mark.parametrize("due_s", [0.0, 0.5, 10.0])
def test_of_a_user_who_waits_however_shortly_newer_events_are_set_aside(due_s):
    made = order(row(1))
    made.retry_at(out(made), due_s)
    made.load(row(2))
    assert made.to_set_aside() == [2]


def test_of_a_user_who_waits_no_longer_newer_events_are_queued():
    made = order(row(1))
    made.retry_at(out(made), 1.0)
    made.head(1.0)
    made.load(row(2))
    assert made.to_set_aside() == []
    assert finish(made) == [1, 2]


def test_a_user_whose_queue_was_empty_is_queued_again():
    made = order(row(1))
    assert finish(made) == [1]
    made.load(row(2))
    assert finish(made) == [2]


def test_what_was_given_back_can_be_withdrawn():
    made = order(row(1))
    made.give_back(out(made))
    assert [item.id for item in made.withdraw(lambda one: True)] == [1]


def test_a_user_of_whom_all_was_read_back_is_queued_again_whoever_else_is_set_aside():
    made = order(*(row(number, "u") for number in range(1, QUEUE_MAX + 2)))
    made.to_set_aside()
    assert finish(made) == [1, 2, 3, 4]
    for number in range(10, 10 + QUEUE_MAX + 1):
        made.load(row(number, "b"))  # one more than fits, and the file has not been told
    made.load_aside(U, [(row(5), None)], more=False)
    made.load(row(20))
    assert made.to_set_aside() == [14]
    assert 20 in made.items


def test_a_page_of_a_user_that_has_gone_meanwhile_is_followed_by_the_next():
    made = Order(by_user=True, window=WINDOW)
    made.mark_aside([(U, 50)])
    made.front_at(False, 50)
    assert made.wants_aside() == (U, 0)
    made.load_aside(U, [], more=True)
    assert made.wants_aside() == (U, 0)
    made.load_aside(U, [(row(50), None)], more=True)
    assert made.wants_aside() is None, "there is enough for now"
    assert finish(made) == [50]
    assert made.wants_aside() == (U, 50)
    made.load_aside(U, [], more=False)
    assert made.wants_aside() is None


# --- what an earlier run set aside ---


@pytest.mark.parametrize("high", [False, True])
def test_what_an_earlier_run_set_aside_is_read_once_the_front_has_passed_it(high):
    turns = [(high, name) for name in "abc"]
    made = Order(by_user=True, window=WINDOW)
    made.mark_aside([(turns[1], 20), (turns[2], 30), (turns[0], 10)])
    made.front_at(high, 9)
    assert made.wants_aside() is None
    made.front_at(high, 10)
    assert made.wants_aside() == (turns[0], 0)
    made.load_aside(turns[0], [], more=False)
    assert made.wants_aside() is None
    made.front_at(high, float("inf"))
    assert made.wants_aside() == (turns[1], 0)


def test_what_an_earlier_run_set_aside_waits_for_what_is_loaded_of_its_user():
    made = Order(by_user=True, window=WINDOW)
    made.mark_aside([(U, 50)])
    made.load(row(7))
    made.front_at(False, 60)
    assert made.wants_aside() is None
    assert finish(made) == [7]
    assert made.wants_aside() == (U, 0)


def test_what_an_earlier_run_set_aside_and_what_is_newer_is_not_loaded_from_the_front():
    made = Order(by_user=True, window=WINDOW)
    made.mark_aside([(U, 50)])
    for number in (49, 50, 51):
        made.load(row(number))
    assert list(made.items) == [49]
    assert made.to_set_aside() == [50, 51]


def test_what_had_no_room_in_the_queue_is_not_overtaken_before_the_front_has_passed():
    made = Order(by_user=True, window=WINDOW)
    made.mark_aside([(U, 50)])
    for number in range(1, QUEUE_MAX + 2):
        made.load(row(number))
    assert made.to_set_aside() == [5]
    assert finish(made) == [1, 2, 3, 4]
    made.load(row(6))
    assert made.to_set_aside() == [6]
