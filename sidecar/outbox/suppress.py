"""Users that are forgotten for good: a salted hash of each, so that their later events are dropped.

The id itself is not stored: a reader of the file finds no ids in it. The salt is in the file as well,
so guesses can be tested; the data map in systemd/README.md says so.
"""

import secrets
from collections.abc import Callable, Iterable
from hashlib import blake2b
from typing import Final

from sidecar.outbox.store import Store

__all__ = ["SUPPRESSED_BYTES", "digest_of_user", "load_suppressed", "suppress", "suppression"]

SUPPRESSED_BYTES: Final = 24
_SALT: Final = "suppress_salt"


def digest_of_user(salt: str, user: str) -> bytes:
    """Return what is kept of a suppressed user."""
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
