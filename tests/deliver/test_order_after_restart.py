"""A new process takes over the rows of an earlier one: for each user some parked and some not, in any pattern."""

from collections import defaultdict
from itertools import pairwise
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from order_parts import row

from sidecar.deliver.order import UserQueues
from sidecar.outbox import Row


class OutboxRows:
    """The pending rows, and which of them are parked."""

    def __init__(self, rows: list[tuple[str, bool]]) -> None:
        self.rows = {number: row(number, user) for number, (user, _) in enumerate(rows, 1)}
        self.parked = {number for number, (_, parked) in enumerate(rows, 1) if parked}
        self.after_id = 0

    def first_parked(self) -> list[tuple[tuple[bool, str], int]]:
        first: dict[tuple[bool, str], int] = {}
        for number in sorted(self.parked):
            first.setdefault((False, str(self.rows[number].user)), number)
        return list(first.items())

    def next_page(self, limit: int) -> tuple[list[Row], bool]:
        backlog = [number for number in sorted(self.rows) if number > self.after_id and number not in self.parked]
        page = [self.rows[number] for number in backlog[:limit]]
        self.after_id = page[-1].id if page else self.after_id
        return page, len(page) == limit

    def parked_page(self, user: object, after_id: int, limit: int) -> tuple[list[tuple[Row, None]], bool]:
        parked = [self.rows[number] for number in sorted(self.parked) if number > after_id]
        page = [(pending, None) for pending in parked if pending.user == user][:limit]
        return page, len(page) == limit


def deliver(file: OutboxRows, queues: UserQueues, random: Random, page_rows: int, parked_rows: int) -> list[Row]:
    """Load, deliver, fail and withdraw at random; return all rows in the order of delivery."""
    done: list[Row] = []
    exhausted = False
    now_s = 0.0
    while file.rows or not exhausted:
        now_s += random.random()
        if ids := queues.to_park():
            file.parked.update(ids)
        elif random.random() < 0.03:
            queues.withdraw(lambda withdrawn: withdrawn.user == "u")  # and the disk failed, so nothing was forgotten
            file.after_id, exhausted = 0, False
        elif (wanted := queues.wants_parked()) and random.random() < 0.5:
            key, after_id = wanted
            rows, more = file.parked_page(key[1], after_id, parked_rows)
            queues.load_parked(key, rows, more=more)
        elif not exhausted and random.random() < 0.5:
            page, more = file.next_page(page_rows)
            for loaded in page:
                queues.load(loaded)
            queues.read_up_to(False, page[-1].id if more else float("inf"))
            exhausted = not more
        elif (head := queues.head(now_s)) is not None:
            queues.take(head)
            if random.random() < 0.2:
                queues.retry_at(head, now_s + 2 * random.random())
                continue
            queues.done(head)
            done.append(file.rows.pop(head.id))
            file.parked.discard(head.id)
        else:
            waits = queues.wants_parked() or queues.next_due_s() < float("inf")
            assert waits or not exhausted, f"{sorted(file.rows)} are never delivered"
    return done


@settings(max_examples=500)
@given(
    rows=st.lists(st.tuples(st.sampled_from("uv"), st.booleans()), max_size=30),
    page_rows=st.sampled_from([1, 1, 5]),
    parked_rows=st.sampled_from([1, 4]),
    seed=st.integers(0, 2**32),
)
def test_all_events_of_each_user_are_delivered_in_order(rows, page_rows, parked_rows, seed):
    file, queues = OutboxRows(rows), UserQueues(by_user=True, window=100)
    queues.mark_parked(file.first_parked())
    done = deliver(file, queues, Random(seed), page_rows, parked_rows)
    assert len(done) == len(rows)
    of_user = defaultdict(list)
    for delivered in done:
        of_user[delivered.user].append(delivered.id)
    assert all(earlier < later for ids in of_user.values() for earlier, later in pairwise(ids))


def test_backlog_row_between_parked_rows_is_not_overtaken():
    """A crash left this pattern: 1 was read back, 2 and 3 were loaded behind it, 4 was parked again."""
    queues = UserQueues(by_user=True, window=100)
    key = (False, "u")
    queues.mark_parked([(key, 1)])
    queues.load(row(2))
    queues.read_up_to(False, 2)
    assert queues.to_park() == [2]
    queues.load_parked(key, [(row(1), None), (row(2), None), (row(4), None)], more=False)
    assert queues.wants_parked() is None
    queues.load(row(3))
    queues.read_up_to(False, 3)
    assert list(queues.events) == [1, 2, 3]
    assert queues.wants_parked() is None
    queues.read_up_to(False, float("inf"))
    for number in (1, 2, 3):
        head = queues.head(0.0)
        assert head is not None
        assert head.id == number
        queues.take(head)
        queues.done(head)
    assert queues.wants_parked() == (key, 2)


def test_parked_rows_wait_for_the_read_position():
    queues = UserQueues(by_user=True, window=40)
    queues.mark_parked([((False, "u"), 5), ((False, "v"), 9)])
    queues.load(row(3))
    queues.load(row(7))
    assert queues.to_park() == [7]
    assert queues.wants_parked() is None
    queues.read_up_to(False, 7)
    event = queues.head(0.0)
    assert event is not None
    assert event.id == 3
    queues.take(event)
    queues.done(event)
    assert queues.wants_parked() == ((False, "u"), 0)
    queues.read_up_to(False, float("inf"))
    queues.load_parked((False, "u"), [], more=False)
    assert queues.wants_parked() == ((False, "v"), 0)
