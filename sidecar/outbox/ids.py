"""Recognising a repeated message id, for as long as ``outbox.keep_ids`` and longer while its event is pending or dead.

Why a false match is out of the question
----------------------------------------
An id is known by the 128-bit BLAKE2b digest of its source and text. By the birthday bound, ten thousand million ids
within the window make one chance match with probability 10^20 / 2^129, about 10^-19. The digest is of the whole text,
so ids that differ anywhere differ in the digest; source and text are separated by a byte that no number contains.

Why it is built like this
-------------------------
Random keys dirty a page each, so a unique index costs more the longer the history (facts: ``field_lessons.md`` M21).
Here the newest ids live in a dictionary; when it is full, or they get old, they move to the ``ids`` table as one sorted
batch, which touches neighbouring pages together. They move in slices of that order, one with each commit, so that no
commit takes long; until the last slice is on disk the whole batch is known from memory. A commit asks the table with
one probe. After a crash the newest ids are read again from the event rows behind the last whole batch: bounded work,
and nothing to keep in step.

The sweeper walks the table in key order, a few thousand rows at a time, and deletes what is old and settled: a round
takes minutes and no index on time is needed.
"""

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b

import msgspec

from sidecar.outbox.bulk import insert_rows

__all__ = ["NEWEST", "MessageIds", "digest_of"]

# 20,000 entries are about 2.5 MiB of memory, and 70 ms of reading after a crash.
NEWEST = 20_000
# A commit moves so many, and some for each id it adds: a batch is through before a quarter of the next has come.
SLICE = 500
SLICE_PER_ID = 4
SWEEP_ROWS = 4_000
_PROBE = 900  # parameters of one IN (…), below every SQLite's limit


class _Envelope(msgspec.Struct):
    messageId: str = ""


_envelope = msgspec.json.Decoder(_Envelope).decode


def digest_of(source: int, message_id: str) -> bytes:
    """16 bytes that stand for this id of this source."""
    return blake2b(b"%d\x00%b" % (source, message_id.encode("utf-8", "surrogatepass")), digest_size=16).digest()


class MessageIds:
    """The ids that were seen.

    Used by the store inside a transaction: ``unseen`` and ``add``, then ``committed`` or ``rolled_back``.
    """

    def __init__(self, connection: sqlite3.Connection, *, newest: int = NEWEST) -> None:
        self._connection = connection
        self._newest_max = newest
        self._newest: dict[bytes, int] = {}
        self._uncommitted: dict[bytes, int] = {}
        # The batch on its way to the table, its order, how much of it is there, and how much the open transaction adds.
        self._moving: dict[bytes, int] = {}
        self._order: list[bytes] = []
        self._moved = 0
        self._slice = 0
        # When the first and the last of the newest were seen: the first says when they are due for the table.
        self._first_s = self._last_s = 0
        self._table_empty = connection.execute("SELECT 1 FROM ids LIMIT 1").fetchone() is None
        self._sweep_after = b""

    def __len__(self) -> int:
        return len(self._newest) + len(self._moving)

    def recall(self, rows: Iterable[tuple[int, bytes, int, int]]) -> None:
        """Take back the ids of event rows (source, body, event id, received ms) behind the last batch, after a start.

        A body without a usable id (it is not an object) was never known by one.
        """
        for source, body, event_id, received_ms in rows:
            try:
                message_id = _envelope(body).messageId
            except (msgspec.MsgspecError, UnicodeDecodeError):
                continue
            if message_id:
                self._first_s = self._first_s or received_ms // 1000
                self._last_s = received_ms // 1000
                self._newest[digest_of(source, message_id)] = event_id

    def unseen(self, digests: Sequence[bytes]) -> set[bytes]:
        """Those that were never added."""
        fresh = set(digests).difference(self._newest, self._moving, self._uncommitted)
        if fresh and not self._table_empty:
            fresh -= self._in_table(list(fresh))
        return fresh

    def _in_table(self, digests: list[bytes]) -> set[bytes]:
        found: set[bytes] = set()
        for start in range(0, len(digests), _PROBE):
            part = digests[start : start + _PROBE]
            marks = ",".join("?" * len(part))
            found.update(
                row[0] for row in self._connection.execute(f"SELECT digest FROM ids WHERE digest IN ({marks})", part)
            )
        return found

    def add(self, ids: Mapping[bytes, int], now_ms: int) -> None:
        """Remember digests and their event ids within the open transaction."""
        self._uncommitted.update(ids)
        self._last_s = now_ms // 1000
        self._first_s = self._first_s or self._last_s

    def flush(self, added: int, *, due: bool = False, all_of_them: bool = False) -> int | None:
        """Move a slice to the table, inside a transaction that has ``added`` so many.

        A batch begins when the newest are many, or ``due``; ``all_of_them`` go at once. Returns the highest event id
        that the table now covers if a batch is through, else None: the rows of events up to that id are no longer
        needed for recognising repeats.
        """
        if self._slice and not all_of_them:
            return None  # this transaction has moved its slice
        if all_of_them:
            self._begin({**self._moving, **self._newest})
        elif not self._moving and (due or len(self._newest) >= self._newest_max):
            self._begin(self._newest)
        left = self._order[self._moved :]
        part = left if all_of_them else left[: SLICE + SLICE_PER_ID * added]
        moving = self._moving
        rows = [(digest, moving[digest], self._last_s) for digest in part]
        insert_rows(self._connection, "OR REPLACE INTO ids", rows)
        self._slice = len(part)
        return max(moving.values()) if part and len(part) == len(left) else None

    def _begin(self, batch: dict[bytes, int]) -> None:
        self._moving, self._newest = batch, {}
        self._order, self._moved = sorted(batch), 0
        self._first_s = self._last_s if self._uncommitted else 0

    def due(self, seen_before_s: int) -> bool:
        """Whether some were seen before that and are not in the table: only there they can be swept."""
        return bool(self._moving) or (bool(self._newest) and self._first_s < seen_before_s)

    def committed(self) -> None:
        """The transaction is on disk."""
        if self._slice:
            self._table_empty = False
            self._moved += self._slice
            self._slice = 0
            if self._moved == len(self._order):
                self._moving, self._order, self._moved = {}, [], 0
        self._newest.update(self._uncommitted)
        self._uncommitted = {}

    def rolled_back(self) -> None:
        """The transaction is undone: what was added in it was never seen, what it moved is still to be moved."""
        self._uncommitted = {}
        self._slice = 0

    def sweep(self, seen_before_s: int, now_s: int, rows: int = SWEEP_ROWS) -> int:
        """Delete, among the next ``rows`` of the table, what is old and belongs to no pending or dead event.

        Inside a transaction. Returns how many were deleted; at the end of the table the next call starts over. What
        seems to come from the future (the clock was set back) counts as seen now.

        Looking up the event of an id is a look at a random page of the file, so it is done only for events older than
        the oldest that is pending in front: with a backlog of a day, behind it all are pending, and nothing is due.
        """
        after = self._sweep_after
        end = self._connection.execute(
            "SELECT max(digest) FROM (SELECT digest FROM ids WHERE digest > ? ORDER BY digest LIMIT ?)", (after, rows)
        ).fetchone()[0]
        self._sweep_after = end or b""
        if end is None:
            return 0
        self._connection.execute(
            "UPDATE ids SET seen_s = ? WHERE digest > ? AND digest <= ? AND seen_s > ?", (now_s, after, end, now_s)
        )
        return self._connection.execute(
            "DELETE FROM ids WHERE digest > ? AND digest <= ? AND seen_s < ? AND event_id < ? AND NOT EXISTS"
            " (SELECT 1 FROM events WHERE events.id = ids.event_id AND events.state NOT IN (4, 5))",
            (after, end, seen_before_s, self._oldest_pending()),
        ).rowcount

    def _oldest_pending(self) -> int:
        """The lowest id that is pending and not set aside; beyond all ids if none is."""
        query = "SELECT id FROM events WHERE state = ? AND state < 2 ORDER BY id LIMIT 1"
        found = [self._connection.execute(query, (state,)).fetchone() for state in (0, 1)]
        return min((row[0] for row in found if row), default=2**62)
