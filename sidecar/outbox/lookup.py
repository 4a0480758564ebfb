"""Look up what became of an event: by message id, with the call that decided the account.

Reads only. Rows are found by the message id, whose index is kept for ``keep_ids``; the names of the catalogue say what
else came.
"""

from typing import NamedTuple

from sidecar.outbox.queries import EventDetail, get_event
from sidecar.outbox.store import Store

__all__ = ["CatalogueRow", "MessageEvents", "catalogue", "events_of_message"]


class MessageEvents(NamedTuple):
    """The events of a message id that have a row, and the ids of those whose row is pruned."""

    found: list[EventDetail]
    pruned: list[int]


class CatalogueRow(NamedTuple):
    """A name as it was sent, how often it came, and when first and last (epoch milliseconds)."""

    number: int
    type: str
    name: str
    events: int
    first_ms: int
    last_ms: int


def events_of_message(store: Store, message_id: str) -> MessageEvents:
    """Return the events of a message id, of every source."""
    ids = [
        event_id
        for source in sorted({0, *store.source_products()})
        for event_id in store.ids.events_of(source, message_id)
    ]
    found = [(event_id, get_event(store, event_id)) for event_id in sorted(set(ids))]
    return MessageEvents(
        [detail for _, detail in found if detail is not None],
        [event_id for event_id, detail in found if detail is None],
    )


def catalogue(store: Store) -> list[CatalogueRow]:
    """Return every name that was accepted, with the counts that are not written yet."""
    counted = store.names.unflushed()
    rows = store.connection.execute(
        "SELECT id, type, name, events, first_ms, last_ms FROM names ORDER BY id"
    ).fetchall()
    return [
        CatalogueRow(number, kind, name, events + more, first_ms, max(last_ms, newest_ms))
        for number, kind, name, events, first_ms, last_ms in rows
        for more, newest_ms in [counted.get(number, (0, 0))]
    ]
