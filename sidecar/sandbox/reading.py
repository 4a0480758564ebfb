"""Reading events back: ``GET /v1/events/custom`` (``facts/px_and_sdks.md`` 1.6).

Not documented by PX, and decided here: ``~`` means "contains"; ``sort=date`` ascends and ``sort=-date`` descends;
without ``sort`` the newest come first.
"""

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs

import msgspec

from sidecar.sandbox.journal import Journal
from sidecar.sandbox.judge import Answer, error

__all__ = ["read_events"]

DAY_MS = 86_400_000
MAX_RANGE_DAYS = 190
DEFAULT_PAGE = 25
MAX_PAGE = 1000

_CONDITION = re.compile(r"(\w+)(==|!=|<=|>=|!~|~|<|>)(.*)", re.DOTALL)
_SORTS = ("date", "-date", "accountId", "-accountId")
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "==": lambda have, want: bool(have == want),
    "!=": lambda have, want: bool(have != want),
    "<": lambda have, want: bool(have < want),
    "<=": lambda have, want: bool(have <= want),
    ">": lambda have, want: bool(have > want),
    ">=": lambda have, want: bool(have >= want),
    "~": lambda have, want: str(want) in str(have),
    "!~": lambda have, want: str(want) not in str(have),
}

Condition = Callable[[int], bool]
"""Whether the request with this index in the journal fulfils it."""


class _Wrong(Exception):
    """A parameter that cannot be understood; its text is the message of the 400."""


def read_events(journal: Journal, query: str, now_ms: int) -> Answer:
    """PX's answer to ``GET /v1/events/custom?query``: a page of events, ``totalHits`` and a ``scrollId``."""
    parameters = parse_qs(query, keep_blank_values=True)
    try:
        return _read(journal, parameters, now_ms)
    except _Wrong as wrong:
        return error(400, str(wrong))


def _read(journal: Journal, parameters: dict[str, list[str]], now_ms: int) -> Answer:
    start_ms, end_ms = _window_ms(parameters, now_ms)
    alternatives = [_conditions(journal, text) for text in parameters.get("filter", []) if text]
    page_size = _whole(parameters, "pageSize", DEFAULT_PAGE)
    if not 1 <= page_size <= MAX_PAGE:
        raise _Wrong(f"pageSize must be between 1 and {MAX_PAGE}")
    dates = journal.columns.date_ms
    # A scroll sees the events there were when it began: later arrivals do not shift its pages.
    seen, offset = _scroll(parameters, len(journal))
    hits = [
        index
        for index in journal.stored()
        if index < seen
        and start_ms <= dates[index] <= end_ms
        and (not alternatives or any(all(holds(index) for holds in every) for every in alternatives))
    ]
    _sort(journal, hits, parameters.get("sort", ["-date"])[0])
    page = hits[offset : offset + page_size]
    found = {
        "customEvents": [journal.event(index) | {"date": dates[index]} for index in page],
        "totalHits": len(hits),
        "scrollId": f"{seen}-{offset + len(page)}",
    }
    return Answer(200, msgspec.json.encode(found))


def _window_ms(parameters: dict[str, list[str]], now_ms: int) -> tuple[int, int]:
    end_ms = _whole(parameters, "dateRangeEnd", now_ms)
    start_ms = _whole(parameters, "dateRangeStart", end_ms - DAY_MS)
    if end_ms - start_ms > MAX_RANGE_DAYS * DAY_MS:
        raise _Wrong(f"Exceeded date range{MAX_RANGE_DAYS}days")
    return start_ms, end_ms


def _whole(parameters: dict[str, list[str]], name: str, default: int) -> int:
    text = parameters.get(name, [""])[0]
    if not text:
        return default
    try:
        return int(text)
    except ValueError:
        raise _Wrong(f"{name} must be an integer") from None


def _scroll(parameters: dict[str, list[str]], length: int) -> tuple[int, int]:
    text = parameters.get("scrollId", [""])[0]
    if not text:
        return length, 0
    match = re.fullmatch(r"(\d+)-(\d+)", text)
    if match is None:
        raise _Wrong("scrollId is not known")
    return int(match[1]), int(match[2])


def _conditions(journal: Journal, text: str) -> list[Condition]:
    return [_condition(journal, part) for part in text.split(";") if part]


def _condition(journal: Journal, text: str) -> Condition:
    match = _CONDITION.fullmatch(text)
    if match is None:
        raise _Wrong(f"filter {text} cannot be understood")
    field, operator, wanted = match.groups()
    compare = _COMPARE[operator]
    columns = journal.columns
    if field == "date":
        try:
            date_ms = int(wanted)
        except ValueError:
            raise _Wrong("filter by date needs epoch milliseconds") from None
        return lambda index: compare(columns.date_ms[index], date_ms)
    if field not in ("eventName", "identifyId"):
        raise _Wrong(f"filter by {field} is not supported")
    column = columns.name if field == "eventName" else columns.user
    folded = wanted.casefold()  # filters do not tell cases apart (facts 1.2)
    fits = {index: compare(name.casefold(), folded) for index, name in enumerate(journal.names)}
    return lambda index: fits[column[index]]


def _sort(journal: Journal, hits: list[int], sort: str) -> None:
    if sort not in _SORTS:
        raise _Wrong(f"sort must be one of {', '.join(_SORTS)}")
    dates = journal.columns.date_ms
    if sort.endswith("date"):
        hits.sort(key=lambda index: dates[index], reverse=sort.startswith("-"))
    else:
        hits.sort(key=lambda index: str(journal.event(index).get("accountId", "")), reverse=sort.startswith("-"))
