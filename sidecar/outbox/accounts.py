"""The account of each user as this host has accepted it: read and written in the transaction that accepts events.

Rules
-----
* The account of an event is the one that held when the event was accepted. It is decided here, in the order of
  acceptance, and stored with the event; delivery, retries and restarts read it and never decide it again.
* What was sent to PX about a user (``users.known``) is another column and is written elsewhere, when a call is settled.
* A file of the first format has no account column filled: what it remembered is read from ``known`` until the next
  ``identify`` or ``group`` of the user says an account.
* While events of the first format are pending, one of them may be the call that says the account of a later event. So
  an event whose account no other call has decided is stored without one, and gets it as they do: when it is sent.

Recently used accounts are kept in memory, so that an event of a busy user costs no lookup in the file.
"""

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Final

from sidecar.mapping import NO_ACCOUNT, PRIORITIES, Account, Known
from sidecar.outbox.records import NewEvent

__all__ = ["NOT_IN_ANY", "AccountMemory"]

# About 4 MiB of memory.
CACHED_USERS: Final = 20_000
_PROBE: Final = 900  # parameters of one IN (…), below every SQLite's limit
# The columns of an event that belongs to no account.
NOT_IN_ANY: Final = (None, "", 0)
_FROM_KNOWN: Final = -1  # the call of an account that a file of the first format remembers
_ACCOUNTS: Final = "SELECT property_key, user, account, account_from, account_call, CASE WHEN account_call IS NULL THEN known END FROM users"
_new: Final = tuple.__new__
_OLDEST: Final = "SELECT account_from, account_call FROM events WHERE state = ? AND state < 2 ORDER BY id LIMIT 1"

UserKey = tuple[str, str]  # property key, user


class AccountMemory:
    """The accounts of users. Used by the store inside a transaction; then ``committed`` or ``rolled_back``."""

    def __init__(self, connection: sqlite3.Connection, *, cached_users: int = CACHED_USERS) -> None:
        self._connection = connection
        self._cached_users = cached_users
        self._cached: dict[UserKey, Account] = {}
        self._changed: dict[UserKey, Account] = {}
        self._first_format_pending = True  # until ``begin`` has looked

    def begin(self) -> None:
        """Prepare for a transaction that accepts events. Raises sqlite3.Error."""
        if self._first_format_pending:
            # Ids are in the order of acceptance, so the oldest of a class is of the first format if any is. Before each
            # parked row there is an older one of its user.
            oldest = (self._connection.execute(_OLDEST, (priority,)).fetchone() for priority in PRIORITIES)
            self._first_format_pending = (None, None) in oldest

    def load(self, keys: Iterable[UserKey]) -> None:
        """Read the accounts of these users, as far as they are not in memory. Raises sqlite3.Error."""
        wanted = set(keys)
        missing = [key for key in wanted if key not in self._cached]
        if not missing:
            return
        if len(self._cached) + len(missing) > self._cached_users:
            self._cached.clear()
            missing = list(wanted)
        cached = self._cached
        cached.update(dict.fromkeys(missing, NO_ACCOUNT))
        for start in range(0, len(missing), _PROBE):
            users = [user for _, user in missing[start : start + _PROBE]]
            # Each row costs as much here as the lookup in the index: no function of SQL, no call for each account.
            for property_key, user, account, path, call_id, known in self._connection.execute(
                f"{_ACCOUNTS} WHERE user IN ({','.join('?' * len(users))})", users
            ):
                # For other products with the same user, too: their events would get this account.
                if known is None:
                    cached[property_key, user] = _new(Account, (account, path, call_id)) if account else NO_ACCOUNT
                elif older := Known.decode(known).account_id:
                    cached[property_key, user] = Account(older, "", _FROM_KNOWN)

    def of(self, key: UserKey) -> Account:
        """Return the account that holds now; ``NO_ACCOUNT`` for a user that was not loaded or has none."""
        return self._changed.get(key) or self._cached.get(key, NO_ACCOUNT)

    def decide_each(self, events: Sequence[tuple[int, NewEvent]]) -> list[tuple[str | None, str | None, int]]:
        """Return the account of each event that is accepted, as ``decide`` does; the events come with their ids, in order."""
        known = self._cached or self._changed or self._first_format_pending
        if not known and not [event for _, event in events if event.says or event.carried or event.memory]:
            return [NOT_IN_ANY] * len(events)
        return [self.decide(event_id, event) for event_id, event in events]

    def decide(self, event_id: int, event: NewEvent) -> tuple[str | None, str | None, int]:
        """Return the account of an event that is accepted, as it is stored: what it says itself or brings along, else
        what was said before.

        What an event brings from another host fills an empty memory and overwrites none.
        """
        if event.user is None:
            return NOT_IN_ANY
        key = (event.product, event.user)
        held = self.of(key)
        if event.memory is not None and not held.id:
            self.change(key, held := event.memory)
        own = event.carried or (Account(*event.says, event_id) if event.says else None)
        if own is None:
            if self._first_format_pending and (not held.id or held.call_id == _FROM_KNOWN):
                return None, None, 0
            if held is NO_ACCOUNT:
                return NOT_IN_ANY
            own = held
        elif own.id and not event.keeps_memory and not (event.carried and held.id):
            self.change(key, own)
        return own.id or None, own.path, max(0, own.call_id)

    def known_changed(self, key: UserKey) -> None:
        """Forget an account that was read from ``known``, which has changed."""
        if self._cached.get(key, NO_ACCOUNT).call_id <= 0:
            self._cached.pop(key, None)

    def change(self, key: UserKey, account: Account) -> None:
        """Move the user to this account, from the event that is being accepted on."""
        self._changed[key] = account

    def write(self, now_ms: int) -> int:
        """Write what changed, inside the transaction; returns how many users are new. Raises sqlite3.Error."""
        new = 0
        for (property_key, user), account in self._changed.items():
            known = self._connection.execute(
                "UPDATE users SET account = ?, account_from = ?, account_call = ?, seen_ms = MAX(seen_ms, ?)"
                " WHERE user = ? AND property_key = ?",
                (account.id, account.path, account.call_id, now_ms, user, property_key),
            ).rowcount
            if not known:
                self._connection.execute(
                    "INSERT INTO users (property_key, user, known, seen_ms, account, account_from, account_call)"
                    " VALUES (?, ?, x'7b7d', ?, ?, ?, ?)",
                    (property_key, user, now_ms, account.id, account.path, account.call_id),
                )
                new += 1
        return new

    def committed(self) -> None:
        """Keep what changed: the transaction is on disk."""
        self._cached.update(self._changed)
        self._changed.clear()

    def rolled_back(self) -> None:
        """Discard what changed: the transaction is undone."""
        self._changed.clear()

    def clear(self) -> None:
        """Forget everything in memory: rows of users were removed."""
        self._cached.clear()
