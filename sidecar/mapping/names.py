"""Event names: the preset table, the camel rule, and which PX event an event of the app becomes.

One event name is resolved in this order: ``mapping.events`` by exact name, its globs in the order of the file, the
preset, then ``unmapped``. A page or screen call is looked up by its type (``page``) and by its name in PX
(``Page Viewed``), so the configuration may use either; the same holds for ``[mapping.event."NAME"]``. Blanks around a name that an app sends are cut; a rule that has them in its name applies, too.
"""

import re
from collections.abc import Collection, Mapping
from fnmatch import translate
from itertools import chain
from typing import Any, Final, TypeVar

import msgspec

from sidecar.config import MappingConfig
from sidecar.mapping.model import Change
from sidecar.mapping.paths import Field
from sidecar.mapping.values import clean_text

__all__ = ["CALL_NAMES", "MAX_NAME", "PRESETS", "Entries", "MappedName", "NameRules", "camel", "store_bounded"]

# The B2B / SaaS preset of sidecar/mapping/README.md#names. Its row `page` is in CALL_NAMES: it names a call, not an event.
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

MAX_NAME: Final = 2_000  # characters; a limit of PX: sidecar/px/README.md#the-custom-event
# Bounds of the caches by name. Apps have hundreds of names, and short ones; a client that generates names must not
# fill the memory of the process.
_MAX_CACHED: Final = 4_096
_MAX_CACHED_LENGTH: Final = 200  # characters of one name

T = TypeVar("T")
_UNDERSCORE_LETTER = re.compile(r"_([^\W\d_])")


def camel(name: str) -> str:
    """Return ``feature_name`` as ``featureName``: ``_`` and a letter become the capital; leading ``_`` and all else stay."""
    bare = name.lstrip("_")
    if "_" not in bare:
        return name
    return name[: len(name) - len(bare)] + _UNDERSCORE_LETTER.sub(_capital, bare)


def _capital(match: re.Match[str]) -> str:
    letter = match[1]
    # A letter without case (Chinese, Arabic) keeps its underscore: dropping it would join two words without a trace.
    has_case = letter.upper() != letter.lower()
    return letter.upper() if has_case else match[0]


def store_bounded(cache: dict[str, T], name: str, value: T) -> None:
    """Store a value in a cache within bounds: a full cache is cleared, a very long name is not stored."""
    if len(name) <= _MAX_CACHED_LENGTH:
        if len(cache) >= _MAX_CACHED:
            cache.clear()
        cache[name] = value


class MappedName(msgspec.Struct, frozen=True):
    """The PX name for one name of the app, or the reason why the event is dropped.

    ``rule`` names the deciding rule in words; ``override`` is the key of ``[mapping.event]`` that applies.
    """

    px: str
    rule: str
    dropped: str | None = None
    override: str | None = None
    changes: tuple[Change, ...] = ()


class Entries:
    """The names and globs of ``mapping.events``, in the order of the file."""

    def __init__(self, entries: Collection[str]) -> None:
        self._exact = entries
        self._globs = [(glob, re.compile(translate(glob)).match) for glob in entries if re.search(r"[*?\[]", glob)]

    def deciding(self, names: Collection[str]) -> str | None:
        """Return the entry that decides for an event with these names: an exact name, else the first glob; None without one."""
        globs = (glob for glob, matches in self._globs if any(map(matches, names)))
        return next(chain((name for name in names if name in self._exact), globs), None)


class NameRules:
    """The compiled rules for event names."""

    def __init__(self, mapping: MappingConfig, path_field: Field) -> None:
        """Compile ``mapping``; ``path_field`` holds the paths of ``mapping.fields.eventName``, if any."""
        self._exact = mapping.events
        self._entries = Entries(mapping.events)
        self._preset_name = mapping.preset
        self._preset = PRESETS[mapping.preset]
        self._pass = mapping.unmapped == "pass"
        self._overrides = mapping.event
        self._field = path_field
        self._calls = {
            kind: self._compute((kind, px), px, in_preset=mapping.preset != "none") for kind, px in CALL_NAMES.items()
        }
        self._cache: dict[str, MappedName] = {}

    def resolve(self, event: dict[str, Any]) -> MappedName | None:
        """Return what the event's name becomes; None if it has no name (only a track call can lack one)."""
        kind = event.get("type")
        sent = self._field.text(event) if self._field.reads else None
        if sent is None:
            call = self._calls.get(kind) if type(kind) is str else None
            if call is not None:
                return call
            sent = event.get("event")
            if type(sent) is not str or not sent or sent.isspace():
                return None
        return self._cache.get(sent) or self._cached(sent)

    def _cached(self, sent: str) -> MappedName:
        raw = clean_text(sent)
        text = raw.strip()
        keys = (text,) if text == raw else (text, raw)
        name = self._compute(keys, self._preset.get(text, text), in_preset=text in self._preset)
        if text != raw:
            cut = Change("eventName", "blanks around the name cut")
            name = msgspec.structs.replace(name, changes=(*name.changes, cut))
        store_bounded(self._cache, sent, name)
        return name

    def _compute(self, keys: tuple[str, ...], default: str, *, in_preset: bool) -> MappedName:
        """Resolve ``keys``, the names by which the configuration may refer to one event; ``default`` is the PX name."""
        px, rule = self._configured(keys)
        if px is None:
            px, rule = default, f"preset {self._preset_name}" if in_preset else "the event's own name"
            if not in_preset and not self._pass:
                return MappedName("", 'unmapped = "drop"', dropped="unmapped")
        elif not px:
            return MappedName("", rule, dropped="mapped_to_nothing")
        override = next((key for key in keys if key in self._overrides), None)
        cut = (Change("eventName", f"cut: over {MAX_NAME:,} characters"),) if len(px) > MAX_NAME else ()
        return MappedName(px[:MAX_NAME], rule, override=override, changes=cut)

    def _configured(self, keys: Collection[str]) -> tuple[str | None, str]:
        """Return the PX name from ``mapping.events`` and the entry that gave it; (None, "") if no entry applies."""
        entry = self._entries.deciding(keys)
        return (None, "") if entry is None else (clean_text(self._exact[entry]), f'mapping.events "{entry}"')
