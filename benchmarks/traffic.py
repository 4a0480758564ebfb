"""The events that the benchmarks send: a typical track call, 330 bytes as an SDK writes it, or the same as an OTLP log record."""

import itertools
import json
import os
from typing import Any

__all__ = ["USERS", "event_bytes", "ids", "otlp_bytes", "template", "user_of"]

USERS = 1_000
SCATTER = 611_953  # has no divisor in common with a number of users that is a power of ten


def template() -> tuple[bytes, bytes, bytes]:
    """Return the JSON of an event in three parts; user number (4 digits) and message id (24 characters) go between them."""
    return _split(
        {
            "type": "track",
            "event": "Feature Used",
            "userId": "user-USER",
            "messageId": "ID",
            "timestamp": "2026-03-01T10:20:30.123Z",
            "context": {"library": {"name": "analytics-python", "version": "2.3.4"}, "groupId": "acme-corp"},
            "properties": {"feature_name": "Bulk Export", "plan": "enterprise", "row_count": 1500, "beta": False},
        }
    )


def otlp_template() -> tuple[bytes, bytes, bytes]:
    """Return the same event as an OTLP log record (https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding)."""
    values = {
        "userId": {"stringValue": "user-USER"},
        "messageId": {"stringValue": "ID"},
        "groupId": {"stringValue": "acme-corp"},
        "feature_name": {"stringValue": "Bulk Export"},
        "plan": {"stringValue": "enterprise"},
        "row_count": {"intValue": "1500"},
        "beta": {"boolValue": False},
    }
    return _split(
        {
            "timeUnixNano": "1772360430123000000",
            "body": {"stringValue": "Feature Used"},
            "attributes": [{"key": key, "value": value} for key, value in values.items()],
        }
    )


def _split(event: dict[str, Any]) -> tuple[bytes, bytes, bytes]:
    text = json.dumps(event, separators=(",", ":"))
    before, _, rest = text.partition("USER")
    between, _, after = rest.partition('"ID"')
    return before.encode(), between.encode() + b'"', b'"' + after.encode()


def ids() -> "itertools.count[int]":
    """Return numbers for message ids, which get a prefix unique to this process."""
    return itertools.count()


_PREFIX = os.urandom(6).hex().encode()
_BEFORE, _BETWEEN, _AFTER = template()
_OTLP_BEFORE, _OTLP_BETWEEN, _OTLP_AFTER = otlp_template()


def event_bytes(number: int, users: int = USERS) -> bytes:
    """Return the event with this number; its message id is unique to number and process."""
    return b"%b%04d%b%b%012d%b" % (_BEFORE, user_of(number, users), _BETWEEN, _PREFIX, number, _AFTER)


def otlp_bytes(number: int, users: int = USERS) -> bytes:
    """Return the event with this number as an OTLP log record, with the same message id."""
    return b"%b%04d%b%b%012d%b" % (_OTLP_BEFORE, user_of(number, users), _OTLP_BETWEEN, _PREFIX, number, _OTLP_AFTER)


def user_of(number: int, users: int) -> int:
    """Return the user of the event with this number: each in turn, and neighbors far apart, as in an app."""
    return number * SCATTER % users


def message_id(number: int) -> str:
    """Return the message id of the event with this number."""
    return f"{_PREFIX.decode()}{number:012d}"
