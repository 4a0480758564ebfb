"""The bag of values of one event (``properties``, or traits) as PX gets it.

The way of one value: keep, drop and hash by the app's name; rename; case; ``set``; then PX's caps. What a *name* becomes
does not depend on the event, so it is worked out once and remembered (a ``Fate``); an event costs one look-up per value.

Where two names come out the same (PX does not tell names apart by case), one wins: the one that already had its final
form, else the first by the app's spelling. Attributes are sent sorted by name, so that the same event gives the same
bytes whatever the order of its keys.
"""

from typing import Any, Final

import msgspec

from sidecar.config import AttributeRules
from sidecar.mapping.model import Change
from sidecar.mapping.names import camel, remember
from sidecar.mapping.privacy import Denied
from sidecar.mapping.values import as_text, clean_text, json_text, within_64_bits

__all__ = ["MAX_ATTRIBUTES", "MAX_KEY", "Attributes", "Fate"]

MAX_ATTRIBUTES: Final = 50  # facts: px_and_sdks.md 1.2, as the next one
MAX_KEY: Final = 1_024

Value = str | int | float | bool


class Fate(msgspec.Struct, frozen=True):
    """What becomes of all values with one name.

    ``final`` is the name in PX, None where the value is not sent; ``folded`` is the form in which PX compares names;
    ``rank`` is 0 if the app's name already had its final form, else 1; ``why`` says which rules made it so.
    """

    final: str | None
    folded: str = ""
    rank: int = 0
    hashed: bool = False
    cut: bool = False
    why: str = ""


class Attributes:
    """The compiled rules for one bag; calling it maps a bag."""

    def __init__(
        self,
        rules: AttributeRules,
        denied: Denied,
        *,
        field: str,
        limit: int | None,
        never: frozenset[str] = frozenset(),
    ) -> None:
        """Compile ``rules``, in which ``case`` and ``nested`` are settled.

        ``field`` is the PX field that changes are reported for; ``limit`` the most values; ``never`` are names of the
        app that are no attributes since a PX field of their own is made from them.
        """
        self._keep = frozenset(rules.keep)
        self._never = never
        self._denied = denied
        self._rename = rules.rename
        self._camel = rules.case == "camel"
        self._flatten = rules.nested == "flatten"
        self._set = {clean_text(name): _constant(value) for name, value in rules.set.items()}
        self._set_folded = frozenset(name.casefold() for name in self._set)
        self._field = field
        self._limit = limit
        self._fates: dict[str, Fate] = {}

    def __call__(self, bag: Any, changes: list[Change]) -> dict[str, Value]:
        """The attributes of one bag, sorted by name; what was changed otherwise than by the rules goes to ``changes``."""
        bag = self.flat(bag) if type(bag) is dict else {}
        fates = self._fates
        out: dict[str, Value] = {}
        taken: dict[str, str] = {}  # folded name in PX → name of the app
        for name, value in bag.items():
            fate = fates.get(name) or self._remember(name)
            final = fate.final
            if final is None or value is None:
                continue
            kind = type(value)
            if fate.hashed:
                value = self._denied.digest(value)
            elif kind is str:
                if not value.isascii():
                    value = clean_text(value)
            elif kind is not bool and (value := self._other(name, final, value, changes)) is None:
                continue
            if fate.folded in taken and not self._wins(name, fate, taken[fate.folded], out, changes):
                continue
            taken[fate.folded] = name
            out[final] = value
            if fate.cut:
                changes.append(Change(f"{self._field}.{final[:40]}…", f"name cut: over {MAX_KEY:,} characters"))
        if self._set:
            out.update(self._set)
        return self._in_order(out, changes)

    def fate(self, name: str) -> Fate:
        """What becomes of values with this name."""
        why: list[str] = []
        parts = name.split(".") if self._flatten else [name]
        if self._denied.drops(name, name) or any(self._denied.drops(part, part) for part in parts):
            return Fate(None, why="drop")
        if self._keep and not any(".".join(parts[: last + 1]) in self._keep for last in range(len(parts))):
            return Fate(None, why="not in keep")
        if name in self._never:
            return Fate(None, why="a PX field of its own")
        hashed = self._denied.hashes(name, parts[-1])
        why += ["hash"] * hashed
        final = self._rename.get(name, name)
        why += ["rename"] * (final != name)
        if self._camel:
            cased = ".".join(map(camel, final.split("."))) if self._flatten else camel(final)
            why += ["camel"] * (cased != final)
            final = cased
        final = clean_text(final)
        cut = len(final) > MAX_KEY
        final = final[:MAX_KEY]
        if not final or final.casefold() in self._set_folded:
            return Fate(None, why="set" if final else "an empty name")
        return Fate(final, final.casefold(), int(final != name), hashed, cut, ", ".join(why))

    def _remember(self, name: str) -> Fate:
        fate = self.fate(name)
        remember(self._fates, name, fate)
        return fate

    def _other(self, name: str, final: str, value: Any, changes: list[Change]) -> Value | None:
        """A number, object or list as PX takes it; None where it has no value."""
        if isinstance(value, int):
            if within_64_bits(value):
                return value
            text = as_text(value)
            what = "sent as text: beyond 64 bits" if text else "left out: beyond 1,024 bits"
            changes.append(Change(f"{self._field}.{final}", what))
            return text
        if isinstance(value, float):
            if value - value == 0:
                return value
            changes.append(Change(f"{self._field}.{final}", "left out: not a finite number"))
            return None
        return json_text(self._denied.prune(value, name))

    def _wins(self, name: str, fate: Fate, other: str, out: dict[str, Value], changes: list[Change]) -> bool:
        """Settle two names that come out the same; the loser's value is removed and reported."""
        rival = self._fates.get(other) or self._remember(other)
        wins = (fate.rank, name) < (rival.rank, other)
        winner, loser = (name, other) if wins else (other, name)
        changes.append(Change(f"{self._field}.{fate.final}", f"{loser!r} left out: {winner!r} has the same name in PX"))
        if wins and rival.final is not None:
            del out[rival.final]
        return wins

    def _in_order(self, out: dict[str, Value], changes: list[Change]) -> dict[str, Value]:
        names = sorted(out)
        if self._limit is not None and len(names) > self._limit:
            for name in names[self._limit :]:
                changes.append(Change(f"{self._field}.{name}", f"left out: over {self._limit} attributes"))
            del names[self._limit :]
        return {name: out[name] for name in names}

    def flat(self, bag: dict[str, Any]) -> dict[str, Any]:
        """The bag with objects as dotted names, where ``nested`` says so; a name that the app itself dotted wins."""
        if not self._flatten:
            return bag
        objects = sorted(name for name, value in bag.items() if type(value) is dict and not self._denied.at(name))
        flat = {name: value for name, value in bag.items() if name not in objects} if objects else bag
        for name in objects:
            _flatten_into(flat, name, self._denied.prune(bag[name], name))
        return flat


def _flatten_into(flat: dict[str, Any], path: str, value: Any) -> None:
    if type(value) is dict and value:
        for key in sorted(value):
            _flatten_into(flat, f"{path}.{key}", value[key])
    else:
        flat.setdefault(path, value)


def _constant(value: Value) -> Value:
    return clean_text(value) if type(value) is str else value
