"""Map traits to the fields of PX users and accounts: the two tables, and the conversion of each value.

Rules
-----
* A trait is recognized by PX's own name or any spelling that differs only by case, underscores, hyphens and blanks:
  ``firstName``, ``first_name``, ``FirstName``, ``first-name``. If two spellings occur, PX's own wins, then camel, snake, the rest by name
  (``spelling_rank``); the loser is reported.
* Nothing is left out or rounded without a report, except null.
* A trait that the table does not list becomes a custom attribute. Fields that PX maintains (``lastSeenDate``) are not
  sent.
* PX cannot handle empty or null dates (sidecar/px/README.md#users-and-accounts): a value that does not fit its field is
  left out and reported, and so is a date that stands for "none" (Go's year 1, epoch 0, 9999-12-31).
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import msgspec

from sidecar.mapping.attributes import AttributeMapper, Value, report_broken
from sidecar.mapping.dates import is_absurd_people_ms, to_epoch_ms
from sidecar.mapping.model import Change
from sidecar.mapping.names import store_bounded
from sidecar.mapping.privacy import PrivacyRules, fold, forms
from sidecar.mapping.values import as_text, within_64_bits

__all__ = ["ACCOUNT", "USER", "RecordSchema", "SplitTraits", "TraitSplitter", "spelling_rank"]

# --- Conversions: each returns the value for PX, or None if it does not fit -----------------------------------------


def _to_integer(value: Any) -> int | None:
    if type(value) is str:
        bare = value.strip()
        is_integer = bare.isascii() and bare.removeprefix("-").isdigit() and len(bare) < 20
        if is_integer:
            return _to_integer(int(bare))
        return _to_integer(_to_number(bare)) if "." in bare else None
    if type(value) is int:
        return value if within_64_bits(value) else None
    # Beyond 2**53 a double no longer holds every integer: the number would not be the one that was meant.
    return round(value) if type(value) is float and abs(value) < 2**53 else None


def _is_fraction(value: Any) -> bool:
    return type(value) is float and not value.is_integer()


def _to_number(value: Any) -> float | None:
    if type(value) is str:
        try:
            value = float(value) if "_" not in value else None  # Python reads 1_0 as ten
        except ValueError:
            return None
    usable = type(value) in (int, float) and abs(value) < 2**53  # False for NaN as well
    return value if usable else None


def _to_boolean(value: Any) -> bool | None:
    return value if type(value) is bool else {"true": True, "false": False}.get(str(value).lower())


def _to_gender(value: Any) -> str | None:
    """Convert the words that RudderStack converts (sidecar/mapping/README.md#peers), and a few more.

    Not by the first letter: `mujer` is not MALE.
    """
    return _GENDERS.get(value.strip().upper()) if type(value) is str else None


def _to_text(value: Any) -> str | None:
    return as_text(value) if type(value) is not bool else str(value).lower()


_GENDERS: Final = {
    **dict.fromkeys(("F", "FEMALE", "WOMAN"), "FEMALE"),
    **dict.fromkeys(("M", "MALE", "MAN"), "MALE"),
    **dict.fromkeys(("O", "OTHER", "OTHERS"), "OTHER"),
    "EMPTY_GENDER": "EMPTY_GENDER",
}

Convert = Callable[[Any], Any]


# --- The fields of PX records: sidecar/px/README.md#users-and-accounts ----------------------------------------------


class RecordSchema(msgspec.Struct, frozen=True):
    """The fields of one kind of PX record with their conversions, and alternative names for fields.

    ``plans`` are the dates that may be far ahead; ``read_only`` are never sent. ``own_dates`` are dates that PX has no
    field for: they are sent as the app wrote them, unless they stand for none or are unreadable.
    """

    fields: Mapping[str, Convert]
    aliases: Mapping[str, str]
    plans: frozenset[str]
    read_only: frozenset[str]
    own_dates: frozenset[str] = frozenset()


USER: Final = RecordSchema(
    fields={
        **dict.fromkeys(("email", "firstName", "lastName", "title", "phone", "role", "subscriptionId"), _to_text),
        **dict.fromkeys(("accountId", "sfdcContactId", "name"), _to_text),  # `name` is split into first and last
        "gender": _to_gender,
        "score": _to_integer,
        "globalUnsubscribe": _to_boolean,
        "signUpDate": to_epoch_ms,
        "firstVisitDate": to_epoch_ms,
    },
    aliases={"createdAt": "signUpDate"},
    plans=frozenset(),
    read_only=frozenset(
        {"aptrinsicId", "lastSeenDate", "numberOfVisits", "createDate", "lastModifiedDate", "globalId"}
    ),
)
ACCOUNT: Final = RecordSchema(
    fields={
        **dict.fromkeys(("name", "trackedSubscriptionId", "sfdcId", "dunsNumber", "industry", "sicCode"), _to_text),
        **dict.fromkeys(("website", "naicsCode", "plan", "parentGroupId", "gsId", "csm"), _to_text),
        "numberOfEmployees": _to_integer,
        "healthScore": _to_number,
        "nps": _to_number,
        "lastSeenDate": to_epoch_ms,
        "renewalDate": to_epoch_ms,
    },
    aliases={"employees": "numberOfEmployees", "employeeCount": "numberOfEmployees"},
    plans=frozenset({"renewalDate"}),
    read_only=frozenset({"numberOfUsers", "createDate", "lastModifiedDate"}),
    own_dates=frozenset({"createdat"}),
)

_LOCATION: Final[Mapping[str, Convert]] = {
    **dict.fromkeys(("countryName", "countryCode", "stateName", "stateCode", "city", "street"), _to_text),
    **dict.fromkeys(("postalCode", "continent", "regionName", "timeZone"), _to_text),
    "latitude": _to_number,
    "longitude": _to_number,
}
_ID_NAMES: Final = frozenset({"id", "userid", "groupid", "identifyid", "accountid"})
_ADDRESSES: Final = frozenset({"address", "location"})
# Names with this meaning only inside an address or a location; a trait `state` on the first level may be any state.
_ADDRESS_ALIASES: Final = {"country": "countryName", "state": "stateName", "region": "regionName", "zip": "postalCode"}


_PX_NAMES: Final = frozenset({*USER.fields, *ACCOUNT.fields, *_LOCATION})
_CAMEL: Final = re.compile(r"[^\W_A-Z][^\W_]*")
_SNAKE: Final = re.compile(r"[^\WA-Z]+")


def spelling_rank(name: str) -> int:
    """Return the order of spellings of one trait, the lowest wins: PX's own, camel, snake, all others."""
    if name in _PX_NAMES:
        return 0
    if _CAMEL.fullmatch(name):
        return 1
    return 2 if _SNAKE.fullmatch(name) else 3


# --- Splitting ------------------------------------------------------------------------------------------------------


class SplitTraits(msgspec.Struct, frozen=True):
    """Traits, split into PX fields and custom attributes."""

    fields: dict[str, Any]
    custom: dict[str, Value]


class TraitSplitter:
    """The compiled table of one record schema; calling it splits one object of traits."""

    def __init__(self, schema: RecordSchema, attributes: AttributeMapper, privacy: PrivacyRules, prefix: str) -> None:
        """Compile; ``attributes`` are the rules for traits, ``prefix`` names the record in reported changes."""
        self._schema = schema
        self._attributes = attributes
        self._privacy = privacy
        self._prefix = prefix
        self._convert = {**schema.fields, **_LOCATION}
        self._px_names = {fold(name): name for name in self._convert} | {
            fold(name): px for name, px in schema.aliases.items()
        }
        self._names: dict[str, tuple[bool, int, str, str, str]] = {}
        self._read_only = {fold(name) for name in schema.read_only}

    def __call__(
        self, traits: dict[str, Any], own_id: str, received_ms: int, changes: list[Change], own_type: str = ""
    ) -> SplitTraits:
        """Split ``traits``; ``own_id`` and ``own_type`` are the record's id and type, which traits often repeat."""
        addresses = self._addresses(traits)
        plain = {name: value for name, value in traits.items() if name not in addresses}
        fields: dict[str, Any] = {}
        custom: dict[str, Value] = {}
        # The rules for traits run first, so that a denied or renamed trait is not recognized by its old name.
        taken: dict[str, str] = {}
        mapped = self._attributes(plain, changes, taken)
        names = self._names
        known = [names.get(name) or self._known(name) for name in mapped]
        if len(known) > 1:
            known.sort()
        for *_, name, folded, px in known:
            value: Any = mapped[name]
            if px:
                own = taken.get(name.casefold(), name)
                if type(plain.get(own)) in (dict, list) and not self._attributes.plan_for(own).hashed:
                    value = {}  # its JSON text is not what a field holds: reported as a value that does not fit
                self._set_field(fields, px, name, value, received_ms, changes)
            elif folded in self._read_only:
                changes.append(Change(f"{self._prefix}.{name}", "left out: PX maintains this field itself"))
            elif folded in self._schema.own_dates and (why := self._no_date(name, value, taken, received_ms)):
                changes.append(Change(f"{self._prefix}.{name}", f"left out: {name!r} {why}"))
            elif not (folded in _ID_NAMES and as_text(value) == own_id) and not (
                folded == "type" and own_type and value == own_type
            ):
                custom[name] = value
        for address in addresses.values():
            self._add_location(fields, address, received_ms, changes)
        return self._arrange(fields, {name: custom[name] for name in sorted(custom)}, changes)

    def _known(self, name: str) -> tuple[bool, int, str, str, str]:
        """Return the order in which the name is considered, of two for one field the first stays; folded, and PX's field."""
        folded = forms(name)[-1]
        px = self._px_names.get(folded, "")
        known = (px != name, spelling_rank(name), name, folded, px)
        store_bounded(self._names, name, known)
        return known

    def _no_date(self, name: str, value: Any, taken: dict[str, str], received_ms: int) -> str | None:
        """Return why a value is not a date that can be meant; None if it is one, or the hash of one."""
        if self._attributes.plan_for(taken.get(name.casefold(), name)).hashed:
            return None
        date_ms = to_epoch_ms(value)
        if date_ms is None:
            return "cannot be read as a time"
        is_absurd = is_absurd_people_ms(date_ms, received_ms, may_be_ahead=False)
        return "is before 2000 or too far in the future" if is_absurd else None

    def _addresses(self, traits: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """Return the objects that hold an address, by the app's name, in the order in which their values count.

        As any trait they are recognized in every spelling, and by the name that a rule gives them.
        """
        found = []
        for name, value in traits.items():
            plan = self._attributes.plan_for(name) if type(value) is dict else None
            if plan is None or plan.final is None or plan.hashed:
                continue
            if (folded := forms(plan.final)[-1]) in _ADDRESSES:
                found.append((folded, plan.final != folded, spelling_rank(plan.final), name))
        return {name: self._privacy.prune(traits[name], name) for *_, name in sorted(found)}

    def twins(self, outer: Iterable[str], own: Iterable[str]) -> dict[str, str]:
        """Return which traits of ``outer`` have the field or name in PX of one of ``own``, sorted; the same name comes first."""
        by_name = {self._name_in_px(name): name for name in own}
        found = {name: by_name.get(self._name_in_px(name)) for name in sorted(outer)}
        own = frozenset(own)
        return {name: name if name in own else twin for name, twin in found.items() if twin is not None}

    def _name_in_px(self, name: str) -> str:
        """Return PX's field for a trait, else the folded name of its custom attribute; one that is not sent keeps its name."""
        plan = self._attributes.plan_for(name)
        return name if plan.final is None else self._px_names.get(forms(plan.final)[-1], plan.folded)

    def sends(self, name: str) -> bool:
        """Return False if the rules drop the trait, or keep others only."""
        return self._attributes.plan_for(name).final is not None

    def object_trait(self, traits: dict[str, Any], name: str) -> dict[str, Any] | None:
        """Return the trait ``name`` without denied names; None if it is not an object, or the rules drop or hash it."""
        value = traits.get(name)
        if type(value) is not dict:
            return None
        plan = self._attributes.plan_for(name)
        if plan.final is None or plan.hashed:
            return None
        pruned: dict[str, Any] = self._privacy.prune(value, name)
        return pruned

    def _set_field(
        self, fields: dict[str, Any], px: str, name: str, value: Any, received_ms: int, changes: list[Change]
    ) -> None:
        """Convert and set one PX field; the first value stays. Whatever is lost is reported."""
        field = f"{self._prefix}.{px}"
        converted = self._convert[px](value)
        if converted is None:
            if value is not None:
                changes.append(Change(field, f"left out: {name!r} has no value that PX accepts here"))
            return
        if self._convert[px] is to_epoch_ms and is_absurd_people_ms(
            converted, received_ms, may_be_ahead=px in self._schema.plans
        ):
            changes.append(Change(field, f"left out: {name!r} is before 2000 or too far in the future"))
            return
        if px in fields:
            if fields[px] != converted:
                changes.append(Change(field, f"{name!r} left out: another trait gives this field"))
            return
        fields[px] = converted
        if self._convert[px] is _to_integer and _is_fraction(value if type(value) is not str else _to_number(value)):
            changes.append(Change(field, f"{name!r} rounded: PX takes whole numbers here"))

    def _add_location(
        self, fields: dict[str, Any], address: dict[str, Any], received_ms: int, changes: list[Change]
    ) -> None:
        for name in sorted(address, key=lambda name: (spelling_rank(name), name)):
            folded = forms(name)[-1]
            px = _ADDRESS_ALIASES.get(folded) or self._px_names.get(folded, "")
            if px in _LOCATION:
                report_broken(f"{self._prefix}.{px}", address[name], changes)
                self._set_field(fields, px, name, address[name], received_ms, changes)
            elif folded == "coordinates" and type(address[name]) is dict:  # as PX itself nests them
                self._add_location(fields, address[name], received_ms, changes)
            elif address[name] is not None:
                changes.append(Change(f"{self._prefix}.location", f"{name!r} left out: PX has no such field"))

    def _arrange(self, fields: dict[str, Any], custom: dict[str, Value], changes: list[Change]) -> SplitTraits:
        """Arrange fields as PX nests them: a full name split, ``location`` and its ``coordinates`` as objects."""
        if "firstName" in self._schema.fields and (name := fields.pop("name", None)):
            first, _, last = name.strip().partition(" ")
            given = (fields.setdefault("firstName", first), fields.get("lastName"))
            if last:
                given = (given[0], fields.setdefault("lastName", last.strip()))
            if given != (first, last.strip() or given[1]):
                changes.append(Change(f"{self._prefix}.name", "left out: firstName or lastName is given and differs"))
        location = {name: fields.pop(name) for name in _LOCATION if name in fields}
        coordinates = {name: location.pop(name) for name in ("latitude", "longitude") if name in location}
        if coordinates:
            location["coordinates"] = coordinates
        ordered = {name: fields[name] for name in sorted(fields)}
        return SplitTraits(ordered | ({"location": location} if location else {}), custom)
