"""The machines can see: each planted bug is found, within the time that every run of the tests has."""

import pytest
from plant import BUGS, Bug, copy_source, look_for, machines_for, plant


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_planted_bug_is_found(bug: Bug):
    assert look_for(bug, machines_for(bug, every=False))


def test_nothing_is_found_where_nothing_was_planted():
    """Of the machine that is not a test of its own in every run anyway, few seeds are enough."""
    assert look_for(None, ["store calls"]) == []


def test_a_bug_that_does_not_fit_any_more_is_told(tmp_path):
    copy_source(tmp_path)
    with pytest.raises(ValueError, match="plant it anew"):
        plant(BUGS[0]._replace(before="there is no such line"), tmp_path)
