"""Which app an event comes from: write keys and the numbers of their sources.

Once the configuration has a ``[[source]]``, a request over TCP must carry a known write key; whoever can open the Unix
socket is trusted already, and there a key only chooses the source. Source 0 is the one without a key of its own.

A write key is never stored: the outbox knows a source by the digest of its key. Keys are compared by digest, all of
them and in constant time, so that answers tell nothing about how much of a key was right.
"""

from collections.abc import Callable, Sequence
from hashlib import sha256
from hmac import compare_digest
from typing import Final

from sidecar.config import Source

__all__ = ["DEFAULT_SOURCE", "Sources", "UnknownWriteKey", "fingerprint"]

DEFAULT_SOURCE: Final = 0


class UnknownWriteKey(Exception):
    """The request carries no write key that the configuration knows."""


def fingerprint(write_key: str) -> bytes:
    """What the outbox keeps in place of a write key."""
    return sha256(b"px-sidecar source\0" + write_key.encode("utf-8", "surrogatepass")).digest()


class Sources:
    """The configured sources. ``number_of`` gives the outbox's number for a fingerprint and property key."""

    def __init__(self, sources: Sequence[Source], number_of: Callable[[bytes, str], int]) -> None:
        self._numbers = {
            digest: number_of(digest, source.property_key)
            for source in sources
            for digest in [fingerprint(source.write_key.reveal())]
        }

    def __bool__(self) -> bool:
        """Whether any source is configured, so that keys mean something."""
        return bool(self._numbers)

    def number(self, write_key: str | None, *, trusted: bool) -> int:
        """The source of a request. Raises UnknownWriteKey, unless ``trusted`` or no source is configured."""
        if not self._numbers:
            return DEFAULT_SOURCE
        found: int | None = None
        if write_key:
            asked = fingerprint(write_key)
            for known, number in self._numbers.items():
                if compare_digest(known, asked):
                    found = number
        if found is None:
            if trusted:
                return DEFAULT_SOURCE
            raise UnknownWriteKey
        return found
