"""No file that is taken away under a running daemon costs an event that is answered afterwards. See attacks.py."""

import os
import tempfile
from pathlib import Path

import pytest
from attacks import ATTACKS, REPLACED, bind_mount, try_attack


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_what_is_answered_is_found_by_the_next_start(attack):
    if attack.act is bind_mount and os.geteuid() != 0:
        pytest.skip("mounting needs root")
    with tempfile.TemporaryDirectory(prefix="ta-") as folder:
        outcome = try_attack(attack, Path(folder))
    assert outcome.answered > 20, outcome.said
    assert not outcome.lost_after_notice, outcome.said
    assert not (attack.spares and outcome.lost), outcome.said
    if attack.spares or attack.act in REPLACED:  # what is overwritten may be noticed by SQLite, too
        assert outcome.exit_code == (78 if attack.act in REPLACED else None), outcome.said
