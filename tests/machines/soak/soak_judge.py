"""The verdict on a soak: whether its figures stay flat, and whether its counts are exact. Pure.

Theory
------
The first quarter of a run is its warm-up, in which history, ids, file and WAL reach their size. After it, a figure is flat
if

* its median over the last quarter of the run does not exceed that over the second quarter by more than the bound, and
* its trend line (Theil-Sen: the median of the slopes between all pairs, which outliers do not affect,
  https://en.wikipedia.org/wiki/Theil-Sen_estimator) does not climb by more than the bound from the end of the first quarter
  to the end.

The bound is a share of the median over the second quarter, or an absolute amount, whichever is larger. Latencies depend on
other load on the machine, so their bound is wide; the other figures belong to the daemon alone. The delivery rate must not
fall, all other figures must not rise. ``slack`` multiplies the bounds for short runs, whose quarters are too short to be
meaningful.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

POINTS_MAX = 400
SAMPLES_MIN = 8


class Bound(NamedTuple):
    """How much a series may change for the worse; ``direction`` is 1 if growing is worse, else -1."""

    share: float
    absolute: float
    unit: str
    direction: int = 1


BOUNDS = {
    "rss_mb": Bound(0.06, 3.0, "MB"),
    "descriptors": Bound(0.0, 4.0, ""),
    "threads": Bound(0.0, 1.0, ""),
    "file_mb": Bound(0.10, 1.0, "MB"),
    "wal_mb": Bound(0.10, 1.0, "MB"),
    "p50_ms": Bound(0.5, 3.0, "ms"),
    "p99_ms": Bound(1.0, 30.0, "ms"),
    "delivered_per_s": Bound(0.10, 0.0, "/s", direction=-1),
}


class Trend(NamedTuple):
    """The trend of a series: the medians of the second and the last quarter, and the climb of its line."""

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
    """Return the median of the slopes between all pairs of points with different x; 0 without such a pair."""
    slopes = [(y2 - y1) / (x2 - x1) for at, (x1, y1) in enumerate(points) for x2, y2 in points[at + 1 :] if x2 != x1]
    return median(slopes) if slopes else 0.0


def trend(name: str, points: Sequence[tuple[float, float]], bound: Bound, *, slack: float = 1.0) -> Trend:
    """Judge one series of (time, value), in order of time."""
    start_s, end_s = points[0][0], points[-1][0]
    quarter_s = (end_s - start_s) / 4
    after_warm_up = [point for point in points if point[0] >= start_s + quarter_s]
    second = median(value for at_s, value in after_warm_up if at_s < start_s + 2 * quarter_s)
    last = median(value for at_s, value in after_warm_up if at_s >= start_s + 3 * quarter_s)
    climb = theil_sen(thinned(after_warm_up)) * 3 * quarter_s
    allowed = slack * max(bound.share * abs(second), bound.absolute)
    flat = max(bound.direction * (last - second), bound.direction * climb) <= allowed
    return Trend(name, second, last, climb, allowed, bound.unit, flat)


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return at most ``POINTS_MAX`` points, each the median of its neighbors: all pairs would take minutes."""
    width = -(-len(points) // POINTS_MAX)
    groups = (points[at : at + width] for at in range(0, len(points), width))
    return [(median(x for x, _ in group), median(y for _, y in group)) for group in groups]


def trends(
    samples: Sequence[dict[str, Any]], *, bounds: Mapping[str, Bound] = BOUNDS, slack: float = 1.0
) -> list[Trend]:
    """Judge every series with enough samples."""
    return [
        trend(name, points, bound, slack=slack)
        for name, bound in bounds.items()
        if len(points := [(sample["t_s"], sample[name]) for sample in samples if sample[name] is not None])
        >= SAMPLES_MIN
    ]


def check_counts(counts: dict[str, Any]) -> list[str]:
    """Return one sentence per wrong count of a finished run; none if all are exact."""
    status, apps = counts["status"], counts["own"]
    total = status["pending"] + status["delivered"] + status["dropped"] + status["dead"]
    equal_pairs = (
        ("accepted by the daemon, and the sum of its four states", status["accepted"], total),
        ("accepted by the daemon, and answered to the apps as accepted", status["accepted"], apps["accepted"]),
        ("duplicates recognized by the daemon, and sent by the apps", status["repeated"], apps["repeats"]),
        ("events still pending at the end, and none", status["pending"], 0),
        ("events never answered, and none", apps["unanswered"], 0),
        ("events delivered, and distinct events at PX", status["delivered"], counts["distinct"]),
        ("accepted events neither at PX nor dead nor expected to be dropped (lost), and none", counts["lost"], 0),
        ("events at PX that should not be there, and none", counts["unexpected"], 0),
        ("failed requests of the apps, and none", apps["failures"], 0),
    )
    violations = [f"{what}: {record} and {expected}" for what, record, expected in equal_pairs if record != expected]
    if counts["duplicates"] > status["ambiguous"]:
        violations.append(f"duplicates above ambiguous outcomes: {counts['duplicates']} and {status['ambiguous']}")
    return violations


def read_run(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, Any] | None]:
    """Read parameters, samples and counts of a run; counts are None if it was cut off. An incomplete last line is ignored."""
    return parse_run(line for line in path.read_text().split("\n")[:-1] if line)


def parse_run(lines: Iterable[str]) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, Any] | None]:
    run: dict[str, Any] = {}
    samples: list[dict[str, Any]] = []
    counts: dict[str, Any] | None = None
    for line in lines:
        record = json.loads(line)
        match record.pop("what"):
            case "run":
                run = record
            case "sample":
                samples.append(record)
            case "account":
                counts = record
    return run, samples, counts


def judge(
    samples: Sequence[dict[str, Any]], counts: dict[str, Any] | None, *, slack: float = 1.0
) -> tuple[list[str], bool]:
    """Return the verdict as lines of text, and whether it passes. A run without counts is judged by its samples."""
    if len(samples) < SAMPLES_MIN:
        return [f"{len(samples)} samples are too few; {SAMPLES_MIN} are needed"], False
    results = trends(samples, slack=slack)
    lines = [str(trend) for trend in results]
    if counts is None:
        return [*lines, "no counts: the run was cut off"], all(trend.flat for trend in results)
    violations = check_counts(counts)
    lines += [f"counts: {violation}" for violation in violations] or ["counts: exact"]
    return lines, not violations and all(trend.flat for trend in results)
