"""Rules that do nothing: what in ``[mapping]`` matched none of the events of its kind, or can never match.

A rule that is misspelled fails silently: ``drop = ["e-mail"]`` sends every email. So the newest events are compared with
each rule. ``IdleRules`` is fed with events and then names the rules that matched none of them; it decides nothing, and no
sentence contains a value of an event.
"""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final

from sidecar.config import AttributeRules, MappingConfig
from sidecar.mapping.filters import DropFilter
from sidecar.mapping.mapper import USER_TYPES, call_values
from sidecar.mapping.names import CALL_NAMES, Entries
from sidecar.mapping.paths import compile_path
from sidecar.mapping.people import ACCOUNT_TRAITS
from sidecar.mapping.privacy import CONTAINER_CALL_KEYS, PLAIN_CALL_KEYS, fold, forms, json_in
from sidecar.mapping.rules import merge_rules
from sidecar.mapping.urls import parameter_names, rewrite_form, rewrite_parameters
from sidecar.mapping.values import as_text
from sidecar.units import counted

__all__ = ["EVENTS_OF_A_KIND", "MIN_EVENTS", "IdleRules"]

EVENTS_OF_A_KIND: Final = 1_000
# With fewer events of a kind nothing is said about its rules.
MIN_EVENTS: Final = 20
_SPELLINGS_MAX: Final = 10_000


class _SeenNames:
    """The names in events of one kind: of properties and traits as sent, and folded at any depth, as drop and hash match."""

    def __init__(self, *, flatten: bool = False) -> None:
        self.events = 0
        self.sent: set[str] = set()
        self.above: set[str] = set()  # of dotted names that are sent flat: what they are below
        self.anywhere: set[str] = set()
        self.parameters: set[str] = set()
        self._flatten = flatten

    def add(self, event: dict[str, Any], *, sent: tuple[Any, ...]) -> None:
        """Add one event; ``sent`` are its objects of properties or traits."""
        self.events += 1
        for values in sent:
            self._note_sent(values, "")
        for key, value in event.items():
            if key == "context" and isinstance(value, dict):
                # Names and paths begin again in its traits, which obey the rules for traits.
                self._walk({name: None if name == "traits" else inner for name, inner in value.items()}, "")
                self._walk(value.get("traits"), "")
            elif key not in PLAIN_CALL_KEYS:  # no rule covers an id of the call
                self._walk(value, "")
                if key not in CONTAINER_CALL_KEYS:  # a path of a field begins with such a key
                    self._walk(value, fold(key))

    def _note_sent(self, values: Any, prefix: str) -> None:
        if len(self.sent) < _SPELLINGS_MAX:
            for key, value in _object(values).items():
                name = prefix + key
                self.sent.add(name)
                if self._flatten:
                    self.above.update(_above(name))
                    self._note_sent(value, f"{name}.")

    def _walk(self, value: Any, path: str) -> None:
        if len(self.anywhere) >= _SPELLINGS_MAX:
            return
        if path:
            self.anywhere.update(forms(path))
        if isinstance(value, dict):
            for key, inner in value.items():
                # As `PrivacyRules` matches: also a part of a name that the app itself dotted.
                for name in (key, *key.split(".")) if "." in key else (key,):
                    self.anywhere.update(forms(name))
                self._walk(inner, f"{path}.{fold(key)}" if path else fold(key))
        elif isinstance(value, list):
            for item in value:
                self._walk(item, path)
        elif isinstance(value, str) and not self._walk_json(value):
            if "=" in value:
                rewrite_parameters(value, self._note_parameter)
                rewrite_form(value, self._note_parameter)
            if "?" in value:
                rewrite_parameters(value, self._note_kept, bare=True)

    def _walk_json(self, text: str) -> bool:
        """Walk the value of a text that is JSON, in which names and paths begin again; False if it is another text."""
        if (value := json_in(text)) is None:
            return False
        with suppress(RecursionError):  # nested too deep: the mapping sends nothing of it
            self._walk(value, "")
        return True

    def _note_parameter(self, name: str, value: str) -> str:
        names = [form for part in parameter_names(name) for form in forms(part)]
        self.anywhere.update(names)
        self._walk_json(value)
        return value

    def _note_kept(self, name: str, value: str) -> str:
        self.parameters.add(fold(name))  # as `url_query` compares: the whole name, also of one without a value
        return value


class IdleRules:
    """Compares events with the rules of one configuration; ``sentences`` is the result so far."""

    def __init__(self, config: MappingConfig) -> None:
        self._config = config
        self._custom = _SeenNames(flatten=_is_flat(config, config.attributes))
        self._people = _SeenNames(flatten=_is_flat(config, config.traits))
        # By the name in [mapping.event]; the rules of one event see nothing but its own events.
        self._by_event = {
            name: _SeenNames(flatten=_is_flat(config, merge_rules(config.attributes, own.attributes)))
            for name, own in config.event.items()
            if own.attributes
        }
        self._names: set[str] = set()  # names by which rules may mean an event
        self._deciding: set[str] = set()  # entries of [mapping.events] that gave an event its name
        self._entries = Entries(config.events)
        self._categories: set[str] = set()
        self._paths = {
            path: compile_path(path)
            for field in config.fields
            for path in _paths_of(config, field)
            if not path.startswith("=")
        }
        self._name_paths = [compile_path(path) for path in _paths_of(config, "eventName")]
        self._filters = [DropFilter.compile(number, rule, config) for number, rule in enumerate(config.drop, 1)]
        self._found_paths: set[str] = set()
        self._found_filters: set[str] = set()

    def add(self, event: dict[str, Any]) -> None:
        """Compare one event; beyond ``EVENTS_OF_A_KIND`` of its kind it is ignored."""
        kind = event.get("type")
        is_people = kind in ("identify", "group")
        seen = self._people if is_people else self._custom
        if kind == "alias" or seen.events >= EVENTS_OF_A_KIND:
            return
        if is_people:
            traits = (event.get("traits"), _object(event.get("context")).get("traits"))
            # An account among the traits of a user is written by the same rules.
            accounts = (_object(values).get(name) for values in traits for name in ACCOUNT_TRAITS)
            seen.add(event, sent=(*traits, *accounts))
        else:
            sent = (event.get("properties"), call_values(event))
            seen.add(event, sent=sent)
            names = self._names_of(event)
            self._names.update(names)
            if (entry := self._entries.deciding(names)) is not None:
                self._deciding.add(entry)
            if own := next((self._by_event[name] for name in names if name in self._by_event), None):
                own.add(event, sent=sent)
        self._categories.update(
            _object(_object(_object(event.get("context")).get("consent")).get("categoryPreferences"))
        )
        self._found_paths.update(path for path, read in self._paths.items() if read(event) is not None)
        self._found_filters.update(rule.label for rule in self._filters if rule.matches(event))

    def _names_of(self, event: dict[str, Any]) -> tuple[str, ...]:
        """Return the names by which rules may mean the event, as ``NameRules`` resolves them."""
        sent = next((text for read in self._name_paths if (text := as_text(read(event))) is not None), None)
        kind = event.get("type")
        if sent is None and isinstance(kind, str) and kind in CALL_NAMES:
            return kind, CALL_NAMES[kind]
        sent = event.get("event") if sent is None else sent
        return (sent.strip(), sent) if isinstance(sent, str) else ()

    # Result -----------------------------------------------------------------------------------------------------

    def sentences(self) -> list[str]:
        """Return one sentence for each rule that did nothing."""
        return [*self._never(), *self._idle()]

    def _never(self) -> Iterator[str]:
        """Yield the rules that can never match, whatever the apps send."""
        config = self._config
        # Of each table its own rules, and all that apply beside them.
        tables = [
            ("mapping.attributes", config.attributes, config.attributes),
            ("mapping.traits", config.traits, config.traits),
        ]
        tables += [
            (f'mapping.event."{name}".attributes', rules.attributes, merge_rules(config.attributes, rules.attributes))
            for name, rules in config.event.items()
            if rules.attributes
        ]
        for table, rules, every in tables:
            dropped, flat = {fold(name) for name in every.drop}, _is_flat(config, every)
            for key, names in (("keep", rules.keep), ("hash", rules.hash), ("rename", list(rules.rename))):
                for name in names:
                    if fold(name) in dropped:
                        yield f"{table}.{key} names {name!r}, which `drop` removes first; it never does anything."
                    elif key == "rename" and every.keep and not _is_kept(name, every.keep, flat=flat):
                        yield f"{table}.rename names {name!r}, which is not in `keep`; it never does anything."
        for path in _paths_of(config, "userType"):
            if path.startswith("=") and path[1:].upper() not in USER_TYPES:
                yield f"mapping.fields.userType names {path!r}, which is not a user type of PX; it never does anything."
        for name in config.event:
            if config.events.get(name) == "":
                yield f'mapping.event."{name}" never does anything: mapping.events maps that name to nothing.'

    def _idle(self) -> Iterator[str]:
        config, custom, people = self._config, self._custom, self._people
        everything = custom.events + people.events
        if everything >= MIN_EVENTS:
            anywhere = custom.anywhere | people.anywhere
            for table, rules in (("mapping.attributes", config.attributes), ("mapping.traits", config.traits)):
                yield from _idle_privacy(table, rules, anywhere, everything)
            for path in self._paths:
                if path not in self._found_paths:
                    yield _idle("mapping.fields", path, everything, self._alike(path.rpartition(".")[2]))
            for rule in self._filters:
                if rule.label not in self._found_filters:
                    yield f"{rule.label} matched none of the last {counted(everything, 'event')}."
            for category in config.consent:
                if category not in self._categories:
                    yield _idle("mapping.consent", category, everything)
            if isinstance(config.url_query, list):
                parameters = custom.parameters | people.parameters
                missing = (name for name in config.url_query if fold(name) not in parameters)
                yield from (_idle("mapping.url_query", name, everything) for name in missing)
        if custom.events >= MIN_EVENTS:
            yield from self._idle_names(custom.events)
            yield from self._idle_spellings("mapping.attributes", config.attributes, custom)
        if people.events >= MIN_EVENTS:
            yield from self._idle_spellings("mapping.traits", config.traits, people)
        for name, seen in self._by_event.items():
            own = config.event[name].attributes
            if own is not None and seen.events >= MIN_EVENTS:
                table = f'mapping.event."{name}".attributes'
                yield from _idle_privacy(table, own, seen.anywhere, seen.events)
                yield from self._idle_spellings(table, own, seen)

    def _idle_names(self, events: int) -> Iterator[str]:
        for name in self._config.events:
            if name in self._deciding:
                continue
            if Entries([name]).deciding(self._names) is not None:
                last = counted(events, "event")
                yield f"mapping.events {name!r} decided none of the last {last} of its kind: another entry comes first."
            else:
                yield _idle("mapping.events", name, events)
        for name in self._config.event:
            if name not in self._names:
                yield _idle("mapping.event", name, events)

    def _idle_spellings(self, table: str, rules: AttributeRules, seen: _SeenNames) -> Iterator[str]:
        """Yield names of ``keep`` and ``rename``, which are compared with what the apps send, letter for letter."""
        for key, names, matched in (
            ("keep", rules.keep, seen.sent | seen.above),  # keeps what is below it, too
            ("rename", list(rules.rename), seen.sent),
        ):
            for name in names:
                if name not in matched:
                    yield _idle(f"{table}.{key}", name, seen.events, self._alike(name))

    def _alike(self, name: str) -> str:
        """Return a name that the apps send instead of this one: the same but for case and punctuation; or an empty text."""
        sent = self._custom.sent | self._people.sent
        alike = sorted(other for other in sent if fold(other) == fold(name) and other != name)
        return alike[0] if alike else ""


def _idle_privacy(table: str, rules: AttributeRules, anywhere: set[str], events: int) -> Iterator[str]:
    """Yield names of ``drop`` and ``hash`` that were found nowhere, at no depth and in no spelling."""
    for key, names in (("drop", rules.drop), ("hash", rules.hash)):
        yield from (_idle(f"{table}.{key}", name, events) for name in names if fold(name) not in anywhere)


def _idle(rule: str, name: str, events: int, alike: str = "") -> str:
    hint = f" The apps send {alike!r}: rules see names before camel case." if alike else ""
    return f"{rule} {name!r} matched none of the last {counted(events, 'event')} of its kind.{hint}"


def _paths_of(config: MappingConfig, field: str) -> list[str]:
    paths = config.fields.get(field, [])
    return [paths] if isinstance(paths, str) else paths


def _above(name: str) -> Iterator[str]:
    """Yield the names above a dotted name: ``a`` and ``a.b`` for ``a.b.c``."""
    parts = name.split(".")
    return (".".join(parts[:count]) for count in range(1, len(parts)))


def _is_kept(name: str, keep: list[str], *, flat: bool) -> bool:
    return name in keep or (flat and any(above in keep for above in _above(name)))


def _is_flat(config: MappingConfig, rules: AttributeRules) -> bool:
    return (rules.nested or config.nested) == "flatten"


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
