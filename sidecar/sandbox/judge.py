"""PX's judgment of a key and of an event. Pure, and written from PX's contract alone.

The contract is PX's Swagger file and support articles (sidecar/px/README.md#the-custom-event). Where it leaves a
question open, the stricter answer is chosen, so that PX can be expected to accept what this judge accepts: a field that
the contract does not name, a null, and a nested attribute that is not text are refused
(sidecar/sandbox/README.md#contract).

The functions named ``check_…`` are the rules of single fields: each returns the problem with a value, or None.
"""

from collections.abc import Callable
from typing import Any

import msgspec

__all__ = ["JudgeAnswer", "JudgeRules", "decode", "judge_event", "judge_key", "judge_property_keys", "px_error"]

MAX_ATTRIBUTES = 50
MAX_NAME_CHARS = 2_000
MAX_KEY_CHARS = 1_024
USER_TYPES = ("LEAD", "USER", "VISITOR", "EMPTY_USER_TYPE")

_INT64 = range(-(2**63), 2**63)
_STATUS_NAMES = {
    400: "BAD_REQUEST", 401: "UNAUTHORIZED", 403: "FORBIDDEN", 404: "NOT_FOUND", 405: "METHOD_NOT_ALLOWED",
    429: "TOO_MANY_REQUESTS", 500: "INTERNAL_SERVER_ERROR", 503: "SERVICE_UNAVAILABLE",
}  # fmt: skip


class JudgeAnswer(msgspec.Struct, frozen=True):
    """An answer as PX would give it."""

    status: int
    body: bytes = b""
    content_type: str = "application/json"


class JudgeRules(msgspec.Struct, frozen=True, kw_only=True):
    """The keys and products of this PX subscription."""

    keys: frozenset[str]
    """REST API keys with read and write permission."""
    read_only_keys: frozenset[str] = frozenset()
    property_keys: frozenset[str] = frozenset()
    """Product keys; if empty, every key that begins with ``AP-`` is accepted."""


def px_error(status: int, message: str, problems: list[str] | None = None) -> JudgeAnswer:
    """Return PX's error envelope; ``problems`` become the messages of ``subErrors``."""
    envelope = {
        "status": _STATUS_NAMES.get(status, str(status)),
        "message": message,
        "debugMessage": None,
        "subErrors": [{"message": problem} for problem in problems] if problems else None,
    }
    return JudgeAnswer(status, msgspec.json.encode({"externalapierror": envelope}))


def judge_key(key: str | None, rules: JudgeRules) -> JudgeAnswer | None:
    """Return None for a known key, else the 401."""
    if key is not None and (key in rules.keys or key in rules.read_only_keys):
        return None
    return px_error(401, "Authentication failed in loginAwareAuthentication")


def judge_permission(key: str | None, rules: JudgeRules) -> JudgeAnswer | None:
    """Return None for a key that may write, else the 403 for a read-only key."""
    return None if key in rules.keys else px_error(403, "Access is denied: the API key has no Write permission")


def decode(body: bytes) -> dict[str, Any] | JudgeAnswer:
    """Return the JSON object in ``body``, or the 400. NaN, lone surrogates and trailing bytes are refused."""
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as refused:
        return px_error(400, "Malformed JSON request", [f"body: {refused}"])
    return value if isinstance(value, dict) else px_error(400, "Malformed JSON request", ["body: must be an object"])


def judge_event(event: dict[str, Any], rules: JudgeRules) -> JudgeAnswer | None:
    """Return None for an acceptable event, else the 400 that names every wrong field."""
    problems = [f"{name}: must not be empty" for name in _REQUIRED if name not in event]
    for name, value in event.items():
        rule = _FIELDS.get(name)
        problem = rule(value) if rule is not None else "is not a field of a custom event"
        if problem is not None:
            problems.append(f"{name}: {problem}")
    if not problems:
        problems = judge_property_keys([event["propertyKey"]], rules, "propertyKey")
    return px_error(400, "Validation error", problems) if problems else None


def judge_property_keys(keys: list[str], rules: JudgeRules, field: str) -> list[str]:
    """Return one problem per product key that this subscription does not have."""
    known = rules.property_keys
    return [
        f"{field}: {key} is not a product of this subscription"
        for key in keys
        if (key not in known if known else not key.startswith("AP-"))
    ]


def check_text(value: Any) -> str | None:
    """Accept any text."""
    return None if isinstance(value, str) else "must be a string"


def check_filled_text(value: Any) -> str | None:
    """Accept a text that is not empty."""
    return check_text(value) or (None if value else "must not be empty")


def check_int64(value: Any) -> str | None:
    """Accept an integer of 64 bits, such as a date in epoch milliseconds. A boolean is refused."""
    is_int = isinstance(value, int) and not isinstance(value, bool)
    return None if is_int and value in _INT64 else "must be an integer of 64 bits"


def check_one_of(*allowed: str) -> Callable[[Any], str | None]:
    """Return the rule that accepts one of an enum's texts."""
    return lambda value: None if value in allowed and isinstance(value, str) else f"must be one of {', '.join(allowed)}"


def check_properties(value: Any) -> str | None:
    """Accept custom properties within PX's limits, each value a text, a number or a boolean."""
    if not isinstance(value, dict):
        return "must be an object"
    if len(value) > MAX_ATTRIBUTES:
        return f"has {len(value)} properties, the limit is {MAX_ATTRIBUTES}"
    for name, property_value in value.items():
        if len(name) > MAX_KEY_CHARS:
            return f"has a name of {len(name)} characters, the limit is {MAX_KEY_CHARS}"
        if not isinstance(property_value, str | int | float | bool):
            return f"{name} must be a string, a number or a boolean"
    return None


def _check_event_name(value: Any) -> str | None:
    problem = check_filled_text(value)
    if problem is None and len(value) > MAX_NAME_CHARS:
        return f"has {len(value)} characters, the limit is {MAX_NAME_CHARS}"
    return problem


def _check_text_or_number(value: Any) -> str | None:
    # RudderStack's transformer sends sessionId as a number, so PX is assumed to accept one.
    return None if isinstance(value, str | int | float) and not isinstance(value, bool) else "must be a string"


_REQUIRED = ("eventName", "identifyId", "propertyKey", "userType")
_FIELDS: dict[str, Callable[[Any], str | None]] = {
    "eventName": _check_event_name,
    "identifyId": check_filled_text,
    "propertyKey": check_filled_text,
    "userType": check_one_of(*USER_TYPES),
    "date": check_int64,
    "sessionId": _check_text_or_number,
    "accountId": check_text,
    "attributes": check_properties,
    "globalContext": check_properties,
    "url": check_text,
    "referrer": check_text,
    "remoteHost": check_text,
    "eventId": check_text,
    "eventType": check_text,
}
