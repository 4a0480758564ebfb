"""The event: decode request bodies, judge each event, and encode it in the strict form that is stored.

Rules
-----
* The encoded form is strict JSON: no bare ``NaN`` or ``Infinity``, no lone surrogate, no fraction beyond a double (an
  integer keeps up to 4,299 digits), nothing nested deeper than 68 levels. The outbox, the mapping, every view and PX
  rely on it.
* One malformed event never fails its batch. What can be repaired is repaired: NaN and infinities become null; lone
  surrogates, NUL and bytes that are not UTF-8 become U+FFFD, which the mapping reports. An event that cannot be
  repaired is judged bad; the events beside it are not affected.
* Judging checks shape only. Meaning belongs to the mapping: an event without any id is not bad.

Theory
------
Nearly all bodies are decoded by msgspec in one call (about 1.6 µs per event). SDKs send some that it refuses
(sidecar/receive/README.md#wire-details): Python's ``json`` writes bare NaN, Python and Node escape lone surrogates, and
any client can nest a thousand brackets. Such a body is decoded a second time by the tolerant standard library. If its
recursion limit is reached as well, brackets beyond the allowed depth are cut first. From there on every event takes the
same path, so the common case pays nothing for the rare one.

An event is encoded once. That one pass also detects surrogates, and size and depth are measured on its output. Depth
needs a traversal only if the text has more brackets than the allowed depth could use up.
"""

import json
import os
import re
from collections.abc import Callable, Collection, Mapping
from math import isfinite
from typing import Any, Final

import msgspec

__all__ = [
    "MAX_DEPTH",
    "SHARED_KEYS",
    "TYPES",
    "BadJson",
    "JudgedEvent",
    "SentBytes",
    "decode",
    "decode_or_empty",
    "decode_stored",
    "encode",
    "encode_repaired",
    "given_message_id",
    "has_name",
    "judge",
    "kind_and_name",
    "merge_batch",
    "name_of",
    "shape_error",
    "shared_error",
    "shared_of",
    "too_large_error",
]

TYPES: Final = frozenset({"track", "identify", "page", "screen", "group", "alias"})
MAX_DEPTH: Final = 64
_ID_KEYS: Final = ("userId", "anonymousId", "groupId")
_ID_TYPES: Final = frozenset({str, int, float, type(None)})
# A body may wrap its events in an object and a list. The margin keeps an event's excess depth visible to `judge`: cut at
# MAX_DEPTH exactly, an event that is too deep would look valid and be delivered without its innermost values.
_CUT_DEPTH: Final = MAX_DEPTH + 4
# Of a bad event that is stored shortened: how long its message id may be, and how many of the values left out are named.
_KEPT_ID_CHARACTERS: Final = 200
_NAMED_KEYS: Final = 10
# NUL in encoded JSON. Databases refuse it. Behind a backslash of the text itself it is not NUL: repaired without need.
_NUL: Final = b"\\u0000"

# What a batch adds to each of its events.
SHARED_KEYS: Final = ("context", "integrations")

# The bytes of a text as the app sent it, or a function that measures them; None if they are not known.
SentBytes = int | Callable[[], int] | None

_decode_strict = msgspec.json.Decoder().decode
encode = msgspec.json.Encoder().encode


class BadJson(ValueError):
    """The body is not JSON, even for the tolerant decoder; the message gives the reason and the position."""


class JudgedEvent(msgspec.Struct, frozen=True, gc=False):
    """An event in the form in which it is stored.

    ``event`` is the decoded object (None if the value is not an object), ``body`` its strict JSON text, ``bad`` the
    reason in one clause why it cannot be delivered, or None.
    """

    event: dict[str, Any] | None
    message_id: str
    body: bytes
    bad: str | None


def decode(data: bytes) -> Any:
    """Decode a request body: strictly if possible, else tolerantly. Raises BadJson."""
    try:
        return _decode_strict(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _decode_tolerant(data)


def decode_stored(body: bytes) -> dict[str, Any]:
    """Decode a body that ``judge`` encoded. Raises msgspec.DecodeError if it was damaged since.

    A body that is not an object (a bad event) is returned as ``{"value": …}``.
    """
    try:
        event = _decode_strict(body)
    except (UnicodeDecodeError, RecursionError) as error:  # msgspec does not wrap these
        raise msgspec.DecodeError(str(error)) from None
    return event if isinstance(event, dict) else {"value": event}


def decode_or_empty(body: bytes) -> dict[str, Any]:
    """Decode a stored body; return an empty object if it is damaged.

    For listings of many events: one damaged row must not fail them. Its delivery outcome reports the damage.
    """
    try:
        return decode_stored(body)
    except msgspec.DecodeError:
        return {}


def name_of(event: dict[str, Any]) -> str:
    """Return the display name: ``event`` of a track call, else the type; empty if there is neither."""
    name = event.get("event") if event.get("type", "track") == "track" else event.get("type")
    return name if isinstance(name, str) else ""


def has_name(event: dict[str, Any], name: str) -> bool:
    """Return whether a filter by ``name`` selects the event: by its display name, or the name of its page or screen."""
    if name_of(event) == name:
        return True
    return event.get("type") in ("page", "screen") and event.get("name") == name


def kind_and_name(kind: Any, event: Any, name: Any) -> tuple[str, str]:
    """The type of a call and its name as sent: the ``event`` of a ``track``, the ``name`` of a ``page`` or ``screen``."""
    sent = event if kind == "track" else name if kind in ("page", "screen") else ""
    return (kind if isinstance(kind, str) else "", sent if isinstance(sent, str) else "")


def judge(
    event: Any,
    max_event_bytes: int,
    kind: str | None = None,
    shared: Mapping[str, Any] | None = None,
    reject: Collection[str] = (),
    sent_bytes: SentBytes = None,
) -> JudgedEvent:
    """Check one decoded event and encode it strictly, without its write key and with a message id.

    ``kind`` is the type given by the route (``/v1/track``); None if the event carries its own. ``shared`` is what its
    batch adds to it (``shared_of``). A missing, blank or unusable ``messageId``, or one in ``reject`` (``identity.reject``),
    is replaced by a new UUID: events that share such an id would be taken for repeats of the first one, and lost. The event
    is changed in place.

    ``max_event_bytes`` limits the event's own text: neither what the batch adds nor a new id counts, nor what a repair adds
    to the text that the app sent, whose size is ``sent_bytes`` (called only if it decides; None if it is not known). With all
    that, an event is bad above twice the limit. A bad event is kept whole up to there; a longer one keeps only its short
    values, so no stored text is longer than twice the limit. Of a list or text that holds an object only the size is stored,
    as ``{"shortened": {"list": 57}}``.
    """
    if not isinstance(event, dict):
        return _judge_other(event, max_event_bytes)
    event.pop("writeKey", None)  # a credential must not reach the file, views or exports
    message_id = _message_id(event, reject)
    adds = bool(shared) or kind is not None or event.get("messageId") != message_id
    own = event.copy() if adds else event
    if shared:
        merge_batch(shared, event)
    if kind is not None:
        event["type"] = kind
    event["messageId"] = message_id
    try:
        body = encode(event)
        # A single byte is searched for much faster than six.
        needs_repair = b"\\" in body and _NUL in body
    except (UnicodeEncodeError, RecursionError):
        needs_repair = True
    if needs_repair:
        # Decode again, so that `event`, the message id and the checks below see exactly what is stored.
        body = encode_repaired(event)
        event = _decode_strict(body)
        event["messageId"] = message_id = _message_id(event, reject)
    # Brackets inside strings count as well: this test may only err towards the exact check after it.
    if body.count(b"{") + body.count(b"[") > MAX_DEPTH and _exceeds_max_depth(event):
        bad: str | None = f"it is nested deeper than {MAX_DEPTH} levels"
        body = encode_repaired(event)
    else:
        bad = shape_error(event)
    # Measured a second time only if the text with the additions is too long, which is rare.
    is_long = bad is None and len(body) > max_event_bytes
    if is_long and (own_bytes := _shorter(_encoded_bytes(own), sent_bytes)) > max_event_bytes:
        bad = too_large_error(own_bytes, max_event_bytes)
    elif is_long and len(body) > 2 * max_event_bytes:  # beside a context that just fits, or repaired
        bad = f"it has {len(body):,} bytes as stored, more than twice the {max_event_bytes:,} allowed (outbox.max_event_bytes)"
    if bad is not None and len(body) > 2 * max_event_bytes:
        body = _shorten(event, max_event_bytes)
        message_id = message_id if len(message_id) <= _KEPT_ID_CHARACTERS else _new_message_id()
    return JudgedEvent(event, message_id, body, bad)


def _judge_other(value: Any, max_event_bytes: int) -> JudgedEvent:
    """Judge a value that is not an object."""
    body = encode_repaired(value)
    # A batch in a batch, or an event encoded twice, has a write key, and users that `forget` cannot find.
    if b"{" in body or len(body) > 2 * max_event_bytes:
        body = encode({"shortened": {"text" if isinstance(value, str) else "list": len(body)}})
    return JudgedEvent(None, _new_message_id(), body, "the event is not a JSON object")


def too_large_error(own_bytes: int, max_event_bytes: int) -> str:
    """Return the reason why an event of ``own_bytes`` is bad, in one clause."""
    return f"it has {own_bytes:,} bytes, more than the {max_event_bytes:,} allowed (outbox.max_event_bytes)"


def shared_of(batch: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what a batch adds to each of its events: its ``context`` and ``integrations``, where they are objects."""
    return {key: value for key in SHARED_KEYS if isinstance(value := batch.get(key), dict) and value}


def shared_error(shared: Mapping[str, Any], max_event_bytes: int, sent_bytes: SentBytes = None) -> str | None:
    """Return why a batch with these additions is refused as a whole, in one sentence; None if it is not.

    ``sent_bytes`` is their size as the app sent them, as for ``judge``.
    """
    size_bytes = _encoded_bytes(shared) if shared else 0
    if size_bytes <= max_event_bytes or (size_bytes := _shorter(size_bytes, sent_bytes)) <= max_event_bytes:
        return None
    return (
        f"The batch's own context and integrations have {size_bytes:,} bytes, more than the {max_event_bytes:,} allowed "
        "(outbox.max_event_bytes); send less of it."
    )


def merge_batch(batch: Mapping[str, Any], event: Any) -> None:
    """Merge the ``context`` and ``integrations`` of a batch into one of its events; the event's own entries win, null is not one.

    Go and Java SDKs send the library, and possibly more, only at the level of the batch
    (sidecar/receive/README.md#sdks). A ``context`` that is not an object is left as it is, but for an empty list: that is how
    PHP writes an empty object. The event is changed in place; the objects of the batch are not.
    """
    if not isinstance(event, dict):
        return
    for key in ("context", "integrations"):
        shared = batch.get(key)
        if isinstance(shared, dict) and shared:
            own = event.get(key)
            if own is None or own == []:
                event[key] = shared
            elif isinstance(own, dict):
                event[key] = merged = {**shared, **own}  # a new object: the other events still need the batch's own
                if None in own.values():
                    merged |= {name: value for name, value in shared.items() if own.get(name) is None}


_FETCHED_IDS: Final = 64
_RANDOM: list[str] = []
os.register_at_fork(after_in_child=_RANDOM.clear)  # two processes must not use the same numbers


def _new_message_id() -> str:
    """Return a random UUID (RFC 9562 5.4) as text, in a fraction of the time of ``str(uuid.uuid4())``.

    A client may send thousands of events without an id, or bad ones, in one request. The random numbers are fetched for many
    ids at once: each call of the kernel hands the interpreter over to the store's thread, which gives it back when it is done.
    """
    try:
        digits = _RANDOM.pop()
    except IndexError:
        random = os.urandom(16 * _FETCHED_IDS).hex()
        _RANDOM.extend(random[at : at + 32] for at in range(0, len(random), 32))
        digits = _RANDOM.pop()
    variant = "89ab"[int(digits[16], 16) & 3]
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"


def _message_id(event: dict[str, Any], reject: Collection[str]) -> str:
    """Return the event's message id; a new one if it has none that can be used."""
    given = event.get("messageId")
    if type(given) is not str or given.isspace():
        given = given_message_id(event)
    return given if given and given not in reject else _new_message_id()


def given_message_id(event: Mapping[str, Any]) -> str:
    """Return the message id that an event came with, a number as text; empty if it has none that can be used."""
    given = event.get("messageId")
    if isinstance(given, str):
        return given if given and not given.isspace() else ""
    usable = (isinstance(given, int) and not isinstance(given, bool)) or (
        isinstance(given, float) and given.is_integer() and abs(given) < 2**53
    )
    return str(int(given)) if usable and given is not None else ""


def shape_error(event: dict[str, Any]) -> str | None:
    """Return the first reason why the event cannot be delivered, or None."""
    kind = event.get("type")
    if type(kind) is not str or kind not in TYPES:
        return f"its type is {_describe(kind)}, not one of {', '.join(sorted(TYPES))}"
    if kind == "track" and not (type(event.get("event")) is str and event["event"].strip()):
        return "a track call needs a text `event`, the name of the event"
    for key in _ID_KEYS:
        if key in event and type(event[key]) not in _ID_TYPES:
            return f"its {key} is {_describe(event[key])}, neither text nor number"
    return None


def _shorter(encoded_bytes: int, sent_bytes: SentBytes) -> int:
    """Return the size of a text as the app sent it or as it is stored, whichever is shorter.

    Blanks and escapes make the text of the app longer, U+FFFD in place of single bytes makes the stored one longer. Neither
    counts against the app: SDKs measure what they send.
    """
    if sent_bytes is None:
        return encoded_bytes
    return min(encoded_bytes, sent_bytes if isinstance(sent_bytes, int) else sent_bytes())


def _encoded_bytes(value: Any) -> int:
    """Return the size of a decoded value in the form in which it is stored."""
    try:
        return len(encode(value))
    except (UnicodeEncodeError, RecursionError):
        return len(encode_repaired(value))


def _shorten(value: dict[str, Any], max_bytes: int) -> bytes:
    """Return the text that is stored in place of a bad event that is too long: at most about ``max_bytes``.

    Short values are kept under their names, so that it can be found and recognized; ``shortened`` lists the
    bytes of the others. It has no ``type``, so that a retry cannot deliver an incomplete event.
    """
    text = encode_repaired(value)
    if len(text) <= 2 * max_bytes:
        return text
    sizes = {key: _encoded_bytes({key: inner}) for key, inner in value.items()}
    kept: dict[str, Any] = {}
    left_bytes = max_bytes // 2
    for key in sorted(sizes, key=sizes.__getitem__):
        left_bytes -= sizes[key]
        if left_bytes < 0:
            break
        kept["call" if key == "type" else key] = value[key]
    missing = [key for key in sizes if key not in kept and key != "type"]
    named = {key[:_KEPT_ID_CHARACTERS]: sizes[key] for key in missing[:_NAMED_KEYS]}
    return encode_repaired(kept | {"shortened": named | {"all": len(text)}})


def _describe(value: Any) -> str:
    """Describe a value for an error message in at most about 40 characters."""
    if value is None:
        return "missing"
    if isinstance(value, str):
        return f"'{value[:40]}'"
    if isinstance(value, (bool, int, float)):
        return str(value)[:40]
    return "an object" if isinstance(value, dict) else "a list"


def _exceeds_max_depth(value: Any) -> bool:
    """Return True if objects and lists are nested deeper than ``MAX_DEPTH``.

    Breadth first, level by level: recursion could exceed Python's own limit on the input that this guards against.
    """
    level = [value]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for container in level:
            if isinstance(container, dict):
                below.extend(container.values())
            elif isinstance(container, list):
                below.extend(container)
        if not below:
            return False
        level = below
    return any(isinstance(inner, (dict, list)) for inner in level)


def _decode_tolerant(data: bytes) -> Any:
    """Decode with the standard library, which accepts NaN, lone surrogates and control characters. Raises BadJson."""
    text = data.decode("utf-8", errors="replace").lstrip("\ufeff")
    try:
        try:
            return _load(text)
        except RecursionError:
            return _load(_cut_depth(text))
    except json.JSONDecodeError as error:
        raise BadJson(f"{error.msg} at character {error.pos}") from None


def _load(text: str) -> Any:
    return json.loads(
        text, parse_constant=lambda _name: None, parse_int=_parse_int, parse_float=_parse_float, strict=False
    )


def _parse_float(digits: str) -> float | None:
    """Return the number, or None beyond the range of a double, which is how the event is stored."""
    number = float(digits)
    return number if isfinite(number) else None


def _parse_int(digits: str) -> int | None:
    """Return the integer, or None beyond the range of a double.

    Python refuses to convert more than 4,300 digits; an exception here would fail the whole body for one number.
    """
    return int(digits) if len(digits) <= 308 else None


# Possessive quantifiers keep no record of each character to come back to.
_STRINGS_AND_BRACKETS = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[{]+|[\]}]+', re.DOTALL)


def _cut_depth(text: str) -> str:
    """Replace every bracket pair deeper than ``_CUT_DEPTH`` by null, so that the text can be decoded.

    One regular expression finds strings and runs of brackets, so the cost is linear whatever the body holds: strings are
    consumed as a whole (their brackets do not count), and a run of a million brackets is one match.
    """
    kept: list[str] = []
    depth = start = 0
    for match in _STRINGS_AND_BRACKETS.finditer(text):
        first, last = match.span()
        mark = text[first]
        if mark in "[{":
            # This run crosses the limit downwards: keep the text up to the last bracket that is still allowed.
            if depth <= _CUT_DEPTH < depth + last - first:
                kept.append(text[start : first + _CUT_DEPTH - depth])
            depth += last - first
        elif mark in "]}":
            # This run crosses it upwards: what was skipped becomes null, and copying resumes after it.
            if depth - last + first <= _CUT_DEPTH < depth:
                kept.append("null")
                start = first + depth - _CUT_DEPTH
            depth -= last - first
    kept.append(text[start:] if depth <= _CUT_DEPTH else "")
    return "".join(kept)


def encode_repaired(value: Any) -> bytes:
    """Encode a value with lone surrogates and NUL replaced by U+FFFD, and anything beyond the allowed depth by null."""
    return encode(_repair(value))


def _repair(value: Any) -> Any:
    """Return a copy that every JSON encoder accepts."""
    return _repair_at(value, 0)


def _repair_at(value: Any, depth: int) -> Any:
    if isinstance(value, str):
        # UTF-16 joins a high and a low surrogate that stand side by side into the character they encode.
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").replace("\0", "\ufffd")
    if depth > _CUT_DEPTH:
        return None
    if isinstance(value, dict):
        return {_repair_at(key, depth): _repair_at(inner, depth + 1) for key, inner in value.items()}
    if isinstance(value, list):
        return [_repair_at(inner, depth + 1) for inner in value]
    return value
