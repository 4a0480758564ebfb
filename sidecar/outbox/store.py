"""The store: all operations on the outbox file, synchronous, one call at a time.

Rules
-----
* Every write happens inside ``with store.transaction():``. Counters and message ids change with the commit or not at
  all: after an exception the transaction is rolled back and the store is as it was before.
* Counters are numbers in the file, never a ``COUNT(*)``: a start costs the same with ten events and with ten million.
  ``accepted = pending + delivered + dropped + dead`` holds after every commit.
* A call is short: reads are pages, fetched whole. No cursor outlives its call: an open one keeps the WAL from being reset
  (sidecar/outbox/README.md#wal).
* SQLite uses a partial index only for a query that repeats its condition literally, as in ``state = ? AND state < 2``.
* An event id is never used twice, whatever is deleted: the next id is a counter too.
"""

import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import msgspec

from sidecar.events import decode_stored
from sidecar.mapping import Account, Priority
from sidecar.outbox.accounts import AccountMemory
from sidecar.outbox.database import damaged, insert_columns, open_database
from sidecar.outbox.dedup import NEWEST, DedupIndex, digests_of
from sidecar.outbox.file_status import file_id
from sidecar.outbox.names import NameCatalogue
from sidecar.outbox.records import (
    PARKED,
    PENDING,
    PRIORITY_OF,
    Accepted,
    CapUse,
    EventState,
    Failure,
    NewEvent,
    Page,
    Remembered,
    Row,
    Settlement,
    attempts_of,
    columns_of,
    first_failure,
    name_and_user,
)

__all__ = ["PAGE_ROWS", "Claim", "Store"]

PAGE_ROWS: Final = 250
PAGE_BODY_BYTES: Final = 2 * 2**20
VACUUM_PAGES: Final = 256
COPIES_AFTER_VACUUM: Final = 3

_ROWS = (
    "SELECT events.id, state, source, events.user, events.received_ms, body, account, account_from, account_call, retries.attempts,"
    " first_ms, last_ms, counted, over_ms, detail, settled_ms, hashed FROM events LEFT JOIN retries ON retries.id = events.id"
)
# A user's ``seen_ms`` is written at most once an hour: a write per settlement would dirty one more page each.
# Parked rows of the class low are found through a table of their own: the index of the others exists since the first
# format, and another one would be built over all rows of a file that is upgraded.
_LOW_PARKED: Final = "JOIN low_parked ON low_parked.id = events.id WHERE state = ? AND low_parked.user = ?"
_NOT_PARKED: Final = "DELETE FROM low_parked WHERE id = ? AND user = (SELECT user FROM events WHERE id = ?)"
SEEN_EVERY_MS: Final = 3_600_000
_SEEN: Final = "UPDATE users SET seen_ms = ? WHERE user = (SELECT user FROM events WHERE id = ?) AND seen_ms < ?"
_MAYBE_TEXT: Final[Any] = (str, type(None))
_MAYBE_NUMBER: Final[Any] = (int, type(None))
_ROW: Final[tuple[Any, ...]] = (int, int, int, _MAYBE_TEXT, int, bytes, _MAYBE_TEXT, _MAYBE_TEXT, _MAYBE_NUMBER)
_FAILED_ROW: Final[tuple[Any, ...]] = (*_ROW, int, int, int, int, int, str)
_EMPTIED: Final = (
    "UPDATE events SET body = x'7b7d', user = NULL, account = NULL, account_from = NULL, account_call = NULL,"
    " hashed = NULL, history = NULL WHERE id = ?"
)


class Claim(Protocol):
    """Lock the outbox's file before it is opened, or another file before it is renamed to it. Raises Failed."""

    def __call__(self, path: Path | None = None, /) -> object:
        """Lock the file at ``path``, by default at the outbox's path."""


class Store:
    """One outbox file, open for reading and writing.

    ``notice`` builds one sentence for operators about how the file was opened, empty if there is nothing to say.
    ``claim`` locks the file before it is opened. ``configured`` is the path as configured: a link in it may be changed later.
    ``factory`` is the connection class: the seam through which tests make calls fail. Raises what ``open_database`` raises.
    """

    def __init__(
        self,
        path: Path,
        *,
        durability: Literal["disk", "process"] = "disk",
        notice: Callable[["Store"], str] = lambda _store: "",
        factory: type[sqlite3.Connection] = sqlite3.Connection,
        newest_ids: int = NEWEST,
        claim: Claim = lambda _path=None: None,
        configured: Path | None = None,
    ) -> None:
        self.path = path
        self.configured = configured or path
        self.claim = claim
        self._durability: Literal["disk", "process"] = durability
        self._factory = factory
        self._newest_ids = newest_ids
        self.is_open = False
        self._open()
        self.notice = notice(self)

    def _open(self) -> None:
        self.claim()
        self._copied_since_vacuum = 0  # the log may hold a vacuum of the process before
        self.connection = open_database(self.path, durability=self._durability, factory=self._factory)
        try:
            self.connection.execute("SELECT 1 FROM meta").fetchone()  # a first read makes the log
            # At once: what stands at the path later may be another file.
            self.file_ids = [file_id(f"{self.path}{suffix}") for suffix in ("", "-wal", "-shm")]
            self._load()
        except BaseException:
            self.connection.close()  # the file is damaged: recovery must be the only one that has it open
            raise
        self.is_open = True

    def _load(self) -> None:
        self.ids = DedupIndex(self.connection, newest=self._newest_ids)
        self.counters: Counter[str] = Counter(dict(self.connection.execute("SELECT name, value FROM counters")))
        self._changes: Counter[str] = Counter()
        self._page_bytes: int = self.connection.execute("PRAGMA page_size").fetchone()[0]
        self.accounts = AccountMemory(self.connection)
        self.names = NameCatalogue(self.connection)
        self._now_ms = 0
        # Ids that were still in memory when the last process ended: at most a few ten thousand rows are read.
        newest = "SELECT source, body, id, received_ms FROM events WHERE id > ? ORDER BY id"
        self.ids.reload(self.connection.execute(newest, (self.counters["ids_flushed_to"],)))

    def reopen(self) -> None:
        """Discard the connection and all cached state, and read everything again from the file.

        Raises what opening raises, or sqlite3.Error; then the store is unusable until a later ``reopen`` succeeds.
        """
        self.is_open = False
        self.connection.close()
        self._open()

    def close(self) -> None:
        """Move the newest message ids to their table, checkpoint the WAL, and close the file. Raises nothing.

        The first two only make the next start faster: everything committed is on disk already, so a full or failing
        disk is not an error here.
        """
        try:
            # The lock of another program, such as a backup that reads, is not waited for: a stop would look like a disk that hangs.
            self.connection.execute("PRAGMA busy_timeout = 0")
            with self.transaction():
                self.flush_ids(everything=True)
                self.names.flush()
            self.checkpoint(truncate=True)
        except sqlite3.Error:
            pass  # the next start reads the WAL and the ids of the newest rows instead
        finally:
            self.connection.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit everything that the block does as one transaction; it is on disk when the block is left.

        Raises what the block raises, or sqlite3.Error from the commit; then nothing was done.
        """
        # Not a deferred BEGIN: its first write can fail with SQLITE_BUSY_SNAPSHOT at once, whatever the busy timeout.
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.connection.executemany(
                "INSERT INTO counters VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
                [change for change in self._changes.items() if change[1]],
            )
            self.connection.execute("COMMIT")
        except BaseException:
            self._changes.clear()
            for part in (self.ids, self.accounts, self.names):
                part.rolled_back()
            if self.connection.in_transaction:  # some errors make SQLite roll back by itself
                self.connection.execute("ROLLBACK")
            raise
        # Replaced, not changed in place: a reader in another thread sees the counters of one commit.
        dict.update(counters := Counter[str](), self.counters)  # in C, unlike `copy`
        for name, change in self._changes.items():
            counters[name] += change
        self.counters = counters
        self._changes.clear()
        self.ids.committed()
        self.accounts.committed()
        self.names.committed(self._now_ms)

    def count(self, name: str, change: int = 1) -> None:
        """Change a counter within the open transaction."""
        self._changes[name] += change

    def value(self, name: str) -> int:
        """Return a counter as the open transaction sees it; ``counters`` holds the committed ones."""
        return self.counters[name] + self._changes[name]

    # Accepting ------------------------------------------------------------------------------------------------

    def accept(self, groups: Sequence[Sequence[NewEvent]], now_ms: int) -> list[Accepted]:
        """Store the new events of each group, inside a transaction, and return one result per group.

        An event whose message id is known is a repeat and is not stored. Among events of one call with the same id the
        first one is stored.
        """
        self._now_ms = now_ms
        digests = digests_of(chain.from_iterable(groups))
        unseen = self.ids.unseen(digests)
        ids: dict[bytes, int] = {}
        new: list[tuple[int, NewEvent]] = []
        bad: list[tuple[int, NewEvent]] = []  # stored as dead letters
        outcomes: list[Accepted] = []
        next_id = self.value("next_id") + 1
        digest_of_next = iter(digests)
        for group in groups:
            before, repeats = next_id, []
            # The group first: at its end, zip must not have taken the digest of the next one.
            for position, (event, digest) in enumerate(zip(group, digest_of_next, strict=False)):
                if digest not in unseen or digest in ids:
                    repeats.append(position)
                    continue
                (new if event.bad is None else bad).append((next_id, event))
                ids[digest] = next_id
                next_id += 1
            outcomes.append(Accepted(next_id - before, len(repeats), tuple(repeats)))
        if new:
            self._insert_new(new, now_ms)
        if bad:
            self._insert_bad(bad, now_ms)
        self.ids.add(ids, now_ms)
        self.count("accepted", len(ids))
        self.count("next_id", len(ids))
        self.count("repeated", sum(outcome.repeated for outcome in outcomes))
        self.flush_ids(len(ids))
        return outcomes

    def _insert_new(self, new: Sequence[tuple[int, NewEvent]], now_ms: int) -> None:
        self.accounts.begin()
        if self.value("users"):
            self.accounts.load({(event.product, event.user) for _, event in new if event.user})
        states = [int(event.priority) for _, event in new]  # as SQLite takes it, without asking for an adapter
        names = self.names.numbers([(event.kind, event.name) for _, event in new], now_ms)
        usual: dict[str, Sequence[Any]] = {
            "state": states,
            "via": [event.via for _, event in new],
            "hashed": [event.hashed for _, event in new],
        }
        accounts = zip(*self.accounts.decide_each(new), strict=True)
        usual |= zip(("account", "account_from", "account_call"), accounts, strict=True)
        insert_columns(
            self.connection, "INTO events", columns_of(new) | {"name": names}, usual, {"received_ms": now_ms}
        )
        self.count("users", self.accounts.write(now_ms))
        for state in set(states):
            self.count(PENDING[Priority(state)], states.count(state))

    def flush_ids(self, added: int = 0, *, due: bool = False, everything: bool = False) -> None:
        """Move some of the newest message ids to their table, inside a transaction; see ``DedupIndex.flush``."""
        covered = self.ids.flush(added, due=due, everything=everything)
        if covered is not None:
            self.count("ids_flushed_to", covered - self.value("ids_flushed_to"))

    def keep_ids_of(self, event_id: int) -> None:
        """Ensure that the ids of events up to ``event_id`` are in their table, inside a transaction.

        To be called before a row or its body is deleted: after a crash, ids in memory are read again from the rows.
        """
        if event_id > self.value("ids_flushed_to"):
            self.flush_ids(everything=True)

    def _insert_bad(self, bad: Sequence[tuple[int, NewEvent]], now_ms: int) -> None:
        same = {"state": int(EventState.DEAD), "received_ms": now_ms, "settled_ms": now_ms, "reason": "bad_event"}
        insert_columns(self.connection, "INTO events", columns_of(bad), {}, same)
        known = [name_and_user(decode_stored(event.body)) for _, event in bad]
        letters: dict[str, Sequence[Any]] = {
            "id": [event_id for event_id, _ in bad],
            "name": [name for name, _ in known],
            "user": [user for _, user in known],
            "detail": [event.bad for _, event in bad],
        }
        same = {"reason": "bad_event", "attempts": 0, "first_ms": now_ms, "last_ms": now_ms, "payload": b""}
        insert_columns(self.connection, "INTO dead", letters, {}, same)
        self.count("dead:bad_event", len(bad))

    # Settling -------------------------------------------------------------------------------------------------

    def settle(self, settlements: Sequence[Settlement], now_ms: int) -> None:
        """Give pending events their final state, inside a transaction.

        An event that is not pending any more is skipped: an operator may have discarded it, or the settlement is
        repeated after a commit that reported an error and happened. So nothing is counted twice.
        """
        for settlement in settlements:
            reason = settlement.reason or None
            changed = self.connection.execute(
                "UPDATE events SET state = ?, settled_ms = ?, status = ?, reason = ?, attempts = ? WHERE id = ? AND state < 4",
                (settlement.state, now_ms, settlement.status, reason, settlement.attempts, settlement.id),
            ).rowcount
            if not changed:
                continue
            if settlement.first_failed_ms or settlement.attempts > 1:
                self._keep_history(settlement.id)
            self.connection.execute("DELETE FROM retries WHERE id = ?", (settlement.id,))
            self.count(PENDING[settlement.priority], -1)
            if settlement.priority is Priority.LOW:
                self.unlist_parked([settlement.id])
            self.count(f"{settlement.state.name.lower()}:{settlement.reason}".rstrip(":"))
            if settlement.state == EventState.DEAD:
                self._insert_dead_letter(settlement, now_ms)
            if settlement.reason == "suppressed":
                # Nothing of a user that was forgotten for good stays, not even as history. Its message id is not needed:
                # a repeat is dropped as well.
                self.connection.execute(_EMPTIED, (settlement.id,))
            if settlement.cap is not None:
                self._count_cap(settlement.cap)
            if settlement.remember is not None:
                self._remember(settlement.remember, now_ms)
            elif self.counters["users"]:
                # The least recently seen users are forgotten first: any event of a user counts as seen.
                self.connection.execute(_SEEN, (now_ms, settlement.id, now_ms - SEEN_EVERY_MS))

    def _keep_history(self, event_id: int) -> None:
        """Store the failed attempts of an event with it, as its row of ``retries`` is about to be deleted."""
        row = self.connection.execute(
            "SELECT history, retries.attempts, first_ms, last_ms, detail FROM events JOIN retries USING (id) WHERE id = ?",
            (event_id,),
        ).fetchone()
        if row is not None:
            history = msgspec.json.encode(attempts_of(row[0], row[1:])).decode()
            self.connection.execute("UPDATE events SET history = ? WHERE id = ?", (history, event_id))

    def _insert_dead_letter(self, settlement: Settlement, now_ms: int) -> None:
        first_ms = settlement.first_failed_ms or now_ms
        self.connection.execute(
            "INSERT INTO dead SELECT id, ?, ?, user, ?, ?, ?, ?, ?, ? FROM events WHERE id = ?",
            (
                *(settlement.reason, settlement.name, settlement.status, settlement.detail, settlement.attempts),
                *(first_ms, now_ms, settlement.payload, settlement.id),
            ),
        )

    def _count_cap(self, use: CapUse) -> None:
        self.connection.execute(
            "INSERT INTO caps VALUES (?, ?, 1) ON CONFLICT (name, day) DO UPDATE SET taken = taken + 1", use
        )

    def cap_rows(self) -> list[tuple[int, int, int]]:
        """Return how many events were counted for ``per_day``: number of the name, UTC day, events."""
        return self.connection.execute("SELECT name, day, taken FROM caps").fetchall()

    def _remember(self, memory: Remembered, now_ms: int) -> None:
        updated = self.connection.execute(
            "UPDATE users SET known = ?, seen_ms = MAX(seen_ms, ?) WHERE user = ? AND property_key = ?",
            (memory.known, now_ms, memory.user, memory.property_key),
        ).rowcount
        if not updated:
            self.connection.execute(
                "INSERT INTO users (property_key, user, known, seen_ms) VALUES (?, ?, ?, ?)",
                (memory.property_key, memory.user, memory.known, now_ms),
            )
            self.count("users")
        self.accounts.known_changed((memory.property_key, memory.user))

    def record_failures(self, failures: Sequence[Failure]) -> None:
        """Store failed attempts that will be retried, inside a transaction; settled events are skipped."""
        if not failures:
            return
        self.connection.executemany(
            "INSERT OR REPLACE INTO retries SELECT ?, ?, ?, ?, ?, ?, ?"
            " WHERE EXISTS (SELECT 1 FROM events WHERE id = ? AND state < 4)",
            [(*msgspec.structs.astuple(failure)[:7], failure.id) for failure in failures],
        )
        self.connection.executemany(
            "UPDATE events SET history = ? WHERE id = ? AND state < 4",
            [(first_failure(failure), failure.id) for failure in failures if failure.attempts == 1],
        )
        self.count("retries", len(failures))
        self.count("ambiguous", sum(failure.ambiguous for failure in failures))

    # Reading pending events -----------------------------------------------------------------------------------

    def page(self, *, priority: Priority, after_id: int, limit: int = PAGE_ROWS, with_memory: bool = True) -> Page:
        """Return the next pending rows of a class in id order, without the parked ones."""
        rows = self.connection.execute(
            f"{_ROWS} WHERE state = ? AND state < 2 AND events.id > ? ORDER BY events.id LIMIT ?",
            (priority, after_id, limit),
        )
        return self._as_page(rows, limit, with_memory=with_memory)

    def parked_page(self, *, priority: Priority, user: str, after_id: int, limit: int) -> Page:
        """Return the next parked rows of one user in id order."""
        where = _LOW_PARKED if priority is Priority.LOW else "WHERE state = ? AND state IN (2, 3) AND events.user = ?"
        rows = self.connection.execute(
            f"{_ROWS} {where} AND events.id > ? ORDER BY events.id LIMIT ?", (PARKED[priority], user, after_id, limit)
        )
        return self._as_page(rows, limit)

    def parked_rows(self, *, priority: Priority, after: tuple[str, int], limit: int) -> Page:
        """Return the next parked rows of a class after a user and id, by user, then id; without their users' memory."""
        where, of = "WHERE state = ? AND state IN (2, 3)", "events"
        if priority is Priority.LOW:
            where, of = "JOIN low_parked ON low_parked.id = events.id WHERE state = ?", "low_parked"
        query = f"{_ROWS} {where} AND ({of}.user, {of}.id) > (?, ?) ORDER BY {of}.user, {of}.id LIMIT ?"
        rows = self.connection.execute(query, (PARKED[priority], *after, limit))
        return self._as_page(rows, limit, with_memory=False)

    def rows(self, ids: Sequence[int]) -> list[Row]:
        """Return those of these events that are pending, in no particular order; at most ``_PROBE`` ids."""
        marks = ",".join("?" * len(ids))
        found = self.connection.execute(f"{_ROWS} WHERE events.id IN ({marks}) AND state < 4", list(ids))
        return self._as_page(found, len(ids) + 1, with_memory=False).rows

    def _as_page(self, cursor: sqlite3.Cursor, limit: int, *, with_memory: bool = True) -> Page:
        """Read rows up to ``PAGE_BODY_BYTES``, so that large events make short pages and not a large memory."""
        columns: list[Any] = []
        size_bytes = 0
        for row in cursor:
            columns.append(row)
            size_bytes += len(row[5]) if isinstance(row[5], bytes) else 0
            if size_bytes >= PAGE_BODY_BYTES:
                break
        cursor.close()
        for row in columns:
            # The tables are STRICT: another type is damage that SQLite did not see, and would break the mapping later.
            if not all(map(isinstance, row, _FAILED_ROW if row[9] else _ROW)):
                raise damaged(f"the row of event {row[0]} is damaged")
        rows = [
            Row(
                *(event_id, PRIORITY_OF[state], source, user, received_ms, body),
                Failure(event_id, attempts, *rest) if attempts else None,
                retried_ms or 0,
                None if path is None else Account(account or "", path, call_id or 0),
                hashed,
            )
            for event_id, state, source, user, received_ms, body, account, path, call_id, attempts, *rest, retried_ms, hashed in columns
        ]
        return Page(
            rows,
            self.known({row.user for row in rows if row.user is not None}) if with_memory else [],
            len(rows) == limit or size_bytes >= PAGE_BODY_BYTES,
        )

    def known(self, users: set[str]) -> list[Remembered]:
        """Return the memory of these users, of every product."""
        if not users:
            return []
        marks = ",".join("?" * len(users))
        rows = self.connection.execute(
            f"SELECT property_key, user, known FROM users WHERE user IN ({marks})", sorted(users)
        )
        return [Remembered(*row) for row in rows]

    def park(self, ids: Sequence[int]) -> None:
        """Mark pending rows as parked, inside a transaction: ``page`` skips them, ``parked_page`` returns them.

        A row without a user is not parked: parked rows are found by user, so it would never be read again.
        """
        # Three statements, not three for each row: the thread waits for the interpreter before each, as long as a body is parsed.
        listed = (msgspec.json.encode(list(ids)).decode(),)
        among = "id IN (SELECT value FROM json_each(?)) AND user IS NOT NULL"
        self.connection.execute(f"UPDATE events SET state = state + 2 WHERE {among} AND state IN (0, 1)", listed)
        self.connection.execute(
            f"INSERT OR IGNORE INTO low_parked SELECT user, id, received_ms FROM events WHERE {among} AND state = -1",
            listed,
        )
        self.connection.execute(f"UPDATE events SET state = -2 WHERE {among} AND state = -1", listed)

    def unlist_parked(self, ids: Sequence[int]) -> None:
        """Take events of class low off the list of parked ones, inside a transaction, before their rows change."""
        self.connection.executemany(_NOT_PARKED, [(event_id, event_id) for event_id in ids])

    def unpark_all(self) -> None:
        """Make all parked rows ordinary pending rows again, inside a transaction; only while nothing is delivered."""
        self.connection.execute("UPDATE events SET state = state - 2 WHERE state IN (2, 3)")
        self.connection.execute("UPDATE events SET state = -1 WHERE state = -2 AND state < 2")
        self.connection.execute("DELETE FROM low_parked")

    def parked_users(self, *, priority: Priority) -> list[str]:
        """Return the users with parked rows, in order."""
        return [user for user, _ in self.first_parked(priority=priority)]

    def first_parked(self, *, priority: Priority) -> list[tuple[str, int]]:
        """Return the users with parked rows, and the lowest parked id of each.

        One index lookup per user, however many rows each has: ``SELECT DISTINCT`` would scan them all.
        """
        state = PARKED[priority]
        table = "events WHERE state = ? AND state IN (2, 3)"
        if priority is Priority.LOW:
            table = "low_parked WHERE (SELECT state FROM events WHERE events.id = low_parked.id) = ?"
        query = f"SELECT user, id FROM {table} AND user {{}} ? ORDER BY user, id LIMIT 1"
        row = self.connection.execute(query.format(">="), (state, "")).fetchone()
        firsts: list[tuple[str, int]] = []
        while row:
            firsts.append(row)
            row = self.connection.execute(query.format(">"), (state, row[0])).fetchone()
        return firsts

    def oldest_pending_ms(self) -> dict[Priority, int]:
        """Return when the oldest pending event of each class was received, parked ones apart; a class without one is absent."""
        query = "SELECT received_ms FROM events WHERE state = ? AND state < 2 ORDER BY id LIMIT 1"
        rows = {state: self.connection.execute(query, (state,)).fetchone() for state in Priority}
        return {state: row[0] for state, row in rows.items() if row}

    # Small tables of other packages -------------------------------------------------------------------------------

    def source(self, fingerprint: bytes, property_key: str) -> int:
        """Return the number of a source and store its product, inside a transaction; a new source gets a number."""
        self.connection.execute(
            "INSERT INTO sources (fingerprint, property_key) VALUES (?, ?)"
            " ON CONFLICT (fingerprint) DO UPDATE SET property_key = excluded.property_key",
            (fingerprint, property_key),
        )
        row = self.connection.execute("SELECT id FROM sources WHERE fingerprint = ?", (fingerprint,)).fetchone()
        return int(row[0])

    def source_number(self, fingerprint: bytes) -> int:
        """Return the number of a source, -1 if no daemon has run with it yet."""
        row = self.connection.execute("SELECT id FROM sources WHERE fingerprint = ?", (fingerprint,)).fetchone()
        return int(row[0]) if row else -1

    def source_products(self) -> dict[int, str]:
        """Return the property key of every source that was ever configured, by number."""
        return dict(self.connection.execute("SELECT id, property_key FROM sources"))

    def source_fingerprints(self) -> dict[int, str]:
        """Return the fingerprint of every source that was ever configured, in hexadecimal, by number."""
        return dict(self.connection.execute("SELECT id, lower(hex(fingerprint)) FROM sources"))

    def get_meta(self, name: str) -> str | None:
        """Return the text stored under a name; None if there is none."""
        row = self.connection.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return row[0] if row else None

    def set_meta(self, name: str, value: str) -> None:
        """Store a small text under a name, inside a transaction."""
        self.connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))

    def quota_rows(self) -> list[tuple[int, str, int, int]]:
        """Return the requests sent per minute: wall-clock minute, boot id, minute since boot, number of requests."""
        return self.connection.execute("SELECT minute, boot_id, boot_minute, sent FROM quota").fetchall()

    def save_quota(self, rows: Sequence[tuple[int, str, int, int]], *, drop_before: int, replaces_all: bool) -> None:
        """Write some minutes of the day's quota, inside a transaction.

        Deletes all others if ``replaces_all``, else the same minutes and those before ``drop_before`` of the same boots.
        """
        if replaces_all:
            self.connection.execute("DELETE FROM quota")
        else:
            boots = {(drop_before, row[1]) for row in rows}
            self.connection.executemany("DELETE FROM quota WHERE boot_minute < ? AND boot_id = ?", boots)
            same = [row[1:3] for row in rows]
            self.connection.executemany("DELETE FROM quota WHERE boot_id = ? AND boot_minute = ?", same)
        self.connection.executemany("INSERT INTO quota VALUES (?, ?, ?, ?)", rows)

    def pending(self) -> int:
        """Return the number of pending events, parked ones included."""
        return sum(self.counters[name] for name in PENDING.values())

    def checkpoint(self, *, truncate: bool = False) -> None:
        """Copy the WAL into the file, outside of a transaction; ``truncate`` empties the WAL file as well."""
        mode = "TRUNCATE" if truncate else "PASSIVE"
        _, frames, copied = self.connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchall()[0]
        self._copied_since_vacuum += frames == copied

    @property
    def may_shrink(self) -> bool:
        """True if SQLite may make the file smaller: free pages were returned, and the log was copied at most twice since then."""
        return self._copied_since_vacuum < COPIES_AFTER_VACUUM

    def vacuum(self) -> bool:
        """Return free pages to the file system, outside of a transaction; the file shrinks at the next checkpoint.

        Returns True if there are more. While something is pending they are kept: the next events need them.
        """
        if self.pending():
            return False
        # Not `execute`: the pragma returns no columns, so it would be stepped once and free one page.
        if self.connection.execute("PRAGMA freelist_count").fetchone()[0]:
            self._copied_since_vacuum = 0
        self.connection.executescript(f"PRAGMA incremental_vacuum({VACUUM_PAGES})")
        return bool(self.connection.execute("PRAGMA freelist_count").fetchone()[0])

    def used_bytes(self) -> int:
        """Return the bytes that rows and indexes take in the file, without its free pages."""
        pages, free = (
            self.connection.execute(f"PRAGMA {pragma}").fetchone()[0] for pragma in ("page_count", "freelist_count")
        )
        return int((pages - free) * self._page_bytes)
