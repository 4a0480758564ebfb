"""The order of users: per user and class in id order, concurrent across users, in bounded memory."""

from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from sidecar.deliver.order import QUEUE_MAX, Item, Order
from sidecar.outbox import Row

WINDOW = 40


def row(number: int, user: str | None = "u", *, high: bool = False, body: bytes = b"{}") -> Row:
    return Row(number, high, 0, user, 0, body, None)


def order(*rows: Row, by_user: bool = True) -> Order:
    made = Order(by_user=by_user, window=WINDOW)
    for one in rows:
        made.load(one)
    return made


def take(made: Order, now_s: float = 0.0) -> Item | None:
    item = made.head(now_s)
    if item is not None:
        made.take(item)
    return item


def ids(items: list[Item | None]) -> list[int | None]:
    return [item and item.id for item in items]


def test_the_next_of_a_user_waits_for_the_one_before():
    made = order(row(1), row(2))
    first = take(made)
    assert first is not None
    assert take(made) is None
    made.done(first)
    assert ids([take(made)]) == [2]


def test_users_do_not_wait_for_each_other():
    made = order(row(1, "a"), row(2, "b"), row(3, "a"))
    assert ids([take(made), take(made), take(made)]) == [1, 2, None]


def test_events_without_a_user_wait_for_nobody():
    made = order(row(1, None), row(2, None))
    assert ids([take(made), take(made)]) == [1, 2]


def test_without_order_a_user_is_not_limited():
    made = order(row(1), row(2), by_user=False)
    assert ids([take(made), take(made)]) == [1, 2]


def test_high_goes_first_and_has_an_order_of_its_own():
    made = order(row(1), row(2), row(3, high=True), row(4, high=True))
    assert ids([take(made), take(made), take(made)]) == [3, 1, None]


def test_what_is_given_back_keeps_its_place():
    made = order(row(1, "a"), row(2, "b"))
    first = take(made)
    assert first is not None
    made.give_back(first)
    assert ids([take(made)]) == [1]


def test_a_retry_waits_until_it_is_due_and_its_user_with_it():
    made = order(row(1, "a"), row(2, "a"), row(3, "b"))
    first = take(made)
    assert first is not None
    made.retry_at(first, 10.0)
    assert ids([take(made, 9.9), take(made, 9.9)]) == [3, None]
    assert made.next_due_s() == 10.0
    assert ids([take(made, 10.0)]) == [1]


def test_of_a_waiting_user_only_the_head_stays_in_memory():
    made = order(*(row(number) for number in range(1, QUEUE_MAX + 1)))
    first = take(made)
    assert first is not None
    made.retry_at(first, 10.0)
    assert list(made.items) == [1]
    assert made.to_set_aside() == list(range(QUEUE_MAX, 1, -1))


def test_what_was_set_aside_is_read_back_behind_the_head():
    made = order(*(row(number) for number in range(1, 4)))
    first = take(made)
    assert first is not None
    made.retry_at(first, 1.0)
    assert made.wants_aside() is None  # not before it is in the file
    made.to_set_aside()
    assert made.wants_aside() is None  # the head still waits
    again = take(made, 1.0)
    assert again is first
    made.done(first)
    assert made.wants_aside() == ((False, "u"), 1)
    made.load_aside((False, "u"), [(row(2), None), (row(3), None)], more=False)
    assert ids([take(made)]) == [2]
    assert made.wants_aside() is None


def test_newer_events_follow_what_is_set_aside():
    made = order(*(row(number) for number in range(1, QUEUE_MAX + 2)))
    assert made.to_set_aside() == [QUEUE_MAX + 1]
    made.load(row(QUEUE_MAX + 2))
    assert made.to_set_aside() == [QUEUE_MAX + 2]


def test_a_retried_dead_letter_that_is_older_than_what_was_read_back_is_found():
    """It was set aside below the id after which reading went on, and waited there until a restart."""
    made = Order(by_user=True, window=WINDOW)
    made.mark_aside([((False, "u"), 50)])
    made.front_at(False, 60)
    made.load_aside((False, "u"), [(row(50), None)], more=True)
    made.load(row(7))
    assert made.to_set_aside() == [7]
    item = take(made)
    assert item is not None
    made.done(item)
    assert made.wants_aside() == ((False, "u"), 6)


def test_a_row_that_is_loaded_already_is_not_loaded_twice():
    made = order(row(1), row(1))
    assert len(made.items) == 1


def test_queues_of_slow_users_leave_room_for_others():
    made = Order(by_user=True, window=QUEUE_MAX * 10 + 20)
    for number in range(1, 1001):
        made.load(row(number, f"slow-{number % 10}"))
    for _ in range(10):
        take(made)
    assert made.room() == 20
    made.load(row(2000, "quick"))
    assert ids([take(made)]) == [2000]


def test_large_bodies_fill_the_window_sooner():
    made = Order(by_user=True, window=10_000)
    body = b" " * 2**20
    for number in range(1, 17):
        assert made.room() > 0
        made.load(row(number, f"u{number}", body=body))
    assert made.room() == 0
    item = take(made)
    assert item is not None
    made.done(item)
    assert made.room() > 0


def test_a_pause_can_be_probed_with_any_user():
    made = order(*(row(number, f"u{number}") for number in range(1, 11)))
    found = {item.id for item in (made.another(0.0, number / 10) for number in range(10)) if item}
    assert found == set(range(1, 11))
    last = made.another(0.0, 0.99)
    assert last is not None
    made.take(last)
    assert last.id not in ids([take(made) for _ in range(10)])


def test_a_pause_can_be_probed_with_a_retry_that_is_due():
    made = order(row(1, "a"))
    item = take(made)
    assert item is not None
    made.retry_at(item, 10.0)
    assert made.another(9.0, 0.0) is None
    assert made.next_due_s() == 10.0
    assert made.another(10.0, 0.0) is not None
    assert made.next_due_s() == float("inf")


def test_what_is_withdrawn_was_never_loaded_but_what_is_out_stays():
    made = order(row(1, "a"), row(2, "a"), row(3, "b"), row(4, "c"))
    out = take(made)
    made.load(row(5, "d"))
    gone = made.withdraw(lambda one: one.user in ("a", "b"))
    assert out is not None
    assert [item.id for item in gone] == [2, 3]
    assert ids([take(made), take(made), take(made)]) == [4, 5, None]
    made.done(out)
    assert take(made) is None


def test_a_waiting_head_that_is_withdrawn_lets_the_next_of_its_user_be_read():
    made = order(row(1, "a"), row(2, "a"))
    first = take(made)
    assert first is not None
    made.retry_at(first, 10.0)
    made.to_set_aside()
    made.withdraw(lambda one: one.id == 1)
    assert made.next_due_s() == float("inf")
    assert made.to_set_aside() == [1]
    assert made.wants_aside() == ((False, "a"), 0)


class World:
    """The file and PX around an order: rows are fetched as the dispatcher does, and answered as the dice say."""

    def __init__(self, rows: list[Row], *, window: int) -> None:
        self.normal = {one.id: one for one in rows}
        self.aside: dict[int, Row] = {}
        self.order = Order(by_user=True, window=window)
        self.after = {True: 0, False: 0}
        self.done: list[Row] = []
        self.out: list[Item] = []
        self.now_s = 0.0
        self.most = 0

    def feed(self) -> None:
        for one in self.order.to_set_aside():
            if one in self.normal:
                self.aside[one] = self.normal.pop(one)
        if wanted := self.order.wants_aside():
            turn, after = wanted
            found = [one for key, one in sorted(self.aside.items()) if key > after and (one.high, one.user) == turn]
            self.order.load_aside(turn, [(one, None) for one in found[:2]], more=len(found) > 2)
            return
        for high in (True, False):
            found = [one for key, one in sorted(self.normal.items()) if key > self.after[high] and one.high is high]
            for one in found[: max(0, min(5, self.order.room()))]:
                self.after[high] = one.id
                self.order.load(one)

    def step(self, dice: int) -> None:
        self.feed()
        self.most = max(self.most, len(self.order.items))
        item = self.order.head(self.now_s)
        if item is not None and dice % 3:
            self.order.take(item)
            self.out.append(item)
        elif self.out:
            self.answer(self.out.pop(dice % len(self.out)), dice)
        else:
            self.now_s += 1.0

    def answer(self, item: Item, dice: int) -> None:
        if dice % 7 == 0:
            self.order.retry_at(item, self.now_s + dice % 5)
        elif dice % 11 == 0:
            self.order.give_back(item)
        else:
            self.order.done(item)
            self.normal.pop(item.id, None)
            self.aside.pop(item.id, None)
            self.done.append(item.row)


USERS = st.sampled_from(["a", "a", "a", "b", "c", None])


@given(
    st.lists(st.tuples(USERS, st.booleans()), max_size=60),
    st.lists(st.integers(0, 1000), max_size=300),
)
def test_whatever_fails_every_event_comes_once_and_in_order(made_of, dice):
    rows = [row(number, user, high=high) for number, (user, high) in enumerate(made_of, 1)]
    world = World(rows, window=20)
    for number in dice:
        world.step(number)
    for _ in range(3000):
        if len(world.done) == len(rows):
            break
        world.step(4 if world.order.head(world.now_s) else 3 if world.out else 8)
        world.now_s += 0.1
    assert sorted(one.id for one in world.done) == [one.id for one in rows]
    came: dict[tuple[bool, str], list[int]] = defaultdict(list)
    for one in world.done:
        if one.user is not None:
            came[one.high, one.user].append(one.id)
    assert all(numbers == sorted(numbers) for numbers in came.values())
    assert world.most <= 20 + 10 + QUEUE_MAX  # the window, the pages of both classes that filled it, one queue
