"""Export pending events to another host, from an outbox file that no daemon has open.

A daemon holds some pending events in memory and some are in flight to PX: exporting those would deliver them twice.
Therefore the daemon must be stopped first. Importing works with and without one (``OutboxAdmin.import_events``).
"""

import heapq
import shlex
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Final, cast

import msgspec

from sidecar.control.audit import describe, this_process
from sidecar.control.outbox_admin import ExportedEvent
from sidecar.control.selection import Class
from sidecar.events import decode_stored, judge
from sidecar.mapping import NO_ACCOUNT, PRIORITIES, Account, Mapper, Settings
from sidecar.outbox import EventState, Page, Row, Settlement, Store, hashed_values
from sidecar.outbox.operations import add_audit
from sidecar.outbox.steps import READ_BYTES
from sidecar.units import counted, iso_utc

__all__ = [
    "ExportNote",
    "excluded_rows",
    "export_note",
    "exported_events",
    "lift_export",
    "mark_exported",
    "note_export",
    "pending_pages",
]

PAGE_ROWS: Final = 500
NOTE: Final = "export"  # the outbox's meta key


class ExportNote(msgspec.Struct, frozen=True):
    """The record of the last export: when (epoch milliseconds), into which file, how many events, which units it stopped.

    It is in the outbox until an import, or until a daemon starts.
    """

    at_ms: int
    file: str
    moved: int
    units: list[str]

    def describe(self) -> str:
        """Return what it means for the operator, and what to do, in one sentence."""
        moved = f"{counted(self.moved, 'event', 'was')} moved to {self.file} at {iso_utc(self.at_ms)}"
        if not self.units:
            return f"{moved}; `px-sidecar outbox import --back {shlex.quote(self.file)}` makes them pending here again."
        return (
            f"{moved}, and {', '.join(self.units)} stay stopped, so that no connection starts the daemon, until "
            f"`px-sidecar outbox import`, `px-sidecar outbox import --back {shlex.quote(self.file)}` or a start of the daemon."
        )


def note_export(store: Store, note: ExportNote) -> None:
    """Record an export. Call it before the first event is marked, and at the end with the number, which is audited."""
    with store.transaction():
        store.set_meta(NOTE, msgspec.json.encode(note).decode())
        if note.moved:
            detail = f"{counted(note.moved, 'event')} to {note.file}"
            add_audit(store, note.at_ms, describe(this_process()), "outbox export", detail)


def export_note(store: Store) -> ExportNote | None:
    """Return the note of an export that is not lifted yet; None if there is none or it cannot be read."""
    try:
        return msgspec.json.decode(store.get_meta(NOTE) or "null", type=ExportNote | None)
    except msgspec.DecodeError:
        return None


def lift_export(store: Store) -> ExportNote | None:
    """Remove the note of an export, and return it."""
    note = export_note(store)
    if note is not None:
        with store.transaction():
            store.set_meta(NOTE, "null")
    return note


def pending_pages(store: Store) -> Iterator[list[Row]]:
    """Yield all pending events in pages, in the order of acceptance: the memory of the other host follows it.

    Older rows of a waiting user may be parked while newer ones are not; unparking all first restores their order.
    """
    with store.transaction():  # the pages below read unparked rows only
        store.unpark_all()
    classes = [chain.from_iterable(_pages(partial(store.page, priority=priority))) for priority in PRIORITIES]
    page: list[Row] = []
    size_bytes = 0
    for row in heapq.merge(*classes, key=lambda row: row.id):
        page.append(row)
        size_bytes += len(row.body)
        if len(page) == PAGE_ROWS or size_bytes >= READ_BYTES:
            yield page
            page, size_bytes = [], 0
    if page:
        yield page


def _pages(read_page: Callable[..., Page]) -> Iterator[list[Row]]:
    after_id, more = 0, True
    while more:
        page = read_page(after_id=after_id, limit=PAGE_ROWS)
        more = page.more
        if page.rows:
            after_id = page.rows[-1].id
            yield page.rows


def exported_events(store: Store, rows: Sequence[Row], settings: Settings) -> list[tuple[Row, ExportedEvent]]:
    """Return the rows of a page in the form that is exported, redacted by the privacy rules.

    Redaction removes only what the mapping removes as well, so the importing host maps an event to the same request. What
    the rules exclude is left out (``excluded_rows``). So are a row whose body cannot be decoded, and a retried dead letter that
    is not an event: no import accepts them. They stay in this outbox, and delivery settles them as dead. Raises sqlite3.Error.
    """
    keys = [(settings.product_of(row.source), row.user) for row in rows]
    sources = store.source_fingerprints()
    store.accounts.load((product, user) for product, user in keys if user is not None)
    lines = []
    for row, (product, user) in zip(rows, keys, strict=True):
        memory = NO_ACCOUNT if user is None else store.accounts.of((product, user))
        line = _exported(row, product, sources.get(row.source, ""), memory, settings.mapper)
        if line is not None:
            lines.append((row, line))
    return lines


def _exported(row: Row, product: str, source: str, memory: Account, mapper: Mapper) -> ExportedEvent | None:
    try:
        event, already = decode_stored(row.body), hashed_values(row.hashed)
    except msgspec.DecodeError:
        return None
    # By its size as it is stored: the limit in force may be lower than when it was accepted. Of a copy: judging changes it.
    if row.retried_ms and judge(dict(event), len(row.body)).bad is not None:
        return None
    if mapper.excluded(event, already):
        return None
    shown, hashed = mapper.export(event, already)
    account, account_from = _revealed(row.account, mapper)
    memory_id, memory_from = _revealed(memory, mapper)
    return ExportedEvent(
        property_key=product,
        received_ms=row.received_ms,
        event=shown,
        hashed=hashed or None,
        source=source,
        priority=cast("Class", row.priority.name.lower()),
        account=None if row.account is None else account,
        account_from=account_from,
        memory=memory_id or None,
        memory_from=memory_from,
    )


def _revealed(account: Account | None, mapper: Mapper) -> tuple[str, str]:
    """Return an account under today's privacy rules, and its path."""
    shown = (account and mapper.reveal_account(account)) or ""
    # What a rule has hashed already has no path: the rules of the other host must not hash it again.
    return shown, account.path if account and shown == account.id else ""


def excluded_rows(rows: Sequence[Row], settings: Settings) -> list[Settlement]:
    """Return the outcomes of the rows that the rules in force exclude.

    They must be decided here: a filter may look at a value that redaction removes, and would find nothing on the other host.
    """
    found = []
    for row in rows:
        try:
            excluded = settings.mapper.excluded(decode_stored(row.body), hashed_values(row.hashed))
        except msgspec.DecodeError:
            continue
        if excluded:
            reason, detail = excluded
            found.append(Settlement(row.id, row.priority, EventState.DROPPED, reason, detail=detail))
    return found


def mark_exported(store: Store, rows: Sequence[Row], now_ms: int, excluded: Sequence[Settlement] = ()) -> None:
    """Settle exported rows as dropped with reason ``moved``, and the ``excluded`` ones, in one transaction.

    Call it after the exported lines are synced to disk: from then on only the export holds these events.
    """
    moved = [Settlement(row.id, row.priority, EventState.DROPPED, "moved") for row in rows]
    with store.transaction():
        store.settle([*moved, *excluded], now_ms)
