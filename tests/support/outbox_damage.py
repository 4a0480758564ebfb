"""Random damage to an outbox file and its log, and which events it may cost.

The judgment is coarse: a damaged byte hits its whole page, and in the log its whole transaction.
"""

import random
from pathlib import Path

import msgspec
from outbox_files import NOW_MS, accept, dead, delivered, dropped, event, settle

from sidecar.outbox import Failure, Remembered, Store
from sidecar.outbox.pages import PAGE_BYTES, Pages, wal_path
from sidecar.outbox.salvage import table_of

__all__ = ["RowLocations", "damage", "fill", "is_newer_schema", "rows_of"]

FRAME = PAGE_BYTES + 24


def fill(path: Path) -> Store:
    """Make an outbox with rows in every table, some of them in the file and some in the log only."""
    store = Store(path, durability="process")
    with store.transaction():
        source = store.source(b"f" * 16, "AP-ONE-2")
        store.set_meta("destination", '{"state":"open"}')
        store.save_quota([(28_333_333, "boot", 5, 190)], drop_before=0, replaces_all=True)
    dice = random.Random(7)
    for first in range(1, 160, 20):
        events = [
            event(
                n,
                user=f"u{n % 17}",
                priority=n % 5 == 0,
                source=source * (n % 2),
                padding=dice.choice([0, 200, 900, 9000]),
            )
            for n in range(first, first + 20)
        ]
        accept(store, [*events, event(f"bad{first}", bad="it is odd")])
        settled = range(store.counters["next_id"] - 20, store.counters["next_id"] - 12)
        kinds = [delivered, delivered, dropped, dead]
        for event_id in settled:
            row = store.connection.execute("SELECT state FROM events WHERE id = ?", (event_id,)).fetchone()
            memory = Remembered("AP-ONE-2", f"u{event_id % 17}", b'{"a":1}')
            settlement = kinds[event_id % 4](event_id, priority=row[0] == 1)
            if event_id % 3 == 0:
                settlement = msgspec.structs.replace(settlement, remember=memory)
            settle(store, [settlement])
        with store.transaction():
            store.record_failures([Failure(settled[-1] + 3, 2, NOW_MS, NOW_MS, 1, 5, "503")])
            store.park([settled[-1] + 4])
            if first == 61:
                store.flush_ids(everything=True)
        if first == 101:
            store.checkpoint(truncate=True)
    return store


def rows_of(store: Store) -> dict[int, tuple]:
    return {row[0]: row[1:] for row in store.connection.execute("SELECT * FROM events ORDER BY id")}


class RowLocations:
    """The pages of each event row, and the transactions of the log that wrote each page last."""

    def __init__(self, path: Path):
        pages = Pages(path)
        self.rows: dict[int, set[int]] = {}
        self.wal_offsets = dict(pages.wal_offsets)
        read_page = pages.page
        touched: list[int] = []
        pages.page = lambda number: (touched.append(number), read_page(number))[1]
        for number in range(1, pages.count + 1):
            for start in range(len(pages.records(number))):
                touched.clear()
                record = pages.records(number)[start]
                if table_of(record) == "events":
                    self.rows[record.rowid] = set(touched)
        pages.close()
        log = wal_path(path).read_bytes()
        self.commit_ends = [
            offset + FRAME
            for offset in range(32, len(log), FRAME)
            if any(log[offset + 4 : offset + 8]) and log[offset + 8 : offset + 16] == log[16:24]
        ]

    def hit(self, where: str, begin: int, end: int) -> set[int]:
        """Return the ids of the events that damage to these bytes may cost."""
        if where == "file":
            numbers = range(begin // PAGE_BYTES + 1, (end - 1) // PAGE_BYTES + 2)
            pages = {number for number in numbers if number not in self.wal_offsets}
        else:
            first = max([offset for offset in self.commit_ends if offset <= begin], default=32)
            last = min([offset for offset in self.commit_ends if offset >= end], default=self.commit_ends[-1])
            pages = {n for n, offset in self.wal_offsets.items() if first <= offset < last and end > 32}
        return {event_id for event_id, row_pages in self.rows.items() if row_pages & pages}


def damage(path: Path, dice: random.Random) -> tuple[str, int, int]:
    """Flip a bit, overwrite or cut off, anywhere; return which file ("file" or "log") and which bytes were hit."""
    where = dice.choice(["file", "file", "log"])
    target = path if where == "file" else wal_path(path)
    data = bytearray(target.read_bytes())
    begin = dice.randrange(len(data)) if dice.random() < 0.9 else dice.randrange(100)
    kind = dice.choice(["flip", "flip", "overwrite", "zero", "truncate"])
    end = begin + 1
    if kind == "flip":
        data[begin] ^= 1 << dice.randrange(8)
    elif kind == "truncate":
        end = len(data)
        del data[begin:]
    else:
        end = min(len(data), begin + dice.choice([1, 16, 512, 4096, 20_000]))
        data[begin:end] = bytes(end - begin) if kind == "zero" else dice.randbytes(end - begin)
    target.write_bytes(data)
    return where, begin, end


def is_newer_schema(where: str, begin: int, end: int) -> bool:
    """Return True if the damage may have changed the schema number: the file may then be refused as newer."""
    return where == "file" and begin <= 63 and end > 60
