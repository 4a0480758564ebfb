"""``globalContext`` of a custom event: an object the app sends, or else values from paths and constants.

PX takes texts, numbers and booleans in it, nothing nested (facts: ``px_and_sdks.md`` 1.2); what is nested is sent as
text. As in RudderStack, the event's own object stands alone: ``globalContext.NAME`` is for events without one.
"""

from collections.abc import Callable, Iterable
from typing import Any

from sidecar.mapping.paths import Field
from sidecar.mapping.values import as_text, clean_text, json_text

__all__ = ["GlobalContext"]

_PREFIX = "globalContext."


class GlobalContext:
    """The compiled rules; calling it gives the object for one event, None for an empty one."""

    def __init__(self, whole: Field, single: list[Field]) -> None:
        self.whole = whole
        self.single = single

    @classmethod
    def compile(cls, names: Iterable[str], field: Callable[[str], Field]) -> "GlobalContext | None":
        """The rules for the configured field ``names``; None if none of them is about the global context."""
        single = [field(name) for name in sorted(names) if name.startswith(_PREFIX)]
        whole = field(_PREFIX.rstrip("."))
        return cls(whole, single) if whole.reads or single else None

    def __call__(self, event: dict[str, Any]) -> dict[str, Any] | None:
        """The object that PX gets for this event."""
        own = self.whole.object(event)
        if own is not None:
            pairs = [(clean_text(name), scalar(own[name])) for name in sorted(own)]
        else:
            pairs = [(field.name.removeprefix(_PREFIX), _first(field, event)) for field in self.single]
        return {name: value for name, value in pairs if name and value is not None} or None


def _first(field: Field, event: dict[str, Any]) -> Any:
    return next((value for read in field.reads if (value := scalar(read(event))) is not None), None)


def scalar(value: Any) -> Any:
    """The value as a text, number or boolean; None if it has no value."""
    kind = type(value)
    if kind is str:
        return clean_text(value) or None
    if kind is bool or value is None:
        return value
    if kind is int and -(2**63) <= value < 2**63:
        return value
    if kind is float:
        return value if value - value == 0 else None
    return as_text(value) or json_text(value)
