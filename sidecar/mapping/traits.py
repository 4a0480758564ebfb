"""Traits as PX's user and account fields: the two tables, and how a value becomes what its field takes.

Rules
-----
* A trait is known by PX's own name or any spelling that differs by case and underscores only: ``firstName``,
  ``first_name``, ``FirstName``. Where both occur, PX's own spelling wins.
* What the table does not know becomes a custom attribute. What PX keeps itself (``lastSeenDate``) is not sent.
* PX "can't handle empty/null dates" (facts: ``px_and_sdks.md`` 1.5): a value that does not fit is left out and reported.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from sidecar.mapping.attributes import Attributes, Value
from sidecar.mapping.model import Change
from sidecar.mapping.privacy import Denied, fold
from sidecar.mapping.values import as_text, to_epoch_ms, within_64_bits

__all__ = ["ACCOUNT", "USER", "Model", "Split", "Splitter"]


def _whole(value: Any) -> int | None:
    if type(value) is str:
        bare = value.strip()
        return _whole(int(bare)) if bare.isascii() and bare.removeprefix("-").isdigit() and len(bare) < 20 else None
    if type(value) is int:
        return value if within_64_bits(value) else None
    return round(value) if type(value) is float and abs(value) < 2**53 else None


def _number(value: Any) -> float | None:
    if type(value) is str:
        try:
            value = float(value)
        except ValueError:
            return None
    usable = type(value) in (int, float) and abs(value) < 2**53
    return value if usable else None


def _yes_or_no(value: Any) -> bool | None:
    return value if type(value) is bool else {"true": True, "false": False}.get(str(value).lower())


def _gender(value: Any) -> str | None:
    """As RudderStack reads it (facts 2.1): by the first letter."""
    text = value.strip().upper() if type(value) is str else ""
    return {"F": "FEMALE", "M": "MALE", "O": "OTHER"}.get(text[:1], "EMPTY_GENDER" if text == "EMPTY_GENDER" else None)


def _text(value: Any) -> str | None:
    return as_text(value) if type(value) is not bool else str(value).lower()


Convert = Callable[[Any], Any]


class Model(msgspec.Struct, frozen=True):
    """The fields of one kind of PX record, facts ``px_and_sdks.md`` 1.5: how each is converted, and other names for it.

    ``new_only`` are fields that only a new record gets; ``read_only`` are never sent.
    """

    fields: Mapping[str, Convert]
    aliases: Mapping[str, str]
    new_only: frozenset[str]
    read_only: frozenset[str]


USER: Final = Model(
    fields={
        **dict.fromkeys(("email", "firstName", "lastName", "title", "phone", "role", "subscriptionId"), _text),
        **dict.fromkeys(("accountId", "sfdcContactId", "name"), _text),  # a full name is split
        "gender": _gender,
        "score": _whole,
        "globalUnsubscribe": _yes_or_no,
        "signUpDate": to_epoch_ms,
        "firstVisitDate": to_epoch_ms,
    },
    aliases={"createdAt": "signUpDate"},
    new_only=frozenset({"signUpDate"}),
    read_only=frozenset(
        {"aptrinsicId", "lastSeenDate", "numberOfVisits", "createDate", "lastModifiedDate", "globalId"}
    ),
)
ACCOUNT: Final = Model(
    fields={
        **dict.fromkeys(("name", "trackedSubscriptionId", "sfdcId", "dunsNumber", "industry", "sicCode"), _text),
        **dict.fromkeys(("website", "naicsCode", "plan", "parentGroupId", "gsId", "csm"), _text),
        "numberOfEmployees": _whole,
        "healthScore": _number,
        "nps": _number,
        "lastSeenDate": to_epoch_ms,
        "renewalDate": to_epoch_ms,
    },
    aliases={"employees": "numberOfEmployees", "employeeCount": "numberOfEmployees"},
    new_only=frozenset(),
    read_only=frozenset({"numberOfUsers", "createDate", "lastModifiedDate"}),
)

_LOCATION: Final[Mapping[str, Convert]] = {
    **dict.fromkeys(("countryName", "countryCode", "stateName", "stateCode", "city", "street"), _text),
    **dict.fromkeys(("postalCode", "continent", "regionName", "timeZone"), _text),
    "latitude": _number,
    "longitude": _number,
}
_OWN_ID: Final = frozenset({"id", "userid", "groupid", "identifyid", "accountid"})
# Names that say so much only inside an address or a location; a trait `state` of its own may be any state.
_IN_ADDRESS: Final = {"country": "countryName", "state": "stateName", "region": "regionName", "zip": "postalCode"}


class Split(msgspec.Struct, frozen=True):
    """Traits, split into what PX has fields for, what only a new record gets, and custom attributes."""

    fields: dict[str, Any]
    new_only: dict[str, Any]
    custom: dict[str, Value]


class Splitter:
    """The compiled table of one model; calling it splits one bag of traits."""

    def __init__(self, model: Model, attributes: Attributes, denied: Denied, prefix: str) -> None:
        """Compile; ``attributes`` are the rules for traits, ``prefix`` names the record in reported changes."""
        self._model = model
        self._attributes = attributes
        self._denied = denied
        self._prefix = prefix
        self._convert = {**model.fields, **_LOCATION}
        self._known = {fold(name): name for name in self._convert} | {
            fold(name): px for name, px in model.aliases.items()
        }
        self._read_only = {fold(name) for name in model.read_only}

    def __call__(self, traits: dict[str, Any], own_id: str, changes: list[Change]) -> Split:
        """Split ``traits``; ``own_id`` is the record's id, which traits often repeat."""
        places = {name: self.taken(traits, name) for name in ("address", "location")}
        plain = {name: value for name, value in traits.items() if places.get(name) is None}
        fields: dict[str, Any] = {}
        custom: dict[str, Value] = {}
        for name, value in self._attributes(plain, changes).items():
            known = fold(name)
            if known in self._known:
                self._put(fields, self._known[known], name, value, changes)
            elif known in self._read_only:
                changes.append(Change(f"{self._prefix}.{name}", "left out: PX keeps it itself"))
            elif not (known in _OWN_ID and as_text(value) == own_id):
                custom[name] = value
        for place in places.values():
            self._locate(fields, place or {}, changes)
        return self._arranged(fields, custom)

    def taken(self, traits: dict[str, Any], name: str) -> dict[str, Any] | None:
        """The trait ``name`` if it is an object that the rules let through as it is, without what is denied in it."""
        value = traits.get(name)
        if type(value) is not dict:
            return None
        fate = self._attributes.fate(name)
        if fate.final is None or fate.hashed:
            return None
        pruned: dict[str, Any] = self._denied.prune(value, name)
        return pruned

    def _put(self, fields: dict[str, Any], px: str, name: str, value: Any, changes: list[Change]) -> None:
        if px in fields and name != px:
            return
        converted = self._convert[px](value)
        if converted is not None:
            fields[px] = converted
        elif value not in ("", None):
            changes.append(Change(f"{self._prefix}.{px}", f"left out: {name!r} has no value that PX takes here"))

    def _locate(self, fields: dict[str, Any], place: dict[str, Any], changes: list[Change]) -> None:
        for name in sorted(place):
            px = _IN_ADDRESS.get(fold(name)) or self._known.get(fold(name), "")
            if px in _LOCATION:
                self._put(fields, px, name, place[name], changes)

    def _arranged(self, fields: dict[str, Any], custom: dict[str, Value]) -> Split:
        """The fields as PX nests them: names split, places in ``location``."""
        if "firstName" in self._model.fields and (name := fields.pop("name", None)):
            first, _, last = name.strip().partition(" ")
            fields.setdefault("firstName", first)
            if last:
                fields.setdefault("lastName", last.strip())
        location = {name: fields.pop(name) for name in _LOCATION if name in fields}
        coordinates = {name: location.pop(name) for name in ("latitude", "longitude") if name in location}
        if coordinates:
            location["coordinates"] = coordinates
        new_only = {name: fields.pop(name) for name in sorted(self._model.new_only) if name in fields}
        ordered = {name: fields[name] for name in sorted(fields)}
        return Split(ordered | ({"location": location} if location else {}), new_only, custom)
