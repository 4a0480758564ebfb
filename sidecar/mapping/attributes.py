"""Map one object of values (``properties``, or traits) to PX attributes.

Each value passes these steps: keep, drop and hash by the app's name; rename; case; ``set``; then the caps of PX. The
treatment of a *name* does not depend on the event. It is computed once, as an ``AttributePlan``, and cached, so that an
event costs one lookup per value.

If two names become equal (PX does not distinguish names by case), one wins: the name that already had its final form,
else the first by the app's spelling. Traits have an order of their own (``traits.py``). Attributes are sent sorted by name, so the same event gives the same bytes
whatever the order of its keys.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from sidecar.config import AttributeRules
from sidecar.mapping.model import Change
from sidecar.mapping.names import camel, store_bounded
from sidecar.mapping.privacy import PrivacyRules
from sidecar.mapping.values import as_text, clean_text, json_text, within_64_bits

__all__ = [
    "MAX_ATTRIBUTES",
    "MAX_KEY",
    "NO_NAME",
    "AttributeMapper",
    "AttributePlan",
    "report_broken",
    "report_no_object",
]

MAX_ATTRIBUTES: Final = 50  # limits of PX: sidecar/px/README.md#the-custom-event
MAX_KEY: Final = 1_024  # characters

# What a text with U+FFFD is reported as. An app can send the character itself, but hardly ever means it.
BROKEN_TEXT: Final = "has U+FFFD in place of bytes that are not UTF-8, of NUL, or of half a character"

NO_NAME: Final = "an empty name"

Value = str | int | float | bool


def report_no_object(field: str, name: str, value: Any, changes: list[Change]) -> None:
    """Report a part of an event that is left out because it is not an object; an empty list is how PHP writes an empty one."""
    if type(value) is not dict and value is not None and value != []:
        changes.append(Change(field, f"{name} left out: {type(value).__name__}, not an object"))


def report_broken(field: str, value: Any, changes: list[Change]) -> None:
    """Report a text in which something was replaced because it is not text."""
    if type(value) is str and not value.isascii() and "\ufffd" in value:
        changes.append(Change(field, BROKEN_TEXT))


class AttributePlan(msgspec.Struct, frozen=True):
    """The treatment of all values with one name.

    ``final`` is the name in PX, None if the value is not sent; ``folded`` is the form in which PX compares names;
    ``rank`` orders names that become equal, the lowest wins; ``reason`` names the rules that decided. ``broken`` is true
    if the name holds U+FFFD, the replacement of what is not text.
    """

    final: str | None
    folded: str = ""
    rank: int = 0
    hashed: bool = False
    cut: bool = False
    broken: bool = False
    reason: str = ""


class AttributeMapper:
    """The compiled rules for one object; calling it maps an object."""

    def __init__(
        self,
        rules: AttributeRules,
        privacy: PrivacyRules,
        *,
        field: str,
        limit: int | None,
        excluded: frozenset[str] = frozenset(),
        rank: Callable[[str], int] | None = None,
    ) -> None:
        """Compile ``rules``; their ``case`` and ``nested`` must be set.

        ``field`` is the PX field named in reported changes; ``limit`` the maximum number of values; ``excluded`` are
        names of the app that are not attributes because a PX field of their own is made from them; ``rank`` orders
        spellings that become equal, by the app's name.
        """
        self._keep = frozenset(rules.keep)
        self._excluded = excluded
        self._privacy = privacy
        self._rename = rules.rename
        self._camel = rules.case == "camel"
        self._flatten = rules.nested == "flatten"
        self._set = {clean_text(name): _clean_constant(value) for name, value in rules.set.items()}
        self._set_folded = frozenset(name.casefold() for name in self._set)
        self._field = field
        self._limit = limit
        self._rank = rank
        self._plans: dict[str, AttributePlan] = {}

    def __call__(self, values: Any, changes: list[Change], taken: dict[str, str] | None = None) -> dict[str, Value]:
        """Return the attributes of one object, sorted by name; append changes that no rule asks for to ``changes``.

        ``taken`` is filled with the folded names in PX and the names of the app that hold them.
        """
        values = values if type(values) is dict else {}
        sent, values = values, self.flatten(values, changes)
        plans = self._plans
        out: dict[str, Value] = {}
        taken = {} if taken is None else taken
        for name, value in values.items():
            plan = plans.get(name) or self._cached_plan(name)
            final = plan.final
            # Null is left out: RudderStack sends the text "null", which PX would show as a value.
            if final is None or value is None:
                if plan.reason == NO_NAME and value is not None:
                    changes.append(Change(self._field, f"a value left out: it has {NO_NAME}"))
                continue
            kind = type(value)
            # Hash before any conversion: the digest must not depend on how PX would take the plain value. Flattening has
            # already hashed what was inside objects, also where the app has a null under the dotted name.
            if plan.hashed and sent.get(name) is not None:
                value = self._privacy.digest(value)
            elif kind is str:
                if not value.isascii() or "\0" in value:
                    value = clean_text(value)
                    if "\ufffd" in value:
                        changes.append(Change(f"{self._field}.{final}", BROKEN_TEXT))
                if self._privacy and sent.get(name) is not None:  # flattening has applied the rules already
                    value = self._privacy.clean(value)
            elif kind is not bool:
                if (kind is dict or kind is list) and sent.get(name) is not None:
                    value = self._privacy.prune(value, name)
                if (value := self._convert(final, value, changes)) is None:
                    continue
            # Only now: a value that is left out must not occupy its name.
            if plan.folded in taken and not self._wins(name, plan, taken[plan.folded], out, changes):
                continue
            taken[plan.folded] = name
            out[final] = value
            if plan.cut:
                changes.append(Change(f"{self._field}.{final[:40]}…", f"name cut: over {MAX_KEY:,} characters"))
            if plan.broken:
                changes.append(Change(f"{self._field}.{final[:40]}", f"its name {BROKEN_TEXT}"))
        if self._set:
            out.update(self._set)
        return self._sort_and_limit(out, changes)

    def origins(self, values: Any) -> dict[str, str]:
        """Return for each attribute that is made from ``values``, before the cap, the app's name that gives it."""
        taken: dict[str, str] = {}
        self(values, [], taken)
        return {self.plan_for(name).final or "": name for name in taken.values()}

    def plan_for(self, name: str) -> AttributePlan:
        """Compute the treatment of values with this name. Privacy comes first: no later rule can lift a denial."""
        reasons: list[str] = []
        parts = name.split(".") if self._flatten else [name]
        if self._privacy.drops(name, name) or any(self._privacy.drops(part, part) for part in parts):
            return AttributePlan(None, reason="drop")
        # With `flatten`, an entry of `keep` also keeps what is below it: any prefix of the dotted name counts.
        if self._keep and not any(".".join(parts[: last + 1]) in self._keep for last in range(len(parts))):
            return AttributePlan(None, reason="not in keep")
        if name in self._excluded:
            return AttributePlan(None, reason="a PX field of its own")
        hashed = self._privacy.hashes(name, parts[-1])
        reasons += ["hash"] * hashed
        final = self._rename.get(name, name)
        reasons += ["rename"] * (final != name)
        if self._camel:
            cased = ".".join(map(camel, final.split("."))) if self._flatten else camel(final)
            reasons += ["camel"] * (cased != final)
            final = cased
        final = clean_text(final)
        cut = len(final) > MAX_KEY
        final = final[:MAX_KEY]
        # A constant of `set` replaces the value that the app sends under an equal name.
        if not final or final.casefold() in self._set_folded:
            return AttributePlan(None, reason="set" if final else NO_NAME)
        rank = int(final != name) if self._rank is None else self._rank(name)
        return AttributePlan(final, final.casefold(), rank, hashed, cut, "\ufffd" in final, ", ".join(reasons))

    def with_defaults(
        self, values: Any, defaults: Mapping[str, str], changes: list[Change] | None = None
    ) -> dict[str, Any]:
        """Return ``values`` and those of ``defaults`` whose name in PX none of ``values`` has.

        A default that is empty, or of which the privacy rules leave nothing, is not a value. One that gives way to a
        different value is reported in ``changes``.
        """
        own = values if type(values) is dict else {}
        names = {self._cached_plan(name).folded: as_text(value) for name, value in own.items() if value is not None}
        merged = dict(own)
        for name, value in defaults.items():
            plan = self._cached_plan(name)
            if not plan.hashed and self._privacy and not self._privacy.clean(value).strip():
                continue
            if plan.folded not in names:
                merged[name] = value
            elif changes is not None and plan.final is not None and names[plan.folded] != value:
                what = f"the call's own {name} left out: a property has this name in PX"
                changes.append(Change(f"{self._field}.{plan.final}", what))
        return merged

    def flatten(self, values: dict[str, Any], changes: list[Change] | None = None) -> dict[str, Any]:
        """Replace objects by dotted names if ``nested`` asks for it; a name that the app itself dotted wins.

        An object that is dropped, hashed or sent elsewhere as a whole stays an object, so that its plan applies to all of it.
        """
        if not self._flatten:
            return values
        objects = sorted(
            name
            for name, value in values.items()
            if type(value) is dict and name not in self._excluded and not self._privacy.covers(name)
        )
        flat = {name: value for name, value in values.items() if name not in objects} if objects else values
        lost: list[str] = []
        for name in objects:
            _flatten_into(flat, name, self._privacy.prune(values[name], name), self._excluded, lost)
        if changes is not None:
            what = "left out: a name with dots has the same name in PX"
            changes += [Change(f"{self._field}.{path}", what) for path in lost]
        return flat

    def _cached_plan(self, name: str) -> AttributePlan:
        plan = self._plans.get(name)
        if plan is None:
            plan = self.plan_for(name)
            store_bounded(self._plans, name, plan)
        return plan

    def _convert(self, final: str, value: Any, changes: list[Change]) -> Value | None:
        """Convert a number, object or list to a value that PX takes; None if it is left out."""
        if isinstance(value, int):
            if within_64_bits(value):
                return value
            text = as_text(value)
            what = "sent as text: beyond 64 bits" if text else "left out: beyond 1,024 bits"
            changes.append(Change(f"{self._field}.{final}", what))
            return text
        if isinstance(value, float):
            if value - value == 0:  # neither NaN nor infinite
                return value
            changes.append(Change(f"{self._field}.{final}", "left out: not a finite number"))
            return None
        text = json_text(value)
        if "\ufffd" in text:
            changes.append(Change(f"{self._field}.{final}", BROKEN_TEXT))
        return text

    def _wins(self, name: str, plan: AttributePlan, holder: str, out: dict[str, Value], changes: list[Change]) -> bool:
        """Decide between two names that become equal; remove and report the loser. True if ``name`` wins.

        The order of (rank, name) is total and does not depend on the order of keys in the event.
        """
        rival = self._plans.get(holder) or self._cached_plan(holder)
        wins = (plan.rank, name) < (rival.rank, holder)
        winner, loser = (name, holder) if wins else (holder, name)
        changes.append(Change(f"{self._field}.{plan.final}", f"{loser!r} left out: {winner!r} has the same name in PX"))
        if wins and rival.final is not None:
            del out[rival.final]  # its spelling may differ in case from the winner's
        return wins

    def _sort_and_limit(self, out: dict[str, Value], changes: list[Change]) -> dict[str, Value]:
        """Sort by name; leave out and report the last names beyond the limit."""
        names = sorted(out)
        if self._limit is not None and len(names) > self._limit:
            for name in names[self._limit :]:
                changes.append(Change(f"{self._field}.{name}", f"left out: over {self._limit} attributes"))
            del names[self._limit :]
        return {name: out[name] for name in names}


def _flatten_into(flat: dict[str, Any], path: str, value: Any, whole: frozenset[str], lost: list[str]) -> None:
    """Add the leaves of ``value`` under ``path``; an empty object is a leaf, and so is each path in ``whole``.

    ``lost`` gets the names that exist: they stay.
    """
    if type(value) is dict and value and path not in whole:
        for key in sorted(value):
            _flatten_into(flat, f"{path}.{key}", value[key], whole, lost)
    elif flat.get(path) is None:  # a null is not a value
        flat[path] = value
    elif value is not None:
        lost.append(path)


def _clean_constant(value: Value) -> Value:
    return clean_text(value) if type(value) is str else value
