"""Forgetting a user: pending and dead events, history and memory, a page at a time.

What is pending or dead becomes dropped (``forgotten``) and loses its body; what is settled is deleted. The counters
keep counting all of them.

Deleted text is overwritten in the file (``PRAGMA secure_delete``), apart from remains that SQLite may have left between
the rows of a page when it moved them; those go when the page is written the next time. Once all pages are done the WAL
is to be emptied (``Store.checkpoint(truncate=True)``), the other place where the text stands.
"""

from collections.abc import Callable, Collection
from typing import Final, NamedTuple

import msgspec

from sidecar.events import decode_stored
from sidecar.outbox.dead import discard_ids
from sidecar.outbox.overflow import delete_rows
from sidecar.outbox.records import State
from sidecar.outbox.store import Store

__all__ = ["Forgotten", "forget_users", "theirs"]

# So many rows one call looks at: some 30 ms.
SCAN_ROWS: Final = 5_000
_REASON: Final = "forgotten"


class Forgotten(NamedTuple):
    """What one call did.

    ``left`` are matching events that were in use: the dispatcher has to settle them. ``next_after`` is the
    ``after_id`` of the next call, None when all rows were looked at.
    """

    pending: int
    dead: int
    history: int
    memory: int
    left: list[int]
    next_after: int | None


def forget_users(
    store: Store, users: Collection[str], now_ms: int, *, in_use: Collection[int], after_id: int = 0
) -> Forgotten:
    """Forget these users in the next rows behind ``after_id``, inside a transaction.

    An event is theirs if the key of order is, or its ``userId`` or ``anonymousId``. ``in_use`` are the ids that the
    dispatcher has loaded: they are left to it.
    """
    memory = _forget_memory(store, users) if after_id == 0 else 0
    found, next_after = _those_of(store, frozenset(users), after_id)
    pending = [(one, state) for one, state in found if state < State.DELIVERED and one not in in_use]
    dead = [one for one, state in found if state == State.DEAD]
    history = [one for one, state in found if state in (State.DELIVERED, State.DROPPED)]
    if found:
        store.keep_ids_of(found[-1][0])
    _forget_pending(store, pending, now_ms)
    discard_ids(store, dead, now_ms, reason=_REASON)
    _empty(store, [*dead, *(one for one, _ in pending)])
    delete_rows(store, history)
    left = [one for one, state in found if state < State.DELIVERED and one in in_use]
    return Forgotten(len(pending), len(dead), len(history), memory, left, next_after)


def _those_of(store: Store, users: frozenset[str], after_id: int) -> tuple[list[tuple[int, int]], int | None]:
    """Ids and states of the next rows that belong to one of the users, and where to go on."""
    is_theirs = theirs(users)
    found: list[tuple[int, int]] = []
    looked_at = event_id = 0
    for event_id, state, user, body in store.connection.execute(
        "SELECT id, state, user, body FROM events WHERE id > ? ORDER BY id LIMIT ?", (after_id, SCAN_ROWS)
    ):  # one after the other: a body may have 32 KiB
        looked_at += 1
        if is_theirs(user, body):
            found.append((event_id, state))
    return found, event_id if looked_at == SCAN_ROWS else None


def theirs(users: Collection[str]) -> Callable[[str | None, bytes], bool]:
    """A test whether an event, by its key of order and its body, belongs to one of the users."""
    # A body is decoded only where one of the ids stands in it somewhere, as text or as a number.
    needles = [msgspec.json.encode(user)[1:-1] for user in users]

    def test(user: str | None, body: bytes) -> bool:
        return user in users or (any(needle in body for needle in needles) and _is_of(body, users))

    return test


def _is_of(body: bytes, users: Collection[str]) -> bool:
    try:
        event = decode_stored(body)
    except msgspec.DecodeError:
        return True  # damaged, and the id stands in it
    for key in ("userId", "anonymousId"):
        value = event.get(key)
        if isinstance(value, (str, int, float)) and str(value) in users:
            return True
    return False


def _forget_memory(store: Store, users: Collection[str]) -> int:
    gone = sum(store.connection.execute("DELETE FROM users WHERE user = ?", (user,)).rowcount for user in set(users))
    store.count("users", -gone)
    return gone


def _forget_pending(store: Store, pending: list[tuple[int, int]], now_ms: int) -> None:
    for event_id, state in pending:
        store.connection.execute(
            "UPDATE events SET state = ?, reason = ?, settled_ms = ?, status = NULL WHERE id = ?",
            (State.DROPPED, _REASON, now_ms, event_id),
        )
        store.connection.execute("DELETE FROM retries WHERE id = ?", (event_id,))
        store.count("pending_high" if state in (State.HIGH, State.HIGH_ASIDE) else "pending_normal", -1)
        store.count(f"dropped:{_REASON}")


def _empty(store: Store, ids: list[int]) -> None:
    store.connection.executemany("UPDATE events SET body = x'7b7d', user = NULL WHERE id = ?", [(one,) for one in ids])
