"""Each planted bug is found by the machine that should find it, in its short form."""

import pytest
from plant import BUGS, Bug, copy_source, find, machines_for, plant


@pytest.mark.timeout(400)
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_planted_bug_is_found(bug: Bug):
    assert find(bug, machines_for(bug, every=False))


@pytest.mark.timeout(400)
def test_no_bug_is_found_in_the_original_source():
    """The simulation runs on the original source in its own tests; here the other machine is enough."""
    assert find(None, ["store calls"]) == []


def test_a_bug_that_no_longer_fits_is_reported(tmp_path):
    copy_source(tmp_path)
    with pytest.raises(ValueError, match="does not fit"):
        plant(BUGS[0]._replace(before="there is no such line"), tmp_path)
