"""`AccountMemory`: the accounts of users, read from the file as far as they are not in memory."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing

import pytest
from msgspec import structs
from outbox_files import accept, event

from sidecar.mapping import NO_ACCOUNT, Account, Priority
from sidecar.outbox import Store
from sidecar.outbox.accounts import AccountMemory

PRODUCT = "AP-XXXXXXXXXX-2"
COLUMNS = "property_key, user, known, seen_ms, account, account_from, account_call"


@pytest.fixture
def file(tmp_path) -> Iterator[sqlite3.Connection]:
    with closing(Store(tmp_path / "outbox.db")) as store:
        rows = [(PRODUCT, f"u{number}", b"{}", 1, f"a{number}", "groupId", number) for number in range(1, 10)]
        rows.append((PRODUCT, "older", b'{"account_id":"acme"}', 1, None, None, None))
        rows.append((PRODUCT, "damaged", b"\xff{", 1, None, None, None))
        rows.append((PRODUCT, "without", b"{}", 1, "", "", 5))
        store.connection.executemany(f"INSERT INTO users ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
        yield store.connection


def keys(*users: str) -> Iterator[tuple[str, str]]:
    return ((PRODUCT, user) for user in users)


def test_accounts_are_read_and_kept(file):
    memory = AccountMemory(file)
    memory.load(keys("u1", "older", "damaged", "without", "nobody"))
    file.execute("DELETE FROM users")
    memory.load(keys("u1", "nobody"))
    assert memory.of((PRODUCT, "u1")) == Account("a1", "groupId", 1)
    assert isinstance(memory.of((PRODUCT, "u1")), Account)
    assert memory.of((PRODUCT, "older")).id == "acme"
    assert {memory.of(key) for key in keys("damaged", "without", "nobody")} == {NO_ACCOUNT}


def test_users_that_were_in_memory_survive_an_overflow(file):
    """The memory is emptied when it is full; of the users asked for, those that had been in it lost their account."""
    memory = AccountMemory(file, cached_users=3)
    memory.load(keys("u1", "u2"))
    memory.load(keys("u1", "u2", "u3", "u4"))
    assert [memory.of(key).id for key in keys("u1", "u2", "u3", "u4")] == ["a1", "a2", "a3", "a4"]


def test_pages_that_are_swept_come_without_memory(tmp_path):
    """With a million remembered users each row of a sweep would cost a look at its user."""
    with closing(Store(tmp_path / "outbox.db")) as store:
        store.connection.execute(f"INSERT INTO users ({COLUMNS}) VALUES ('{PRODUCT}', 'u1', x'7b7d', 1, 'a', '', 1)")
        accept(store, [event(1), event(2)])
        assert store.page(priority=Priority.NORMAL, after_id=0, with_memory=False).known == []
        assert len(store.page(priority=Priority.NORMAL, after_id=0).known) == 1
        with store.transaction():
            store.park([2])
        assert store.parked_rows(priority=Priority.NORMAL, after=("", 0), limit=9).known == []


@pytest.mark.parametrize(
    "speaks",
    [{"says": ("acme", "groupId")}, {"carried": Account("acme", "groupId")}, {"memory": Account("acme", "groupId")}],
    ids=["says", "carried", "memory"],
)
def test_an_account_in_a_batch_is_that_of_the_events_after_it(tmp_path, speaks):
    """Also where no user is known yet: only then, and if no event speaks of an account, none is asked for."""
    with closing(Store(tmp_path / "outbox.db")) as store:
        accept(store, [event(1), structs.replace(event(2), **speaks), event(3)])
        rows = store.connection.execute("SELECT account FROM events ORDER BY id").fetchall()
    assert [account for (account,) in rows] == [None, "acme", "acme"]
