"""Inserting many rows with few statements.

Python's sqlite3 gives the interpreter's lock away around every step of a statement, and with one statement a row that
is every row: beside a thread that parses events, the store then waits for the lock as often as it inserts. With one
statement for many rows it inserts them all while the other thread runs.
"""

import sqlite3
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import Any, Final

__all__ = ["insert_rows"]

# Rows of one statement, the most first: whatever the number of rows, few statements are needed, and few are prepared.
# 128 rows of 6 columns stay below the 999 parameters that an old SQLite takes.
SIZES: Final = (128, 16, 1)


def insert_rows(connection: sqlite3.Connection, into: str, rows: Sequence[tuple[Any, ...]]) -> None:
    """Insert ``rows``, all of one width, as ``INSERT <into> VALUES (…), (…)``, in their order. Raises sqlite3.Error."""
    if not rows:
        return
    width, start = len(rows[0]), 0
    for size in SIZES:
        while len(rows) - start >= size:
            values = list(chain.from_iterable(rows[start : start + size]))
            connection.execute(_statement(into, width, size), values)
            start += size


@lru_cache(maxsize=64)
def _statement(into: str, width: int, size: int) -> str:
    row = f"({', '.join('?' * width)})"
    return f"INSERT {into} VALUES {', '.join([row] * size)}"
