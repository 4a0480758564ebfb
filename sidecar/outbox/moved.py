"""Events that an export has moved away: counted, and made pending again on the host that exported them."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from sidecar.events import decode_or_empty, kind_and_name
from sidecar.mapping import Priority
from sidecar.outbox.classify import Via
from sidecar.outbox.dedup import digest_of
from sidecar.outbox.records import PENDING, EventState, NewEvent
from sidecar.outbox.store import Store

__all__ = ["BroughtBack", "bring_back", "count_importable", "count_moved"]


class BroughtBack(NamedTuple):
    """The ids that are pending again, the positions of their events in the call, and how many are known without a row."""

    ids: list[int]
    positions: set[int]
    pruned: int


def count_moved(store: Store, events: Sequence[NewEvent]) -> int:
    """Return how many of these events were accepted here and moved away."""
    return sum(_moved_row(store, event)[0] is not None for event in events)


def count_importable(store: Store, events: Sequence[NewEvent]) -> int:
    """Return how many of these events an import with ``back`` makes pending: moved away from here, or not known here."""
    return len(store.ids.unseen([_digest(event) for event in events])) + count_moved(store, events)


def bring_back(
    store: Store, events: Sequence[NewEvent], *, priority_of: Callable[[dict[str, Any]], Priority]
) -> BroughtBack:
    """Make the events that were moved away pending again, inside a transaction: same id, same row.

    ``priority_of(event)`` decides the class again. The dispatcher has to read the backlog again from the lowest id.
    """
    ids: list[int] = []
    positions: set[int] = set()
    pruned = 0
    for position, event in enumerate(events):
        row, is_pruned = _moved_row(store, event)
        pruned += is_pruned
        if row is None:
            continue
        event_id, body, via = row
        low = via in (Via.RESEND, Via.BACKFILL)
        priority = Priority.LOW if low else priority_of(decode_or_empty(body))
        store.connection.execute(
            "UPDATE events SET state = ?, settled_ms = NULL, status = NULL, reason = NULL, attempts = NULL WHERE id = ?",
            (priority, event_id),
        )
        store.count("dropped:moved", -1)
        store.count(PENDING[priority])
        ids.append(event_id)
        positions.add(position)
    return BroughtBack(ids, positions, pruned)


def _digest(event: NewEvent) -> bytes:
    return digest_of(event.source, event.message_id, event.kind, event.name)


def _moved_row(store: Store, event: NewEvent) -> tuple[tuple[int, bytes, int | None] | None, bool]:
    """Return id, body and way in of the moved event with this message id, or whether its row is pruned."""
    event_id = store.ids.event_of(_digest(event))
    if event_id is None:
        return None, False
    row = store.connection.execute("SELECT state, reason, body, via FROM events WHERE id = ?", (event_id,)).fetchone()
    if row is None:
        return None, True
    state, reason, body, via = row
    # An id of the older form stands for source and message id alone.
    stored = decode_or_empty(body)
    same = kind_and_name(stored.get("type"), stored.get("event"), stored.get("name")) == (event.kind, event.name)
    moved = same and state == EventState.DROPPED and reason == "moved"
    return ((event_id, body, via) if moved else None), False
