"""Sources: the apps that events come from, known by their write keys.

Once the configuration has a ``[[source]]``, a request over TCP must carry a known write key. Clients that can open the
Unix socket are trusted already; there a key only selects the source. Source 0 has no key of its own.

A write key is never stored: the outbox identifies a source by the digest of its key. Keys are compared by digest, with
all known ones and in constant time, so that the time of an answer does not reveal how much of a key was right.
"""

from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from hmac import compare_digest
from typing import Final

from sidecar.config import SourceConfig

__all__ = ["DEFAULT_SOURCE", "UnknownWriteKey", "fingerprint", "number_sources", "source_number"]

DEFAULT_SOURCE: Final = 0


class UnknownWriteKey(Exception):
    """The request has no write key, or one that the configuration does not know."""


def fingerprint(write_key: str) -> bytes:
    """Return the digest that the outbox keeps in place of a write key."""
    return sha256(b"px-sidecar source\0" + write_key.encode("utf-8", "surrogatepass")).digest()


def number_sources(sources: Sequence[SourceConfig], number_of: Callable[[bytes, str], int]) -> dict[bytes, int]:
    """Map the fingerprint of each configured write key to the number of its source.

    ``number_of`` returns the outbox's number for a fingerprint and property key (``Store.source``).
    """
    return {
        digest: number_of(digest, source.property_key)
        for source in sources
        for digest in [fingerprint(source.write_key.reveal())]
    }


def source_number(numbers: Mapping[bytes, int], write_key: str | None, *, trusted: bool) -> int:
    """Return the source of a request. Raises UnknownWriteKey, unless ``trusted`` or no source is configured."""
    if not numbers:
        return DEFAULT_SOURCE
    source: int | None = None
    if write_key:
        digest = fingerprint(write_key)
        for known_digest, number in numbers.items():  # no early exit: see the module's docstring
            if compare_digest(known_digest, digest):
                source = number
    if source is None:
        if trusted:
            return DEFAULT_SOURCE
        raise UnknownWriteKey
    return source
