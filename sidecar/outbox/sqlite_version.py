"""Which SQLite is used, and what is known to be wrong with it."""

import sqlite3
from typing import Final

__all__ = ["has_wal_reset_bug", "sqlite_version"]

# Two connections that write or checkpoint at one instant can lose committed rows: SQLite 3.7.0 to 3.51.2, mended in
# 3.51.3 and on the branches 3.44.6 and 3.50.7 (sqlite.org/wal.html section 11; facts: field_lessons.md 2).
_FIRST: Final = (3, 7, 0)
_MENDED: Final = (3, 51, 3)
_MENDED_BRANCHES: Final = ((3, 44, 6), (3, 50, 7))


def sqlite_version() -> tuple[int, int, int]:
    """The version of the library that this process uses."""
    return sqlite3.sqlite_version_info


def has_wal_reset_bug(version: tuple[int, int, int]) -> bool:
    """Whether a second program beside the daemon (Litestream, sqlite3) can damage the outbox by a checkpoint."""
    if any(version[:2] == branch[:2] and version >= branch for branch in _MENDED_BRANCHES):
        return False
    return _FIRST <= version < _MENDED
