"""How much one call of the store does: bounded by bytes, and by the time that the step before it took."""

import pytest
from outbox_files import NOW_MS, accept, dead, delivered, event, rolled_back, settle

from sidecar.mapping import Priority
from sidecar.outbox import Retention, Store
from sidecar.outbox.backlog import count_page, delivered_page, discard_page
from sidecar.outbox.dead import DeadLetterFilter, dead_page, discard, retry
from sidecar.outbox.dead_groups import count_page as count_dead
from sidecar.outbox.dead_groups import group_page
from sidecar.outbox.forget import forget_users
from sidecar.outbox.limit_watch import LimitWatch
from sidecar.outbox.queries import list_events, newest_bodies, newest_delivery_ms
from sidecar.outbox.selection import EventFilter
from sidecar.outbox.steps import CHANGED_BYTES, READ_BYTES, ROWS_LEAST, ROWS_MOST, next_rows, up_to

LARGE = 30_000
MORE = 120  # 3.6 MB of bodies


def test_rows_are_taken_up_to_a_number_of_bytes_and_at_least_one():
    assert list(up_to(10, [4, 5, 6, 7], lambda size: size)) == [4, 5, 6]
    assert list(up_to(10, [50, 1], lambda size: size)) == [50]
    assert list(up_to(10, [], lambda size: size)) == []


@pytest.mark.parametrize(
    ("rows", "took_s", "then"),
    [
        (500, 0.0, 500),
        (100, 0.0, 200),
        (100, 0.005, 200),
        (100, 0.008, 125),
        (500, 0.020, 250),
        (500, 10.0, ROWS_LEAST),
        (400, 0.001, ROWS_MOST),
    ],
)
def test_the_next_step_follows_the_time_of_the_last(rows, took_s, then):
    assert next_rows(rows, took_s) == then


def test_steps_settle_at_the_target_time():
    rows = ROWS_MOST
    for _ in range(20):
        rows = next_rows(rows, rows * 0.000_05)
    assert 190 <= rows <= 210


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "o.db", durability="process")
    accept(store, [event(n, user=f"u{n % 2}", padding=LARGE) for n in range(1, 3 * MORE + 1)])
    settle(store, [delivered(event_id) for event_id in range(1, MORE + 1)], NOW_MS)
    settle(store, [dead(event_id) for event_id in range(MORE + 1, 2 * MORE + 1)], NOW_MS)
    yield store
    store.close()


def rows_of(store, state):
    return store.connection.execute("SELECT count(*) FROM events WHERE state = ?", (state,)).fetchone()[0]


def test_a_step_of_housekeeping_deletes_a_megabyte_at_most(store):
    retention = Retention(delivered_ms=1, ids_ms=10**12, dead_ms=1, max_users=10**6)
    with store.transaction():
        assert retention.prune_step(store, NOW_MS + 1000)
    most = CHANGED_BYTES // 2 // LARGE + 1
    assert 0 < MORE - rows_of(store, 4) <= most
    assert 0 < MORE - rows_of(store, 6) <= most
    steps = 0
    while rows_of(store, 4) or rows_of(store, 6):
        steps += 1
        with store.transaction():
            retention.prune_step(store, NOW_MS + 10**6)
    assert steps > 5


def test_a_smaller_step_examines_fewer_message_ids(long_outbox):
    """4,000 were examined in each step, with as many events on random pages: 40 ms of CPU, and more of a disk."""
    retention = Retention(delivered_ms=10**12, ids_ms=1, dead_ms=10**12, max_users=10**6)
    left = []
    for rows in (ROWS_MOST, ROWS_LEAST):
        with rolled_back(long_outbox):
            ids = "SELECT count(*) FROM ids"
            before = long_outbox.connection.execute(ids).fetchone()[0]
            retention.prune_step(long_outbox, LATER, rows=rows)
            left.append(before - long_outbox.connection.execute(ids).fetchone()[0])
    assert 0 < left[1] <= 8 * ROWS_LEAST < left[0] <= 8 * ROWS_MOST


def test_forgetting_reads_and_changes_a_bounded_part_a_call(store):
    after_id, calls, forgotten = 0, 0, 0
    while after_id is not None:
        with store.transaction():
            done = forget_users(store, {"u1"}, NOW_MS, checked_out=(), after_id=after_id)
        count = done.pending + done.dead + done.history
        assert count <= CHANGED_BYTES // LARGE + 1
        forgotten, calls, after_id = forgotten + count, calls + 1, done.next_after
    assert (forgotten, calls > 5) == (3 * MORE // 2, True)


@pytest.mark.parametrize("change", ["retry", "discard"])
def test_dead_letters_are_changed_a_megabyte_a_call(store, change):
    after_id, changed = 0, []
    while after_id is not None:
        with store.transaction():
            page = (
                retry(store, DeadLetterFilter(), NOW_MS, priority_of=lambda _event: Priority.NORMAL, after_id=after_id)
                if change == "retry"
                else discard(store, DeadLetterFilter(), NOW_MS, after_id=after_id)
            )
        assert len(page.ids) <= CHANGED_BYTES // LARGE + 1
        changed += page.ids
        after_id = page.next_after
    assert changed == list(range(MORE + 1, 2 * MORE + 1))


def test_lists_end_a_page_after_two_megabytes(store):
    seen, after_id = [], 0
    while after_id is not None:
        page = dead_page(store, DeadLetterFilter(), after_id=after_id)
        assert len(page.letters) <= READ_BYTES // LARGE + 1
        seen += [letter.id for letter in page.letters]
        after_id = page.next_after
    assert seen == list(range(MORE + 1, 2 * MORE + 1))
    events, before = [], None
    while True:
        listed = list_events(store, limit=1000, before=before)
        assert len(listed.events) <= READ_BYTES // LARGE + 1
        events += [row.id for row in listed.events]
        before = listed.next_before
        if before is None:
            break
    assert events == list(range(3 * MORE, 0, -1))


def test_the_limit_watch_reads_two_megabytes_a_step(store):
    watch = LimitWatch(lambda _event: None)
    steps = 1
    while watch.step(store, NOW_MS + 1):
        steps += 1
    assert steps == 2


def test_a_resend_takes_a_megabyte_a_call(store):
    """2,000 events of 30 KB were read, accepted and marked in one call each: 60 MB."""
    seen, after_id = [], 0
    while after_id is not None:
        rows, after_id = delivered_page(store, EventFilter(), after_id=after_id)
        assert len(rows) <= CHANGED_BYTES // LARGE + 1
        seen += [row.id for row in rows]
    assert seen == list(range(1, MORE + 1))


def test_discarding_changes_a_megabyte_a_call(store):
    after_id, discarded, calls = 0, 0, 0
    while after_id is not None:
        with store.transaction():
            page = discard_page(store, EventFilter(), NOW_MS, checked_out=(), after_id=after_id)
        assert page.discarded <= CHANGED_BYTES // LARGE + 1
        discarded, calls, after_id = discarded + page.discarded, calls + 1, page.next_after
    assert (discarded, calls > 3) == (MORE, True)


def search_at_most(monkeypatch, module: str, name: str, bound: int) -> None:
    """Lower a bound of one call: it is read where the rows are selected, and where they are judged."""
    monkeypatch.setattr(f"sidecar.outbox.steps.{name}", bound)
    if name == "SEARCHED_ROWS":
        monkeypatch.setattr(f"sidecar.outbox.{module}.{name}", bound)


@pytest.mark.parametrize("bound", [("SEARCHED_BYTES", 10 * LARGE), ("SEARCHED_ROWS", 11)])
@pytest.mark.parametrize("state", [None, "pending", "delivered", "dead"])
def test_a_search_for_a_message_id_reads_bounded_bytes_a_call(store, monkeypatch, bound, state):
    """It read 20,000 bodies a call: 600 ms with bodies of 30 KB."""
    search_at_most(monkeypatch, "queries", *bound)
    of_state = {"delivered": 1, "dead": MORE + 1, "pending": 2 * MORE + 1, None: 2}[state]
    found, before, calls = [], None, 0
    while calls == 0 or before is not None:
        page = list_events(store, state=state, which=EventFilter(message_id=f"m{of_state}"), before=before)
        found, before, calls = found + [row.id for row in page.events], page.next_before, calls + 1
    assert found == [of_state]
    assert calls >= (3 * MORE if state is None else MORE) // 12


@pytest.mark.parametrize("bound", [("SEARCHED_BYTES", 10 * LARGE), ("SEARCHED_ROWS", 11)])
@pytest.mark.parametrize(("kind", "number"), [("pending", 3 * MORE), ("resend", 1)])
def test_counting_a_message_id_reads_bounded_bytes_a_call(store, monkeypatch, bound, kind, number):
    search_at_most(monkeypatch, "backlog", *bound)
    counted, after_id, calls = 0, 0, 0
    while after_id is not None:
        count, after_id = count_page(store, EventFilter(message_id=f"m{number}"), kind=kind, after_id=after_id)
        counted, calls = counted + count, calls + 1
    assert (counted, calls >= MORE // 12) == (1, True)


ROWS = 24_000  # more than any call may look at
INSTRUCTIONS = 400_000  # of SQLite's machine: some 10 ms
FEW = 1_000
NONE = EventFilter(name="Other")


@pytest.fixture(scope="module")
def long_outbox(tmp_path_factory):
    """Thrice the same number of delivered, dead and pending events."""
    store = Store(tmp_path_factory.mktemp("long") / "o.db", durability="process")
    for start in range(1, ROWS + 1, 2_000):
        accept(store, [event(n, user=f"u{n % 100}") for n in range(start, start + 2_000)])
    third = ROWS // 3
    settle(store, [delivered(event_id) for event_id in range(1, third + 1)], NOW_MS)
    settle(store, [dead(event_id) for event_id in range(third + 1, 2 * third + 1)], NOW_MS)
    with store.transaction():
        store.flush_ids(everything=True)  # as after hours; else the first deletion does it
    yield store
    store.close()


LATER = NOW_MS + 10**9
RETENTION = Retention(delivered_ms=1, ids_ms=1, dead_ms=1, max_users=10)
CALLS = {
    "housekeeping": lambda store: RETENTION.prune_step(store, LATER),
    "forget": lambda store: forget_users(store, {"u7"}, NOW_MS, checked_out=()),
    "forget nothing": lambda store: forget_users(store, {"nobody"}, NOW_MS, checked_out=()),
    "list": lambda store: list_events(store, limit=1_000),
    "list none": lambda store: list_events(store, which=NONE),
    "list none of a user": lambda store: list_events(store, which=EventFilter(user="nobody")),
    "list none pending": lambda store: list_events(store, state="pending", which=NONE),
    "list none delivered": lambda store: list_events(store, state="delivered", which=NONE),
    "list none dead": lambda store: list_events(store, state="dead", which=NONE),
    "list no message": lambda store: list_events(store, which=EventFilter(message_id="none")),
    "count": lambda store: count_page(store, EventFilter(), kind="pending", after_id=0),
    "count none": lambda store: count_page(store, NONE, kind="pending", after_id=0),
    "count resends": lambda store: count_page(store, EventFilter(), kind="resend", after_id=0),
    "resend": lambda store: delivered_page(store, EventFilter(), after_id=0),
    "resend none": lambda store: delivered_page(store, NONE, after_id=0),
    "discard": lambda store: discard_page(store, EventFilter(), NOW_MS, checked_out=(), after_id=0),
    "discard none": lambda store: discard_page(store, NONE, NOW_MS, checked_out=(), after_id=0),
    "dead": lambda store: dead_page(store, DeadLetterFilter()),
    "dead none": lambda store: dead_page(store, DeadLetterFilter(name="Other")),
    "dead retry": lambda store: retry(store, DeadLetterFilter(), NOW_MS, priority_of=lambda _event: Priority.NORMAL),
    "dead discard": lambda store: discard(store, DeadLetterFilter(), NOW_MS),
    "dead groups": lambda store: group_page(store, after_id=0),
    "dead count": lambda store: count_dead(store, DeadLetterFilter(name="Other"), after_id=0),
    "limit watch": lambda store: LimitWatch(lambda _event: None).step(store, NOW_MS + 1),
    "newest delivery": newest_delivery_ms,
    "newest": lambda store: newest_bodies(store, before=2**62, limit=500),
    "page": lambda store: store.page(priority=Priority.NORMAL, after_id=0, limit=500),
}


def instructions_of(store: Store, call) -> int:
    """Return how many instructions SQLite's machine runs for a call, in thousands; what it changes is rolled back."""
    count = 0

    def progress() -> None:
        nonlocal count
        count += 1

    store.connection.set_progress_handler(progress, FEW)
    try:
        with rolled_back(store):
            call(store)
    finally:
        store.connection.set_progress_handler(None, 0)
    return count * FEW


@pytest.mark.parametrize("name", CALLS)
def test_a_call_costs_a_bounded_number_of_instructions(long_outbox, name):
    assert instructions_of(long_outbox, CALLS[name]) < INSTRUCTIONS
