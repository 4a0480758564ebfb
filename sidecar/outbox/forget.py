"""Forget users: their pending and dead events, history and memory, one page per call.

Pending and dead events become dropped (``forgotten``) and lose their bodies; history rows are deleted. The counters
keep counting all of them.

Deleted text is overwritten in the file (``PRAGMA secure_delete``), except for remains that SQLite may have left between
the rows of a page when it moved them; they are overwritten when the page is written again. After the last page the
caller has to empty the WAL (``Store.checkpoint(truncate=True)``), the other file that holds the text.

Of users that are forgotten for good (``suppress``) a salted hash is kept, so that their later events are dropped. A
reader of the file finds no ids in it. The salt is in the file as well, so guesses can be tested; the data map in
systemd/README.md says so.
"""

import secrets
from collections.abc import Callable, Collection, Container, Iterable
from hashlib import blake2b
from typing import Final, NamedTuple

import msgspec

from sidecar.events import decode_or_empty, decode_stored
from sidecar.mapping.values import as_text
from sidecar.outbox.dead import discard_ids
from sidecar.outbox.overflow import delete_rows
from sidecar.outbox.records import PENDING, PRIORITY_OF, EventState
from sidecar.outbox.steps import CHANGED_BYTES, READ_BYTES
from sidecar.outbox.store import Store

__all__ = [
    "SUPPRESSED_BYTES",
    "Forgotten",
    "digest_of_user",
    "forget_users",
    "load_suppressed",
    "suppress",
    "suppression",
    "user_matcher",
]

# Most rows that one call examines, and bytes of their bodies: a few milliseconds of the store's thread.
SCAN_ROWS: Final = 2_000
LINKED_MAX: Final = 20
_REASON: Final = "forgotten"
SUPPRESSED_BYTES: Final = 24
_SALT: Final = "suppress_salt"


class Forgotten(NamedTuple):
    """The numbers of events of each kind, and of users' memories, that one call has forgotten.

    ``skipped`` are the ids of matching events that were checked out: the dispatcher settles them. ``next_after`` is the
    ``after_id`` of the next call, None after the last row. ``linked`` are other ids that matching events name beside the
    user: events with such an id alone are not found; at most ``LINKED_MAX`` are returned.
    """

    pending: int
    dead: int
    history: int
    memory: int
    skipped: list[int]
    linked: frozenset[str]
    next_after: int | None


def forget_users(
    store: Store, users: Collection[str], now_ms: int, *, checked_out: Container[int], after_id: int = 0
) -> Forgotten:
    """Forget these users in the next rows after ``after_id``, inside a transaction.

    An event belongs to a user if its ordering key, ``userId``, ``anonymousId`` or ``previousId`` is the user. ``checked_out`` are the
    ids that the dispatcher has loaded: these events are skipped.
    """
    memory = _forget_memory(store, users) if after_id == 0 else 0
    events, linked, next_after = _events_of(store, frozenset(users), after_id)
    all_pending = [(event_id, state) for event_id, state in events if state < EventState.DELIVERED]
    pending = [(event_id, state) for event_id, state in all_pending if event_id not in checked_out]
    skipped = [event_id for event_id, _ in all_pending if event_id in checked_out]
    dead = [event_id for event_id, state in events if state == EventState.DEAD]
    history = [event_id for event_id, state in events if state in (EventState.DELIVERED, EventState.DROPPED)]
    if events:
        store.keep_ids_of(events[-1][0])  # the bodies are emptied: their message ids could not be read again
    _forget_pending(store, pending, now_ms)
    discard_ids(store, dead, now_ms, reason=_REASON)
    _empty_bodies(store, [*dead, *(event_id for event_id, _ in pending)])
    delete_rows(store, history)
    return Forgotten(len(pending), len(dead), len(history), memory, skipped, linked, next_after)


def _events_of(
    store: Store, users: frozenset[str], after_id: int
) -> tuple[list[tuple[int, int]], frozenset[str], int | None]:
    """Return ids and states of the next rows that belong to one of the users, their other ids, and where to continue."""
    matches = user_matcher(users)
    events: list[tuple[int, int]] = []
    linked: set[str] = set()
    read_bytes = changed_bytes = 0
    rows = store.connection.execute(
        "SELECT id, state, user, body FROM events WHERE id > ? ORDER BY id LIMIT ?", (after_id, SCAN_ROWS)
    )
    for examined, (event_id, state, user, body) in enumerate(
        rows, 1
    ):  # row by row, not fetchall: a body may have 32 KiB
        read_bytes += len(body)
        if matches(user, body):
            changed_bytes += len(body)
            events.append((event_id, state))
            if len(linked) < LINKED_MAX:
                linked |= _ids_in(body) - users
        if examined == SCAN_ROWS or read_bytes >= READ_BYTES or changed_bytes >= CHANGED_BYTES:
            rows.close()
            return events, frozenset(linked), event_id
    return events, frozenset(linked), None


def user_matcher(users: Collection[str]) -> Callable[[str | None, bytes], bool]:
    """Return a predicate: does an event, given its ordering key and body, belong to one of the users?"""
    # A body is decoded only if one of the ids occurs in it, as text or as a number: decoding all takes too long.
    needles = [msgspec.json.encode(user)[1:-1] for user in users]

    def matches(user: str | None, body: bytes) -> bool:
        return user in users or (any(needle in body for needle in needles) and _names_one_of(body, users))

    return matches


def _names_one_of(body: bytes, users: Collection[str]) -> bool:
    try:
        decode_stored(body)
    except msgspec.DecodeError:
        return True  # a damaged body in which the id occurs: forgetting too much is the safe side
    return not _ids_in(body).isdisjoint(users)


def _ids_in(body: bytes) -> set[str]:
    """Return the ids of users that a stored event names."""
    event = decode_or_empty(body)
    values = (event.get(key) for key in ("userId", "anonymousId", "previousId"))
    return {text for value in values if (text := as_text(value)) is not None}


def _forget_memory(store: Store, users: Collection[str]) -> int:
    deleted = sum(store.connection.execute("DELETE FROM users WHERE user = ?", (user,)).rowcount for user in set(users))
    store.count("users", -deleted)
    store.accounts.clear()
    return deleted


def _forget_pending(store: Store, pending: list[tuple[int, int]], now_ms: int) -> None:
    store.unlist_parked([event_id for event_id, _ in pending])
    for event_id, state in pending:
        store.connection.execute(
            "UPDATE events SET state = ?, reason = ?, settled_ms = ?, status = NULL WHERE id = ?",
            (EventState.DROPPED, _REASON, now_ms, event_id),
        )
        store.connection.execute("DELETE FROM retries WHERE id = ?", (event_id,))
        store.count(PENDING[PRIORITY_OF[state]], -1)
        store.count(f"dropped:{_REASON}")


def _empty_bodies(store: Store, ids: list[int]) -> None:
    # x'7b7d' is ``{}``.
    store.connection.executemany(
        "UPDATE events SET body = x'7b7d', user = NULL, account = NULL, account_from = NULL, account_call = NULL,"
        " hashed = NULL, history = NULL WHERE id = ?",
        [(event_id,) for event_id in ids],
    )


# Users that are forgotten for good ------------------------------------------------------------------------------------


def digest_of_user(salt: str, user: str) -> bytes:
    """Return the salted digest that is kept in place of a suppressed user."""
    return blake2b(
        user.encode("utf-8", "surrogatepass"), key=bytes.fromhex(salt), digest_size=SUPPRESSED_BYTES
    ).digest()


def suppress(store: Store, users: Iterable[str], now_ms: int) -> None:
    """Drop what these users send from now on, inside a transaction."""
    salt = store.get_meta(_SALT)
    if salt is None:
        salt = secrets.token_hex(32)
        store.set_meta(_SALT, salt)
    store.connection.executemany(
        "INSERT OR IGNORE INTO suppressed VALUES (?, ?)", [(digest_of_user(salt, user), now_ms) for user in users]
    )


def suppression(store: Store) -> Callable[[str], bool] | None:
    """Return a predicate: is a user suppressed? None while no user is."""
    salt, digests = load_suppressed(store)
    return (lambda user: digest_of_user(salt, user) in digests) if digests else None


def load_suppressed(store: Store) -> tuple[str, frozenset[bytes]]:
    """Return the salt and the digests of all suppressed users; an empty salt while there are none."""
    digests = frozenset(row[0] for row in store.connection.execute("SELECT digest FROM suppressed"))
    return (store.get_meta(_SALT) or "" if digests else "", digests)
