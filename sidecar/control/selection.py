"""Which events or dead letters a call is about: as parameters of GET, and as the body of a call that changes them."""

from typing import Literal

import msgspec

from sidecar.control.answers import Int64, RequestError
from sidecar.mapping import Priority, Settings
from sidecar.outbox.dead import DeadLetterFilter
from sidecar.outbox.selection import ALL_EVENTS, EventFilter

__all__ = ["Class", "DeadCommand", "DeadQuery", "EventCommand", "EventsQuery", "event_filter", "integer"]


Class = Literal["high", "normal", "low"]


class DeadQuery(msgspec.Struct, forbid_unknown_fields=True):
    """The parameters of ``GET /v1/dead`` and ``GET /v1/dead/export``."""

    ids: str | None = None
    name: str | None = None
    reason: str | None = None
    since_ms: Int64 | None = None
    until_ms: Int64 | None = None
    user: str | None = None
    after: Int64 = 0
    limit: Int64 = 500

    def selection(self) -> DeadLetterFilter:
        """Return the filter; without parameters it selects all dead letters."""
        ids = None if self.ids is None else [integer(text) for text in self.ids.split(",")]
        return DeadLetterFilter(ids, self.name, self.reason, self.since_ms, self.until_ms, self.user)


class DeadCommand(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /v1/dead/retry``, ``POST /v1/dead/discard`` and ``POST /v1/dead/count``."""

    ids: list[Int64] | None = None
    name: str | None = None
    reason: str | None = None
    since_ms: Int64 | None = None
    until_ms: Int64 | None = None
    user: str | None = None
    all: bool = False
    after: Int64 = 0

    def selection(self) -> DeadLetterFilter:
        """Return the filter. All letters are selected only with ``all``: an empty body must not discard everything."""
        selection = DeadLetterFilter(self.ids, self.name, self.reason, self.since_ms, self.until_ms, self.user)
        if selection == DeadLetterFilter() and not self.all:
            raise RequestError(
                400, 'Nothing is selected; select by ids, name, reason, user or time, or set "all": true.'
            )
        return selection


class EventsQuery(msgspec.Struct, forbid_unknown_fields=True):
    """The parameters of ``GET /v1/events``.

    ``source`` is the position of a ``[[source]]`` in the configuration, from 0, or a property key. The times are those by
    which the list is ordered.
    """

    state: str | None = None
    name: str | None = None
    source: str | None = None
    user: str | None = None
    message_id: str | None = None
    since_ms: Int64 | None = None
    until_ms: Int64 | None = None
    class_: Class | None = msgspec.field(name="class", default=None)
    limit: int = 50
    before: str | None = None

    def selection(self, settings: Settings) -> EventFilter:
        """Return the filter. Raises RequestError for an unknown source."""
        which = event_filter(settings, self.name, self.source, self.user, self.since_ms, self.until_ms)
        return which._replace(message_id=self.message_id, priority=_priority(self.class_))


class EventCommand(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /v1/events/discard``, ``/v1/resend`` and their counts.

    The times are those of receipt, for ``resend`` of delivery. ``source`` as in ``GET /v1/events``. ``class`` selects pending
    events.
    """

    name: str | None = None
    source: str | None = None
    user: str | None = None
    since_ms: Int64 | None = None
    until_ms: Int64 | None = None
    class_: Class | None = msgspec.field(name="class", default=None)
    all: bool = False
    after: Int64 = 0

    def selection(self, settings: Settings) -> EventFilter:
        """Return the filter. All events are selected only with ``all``. Raises RequestError."""
        which = event_filter(settings, self.name, self.source, self.user, self.since_ms, self.until_ms)
        which = which._replace(priority=_priority(self.class_))
        if which == ALL_EVENTS and not self.all:
            raise RequestError(
                400, 'Nothing is selected; select by name, source, user, time or class, or set "all": true.'
            )
        return which


def _priority(name: Class | None) -> Priority | None:
    return None if name is None else Priority[name.upper()]


def event_filter(
    settings: Settings,
    name: str | None,
    source: str | None,
    user: str | None,
    since_ms: int | None,
    until_ms: int | None,
) -> EventFilter:
    """Return the filter; ``source`` is resolved by the configuration in force. Raises RequestError if it names none."""
    sources = None if source is None else settings.sources_named(source)
    if sources == ():
        raise RequestError(
            400,
            f"There is no source {str(source)[:80]!r}; give the position of a [[source]] from 0, or a property key.",
        )
    return EventFilter(name, user, sources, since_ms, until_ms)


def integer(text: str) -> int:
    """Return the number in a parameter. Raises RequestError."""
    if not text.strip().isdecimal() or len(text) > 18:
        raise RequestError(400, f"{text[:40]!r} is not an integer.")
    return int(text)
