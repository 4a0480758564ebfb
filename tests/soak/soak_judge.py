"""The judgement on a soak: whether its figures stay flat, and whether its account is exact. Pure.

Theory
------
The first quarter of a run is its warm-up: history and ids reach their full length, the file and the WAL their size. From
there on a figure is flat if

* its median over the last quarter of the run does not exceed that over the second quarter by more than is allowed, and
* the line through it (Theil-Sen: the median of the slopes between all pairs, which single peaks do not move) does not
  climb more than that from the end of the first quarter to the end.

What is allowed is a share of the median over the second quarter, or an absolute amount, whichever is more. Latencies
share the machine with whoever else works there, so theirs is wide; the rest is the daemon's own. A delivery rate may not
fall, everything else may not rise. ``slack`` multiplies what is allowed: a run of seconds has no second quarter that
means anything.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

MOST_POINTS = 400
FEWEST_SAMPLES = 8


class Bound(NamedTuple):
    """How much a series may change for the worse; ``way`` is 1 if growing is worse, else -1."""

    share: float
    absolute: float
    unit: str
    way: int = 1


BOUNDS = {
    "rss_mb": Bound(0.06, 3.0, "MB"),
    "descriptors": Bound(0.0, 4.0, ""),
    "threads": Bound(0.0, 1.0, ""),
    "file_mb": Bound(0.10, 1.0, "MB"),
    "wal_mb": Bound(0.10, 1.0, "MB"),
    "p50_ms": Bound(0.5, 3.0, "ms"),
    "p99_ms": Bound(1.0, 30.0, "ms"),
    "delivered_per_s": Bound(0.10, 0.0, "/s", way=-1),
}


class Trend(NamedTuple):
    """How a series went: the medians of the second and the last quarter, and the climb of the line between them."""

    name: str
    second: float
    last: float
    climb: float
    allowed: float
    unit: str
    flat: bool

    def __str__(self) -> str:
        verdict = "flat" if self.flat else "NOT FLAT"
        return (
            f"{self.name:<16} 2nd quarter {self.second:9.2f}  last quarter {self.last:9.2f}  "
            f"line {self.climb:+8.2f}  allowed {self.allowed:7.2f} {self.unit:<3} {verdict}"
        )


def theil_sen(points: Sequence[tuple[float, float]]) -> float:
    """The median of the slopes between all pairs of points with different x; 0 if there is no such pair."""
    slopes = [(y2 - y1) / (x2 - x1) for at, (x1, y1) in enumerate(points) for x2, y2 in points[at + 1 :] if x2 != x1]
    return median(slopes) if slopes else 0.0


def trend(name: str, points: Sequence[tuple[float, float]], bound: Bound, *, slack: float = 1.0) -> Trend:
    """Judge one series of (time, value), in order of time."""
    begin_s, end_s = points[0][0], points[-1][0]
    quarter_s = (end_s - begin_s) / 4
    rest = [point for point in points if point[0] >= begin_s + quarter_s]
    second = median(value for at_s, value in rest if at_s < begin_s + 2 * quarter_s)
    last = median(value for at_s, value in rest if at_s >= begin_s + 3 * quarter_s)
    climb = theil_sen(thinned(rest)) * 3 * quarter_s
    allowed = slack * max(bound.share * abs(second), bound.absolute)
    flat = max(bound.way * (last - second), bound.way * climb) <= allowed
    return Trend(name, second, last, climb, allowed, bound.unit, flat)


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most ``MOST_POINTS``, each the median of its neighbours: the pairs of all would take minutes."""
    width = -(-len(points) // MOST_POINTS)
    groups = (points[at : at + width] for at in range(0, len(points), width))
    return [(median(x for x, _ in group), median(y for _, y in group)) for group in groups]


def trends(
    samples: Sequence[dict[str, Any]], *, bounds: Mapping[str, Bound] = BOUNDS, slack: float = 1.0
) -> list[Trend]:
    """Judge every series of which there are enough samples."""
    return [
        trend(name, points, bound, slack=slack)
        for name, bound in bounds.items()
        if len(points := [(one["t_s"], one[name]) for one in samples if one[name] is not None]) >= FEWEST_SAMPLES
    ]


def account_faults(account: dict[str, Any]) -> list[str]:
    """What is wrong with the account of a finished run, one sentence each; none if it is exact."""
    status, own = account["status"], account["own"]
    ended = status["pending"] + status["delivered"] + status["dropped"] + status["dead"]
    must_be_equal = (
        ("what the daemon accepted and the sum of its four states", status["accepted"], ended),
        ("what the daemon accepted and what the apps were told is accepted", status["accepted"], own["accepted"]),
        ("the repeats the daemon recognised and those the apps made", status["repeated"], own["repeats"]),
        ("events pending after everything had time to be delivered, and none", status["pending"], 0),
        ("events made whose acceptance was never answered, and none", own["unanswered"], 0),
        ("events delivered and distinct events at PX", status["delivered"], account["distinct"]),
        ("accepted events neither at PX nor dead nor made to be dropped (lost), and none", account["lost"], 0),
        ("events that are at PX and should not be, and none", account["unexpected"], 0),
        ("requests of the apps that failed, and none", own["failures"], 0),
    )
    faults = [f"{what}: {one} and {other}" for what, one, other in must_be_equal if one != other]
    if account["duplicates"] > status["ambiguous"]:
        faults.append(f"duplicates above ambiguous outcomes: {account['duplicates']} and {status['ambiguous']}")
    return faults


def read_run(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, Any] | None]:
    """What the run was, its samples, and its account, None if it was cut off. A half last line is left out."""
    return parse_run(line for line in path.read_text().split("\n")[:-1] if line)


def parse_run(lines: Iterable[str]) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, Any] | None]:
    run: dict[str, Any] = {}
    samples: list[dict[str, Any]] = []
    account: dict[str, Any] | None = None
    for line in lines:
        one = json.loads(line)
        match one.pop("what"):
            case "run":
                run = one
            case "sample":
                samples.append(one)
            case "account":
                account = one
    return run, samples, account


def judge(
    samples: Sequence[dict[str, Any]], account: dict[str, Any] | None, *, slack: float = 1.0
) -> tuple[list[str], bool]:
    """The judgement in lines for people, and whether all is well. A run that was cut off is judged without account."""
    if len(samples) < FEWEST_SAMPLES:
        return [f"{len(samples)} samples are too few to judge; {FEWEST_SAMPLES} are needed"], False
    found = trends(samples, slack=slack)
    lines = [str(one) for one in found]
    if account is None:
        return [*lines, "no account: the run was cut off"], all(one.flat for one in found)
    faults = account_faults(account)
    lines += [f"account: {fault}" for fault in faults] or ["account: exact"]
    return lines, not faults and all(one.flat for one in found)
