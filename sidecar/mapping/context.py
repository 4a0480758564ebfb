"""``globalContext`` of a custom event: an object that the app sends, or values from configured paths and constants.

PX takes texts, numbers and booleans in it and nothing nested (sidecar/mapping/README.md#fields); nested values are sent
as text. As in RudderStack, the event's own object is sent alone: ``globalContext.NAME`` applies only to events without
one. The caps of PX are those of attributes.
"""

from collections.abc import Callable, Iterable
from typing import Any

from sidecar.mapping.attributes import MAX_ATTRIBUTES, MAX_KEY, NO_NAME, report_no_object
from sidecar.mapping.model import Change
from sidecar.mapping.paths import Field
from sidecar.mapping.values import as_text, clean_text, json_text, within_64_bits

__all__ = ["GlobalContext"]

_PREFIX = "globalContext."


class GlobalContext:
    """The compiled rules. Calling it returns the object for one event, or None if it would be empty."""

    def __init__(self, whole: Field, members: list[Field]) -> None:
        """``whole`` reads the complete object, each of ``members`` one value of it."""
        self._whole = whole
        self._members = members

    @classmethod
    def compile(cls, names: Iterable[str], field: Callable[[str], Field]) -> "GlobalContext | None":
        """Compile the rules from the configured field ``names``; None if none of them concerns the global context."""
        members = [field(name) for name in sorted(names) if name.startswith(_PREFIX)]
        whole = field(_PREFIX.rstrip("."))
        return cls(whole, members) if whole.reads or members else None

    def __call__(self, event: dict[str, Any], changes: list[Change]) -> dict[str, Any] | None:
        """Return the global context of this event; append what the caps of PX change to ``changes``."""
        own = self._own_object(event, changes)
        if own is not None:
            pairs = [(clean_text(name), own[name]) for name in sorted(own)]
        else:
            pairs = [(field.name.removeprefix(_PREFIX), _first_value(field, event)) for field in self._members]
        sent: dict[str, Any] = {}
        taken: set[str] = set()  # the names as PX compares them, without case
        for name, given in pairs:
            final = name[:MAX_KEY]
            value = to_scalar(given)
            if type(given) is int and type(value) is not int:
                what = "left out: beyond 1,024 bits" if value is None else "sent as text: beyond 64 bits"
                changes.append(Change(f"globalContext.{final[:40]}", what))
            if value is None:
                continue
            if not name:
                changes.append(Change("globalContext", f"a value left out: it has {NO_NAME}"))
                continue
            if (folded := final.casefold()) in taken or len(sent) == MAX_ATTRIBUTES:
                why = "another has the same name in PX" if folded in taken else f"over {MAX_ATTRIBUTES} values"
                changes.append(Change(f"globalContext.{final[:40]}", f"left out: {why}"))
                continue
            if final != name:
                changes.append(Change(f"globalContext.{final[:40]}…", f"name cut: over {MAX_KEY:,} characters"))
            taken.add(folded)
            sent[final] = value
        return sent or None

    def _own_object(self, event: dict[str, Any], changes: list[Change]) -> dict[str, Any] | None:
        """Return the first complete object that is not empty; report values before it that are not objects.

        A property behind it is reported, too: it is not sent as an attribute.
        """
        own: dict[str, Any] | None = None
        for path, read in zip(self._whole.paths, self._whole.reads, strict=True):
            if own is not None and not path.startswith("properties."):
                continue
            value = read(event)
            if type(value) is not dict or not value:
                report_no_object("globalContext", path, value, changes)
            elif own is None:
                own = value
            elif value != own:
                changes.append(Change("globalContext", f"{path} left out: another path gives it"))
        return own


def _first_value(field: Field, event: dict[str, Any]) -> Any:
    """Return the first value that PX takes; the first of all if it takes none."""
    values = [read(event) for read in field.reads]
    return next((value for value in values if to_scalar(value) is not None), values[0] if values else None)


def to_scalar(value: Any) -> Any:
    """Convert a value to a text, number or boolean; None if nothing is left of it."""
    kind = type(value)
    if kind is str:
        return clean_text(value) or None
    if kind is bool or value is None:
        return value
    if kind is int:
        return value if within_64_bits(value) else as_text(value)
    if kind is float:
        return value if value - value == 0 else None  # neither NaN nor infinite
    return json_text(value)
