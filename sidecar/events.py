"""The event: decoding what apps send, judging it, and the strict form in which it is kept.

Rules
-----
* What leaves this room is strict JSON: no bare ``NaN`` or ``Infinity``, no lone surrogate, no fraction beyond a double
  (an integer keeps up to 4,299 digits), nothing nested deeper than 68. The outbox, the mapping, every view and PX can
  rely on it.
* One odd event never costs its batch. What can be mended is mended: NaN and infinities become null, lone surrogates
  become U+FFFD. What cannot is judged bad, alone.
* Judging is about shape only. What an event means is the mapping's business: an event without any id is not bad.

Theory
------
Nearly all bodies are decoded by msgspec in one go (about 1.6 µs an event). SDKs send some that it refuses (facts:
``px_and_sdks.md`` 3.3): Python's ``json`` writes bare NaN, Python and Node escape lone surrogates, anyone can nest a
thousand brackets. Such a body is decoded again the tolerant way, by the standard library; where even that finds it too
deep, after brackets beyond the allowed depth are cut. Then every event of it is sealed like any other, and only the ones
with surrogates are walked.

Sealing an event is encoding it once: the encoder is also what finds surrogates, and the encoded text is what size and
depth are measured on. Depth costs a walk only for texts with more brackets than an allowed depth could need.
"""

import json
import re
import uuid
from typing import Any, Final

import msgspec

__all__ = [
    "MAX_DEPTH",
    "TYPES",
    "BadJson",
    "Sealed",
    "decode",
    "decode_stored",
    "encode",
    "encode_mended",
    "merge_batch",
    "readable",
    "seal",
]

TYPES: Final = frozenset({"track", "identify", "page", "screen", "group", "alias"})
MAX_DEPTH: Final = 64
_ID_KEYS: Final = ("userId", "anonymousId", "groupId")
_ID_TYPES: Final = frozenset({str, int, float, type(None)})
# A body may wrap its events in an object and a list; whatever is deeper than an event may be stays visible to `seal`.
_CUT_DEPTH: Final = MAX_DEPTH + 4

_decode_strict = msgspec.json.Decoder().decode
encode = msgspec.json.Encoder().encode


class BadJson(ValueError):
    """The body is not JSON, not even tolerantly read; the message says where it breaks."""


class Sealed(msgspec.Struct, frozen=True, gc=False):
    """An event ready to be stored.

    ``event`` is the decoded object (None if it is not an object), ``body`` its strict JSON text, ``bad`` one sentence
    that says why it cannot be delivered, or None.
    """

    event: dict[str, Any] | None
    message_id: str
    body: bytes
    bad: str | None


def decode(data: bytes) -> Any:
    """Decode a body, strictly if possible, else tolerantly. Raises BadJson."""
    try:
        return _decode_strict(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _decode_tolerant(data)


def decode_stored(body: bytes) -> dict[str, Any]:
    """Decode a body that ``seal`` made. Raises msgspec.DecodeError if it was damaged since."""
    try:
        event = _decode_strict(body)
    except (UnicodeDecodeError, RecursionError) as error:  # msgspec lets these through
        raise msgspec.DecodeError(str(error)) from None
    return event if isinstance(event, dict) else {"value": event}


def readable(body: bytes) -> dict[str, Any]:
    """The same for those who look at many events: nothing of one that was damaged, which its outcome will tell."""
    try:
        return decode_stored(body)
    except msgspec.DecodeError:
        return {}


def seal(event: Any, max_event_bytes: int, kind: str | None = None) -> Sealed:
    """Judge one decoded event and encode it strictly, without its write key and with a message id.

    ``kind`` is the type that the route gives (``/v1/track``); None where the event brings its own. A missing, empty or
    odd ``messageId`` is replaced by a fresh one. The event is changed in place.
    """
    if not isinstance(event, dict):
        return Sealed(None, str(uuid.uuid4()), encode_mended(event), "the event is not a JSON object")
    if kind is not None:
        event["type"] = kind
    event.pop("writeKey", None)
    message_id = _message_id(event)
    try:
        body = encode(event)
    except (UnicodeEncodeError, RecursionError):
        body = encode_mended(event)
        event = _decode_strict(body)
        message_id = _message_id(event)
    if body.count(b"{") + body.count(b"[") > MAX_DEPTH and _too_deep(event):
        return Sealed(event, message_id, encode_mended(event), f"it is nested deeper than {MAX_DEPTH} levels")
    return Sealed(event, message_id, body, _why_bad(event, body, max_event_bytes))


def merge_batch(batch: dict[str, Any], event: Any) -> None:
    """Give an event the ``context`` and ``integrations`` of its batch; the event's own entries win.

    Go and Java put the library, and possibly more, only there (facts: ``px_and_sdks.md`` 3.2).
    """
    if not isinstance(event, dict):
        return
    for key in ("context", "integrations"):
        shared = batch.get(key)
        if isinstance(shared, dict) and shared:
            own = event.get(key)
            if own is None:
                event[key] = shared
            elif isinstance(own, dict):
                event[key] = {**shared, **own}


def _message_id(event: dict[str, Any]) -> str:
    given = event.get("messageId")
    if isinstance(given, str) and given:
        return given
    usable = isinstance(given, int) and not isinstance(given, bool)
    event["messageId"] = message_id = str(given) if usable else str(uuid.uuid4())
    return message_id


def _why_bad(event: dict[str, Any], body: bytes, max_event_bytes: int) -> str | None:
    kind = event.get("type")
    if type(kind) is not str or kind not in TYPES:
        return f"its type is {_shown(kind)}, not one of {', '.join(sorted(TYPES))}"
    if kind == "track" and not (type(event.get("event")) is str and event["event"]):
        return "a track call needs a text `event`, the name of what happened"
    for key in _ID_KEYS:
        if type(event.get(key)) not in _ID_TYPES:
            return f"its {key} is {_shown(event[key])}, neither text nor number"
    if len(body) > max_event_bytes:
        return f"it has {len(body):,} bytes, more than the {max_event_bytes:,} allowed (outbox.max_event_bytes)"
    return None


def _shown(value: Any) -> str:
    """A value in an error sentence, short and without surprises."""
    if value is None:
        return "missing"
    if isinstance(value, str):
        return f"'{value[:40]}'"
    if isinstance(value, (bool, int, float)):
        return str(value)[:40]
    return "an object" if isinstance(value, dict) else "a list"


def _too_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                below.extend(one.values())
            elif isinstance(one, list):
                below.extend(one)
        if not below:
            return False
        level = below
    return any(isinstance(one, (dict, list)) for one in level)


def _decode_tolerant(data: bytes) -> Any:
    text = data.decode("utf-8", errors="replace").lstrip("\ufeff")
    try:
        try:
            return _load(text)
        except RecursionError:
            return _load(_cut_depth(text))
    except json.JSONDecodeError as error:
        raise BadJson(f"{error.msg} at character {error.pos}") from None


def _load(text: str) -> Any:
    return json.loads(text, parse_constant=lambda _name: None, parse_int=_parse_int, strict=False)


def _parse_int(digits: str) -> int | None:
    """An integer, or None where no double could hold it either (Python refuses to convert very long ones)."""
    return int(digits) if len(digits) <= 308 else None


_STRINGS_AND_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*"?|[\[{]+|[\]}]+', re.DOTALL)


def _cut_depth(text: str) -> str:
    """The text with every bracket pair deeper than ``_CUT_DEPTH`` replaced by null, so that it can be decoded."""
    kept: list[str] = []
    depth = start = 0
    for match in _STRINGS_AND_BRACKETS.finditer(text):
        first, last = match.span()
        mark = text[first]
        if mark in "[{":
            if depth <= _CUT_DEPTH < depth + last - first:
                kept.append(text[start : first + _CUT_DEPTH - depth])
            depth += last - first
        elif mark in "]}":
            if depth - last + first <= _CUT_DEPTH < depth:
                kept.append("null")
                start = first + depth - _CUT_DEPTH
            depth -= last - first
    kept.append(text[start:] if depth <= _CUT_DEPTH else "")
    return "".join(kept)


def encode_mended(value: Any) -> bytes:
    """The JSON text of a value with lone surrogates replaced, and without what is nested beyond any allowed depth."""
    return encode(_mend(value))


def _mend(value: Any) -> Any:
    """A copy without lone surrogates; what is nested beyond any allowed depth becomes null."""
    return _mend_at(value, 0)


def _mend_at(value: Any, depth: int) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if depth > _CUT_DEPTH:
        return None
    if isinstance(value, dict):
        return {_mend_at(key, depth): _mend_at(one, depth + 1) for key, one in value.items()}
    if isinstance(value, list):
        return [_mend_at(one, depth + 1) for one in value]
    return value
