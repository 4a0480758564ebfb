"""Carrying pending events to another host: out of a file that no daemon has open, as lines that ``take_in`` reads.

A daemon has some of its events in memory and on the way to PX, so that taking them from under it would send them
twice; it has to be stopped first. Accepting them elsewhere works with and without a daemon (``Archive.take_in``).
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Final

import msgspec

from sidecar.control.archive import Carried
from sidecar.events import decode_stored
from sidecar.outbox import Page, Row, Settlement, State, Store

__all__ = ["carried", "moved", "pending_pages"]

PAGE_ROWS: Final = 500


def pending_pages(store: Store) -> Iterator[list[Row]]:
    """All pending events, page by page: high ones first, each class in order.

    Of a user who waited some may be set aside and newer ones not yet: so all of them are put in their places first.
    """
    with store.transaction():
        store.bring_back()
    for high in (True, False):
        yield from _pages(partial(store.page, high=high))


def _pages(ask: Callable[..., Page]) -> Iterator[list[Row]]:
    after_id, more = 0, True
    while more:
        page = ask(after_id=after_id, limit=PAGE_ROWS)
        more = page.more
        if page.rows:
            after_id = page.rows[-1].id
            yield page.rows


def carried(row: Row, product: str, redact: Callable[[dict[str, Any]], dict[str, Any]]) -> Carried | None:
    """A row as it travels: as today's privacy rules let people see it, which maps to the same as what it was.

    None if the file was damaged there: it stays, and the mapping will say so.
    """
    try:
        event = decode_stored(row.body)
    except msgspec.DecodeError:
        return None
    return Carried(property_key=product, received_ms=row.received_ms, event=redact(event))


def moved(store: Store, rows: Sequence[Row], now_ms: int) -> None:
    """These rows are safe elsewhere: they become dropped, ``moved``. A transaction of its own."""
    with store.transaction():
        store.settle([Settlement(row.id, row.high, State.DROPPED, "moved") for row in rows], now_ms)
