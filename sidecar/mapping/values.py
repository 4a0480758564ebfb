"""Single values made fit for PX: strict JSON texts, numbers within 64 bits, dates in epoch milliseconds.

Rules
-----
* What comes out can be encoded as strict JSON by any encoder: no NaN, no infinity, no lone surrogate.
* Nothing raises for any JSON value; ``None`` means "no value".
* Nothing depends on the order of keys in the input.
"""

import json
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec

__all__ = ["as_text", "clean_text", "is_absurd_ms", "json_text", "to_epoch_ms", "within_64_bits"]

_encode_sorted = msgspec.json.Encoder(order="sorted").encode

MIN_INT: Final = -(2**63)
MAX_INT: Final = 2**63 - 1
_MAX_BITS: Final = 1_024  # a double ends there; Python will not even write integers of more than 4,300 digits


def clean_text(text: str) -> str:
    """The text with lone surrogates as U+FFFD: they cannot be written as UTF-8."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        # A high and a low surrogate side by side are one character; UTF-16 knows.
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def within_64_bits(number: int) -> bool:
    """Whether a signed 64-bit reader such as PX's can hold the number."""
    return MIN_INT <= number <= MAX_INT


def as_text(value: Any) -> str | None:
    """An id or name as text: a text that is not blank, or a number written out; else None.

    A float without a fraction is written like an integer (``12345.0`` is ``"12345"``), since JavaScript and Lua know
    no other number.
    """
    kind = type(value)
    if kind is str:
        return clean_text(value) if value and not value.isspace() else None
    if kind is int:
        return str(value) if value.bit_length() <= _MAX_BITS else None
    if kind is float and value - value == 0:  # neither NaN nor infinite
        return str(int(value)) if value.is_integer() and abs(value) < 1e16 else repr(value)
    return None


def json_text(value: Any) -> str:
    """Compact JSON text with sorted keys: what a nested value becomes (facts: ``px_and_sdks.md`` 1.2)."""
    try:
        return _encode_sorted(value).decode()
    except (UnicodeEncodeError, ValueError, TypeError):
        return json.dumps(_clean(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _clean(value: Any) -> Any:
    """A copy that every JSON encoder accepts."""
    kind = type(value)
    if kind is dict:
        # Of two keys that come out the same, the first by its original spelling stays.
        return {clean_text(key): _clean(value[key]) for key in sorted(value, reverse=True)}
    if kind is list:
        return [_clean(one) for one in value]
    if kind is str:
        return clean_text(value)
    if kind is float and value - value != 0:
        return None
    if kind is int and value.bit_length() > _MAX_BITS:
        return None
    return value


# --- Dates ---------------------------------------------------------------------------------------------------------

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MS: Final = timedelta(milliseconds=1)
_DAY_MS: Final = 86_400_000
_OLDEST_MS: Final = 946_684_800_000  # 2000-01-01: older ones are zero values (Go's year 1, epoch 0), not history


def to_epoch_ms(value: Any) -> int | None:
    """Epoch milliseconds of any timestamp an SDK sends (facts: ``px_and_sdks.md`` 3.3); None for an unreadable one.

    Text is ISO 8601: with ``T`` or a blank, any number of fractional digits (beyond microseconds they are cut), an
    offset, ``Z`` or nothing (then it is UTC), a date alone. A number, also as text, is epoch seconds below 10¹¹,
    milliseconds below 10¹⁴, microseconds below 10¹⁷, else nanoseconds.
    """
    if type(value) is str:
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            return _odd_text_ms(value)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return (moment - _EPOCH) // _MS
    if type(value) is int or (type(value) is float and abs(value) < 1e300):
        return _number_ms(value)
    return None


def _odd_text_ms(text: str) -> int | None:
    """A number as text, or ISO 8601 in lower case or with blanks around it."""
    bare = text.strip().upper()
    if not bare.isascii() or len(bare) > 40:
        return None
    if len(bare) >= 9 and bare.removeprefix("-").replace(".", "", 1).isdigit():
        return _number_ms(float(bare) if "." in bare else int(bare))
    return to_epoch_ms(bare) if bare != text else None


def _number_ms(number: float) -> int:
    size = abs(number)
    if size < 1e11:
        return int(number * 1000)
    if size < 1e14:
        return int(number)
    return int(number // 1000) if size < 1e17 else int(number // 1_000_000)


def is_absurd_ms(date_ms: int, received_ms: int) -> bool:
    """Whether a readable date cannot be meant: before the year 2000, or more than a day after it was received."""
    return date_ms < _OLDEST_MS or date_ms > received_ms + _DAY_MS
