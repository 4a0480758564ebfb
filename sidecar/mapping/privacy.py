"""Privacy: what must not leave this host, and the event as people may see it.

Rules
-----
* A denied name (``drop``) is removed with all below it, at any depth, wherever apps put data: ``properties``,
  ``traits``, ``context`` and anything that is not part of the call itself. Nothing that is sent or shown is made from it.
* A name to be hashed (``hash``) is replaced in the same places by the SHA-256 of salt + value, in hexadecimal. A value
  that already is one stays, so that an event that was exported and imported maps to the same request.
* Names are compared without regard to case and underscores: PX does not tell names apart by case, and the camel rule
  makes ``first_name`` and ``firstName`` one. An entry with dots names one nested place: ``address.street``.
* ``drop`` and ``hash`` of ``[mapping.attributes]`` hold everywhere; those of ``[mapping.traits]`` in traits as well.
"""

import re
from collections.abc import Callable, Iterable
from hashlib import sha256
from typing import Any, Final

import msgspec

from sidecar.mapping.values import as_text, clean_text, json_text

__all__ = ["CALL_KEYS", "CONTEXT_OWN", "Bag", "Denied", "View", "fold"]

_SHA256_HEX: Final = re.compile(r"[0-9a-f]{64}")


def fold(name: str) -> str:
    """The form in which two names are the same name to privacy rules."""
    return name.replace("_", "").casefold()


class Denied(msgspec.Struct, frozen=True):
    """The names that are dropped and hashed, folded, and the salt."""

    drop: frozenset[str]
    hash: frozenset[str]
    salt: str

    @classmethod
    def of(cls, drop: Iterable[str], hashed: Iterable[str], salt: str) -> "Denied":
        """The rules for these names as the configuration writes them."""
        return cls(frozenset(map(fold, drop)), frozenset(map(fold, hashed)), salt)

    def __bool__(self) -> bool:
        return bool(self.drop or self.hash)

    def drops(self, name: str, path: str) -> bool:
        """Whether a value with this name at this dotted path is removed."""
        return fold(name) in self.drop or fold(path) in self.drop

    def hashes(self, name: str, path: str) -> bool:
        """Whether a value with this name at this dotted path is hashed."""
        return fold(name) in self.hash or fold(path) in self.hash

    def at(self, name: str) -> bool:
        """Whether a name on the first level of a bag is removed or hashed as a whole."""
        return bool(self) and (self.drops(name, name) or self.hashes(name, name))

    def digest(self, value: Any) -> str | None:
        """SHA-256 of salt + value in hexadecimal; of a number its digits, of an object its JSON text; None for null."""
        if value is None:
            return None
        text = value if type(value) is str else as_text(value) or json_text(self.prune(value))
        if len(text) == 64 and _SHA256_HEX.fullmatch(text):
            return text
        return sha256((self.salt + clean_text(text)).encode()).hexdigest()

    def prune(self, value: Any, path: str = "") -> Any:
        """A copy of a nested value without what is denied and with hashes; ``path`` is where it stands in its bag."""
        return self._prune(value, f"{fold(path)}." if path else "") if self else value

    def _prune(self, value: Any, prefix: str) -> Any:
        if type(value) is list:
            return [self._prune(one, prefix) for one in value]
        if type(value) is not dict:
            return value
        kept = {}
        for key, inner in value.items():
            name = fold(key)
            path = prefix + name
            if name in self.drop or path in self.drop:
                continue
            hashed = name in self.hash or path in self.hash
            kept[key] = self.digest(inner) if hashed else self._prune(inner, f"{path}.")
        return kept

    def guard(self, path: str, read: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], Any] | None:
        """The reader of a value at ``path`` in its bag (``""`` is the bag), under these rules; None if it is denied."""
        if not self:
            return read
        steps = path.split(".")
        names = {fold(step) for step in steps} | {fold(".".join(steps[: last + 1])) for last in range(len(steps))}
        if names & self.drop:
            return None
        if names & self.hash:
            return lambda event: self.digest(read(event))
        return lambda event: self.prune(read(event), path)


# The keys of a Segment call itself. They are no data that an app may have put there, so no rule removes them.
CALL_KEYS: Final = frozenset(
    {
        *("type", "event", "userId", "anonymousId", "groupId", "previousId", "messageId", "timestamp"),
        *("originalTimestamp", "sentAt", "receivedAt", "name", "category", "properties", "traits", "context"),
        *("integrations", "channel", "version", "_metadata"),
    }
)
# What PX fields are made from in `context`, outside traits (DESIGN 3). These five are the call's own as well: an
# attribute `id` that is dropped leaves `context.session.id`. `mapping.fields` can switch those fields off.
CONTEXT_OWN: Final = (("groupId",), ("sessionId",), ("session", "id"), ("page", "url"), ("page", "referrer"))


class Bag(msgspec.Struct, frozen=True):
    """What people may see of one bag of data: only the dotted paths in ``keep`` (None: all), without what is denied.

    With ``flatten`` a name that the app itself dotted is kept with what it seems to be below, as the attributes do.
    """

    denied: Denied
    keep: frozenset[str] | None = None
    flatten: bool = False

    def seen(self, bag: Any) -> Any:
        """The bag as people may see it."""
        if type(bag) is dict and self.keep is not None:
            bag = self._kept(bag, self.keep, "")
        return self.denied.prune(bag)

    def _kept(self, bag: dict[str, Any], keep: frozenset[str], prefix: str) -> dict[str, Any]:
        kept = {}
        for key, value in bag.items():
            path = prefix + key
            if path in keep or (self.flatten and any(path.startswith(f"{one}.") for one in keep)):
                kept[key] = value
            elif type(value) is dict and (below := self._kept(value, keep, f"{path}.")):
                kept[key] = below
        return kept


class View(msgspec.Struct, frozen=True):
    """What people may see of an event: how each place where apps put data is shown."""

    properties: Bag
    traits: Bag
    rest: Denied

    def seen(self, event: dict[str, Any]) -> dict[str, Any]:
        """A copy of the event as people may see it."""
        return {
            key: self._seen(key, value)
            for key, value in event.items()
            if key in CALL_KEYS or not self.rest.drops(key, key)
        }

    def _seen(self, key: str, value: Any) -> Any:
        if key == "properties":
            return self.properties.seen(value)
        if key == "traits":
            return self.traits.seen(value)
        if key == "context" and type(value) is dict:
            traits = {"traits": self.traits.seen(value["traits"])} if "traits" in value else {}
            return {**_with_own(self.rest.prune(value), value), **traits}
        if key not in CALL_KEYS and self.rest.hashes(key, key):
            return self.rest.digest(value)
        return self.rest.prune(value)


def _with_own(shown: dict[str, Any], context: dict[str, Any]) -> dict[str, Any]:
    """A copy of the pruned ``shown`` with what is the call's own in ``context`` put back."""
    shown = dict(shown)
    for *outer, key in CONTEXT_OWN:
        place = context.get(outer[0]) if outer else context
        value = place.get(key) if type(place) is dict else None
        if type(value) not in (str, int, float):
            continue
        if outer:
            inside = shown.get(outer[0])
            shown[outer[0]] = {**(inside if type(inside) is dict else {}), key: value}
        else:
            shown[key] = value
    return shown
