"""Setting aside: what is damage and what is not, and that an end at any moment is taken up by the next start."""

import os
import sqlite3
import time
from datetime import datetime
from pathlib import Path

import pytest
from outbox_files import accept, copied, event, pending_ids

from sidecar.errors import ConfigError, Failed
from sidecar.outbox import Store, open_outbox, recovery
from sidecar.outbox.recovery import contradiction, damage_in, mark
from sidecar.outbox.schema import SCHEMA_VERSION

EVENTS = 400


@pytest.fixture
def path(tmp_path):
    """A closed outbox with events."""
    store = Store(tmp_path / "o.db", durability="process")
    accept(store, [event(n, user=f"u{n}", padding=300) for n in range(EVENTS)])
    store.close()
    return tmp_path / "o.db"


def spoil(path: Path, page: int) -> None:
    data = bytearray(path.read_bytes())
    data[page * 4096 : (page + 1) * 4096] = os.urandom(4096)
    path.write_bytes(data)


def names(path: Path) -> set[str]:
    return {one.name for one in path.parent.iterdir()} - {path.name + ".lock"}


def test_a_sound_outbox_is_left_alone(path):
    before = path.read_bytes()
    assert damage_in(path) is None
    store = open_outbox(path, durability="process")
    assert (store.notice, store.pending()) == ("", EVENTS)
    store.close()
    assert path.read_bytes()[100:] == before[100:]
    assert not any("damaged" in name for name in names(path))


def test_a_damaged_outbox_is_set_aside_untouched_and_says_what_happened(path):
    spoil(path, 20)
    spoilt = path.read_bytes()
    store = open_outbox(path, durability="process")
    (kept,) = [one for one in path.parent.iterdir() if ".damaged-" in one.name]
    assert kept.read_bytes() == spoilt
    assert kept.name in store.notice
    lost = store.counters["dropped:damaged"]
    assert 0 < lost < 20
    assert f"{EVENTS - lost} pending events" in store.notice
    assert f"{lost} events are lost" in store.notice
    assert len(pending_ids(store)) == EVENTS - lost == store.pending()
    assert store.counters["accepted"] == EVENTS
    repeated = accept(store, [event(n, user=f"u{n}", padding=300) for n in range(EVENTS)])
    assert repeated.repeated >= EVENTS - lost  # ids are known, those of lost events too if their page was there
    store.close()


@pytest.mark.parametrize("moment", ["_set_aside", "salvage", "replace", "unlink"])
def test_an_end_at_any_moment_of_a_recovery_is_taken_up_by_the_next_start(path, monkeypatch, moment):
    class Killed(BaseException):
        pass

    def killed(*_, **__):
        raise Killed

    spoil(path, 20)
    with monkeypatch.context() as patch:
        if moment in ("_set_aside", "salvage"):
            original = getattr(recovery, moment)
            patch.setattr(recovery, moment, lambda *a, **k: (original(*a, **k), killed()))
        elif moment == "replace":
            original = Path.replace
            patch.setattr(
                Path, "replace", lambda self, to: killed() if self.name.endswith(".recovering") else original(self, to)
            )
        else:
            original = Path.unlink
            patch.setattr(
                Path, "unlink", lambda self, **k: killed() if self.name.endswith(".recover") else original(self, **k)
            )
        with pytest.raises(Killed):
            open_outbox(path, durability="process")
    store = open_outbox(path, durability="process")
    assert "set aside as" in store.notice
    assert store.pending() > EVENTS - 20
    store.close()
    assert sum(".damaged-" in name for name in names(path)) == 1
    assert not {name for name in names(path) if "recover" in name}


def test_what_cannot_be_opened_is_not_damage(path, monkeypatch):
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("PRAGMA locking_mode = EXCLUSIVE")
    holder.execute("BEGIN EXCLUSIVE")
    monkeypatch.setattr("sidecar.outbox.database.BUSY_TIMEOUT_S", 0.1)
    with pytest.raises(Failed, match="locked"):
        open_outbox(path, durability="process")
    holder.close()
    path.unlink()
    path.mkdir()
    with pytest.raises(Failed, match="cannot be opened"):
        open_outbox(path, durability="process")
    assert names(path) == {"o.db"}


def test_a_newer_outbox_is_refused_and_not_set_aside(path):
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    connection.close()
    with pytest.raises(ConfigError, match="newer px-sidecar"):
        open_outbox(path, durability="process")
    assert not any("damaged" in name for name in names(path))


def test_a_file_that_never_was_an_outbox_is_refused_and_not_set_aside(path):
    path.write_bytes(b"[px]\nproperty_key = 'x'\n" * 900)
    with pytest.raises(ConfigError, match="is no outbox"):
        open_outbox(path, durability="process")
    assert names(path) == {"o.db"}


def test_an_empty_file_beside_a_log_is_recovered_from_the_log(tmp_path):
    store = Store(tmp_path / "o.db", durability="process")
    accept(store, [event(n) for n in range(10)])
    there = copied(tmp_path / "o.db", tmp_path / "killed")
    store.close()
    there.write_bytes(b"")
    recovered = open_outbox(there, durability="process")
    assert recovered.pending() == 10
    recovered.close()


def test_a_marked_outbox_is_recovered_at_the_next_start_only(path):
    mark(path)
    store = open_outbox(path, durability="process")
    assert "while it was in use" in store.notice
    assert store.pending() == EVENTS
    store.close()
    store = open_outbox(path, durability="process")
    assert store.notice == ""
    store.close()


def test_two_recoveries_in_one_second_keep_both_damaged_files(path, monkeypatch):
    class Now(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 1, 2, 3, 4, 5, tzinfo=tz)

    monkeypatch.setattr(recovery, "datetime", Now)
    for _ in range(2):
        spoil(path, 20)
        open_outbox(path, durability="process").close()
    kept = sorted(name for name in names(path) if ".damaged-" in name and not name.endswith("-wal"))
    assert kept == ["o.db.damaged-20260102T030405Z", "o.db.damaged-20260102T030405Zx"]


def test_an_index_that_has_lost_an_event_is_noticed_by_the_counters(path):
    store = Store(path, durability="process")
    assert contradiction(store) is None
    store.connection.execute("DROP INDEX pending")
    store.connection.execute("CREATE INDEX pending ON events (state, id) WHERE state < 0")
    store.counters["pending_high"] = 1
    assert "counts 1 pending events and holds none" in (contradiction(store) or "")
    store.connection.close()


def test_the_quota_of_the_day_is_not_forgotten_with_its_page(path):
    """Without its rows the day is reckoned from what is known to have been sent."""
    store = Store(path, durability="process")
    now_ms = 1_700_000_000_000
    with store.transaction():
        store.connection.execute(
            "UPDATE events SET state = 4, settled_ms = ?, status = 201, attempts = 2 WHERE id <= 50", (now_ms,)
        )
        store.count("pending_normal", -50)
        store.count("delivered", 50)
    store.close()
    mark(path)
    store = open_outbox(path, durability="process")
    assert sum(row[3] for row in store.quota_rows()) == 100
    store.close()


def test_looking_for_damage_takes_no_time_in_a_large_file(tmp_path):
    store = Store(tmp_path / "o.db", durability="process")
    for first in range(0, 60_000, 5_000):
        accept(store, [event(n, padding=300) for n in range(first, first + 5_000)])
    store.close()
    started_s = time.perf_counter()
    assert damage_in(tmp_path / "o.db") is None
    assert time.perf_counter() - started_s < 0.05
