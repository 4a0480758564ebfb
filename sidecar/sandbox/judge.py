"""What PX says to a key and to an event: pure, and written from PX's contract alone.

The contract is ``facts/px_and_sdks.md`` 1.1 to 1.3 (PX's Swagger file and support articles). Where it leaves a question
open, the answer here is the stricter one, so that what this judge accepts PX can be expected to accept: a field that
the contract does not name, a null, and a nested attribute that is not text are refused.
"""

from collections.abc import Callable
from typing import Any

import msgspec

__all__ = ["Answer", "Rules", "decode", "error", "judge_event", "judge_key", "judge_property_keys"]

MAX_ATTRIBUTES = 50
MAX_NAME_CHARS = 2_000
MAX_KEY_CHARS = 1_024
USER_TYPES = ("LEAD", "USER", "VISITOR", "EMPTY_USER_TYPE")

_INT64 = range(-(2**63), 2**63)
_STATUS_NAMES = {
    400: "BAD_REQUEST", 401: "UNAUTHORIZED", 403: "FORBIDDEN", 404: "NOT_FOUND", 405: "METHOD_NOT_ALLOWED",
    429: "TOO_MANY_REQUESTS", 500: "INTERNAL_SERVER_ERROR", 503: "SERVICE_UNAVAILABLE",
}  # fmt: skip


class Answer(msgspec.Struct, frozen=True):
    """An answer of PX."""

    status: int
    body: bytes = b""
    content_type: str = "application/json"


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """What this PX subscription knows."""

    keys: frozenset[str]
    """REST API keys with read and write permission."""
    read_only_keys: frozenset[str] = frozenset()
    property_keys: frozenset[str] = frozenset()
    """Product keys; when empty, any that begins with ``AP-``."""


def error(status: int, message: str, fields: list[str] | None = None) -> Answer:
    """PX's error envelope; ``fields`` become the messages of ``subErrors``."""
    envelope = {
        "status": _STATUS_NAMES.get(status, str(status)),
        "message": message,
        "debugMessage": None,
        "subErrors": [{"message": text} for text in fields] if fields else None,
    }
    return Answer(status, msgspec.json.encode({"externalapierror": envelope}))


def judge_key(key: str | None, rules: Rules) -> Answer | None:
    """None for a key that is known, else the 401."""
    if key is not None and (key in rules.keys or key in rules.read_only_keys):
        return None
    return error(401, "Authentication failed in loginAwareAuthentication")


def judge_permission(key: str | None, rules: Rules) -> Answer | None:
    """None for a key that may write, else the 403 that a read-only key gets."""
    return None if key in rules.keys else error(403, "Access is denied: the API key has no Write permission")


def decode(body: bytes) -> dict[str, Any] | Answer:
    """The JSON object in ``body``, strictly read (NaN, lone surrogates and trailing bytes are refused), or the 400."""
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as refused:
        return error(400, "Malformed JSON request", [f"body: {refused}"])
    return value if isinstance(value, dict) else error(400, "Malformed JSON request", ["body: must be an object"])


def judge_event(event: dict[str, Any], rules: Rules) -> Answer | None:
    """None for an event that is accepted, else the 400 that names every wrong field."""
    wrong = [f"{name}: must not be empty" for name in _REQUIRED if name not in event]
    for name, value in event.items():
        rule = _FIELDS.get(name)
        problem = rule(value) if rule is not None else "is not a field of a custom event"
        if problem is not None:
            wrong.append(f"{name}: {problem}")
    if not wrong:
        wrong = judge_property_keys([event["propertyKey"]], rules, "propertyKey")
    return error(400, "Validation error", wrong) if wrong else None


def judge_property_keys(keys: list[str], rules: Rules, field: str) -> list[str]:
    """What is wrong with these product keys."""
    known = rules.property_keys
    return [
        f"{field}: {key} is not a product of this subscription"
        for key in keys
        if (key not in known if known else not key.startswith("AP-"))
    ]


def text(value: Any) -> str | None:
    """What is wrong with ``value`` as a text, or None; so for all rules of fields here."""
    return None if isinstance(value, str) else "must be a string"


def filled_text(value: Any) -> str | None:
    """A text that is not empty."""
    return text(value) or (None if value else "must not be empty")


def int64(value: Any) -> str | None:
    """An integer of 64 bits, such as a date in epoch milliseconds."""
    is_int = isinstance(value, int) and not isinstance(value, bool)
    return None if is_int and value in _INT64 else "must be an integer of 64 bits"


def one_of(*allowed: str) -> Callable[[Any], str | None]:
    """One of an enum's texts."""
    return lambda value: None if value in allowed and isinstance(value, str) else f"must be one of {', '.join(allowed)}"


def properties(value: Any) -> str | None:
    """Custom properties: names and number within PX's limits, each value a text, a number or a boolean."""
    if not isinstance(value, dict):
        return "must be an object"
    if len(value) > MAX_ATTRIBUTES:
        return f"has {len(value)} properties, the limit is {MAX_ATTRIBUTES}"
    for name, held in value.items():
        if len(name) > MAX_KEY_CHARS:
            return f"has a name of {len(name)} characters, the limit is {MAX_KEY_CHARS}"
        if not isinstance(held, str | int | float | bool):
            return f"{name} must be a string, a number or a boolean"
    return None


def _event_name(value: Any) -> str | None:
    wrong = filled_text(value)
    if wrong is None and len(value) > MAX_NAME_CHARS:
        return f"has {len(value)} characters, the limit is {MAX_NAME_CHARS}"
    return wrong


def _text_or_number(value: Any) -> str | None:
    # RudderStack's own transformer sends sessionId as a number, so PX takes one (facts 1.2).
    return None if isinstance(value, str | int | float) and not isinstance(value, bool) else "must be a string"


_REQUIRED = ("eventName", "identifyId", "propertyKey", "userType")
_FIELDS: dict[str, Callable[[Any], str | None]] = {
    "eventName": _event_name,
    "identifyId": filled_text,
    "propertyKey": filled_text,
    "userType": one_of(*USER_TYPES),
    "date": int64,
    "sessionId": _text_or_number,
    "accountId": text,
    "attributes": properties,
    "globalContext": properties,
    "url": text,
    "referrer": text,
    "remoteHost": text,
    "eventId": text,
    "eventType": text,
}
