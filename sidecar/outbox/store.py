"""The store: everything that is done to the outbox file, synchronously, one call at a time.

Rules
-----
* Who writes does so inside ``with store.transaction():``; counters and message ids change with the commit or not at
  all. After an exception the transaction is undone and the store is as it was before.
* Counters are numbers in the file, never a ``COUNT(*)``: starting and asking cost the same with ten events and with
  ten million. ``accepted = pending + delivered + dropped + dead`` holds after every commit.
* A call is short: reads are pages, fetched whole; no cursor outlives its call, so that the WAL can always be reset.
* A partial index is used only by a query that repeats its condition word for word, as in ``state = ? AND state < 2``.
* An id is given once and never again, whatever is deleted: the next one is a counter too.
"""

import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from sidecar.events import decode_stored
from sidecar.outbox.bulk import insert_rows
from sidecar.outbox.database import damaged, open_database
from sidecar.outbox.ids import MessageIds, digest_of
from sidecar.outbox.records import Accepted, Failure, NewEvent, Page, Remembered, Row, Settlement, State

__all__ = ["PAGE_ROWS", "Store"]

PAGE_ROWS: Final = 250
VACUUM_PAGES: Final = 256

_PENDING = {False: "pending_normal", True: "pending_high"}
_ROWS = (
    "SELECT events.id, state, source, user, received_ms, body, retries.attempts, first_ms, last_ms, counted, over_ms, detail,"
    " settled_ms FROM events LEFT JOIN retries ON retries.id = events.id"
)
SEEN_EVERY_MS: Final = 3_600_000
_SEEN: Final = "UPDATE users SET seen_ms = ? WHERE user = (SELECT user FROM events WHERE id = ?) AND seen_ms < ?"
_MAYBE_TEXT: Final[Any] = (str, type(None))
_ROW: Final[tuple[Any, ...]] = (int, int, int, _MAYBE_TEXT, int, bytes)
_FAILED_ROW: Final[tuple[Any, ...]] = (*_ROW, int, int, int, int, int, str)


class Store:
    """One outbox file, open for reading and writing.

    ``factory`` is the connection's class: the seam through which tests make calls fail. Raises what
    ``open_database`` raises.
    """

    def __init__(
        self,
        path: Path,
        *,
        durability: Literal["disk", "process"] = "disk",
        factory: type[sqlite3.Connection] = sqlite3.Connection,
    ) -> None:
        self.path = path
        self.notice = ""  # what people should know of how it was opened, as a sentence
        self._durability: Literal["disk", "process"] = durability
        self._factory = factory
        self._open()

    def _open(self) -> None:
        self.connection = open_database(self.path, durability=self._durability, factory=self._factory)
        try:
            self._recall()
        except BaseException:
            self.connection.close()  # it met damage; whoever recovers the file is to have it alone
            raise

    def _recall(self) -> None:
        self.ids = MessageIds(self.connection)
        self.counters: Counter[str] = Counter(dict(self.connection.execute("SELECT name, value FROM counters")))
        self._changes: Counter[str] = Counter()
        self._page_bytes: int = self.connection.execute("PRAGMA page_size").fetchone()[0]
        newest = "SELECT source, body, id, received_ms FROM events WHERE id > ? ORDER BY id"
        self.ids.recall(self.connection.execute(newest, (self.counters["ids_flushed_to"],)))

    def reopen(self) -> None:
        """Trust nothing of the connection any more: close it and read everything again from the file.

        Raises what opening raises, or sqlite3.Error; the store is then unusable until another ``reopen`` succeeds.
        """
        self.connection.close()
        self._open()

    def close(self) -> None:
        """Move the newest message ids to their table, so that the next start reads none again; checkpoint and close.

        Both are only savings: what was committed is on disk whether or not this is reached, so that a disk which
        refuses them (it is full, it fails) is no reason to fail.
        """
        try:
            with self.transaction():
                self.flush_ids(all_of_them=True)
            self.checkpoint(truncate=True)
        except sqlite3.Error:
            pass  # the next start reads the WAL and the ids of the newest rows instead
        finally:
            self.connection.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All that is done inside is committed together, and on disk when the block is left.

        Raises what the block raises, or sqlite3.Error from the commit; then nothing was done.
        """
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
            self.ids.rolled_back()
            if self.connection.in_transaction:  # some errors have undone it already
                self.connection.execute("ROLLBACK")
            raise
        # Replaced and not changed: whoever reads them in another thread sees those of one commit.
        counters = self.counters.copy()
        counters.update(self._changes)
        self.counters = counters
        self._changes.clear()
        self.ids.committed()

    def count(self, name: str, change: int = 1) -> None:
        """Change a counter within the open transaction."""
        self._changes[name] += change

    def value(self, name: str) -> int:
        """A counter as the open transaction sees it; ``counters`` holds what is committed."""
        return self.counters[name] + self._changes[name]

    # Accepting ------------------------------------------------------------------------------------------------

    def accept(self, groups: Sequence[Sequence[NewEvent]], now_ms: int) -> list[Accepted]:
        """Store what is new of each group, inside a transaction; a repeated message id is stored once.

        Two events of one call with the same id count as repeats too, the first one wins.
        """
        keys = [[digest_of(event.source, event.message_id) for event in group] for group in groups]
        unseen = self.ids.unseen([digest for group in keys for digest in group])
        ids: dict[bytes, int] = {}
        rows: list[tuple[int, int, int, str | None, int, bytes]] = []
        bad: list[tuple[int, NewEvent]] = []
        outcomes: list[Accepted] = []
        next_id = self.value("next_id") + 1
        high = 0
        for group, digests in zip(groups, keys, strict=True):
            before = next_id
            for event, digest in zip(group, digests, strict=True):
                if digest not in unseen or digest in ids:
                    continue
                source, is_high, user, _, body, why_bad = event
                if why_bad is None:
                    rows.append((next_id, is_high, source, user, now_ms, body))
                    high += is_high
                else:
                    bad.append((next_id, event))
                ids[digest] = next_id
                next_id += 1
            outcomes.append(Accepted(next_id - before, len(group) - (next_id - before)))
        insert_rows(self.connection, "INTO events (id, state, source, user, received_ms, body)", rows)
        self._bury_bad(bad, now_ms)
        self.ids.add(ids, now_ms)
        self.count("accepted", len(ids))
        self.count("next_id", len(ids))
        self.count("repeated", sum(outcome.repeated for outcome in outcomes))
        self.count("pending_high", high)
        self.count("pending_normal", len(rows) - high)
        self.flush_ids(len(ids))
        return outcomes

    def flush_ids(self, added: int = 0, *, due: bool = False, all_of_them: bool = False) -> None:
        """Move some of the newest message ids to their table, inside a transaction; see ``MessageIds.flush``."""
        covered = self.ids.flush(added, due=due, all_of_them=all_of_them)
        if covered is not None:
            self.count("ids_flushed_to", covered - self.value("ids_flushed_to"))

    def keep_ids_of(self, event_id: int) -> None:
        """Before a row or its body goes, inside a transaction: what recognises repeats of it must outlive it."""
        if event_id > self.value("ids_flushed_to"):
            self.flush_ids(all_of_them=True)

    def _bury_bad(self, bad: Sequence[tuple[int, NewEvent]], now_ms: int) -> None:
        for event_id, event in bad:
            name = decode_stored(event.body).get("event")
            self.connection.execute(
                "INSERT INTO events (id, state, source, user, received_ms, body, settled_ms, reason)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, 'bad_event')",
                (event_id, State.DEAD, event.source, event.user, now_ms, event.body, now_ms),
            )
            self.connection.execute(
                "INSERT INTO dead VALUES (?, 'bad_event', ?, ?, NULL, ?, 0, ?, ?, x'')",
                (event_id, name if isinstance(name, str) else "", event.user, event.bad, now_ms, now_ms),
            )
            self.count("dead:bad_event")

    # Settling -------------------------------------------------------------------------------------------------

    def settle(self, settlements: Sequence[Settlement], now_ms: int) -> None:
        """Give pending events their final state, inside a transaction.

        One that is not pending any more (an operator was faster) is passed over, so that nothing is counted twice.
        """
        for one in settlements:
            changed = self.connection.execute(
                "UPDATE events SET state = ?, settled_ms = ?, status = ?, reason = ?, attempts = ? WHERE id = ? AND state < 4",
                (one.state, now_ms, one.status, one.reason or None, one.attempts, one.id),
            ).rowcount
            if not changed:
                continue
            self.connection.execute("DELETE FROM retries WHERE id = ?", (one.id,))
            self.count(_PENDING[one.high], -1)
            self.count(f"{one.state.name.lower()}:{one.reason}".rstrip(":"))
            if one.state == State.DEAD:
                self._bury(one, now_ms)
            if one.remember is not None:
                self._remember(one.remember, now_ms)
            elif self.counters["users"]:  # who is least recently seen leaves first
                self.connection.execute(_SEEN, (now_ms, one.id, now_ms - SEEN_EVERY_MS))

    def _bury(self, one: Settlement, now_ms: int) -> None:
        first_ms = one.first_failed_ms or now_ms
        self.connection.execute(
            "INSERT INTO dead SELECT id, ?, ?, user, ?, ?, ?, ?, ?, ? FROM events WHERE id = ?",
            (one.reason, one.name, one.status, one.detail, one.attempts, first_ms, now_ms, one.payload, one.id),
        )

    def _remember(self, one: Remembered, now_ms: int) -> None:
        known = self.connection.execute(
            "UPDATE users SET known = ?, seen_ms = ? WHERE user = ? AND property_key = ?",
            (one.known, now_ms, one.user, one.property_key),
        ).rowcount
        if not known:
            self.connection.execute(
                "INSERT INTO users VALUES (?, ?, ?, ?)", (one.property_key, one.user, one.known, now_ms)
            )
            self.count("users")

    def note_failures(self, failures: Sequence[Failure]) -> None:
        """Remember attempts that failed and will be repeated, inside a transaction."""
        self.connection.executemany(
            "INSERT OR REPLACE INTO retries SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7"
            " WHERE EXISTS (SELECT 1 FROM events WHERE id = ?1 AND state < 4)",
            [msgspec.structs.astuple(one)[:7] for one in failures],
        )
        self.count("retries", len(failures))
        self.count("ambiguous", sum(one.ambiguous for one in failures))

    # Reading what is pending ----------------------------------------------------------------------------------

    def page(self, *, high: bool, after_id: int, limit: int = PAGE_ROWS) -> Page:
        """The next pending rows of a class, those set aside left out, in id order."""
        found = self.connection.execute(
            f"{_ROWS} WHERE state = ? AND state < 2 AND events.id > ? ORDER BY events.id LIMIT ?",
            (State.HIGH if high else State.NORMAL, after_id, limit),
        ).fetchall()
        return self._as_page(found, limit)

    def aside_page(self, *, high: bool, user: str, after_id: int, limit: int) -> Page:
        """The next rows of one user that were set aside, in id order."""
        found = self.connection.execute(
            f"{_ROWS} WHERE state = ? AND state IN (2, 3) AND events.user = ? AND events.id > ? ORDER BY events.id LIMIT ?",
            (State.HIGH_ASIDE if high else State.NORMAL_ASIDE, user, after_id, limit),
        ).fetchall()
        return self._as_page(found, limit)

    def _as_page(self, found: list[Any], limit: int) -> Page:
        for row in found:
            if not all(map(isinstance, row, _FAILED_ROW if row[6] else _ROW)):
                raise damaged(f"the row of event {row[0]} is damaged")
        rows = [
            Row(
                *(event_id, state in (State.HIGH, State.HIGH_ASIDE), source, user, received_ms, body),
                Failure(event_id, attempts, *rest) if attempts else None,
                retried_ms or 0,
            )
            for event_id, state, source, user, received_ms, body, attempts, *rest, retried_ms in found
        ]
        return Page(rows, self.known({row.user for row in rows if row.user is not None}), len(rows) == limit)

    def known(self, users: set[str]) -> list[Remembered]:
        """What is remembered of these users, of any product."""
        if not users:
            return []
        marks = ",".join("?" * len(users))
        known = self.connection.execute(
            f"SELECT property_key, user, known FROM users WHERE user IN ({marks})", sorted(users)
        )
        return [Remembered(*one) for one in known]

    def set_aside(self, ids: Sequence[int]) -> None:
        """Take pending rows out of the way of ``page``, inside a transaction; ``aside_page`` finds them.

        A row without a user stays where it is: there it would not be found again.
        """
        self.connection.executemany(
            "UPDATE events SET state = state + 2 WHERE id = ? AND state < 2 AND user IS NOT NULL",
            [(one,) for one in ids],
        )

    def bring_back(self) -> None:
        """Put all that is set aside back in its place, inside a transaction, while nobody delivers."""
        self.connection.execute("UPDATE events SET state = state - 2 WHERE state IN (2, 3)")

    def users_aside(self, *, high: bool) -> list[str]:
        """The users with rows set aside."""
        return [user for user, _ in self.first_aside(high=high)]

    def first_aside(self, *, high: bool) -> list[tuple[str, int]]:
        """The users with rows set aside, and the first of their ids: one short look each, whatever is behind it."""
        state = State.HIGH_ASIDE if high else State.NORMAL_ASIDE
        query = (
            "SELECT user, id FROM events WHERE state = ? AND state IN (2, 3) AND user {} ? ORDER BY user, id LIMIT 1"
        )
        found = self.connection.execute(query.format(">="), (state, "")).fetchone()
        firsts: list[tuple[str, int]] = []
        while found:
            firsts.append(found)
            found = self.connection.execute(query.format(">"), (state, found[0])).fetchone()
        return firsts

    def oldest_pending_ms(self) -> int | None:
        """When the oldest event that is pending and not set aside was received."""
        query = "SELECT received_ms FROM events WHERE state = ? AND state < 2 ORDER BY id LIMIT 1"
        found = [self.connection.execute(query, (state,)).fetchone() for state in (State.NORMAL, State.HIGH)]
        return min((row[0] for row in found if row), default=None)

    # Small things the rooms above keep --------------------------------------------------------------------------

    def source(self, fingerprint: bytes, property_key: str) -> int:
        """The number of a source, given now if it is new, inside a transaction; its product is brought up to date."""
        self.connection.execute(
            "INSERT INTO sources (fingerprint, property_key) VALUES (?, ?)"
            " ON CONFLICT (fingerprint) DO UPDATE SET property_key = excluded.property_key",
            (fingerprint, property_key),
        )
        found = self.connection.execute("SELECT id FROM sources WHERE fingerprint = ?", (fingerprint,)).fetchone()
        return int(found[0])

    def source_products(self) -> dict[int, str]:
        """The property key of every source that ever was configured."""
        return dict(self.connection.execute("SELECT id, property_key FROM sources"))

    def get_meta(self, name: str) -> str | None:
        """A small text that a room above keeps here."""
        found = self.connection.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return found[0] if found else None

    def set_meta(self, name: str, value: str) -> None:
        """Keep a small text, inside a transaction."""
        self.connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))

    def quota_rows(self) -> list[tuple[int, str, int, int]]:
        """Requests sent, per minute: wall-clock minute, boot, minute of the boot, how many."""
        return self.connection.execute("SELECT minute, boot_id, boot_minute, sent FROM quota").fetchall()

    def save_quota(self, rows: Sequence[tuple[int, str, int, int]], *, drop_before: int, replaces_all: bool) -> None:
        """Write some minutes of the day's quota, inside a transaction, and drop those that do not count any more."""
        if replaces_all:
            self.connection.execute("DELETE FROM quota")
        self.connection.execute("DELETE FROM quota WHERE boot_minute < ?", (drop_before,))
        self.connection.executemany("DELETE FROM quota WHERE boot_minute = ?", [(row[2],) for row in rows])
        self.connection.executemany("INSERT INTO quota VALUES (?, ?, ?, ?)", rows)

    def pending(self) -> int:
        """How many events are pending."""
        return self.counters["pending_normal"] + self.counters["pending_high"]

    def checkpoint(self, *, truncate: bool = False) -> None:
        """Copy the WAL into the file, outside of a transaction; ``truncate`` makes the WAL empty too."""
        self.connection.execute(f"PRAGMA wal_checkpoint({'TRUNCATE' if truncate else 'PASSIVE'})").fetchall()

    def tidy(self) -> bool:
        """Copy the WAL into the file and, while nothing is pending, give free pages back; True if there are more.

        Outside of a transaction. With a backlog free pages are left alone: the next events need them.
        """
        self.checkpoint()
        if self.pending():
            return False
        # Not `execute`: this pragma has no columns, so that it would be stepped once, and free one page.
        self.connection.executescript(f"PRAGMA incremental_vacuum({VACUUM_PAGES})")
        return bool(self.connection.execute("PRAGMA freelist_count").fetchone()[0])

    def used_bytes(self) -> int:
        """What the rows and indexes take in the file; free pages inside it are not counted."""
        pages, free = (
            self.connection.execute(f"PRAGMA {pragma}").fetchone()[0] for pragma in ("page_count", "freelist_count")
        )
        return int((pages - free) * self._page_bytes)
