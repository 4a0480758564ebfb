"""Parse sizes and durations from configuration (``"4GiB"``, ``"24h"``), and format them for display."""

import re
from datetime import UTC, datetime

__all__ = [
    "MAX_SIZE_BYTES",
    "counted",
    "iso_utc",
    "parse_duration_s",
    "parse_size_bytes",
    "show_count",
    "show_duration",
    "show_size",
]

_DURATION_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_SIZE_BYTES = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
# Stored times are milliseconds and sizes are bytes in 64 bits (https://www.sqlite.org/datatype3.html): more than this, added to
# or taken from one of them, would not fit.
_MAX_DURATION_S = 10_000_000 * 86_400.0
MAX_SIZE_BYTES = 2**62
_NUMBER_AND_UNIT = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")


def parse_duration_s(text: str) -> float:
    """Return the seconds in ``"250ms"``, ``"30s"``, ``"5m"``, ``"24h"`` or ``"30d"``.

    Raises ValueError with a message that names the allowed form.
    """
    match = _NUMBER_AND_UNIT.fullmatch(text.strip())
    if match is None or match[2] not in _DURATION_S:
        raise ValueError(f'{text!r} is not a duration; write a number and ms, s, m, h or d, as in "30s" or "24h"')
    seconds = float(match[1]) * _DURATION_S[match[2]]
    if seconds > _MAX_DURATION_S:
        raise ValueError(f'{_shortened(text)} is too long; write at most "{_MAX_DURATION_S / 86_400:.0f}d"')
    return seconds


def parse_size_bytes(text: str) -> int:
    """Return the bytes in ``"32KiB"``, ``"4GiB"``, ``"500MB"`` or ``"1024"``.

    Raises ValueError with a message that names the allowed form.
    """
    match = _NUMBER_AND_UNIT.fullmatch(text.strip())
    if match is None or match[2] not in _SIZE_BYTES:
        raise ValueError(f'{text!r} is not a size; write a number and KiB, MiB or GiB, as in "32KiB" or "4GiB"')
    size_bytes = float(match[1]) * _SIZE_BYTES[match[2]]
    if size_bytes > MAX_SIZE_BYTES:
        raise ValueError(f'{_shortened(text)} is too much; write at most "{MAX_SIZE_BYTES // 2**40}TiB"')
    return int(size_bytes)


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:40]}…")


def show_duration(seconds: float) -> str:
    """Format a duration with at most two units: ``"1h 23m"``, ``"4.2s"``, ``"12ms"``."""
    # Each limit is the value that would round up to the next unit: 59.97 s is "1m", not "60.0s".
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f}ms"
    if seconds < 59.95:
        return f"{seconds:.1f}s"
    whole_s = round(seconds)
    for unit_s, unit, small_s, small in ((86_400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole_s >= unit_s:
            rest = whole_s % unit_s // small_s
            return f"{whole_s // unit_s}{unit} {rest}{small}" if rest else f"{whole_s // unit_s}{unit}"
    raise AssertionError(seconds)


def show_size(size_bytes: int) -> str:
    """Format a size in binary units with three significant digits: ``"1.5 GiB"``, ``"980 KiB"``, ``"12 B"``."""
    value = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 999.5:  # a larger value would be formatted as 1e+03
            return f"{value:.3g} {unit}"
        value /= 1024
    return f"{value:.3g} TiB" if value < 999.5 else f"{value:,.0f} TiB"


def show_count(count: int) -> str:
    """Format a count with commas between thousands."""
    return f"{count:,}"


def counted(count: int, noun: str, verb: str = "") -> str:
    """Return ``1 event``, ``1,234 events``; with the verb ``is`` or ``was`` also ``1 event is``, ``2 events are``."""
    one = count == 1
    verb = verb and (f" {verb}" if one else {"is": " are", "was": " were"}[verb])
    return f"{show_count(count)} {noun}{'' if one else 's'}{verb}"


def iso_utc(wall_ms: float) -> str:
    """Format epoch milliseconds as ISO 8601 in UTC: ``"2026-11-24T11:40:32.123Z"``."""
    return datetime.fromtimestamp(wall_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
