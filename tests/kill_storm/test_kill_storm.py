"""Twenty kills in the middle of real traffic; ``storm.py`` does a thousand."""

from pathlib import Path

import pytest
from storm import Outcome, storm

ROUNDS = 20


@pytest.mark.timeout(240)
@pytest.mark.parametrize("faults", [False, True], ids=["healthy PX", "failing PX"])
def test_a_storm_of_kills_loses_nothing_and_repeats_no_more_than_was_in_flight(tmp_path: Path, faults: bool):
    outcome = storm(tmp_path, ROUNDS, seed=1, faults=faults)
    assert outcome.complaints() == []
    assert outcome.forgiven > 0 or not faults
    assert outcome.answered > 10 * ROUNDS
    assert outcome.at_start > 2, "no kill met a start"
    assert sum(outcome.duplicates) > 0, "no kill met an event in flight: the storm was no storm"


def test_the_storm_can_see():
    exact = {"accepted": 3, "pending": 0, "delivered": 3, "dropped": 0, "dead": 0}
    well = Outcome(1, 0, 3, 3, [], [1], [1], 0, 0, 0, exact, 1.0)
    assert well.complaints() == []
    assert well._replace(duplicates=[2], repeats=1, forgiven=2).complaints() == []
    for broken, what in (
        (well._replace(lost=["own-1"]), "lost"),
        (well._replace(arrived=2), "at PX"),
        (well._replace(duplicates=[2]), "1 were in flight"),
        (well._replace(in_flight=[1_000]), "may be"),
        (well._replace(repeats=1), "without a kill"),
        (well._replace(duplicates=[2], repeats=2, forgiven=2), "without a kill"),
        (well._replace(disorder=1), "overtook"),
        (well._replace(account=exact | {"accepted": 4}), "not exact"),
    ):
        assert any(what in complaint for complaint in broken.complaints())
