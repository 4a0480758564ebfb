"""The results of the mapping: requests to make, the memory of a user, and the outcome for one event.

Every type here is a frozen value. The outbox stores ``Known`` as an opaque blob, and ``px`` turns an ``Intent`` into
requests; only the mapping constructs them.
"""

from enum import IntEnum
from typing import Any, Final, NamedTuple

import msgspec

__all__ = [
    "NO_ACCOUNT",
    "PRIORITIES",
    "Account",
    "Cap",
    "Change",
    "CustomEvent",
    "Intent",
    "Known",
    "Mapped",
    "Priority",
    "UpsertAccount",
    "UpsertUser",
]


class CustomEvent(msgspec.Struct, frozen=True):
    """One ``POST /v1/events/custom``; ``body`` is a strict JSON object within the caps of PX."""

    body: dict[str, Any]


class UpsertUser(msgspec.Struct, frozen=True):
    """Write the PX user ``user_id``: always ``fields``, and ``new_only`` in addition if the user is created."""

    user_id: str
    fields: dict[str, Any]
    new_only: dict[str, Any]


class UpsertAccount(msgspec.Struct, frozen=True):
    """Write the PX account ``account_id``: always ``fields``, and ``new_only`` in addition if it is created."""

    account_id: str
    fields: dict[str, Any]
    new_only: dict[str, Any]


Intent = CustomEvent | UpsertUser | UpsertAccount


class Change(msgspec.Struct, frozen=True):
    """A value that differs from what the rules alone would give: cut, left out or replaced.

    ``field`` is the PX field (``attributes.plan``); ``what`` names the change and its reason, and never holds the value.
    """

    field: str
    what: str


class Priority(IntEnum):
    """The class of an event: which events go first. The value is the outbox state of an event that waits in its place."""

    LOW = -1
    NORMAL = 0
    HIGH = 1


# In the order in which they are sent.
PRIORITIES: Final = (Priority.HIGH, Priority.NORMAL, Priority.LOW)


class Account(NamedTuple):
    """The account that a user belongs to, as the app said it.

    ``path`` is where the id stood in the call, so that today's privacy rules apply to it; ``call_id`` the event id of
    that call in this outbox, 0 if it was not accepted here. ``id`` is empty if no account is known.
    """

    id: str
    path: str = ""
    call_id: int = 0


NO_ACCOUNT: Final = Account("")


class Cap(NamedTuple):
    """``per_day`` of one name: the most of its events that are sent on a UTC day. ``name`` is the key of the table."""

    name: str
    per_day: int


class Known(msgspec.Struct, frozen=True, omit_defaults=True):
    """The memory of a user: the account, and digests of the user and account fields that were sent last."""

    account_id: str | None = None
    user_digest: str | None = None
    account_digest: str | None = None

    def encode(self) -> bytes:
        """Return the stored form. Readers ignore unknown keys, so an older release can read a newer file."""
        return _encode(self)

    @classmethod
    def decode(cls, data: bytes) -> "Known":
        """Decode the stored form; an empty memory if it is damaged."""
        try:
            return _decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return cls()  # the next identify or group of this user restores it


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Known).decode


class Mapped(msgspec.Struct, frozen=True):
    """The outcome for one event.

    Exactly one is set: ``intents`` (people first, the custom event last), ``dropped`` (a reason), or ``dead`` (a reason,
    with ``detail``; for ``dropped`` it names the rule). ``known`` is the user's new memory if the event changed it; the
    caller stores it when the event is settled. ``cap`` is the limit that the caller has to check before it sends the event.
    """

    intents: tuple[Intent, ...] = ()
    dropped: str | None = None
    dead: str | None = None
    detail: str = ""
    changes: tuple[Change, ...] = ()
    known: Known | None = None
    cap: Cap | None = None
