"""User queues: in id order per user and class, concurrent across users, in bounded memory."""

from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st
from order_parts import WINDOW, ids, queues_of, row, take, take_head

from sidecar.deliver.order import QUEUE_MAX, LoadedEvent, QueueKey, UserQueues
from sidecar.mapping import PRIORITIES, Priority
from sidecar.outbox import Row


def test_next_event_of_a_user_waits_for_the_one_before():
    queues = queues_of(row(1), row(2))
    first = take_head(queues)
    assert take(queues) is None
    queues.done(first)
    assert ids([take(queues)]) == [2]


def test_users_do_not_wait_for_each_other():
    queues = queues_of(row(1, "a"), row(2, "b"), row(3, "a"))
    assert ids([take(queues), take(queues), take(queues)]) == [1, 2, None]


def test_events_without_a_user_do_not_wait():
    queues = queues_of(row(1, None), row(2, None))
    assert ids([take(queues), take(queues)]) == [1, 2]


def test_order_none_does_not_limit_a_user():
    queues = queues_of(row(1), row(2), by_user=False)
    assert ids([take(queues), take(queues)]) == [1, 2]


def test_class_high_goes_first_and_has_its_own_order():
    queues = queues_of(row(1), row(2), row(3, priority=Priority.HIGH), row(4, priority=Priority.HIGH))
    assert ids([take(queues), take(queues), take(queues)]) == [3, 1, None]


def test_requeued_event_keeps_its_position():
    queues = queues_of(row(1, "a"), row(2, "b"))
    first = take_head(queues)
    queues.requeue(first)
    assert ids([take(queues)]) == [1]


def test_user_waits_until_its_retry_is_due():
    queues = queues_of(row(1, "a"), row(2, "a"), row(3, "b"))
    first = take_head(queues)
    queues.retry_at(first, 10.0)
    assert ids([take(queues, 9.9), take(queues, 9.9)]) == [3, None]
    assert queues.next_due_s() == 10.0
    assert ids([take(queues, 10.0)]) == [1]


def test_only_the_head_of_a_waiting_user_stays_loaded():
    queues = queues_of(*(row(number) for number in range(1, QUEUE_MAX + 1)))
    first = take_head(queues)
    queues.retry_at(first, 10.0)
    assert list(queues.events) == [1]
    assert queues.to_park() == list(range(QUEUE_MAX, 1, -1))


def test_parked_rows_are_read_back_once_the_queue_is_empty():
    queues = queues_of(*(row(number) for number in range(1, 4)))
    first = take_head(queues)
    queues.retry_at(first, 1.0)
    assert queues.wants_parked() is None  # not before it is in the file
    queues.to_park()
    assert queues.wants_parked() is None  # the head still waits
    again = take(queues, 1.0)
    assert again is first
    queues.done(first)
    assert queues.wants_parked() == ((False, "u"), 1)
    queues.load_parked((False, "u"), [(row(2), None), (row(3), None)], more=False)
    assert ids([take(queues)]) == [2]
    assert queues.wants_parked() is None


def test_newer_events_are_parked_behind_parked_ones():
    queues = queues_of(*(row(number) for number in range(1, QUEUE_MAX + 2)))
    assert queues.to_park() == [QUEUE_MAX + 1]
    queues.load(row(QUEUE_MAX + 2))
    assert queues.to_park() == [QUEUE_MAX + 2]


def test_empty_queues_have_no_longest_one():
    assert UserQueues(by_user=True, window=WINDOW).statistics() == (0, 0, 0, 0, 0, 0)


def test_older_retried_dead_letter_is_read_back():
    """It was parked below the id from which reading continued, and stayed there until a restart."""
    queues = UserQueues(by_user=True, window=WINDOW)
    queues.mark_parked([((False, "u"), 50)])
    queues.read_up_to(False, 60)
    queues.load_parked((False, "u"), [(row(50), None)], more=True)
    queues.load(row(7))
    assert queues.to_park() == [7]
    event = take_head(queues)
    queues.done(event)
    assert queues.wants_parked() == ((False, "u"), 6)


def test_loaded_row_is_not_loaded_twice():
    queues = queues_of(row(1), row(1))
    assert len(queues.events) == 1


def test_queues_of_slow_users_leave_capacity_for_others():
    queues = UserQueues(by_user=True, window=QUEUE_MAX * 10 + 20)
    for number in range(1, 1001):
        queues.load(row(number, f"slow-{number % 10}"))
    for _ in range(10):
        take(queues)
    assert queues.capacity() == 20
    queues.load(row(2000, "quick"))
    assert ids([take(queues)]) == [2000]


def test_large_bodies_fill_the_window_sooner():
    queues = UserQueues(by_user=True, window=10_000)
    body = b" " * 2**20
    for number in range(1, 17):
        assert queues.capacity() > 0
        queues.load(row(number, f"u{number}", body=body))
    assert queues.capacity() == 0
    event = take_head(queues)
    queues.done(event)
    assert queues.capacity() > 0


def test_pause_can_be_probed_with_any_user():
    queues = queues_of(*(row(number, f"u{number}") for number in range(1, 11)))
    probes = {event.id for event in (queues.any_ready(0.0, number / 10) for number in range(10)) if event}
    assert probes == set(range(1, 11))
    last = queues.any_ready(0.0, 0.99)
    assert last is not None
    queues.take(last)
    assert last.id not in ids([take(queues) for _ in range(10)])


def test_pause_can_be_probed_with_a_due_retry():
    queues = queues_of(row(1, "a"))
    event = take_head(queues)
    queues.retry_at(event, 10.0)
    assert queues.any_ready(9.0, 0.0) is None
    assert queues.next_due_s() == 10.0
    assert queues.any_ready(10.0, 0.0) is not None
    assert queues.next_due_s() == float("inf")


def test_withdrawing_unloads_all_but_events_that_are_out():
    queues = queues_of(row(1, "a"), row(2, "a"), row(3, "b"), row(4, "c"))
    out = take_head(queues)
    queues.load(row(5, "d"))
    gone = queues.withdraw(lambda withdrawn: withdrawn.user in ("a", "b"))
    assert [event.id for event in gone] == [2, 3]
    assert ids([take(queues), take(queues), take(queues)]) == [4, 5, None]
    queues.done(out)
    assert take(queues) is None


def test_withdrawing_a_waiting_head_reads_its_user_back():
    queues = queues_of(row(1, "a"), row(2, "a"))
    first = take_head(queues)
    queues.retry_at(first, 10.0)
    queues.to_park()
    queues.withdraw(lambda withdrawn: withdrawn.id == 1)
    assert queues.next_due_s() == float("inf")
    assert queues.to_park() == [1]
    assert queues.wants_parked() == ((False, "a"), 0)


def test_failing_head_keeps_an_older_parked_dead_letter():
    """Parking the queue behind the failed head moved the place to read back from past a retried dead letter."""
    queues = UserQueues(by_user=True, window=WINDOW)
    queues.load(row(10))
    queues.load(row(11))
    head = take_head(queues)
    for number in range(12, 11 + QUEUE_MAX):
        queues.load(row(number))
    queues.load(row(5))  # a dead letter that was retried
    queues.retry_at(head, 1.0)
    queues.to_park()
    queues.head(2.0)
    queues.take(head)
    queues.done(head)
    wanted = queues.wants_parked()
    assert wanted is not None
    assert wanted[1] < 5


class RandomWorld:
    """The outbox and PX around the queues: rows are loaded as the dispatcher does, and answered by random numbers."""

    def __init__(self, rows: list[Row], *, window: int) -> None:
        self.normal = {pending.id: pending for pending in rows}
        self.parked: dict[int, Row] = {}
        self.queues = UserQueues(by_user=True, window=window)
        self.after = dict.fromkeys(PRIORITIES, 0)
        self.done: list[Row] = []
        self.out: list[LoadedEvent] = []
        self.now_s = 0.0
        self.most = 0

    def feed(self) -> None:
        for row_id in self.queues.to_park():
            if row_id in self.normal:
                self.parked[row_id] = self.normal.pop(row_id)
        if wanted := self.queues.wants_parked():
            key, after_id = wanted
            parked = [
                pending for row_id, pending in sorted(self.parked.items()) if self.is_next(pending, key, after_id)
            ]
            self.queues.load_parked(key, [(pending, None) for pending in parked[:2]], more=len(parked) > 2)
            return
        for priority in PRIORITIES:
            page = [
                pending
                for pending in self.normal.values()
                if pending.id > self.after[priority] and pending.priority is priority
            ]
            page.sort(key=lambda pending: pending.id)
            for pending in page[: max(0, min(5, self.queues.capacity()))]:
                self.after[priority] = pending.id
                self.queues.load(pending)

    @staticmethod
    def is_next(pending: Row, key: QueueKey, after_id: int) -> bool:
        return pending.id > after_id and (pending.priority, pending.user) == key

    def step(self, drawn: int) -> None:
        self.feed()
        self.most = max(self.most, len(self.queues.events))
        event = self.queues.head(self.now_s)
        if event is not None and drawn % 3:
            self.queues.take(event)
            self.out.append(event)
        elif self.out:
            self.answer(self.out.pop(drawn % len(self.out)), drawn)
        else:
            self.now_s += 1.0

    def answer(self, event: LoadedEvent, drawn: int) -> None:
        if drawn % 7 == 0:
            self.queues.retry_at(event, self.now_s + drawn % 5)
        elif drawn % 11 == 0:
            self.queues.requeue(event)
        else:
            self.queues.done(event)
            self.normal.pop(event.id, None)
            self.parked.pop(event.id, None)
            self.done.append(event.row)


USERS = st.sampled_from(["a", "a", "a", "b", "c", None])


@given(
    st.lists(st.tuples(USERS, st.sampled_from(Priority)), max_size=60),
    st.lists(st.integers(0, 1000), max_size=300),
)
def test_every_event_is_done_once_and_in_order(made_of, drawn):
    rows = [row(number, user, priority=priority) for number, (user, priority) in enumerate(made_of, 1)]
    world = RandomWorld(rows, window=20)
    for number in drawn:
        world.step(number)
    for _ in range(3000):
        if len(world.done) == len(rows):
            break
        world.step(4 if world.queues.head(world.now_s) else 3 if world.out else 8)
        world.now_s += 0.1
    assert sorted(done.id for done in world.done) == [pending.id for pending in rows]
    finished: dict[tuple[bool, str], list[int]] = defaultdict(list)
    for done in world.done:
        if done.user is not None:
            finished[done.priority, done.user].append(done.id)
    assert all(numbers == sorted(numbers) for numbers in finished.values())
    assert world.most <= 20 + 10 + QUEUE_MAX  # the window, the pages of both classes that filled it, one queue
