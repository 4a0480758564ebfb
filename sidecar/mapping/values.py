"""Convert single values for PX: strict JSON texts, numbers within 64 bits.

Rules
-----
* Every result can be encoded as strict JSON by any encoder: no NaN, no infinity, no lone surrogate.
* No function raises for any JSON value; ``None`` means "no value".
* No result depends on the order of keys in the input.
"""

import json
from typing import Any, Final

import msgspec

__all__ = ["as_text", "clean_text", "json_text", "repeats_a_name", "within_64_bits"]

_encode_sorted = msgspec.json.Encoder(order="sorted").encode

MIN_INT: Final = -(2**63)
MAX_INT: Final = 2**63 - 1
# The range of a double. Beyond it no JSON reader keeps the value, and Python raises for more than 4,300 digits.
_MAX_BITS: Final = 1_024


def clean_text(text: str) -> str:
    """Replace lone surrogates, which cannot be encoded as UTF-8, and NUL, which databases refuse, by U+FFFD."""
    if "\0" in text:
        text = text.replace("\0", "\ufffd")
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        # UTF-16 joins a high and a low surrogate that stand side by side into the character they encode.
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def within_64_bits(number: int) -> bool:
    """Return True if a signed 64-bit reader such as PX's can hold the number."""
    return MIN_INT <= number <= MAX_INT


def as_text(value: Any) -> str | None:
    """Return an id or name as text; None unless it is a text that is not blank, or a finite number.

    A float without a fraction is written as an integer (``12345.0`` is ``"12345"``): JavaScript and Lua have no other
    number, and an id must not depend on the language of the app.
    """
    kind = type(value)
    if kind is str:
        # Nearly all begin with a visible character and hold no other: neither blank nor in need of a repair.
        text: str = value
        if text >= "!" and text.isprintable():
            return text
        return clean_text(text) if text and not text.isspace() else None
    if kind is int:
        return str(value) if value.bit_length() <= _MAX_BITS else None
    if kind is float and value - value == 0:  # neither NaN nor infinite
        # From 1e16 on not every integer is a double: written-out digits would suggest a precision that is not there.
        return str(int(value)) if value.is_integer() and abs(value) < 1e16 else repr(value)
    return None


def json_text(value: Any) -> str:
    """Return compact JSON text with sorted keys, the form of a nested value (sidecar/mapping/README.md#attributes)."""
    try:
        return _encode_sorted(value).decode()
    except (UnicodeEncodeError, ValueError, TypeError):
        return json.dumps(_clean(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def repeats_a_name(text: str) -> bool:
    """Return whether an object in a JSON text may have a name twice: a decoder keeps the last value and hides the others."""
    repeated = False

    def look(pairs: list[tuple[str, Any]]) -> None:
        nonlocal repeated
        repeated = repeated or len({name for name, _ in pairs}) < len(pairs)

    try:
        json.loads(text, object_pairs_hook=look, strict=False)
    except (ValueError, RecursionError):
        return True
    return repeated


def _clean(value: Any) -> Any:
    """Return a copy that every JSON encoder accepts."""
    kind = type(value)
    if kind is dict:
        # If two keys become equal, the first by its original spelling wins; reversed, since the last write stays.
        return {clean_text(key): _clean(value[key]) for key in sorted(value, reverse=True)}
    if kind is list:
        return [_clean(item) for item in value]
    if kind is str:
        return clean_text(value)
    if kind is float and value - value != 0:
        return None
    if kind is int and value.bit_length() > _MAX_BITS:
        return None
    return value
