"""``DaemonState``, the one record of the daemon's state, and ``Status``, its public view (``status --json``, ``/status``).

Rules
-----
* ``accepted = pending + delivered + dropped + dead`` holds in every record.
* The cost does not depend on the number of pending events.
* Names that end in ``_s`` are in seconds, in ``_ms`` epoch milliseconds, in ``bytes`` bytes. Times without a unit are
  ISO 8601 text in UTC.
* ``reasons`` are sentences for operators: why events are not delivered or not accepted, and what to do. The list is
  empty while everything works. ``warnings`` do not affect delivery or acceptance.
"""

import re
from collections.abc import Mapping
from functools import partial
from typing import Final, Literal

import msgspec

from sidecar.observe import Problem

__all__ = [
    "DAY_S",
    "DaemonState",
    "FleetFacts",
    "NameShare",
    "OutboxFacts",
    "QuotaFacts",
    "RefusedCalls",
    "Severity",
    "SlowUser",
    "StateFacts",
    "Status",
    "StatusProblem",
    "by_reason",
    "drain_s",
    "public_sentence",
    "public_view",
    "total",
]

DAY_S: Final = 86_400.0


class QuotaFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The day's quota in requests. ``reserve`` is the part of ``limit`` that only high-priority events may use.

    ``free_in_s`` is the time until a normal event may be sent, 0 if now. ``by_px`` is true if PX's 429 answers, not the
    own count, ended the day.
    """

    used: int
    limit: int
    left: int
    reserve: int
    free_in_s: float
    by_px: bool = False


class OutboxFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The outbox file. ``bytes`` is the space that events use, None if the store did not answer in time."""

    path: str
    bytes: int | None
    max_bytes: int
    wal_bytes: int


class SlowUser(msgspec.Struct, frozen=True, kw_only=True):
    """The user whose events have waited longest behind an event that keeps failing."""

    user: str | None
    waiting_for_s: float
    attempts: int
    detail: str


class FleetFacts(msgspec.Struct, frozen=True):
    """This host in its fleet. Rates are requests per second.

    ``state`` is joining, sharing, quiet, alone or rejoining; ``problem`` says what is wrong and what to do. ``rate`` is
    what all hosts that are connected share, ``alone`` what this host may send by itself if the engine is away, ``used``
    the requests of all hosts in this day, with what is set aside for absent ones. ``slots_late`` counts slots that passed
    unused since the start. ``clone`` is true while another process of the fleet has the same outbox.
    """

    name: str
    state: Literal["joining", "sharing", "quiet", "alone", "rejoining"]
    problem: str
    members: int
    absent: int
    rate: float
    alone: float
    used: int
    slots_held: int
    slots_granted: int
    slots_late: int
    calls: int
    clock_uncertainty_s: float | None
    clone: bool = False


Severity = Literal["accepting", "delivery", "loss", "limit", "note"]
"""The meaning of a problem: events are not stored, not delivered, lost or dead or refused; a limit is near; something to know."""


class StatusProblem(msgspec.Struct, frozen=True):
    """Something that is wrong: one sentence with what happened, to what, and what to do next."""

    severity: Severity
    message: str


class RefusedCalls(msgspec.Struct, frozen=True):
    """Calls that were answered with an error since the start, by code; the last one, and the seconds since then."""

    by_code: dict[str, int]
    last_s: float
    last_message: str


class NameShare(msgspec.Struct, frozen=True):
    """The event name that came most often in the last day, and how often."""

    name: str
    events: int


class StateFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The state at one moment. ``state`` is that of the destination, or ``stopped`` without a daemon.

    ``delivering`` is true if a normal event accepted now would be sent at once. ``rate`` is delivered events per second
    over the last ten seconds. ``pace`` and ``ceiling`` are requests per second: in force now, and at most. ``drain_s``
    is the time until nothing is pending if no more events arrive, with the day's quota; None if it cannot be estimated.
    ``oldest_pending_age_s`` excludes users with an event that keeps failing; ``slowest_user`` is the one of them that
    has waited longest. ``without_account`` is the number of custom events delivered since the start without an account.
    ``reasons`` and ``warnings`` hold a part of the problems.
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
    without_account: int = 0
    fleet: FleetFacts | None = None
    refused: RefusedCalls | None = None
    busiest_name: NameShare | None = None


class DaemonState(StateFacts, frozen=True, kw_only=True):
    """The daemon's state at one moment.

    ``counters`` are those of the outbox. ``lanes_in_use`` is the number of requests without an answer. ``changed`` is
    the number of events since the start whose mapping cut or replaced a value. ``set_aside`` is true if a damaged
    outbox was set aside at this start, which ``damage`` describes. ``instance`` is the name that commands in the views
    carry. ``not_stored`` and ``not_delivered`` are the ``reasons``; ``limits`` and ``notes`` are sentences about limits
    that are near, and about what else to know.
    """

    counters: Mapping[str, int]
    lanes_in_use: int
    changed: int
    last_delivered_ms: int | None
    set_aside: bool
    instance: str
    oldest_age_s_by_class: Mapping[str, float]
    not_stored: list[str]
    not_delivered: list[str]
    damage: list[str]
    limits: list[str]
    notes: list[str]


class Status(StateFacts, frozen=True, kw_only=True):
    """The record that ``/status`` shows. ``problems`` are all problems, the worst first (``problems.py``)."""

    problems: list[StatusProblem] = []


def by_reason(counters: Mapping[str, int], state: str) -> dict[str, int]:
    """Return the non-zero counters of a state by reason."""
    return {
        name.partition(":")[2]: count
        for name, count in sorted(counters.items())
        if name.partition(":")[0] == state and ":" in name and count
    }


def total(counters: Mapping[str, int], state: str) -> int:
    """Return the number of events in a state over all reasons."""
    return sum(count for name, count in counters.items() if name.partition(":")[0] == state)


def drain_s(pending: int, *, pace_per_s: float, left: int, limit: int, next_day_in_s: float) -> float:
    """Estimate the seconds until ``pending`` requests are sent at ``pace_per_s`` with ``left`` of the day's ``limit``.

    ``next_day_in_s`` is the time until the quota is full again. Retries and people calls are not counted, because they
    are not known in advance.
    """
    if pending <= left:
        return pending / pace_per_s
    # Today's rest, then whole days of ``limit`` each, then the remainder at the pace of its last day.
    days, rest = divmod(pending - left, limit)
    if rest == 0:  # the last full day ends when its requests are sent, not at midnight
        days, rest = days - 1, limit
    return max(left / pace_per_s, next_day_in_s) + days * max(DAY_S, limit / pace_per_s) + rest / pace_per_s


# An absolute path of at least two parts, and PX's own words in a sentence (see ``px.answers``).
_PATH = re.compile(r"(?:(?<=unix://)|(?<![\w:/.`]))/[^\s/;,()`'\"]+(?:/[^\s/;,()`'\"]*)+")
# A user or a session that is near a limit of PX (see ``limits.py``), and the words of a refused call's answer.
_SUBJECT = re.compile(
    r"(?<=^User ).+ (?=had [\d,]+ events)|(?<=^Session ).+ (?=had [\d,]+ events)|(?<= ago: ).*", re.DOTALL
)
_PX_WORDS = re.compile(r"(?<= answered \d\d\d) \(.*\)(?=[:.]|$)", re.DOTALL)
_LAST_TRY = re.compile(r" The last try: .*", re.DOTALL)  # else the words between two answers would be taken for PX's


def public_sentence(sentence: str, outbox: str = "") -> str:
    """Return a sentence without paths of this host, users, sessions, and what PX or this daemon answered.

    ``outbox`` is the outbox's own path, which is removed by its text: one with a blank in it has no end that could be
    recognized.
    """
    for own in (outbox, outbox.rpartition("/")[0]):
        sentence = sentence.replace(own, "…") if own else sentence
    return _PATH.sub("…", _PX_WORDS.sub("", _LAST_TRY.sub("", _SUBJECT.sub("… ", sentence))))


def public_view(status: Status) -> Status:
    """Return the status for listeners that apps, and perhaps other hosts, can reach.

    It shows neither user ids, nor excerpts of PX's answers, which may quote values of events, nor paths.
    """
    slowest, problem, fleet = status.slowest_user, status.last_problem, status.fleet
    public = partial(public_sentence, outbox=status.outbox.path)
    return msgspec.structs.replace(
        status,
        reasons=[public(reason) for reason in status.reasons],
        warnings=[public(warning) for warning in status.warnings],
        problems=[StatusProblem(problem.severity, public(problem.message)) for problem in status.problems or ()],
        fleet=None if fleet is None else msgspec.structs.replace(fleet, problem=public(fleet.problem)),
        refused=None if status.refused is None else msgspec.structs.replace(status.refused, last_message=""),
        outbox=msgspec.structs.replace(status.outbox, path=""),
        slowest_user=None if slowest is None else msgspec.structs.replace(slowest, user=None, detail=""),
        last_problem=None if problem is None else Problem(problem.when, public(problem.message)),
    )
