"""Build an outbox file quickly, through the Store, in large transactions."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.traffic import USERS, event_bytes, message_id, user_of
from sidecar.outbox import EventState, NewEvent, Settlement, Store, open_outbox
from sidecar.outbox.dedup import DedupIndex

__all__ = ["fill", "new_events"]

ROWS_PER_COMMIT = 20_000
IDS_PER_BATCH = 1_000_000
CACHE_KIB = 512 * 1024


def new_events(start: int, stop: int, users: int = USERS) -> list[NewEvent]:
    """Return events as the receive package makes them."""
    return [
        NewEvent(0, False, f"user-{user_of(number, users):04d}", message_id(number), event_bytes(number, users))
        for number in range(start, stop)
    ]


def _slices(total: int) -> Iterator[tuple[int, int]]:
    for start in range(0, total, ROWS_PER_COMMIT):
        yield start, min(start + ROWS_PER_COMMIT, total)


def fill(path: Path, *, pending: int = 0, delivered: int = 0, dead: int = 0, report: Callable[[str], None]) -> None:
    """Build an outbox with the given number of events in each state.

    Nothing crashes while it is built, so it skips fsyncs, uses a larger cache and writes message ids in larger sorted
    batches. The resulting file is the same.
    """
    store: Store = open_outbox(path, durability="process")
    store.connection.execute("PRAGMA synchronous = OFF")
    store.connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    store.ids = DedupIndex(store.connection, newest=IDS_PER_BATCH)
    now_ms = time.time_ns() // 1_000_000
    total = pending + delivered + dead
    try:
        for start, stop in _slices(total):
            with store.transaction():
                first_id = store.value("next_id") + 1
                store.accept([new_events(start, stop)], now_ms)
                states = [EventState.DELIVERED] * max(0, min(stop, delivered) - start)
                states += [EventState.DEAD] * max(0, min(stop, delivered + dead) - max(start, delivered))
                store.settle(list(_settlements(first_id, states)), now_ms)
            if stop % 1_000_000 == 0:
                report(f"built {stop:,} of {total:,} events")
        with store.transaction():
            store.flush_ids(everything=True)
    finally:
        store.close()


def _settlements(first_id: int, states: list[EventState]) -> Iterator[Settlement]:
    for event_id, state in enumerate(states, first_id):
        if state is EventState.DELIVERED:
            yield Settlement(event_id, False, EventState.DELIVERED, "", 201, "", attempts=1)
        else:
            yield Settlement(
                event_id, False, EventState.DEAD, "refused", 400, "PX answered 400.", attempts=1, name="Feature Used"
            )
