"""Which events are not sent at all: ``[[mapping.drop]]``, ``mapping.consent`` and ``sample``.

All three are functions of the event alone, so the same event is dropped on every host and after every restart.
"""

import re
from collections.abc import Callable
from fnmatch import translate
from hashlib import blake2b
from typing import Any, Final

import msgspec

from sidecar.config import DropRule, MappingConfig
from sidecar.mapping.names import CALL_NAMES
from sidecar.mapping.paths import Read, compile_path
from sidecar.mapping.values import as_text

__all__ = ["DropFilter", "Filters", "is_sampled"]

_HASH_RANGE: Final = 2**64
_read_preferences = compile_path("context.consent.categoryPreferences")

Match = Callable[[str], Any]


class DropFilter(msgspec.Struct, frozen=True):
    """One compiled entry of ``[[mapping.drop]]``; ``label`` names it without the values it looks for."""

    label: str
    matches_name: Match
    where: tuple[tuple[Read, Match], ...]
    name_paths: tuple[Read, ...]

    @classmethod
    def compile(cls, number: int, rule: DropRule, mapping: MappingConfig) -> "DropFilter":
        """Compile an entry; ``number`` is its position in the file, from 1."""
        label = f'mapping.drop, entry {number} (event "{rule.event}"'
        label += f", where {', '.join(rule.where)})" if rule.where else ")"
        where = tuple((compile_path(path), _glob(glob)) for path, glob in rule.where.items())
        paths = mapping.fields.get("eventName", [])
        reads = tuple(map(compile_path, [paths] if isinstance(paths, str) else paths))
        return cls(label, _glob(rule.event), where, reads)

    def matches(self, event: dict[str, Any]) -> bool:
        """Return True if the name and all values match; an event without one of the values does not."""
        return any(map(self.matches_name, self._names(event))) and all(
            _any_matches(read(event), matches) for read, matches in self.where
        )

    def _names(self, event: dict[str, Any]) -> tuple[str, ...]:
        """Return the names by which a glob may mean the event: as in ``mapping.events``, else its type."""
        own = _names(event)
        if not self.name_paths or event.get("type") in ("identify", "group", "alias"):
            return own
        configured = next((text for read in self.name_paths if (text := as_text(read(event))) is not None), None)
        return own if configured is None else (configured.strip(), *own)


class Filters(msgspec.Struct, frozen=True):
    """All filters. False if there are none."""

    drop: tuple[DropFilter, ...]
    consent: tuple[str, ...]

    @classmethod
    def compile(cls, mapping: MappingConfig) -> "Filters":
        """Compile ``[[mapping.drop]]`` and ``mapping.consent``."""
        drop = tuple(DropFilter.compile(number, rule, mapping) for number, rule in enumerate(mapping.drop, 1))
        return cls(drop, tuple(mapping.consent))

    def __bool__(self) -> bool:
        return bool(self.drop or self.consent)

    def reason(self, event: dict[str, Any]) -> tuple[str, str] | None:
        """Return the reason for dropping the event and the rule that says so; None to send it."""
        if self.consent and (category := self._refused_category(event)) is not None:
            return "no_consent", f"mapping.consent: the user refuses {category!r}"
        for rule in self.drop:
            if rule.matches(event):
                return "filtered", rule.label
        return None

    def _refused_category(self, event: dict[str, Any]) -> str | None:
        preferences = _read_preferences(event)
        if type(preferences) is not dict:
            return None
        return next((name for name in self.consent if preferences.get(name) is False), None)


def is_sampled(user: str, share: float) -> bool:
    """Return True if the events of this user are sent when ``share`` of all users is.

    The same users are chosen for each name and on each host, so that what one user does stays complete.
    """
    return int.from_bytes(blake2b(user.encode("utf-8", "surrogatepass"), digest_size=8).digest()) < share * _HASH_RANGE


def _names(event: dict[str, Any]) -> tuple[str, ...]:
    """Return the names that the call itself gives."""
    kind = event.get("type")
    if kind == "track":
        sent = event.get("event")
        return (sent.strip(),) if type(sent) is str else ()
    if type(kind) is not str:
        return ()
    return (kind, CALL_NAMES[kind]) if kind in CALL_NAMES else (kind,)


def _any_matches(value: Any, matches: Match) -> bool:
    if type(value) is list:
        return any(_any_matches(item, matches) for item in value)
    text = str(value).lower() if type(value) is bool else value if type(value) is str else as_text(value)
    return text is not None and bool(matches(text))


def _glob(glob: str) -> Match:
    return re.compile(translate(glob)).match
