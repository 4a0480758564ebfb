"""Which events an operator's call is about, as a condition that SQLite checks without handing over the rows.

A row holds the number of its name, so that a name is found without decoding. Rows of the first format, and rows of names
beyond ``NAMES_MAX``, have no number: their bodies are decoded. ``user`` is the ordering key.
"""

from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

import msgspec

from sidecar.events import decode_or_empty, has_name
from sidecar.mapping import Priority
from sidecar.outbox.names import OTHER
from sidecar.outbox.records import PARKED
from sidecar.outbox.store import Store

__all__ = ["ALL_EVENTS", "EventFilter", "Where", "condition_of"]


class EventFilter(NamedTuple):
    """Selects events; a field that is None selects all.

    ``name`` selects by ``has_name``. ``sources`` are numbers of ``Store.source``, 0 for the default one.
    ``since_ms`` and ``until_ms`` bound the time of receipt, for settled states that of the settlement, the end excluded.
    ``priority`` selects pending events of a class.
    """

    name: str | None = None
    user: str | None = None
    sources: tuple[int, ...] | None = None
    since_ms: int | None = None
    until_ms: int | None = None
    message_id: str | None = None
    priority: Priority | None = None

    def matches(
        self,
        event: dict[str, object],
        *,
        user: str | None,
        source: int,
        received_ms: int,
        priority: Priority | None,
    ) -> bool:
        """Return whether an event that is in memory is selected."""
        return (
            (self.priority is None or priority == self.priority)
            and (self.user is None or user == self.user)
            and (self.sources is None or source in self.sources)
            and (self.since_ms is None or received_ms >= self.since_ms)
            and (self.until_ms is None or received_ms < self.until_ms)
            and _named(event, self)
        )


ALL_EVENTS: Final = EventFilter()


class Where(NamedTuple):
    """A condition on ``events``, its values, and what remains to be checked of each row: see ``accepts``."""

    text: str
    values: Sequence[object]
    which: EventFilter

    def accepts(self, number: int | None, body: bytes) -> bool:
        """Return whether a row that meets the condition is selected, by the number of its name and its body."""
        if self.which.message_id is None and (self.which.name is None or number not in (None, OTHER)):
            return True
        event = decode_or_empty(body)
        return _named(event, self.which)


def _named(event: dict[str, object], which: EventFilter) -> bool:
    return (which.name is None or has_name(event, which.name)) and (
        which.message_id is None or str(event.get("messageId")) == which.message_id
    )


def condition_of(store: Store, which: EventFilter, *, time: Literal["received_ms", "settled_ms"]) -> Where:
    """Return the condition; its text begins with ``AND`` unless it is empty."""
    parts: list[str] = []
    values: list[object] = []

    def add(part: str, *more: object) -> None:
        parts.append(f" AND {part}")
        values.extend(more)

    if which.user is not None:
        add("user = ?", which.user)
    if which.sources is not None:
        add(f"source IN ({_marks(which.sources)})", *which.sources)
    if which.since_ms is not None:
        add(f"{time} >= ?", which.since_ms)
    if which.until_ms is not None:
        add(f"{time} < ?", which.until_ms)
    if which.priority is not None:
        add("state IN (?, ?)", which.priority, PARKED[which.priority])
    if which.name is not None:
        numbers = store.names.selected_by(which.name)
        add(f"(name IN ({_marks(numbers)}) OR name IS NULL OR name = {OTHER})", *numbers)
    if which.message_id is not None:
        # The text of the id as it stands in strict JSON, without its quotes: a number has none.
        add("instr(body, ?)", msgspec.json.encode(which.message_id)[1:-1])
    return Where("".join(parts), values, which)


def _marks(values: Sequence[object]) -> str:
    return ",".join("?" * len(values))
