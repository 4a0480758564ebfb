"""Build an outbox file quickly, through the Store, in big transactions."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.traffic import USERS, event_bytes, message_id
from sidecar.outbox import NewEvent, Settlement, State, Store, open_outbox
from sidecar.outbox.ids import MessageIds

__all__ = ["fill", "new_events"]

ROWS_PER_COMMIT = 20_000
IDS_PER_BATCH = 1_000_000
CACHE_KIB = 512 * 1024


def new_events(start: int, stop: int, users: int = USERS) -> list[NewEvent]:
    """Events as the intake makes them."""
    return [
        NewEvent(0, False, f"user-{number % users:04d}", message_id(number), event_bytes(number, users))
        for number in range(start, stop)
    ]


def _slices(total: int) -> Iterator[tuple[int, int]]:
    for start in range(0, total, ROWS_PER_COMMIT):
        yield start, min(start + ROWS_PER_COMMIT, total)


def fill(path: Path, *, pending: int = 0, delivered: int = 0, dead: int = 0, say: Callable[[str], None]) -> None:
    """An outbox with so many events in each state.

    What is saved here changes nothing of the file: fsyncs, since nothing crashes while building, a larger cache, and
    message ids that go to their table in larger sorted batches.
    """
    store: Store = open_outbox(path, durability="process")
    store.connection.execute("PRAGMA synchronous = OFF")
    store.connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    store.ids = MessageIds(store.connection, newest=IDS_PER_BATCH)
    now_ms = time.time_ns() // 1_000_000
    total = pending + delivered + dead
    try:
        for start, stop in _slices(total):
            with store.transaction():
                first_id = store.value("next_id") + 1
                store.accept([new_events(start, stop)], now_ms)
                gone = [State.DELIVERED] * max(0, min(stop, delivered) - start)
                gone += [State.DEAD] * max(0, min(stop, delivered + dead) - max(start, delivered))
                store.settle(list(_settlements(first_id, gone)), now_ms)
            if stop % 1_000_000 == 0:
                say(f"built {stop:,} of {total:,} events")
        with store.transaction():
            store.flush_ids(all_of_them=True)
    finally:
        store.close()


def _settlements(first_id: int, states: list[State]) -> Iterator[Settlement]:
    for event_id, state in enumerate(states, first_id):
        if state is State.DELIVERED:
            yield Settlement(event_id, False, State.DELIVERED, "", 201, "", attempts=1)
        else:
            yield Settlement(
                event_id, False, State.DEAD, "refused", 400, "PX answered 400.", attempts=1, name="Feature Used"
            )
