"""The whole daemon in simulated days: after each seed the account is exact. ``replay.py`` runs more of them, and one again."""

import pytest
from replay import failure

BLOCK = 40


@pytest.mark.parametrize("first", range(0, 4 * BLOCK, BLOCK))
def test_whatever_a_seed_brings_the_account_is_exact(first: int):
    wrong = [said for seed in range(first, first + BLOCK) if (said := failure(seed)) is not None]
    assert not wrong, "\n".join(wrong)
