"""Convert the timestamps of all languages to epoch milliseconds, and judge which of them can be true.

Rules
-----
* A form that has two readings (``06/07/2024``, the zone ``IST``) is unreadable: a date that is wrong without a trace is
  worse than the time of receipt with a report.
* A time without a zone is UTC, never the time zone of this host.
* The clock of this host may be wrong. Before ``CLOCK_SET_MS`` it says nothing, so it cannot make a timestamp absurd.

The forms are listed by language in ``tests/mapping/test_mapping_dates.py``.
"""

import re
from datetime import UTC, datetime, timedelta
from typing import Any, Final

__all__ = ["CLOCK_SET_MS", "is_absurd_people_ms", "is_implausible_ms", "to_epoch_ms"]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MS: Final = timedelta(milliseconds=1)
_DAY_MS: Final = 86_400_000
_OLDEST_MS: Final = 946_684_800_000  # 2000-01-01: earlier dates are zero values (Go's year 1, epoch 0), not history
# 2020-01-01, before px-sidecar existed: a host that receives events earlier has a clock that was never set.
CLOCK_SET_MS: Final = 1_577_836_800_000
_CENTURY_END_MS: Final = 4_102_444_800_000  # 2100-01-01
_FIFTY_YEARS_MS: Final = 50 * 365 * _DAY_MS

_MAX_TEXT: Final = 100  # characters; JavaScript's texts name the zone in words
_MAX_DIGITS: Final = 40
_DIGITS: Final = re.compile(r"[+-]?\d{9,}([.,]\d*)?", re.ASCII)
# Java: 2024-06-06T16:00:00Z[UTC], +02:00[UTC+02:00]; RFC 9557: +02:00[!Europe/Berlin][u-ca=gregory];
# Elixir: 2024-06-06 18:00:00+02:00 CEST Europe/Berlin
_REGION: Final = re.compile(r"(?:(?: ?\[[^\[\]]+\])+| [A-Za-z][\w+-]*(?:/[\w+-]+)+)$")
_UTC_REGION: Final = re.compile(r"(?i) ?\[?!?(?:etc/)?(?:utc|uct|gmt|zulu|z)\]?")
# An offset or the name of a zone behind a time of day.
_ZONED: Final = re.compile(r"(?i)[t ]\d.*(?:[+-]\d\d(?::?\d\d)*|z|(?<=[ \d])(?!(?:am|pm)$)[a-z]{2,5})$")
# A day of XML Schema: `datetime` reads the offset as a time of day behind a separator.
_DAY_AND_OFFSET: Final = re.compile(r"(\d{4}-\d\d-\d\d|\d{8})(Z|[+-](?:0\d|1[0-4]):?[0-5]\d|[+-]\d\d)", re.ASCII)
# `datetime` counts 75 minutes of an offset as an hour and a quarter.
_NO_OFFSET: Final = re.compile(r"[+-]\d\d:?[6-9]\d(?::?\d\d)?$|[+-]\d\d:?\d\d:?[6-9]\d$", re.ASCII)
_DOTNET: Final = re.compile(r"/Date\((-?\d{1,15})([+-]\d{4})?\)/")
# Go's Time.String(), Ruby's and Swift's: a space before the offset, then perhaps its name and a monotonic reading.
_SPACED_OFFSET: Final = re.compile(
    r"(\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d(?:[.,]\d+)?)?) ?"
    r"([+-]\d\d:?\d\d(?::\d\d)?|[A-Z]{1,4})(?: [A-Z]{2,5}| [+-]\d\d(?:\d\d)?)?(?: M=[+-][\d.]+)?"
)
# A number as JavaScript and others write large ones: Java 1.717689600123E12, Go 1.7176896e+09
_SCIENTIFIC: Final = re.compile(r"\d\.\d{1,18}E\+?(?:0?9|1\d)", re.ASCII | re.IGNORECASE)
# The hour of a half day: 2024-06-06 04:00:00 PM
_HALF_DAY: Final = re.compile(r"(\d{4}-\d\d-\d\d[T ])(0?[1-9]|1[0-2])(:\d\d(?::\d\d(?:[.,]\d+)?)?) ?([AP])M( ?.*)")
_MIDNIGHT: Final = re.compile(r"(\d{4}-\d\d-\d\d[T ])24(:00(?::00(?:[.,]0+)?)?(?![:.,\d]).*)")  # ISO 8601 ends a day so
# With slashes, without leading zeros (Japanese: 2024/6/6 9:00:00), or JavaScript's +002024.
_YEAR_FIRST: Final = re.compile(r"\+?0{0,2}(\d{4})([/-])(\d{1,2})\2(\d{1,2})(?:([T ])(\d{1,2})(?=:)|(?=[TZ ]|$))")
_LEAP_SECOND: Final = re.compile(r"(\d\d:?\d\d:?)60(?![:\d])")
_ZERO_AND_Z: Final = re.compile(r"[+-]00:?00Z$")  # Python: datetime.now(UTC).isoformat() + "Z"
_UTC_OFFSET: Final = re.compile(r" ?(?:UTC|GMT) ?([+-])(\d{1,2})(?::?(\d\d))?$")
# What Intl.DateTimeFormat and typesetters put in place of blanks and hyphens.
_LOOKALIKES: Final = str.maketrans({"\u00a0": " ", "\u202f": " ", "\u2009": " ", "\u2212": "-"})
_TIME: Final = r"(?P<hour>\d{1,2}):(?P<minute>\d\d)(?::(?P<second>\d\d)(?P<fraction>\.\d+)?)?(?: ?(?P<half>[AP])M)?"
# `UTC +00:00`, as Rails inspects times: the name and its offset.
_ZONE: Final = r"(?: ?(?P<zone>[A-Z]{1,5})?(?: ?(?P<offset>[+-]\d\d:?\d\d))?)?(?: \([^)]*\))?"
_NO_TIME: Final = "".join(
    f"(?P<{part}>)" for part in ("hour", "minute", "second", "fraction", "half", "zone", "offset")
)
_MONTH: Final = r"(?P<month>[A-Z]{3})[A-Z]*"
_IN_WORDS: Final = (
    # RFC 5322, RFC 9110, RFC 850, logs of web servers: Thu, 06 Jun 2024 16:00:00 GMT, 06/Jun/2024:16:00:00 +0000
    re.compile(
        rf"(?:[A-Z]+,? ?)?(?P<day>\d{{1,2}})[ /-]{_MONTH}[ /-](?P<year>\d{{4}}|\d\d)(?:[ :]|, | AT ){_TIME}{_ZONE}"
    ),
    # A day alone, as Intl.DateTimeFormat writes it in British English: 6 June 2024, Thursday 6 June 2024
    re.compile(rf"(?:[A-Z]+,? )?(?P<day>\d{{1,2}})[ -]{_MONTH}[ -](?P<year>\d{{4}}){_NO_TIME}"),
    # JavaScript: Thu Jun 06 2024 18:00:00 GMT+0200 (Central European Summer Time)
    re.compile(rf"(?:[A-Z]+,? )?{_MONTH} +(?P<day>\d{{1,2}}),? (?P<year>\d{{4}})(?:(?:,| AT)? +{_TIME}{_ZONE})?"),
    # asctime of C; date, Java and Ruby put a zone before the year: Thu Jun  6 16:00:00 UTC 2024
    re.compile(rf"[A-Z]+ {_MONTH} +(?P<day>\d{{1,2}}) {_TIME}{_ZONE} (?P<year>\d{{4}})"),
    # git: Thu Jun 6 18:00:00 2024 +0200
    re.compile(rf"[A-Z]+ {_MONTH} +(?P<day>\d{{1,2}}) {_TIME} (?P<year>\d{{4}}){_ZONE}"),
)
_MONTHS: Final = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
# The names that RFC 5322 section 4.3 defines, and those that no other zone of today shares. Others are ambiguous (IST,
# BST), or had another offset some years ago (MSK).
_ZONES: Final = {
    **dict.fromkeys(("UTC", "GMT", "UT", "Z"), 0),
    "EDT": -4,
    "EST": -5,
    "CDT": -5,
    "CST": -6,
    "MDT": -6,
    "MST": -7,
    "PDT": -7,
    "PST": -8,
    "WET": 0,
    "WEST": 1,
    "CET": 1,
    "CEST": 2,
    "EET": 2,
    "EEST": 3,
    "JST": 9,
    "AEST": 10,
    "AEDT": 11,
    "NZST": 12,
    "NZDT": 13,
    "HST": -10,
}


def to_epoch_ms(value: Any) -> int | None:
    """Convert any timestamp that an SDK or an app sends to epoch milliseconds; None if it is unreadable.

    A number is epoch seconds below 10¹¹, milliseconds below 10¹⁴, microseconds below 10¹⁷, else nanoseconds; so is a
    text of nine digits or more. Other text is ISO 8601 with any number of fractional digits (those beyond microseconds
    are cut), or a form of the tables above. The forms that SDKs send: sidecar/receive/README.md#wire-details.
    """
    kind = type(value)
    if kind is str:
        return _text_ms(value)
    if kind is int or (kind is float and abs(value) < 1e300):
        return _number_ms(value)
    return None


def _text_ms(text: str) -> int | None:
    # Digits first: `datetime` would read 1718-06-07 from the epoch seconds 171806077.
    if text[4:5].isdigit() and _DIGITS.fullmatch(bare := text.strip()):
        return _digits_ms(bare)
    try:
        return _iso_ms(text)
    except ValueError:
        return _unusual_text_ms(text)


def _iso_ms(text: str) -> int | None:
    """Convert ISO 8601 as ``datetime`` reads it. Raises ValueError; None for a form that has two readings."""
    # A time of day is longer than this, so that the usual timestamp does not pay for the rare form.
    if len(text) <= 16 and (match := _DAY_AND_OFFSET.fullmatch(text)):
        if match[2] != "Z" and (len(match[1]) == 8 or len(match[2]) == 3):
            return None  # 20240606-0500, 2024-06-06-05: an offset, or five o'clock
        text = f"{match[1]}T00:00{match[2]}"
    moment = datetime.fromisoformat(text)
    return None if _NO_OFFSET.search(text) else _moment_ms(moment)


def _digits_ms(bare: str) -> int | None:
    if len(bare) > _MAX_DIGITS:
        return None
    bare = bare.replace(",", ".")
    return _number_ms(float(bare) if "." in bare else int(bare))


def _moment_ms(moment: datetime) -> int:
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    # Floor division of timedeltas is exact; timestamp() goes through a float and loses milliseconds.
    return (moment - _EPOCH) // _MS


def _unusual_text_ms(text: str) -> int | None:
    """Convert a text that is not ISO 8601 as Python reads it."""
    bare = text.translate(_LOOKALIKES).strip().strip('"').strip()
    if len(bare) > _MAX_TEXT:
        return None
    if _DIGITS.fullmatch(bare):  # behind more blanks, or in quotes
        return _digits_ms(bare)
    if region := _REGION.search(bare):
        bare = bare[: region.start()]
        # The local time of a region: its offset is in a table that differs between hosts.
        if not _UTC_REGION.fullmatch(region[0]) and not _ZONED.search(bare):
            return None
    if _SCIENTIFIC.fullmatch(bare):
        return _number_ms(float(bare))
    if match := _DOTNET.fullmatch(bare):
        return int(match[1])  # the offset is only for display
    bare = _ZERO_AND_Z.sub("Z", _YEAR_FIRST.sub(_with_zeros, bare.upper(), count=1))
    if match := _UTC_OFFSET.search(bare):
        bare = f"{bare[: match.start()]} {match[1]}{match[2]:0>2}{match[3] or '00'}"
    if match := _HALF_DAY.fullmatch(bare):
        bare = f"{match[1]}{_hour(int(match[2]), match[4]):02}{match[3]}{match[5]}"
    if match := _MIDNIGHT.fullmatch(bare):
        before = _text_ms(match[1] + "00" + match[2])
        return None if before is None else before + _DAY_MS
    if match := _SPACED_OFFSET.fullmatch(bare):
        hours = _ZONES.get(match[2])
        bare = match[1] + (match[2] if hours is None else f"{hours:+03}:00")
    try:
        return _iso_ms(bare.removesuffix(" UTC"))
    except ValueError:
        pass
    if _LEAP_SECOND.search(bare):  # `datetime` does not have them; they are the last second of a day in UTC
        before = _text_ms(_LEAP_SECOND.sub(r"\g<1>59", bare, count=1))
        return before + 1000 if before is not None and before % _DAY_MS >= _DAY_MS - 1000 else None
    return _words_ms(bare)


def _with_zeros(match: re.Match[str]) -> str:
    """Return a date that begins with the year in the form of ISO 8601."""
    day = f"{match[1]}-{match[3]:0>2}-{match[4]:0>2}"
    return f"{day}{match[5]}{match[6]:0>2}" if match[5] else day


def _words_ms(text: str) -> int | None:
    """Convert a date with the name of its month."""
    match = next((match for form in _IN_WORDS if (match := form.fullmatch(text))), None)
    if match is None or match["month"] not in _MONTHS:
        return None
    zone = _ZONES.get(match["zone"] or "UTC")
    # `GMT+0200`: the offset counts from the name, which is then one of UTC.
    if zone is None and not match["offset"]:
        return None
    if _NO_OFFSET.search(match["offset"] or ""):
        return None
    offset = _offset(match["offset"]) if match["offset"] else timedelta(hours=zone or 0)
    year = int(match["year"])
    if len(match["year"]) == 2:
        year += 2000 if year < 50 else 1900  # RFC 5322 section 4.3
    fraction = (match["fraction"] or ".0")[1:7].ljust(6, "0")
    hour, minute, second = (int(match[part] or 0) for part in ("hour", "minute", "second"))
    if match["half"]:
        hour = _hour(hour, match["half"]) if 1 <= hour <= 12 else 99
    try:
        moment = datetime(
            year, _MONTHS.index(match["month"]) + 1, int(match["day"]), hour, minute, second, int(fraction), UTC
        )
    except ValueError:
        return None
    return (moment - offset - _EPOCH) // _MS


def _hour(hour: int, half: str) -> int:
    """Return the hour of the day for one of a half day (A or P)."""
    return hour % 12 + (12 if half == "P" else 0)


def _offset(text: str) -> timedelta:
    size = timedelta(hours=int(text[1:3]), minutes=int(text[-2:]))
    return -size if text[0] == "-" else size


def _number_ms(number: float) -> int:
    size = abs(number)
    if size < 1e11:
        # Rounded, not cut: 1717689600.001 seconds are not exactly a double.
        return round(number * 1000)
    if size < 1e14:
        return int(number)
    return int(number // 1000) if size < 1e17 else int(number // 1_000_000)


def is_implausible_ms(date_ms: int, received_ms: int) -> bool:
    """Return True for a date of an event before the year 2000, or more than a day after it was received."""
    return date_ms < _OLDEST_MS or date_ms > _latest(received_ms, _DAY_MS)


def is_absurd_people_ms(date_ms: int, received_ms: int, *, may_be_ahead: bool) -> bool:
    """Return True for a date of a person or company that stands for "none": before 2000, or too far ahead.

    ``may_be_ahead`` is for dates that are plans (a renewal): absurd from 50 years ahead. Others obey the rule for events.
    """
    ahead_ms = _FIFTY_YEARS_MS if may_be_ahead else _DAY_MS
    return date_ms < _OLDEST_MS or date_ms > _latest(received_ms, ahead_ms)


def _latest(received_ms: int, ahead_ms: int) -> int:
    return received_ms + ahead_ms if received_ms >= CLOCK_SET_MS else _CENTURY_END_MS
