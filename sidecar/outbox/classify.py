"""Turn a checked event into the row to be accepted: its class, its user, and the account that it names.

One function for every way in (HTTP, NDJSON, import, backfill), so that an event means the same however it came.
"""

from enum import IntEnum

from sidecar.events import JudgedEvent, kind_and_name
from sidecar.mapping import Account, Priority, Settings
from sidecar.outbox.records import NewEvent, hashed_values

__all__ = ["Via", "new_event"]


class Via(IntEnum):
    """The way in which an event came in; stored with it. ``HTTP`` also for `send`, which uses the control socket."""

    UNKNOWN = 0
    HTTP = 1
    UNIX_HTTP = 2
    NDJSON = 3
    IMPORT = 4
    RESEND = 5
    BACKFILL = 6


def new_event(
    settings: Settings,
    source: int,
    checked: JudgedEvent,
    *,
    via: int = Via.UNKNOWN,
    carried: Account | None = None,
    hashed: str | None = None,
) -> NewEvent:
    """Classify an event by the settings in force; a bad one has neither class nor user.

    ``carried`` and ``hashed`` are what an exported line says of its account and of values that are hashed already.
    """
    event, mapper = checked.event, settings.mapper
    if event is None:
        return NewEvent(source, Priority.NORMAL, None, checked.message_id, checked.body, checked.bad, via=via)
    kind, name = kind_and_name(event.get("type"), event.get("event"), event.get("name"))
    if checked.bad is not None:
        return NewEvent(
            source, Priority.NORMAL, None, checked.message_id, checked.body, checked.bad, kind=kind, name=name, via=via
        )
    already = hashed_values(hashed) if hashed else ()
    return NewEvent(
        source,
        mapper.priority_of(event),
        mapper.user_of(event, already),
        checked.message_id,
        checked.body,
        None,
        settings.product_of(source),
        kind,
        name,
        mapper.account_said(event, already),
        via,
        carried,
        hashed=hashed,
    )
