"""Bounds on the work of one call of the store's thread: by rows, by bytes and, for housekeeping, by the time that it took.

While a call runs no event is stored, so each is to take 20 ms at most. A row costs little, but a body of 32 KiB occupies
eight pages, which are read, or overwritten when they are freed (``secure_delete``): a count of rows alone bounds nothing.
Bytes are the bound because they make a call do the same each time; how many rows a second the disk can delete is what the
last step has shown.
"""

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, TypeVar

__all__ = [
    "CHANGED_BYTES",
    "READ_BYTES",
    "ROWS_LEAST",
    "ROWS_MOST",
    "SCAN_IDS",
    "SEARCHED_ROWS",
    "last_searchable",
    "next_rows",
    "up_to",
]

# Of bodies that one call reads, and that it changes or deletes: a few milliseconds each.
READ_BYTES: Final = 2 * 2**20
CHANGED_BYTES: Final = 2**20
# Rows that SQLite passes over in one call, by columns beside their bodies: 15 ms.
SCAN_IDS: Final = 10_000
# Rows and bytes of bodies in which it searches for a text: 10 ms.
SEARCHED_ROWS: Final = 5_000
SEARCHED_BYTES: Final = 8 * 2**20
# Rows that one step of housekeeping deletes. The least deletes more than PX takes, whatever a disk needs for a commit.
ROWS_MOST: Final = 500
ROWS_LEAST: Final = 50
TARGET_S: Final = 0.010

T = TypeVar("T")


def up_to(limit_bytes: int, rows: Iterable[T], size_of: Callable[[T], int]) -> Iterator[T]:
    """Yield rows until they have ``limit_bytes`` together; at least one, so that every call makes progress."""
    total_bytes = 0
    for row in rows:
        yield row
        total_bytes += size_of(row)
        if total_bytes >= limit_bytes:
            return


def last_searchable(rows: sqlite3.Cursor) -> Any:
    """Return the last of the rows whose bodies one call may search for a text, None if it may search all of them.

    ``rows`` is a query with ``LIMIT SEARCHED_ROWS``; the last column is the size of the body. It is closed.
    """
    searched = list(up_to(SEARCHED_BYTES, rows, lambda row: row[-1]))
    is_all = len(searched) < SEARCHED_ROWS and rows.fetchone() is None
    rows.close()
    return None if is_all else searched[-1]


def next_rows(rows: int, took_s: float) -> int:
    """Return how many rows the next step may delete, after one of ``rows`` took ``took_s``.

    A step that took longer than the target is followed by a proportionally smaller one, a faster one by one that is twice
    as large at most: one fast step says little about the disk.
    """
    fitting = rows * 2 if took_s * 2 <= TARGET_S else int(rows * TARGET_S / took_s)
    return max(ROWS_LEAST, min(ROWS_MOST, fitting))
