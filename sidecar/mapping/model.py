"""What the mapping says: requests to make, what is known of a user, and what became of one event.

Rules
-----
* Everything here is a frozen value. The outbox stores ``Known`` as an opaque blob; ``px`` turns an ``Intent`` into
  requests; nobody but the mapping knows how they come about.
"""

from typing import Any

import msgspec

__all__ = ["Change", "CustomEvent", "Intent", "Known", "Mapped", "UpsertAccount", "UpsertUser"]


class CustomEvent(msgspec.Struct, frozen=True):
    """One ``POST /v1/events/custom``; ``body`` is the strict JSON object PX gets, within its caps."""

    body: dict[str, Any]


class UpsertUser(msgspec.Struct, frozen=True):
    """Write the PX user ``user_id``: ``fields`` in any case, ``new_only`` as well where the user is created."""

    user_id: str
    fields: dict[str, Any]
    new_only: dict[str, Any]


class UpsertAccount(msgspec.Struct, frozen=True):
    """Write the PX account ``account_id``: ``fields`` in any case, ``new_only`` as well where it is created."""

    account_id: str
    fields: dict[str, Any]
    new_only: dict[str, Any]


Intent = CustomEvent | UpsertUser | UpsertAccount


class Change(msgspec.Struct, frozen=True):
    """A value that PX gets otherwise than the rules alone would give it: cut, left out or replaced.

    ``field`` is the PX field (``attributes.plan``); ``what`` says what was done and why.
    """

    field: str
    what: str


class Known(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is remembered of a user: the account, and digests of the user and account fields sent last."""

    account_id: str | None = None
    user_digest: str | None = None
    account_digest: str | None = None

    def encode(self) -> bytes:
        """The stored form; unknown keys in it are ignored when it is read, so an older program can read it."""
        return _encode(self)

    @classmethod
    def decode(cls, data: bytes) -> "Known":
        """The inverse of ``encode``; nothing known for anything else."""
        try:
            return _decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return cls()  # the file was damaged just there: the next identify or group tells it anew


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Known).decode


class Mapped(msgspec.Struct, frozen=True):
    """What became of one event.

    Exactly one holds: there are ``intents`` (people first, the custom event last), ``dropped`` names a reason, or
    ``dead`` does, with ``detail``. ``known`` is the user's new memory if the event changed it, to be written when the
    event is settled.
    """

    intents: tuple[Intent, ...] = ()
    dropped: str | None = None
    dead: str | None = None
    detail: str = ""
    changes: tuple[Change, ...] = ()
    known: Known | None = None
