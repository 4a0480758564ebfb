"""The events that the benchmarks send: like the seed's example, 330 bytes as an SDK writes them."""

import itertools
import json
import os

__all__ = ["USERS", "event_bytes", "ids", "template"]

USERS = 1_000


def template() -> tuple[bytes, bytes, bytes]:
    """An event's JSON in three pieces: user number (4 digits) and message id (24 characters) go between them."""
    text = json.dumps(
        {
            "type": "track",
            "event": "Feature Used",
            "userId": "user-USER",
            "messageId": "ID",
            "timestamp": "2026-03-01T10:20:30.123Z",
            "context": {"library": {"name": "analytics-python", "version": "2.3.4"}, "groupId": "acme-corp"},
            "properties": {"feature_name": "Bulk Export", "plan": "enterprise", "row_count": 1500, "beta": False},
        },
        separators=(",", ":"),
    )
    before, _, rest = text.partition("USER")
    between, _, after = rest.partition("ID")
    return before.encode(), between.encode(), after.encode()


def ids() -> "itertools.count[int]":
    """Numbers for message ids, behind a prefix of this process that no other run has."""
    return itertools.count()


_PREFIX = os.urandom(6).hex().encode()
_BEFORE, _BETWEEN, _AFTER = template()


def event_bytes(number: int, users: int = USERS) -> bytes:
    """The event with this number; its message id is unique to number and process."""
    return b"%b%04d%b%b%012d%b" % (_BEFORE, number % users, _BETWEEN, _PREFIX, number, _AFTER)


def message_id(number: int) -> str:
    """The message id of that event."""
    return f"{_PREFIX.decode()}{number:012d}"
