"""What ``px-sidecar status --json`` prints and ``GET /status`` answers: one record of how things are.

Rules
-----
* ``accepted = pending + delivered + dropped + dead`` holds in every record.
* It costs the same with ten pending events and with ten million.
* A name that ends in ``_s`` is in seconds, in ``_ms`` epoch milliseconds, in ``bytes`` bytes; a moment without a unit
  is ISO 8601 text in UTC.
* ``reasons`` are sentences for people: what keeps events from being delivered or accepted, and what to do. While there
  are none, all is well. ``warnings`` do not stop anything.
"""

from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final, Literal

import msgspec

__all__ = [
    "DAY_S",
    "OutboxFacts",
    "Problem",
    "QuotaFacts",
    "Rate",
    "SlowUser",
    "Status",
    "by_reason",
    "drain_s",
    "iso",
    "total",
]

DAY_S: Final = 86_400.0
RATE_WINDOW_S: Final = 10


class QuotaFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The day's quota, in requests. ``reserve`` is the part of ``limit`` that only events of the class high may use.

    ``free_in_s`` is 0 while normal events may go, else when they may again; ``by_px`` tells that PX said so.
    """

    used: int
    limit: int
    left: int
    reserve: int
    free_in_s: float
    by_px: bool = False


class OutboxFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The outbox file; ``bytes`` is what the events take in it, None if it could not be asked."""

    path: str
    bytes: int | None
    max_bytes: int
    wal_bytes: int


class SlowUser(msgspec.Struct, frozen=True, kw_only=True):
    """The user whose events have waited the longest because one of them keeps failing."""

    user: str | None
    waiting_for_s: float
    attempts: int
    detail: str


class Problem(msgspec.Struct, frozen=True):
    """The newest thing that went wrong; it may be over."""

    when: str
    message: str


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """How things are. ``state`` is that of the destination, ``stopped`` where no daemon runs.

    ``delivering``: a normal event that came now would be sent at once. ``rate`` is delivered events a second over the
    last ten; ``pace`` and ``ceiling`` are requests a second, allowed now and at most. ``drain_s``: seconds until
    nothing is pending if nothing more comes, the day's quota included; None where nobody can tell.
    ``oldest_pending_age_s`` leaves out users who wait because of an event that keeps failing: the slowest of them is
    ``slowest_user``.
    """

    version: str
    state: Literal["open", "waiting", "probing", "paused", "stopped"]
    since: str | None
    next_try_in_s: float | None
    delivering: bool
    reasons: list[str]
    warnings: list[str]
    accepted: int
    pending: int
    pending_high: int
    delivered: int
    dropped: int
    dead: int
    dropped_by_reason: dict[str, int]
    dead_by_reason: dict[str, int]
    repeated: int
    ambiguous: int
    retries: int
    in_flight: int
    lanes: int
    rate: float
    pace: float
    ceiling: float
    quota: QuotaFacts
    oldest_pending_age_s: float | None
    drain_s: float | None
    full: str | None
    outbox: OutboxFacts
    slowest_user: SlowUser | None
    last_delivered: str | None
    last_problem: Problem | None
    uptime_s: float | None


def iso(wall_ms: float) -> str:
    """A moment as people and ``jq`` read it: ``2026-11-24T11:40:32.123Z``."""
    return datetime.fromtimestamp(wall_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def by_reason(counters: Mapping[str, int], state: str) -> dict[str, int]:
    """The counters of a state by their reasons, those that are not zero."""
    return {
        name.partition(":")[2]: count
        for name, count in sorted(counters.items())
        if name.partition(":")[0] == state and ":" in name and count
    }


def total(counters: Mapping[str, int], state: str) -> int:
    """How many events a state has had, whatever the reason."""
    return sum(count for name, count in counters.items() if name.partition(":")[0] == state)


def drain_s(pending: int, *, pace_per_s: float, left: int, limit: int, next_day_in_s: float) -> float:
    """Seconds until ``pending`` requests are sent at ``pace_per_s`` when ``left`` are left of the day's ``limit``.

    ``next_day_in_s``: until the day's quota begins anew. An estimate: retries and people calls are not known yet.
    """
    if pending <= left:
        return pending / pace_per_s
    days, rest = divmod(pending - left, limit)
    if rest == 0:
        days, rest = days - 1, limit
    return max(left / pace_per_s, next_day_in_s) + days * max(DAY_S, limit / pace_per_s) + rest / pace_per_s


class Rate:
    """How often something happens, over the last ten whole seconds."""

    def __init__(self, now_s: float) -> None:
        self._started_s = int(now_s)
        self._seconds: deque[list[int]] = deque()

    def add(self, now_s: float) -> None:
        """It happened once more."""
        second = int(now_s)
        if not self._seconds or self._seconds[-1][0] != second:
            self._seconds.append([second, 0])
            while self._seconds[0][0] < second - RATE_WINDOW_S:
                self._seconds.popleft()
        self._seconds[-1][1] += 1

    def per_second(self, now_s: float) -> float:
        """The average; the second that is not over yet is left out, and of a younger life only what there was."""
        second = int(now_s)
        happened = sum(count for at, count in self._seconds if second - RATE_WINDOW_S <= at < second)
        return happened / min(RATE_WINDOW_S, max(1, second - self._started_s))
