"""The catalogue of event names: every name that was accepted, how often, and when first and last.

Theory
------
Each event row holds the number of its name, so that events can be found by name without decoding them. A name gets its
number in the transaction that accepts its first event. How often it came is counted in memory and written by
housekeeping, since writing it with every commit would cost the ordinary event a page more; after a crash the counts of
the last minute are missing.

An app that makes names of ids could fill memory and disk: beyond ``NAMES_MAX`` no further name gets a number, and
its events are counted together.
"""

import sqlite3
from collections import Counter
from collections.abc import Sequence
from typing import Final

__all__ = ["NAMES_MAX", "NameCatalogue"]

NAMES_MAX: Final = 10_000
FLUSH_EVERY_MS: Final = 60_000
OTHER: Final = 0  # the number of an event whose name has none

NameKey = tuple[str, str]  # type, name as sent


class NameCatalogue:
    """The numbers of names. Used by the store inside a transaction; then ``committed`` or ``rolled_back``."""

    def __init__(self, connection: sqlite3.Connection, *, names_max: int = NAMES_MAX) -> None:
        self._connection = connection
        self._names_max = names_max
        self._numbers: dict[NameKey, int] = {
            (kind, name): number for number, kind, name in connection.execute("SELECT id, type, name FROM names")
        }
        self._new: dict[NameKey, int] = {}
        self._counted: Counter[int] = Counter()
        self._last_ms: dict[int, int] = {}
        self._open: list[int] = []
        self._flushing = False  # by the open transaction
        self._flushed_ms = 0

    def numbers(self, keys: Sequence[NameKey], now_ms: int) -> list[int]:
        """Count events and return the numbers of their names; a new name gets its number now, in a transaction.

        Raises sqlite3.Error.
        """
        known, new = self._numbers, self._new
        numbers = [known.get(key) or new.get(key) or self._add(key, now_ms) for key in keys]
        self._open += numbers
        return numbers

    def _add(self, key: NameKey, now_ms: int) -> int:
        if len(self._numbers) + len(self._new) >= self._names_max:
            return OTHER
        number = self._connection.execute(
            "INSERT INTO names (type, name, events, first_ms, last_ms) VALUES (?, ?, 0, ?, ?)", (*key, now_ms, now_ms)
        ).lastrowid
        assert number is not None
        self._new[key] = number
        return number

    def committed(self, now_ms: int) -> None:
        """Keep what changed: the transaction is on disk."""
        if self._flushing:
            self._counted.clear()
            self._last_ms.clear()
            self._flushing = False
        if not self._open:
            return
        self._numbers.update(self._new)
        self._new.clear()
        self._counted.update(self._open)
        self._last_ms.update(dict.fromkeys(self._open, now_ms))
        self._open.clear()

    def rolled_back(self) -> None:
        """Discard what changed: the transaction is undone, and its names have no number."""
        self._new.clear()
        self._open.clear()
        self._flushing = False

    def flush(self, now_ms: int | None = None) -> None:
        """Write the counts, inside a transaction; with ``now_ms`` once a minute. Raises sqlite3.Error."""
        if now_ms is not None:
            if abs(now_ms - self._flushed_ms) < FLUSH_EVERY_MS:
                return
            self._flushed_ms = now_ms
        rows = [(count, self._last_ms[number], number) for number, count in self._counted.items() if number]
        self._connection.executemany("UPDATE names SET events = events + ?, last_ms = ? WHERE id = ?", rows)
        self._flushing = True

    def unflushed(self) -> dict[int, tuple[int, int]]:
        """Return events counted and not written, and when the last came (epoch milliseconds), by the number of the name."""
        return {number: (count, self._last_ms[number]) for number, count in self._counted.items()}

    def selected_by(self, name: str) -> list[int]:
        """Return the numbers of the names that ``events.has_name`` selects: as sent, or all of that type but ``track``."""
        return [
            number
            for (kind, sent), number in [*self._numbers.items(), *self._new.items()]
            if name == (sent if kind == "track" else kind) or (name and name == sent)
        ]

    def newest(self, limit: int) -> list[tuple[str, str, int, int]]:
        """Return type, name, number of events and time of the last one, for the names that came last."""
        rows = self._connection.execute(
            "SELECT id, type, name, events, last_ms FROM names ORDER BY last_ms DESC LIMIT ?", (limit,)
        )
        counted, last_ms = self._counted, self._last_ms
        return [
            (kind, name, events + counted.get(number, 0), last_ms.get(number, stored_ms))
            for number, kind, name, events, stored_ms in rows
        ]
