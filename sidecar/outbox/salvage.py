"""Salvage: copy everything that can be read of a damaged outbox into a new one.

The pages are read in file order, and the table of each record is recognized by its shape: the number and types of
columns differ between all tables of the outbox. Neither the schema nor any inner page is needed. If two pages hold
different versions of an event (after damage to the WAL), the later state wins.

The counters are recomputed from the rows. What rows do not show, such as delivered events whose rows are pruned, is
taken from the old counters. Accepted events that are not found in any state become ``dropped: damaged``; the number of
accepted events never becomes lower.

The new file has no write-ahead log while it is filled: a salvage then needs the space of the rows and not more, and its
last step is one sync that reports its errors. What a failed salvage leaves is of no use.
"""

import errno
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import msgspec

from sidecar.outbox.dedup import DIGEST_BYTES, OLDER_FORM, PREFIX_BYTES, digest_of_body
from sidecar.outbox.forget import SUPPRESSED_BYTES
from sidecar.outbox.pages import Pages, Record
from sidecar.outbox.records import PENDING, PRIORITY_OF, EventState
from sidecar.outbox.store import Store

__all__ = ["DAMAGE", "Salvaged", "recognizes", "salvage", "table_of"]

DAMAGE: Final = "damage"  # the name in ``meta`` under which the new outbox stores the ``Salvaged`` record
BATCH: Final = 5_000
BATCH_BYTES: Final = 4 * 2**20
PROGRESS_EVERY_S: Final = 0.5
PROGRESS_STEPS: Final = 200_000  # of SQLite's virtual machine between two looks at the clock, a few milliseconds
EXAMINED_PAGES: Final = 10_000  # a file without a record in this many pages is not an outbox
DAY_MS: Final = 86_400_000
DAYS: Final = (10_000, 100_000)  # since 1970: from 1997 to 2243

_INT, _TEXT, _BLOB = (int,), (str,), (bytes,)
_MAYBE_INT, _MAYBE_TEXT, _NOTHING = (int, type(None)), (str, type(None)), (type(None),)
_Shape = tuple[tuple[type, ...], ...]
_FIRST_EVENT: Final[_Shape] = (
    *(_NOTHING, _INT, _INT, _MAYBE_TEXT, _INT, _BLOB, _MAYBE_INT, _MAYBE_INT, _MAYBE_TEXT, _MAYBE_INT),
)
_FIRST_USER: Final[_Shape] = (_TEXT, _TEXT, _BLOB, _INT)
# The column types of each table as they are stored: a rowid table has NULL in place of its id, the others begin with
# their primary key.
_SHAPES: Final[dict[str, _Shape]] = {
    "events": (
        *_FIRST_EVENT,
        *(_MAYBE_TEXT, _MAYBE_TEXT, _MAYBE_INT, _MAYBE_INT, _MAYBE_INT, _MAYBE_TEXT, _MAYBE_TEXT),
    ),
    "events of the first format": _FIRST_EVENT,
    "names": (_NOTHING, _TEXT, _TEXT, _INT, _INT, _INT),
    "audit": (_NOTHING, _INT, _TEXT, _TEXT, _TEXT),
    "suppressed": (_BLOB, _INT),
    "dead": (_NOTHING, _TEXT, _TEXT, _MAYBE_TEXT, _MAYBE_INT, _TEXT, _INT, _INT, _INT, _BLOB),
    "retries": (_NOTHING, _INT, _INT, _INT, _INT, _INT, _TEXT),
    "sources": (_NOTHING, _BLOB, _TEXT),
    "ids": (_BLOB, _INT, _INT),
    "users": (*_FIRST_USER, _MAYBE_TEXT, _MAYBE_TEXT, _MAYBE_INT),
    "users of the first format": _FIRST_USER,
    "counters": (_TEXT, _INT),
    "meta": (_TEXT, _TEXT),
    "quota": (_INT, _TEXT, _INT, _INT),
    "caps": (_INT, _INT, _INT),
}
_BY_WIDTH: Final[dict[int, list[tuple[str, _Shape]]]] = {
    width: [(name, shape) for name, shape in _SHAPES.items() if len(shape) == width]
    for width in {len(shape) for shape in _SHAPES.values()}
}
_INSERT_LATER_STATE: Final = (
    "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
    " ON CONFLICT (id) DO UPDATE SET state = excluded.state,"
    " settled_ms = excluded.settled_ms, status = excluded.status, reason = excluded.reason, attempts = excluded.attempts"
    " WHERE excluded.state > state"
)
# Rows of older formats, and their tables: such a row ends before the columns that were appended later.
_OLDER_SHAPES: Final = {"events of the first format": "events", "users of the first format": "users"}
_INSERT: Final = {
    "events": _INSERT_LATER_STATE,
    **{
        name: f"INSERT OR IGNORE INTO {name} VALUES ({', '.join('?' * len(shape))})"
        for name, shape in _SHAPES.items()
        if name != "events" and name not in _OLDER_SHAPES
    },
    # In the order of the file: the primary key (user, property_key) first.
    "users": "INSERT OR IGNORE INTO users (user, property_key, known, seen_ms, account, account_from, account_call)"
    " VALUES (?, ?, ?, ?, ?, ?, ?)",
    "counters": "INSERT OR IGNORE INTO old_counters VALUES (?, ?)",
}
_NAME: Final = re.compile(r"[a-z0-9_]+(:[a-z_]+)?")
_REASON: Final = "damaged"


class Salvaged(msgspec.Struct, frozen=True):
    """The result of a salvage, in numbers of events; ``lost`` were accepted and are not found in any state.

    ``frames_lost`` parts of the log could not be read, and what they held is not known. ``counters_lost`` is true if the
    counters could not be read or contradicted each other: then ``lost`` includes events whose rows had been pruned.
    """

    why: str = ""
    set_aside: str = ""
    pending: int = 0
    dead: int = 0
    history: int = 0
    lost: int = 0
    frames_lost: int = 0
    counters_lost: bool = False


def recognizes(source: Path) -> bool:
    """Return True if the first pages of a file hold at least one record of an outbox."""
    pages = Pages(source)
    try:
        return any(
            table_of(record)
            for number in range(1, min(pages.count, EXAMINED_PAGES) + 1)
            for record in pages.records(number)
        )
    finally:
        pages.close()


def salvage(source: Path, target: Path, *, why: str, progress: Callable[[], object]) -> Salvaged:
    """Copy what can be read of ``source`` and its WAL into a new outbox ``target`` and close it.

    When this returns, ``target`` is one file without a log, and on disk. Memory does not grow with the file. ``progress``
    is called about twice a second. Raises SidecarError, OSError, or sqlite3.Error if the new file cannot be written.
    """
    # Opened before the first write: the sync at the end then reports every error of writing back since (fsync(2)).
    descriptor = os.open(target, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        salvaged = _fill(source, target, why, _throttled(progress))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return salvaged


def _fill(source: Path, target: Path, why: str, progress: Callable[[], None]) -> Salvaged:
    store = Store(target, durability="process")
    # Not ``store.close``, which treats a failing disk as harmless: here an error means that the file is not complete.
    with closing(store.connection) as connection:
        # A log would need space of its own, and its last copy into the file could fail unseen.
        if connection.execute("PRAGMA journal_mode = MEMORY").fetchone() != ("memory",):
            raise OSError(errno.EIO, "SQLite keeps the log of the new file")
        connection.execute("PRAGMA synchronous = OFF")  # one sync at the end
        connection.set_progress_handler(progress, PROGRESS_STEPS)
        connection.execute("CREATE TEMP TABLE old_counters (name TEXT PRIMARY KEY, value INTEGER)")
        with closing(Pages(source)) as pages:
            _copy(store, _records(pages, progress))
            frames_lost = pages.frames_lost
        with store.transaction():
            salvaged = _complete(store, Salvaged(why, source.name, frames_lost=frames_lost))
            store.set_meta(DAMAGE, msgspec.json.encode(salvaged).decode())
    return salvaged


def _throttled(progress: Callable[[], object]) -> Callable[[], None]:
    """Return a function that calls ``progress`` if its last call is ``PROGRESS_EVERY_S`` ago, and may be called often."""
    called_s = time.monotonic()

    def call() -> None:  # returns None: SQLite would end the statement at any other value
        nonlocal called_s
        if time.monotonic() - called_s > PROGRESS_EVERY_S:
            called_s = time.monotonic()
            progress()

    return call


def _records(pages: Pages, progress: Callable[[], None]) -> Iterator[Record]:
    for number in range(1, pages.count + 1):
        yield from pages.records(number)
        progress()
    for page in pages.older:
        yield from pages.records_of(page)
        progress()


def table_of(record: Record) -> str | None:
    """Return the table that a record belongs to; None if the outbox cannot have written it."""
    rowid, values = record
    for name, shape in _BY_WIDTH.get(len(values), ()):
        if (rowid is None) == (shape[0] is not _NOTHING) and all(map(isinstance, values, shape)):
            return name if _plausible(name, rowid, values) else None
    return None


def _plausible(name: str, rowid: int | None, values: tuple[Any, ...]) -> bool:
    """Return True if the values are in the ranges that the outbox writes: damaged bytes often decode to a record."""
    if rowid is not None and not 0 < rowid < 2**53:
        return False
    if name == "events":
        return bool(
            EventState.LOW_PARKED <= values[1] <= EventState.DEAD and 0 <= values[2] < 2**31 and 0 < values[4] < 2**53
        )
    if name == "ids":
        return len(values[0]) in (PREFIX_BYTES, DIGEST_BYTES) and 0 <= values[1] < 2**53
    if name == "caps":
        # An entry of the index ``pending`` has three numbers, too: the state and twice the id.
        number, day, taken = values
        return bool(number > 0 and DAYS[0] < day < DAYS[1] and 0 < taken < 2**31 and day != taken)
    if name == "suppressed":
        return len(values[0]) == SUPPRESSED_BYTES
    if name in ("counters", "meta"):
        return _NAME.fullmatch(values[0]) is not None
    return True


def _copy(store: Store, records: Iterable[Record]) -> None:
    rows: dict[str, list[tuple[Any, ...]]] = {name: [] for name in _SHAPES if name not in _OLDER_SHAPES}
    waiting = size_bytes = 0
    for record in records:
        name = table_of(record)
        if name is None:
            continue
        values = record.values if record.rowid is None else (record.rowid, *record.values[1:])
        name = _OLDER_SHAPES.get(name, name)
        rows[name].append(values + (None,) * (len(_SHAPES[name]) - len(values)))
        waiting += 1
        if name == "events":
            size_bytes += len(values[5])
        if waiting == BATCH or size_bytes > BATCH_BYTES:
            _write(store, rows)
            waiting = size_bytes = 0
    _write(store, rows)


def _write(store: Store, rows: dict[str, list[tuple[Any, ...]]]) -> None:
    # A repeated message id must be recognized even if the page of ``ids`` that held it is lost.
    rows["ids"].extend(_ids_of(rows["events"]))
    rows["ids"].sort()
    with store.transaction():
        for name, table_rows in rows.items():
            store.connection.executemany(_INSERT[name], table_rows)
            table_rows.clear()


def _ids_of(events: Iterable[tuple[Any, ...]]) -> Iterator[tuple[bytes, int, int]]:
    for event_id, _, source, _, received_ms, body, *_ in events:
        if digest := digest_of_body(source, body):
            yield digest, event_id, received_ms // 1000


# Tables and counters ------------------------------------------------------------------------------------------


def _complete(store: Store, salvaged: Salvaged) -> Salvaged:
    """Make the tables consistent with each other and the counters with the tables, inside a transaction.

    Returns the record with its numbers.
    """
    execute = store.connection.execute
    if execute("SELECT 1 FROM ids WHERE length(digest) = ? LIMIT 1", (PREFIX_BYTES,)).fetchone():
        store.set_meta(OLDER_FORM, "1")
    execute("UPDATE events SET state = ? WHERE state = ?", (EventState.LOW, EventState.LOW_PARKED))
    execute("DELETE FROM retries WHERE id NOT IN (SELECT id FROM events WHERE state < 4)")
    execute("DELETE FROM dead WHERE id NOT IN (SELECT id FROM events WHERE state = 6)")
    execute(
        "INSERT INTO dead SELECT id, coalesce(reason, 'refused'), '', user, status, 'Its dead letter was damaged.',"
        " coalesce(attempts, 0), coalesce(settled_ms, received_ms), coalesce(settled_ms, received_ms), x''"
        " FROM events WHERE state = 6 AND id NOT IN (SELECT id FROM dead)"
    )
    # An unknown source gets a row with a random fingerprint: otherwise its number would be assigned to a new source,
    # and its events would be sent to the product of that one.
    execute(
        "INSERT INTO sources SELECT source, randomblob(16), '' FROM (SELECT DISTINCT source FROM events"
        " WHERE source > 0 AND source NOT IN (SELECT id FROM sources))"
    )
    # If the quota is lost, it is estimated from the attempts of the last day: the day's limit must not start over.
    if execute("SELECT 1 FROM quota LIMIT 1").fetchone() is None:
        execute(
            "INSERT INTO quota SELECT settled_ms / 60000, '', 0, sum(max(1, coalesce(attempts, 1))) FROM events WHERE"
            " state > 3 AND status IS NOT NULL AND settled_ms > (SELECT max(settled_ms) FROM events WHERE state > 3) - ?"
            " GROUP BY settled_ms / 60000",
            (DAY_MS,),
        )
    old = Counter({name: value for name, value in execute("SELECT name, value FROM old_counters") if value > 0})
    highest = execute("SELECT coalesce(max(id), 0) FROM events").fetchone()[0]
    if not old["next_id"]:  # an event that was settled and pruned has left its id with its message id
        highest = max(highest, execute("SELECT coalesce(max(event_id), 0) FROM ids").fetchone()[0])
    # All ids are in their table now, and an event id must not be used twice even if the newest rows are lost.
    next_id = max(highest, old["next_id"])
    new, lost, counters_lost = _balance(old, _count_rows(store), next_id)
    new["users"] = execute("SELECT count(*) FROM users").fetchone()[0]
    new["next_id"] = new["ids_flushed_to"] = next_id
    for name, value in new.items():
        store.count(name, value - store.value(name))
    rows = execute("SELECT count(*) FROM events WHERE state IN (4, 5)").fetchone()[0]
    pending = sum(new[name] for name in PENDING.values())
    dead = sum(value for name, value in new.items() if name.startswith("dead:"))
    return msgspec.structs.replace(
        salvaged, pending=pending, dead=dead, history=rows, lost=lost, counters_lost=counters_lost
    )


def _count_rows(store: Store) -> Counter[str]:
    """Return the counters as far as rows show them: history rows may have been pruned."""
    counters: Counter[str] = Counter()
    for state, reason, rows in store.connection.execute(
        "SELECT state, CASE state WHEN 5 THEN reason WHEN 6 THEN (SELECT reason FROM dead WHERE dead.id = events.id) END AS why,"
        " count(*) FROM events GROUP BY state, why"
    ):
        settled_name = {
            EventState.DELIVERED: "delivered",
            EventState.DROPPED: f"dropped:{reason}",
            EventState.DEAD: f"dead:{reason}",
        }.get(state)
        counters[settled_name or PENDING[PRIORITY_OF[state]]] += rows
    return counters


def _balance(old: Counter[str], found: Counter[str], next_id: int) -> tuple[Counter[str], int, bool]:
    """Return the counters of the new outbox, the number of lost events, and whether the old counters were lost.

    Every accepted event has taken one id. So where the old counters are lost, or contradict each other, the ids say how
    many were accepted: that number never becomes lower.
    """
    new = Counter({name: value for name, value in old.items() if not name.startswith(("pending_", "dead:"))})
    for name, rows in found.items():
        new[name] = max(new[name], rows)
    kept = _in_any_state(new)
    counters_lost = not old["accepted"] or old["accepted"] != _in_any_state(old)
    accepted = max(kept, next_id if counters_lost else old["accepted"])
    lost = accepted - kept
    if lost:
        new[f"dropped:{_REASON}"] += lost
    new["accepted"] = accepted
    return new, lost, counters_lost


def _in_any_state(counters: Counter[str]) -> int:
    return sum(
        value
        for name, value in counters.items()
        if name == "delivered" or name.startswith(("pending_", "dropped:", "dead:"))
    )
