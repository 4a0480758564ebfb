"""Everything that can be read of a damaged outbox, put into a new one.

The pages are read in the order in which they stand, and each record is known by its shape: a table of ours has one
that no other has. Neither the schema nor any inner page is needed. What two pages say of one event (after damage to
the log) is decided for the later state.

The counters are made anew from what is there. What cannot be seen there, as delivered events whose bodies are pruned,
is taken from the old counters; accepted events that are nowhere any more become ``dropped: damaged``.
"""

import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from sidecar.outbox.ids import digest_of
from sidecar.outbox.pages import Pages, Record
from sidecar.outbox.records import State
from sidecar.outbox.store import Store

__all__ = ["DAMAGE", "Salvaged", "recognises", "salvage"]

DAMAGE: Final = "damage"  # the name under which the new outbox keeps what happened
BATCH: Final = 5_000
WORKING_EVERY_S: Final = 0.5
LOOKED_AT_PAGES: Final = 10_000  # before a file without a single record of ours is called foreign
DAY_MS: Final = 86_400_000

_INT, _TEXT, _BLOB = (int,), (str,), (bytes,)
_MAYBE_INT, _MAYBE_TEXT, _NOTHING = (int, type(None)), (str, type(None)), (type(None),)
_Shape = tuple[tuple[type, ...], ...]
# Rowid tables begin with a NULL in place of the id; the others begin with their primary key.
_SHAPES: Final[dict[str, _Shape]] = {
    "events": (*(_NOTHING, _INT, _INT, _MAYBE_TEXT, _INT, _BLOB, _MAYBE_INT, _MAYBE_INT, _MAYBE_TEXT, _MAYBE_INT),),
    "dead": (_NOTHING, _TEXT, _TEXT, _MAYBE_TEXT, _MAYBE_INT, _TEXT, _INT, _INT, _INT, _BLOB),
    "retries": (_NOTHING, _INT, _INT, _INT, _INT, _INT, _TEXT),
    "sources": (_NOTHING, _BLOB, _TEXT),
    "ids": (_BLOB, _INT, _INT),
    "users": (_TEXT, _TEXT, _BLOB, _INT),
    "counters": (_TEXT, _INT),
    "meta": (_TEXT, _TEXT),
    "quota": (_INT, _TEXT, _INT, _INT),
}
_BY_WIDTH: Final[dict[int, list[tuple[str, _Shape]]]] = {
    width: [(name, shape) for name, shape in _SHAPES.items() if len(shape) == width]
    for width in {len(shape) for shape in _SHAPES.values()}
}
_LATER: Final = (
    "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET state = excluded.state,"
    " settled_ms = excluded.settled_ms, status = excluded.status, reason = excluded.reason, attempts = excluded.attempts"
    " WHERE excluded.state > state"
)
_INSERT: Final = {
    "events": _LATER,
    **{
        name: f"INSERT OR IGNORE INTO {name} VALUES ({', '.join('?' * len(shape))})"
        for name, shape in _SHAPES.items()
        if name != "events"
    },
    # The columns as they stand in the file: the primary key first.
    "users": "INSERT OR IGNORE INTO users (user, property_key, known, seen_ms) VALUES (?, ?, ?, ?)",
    "counters": "INSERT OR IGNORE INTO old_counters VALUES (?, ?)",
}
_NAME: Final = re.compile(r"[a-z0-9_]+(:[a-z_]+)?")
_REASON: Final = "damaged"


class Salvaged(msgspec.Struct, frozen=True):
    """What a recovery came to. ``lost``: events that were accepted, and are in no state any more."""

    why: str = ""
    set_aside: str = ""
    pending: int = 0
    dead: int = 0
    history: int = 0
    lost: int = 0


class _Envelope(msgspec.Struct):
    messageId: str = ""


def recognises(source: Path) -> bool:
    """Whether there is at least one record of ours in the first pages of a file."""
    pages = Pages(source)
    try:
        return any(
            _table_of(record)
            for number in range(1, min(pages.count, LOOKED_AT_PAGES) + 1)
            for record in pages.records(number)
        )
    finally:
        pages.close()


def salvage(source: Path, target: Path, *, why: str, working: Callable[[], object]) -> Salvaged:
    """Put what can be read of ``source`` and its log into a new outbox ``target``, and close it; it is on disk then.

    Memory does not grow with the file. ``working`` is called about twice a second. Raises OSError, or sqlite3.Error if
    the new file cannot be written.
    """
    store = Store(target, durability="process")
    try:
        store.connection.execute("CREATE TEMP TABLE old_counters (name TEXT PRIMARY KEY, value INTEGER)")
        pages = Pages(source)
        try:
            _copy(store, _paced(_records(pages), working))
        finally:
            pages.close()
        with store.transaction():
            salvaged = _settle_accounts(store, why, source.name)
            store.set_meta(DAMAGE, msgspec.json.encode(salvaged).decode())
        return salvaged
    finally:
        store.close()


def _records(pages: Pages) -> Iterator[Record]:
    for number in range(1, pages.count + 1):
        yield from pages.records(number)
    for page in pages.older:
        yield from pages.records_of(page)


def _paced(records: Iterable[Record], working: Callable[[], object]) -> Iterator[Record]:
    told_s = time.monotonic()
    for record in records:
        if time.monotonic() - told_s > WORKING_EVERY_S:
            told_s = time.monotonic()
            working()
        yield record


def _table_of(record: Record) -> str | None:
    """The table that a record belongs to, None if it is no row of ours that could have been written."""
    rowid, values = record
    for name, shape in _BY_WIDTH.get(len(values), ()):
        if (rowid is None) == (shape[0] is not _NOTHING) and all(map(isinstance, values, shape)):
            return name if _plausible(name, rowid, values) else None
    return None


def _plausible(name: str, rowid: int | None, values: tuple[Any, ...]) -> bool:
    if rowid is not None and not 0 < rowid < 2**53:
        return False
    if name == "events":
        return bool(0 <= values[1] <= State.DEAD and 0 <= values[2] < 2**31 and 0 < values[4] < 2**53)
    if name == "ids":
        return len(values[0]) == 16
    if name in ("counters", "meta"):
        return _NAME.fullmatch(values[0]) is not None
    return True


def _copy(store: Store, records: Iterable[Record]) -> None:
    rows: dict[str, list[tuple[Any, ...]]] = {name: [] for name in _SHAPES}
    waiting = 0
    for record in records:
        name = _table_of(record)
        if name is None:
            continue
        rows[name].append(record.values if record.rowid is None else (record.rowid, *record.values[1:]))
        waiting += 1
        if waiting == BATCH:
            _write(store, rows)
            waiting = 0
    _write(store, rows)


def _write(store: Store, rows: dict[str, list[tuple[Any, ...]]]) -> None:
    # A repeated message id must be recognised whether or not the page that knew it is there.
    rows["ids"].extend(_ids_of(rows["events"]))
    rows["ids"].sort()
    with store.transaction():
        for name, some in rows.items():
            store.connection.executemany(_INSERT[name], some)
            some.clear()


def _ids_of(events: Iterable[tuple[Any, ...]]) -> Iterator[tuple[bytes, int, int]]:
    for event_id, _, source, _, received_ms, body, *_ in events:
        try:
            message_id = msgspec.json.decode(body, type=_Envelope).messageId
        except (msgspec.MsgspecError, UnicodeDecodeError):
            continue  # damaged, or an event without an id of text
        if message_id:
            yield digest_of(source, message_id), event_id, received_ms // 1000


# The accounts -------------------------------------------------------------------------------------------------


def _settle_accounts(store: Store, why: str, set_aside: str) -> Salvaged:
    """Make the tables agree with each other and the counters with them, inside a transaction."""
    execute = store.connection.execute
    execute("DELETE FROM retries WHERE id NOT IN (SELECT id FROM events WHERE state < 4)")
    execute("DELETE FROM dead WHERE id NOT IN (SELECT id FROM events WHERE state = 6)")
    execute(
        "INSERT INTO dead SELECT id, coalesce(reason, 'refused'), '', user, status, 'Its dead letter was damaged.',"
        " coalesce(attempts, 0), coalesce(settled_ms, received_ms), coalesce(settled_ms, received_ms), x''"
        " FROM events WHERE state = 6 AND id NOT IN (SELECT id FROM dead)"
    )
    # An event whose source is unknown keeps the number from being given to another source, and so to another product.
    execute(
        "INSERT INTO sources SELECT source, randomblob(16), '' FROM (SELECT DISTINCT source FROM events"
        " WHERE source > 0 AND source NOT IN (SELECT id FROM sources))"
    )
    if execute("SELECT 1 FROM quota LIMIT 1").fetchone() is None:
        execute(
            "INSERT INTO quota SELECT settled_ms / 60000, '', 0, sum(max(1, coalesce(attempts, 1))) FROM events WHERE"
            " state > 3 AND status IS NOT NULL AND settled_ms > (SELECT max(settled_ms) FROM events WHERE state > 3) - ?"
            " GROUP BY settled_ms / 60000",
            (DAY_MS,),
        )
    old = Counter({name: value for name, value in execute("SELECT name, value FROM old_counters") if value > 0})
    found = _found(store)
    new, lost = _reckon(old, found)
    new["users"] = execute("SELECT count(*) FROM users").fetchone()[0]
    highest = execute("SELECT coalesce(max(id), 0) FROM events").fetchone()[0]
    new["next_id"] = new["ids_flushed_to"] = max(highest, old["next_id"])
    for name, value in new.items():
        store.count(name, value - store.value(name))
    rows = execute("SELECT count(*) FROM events WHERE state IN (4, 5)").fetchone()[0]
    pending = new["pending_normal"] + new["pending_high"]
    dead = sum(value for name, value in new.items() if name.startswith("dead:"))
    return Salvaged(why, set_aside, pending, dead, rows, lost)


def _found(store: Store) -> Counter[str]:
    """The counters as far as rows tell."""
    found: Counter[str] = Counter()
    for state, reason, rows in store.connection.execute(
        "SELECT state, CASE state WHEN 5 THEN reason WHEN 6 THEN (SELECT reason FROM dead WHERE dead.id = events.id) END AS why,"
        " count(*) FROM events GROUP BY state, why"
    ):
        name = {State.DELIVERED: "delivered", State.DROPPED: f"dropped:{reason}", State.DEAD: f"dead:{reason}"}.get(
            state
        )
        found[name or ("pending_high" if state in (State.HIGH, State.HIGH_ASIDE) else "pending_normal")] += rows
    return found


def _reckon(old: Counter[str], found: Counter[str]) -> tuple[Counter[str], int]:
    """The counters of the new outbox, and how many events are lost."""
    new = Counter({name: value for name, value in old.items() if not name.startswith(("pending_", "dead:"))})
    for name, rows in found.items():
        new[name] = max(new[name], rows)
    kept = sum(
        value
        for name, value in new.items()
        if name == "delivered" or name.startswith(("pending_", "dropped:", "dead:"))
    )
    lost = max(0, new["accepted"] - kept)
    if lost:
        new[f"dropped:{_REASON}"] += lost
    new["accepted"] = kept + lost
    return new, lost
