"""Names: the preset table, the camel rule, and which PX event an app's event becomes.

The order for one event name: ``mapping.events`` exactly, its globs in the order of the file, the preset, and else
``unmapped``. A page or screen call is looked up by its type (``page``) and by the name it has in PX (``Page Viewed``),
so that either can be written in the configuration; the same holds for ``[mapping.event."NAME"]``.
"""

import re
from collections.abc import Iterable, Mapping
from fnmatch import translate
from typing import Any, Final, TypeVar

import msgspec

from sidecar.config import Mapping as MappingConfig
from sidecar.mapping.model import Change
from sidecar.mapping.paths import Field
from sidecar.mapping.values import clean_text

__all__ = ["CALL_NAMES", "MAX_NAME", "PRESETS", "Name", "Names", "camel", "remember"]

# facts: seed_gainsight_px.txt "B2B / SaaS preset"; its row "page" is in CALL_NAMES, since it names a call, not an event.
PRESETS: Final[Mapping[str, Mapping[str, str]]] = {
    "b2b-saas": {
        "Signed Up": "Signed Up",
        "Logged In": "Logged In",
        "Feature Used": "Feature Used",
        "Products Searched": "Searched",
        "Plan Viewed": "Plan Viewed",
        "Trial Started": "Trial Started",
        "Subscription Started": "Subscription Started",
        "Subscription Cancelled": "Subscription Cancelled",
    },
    "none": {},
}
CALL_NAMES: Final[Mapping[str, str]] = {"page": "Page Viewed", "screen": "Screen Viewed"}

MAX_NAME: Final = 2_000  # facts: px_and_sdks.md 1.2
# Apps have hundreds of names, none very long. A client that invents names must not fill memory.
_MAX_REMEMBERED: Final = 4_096
_MAX_REMEMBERED_LENGTH: Final = 200

T = TypeVar("T")
_UNDERSCORE_LETTER = re.compile(r"_([^\W\d_])")


def camel(name: str) -> str:
    """``feature_name`` as ``featureName``: ``_`` and a letter become the capital; leading ``_`` and all else stay."""
    bare = name.lstrip("_")
    if "_" not in bare:
        return name
    return name[: len(name) - len(bare)] + _UNDERSCORE_LETTER.sub(_capital, bare)


def _capital(match: re.Match[str]) -> str:
    letter = match[1]
    has_case = letter.upper() != letter.lower()
    return letter.upper() if has_case else match[0]


def remember(table: dict[str, T], name: str, outcome: T) -> None:
    """Keep what a name becomes, within bounds: a full table is begun anew, a very long name is worked out each time."""
    if len(name) <= _MAX_REMEMBERED_LENGTH:
        if len(table) >= _MAX_REMEMBERED:
            table.clear()
        table[name] = outcome


class Name(msgspec.Struct, frozen=True):
    """What one name of the app becomes: the PX name, or the reason why nothing is sent.

    ``rule`` says in words what decided; ``override`` is the key of ``[mapping.event]`` that holds for it.
    """

    px: str
    rule: str
    dropped: str | None = None
    override: str | None = None
    changes: tuple[Change, ...] = ()


class Names:
    """The compiled name rules; ``of`` is what they are for."""

    def __init__(self, mapping: MappingConfig, path_field: Field) -> None:
        self._exact = mapping.events
        self._globs = [
            (glob, re.compile(translate(glob)).match) for glob in mapping.events if re.search(r"[*?\[]", glob)
        ]
        self._preset_name = mapping.preset
        self._preset = PRESETS[mapping.preset]
        self._pass = mapping.unmapped == "pass"
        self._overrides = mapping.event
        self._field = path_field
        self._calls = {
            kind: self._resolve((kind, px), px, in_preset=mapping.preset != "none") for kind, px in CALL_NAMES.items()
        }
        self._events: dict[str, Name] = {}

    def of(self, event: dict[str, Any]) -> Name | None:
        """What the event's name becomes; None if it has none (only a track call can lack one)."""
        kind = event.get("type")
        sent = self._field.text(event)
        if sent is None:
            call = self._calls.get(kind) if type(kind) is str else None
            if call is not None:
                return call
            sent = event.get("event")
            if type(sent) is not str or not sent:
                return None
        return self._events.get(sent) or self._remember(sent)

    def _remember(self, sent: str) -> Name:
        text = clean_text(sent)
        name = self._resolve((text,), self._preset.get(text, text), in_preset=text in self._preset)
        remember(self._events, sent, name)
        return name

    def _resolve(self, keys: tuple[str, ...], otherwise: str, *, in_preset: bool) -> Name:
        px, rule = self._rename(keys)
        if px is None:
            px, rule = otherwise, f"preset {self._preset_name}" if in_preset else "the event's own name"
            if not in_preset and not self._pass:
                return Name("", 'unmapped = "drop"', dropped="unmapped")
        elif not px:
            return Name("", rule, dropped="mapped_to_nothing")
        override = next((key for key in keys if key in self._overrides), None)
        cut = (Change("eventName", f"cut: over {MAX_NAME:,} characters"),) if len(px) > MAX_NAME else ()
        return Name(px[:MAX_NAME], rule, override=override, changes=cut)

    def _rename(self, keys: Iterable[str]) -> tuple[str | None, str]:
        """The name that ``mapping.events`` gives the first of the keys it knows, and the entry; None for none."""
        for key in keys:
            if key in self._exact:
                return clean_text(self._exact[key]), f'mapping.events "{key}"'
        for glob, matches in self._globs:
            if any(matches(key) for key in keys):
                return clean_text(self._exact[glob]), f'mapping.events "{glob}"'
        return None, ""
