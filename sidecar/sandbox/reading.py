"""Read events back: ``GET /v1/events/custom`` (sidecar/px/README.md#reading-back).

PX does not document the following, so it is a choice of this module: ``~`` means "contains"; ``sort=date`` ascends and
``sort=-date`` descends; without ``sort`` the newest event is first.
"""

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs

import msgspec

from sidecar.sandbox.journal import Journal
from sidecar.sandbox.judge import JudgeAnswer, px_error

__all__ = ["read_events"]

DAY_MS = 86_400_000
MAX_RANGE_DAYS = 190
DEFAULT_PAGE = 25
MAX_PAGE = 1000

_CONDITION = re.compile(r"(\w+)(==|!=|<=|>=|!~|~|<|>)(.*)", re.DOTALL)
_SORTS = ("date", "-date", "accountId", "-accountId")
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "==": lambda actual, wanted: bool(actual == wanted),
    "!=": lambda actual, wanted: bool(actual != wanted),
    "<": lambda actual, wanted: bool(actual < wanted),
    "<=": lambda actual, wanted: bool(actual <= wanted),
    ">": lambda actual, wanted: bool(actual > wanted),
    ">=": lambda actual, wanted: bool(actual >= wanted),
    "~": lambda actual, wanted: str(wanted) in str(actual),
    "!~": lambda actual, wanted: str(wanted) not in str(actual),
}

Condition = Callable[[int], bool]
"""Return whether the request with this index in the journal matches."""


class _BadQuery(Exception):
    """A parameter that cannot be parsed; its text is the message of the 400."""


def read_events(journal: Journal, query: str, now_ms: int) -> JudgeAnswer:
    """Answer ``GET /v1/events/custom?query``: a page of events, ``totalHits`` and a ``scrollId``."""
    parameters = parse_qs(query, keep_blank_values=True)
    try:
        return _read(journal, parameters, now_ms)
    except _BadQuery as error:
        return px_error(400, str(error))


def _read(journal: Journal, parameters: dict[str, list[str]], now_ms: int) -> JudgeAnswer:
    start_ms, end_ms = _window_ms(parameters, now_ms)
    alternatives = [_parse_filter(journal, text) for text in parameters.get("filter", []) if text]
    page_size = _parse_int(parameters, "pageSize", DEFAULT_PAGE)
    if not 1 <= page_size <= MAX_PAGE:
        raise _BadQuery(f"pageSize must be between 1 and {MAX_PAGE}")
    dates = journal.columns.date_ms
    # A scroll covers the events that existed when it began, so that later arrivals do not shift its pages.
    end, offset = _scroll(parameters, len(journal))
    hits = [
        index
        for index in journal.stored()
        if index < end
        and start_ms <= dates[index] <= end_ms
        and (not alternatives or any(all(matches(index) for matches in conditions) for conditions in alternatives))
    ]
    _sort(journal, hits, parameters.get("sort", ["-date"])[0])
    page = hits[offset : offset + page_size]
    answer = {
        "customEvents": [journal.event(index) | {"date": dates[index]} for index in page],
        "totalHits": len(hits),
        "scrollId": f"{end}-{offset + len(page)}",
    }
    return JudgeAnswer(200, msgspec.json.encode(answer))


def _window_ms(parameters: dict[str, list[str]], now_ms: int) -> tuple[int, int]:
    end_ms = _parse_int(parameters, "dateRangeEnd", now_ms)
    start_ms = _parse_int(parameters, "dateRangeStart", end_ms - DAY_MS)
    if end_ms - start_ms > MAX_RANGE_DAYS * DAY_MS:
        raise _BadQuery(f"Exceeded date range{MAX_RANGE_DAYS}days")
    return start_ms, end_ms


def _parse_int(parameters: dict[str, list[str]], name: str, default: int) -> int:
    text = parameters.get(name, [""])[0]
    if not text:
        return default
    try:
        return int(text)
    except ValueError:
        raise _BadQuery(f"{name} must be an integer") from None


def _scroll(parameters: dict[str, list[str]], length: int) -> tuple[int, int]:
    """Return the end of the scroll's range in the journal, and the number of events already returned."""
    text = parameters.get("scrollId", [""])[0]
    if not text:
        return length, 0
    match = re.fullmatch(r"(\d+)-(\d+)", text)
    if match is None:
        raise _BadQuery("scrollId is not known")
    return int(match[1]), int(match[2])


def _parse_filter(journal: Journal, text: str) -> list[Condition]:
    return [_parse_condition(journal, part) for part in text.split(";") if part]


def _parse_condition(journal: Journal, text: str) -> Condition:
    match = _CONDITION.fullmatch(text)
    if match is None:
        raise _BadQuery(f"filter {text} cannot be understood")
    field, operator, wanted = match.groups()
    compare = _COMPARE[operator]
    columns = journal.columns
    if field == "date":
        try:
            date_ms = int(wanted)
        except ValueError:
            raise _BadQuery("filter by date needs epoch milliseconds") from None
        return lambda index: compare(columns.date_ms[index], date_ms)
    if field not in ("eventName", "identifyId"):
        raise _BadQuery(f"filter by {field} is not supported")
    column = columns.name if field == "eventName" else columns.user
    folded = wanted.casefold()  # PX's filters ignore case, unlike reads by id
    # Each name is compared once, not once per event.
    matching = {number: compare(name.casefold(), folded) for number, name in enumerate(journal.names)}
    return lambda index: matching[column[index]]


def _sort(journal: Journal, hits: list[int], sort: str) -> None:
    if sort not in _SORTS:
        raise _BadQuery(f"sort must be one of {', '.join(_SORTS)}")
    dates = journal.columns.date_ms
    if sort.endswith("date"):
        hits.sort(key=lambda index: dates[index], reverse=sort.startswith("-"))
    else:
        hits.sort(key=lambda index: str(journal.event(index).get("accountId", "")), reverse=sort.startswith("-"))
