"""Which events the next transaction takes: small requests at once, large ones in slices."""

from random import Random

import pytest
from msgspec import structs
from outbox_files import event

from sidecar.outbox import Accepted, NewEvent, OutboxFull, WriteRequest
from sidecar.outbox.accept_queue import BAD_ROW_BYTES, SLICE_BYTES, SLICE_ROWS, AcceptQueue


def events(count: int, label: str = "", padding: int = 0) -> list[NewEvent]:
    return [event(f"{label}{number}", padding=padding) for number in range(count)]


def commit(queue: AcceptQueue) -> list[int]:
    """Store what the next transaction takes; return the number of events of each request in it."""
    taken = queue.take()
    for request in taken:
        request.result = Accepted(len(request.payload), 0)
        request.done.set()
    sizes = [len(request.payload) for request in taken]
    queue.finish()
    return sizes


def test_a_large_request_is_answered_after_its_last_slice():
    queue = AcceptQueue()
    request = queue.add(events(2 * SLICE_ROWS + 1))
    assert [commit(queue), commit(queue)] == [[SLICE_ROWS], [SLICE_ROWS]]
    assert not request.done.is_set()
    assert commit(queue) == [1]
    assert (request.done.is_set(), request.result[:2]) == (True, (2 * SLICE_ROWS + 1, 0))
    assert (len(queue), commit(queue)) == (0, [])


def test_slices_are_bounded_in_bytes():
    queue = AcceptQueue()
    queue.add(events(5, padding=SLICE_BYTES * 2 // 5))
    queue.add(events(1, padding=2 * SLICE_BYTES))  # cannot be divided
    assert [commit(queue), commit(queue), commit(queue)] == [[1, 2], [2], [1]]


def test_slices_of_bad_events_are_shorter():
    """500 of them kept the store's thread for 40 ms, while other clients waited."""
    queue = AcceptQueue()
    bad = [structs.replace(each, bad="it is no event") for each in events(SLICE_ROWS)]
    queue.add([*bad, *events(1)])
    sizes = commit(queue)
    assert SLICE_ROWS // 8 < sizes[0] <= SLICE_BYTES // BAD_ROW_BYTES < SLICE_ROWS // 2


def test_small_requests_are_stored_between_two_slices():
    queue = AcceptQueue()
    large = queue.add(events(2 * SLICE_ROWS))
    assert commit(queue) == [SLICE_ROWS]
    small = [queue.add(events(1)), queue.add(events(2))]
    assert commit(queue) == [1, 2]
    assert all(request.done.is_set() for request in small)
    assert commit(queue) == [SLICE_ROWS]
    assert large.done.is_set()


def test_every_second_transaction_has_a_slice_under_load():
    queue = AcceptQueue()
    queue.add(events(3 * SLICE_ROWS))
    seen = []
    for _ in range(6):
        queue.add(events(1))
        seen.append(commit(queue))
    assert seen == [[1, SLICE_ROWS], [1], [SLICE_ROWS, 1], [1], [SLICE_ROWS, 1], [1]]


def test_a_request_behind_a_large_one_is_stored_after_it():
    queue = AcceptQueue()
    large = queue.add(events(2 * SLICE_ROWS))
    second = queue.add(events(1), large)
    third = queue.add(events(2), second)
    other = queue.add(events(3))
    assert commit(queue) == [3, SLICE_ROWS]
    assert other.done.is_set()
    assert [commit(queue), commit(queue), commit(queue)] == [[SLICE_ROWS], [1], [2]]
    assert not queue.add(events(1), third).sliced  # all before it is stored


def test_the_first_slice_asks_for_the_space_of_all():
    """So a full outbox refuses the request as a whole, and never its second half."""
    queue = AcceptQueue()
    whole = queue.add(events(2 * SLICE_ROWS))
    queue.add(events(1))
    first = queue.take()[-1]
    assert first.size_bytes == whole.size_bytes
    first.result = Accepted(SLICE_ROWS, 0)
    queue.finish()
    assert queue.take()[0].size_bytes == 0


def test_a_refused_slice_ends_its_request_alone():
    queue = AcceptQueue()
    whole = queue.add(events(2 * SLICE_ROWS))
    following = queue.add(events(SLICE_ROWS + 1))
    queue.take()[0].error = OutboxFull("The outbox is full.")
    queue.finish()
    assert (whole.done.is_set(), str(whole.error)) == (True, "The outbox is full.")
    assert [commit(queue), commit(queue)] == [[SLICE_ROWS], [1]]
    assert following.result[:2] == (SLICE_ROWS + 1, 0)


def test_repeats_are_named_by_their_position_in_the_whole_request():
    queue = AcceptQueue()
    whole = queue.add(events(2 * SLICE_ROWS))
    for position in (3, 4):
        queue.take()[0].result = Accepted(SLICE_ROWS - 1, 1, (position,))
        queue.finish()
    assert whole.result == (2 * SLICE_ROWS - 2, 2, (3, SLICE_ROWS + 4))


def test_a_large_request_begins_after_the_small_ones_before_it():
    """On one connection a `group`, then an array of 501 events: the account of each is that of the moment."""
    queue = AcceptQueue()
    queue.add(events(1))
    queue.add(events(SLICE_ROWS + 1))
    queue.add(events(2))
    assert [commit(queue), commit(queue)] == [[1, 2, SLICE_ROWS], [1]]


def test_a_large_request_waits_for_transactions_of_small_ones():
    queue = AcceptQueue()
    for _ in range(6):
        queue.add(events(SLICE_ROWS))
    queue.add(events(SLICE_ROWS + 1))
    assert [commit(queue), commit(queue), commit(queue)] == [[SLICE_ROWS] * 4, [*[SLICE_ROWS] * 2, SLICE_ROWS], [1]]


@pytest.mark.parametrize("seed", range(20))
def test_each_event_is_taken_once_and_in_the_order_of_its_caller(seed):
    rng = Random(seed)
    queue = AcceptQueue()
    last: dict[str, WriteRequest] = {}
    sent: dict[str, list[NewEvent]] = {"a": [], "b": [], "c": []}
    stored: list[NewEvent] = []
    for number in range(60):
        caller = rng.choice("abc")
        more = events(rng.choice((1, 2, SLICE_ROWS, SLICE_ROWS + 1, 3 * SLICE_ROWS)), f"{caller}{number}-")
        last[caller] = queue.add(more, last.get(caller))
        sent[caller] += more
        for _ in range(rng.randrange(4)):
            taken = queue.take()
            for request in taken:
                stored += request.payload
                request.result = Accepted(len(request.payload), 0)
            queue.finish()
            for request in taken:
                request.done.set()
    while queue:
        stored += [event for request in queue.take() for event in take_result(request)]
        queue.finish()
    for caller, expected in sent.items():
        assert [event for event in stored if event.message_id.startswith(f"m{caller}")] == expected


def take_result(request: WriteRequest) -> list[NewEvent]:
    request.result = Accepted(len(request.payload), 0)
    return request.payload
