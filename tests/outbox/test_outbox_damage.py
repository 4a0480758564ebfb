"""Random damage to the file and its log: the outbox opens each time, and what was not hit is there.

What counts as hit is coarse: the whole page of a damaged byte, and in the log the whole transaction.
"""

import random
import tempfile
from pathlib import Path

import pytest
from outbox_files import (
    IN_MEMORY,
    NOW_MS,
    accept,
    check_account,
    copied,
    dead,
    delivered,
    dropped,
    event,
    pending_ids,
    settle,
)

from sidecar.errors import ConfigError
from sidecar.outbox import Failure, Remembered, Store, open_outbox
from sidecar.outbox.pages import PAGE_BYTES, Pages, log_of
from sidecar.outbox.salvage import _table_of

DAMAGES = 400
FRAME = PAGE_BYTES + 24


def fill(path: Path) -> Store:
    """An outbox with everything in it, some of it in the file and some in the log only."""
    store = Store(path, durability="process")
    with store.transaction():
        source = store.source(b"f" * 16, "AP-ONE-2")
        store.set_meta("destination", '{"state":"open"}')
        store.save_quota([(28_333_333, "boot", 5, 190)], drop_before=0, replaces_all=True)
    dice = random.Random(7)
    for first in range(1, 160, 20):
        events = [
            event(
                n, user=f"u{n % 17}", high=n % 5 == 0, source=source * (n % 2), padding=dice.choice([0, 200, 900, 9000])
            )
            for n in range(first, first + 20)
        ]
        accept(store, [*events, event(f"bad{first}", bad="it is odd")])
        settled = range(store.counters["next_id"] - 20, store.counters["next_id"] - 12)
        kinds = [delivered, delivered, dropped, dead]
        for one in settled:
            row = store.connection.execute("SELECT state FROM events WHERE id = ?", (one,)).fetchone()
            known = Remembered("AP-ONE-2", f"u{one % 17}", b'{"a":1}')
            done = kinds[one % 4](one, high=row[0] == 1)
            settle(
                store,
                [
                    done
                    if one % 3
                    else type(done)(
                        **{f: getattr(done, f) for f in done.__struct_fields__ if f != "remember"}, remember=known
                    )
                ],
            )
        with store.transaction():
            store.note_failures([Failure(settled[-1] + 3, 2, NOW_MS, NOW_MS, 1, 5, "503")])
            store.set_aside([settled[-1] + 4])
            if first == 61:
                store.flush_ids(all_of_them=True)
        if first == 101:
            store.checkpoint(truncate=True)
    return store


@pytest.fixture(scope="module")
def pristine():
    with tempfile.TemporaryDirectory(dir=IN_MEMORY if IN_MEMORY.is_dir() else None) as folder:
        store = fill(Path(folder) / "o.db")
        path = copied(store.path, Path(folder) / "as_killed")
        yield path, rows_of(store)
        store.close()


def rows_of(store: Store) -> dict[int, tuple]:
    return {row[0]: row[1:] for row in store.connection.execute("SELECT * FROM events ORDER BY id")}


class Places:
    """Where the rows of events stand: the pages of each, and the transaction of the log that wrote each page last."""

    def __init__(self, path: Path):
        pages = Pages(path)
        self.rows: dict[int, set[int]] = {}
        self.in_log = dict(pages._in_log.items())
        whole = pages.page
        touched: list[int] = []
        pages.page = lambda number: (touched.append(number), whole(number))[1]
        for number in range(1, pages.count + 1):
            for start in range(len(pages.records(number))):
                touched.clear()
                record = pages.records(number)[start]
                if _table_of(record) == "events":
                    self.rows[record.rowid] = set(touched)
        pages.close()
        log = log_of(path).read_bytes()
        self.ends = [
            o + FRAME
            for o in range(32, len(log), FRAME)
            if any(log[o + 4 : o + 8]) and log[o + 8 : o + 16] == log[16:24]
        ]

    def hit(self, where: str, begin: int, end: int) -> set[int]:
        """The ids of the events that damage to these bytes may cost."""
        if where == "file":
            pages = {n for n in range(begin // PAGE_BYTES + 1, (end - 1) // PAGE_BYTES + 2) if n not in self.in_log}
        else:
            first = max([e for e in self.ends if e <= begin], default=32)
            last = min([e for e in self.ends if e >= end], default=self.ends[-1])
            pages = {n for n, offset in self.in_log.items() if first <= offset < last and end > 32}
        return {one for one, places in self.rows.items() if places & pages}


def damage(path: Path, dice: random.Random) -> tuple[str, int, int]:
    """Flip a bit, overwrite or cut off, anywhere; returns which file and bytes were hit."""
    where = dice.choice(["file", "file", "log"])
    target = path if where == "file" else log_of(path)
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


def is_newer_schema(path: Path, where: str, begin: int, end: int) -> bool:
    """Damage that looks like a newer px-sidecar's mark is refused like one: that is the safe side."""
    return where == "file" and begin <= 63 and end > 60


def test_an_outbox_with_random_damage_opens_and_keeps_what_was_not_hit(pristine, tmp_path_factory):
    path, rows = pristine
    places = Places(path)
    assert places.rows.keys() == rows.keys()
    recovered = 0
    for seed in range(DAMAGES):
        dice = random.Random(seed)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            there = copied(path, Path(folder) / "x")
            where, begin, end = damage(there, dice)
            hit = places.hit(where, begin, end)
            try:
                store = open_outbox(there, durability="process")
            except ConfigError:
                assert is_newer_schema(there, where, begin, end), (seed, where, begin, end)
                continue
            recovered += bool(store.notice)
            found = rows_of(store)
            lost = {one for one in rows if one not in hit and found.get(one) != rows[one]}
            assert not lost, (seed, where, begin, end, store.notice, sorted(lost)[:5])
            check_sums(store)
            assert set(pending_and_aside(store)) >= {one for one, row in rows.items() if row[0] < 4} - hit, seed
            store.close()
            set_aside = [one for one in there.parent.iterdir() if ".damaged-" in one.name]
            assert bool(set_aside) == bool(store.notice), seed
            reopened = open_outbox(there, durability="process")
            assert not reopened.notice, (seed, reopened.notice)
            reopened.close()
    assert recovered > DAMAGES / 4


def pending_and_aside(store: Store) -> list[int]:
    found = pending_ids(store)
    for high in (True, False):
        for user in store.users_aside(high=high):
            found.extend(row.id for row in store.aside_page(high=high, user=user, after_id=0, limit=1000).rows)
    return found


def check_sums(store: Store) -> None:
    counters = dict(store.counters)
    # Ids may have gaps now: how many were given is no longer how many were accepted.
    store.counters["next_id"] = counters["accepted"]
    store.connection.execute("UPDATE counters SET value = ? WHERE name = 'next_id'", (counters["accepted"],))
    check_account(store)
