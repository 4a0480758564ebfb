"""The dedup index: recognize a repeated message id for ``outbox.keep_ids``, and while its event is pending or dead.

Why a false match can be ruled out
----------------------------------
An id is represented by the 128-bit BLAKE2b digest (RFC 7693) of its source and text, and by 32 bits more for the type
and the name of the event: an app that gives one id to an ``identify`` and to a ``track`` means two events. By the
birthday bound, ten thousand million ids within the window make one accidental match with probability 10^20 / 2^129,
about 10^-19. The digest covers the whole text, so ids that differ anywhere have different digests; a zero byte, which
no number contains, separates source and text.

Why the index has two parts
---------------------------
Random keys dirty a page each, so a unique index on them becomes slower the longer the history is
(sidecar/outbox/README.md#measurements). Here the newest ids are in a dictionary. When it is full, or the ids are old
enough, they move to the ``ids`` table as one *batch* in sorted order, which writes neighboring pages together. The
batch moves in *slices* of that order, one with each commit, so that no commit takes long; until the last slice is on
disk, the whole batch is also kept in memory. A commit probes the table with one query. After a crash the newest ids are
read again from the event rows after the last complete batch: bounded work, and no second copy to keep consistent.

``expire`` scans the table in key order, a few thousand rows per step, and deletes what is old and settled. A full scan
takes minutes, and no index on time is needed.
"""

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import msgspec

from sidecar.events import kind_and_name
from sidecar.mapping import Priority
from sidecar.outbox.database import insert_columns
from sidecar.outbox.records import NewEvent

__all__ = ["NEWEST", "DedupIndex", "digest_of", "digests_of"]

# Ids in memory before a batch begins: about 2.5 MiB, and 70 ms of reading after a crash.
NEWEST = 20_000
# Rows of a slice, and more for each id that the commit adds: a batch ends before a quarter of the next has come in.
SLICE = 500
SLICE_PER_ID = 4
EXPIRE_ROWS = 4_000
PREFIX_BYTES = 16
DIGEST_BYTES = 20
OLDER_FORM = "ids_of_the_first_format"  # in ``meta`` while the table may hold such
_PROBE = 900  # parameters of one IN (…): below the limit of every SQLite


class _Envelope(msgspec.Struct):
    messageId: str = ""
    type: Any = msgspec.UNSET
    event: Any = ""
    name: Any = ""
    # The type of an event that is stored shortened: an app may have a ``call`` of its own.
    call: Any = ""
    shortened: Any = msgspec.UNSET


_envelope = msgspec.json.Decoder(_Envelope).decode


def digests_of(events: Iterable[NewEvent]) -> list[bytes]:
    """Return what each event is recognized by, as ``digest_of`` says."""
    digests: list[bytes] = []
    source, begin = -1, _begun(-1).copy
    for event in events:
        if event.source != source:
            source, begin = event.source, _begun(event.source).copy
        digest = begin()  # copied: to begin one costs more than to hash an id
        digest.update(event.message_id.encode("utf-8", "surrogatepass"))
        digests.append(digest.digest() + _digest_of_name(event.kind, event.name))
    return digests


def digest_of(source: int, message_id: str, kind: str, name: str) -> bytes:
    """Return 20 bytes that stand for this id of this source, and for the type and the name of the event.

    The first 16 are of source and id alone: what the first format knew of an event, and what an id is looked up by.
    """
    return prefix_of(source, message_id) + _digest_of_name(kind, name)


def prefix_of(source: int, message_id: str) -> bytes:
    """Return 16 bytes that stand for this id of this source, whatever the event is."""
    digest = _begun(source).copy()
    digest.update(message_id.encode("utf-8", "surrogatepass"))
    return digest.digest()


@lru_cache(maxsize=1024)
def _begun(source: int) -> blake2b:
    return blake2b(b"%d\x00" % source, digest_size=PREFIX_BYTES)


@lru_cache(maxsize=1024)
def _digest_of_name(kind: str, name: str) -> bytes:
    return blake2b(f"{kind}\x00{name}".encode("utf-8", "surrogatepass"), digest_size=4).digest()


def digest_of_body(source: int, body: bytes) -> bytes | None:
    """Return the digest of a stored event; None for a body without a usable id (it is not an object)."""
    try:
        event = _envelope(body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    if not event.messageId:
        return None
    is_shortened = event.type is msgspec.UNSET and event.shortened is not msgspec.UNSET
    kind = event.call if is_shortened else event.type
    return digest_of(source, event.messageId, *kind_and_name(kind, event.event, event.name))


class DedupIndex:
    """The message ids that were accepted, as digests.

    Used by the store inside a transaction: ``unseen``, ``add`` and ``flush``, then ``committed`` or ``rolled_back``.
    ``newest`` is the number of ids in memory at which a batch begins.
    """

    def __init__(self, connection: sqlite3.Connection, *, newest: int = NEWEST) -> None:
        self._connection = connection
        self.newest_max = newest
        self._newest: dict[bytes, int] = {}
        self._uncommitted: dict[bytes, int] = {}  # added by the open transaction
        # The batch that is moving to the table, its sorted keys, how many of them are committed there, and how many the
        # open transaction has inserted.
        self._moving: dict[bytes, int] = {}
        self._order: list[bytes] = []
        self._moved = 0
        self._slice = 0
        # When the first and the last of the newest ids were seen: the first decides when they are due for the table.
        self._first_s = self._last_s = 0
        self._table_empty = connection.execute("SELECT 1 FROM ids LIMIT 1").fetchone() is None
        self._expire_after = b""
        # Ids from before the upgrade of the file stand for source and id alone, until ``keep_ids`` has passed.
        self._has_older_form = bool(connection.execute("SELECT 1 FROM meta WHERE name = ?", (OLDER_FORM,)).fetchone())
        self._older_form_seen = False

    def __len__(self) -> int:
        return len(self._newest) + len(self._moving)

    def reload(self, rows: Iterable[tuple[int, bytes, int, int]]) -> None:
        """Add the ids of event rows (source, body, event id, received ms) after the last batch, at a start.

        A body without a text id is skipped: such an event was not accepted under an id from its body.
        """
        for source, body, event_id, received_ms in rows:
            if digest := digest_of_body(source, body):
                self._first_s = self._first_s or received_ms // 1000
                self._last_s = received_ms // 1000
                self._newest[digest] = event_id

    def unseen(self, digests: Sequence[bytes]) -> set[bytes]:
        """Return the digests that were never added."""
        fresh = set(digests)
        for known in (self._newest, self._moving, self._uncommitted):
            # One after the other: `difference` of several would go over all ids of the second and the third.
            fresh = fresh.difference(known)
        if fresh and not self._table_empty:
            fresh -= self._in_table(list(fresh))
        if fresh and self._has_older_form:
            older = self._in_table(list({digest[:PREFIX_BYTES] for digest in fresh}))
            fresh = {digest for digest in fresh if digest[:PREFIX_BYTES] not in older}
        return fresh

    def event_of(self, digest: bytes) -> int | None:
        """Return the event id that this digest is known by, even in the older form; None if it was never added."""
        for known in (self._uncommitted, self._newest, self._moving):
            if (event_id := known.get(digest)) is not None:
                return event_id
        row = self._connection.execute(
            "SELECT event_id FROM ids WHERE digest IN (?, ?) ORDER BY digest DESC LIMIT 1",
            (digest, digest[:PREFIX_BYTES]),
        ).fetchone()
        return None if row is None else int(row[0])

    def events_of(self, source: int, message_id: str) -> list[int]:
        """Return the event ids that this message id is known by: several where types or names differ.

        It looks at every id in memory, about 3 ms: for one id at a time.
        """
        prefix = prefix_of(source, message_id)
        known = {**self._moving, **self._newest}
        found = {event_id for digest, event_id in known.items() if digest.startswith(prefix)}
        query = "SELECT event_id FROM ids WHERE digest >= ? AND digest <= ?"
        found.update(row[0] for row in self._connection.execute(query, (prefix, prefix + b"\xff" * 4)))
        return sorted(found)

    def _in_table(self, digests: list[bytes]) -> set[bytes]:
        known: set[bytes] = set()
        for start in range(0, len(digests), _PROBE):
            part = digests[start : start + _PROBE]
            marks = ",".join("?" * len(part))
            known.update(
                row[0] for row in self._connection.execute(f"SELECT digest FROM ids WHERE digest IN ({marks})", part)
            )
        return known

    def add(self, ids: Mapping[bytes, int], now_ms: int) -> None:
        """Add digests and their event ids within the open transaction."""
        self._uncommitted.update(ids)
        self._last_s = now_ms // 1000
        self._first_s = self._first_s or self._last_s

    def flush(self, added: int, *, due: bool = False, everything: bool = False) -> int | None:
        """Insert the next slice into the table, inside a transaction that has added ``added`` ids.

        A batch begins when enough ids are in memory, or if ``due``. With ``everything`` all ids in memory are inserted
        at once. Returns the highest event id of the batch if this was its last slice, else None. The rows of events up
        to the returned id are then no longer needed to recognize repeats.
        """
        if self._slice and not everything:
            return None  # one slice per transaction
        if everything:
            self._begin({**self._moving, **self._newest})
        elif not self._moving and (due or len(self._newest) >= self.newest_max):
            self._begin(self._newest)
        if not self._moving:
            return None
        remaining = self._order[self._moved :]
        part = remaining if everything else remaining[: SLICE + SLICE_PER_ID * added]
        moving = self._moving
        columns: dict[str, Sequence[Any]] = {"digest": part, "event_id": [moving[digest] for digest in part]}
        # REPLACE: with ``everything`` the part of the batch that is already in the table is inserted again.
        insert_columns(self._connection, "OR REPLACE INTO ids", columns, {}, {"seen_s": self._last_s})
        self._slice = len(part)
        return max(moving.values()) if part and len(part) == len(remaining) else None

    def _begin(self, batch: dict[bytes, int]) -> None:
        self._moving, self._newest = batch, {}
        self._order, self._moved = sorted(batch), 0
        self._first_s = self._last_s if self._uncommitted else 0

    def due(self, seen_before_s: int) -> bool:
        """Return True if ids in memory were seen before ``seen_before_s``: ids expire only in the table."""
        return bool(self._moving) or (bool(self._newest) and self._first_s < seen_before_s)

    def committed(self) -> None:
        """Take over what the transaction has added and moved: it is on disk."""
        if self._slice:
            self._table_empty = False
            self._moved += self._slice
            self._slice = 0
            if self._moved == len(self._order):
                self._moving, self._order, self._moved = {}, [], 0
        self._newest.update(self._uncommitted)
        self._uncommitted = {}

    def rolled_back(self) -> None:
        """Discard what the transaction has added; what it has moved is still to be moved."""
        self._uncommitted = {}
        self._slice = 0

    def expire(self, age: tuple[str, list[int]], rows: int = EXPIRE_ROWS) -> int:
        """Delete ids that meet ``age``, a condition on ``seen_s``, among the next ``rows``, inside a transaction.

        Ids of pending and dead events stay. Returns the number of deleted ids; after the end of the table the next call
        starts over.
        """
        after = self._expire_after
        end = self._connection.execute(
            "SELECT max(digest) FROM (SELECT digest FROM ids WHERE digest > ? ORDER BY digest LIMIT ?)", (after, rows)
        ).fetchone()[0]
        self._expire_after = end or b""
        if self._has_older_form:
            self._look_for_older_form(after, end)
        if end is None:
            return 0
        # The event of an id is on a random page of the file. So events are looked up only below the oldest pending one:
        # after it most are pending, and thousands of lookups would delete nothing.
        condition, parameters = age
        return self._connection.execute(
            f"DELETE FROM ids WHERE digest > ? AND digest <= ? AND {condition} AND event_id < ? AND NOT EXISTS"
            " (SELECT 1 FROM events WHERE events.id = ids.event_id AND events.state NOT IN (4, 5))",
            (after, end, *parameters, self._oldest_pending()),
        ).rowcount

    def _look_for_older_form(self, after: bytes, end: bytes | None) -> None:
        """Stop looking up ids of the older form once a whole round over the table has found none."""
        if end is None:
            if not self._older_form_seen:
                self._connection.execute("DELETE FROM meta WHERE name = ?", (OLDER_FORM,))
                self._has_older_form = False
            self._older_form_seen = False
            return
        query = "SELECT 1 FROM ids WHERE digest > ? AND digest <= ? AND length(digest) = ? LIMIT 1"
        if self._connection.execute(query, (after, end, PREFIX_BYTES)).fetchone():
            self._older_form_seen = True

    def _oldest_pending(self) -> int:
        """Return the lowest id that is pending and not parked; a number above all ids if there is none."""
        query = "SELECT id FROM events WHERE state = ? AND state < 2 ORDER BY id LIMIT 1"
        rows = [self._connection.execute(query, (state,)).fetchone() for state in Priority]
        return min((row[0] for row in rows if row), default=2**62)
