"""Twenty kills under real traffic; ``storm.py`` runs a thousand."""

from pathlib import Path

import pytest
from storm import Outcome, storm

ROUNDS = 20


@pytest.mark.timeout(240)
@pytest.mark.parametrize("faults", [False, True], ids=["healthy PX", "failing PX"])
def test_kills_lose_nothing_and_repeat_only_what_was_in_flight(tmp_path: Path, faults: bool):
    outcome = storm(tmp_path, ROUNDS, seed=1, faults=faults)
    assert outcome.violations() == []
    assert outcome.lost_answers > 0 or not faults
    assert outcome.answered > 10 * ROUNDS
    assert outcome.at_start > 2, "no kill hit a start"
    assert outcome.freezes > 0, "no freeze met an event in flight"
    assert sum(outcome.duplicates) > 0, "no kill hit an event in flight: the run proves nothing"


def test_every_kind_of_violation_is_reported():
    exact = {"accepted": 3, "pending": 0, "delivered": 3, "dropped": 0, "dead": 0}
    good = Outcome(1, 0, 3, 3, [], [1], [1], 0, 0, 0, exact, 1.0)
    assert good.violations() == []
    assert good._replace(duplicates=[2], repeats=1, lost_answers=2).violations() == []
    for broken, what in (
        (good._replace(lost=["own-1"]), "lost"),
        (good._replace(arrived=2), "at PX"),
        (good._replace(duplicates=[2]), "1 were in flight"),
        (good._replace(in_flight=[1_000]), "allowed"),
        (good._replace(repeats=1), "without a kill"),
        (good._replace(duplicates=[2], repeats=2, lost_answers=2), "without a kill"),
        (good._replace(disorder=1), "overtook"),
        (good._replace(account=exact | {"accepted": 4}), "do not add up"),
    ):
        assert any(what in violation for violation in broken.violations())
