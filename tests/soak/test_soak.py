"""The soak for a third of a minute, and its judge: what creeps up, and what is missing, is seen."""

import logging
import random
import threading
from pathlib import Path

import pytest
import virtual
from soak import conclude, reckon, soak
from soak_judge import BOUNDS, account_faults, judge, read_run, theil_sen, trend, trends
from soak_load import Fate, Ledger

SHORT_S = 20.0


@pytest.mark.timeout(240)
def test_a_short_soak_ends_with_an_exact_account(tmp_path: Path, capsys):
    soak(tmp_path, SHORT_S, seed=1, ending=threading.Event())
    conclude(tmp_path)
    run, samples, account = read_run(tmp_path / "run.ndjson")
    assert run["seconds"] == SHORT_S
    assert len(samples) >= 8
    assert account is not None
    assert account_faults(account) == []
    assert account["status"]["ambiguous"] > 0, "no fault was met: that was no soak"
    steady = {name: BOUNDS[name] for name in ("rss_mb", "descriptors", "threads")}  # the files only begin to fill
    found = trends(samples, bounds=steady, slack=2)
    assert len(found) == len(steady)
    assert [str(one) for one in found if not one.flat] == []
    assert "account: exact" in capsys.readouterr().out


def test_a_short_soak_in_virtual_time_stays_flat_and_ends_with_an_exact_account():
    level = logging.getLogger("sidecar").level
    try:
        samples, account = virtual.soak(hours=0.2, per_second=5, seed=1)
    finally:
        logging.getLogger("sidecar").setLevel(level)
    assert account_faults(account) == []
    assert account["status"]["ambiguous"] > 0, "no fault was met: that was no soak"
    assert [str(one) for one in trends(samples, bounds=virtual.BOUNDS, slack=3) if not one.flat] == []


def test_an_event_that_is_nowhere_is_lost_and_one_that_came_twice_is_a_duplicate():
    ledger = Ledger()
    for fate in (Fate.SENT, Fate.SENT, Fate.BAD, Fate.DROPPED, Fate.SENT):
        ledger.answered([(ledger.number(), fate)], 0, 0.0)
    well = reckon(ledger, bytearray([0, 1, 1, 0, 0]), bytearray([1, 0, 0, 0, 3]))
    assert (well["lost"], well["unexpected"], well["duplicates"], well["distinct"]) == (0, 0, 2, 2)
    broken = reckon(ledger, bytearray([0, 0, 0, 0, 0]), bytearray([0, 0, 0, 1, 1]))
    assert (broken["lost_ids"], broken["unexpected_ids"]) == ([0, 1, 2], [3])


def series(change_per_hour: float, noise: float = 0.0) -> list[tuple[float, float]]:
    dice = random.Random(1)
    return [(at_s, 50 + change_per_hour * at_s / 3600 + dice.uniform(-noise, noise)) for at_s in range(0, 7200, 5)]


def test_memory_that_creeps_is_seen_and_noise_is_not():
    assert trend("rss_mb", series(0, noise=2), BOUNDS["rss_mb"]).flat
    assert not trend("rss_mb", series(3, noise=2), BOUNDS["rss_mb"]).flat


def test_a_rate_may_rise_and_not_fall():
    assert trend("delivered_per_s", series(30), BOUNDS["delivered_per_s"]).flat
    assert not trend("delivered_per_s", series(-10), BOUNDS["delivered_per_s"]).flat


def test_a_single_peak_does_not_tilt_the_line():
    points = [(float(at), 1.0) for at in range(50)]
    points[40] = (40.0, 1e6)
    assert theil_sen(points) == 0


EXACT = {
    "status": {"accepted": 3, "pending": 0, "delivered": 1, "dropped": 1, "dead": 1, "repeated": 0, "ambiguous": 0},
    "own": {"accepted": 3, "repeats": 0, "unanswered": 0, "failures": 0},
    "distinct": 1, "lost": 0, "unexpected": 0, "duplicates": 0,
}  # fmt: skip


@pytest.mark.parametrize("field", ["distinct", "lost", "unexpected", "duplicates"])
def test_an_account_that_is_off_by_one_is_not_exact(field: str):
    assert account_faults(EXACT) == []
    assert len(account_faults(EXACT | {field: EXACT[field] + 1})) == 1


def test_a_run_that_was_cut_off_is_judged_by_its_samples():
    samples = [dict.fromkeys(BOUNDS, 1.0) | {"t_s": float(at)} for at in range(100)]
    lines, well = judge(samples, None)
    assert well
    assert "cut off" in lines[-1]
