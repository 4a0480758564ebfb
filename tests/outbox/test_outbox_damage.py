"""Random damage to the file and its log: the outbox opens each time, and events that were not hit are there."""

import random
import tempfile
from pathlib import Path

import pytest
from outbox_damage import RowLocations, damage, fill, is_newer_schema, rows_of
from outbox_files import IN_MEMORY, check_counters, copied, pending_ids

from sidecar.errors import ConfigError
from sidecar.mapping import PRIORITIES
from sidecar.outbox import Store, open_outbox

DAMAGES = 400


@pytest.fixture(scope="module")
def pristine():
    """The files of an outbox as a kill leaves them, and its rows."""
    with tempfile.TemporaryDirectory(dir=IN_MEMORY if IN_MEMORY.is_dir() else None) as folder:
        store = fill(Path(folder) / "o.db")
        path = copied(store.path, Path(folder) / "as_killed")
        yield path, rows_of(store)
        store.close()


@pytest.mark.whole
def test_random_damage_costs_only_the_rows_that_it_hits(pristine):
    path, rows = pristine
    locations = RowLocations(path)
    assert locations.rows.keys() == rows.keys()
    recovered = 0
    for seed in range(DAMAGES):
        dice = random.Random(seed)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            damaged = copied(path, Path(folder) / "x")
            where, begin, end = damage(damaged, dice)
            hit = locations.hit(where, begin, end)
            try:
                store = open_outbox(damaged, durability="process")
            except ConfigError:
                assert is_newer_schema(where, begin, end), (seed, where, begin, end)
                continue
            recovered += bool(store.notice)
            found = rows_of(store)
            lost = {event_id for event_id in rows if event_id not in hit and found.get(event_id) != rows[event_id]}
            assert not lost, (seed, where, begin, end, store.notice, sorted(lost)[:5])
            check_counters_with_gaps(store)
            undamaged = {event_id for event_id, row in rows.items() if row[0] < 4} - hit
            assert set(pending_and_parked(store)) >= undamaged, seed
            store.close()
            set_aside = [path for path in damaged.parent.iterdir() if ".damaged-" in path.name]
            assert bool(set_aside) == bool(store.notice), seed
            reopened = open_outbox(damaged, durability="process")
            assert not reopened.notice, (seed, reopened.notice)
            reopened.close()
    assert recovered > DAMAGES / 4


def pending_and_parked(store: Store) -> list[int]:
    ids = pending_ids(store)
    for priority in PRIORITIES:
        for user in store.parked_users(priority=priority):
            ids.extend(row.id for row in store.parked_page(priority=priority, user=user, after_id=0, limit=1000).rows)
    return ids


def check_counters_with_gaps(store: Store) -> None:
    """Check the counters of a recovered outbox: its ids may have gaps, so ``next_id`` differs from ``accepted``."""
    accepted = store.counters["accepted"]
    store.counters["next_id"] = accepted
    store.connection.execute("UPDATE counters SET value = ? WHERE name = 'next_id'", (accepted,))
    check_counters(store)
