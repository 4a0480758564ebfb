"""The range of SQLite versions that lose rows when a second program checkpoints."""

import pytest

from sidecar.outbox.sqlite_version import has_wal_reset_bug


@pytest.mark.parametrize(
    ("version", "has_it"),
    [
        ((3, 6, 23), False),
        ((3, 7, 0), True),
        ((3, 40, 1), True),
        ((3, 44, 5), True),
        ((3, 44, 6), False),
        ((3, 45, 0), True),
        ((3, 50, 6), True),
        ((3, 50, 7), False),
        ((3, 51, 2), True),
        ((3, 51, 3), False),
        ((3, 52, 0), False),
    ],
)
def test_the_mended_versions_are_those_that_sqlite_names(version, has_it):
    assert has_wal_reset_bug(version) is has_it
