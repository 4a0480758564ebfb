"""A soak of 20 seconds, one in virtual time, and the verdict: growth and losses are detected."""

import logging
import random
import threading
from pathlib import Path

import pytest
import virtual
from soak import compare_events, print_verdict, soak
from soak_judge import BOUNDS, check_counts, judge, read_run, theil_sen, trend, trends
from soak_load import Expected, Ledger

SHORT_S = 20.0


@pytest.mark.timeout(240)
def test_a_short_soak_is_flat_with_exact_counts(tmp_path: Path, capsys):
    soak(tmp_path, SHORT_S, seed=1, stopping=threading.Event())
    print_verdict(tmp_path)
    run, samples, counts = read_run(tmp_path / "run.ndjson")
    assert run["seconds"] == SHORT_S
    assert len(samples) >= 8
    assert counts is not None
    assert check_counts(counts) == []
    assert counts["status"]["ambiguous"] > 0, "no fault occurred: the run proves nothing"
    steady = {name: BOUNDS[name] for name in ("rss_mb", "descriptors", "threads")}  # the files are still growing
    results = trends(samples, bounds=steady, slack=2)
    assert len(results) == len(steady)
    assert [str(trend) for trend in results if not trend.flat] == []
    assert "counts: exact" in capsys.readouterr().out


def test_a_short_virtual_soak_is_flat_with_exact_counts():
    level = logging.getLogger("sidecar").level
    try:
        samples, counts = virtual.soak(hours=0.2, per_second=5, seed=1)
    finally:
        logging.getLogger("sidecar").setLevel(level)
    assert check_counts(counts) == []
    assert counts["status"]["ambiguous"] > 0, "no fault occurred: the run proves nothing"
    assert [str(trend) for trend in trends(samples, bounds=virtual.BOUNDS, slack=3) if not trend.flat] == []


def test_lost_and_duplicate_events_are_counted():
    ledger = Ledger()
    for expected in (Expected.SENT, Expected.SENT, Expected.BAD, Expected.DROPPED, Expected.SENT):
        ledger.answered([(ledger.number(), expected)], 0, 0.0)
    good = compare_events(ledger, bytearray([0, 1, 1, 0, 0]), bytearray([1, 0, 0, 0, 3]))
    assert (good["lost"], good["unexpected"], good["duplicates"], good["distinct"]) == (0, 0, 2, 2)
    broken = compare_events(ledger, bytearray([0, 0, 0, 0, 0]), bytearray([0, 0, 0, 1, 1]))
    assert (broken["lost_ids"], broken["unexpected_ids"]) == ([0, 1, 2], [3])


def series(change_per_hour: float, noise: float = 0.0) -> list[tuple[float, float]]:
    rng = random.Random(1)
    return [(at_s, 50 + change_per_hour * at_s / 3600 + rng.uniform(-noise, noise)) for at_s in range(0, 7200, 5)]


def test_growing_memory_is_detected_and_noise_is_not():
    assert trend("rss_mb", series(0, noise=2), BOUNDS["rss_mb"]).flat
    assert not trend("rss_mb", series(3, noise=2), BOUNDS["rss_mb"]).flat


def test_a_rate_may_rise_but_not_fall():
    assert trend("delivered_per_s", series(30), BOUNDS["delivered_per_s"]).flat
    assert not trend("delivered_per_s", series(-10), BOUNDS["delivered_per_s"]).flat


def test_an_outlier_does_not_change_the_trend_line():
    points = [(float(at), 1.0) for at in range(50)]
    points[40] = (40.0, 1e6)
    assert theil_sen(points) == 0


EXACT = {
    "status": {"accepted": 3, "pending": 0, "delivered": 1, "dropped": 1, "dead": 1, "repeated": 0, "ambiguous": 0},
    "own": {"accepted": 3, "repeats": 0, "unanswered": 0, "failures": 0},
    "distinct": 1, "lost": 0, "unexpected": 0, "duplicates": 0,
}  # fmt: skip


@pytest.mark.parametrize("field", ["distinct", "lost", "unexpected", "duplicates"])
def test_a_count_off_by_one_is_reported(field: str):
    assert check_counts(EXACT) == []
    assert len(check_counts(EXACT | {field: EXACT[field] + 1})) == 1


def test_a_run_without_counts_is_judged_by_its_samples():
    samples = [dict.fromkeys(BOUNDS, 1.0) | {"t_s": float(at)} for at in range(100)]
    lines, good = judge(samples, None)
    assert good
    assert "cut off" in lines[-1]
