"""Rules that do nothing: what in ``[mapping]`` matched none of the events of its kind, or can never match.

A rule that is misspelled fails silently: ``drop = ["e-mail"]`` sends every email. So the newest events are compared with
each rule. ``IdleRules`` is fed with events and then names the rules that matched none of them; it decides nothing, and no
sentence contains a value of an event.
"""

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from fnmatch import translate
from typing import Any, Final

from sidecar.config import AttributeRules, MappingConfig
from sidecar.mapping.filters import DropFilter
from sidecar.mapping.mapper import call_values
from sidecar.mapping.names import CALL_NAMES
from sidecar.mapping.paths import Read, compile_path
from sidecar.mapping.privacy import fold, forms, json_in
from sidecar.mapping.urls import parameter_names, rewrite_form, rewrite_parameters

__all__ = ["EVENTS_OF_A_KIND", "MIN_EVENTS", "IdleRules"]

EVENTS_OF_A_KIND: Final = 1_000
# With fewer events of a kind nothing is said about its rules.
MIN_EVENTS: Final = 20
_SPELLINGS_MAX: Final = 10_000


class IdleRules:
    """Compares events with the rules of one configuration; ``sentences`` is the result so far."""

    def __init__(self, config: MappingConfig) -> None:
        self._config = config
        self._seen: Counter[str] = Counter()  # events by kind: custom, people
        self._properties: set[str] = set()  # names of properties, as sent
        self._traits: set[str] = set()
        self._anywhere: set[str] = set()  # folded names and paths at any depth, for drop and hash
        self._names: set[str] = set()  # names by which rules may mean an event
        self._parameters: set[str] = set()
        self._categories: set[str] = set()
        self._paths: dict[str, Read] = {
            path: compile_path(path)
            for paths in config.fields.values()
            for path in ([paths] if isinstance(paths, str) else paths)
            if not path.startswith("=")
        }
        self._filters = [DropFilter.compile(number, rule, config) for number, rule in enumerate(config.drop, 1)]
        self._found_paths: set[str] = set()
        self._found_filters: set[str] = set()

    def add(self, event: dict[str, Any]) -> None:
        """Compare one event; beyond ``EVENTS_OF_A_KIND`` of its kind it is ignored."""
        kind = event.get("type")
        group = "people" if kind in ("identify", "group") else "custom"
        if kind == "alias" or self._seen[group] >= EVENTS_OF_A_KIND:
            return
        self._seen[group] += 1
        if group == "custom":
            self._names.update(_names_of(event))
            self._properties.update(_keys(event.get("properties")), call_values(event))
        else:
            self._traits.update(_keys(event.get("traits")), _keys(_object(event.get("context")).get("traits")))
        for key, value in event.items():
            # Names and paths of rules begin inside of these objects.
            self._walk(value, "" if key in ("properties", "traits", "context") else fold(key))
        self._categories.update(_keys(_object(_object(event.get("context")).get("consent")).get("categoryPreferences")))
        self._found_paths.update(path for path, read in self._paths.items() if read(event) is not None)
        self._found_filters.update(rule.label for rule in self._filters if rule.matches(event))

    def _walk(self, value: Any, path: str) -> None:
        if len(self._anywhere) >= _SPELLINGS_MAX:
            return
        if path:
            self._anywhere.update(forms(path))
        if isinstance(value, dict):
            for key, inner in value.items():
                # As `PrivacyRules` matches: also a part of a name that the app itself dotted.
                for name in (key, *key.split(".")) if "." in key else (key,):
                    self._anywhere.update(forms(name))
                below = "" if key == "traits" and not path else fold(key)
                self._walk(inner, f"{path}.{below}" if path and below else below or path)
        elif isinstance(value, list):
            for item in value:
                self._walk(item, path)
        elif isinstance(value, str) and not self._walk_json(value) and "=" in value:
            rewrite_parameters(value, self._note_parameter)
            rewrite_form(value, self._note_parameter)

    def _walk_json(self, text: str) -> bool:
        """Walk the value of a text that is JSON, in which names and paths begin again; False if it is another text."""
        if (value := json_in(text)) is None:
            return False
        with suppress(RecursionError):  # nested too deep: the mapping sends nothing of it
            self._walk(value, "")
        return True

    def _note_parameter(self, name: str, value: str) -> str:
        names = [form for part in parameter_names(name) for form in forms(part)]
        self._parameters.update(names)
        self._anywhere.update(names)
        self._walk_json(value)
        return value

    # Result -----------------------------------------------------------------------------------------------------

    def sentences(self) -> list[str]:
        """Return one sentence for each rule that did nothing."""
        return [*self._never(), *self._idle()]

    def _never(self) -> Iterator[str]:
        """Yield the rules that can never match, whatever the apps send."""
        config = self._config
        tables = [("mapping.attributes", config.attributes), ("mapping.traits", config.traits)]
        tables += [
            (f'mapping.event."{name}".attributes', rules.attributes)
            for name, rules in config.event.items()
            if rules.attributes
        ]
        for table, rules in tables:
            dropped = {fold(name) for name in rules.drop}
            for key, names in (("keep", rules.keep), ("hash", rules.hash), ("rename", list(rules.rename))):
                for name in names:
                    if fold(name) in dropped:
                        yield f"{table}.{key} names {name!r}, which `drop` removes first; it never does anything."
                    elif key == "rename" and rules.keep and name not in rules.keep:
                        yield f"{table}.rename names {name!r}, which is not in `keep`; it never does anything."
        for name in config.event:
            if config.events.get(name) == "":
                yield f'mapping.event."{name}" never does anything: mapping.events maps that name to nothing.'

    def _idle(self) -> Iterator[str]:
        config, custom, people = self._config, self._seen["custom"], self._seen["people"]
        everything = custom + people
        if everything >= MIN_EVENTS:
            for table, rules in (("mapping.attributes", config.attributes), ("mapping.traits", config.traits)):
                for key, names in (("drop", rules.drop), ("hash", rules.hash)):
                    missing = (name for name in names if fold(name) not in self._anywhere)
                    yield from (_idle(f"{table}.{key}", name, everything) for name in missing)
            for path in self._paths:
                if path not in self._found_paths:
                    yield _idle("mapping.fields", path, everything, self._alike(path.rpartition(".")[2]))
            for rule in self._filters:
                if rule.label not in self._found_filters:
                    yield f"{rule.label} matched none of the last {everything:,} events."
            for category in config.consent:
                if category not in self._categories:
                    yield _idle("mapping.consent", category, everything)
            if isinstance(config.url_query, list):
                missing = (name for name in config.url_query if fold(name) not in self._parameters)
                yield from (_idle("mapping.url_query", name, everything) for name in missing)
        if custom >= MIN_EVENTS:
            yield from self._idle_names(custom)
            yield from self._idle_spellings("mapping.attributes", config.attributes, self._properties, custom)
        if people >= MIN_EVENTS:
            yield from self._idle_spellings("mapping.traits", config.traits, self._traits, people)

    def _idle_names(self, events: int) -> Iterator[str]:
        for name in self._config.events:
            matches = re.compile(translate(name)).match
            if name not in self._names and not any(map(matches, self._names)):
                yield _idle("mapping.events", name, events)
        for name in self._config.event:
            if name not in self._names:
                yield _idle("mapping.event", name, events)

    def _idle_spellings(self, table: str, rules: AttributeRules, sent: set[str], events: int) -> Iterator[str]:
        """Yield names of ``keep`` and ``rename``, which are compared with what the apps send, letter for letter."""
        for key, names in (("keep", rules.keep), ("rename", list(rules.rename))):
            for name in names:
                if name not in sent and name.partition(".")[0] not in sent:
                    yield _idle(f"{table}.{key}", name, events, self._alike(name))

    def _alike(self, name: str) -> str:
        """Return a name that the apps send instead of this one: the same but for case and punctuation; or an empty text."""
        alike = sorted(sent for sent in self._properties | self._traits if fold(sent) == fold(name) and sent != name)
        return alike[0] if alike else ""


def _idle(rule: str, name: str, events: int, alike: str = "") -> str:
    hint = f" The apps send {alike!r}: rules see names before camel case." if alike else ""
    return f"{rule} {name!r} matched none of the last {events:,} events of its kind.{hint}"


def _names_of(event: dict[str, Any]) -> tuple[str, ...]:
    kind, sent = event.get("type"), event.get("event")
    if isinstance(kind, str) and kind in CALL_NAMES:
        return kind, CALL_NAMES[kind]
    return (sent.strip(), sent) if isinstance(sent, str) else ()


def _keys(value: Any) -> list[str]:
    return list(value) if isinstance(value, dict) else []


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
