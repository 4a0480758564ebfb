"""A new run takes over what an earlier one left: for each user some rows set aside and some not, in any pattern."""

from collections import defaultdict
from itertools import pairwise
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from test_order import row

from sidecar.deliver.order import Order
from sidecar.outbox import Row


class File:
    """The pending rows, and which of them are set aside."""

    def __init__(self, rows: list[tuple[str, bool]]) -> None:
        self.rows = {number: row(number, user) for number, (user, _) in enumerate(rows, 1)}
        self.aside = {number for number, (_, aside) in enumerate(rows, 1) if aside}
        self.after_id = 0

    def firsts(self) -> list[tuple[tuple[bool, str], int]]:
        first: dict[tuple[bool, str], int] = {}
        for number in sorted(self.aside):
            first.setdefault((False, str(self.rows[number].user)), number)
        return list(first.items())

    def front(self, limit: int) -> tuple[list[Row], bool]:
        found = [
            one for number, one in sorted(self.rows.items()) if number > self.after_id and number not in self.aside
        ]
        page = found[:limit]
        self.after_id = page[-1].id if page else self.after_id
        return page, len(page) == limit

    def of(self, user: object, after_id: int, limit: int) -> tuple[list[tuple[Row, None]], bool]:
        found = [(self.rows[number], None) for number in sorted(self.aside) if number > after_id]
        page = [one for one in found if one[0].user == user][:limit]
        return page, len(page) == limit


def deliver(file: File, order: Order, dice: Random, page_rows: int, aside_rows: int) -> list[Row]:
    """Everything, in the order in which it is delivered: loading, delivering, failing and letting go by dice."""
    done: list[Row] = []
    exhausted = False
    now_s = 0.0
    while file.rows or not exhausted:
        now_s += dice.random()
        if ids := order.to_set_aside():
            file.aside.update(ids)
        elif dice.random() < 0.03:
            order.withdraw(lambda one: one.user == "u")  # who could not be forgotten, as the disk was ill
            file.after_id, exhausted = 0, False
        elif (wanted := order.wants_aside()) and dice.random() < 0.5:
            turn, after_id = wanted
            rows, more = file.of(turn[1], after_id, aside_rows)
            order.load_aside(turn, rows, more=more)
        elif not exhausted and dice.random() < 0.5:
            page, more = file.front(page_rows)
            for one in page:
                order.load(one)
            order.front_at(False, page[-1].id if more else float("inf"))
            exhausted = not more
        elif (head := order.head(now_s)) is not None:
            order.take(head)
            if dice.random() < 0.2:
                order.retry_at(head, now_s + 2 * dice.random())
                continue
            order.done(head)
            done.append(file.rows.pop(head.id))
            file.aside.discard(head.id)
        else:
            waits = order.wants_aside() or order.next_due_s() < float("inf")
            assert waits or not exhausted, f"{sorted(file.rows)} wait for ever"
    return done


@settings(max_examples=500)
@given(
    rows=st.lists(st.tuples(st.sampled_from("uv"), st.booleans()), max_size=30),
    page_rows=st.sampled_from([1, 1, 5]),
    aside_rows=st.sampled_from([1, 4]),
    seed=st.integers(0, 2**32),
)
def test_each_users_events_come_in_order_and_all_of_them(rows, page_rows, aside_rows, seed):
    file, order = File(rows), Order(by_user=True, window=100)
    order.mark_aside(file.firsts())
    done = deliver(file, order, Random(seed), page_rows, aside_rows)
    assert len(done) == len(rows)
    of_user = defaultdict(list)
    for one in done:
        of_user[one.user].append(one.id)
    assert all(earlier < later for ids in of_user.values() for earlier, later in pairwise(ids))


def test_what_is_not_set_aside_between_others_that_are_is_not_overtaken():
    """As a crash left it: 1 was read back, 2 and 3 came behind it from the front, 4 was set aside again."""
    order = Order(by_user=True, window=100)
    turn = (False, "u")
    order.mark_aside([(turn, 1)])
    order.load(row(2))
    order.front_at(False, 2)
    assert order.to_set_aside() == [2]
    order.load_aside(turn, [(row(1), None), (row(2), None), (row(4), None)], more=False)
    assert order.wants_aside() is None
    order.load(row(3))
    order.front_at(False, 3)
    assert list(order.items) == [1, 2, 3]
    assert order.wants_aside() is None
    order.front_at(False, float("inf"))
    for number in (1, 2, 3):
        head = order.head(0.0)
        assert head is not None
        assert head.id == number
        order.take(head)
        order.done(head)
    assert order.wants_aside() == (turn, 2)
