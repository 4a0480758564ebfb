"""Compute figures from the log."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence

import msgspec

from sidecar.sandbox.journal import Journal

__all__ = ["Report", "largest_window", "make_report"]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of all requests since the start, the last reset, or the beginning of the state file."""

    requests: int
    by_status: dict[str, int]
    """Requests by status; 0 means that no answer was sent."""
    stored: int
    """Accepted events, repetitions included."""
    distinct: int
    duplicates: int
    """``stored - distinct``. Events are equal if their bodies are, or if the requested key has the same value."""
    largest_second: int
    """The maximum number of requests in any half-open window of one second."""
    first_arrival_s: float | None
    last_arrival_s: float | None
    rate_per_s: float | None
    """Requests after the first, divided by the seconds between the first and the last."""
    users: int
    accounts: int


def make_report(journal: Journal, *, key: str | None = None, users: int = 0, accounts: int = 0) -> Report:
    """Build the report on ``journal``. ``key``, such as ``attributes.seq``, names the field that identifies events."""
    columns = journal.columns
    arrivals = columns.arrival_s
    stored = journal.stored_count
    distinct = len(set(_identities(journal, key)))
    span_s = arrivals[-1] - arrivals[0] if arrivals else 0.0
    return Report(
        requests=len(arrivals),
        by_status={str(status): count for status, count in sorted(Counter(columns.status).items())},
        stored=stored,
        distinct=distinct,
        duplicates=stored - distinct,
        largest_second=largest_window(arrivals, 1.0),
        first_arrival_s=arrivals[0] if arrivals else None,
        last_arrival_s=arrivals[-1] if arrivals else None,
        rate_per_s=(len(arrivals) - 1) / span_s if span_s > 0 else None,
        users=users,
        accounts=accounts,
    )


def largest_window(arrivals: Sequence[float], width_s: float) -> int:
    """Return the maximum number of arrivals in any window ``[t, t + width_s)``. ``arrivals`` must ascend."""
    most = first = 0
    # One pass with two pointers: the window ends at ``arrival`` and starts after all that are ``width_s`` older.
    for last, arrival in enumerate(arrivals):
        while arrivals[first] <= arrival - width_s:
            first += 1
        most = max(most, last - first + 1)
    return most


def arrivals_since(arrivals: Sequence[float], after_s: float) -> int:
    """Return the number of arrivals later than ``after_s``."""
    return len(arrivals) - bisect_right(arrivals, after_s)


def _identities(journal: Journal, key: str | None) -> Iterator[object]:
    digests = journal.columns.digest
    if key is None:
        return (digests[index] for index in journal.stored())
    return (_identity(journal, index, key.split(".")) for index in journal.stored())


def _identity(journal: Journal, index: int, path: list[str]) -> object:
    value: object = journal.event(index)
    for step in path:
        value = value.get(step) if isinstance(value, dict) else None
    # Events without the field would all look equal, so they are identified by their bodies instead.
    return ("body", journal.columns.digest[index]) if value is None else (type(value).__name__, str(value))
