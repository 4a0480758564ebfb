"""The compiled configuration: readers for PX fields, name rules, attribute rules for each event, privacy.

Rules for one event name are merged over the general ones: ``drop`` and ``hash`` add up, so that a denial cannot be
lifted; ``rename`` and ``set`` add up and the event's own entries win; ``keep``, ``case``, ``nested`` and ``hash_salt``
of the event, if given, replace the general ones.

Contradictions are found at compile time, before any event: a rename to a denied name, a field read from a denied path,
an id of the call that is to be hashed.
"""

from collections.abc import Callable, Iterator, Sequence
from math import isfinite
from typing import Final

import msgspec

from sidecar.config import AttributeRules, IdentityConfig, MappingConfig
from sidecar.errors import ConfigError
from sidecar.mapping.attributes import MAX_ATTRIBUTES, AttributeMapper, Value
from sidecar.mapping.context import GlobalContext
from sidecar.mapping.filters import Filters
from sidecar.mapping.model import Cap, Priority
from sidecar.mapping.names import NameRules
from sidecar.mapping.paths import DEFAULT_PATHS, Field, Read, compile_path
from sidecar.mapping.privacy import (
    CONTAINER_CALL_KEYS,
    CONTEXT_CALL_KEYS,
    PLAIN_CALL_KEYS,
    HashedValues,
    PrivacyRules,
    RedactionView,
    Scope,
    fold,
)
from sidecar.mapping.traits import spelling_rank
from sidecar.mapping.values import as_text, within_64_bits

__all__ = ["EventPlan", "MappingRules", "merge_rules"]

_CONTEXT_CALL_PATHS: Final = frozenset(".".join(("context", *keys)) for keys in CONTEXT_CALL_KEYS)
_PRIORITY: Final = {priority.name.lower(): priority for priority in Priority}
# The ids that PX gets under their own names. Nothing could be found again under the hash of one.
_IDS: Final = {"userid": "identifyId", "anonymousid": "identifyId", "groupid": "accountId"}
_ANONYMOUS_TYPES: Final = {"drop": None, "visitor": "VISITOR", "lead": "LEAD"}


class EventPlan(msgspec.Struct, frozen=True):
    """The rules for one event name: the general ones, merged with those of ``[mapping.event."NAME"]``."""

    attributes: AttributeMapper
    view: RedactionView
    user_type: str | None = None
    priority: Priority = Priority.NORMAL
    sample: float = 1
    cap: Cap | None = None


class MappingRules(msgspec.Struct, frozen=True):
    """Everything a mapper needs, compiled. ``plans`` has the key None for events without rules of their own."""

    names: NameRules
    filters: Filters
    hashed: HashedValues
    reject: frozenset[str]
    hashed_blanks: frozenset[str]
    plans: dict[str | None, EventPlan]
    identify_id: Field
    anonymous_type: str | None
    user_type: Field
    date: Field
    session_id: Field
    account_id: Field
    account_from_memory: bool
    account_paths: tuple[tuple[str, Read], ...]
    reveal_account: Callable[[str, str], str | None]
    trait_rename: dict[str, str]
    texts: tuple[Field, ...]
    page_texts: tuple[Field, ...]
    global_context: GlobalContext | None
    traits: AttributeMapper
    traits_privacy: PrivacyRules

    @classmethod
    def compile(cls, mapping: MappingConfig, identity: IdentityConfig) -> "MappingRules":
        """Compile ``[mapping]`` and ``identity.reject``. Raises ConfigError if rules contradict each other."""
        return _Compiler(mapping, identity).rules()

    @staticmethod
    def contradictions(mapping: MappingConfig, identity: IdentityConfig) -> list[str]:
        """Return everything for which ``compile`` raises, as sentences."""
        return _Compiler(mapping, identity).contradictions()


class _Compiler:
    """The steps of ``MappingRules.compile`` and the state they share."""

    def __init__(self, mapping: MappingConfig, identity: IdentityConfig) -> None:
        self.mapping = mapping
        self.hashed = HashedValues()
        query = mapping.url_query
        self.parameters = None if query == "keep" else () if query == "drop" else tuple(query)
        self.general = _with_defaults(mapping, mapping.attributes)
        self.by_event = {
            name: _with_defaults(mapping, merge_rules(mapping.attributes, rules.attributes))
            for name, rules in mapping.event.items()
        }
        general = self.general
        everywhere = AttributeRules(drop=general.drop, hash=general.hash, hash_salt=general.hash_salt)
        self.trait_rules = _with_defaults(mapping, merge_rules(everywhere, mapping.traits))
        # A field is read before it is known which event's rules apply, so a denial of any event applies to all fields.
        drop = [name for rules in self.by_event.values() for name in rules.drop]
        hashed = [name for rules in self.by_event.values() for name in rules.hash]
        for_fields, in_traits = (
            self.privacy([*rules.drop, *drop], [*rules.hash, *hashed], rules) for rules in (general, self.trait_rules)
        )
        # By the prefix of a path. `context` as a whole contains traits, so the stricter rules apply to it.
        self.privacy_by_prefix = {
            **dict.fromkeys(("traits", "context.traits", "context"), in_traits),
            **dict.fromkeys(("properties", "context.", ""), for_fields),
        }
        # An id from a hashed path is compared as its hash.
        hashing = [rules for rules in (for_fields, in_traits) if rules.hash]
        hashes = {rules.digest(text) for rules in hashing for text in identity.reject}
        self.reject = frozenset(identity.reject) | {text for text in hashes if text is not None}
        self.hashed_blanks = frozenset(text for rules in hashing if (text := rules.digest("")) is not None)

    def contradictions(self) -> list[str]:
        """Return a sentence for each rule that contradicts another one or cannot be kept."""
        found = list(_contradictions("mapping.attributes", self.general, self.mapping))
        general = {sentence.removeprefix("mapping.attributes") for sentence in found}
        found += _contradictions("mapping.traits", self.trait_rules, self.mapping)
        for name, rules in self.by_event.items():
            table = f'mapping.event."{name}".attributes'
            # The rules of an event contain the general ones, which are reported already.
            own = _contradictions(table, rules, self.mapping)
            found += [sentence for sentence in own if sentence.removeprefix(table) not in general]
        for field in self.mapping.fields:
            try:
                self.field(field)
            except ConfigError as error:
                found.append(str(error))
        return found

    def rules(self) -> MappingRules:
        if problems := self.contradictions():
            raise ConfigError(problems[0])
        texts = tuple(map(self.field, ("url", "referrer", "remoteHost", "eventId")))
        page_url = self.field("url", ("properties.url",))
        return MappingRules(
            names=NameRules(self.mapping, self.field("eventName")),
            filters=Filters.compile(self.mapping),
            hashed=self.hashed,
            reject=self.reject,
            hashed_blanks=self.hashed_blanks,
            plans={None: self.plan(None), **{name: self.plan(name) for name in self.by_event}},
            identify_id=self.field("identifyId"),
            anonymous_type=_ANONYMOUS_TYPES[self.mapping.anonymous],
            user_type=self.field("userType"),
            date=self.field("date"),
            session_id=self.field("sessionId"),
            account_id=self.field("accountId"),
            account_from_memory=self.mapping.fields.get("accountId") != [],
            account_paths=tuple((path, compile_path(path)) for path in self.paths("accountId")),
            reveal_account=self.reveal_account,
            trait_rename=self.trait_rules.rename,
            texts=tuple(field for field in texts if field.reads),
            page_texts=tuple(field for field in (page_url, *texts[1:]) if field.reads),
            global_context=GlobalContext.compile(self.mapping.fields, self.field),
            traits=AttributeMapper(
                self.trait_rules,
                self.privacy_of(self.trait_rules),
                field="customAttributes",
                limit=None,
                rank=spelling_rank,
            ),
            traits_privacy=self.privacy_of(self.trait_rules),
        )

    def field(self, name: str, more: tuple[str, ...] = ()) -> Field:
        """Return the readers of one PX field: configured paths, else the default ones and ``more``.

        A default path that is denied is skipped; a configured one is a contradiction. Raises ConfigError for it.
        """
        compiled = [(path, self.reader(path)) for path in self.paths(name, more)]
        denied = [path for path, read in compiled if read is None]
        if denied and name in self.mapping.fields:
            raise ConfigError(
                f"mapping.fields.{name} reads {denied[0]}, but a `drop` list denies that name; "
                "remove it from one of the two."
            )
        kept = [(path, read) for path, read in compiled if read is not None]
        if name in ("url", "referrer") and self.parameters is not None:
            kept = [(path, read if path.startswith("=") else self.without_query(read)) for path, read in kept]
        reject = self.reject if name in ("identifyId", "accountId", "sessionId") else frozenset[str]()
        paths, reads = tuple(path for path, _ in kept), tuple(read for _, read in kept)
        return Field(name, paths, reads, reject, self.hashed_blanks)

    def paths(self, name: str, more: tuple[str, ...] = ()) -> Sequence[str]:
        """Return the paths of one PX field: the configured ones, else the default ones and ``more``."""
        configured = self.mapping.fields.get(name)
        if configured is None:
            return DEFAULT_PATHS.get(name, ()) + more
        return [configured] if isinstance(configured, str) else configured

    def reveal_account(self, path: str, account: str) -> str | None:
        """Return a stored account under the privacy rules of the path where it stood; None if it is denied."""
        read = self._guarded(path, lambda _event: account)
        return None if read is None else as_text(read({}))

    def reader(self, path: str) -> Read | None:
        """Return the reader of a path under the privacy rules of the object it leads into; None if it is denied."""
        return self._guarded(path, compile_path(path))

    def without_query(self, read: Read) -> Read:
        """Return a reader of a URL that obeys ``url_query`` whatever the URL looks like; ``read`` obeys ``drop`` and ``hash``."""
        rules = self.privacy((), (), self.general)
        return lambda event: _cleaned(read(event), rules, is_url=True)

    def privacy(self, drop: Sequence[str], hashed: Sequence[str], rules: AttributeRules) -> PrivacyRules:
        return PrivacyRules.compile(drop, hashed, rules.hash_salt.reveal(), self.hashed, self.parameters)

    def privacy_of(self, rules: AttributeRules) -> PrivacyRules:
        return self.privacy(rules.drop, rules.hash, rules)

    def _guarded(self, path: str, read: Read) -> Read | None:
        if path.startswith("="):
            return read
        if path in _CONTEXT_CALL_PATHS or path in PLAIN_CALL_KEYS:
            rules = self.privacy_by_prefix["context."]
            is_url = path in ("context.page.url", "context.page.referrer")
            return (lambda event: _cleaned(read(event), rules, is_url)) if rules else read
        for prefix in ("context.traits", "traits", "properties"):
            if path == prefix or path.startswith(f"{prefix}."):
                return self.privacy_by_prefix[prefix].guard(path[len(prefix) + 1 :], read)
        if path.startswith("context."):
            return self.privacy_by_prefix["context."].guard(path[len("context.") :], read)
        return self.privacy_by_prefix["context" if path == "context" else ""].guard(
            "" if path in CONTAINER_CALL_KEYS else path, read
        )

    def plan(self, name: str | None) -> EventPlan:
        """Return the rules for one event name, or with None for all other events."""
        rules = self.general if name is None else self.by_event[name]
        override = self.mapping.event.get(name) if name is not None else None
        privacy = self.privacy_of(rules)
        return EventPlan(
            attributes=AttributeMapper(
                rules, privacy, field="attributes", limit=MAX_ATTRIBUTES, excluded=self.global_context_names()
            ),
            view=RedactionView(
                properties=Scope(privacy, self.visible_paths(rules.keep, "properties."), rules.nested == "flatten"),
                traits=Scope(
                    self.privacy_of(self.trait_rules),
                    self.visible_paths(self.trait_rules.keep, "traits."),
                    self.trait_rules.nested == "flatten",
                ),
                rest=privacy,
            ),
            user_type=override.user_type if override else None,
            priority=_PRIORITY[override.priority] if override is not None else Priority.NORMAL,
            sample=override.sample if override else 1,
            cap=Cap(name, override.per_day) if name and override and override.per_day is not None else None,
        )

    def global_context_names(self) -> frozenset[str]:
        """Return the properties that are sent as ``globalContext`` and therefore not as attributes."""
        paths = self.field("globalContext").paths
        return frozenset(path.removeprefix("properties.") for path in paths if path.startswith("properties."))

    def visible_paths(self, keep: list[str], prefix: str) -> frozenset[str] | None:
        """Return the visible paths of one object: those in ``keep`` and those that PX fields read; None for all.

        Without the paths of fields a redacted event would map to a different request than the event itself.
        """
        if not keep:
            return None
        configured = [
            path for paths in self.mapping.fields.values() for path in ([paths] if isinstance(paths, str) else paths)
        ]
        default = [path for paths in DEFAULT_PATHS.values() for path in paths] + ["properties.url"]
        read = (path.removeprefix("context.") for path in (*configured, *default))
        return frozenset([*keep, *(path.removeprefix(prefix) for path in read if path.startswith(prefix))])


def merge_rules(general: AttributeRules, own: AttributeRules | None) -> AttributeRules:
    """Merge the rules of one event over the general ones; the module's docstring says what adds up and what replaces."""
    if own is None:
        return general
    return AttributeRules(
        keep=own.keep or general.keep,
        drop=[*general.drop, *own.drop],
        hash=[*general.hash, *own.hash],
        hash_salt=own.hash_salt or general.hash_salt,
        rename={**general.rename, **own.rename},
        set=_merge_constants(general.set, own.set),
        case=own.case or general.case,
        nested=own.nested or general.nested,
    )


def _merge_constants(general: dict[str, Value], own: dict[str, Value]) -> dict[str, Value]:
    """Return all constants; those of the event replace general ones whose names differ only by case, which PX ignores."""
    replaced = {name.casefold() for name in own}
    return {name: value for name, value in general.items() if name.casefold() not in replaced} | own


def _with_defaults(mapping: MappingConfig, rules: AttributeRules) -> AttributeRules:
    """Return the same rules with ``case`` and ``nested`` filled in from ``[mapping]``."""
    return msgspec.structs.replace(
        rules, case=rules.case or mapping.attribute_case, nested=rules.nested or mapping.nested
    )


def _cleaned(value: object, rules: PrivacyRules, is_url: bool) -> object:
    """Return a value of the call itself: its id or text as it is, parameters of a URL and nested data by the rules."""
    if is_url and type(value) is str:
        return rules.clean(value, url=True)
    return rules.prune(value) if is_url or type(value) in (dict, list) else value


def _field_of_id(folded: str, mapping: MappingConfig) -> str | None:
    """Return the PX field that gets the id of the call with this folded name; None if it is not an id, or not sent."""
    if folded != "anonymousid":
        return _IDS.get(folded)
    for field, paths in mapping.fields.items():
        if "anonymousId" in ([paths] if isinstance(paths, str) else paths):
            return field
    return None if mapping.anonymous == "drop" else _IDS[folded]


def _contradictions(table: str, rules: AttributeRules, mapping: MappingConfig) -> Iterator[str]:
    """Yield a sentence for each denied name that would come back as a new name, and for each rule that cannot be kept."""
    for name in rules.hash:
        if (field := _field_of_id(fold(name), mapping)) is None:
            continue
        yield (
            f"{table}.hash names {name!r}, an id of the call that PX gets as {field} and by which users and accounts are "
            "found; hash the id in the app, or remove it from `hash`."
        )
    dropped = {fold(name) for name in rules.drop}
    for key, names in (("rename", rules.rename.values()), ("set", rules.set)):
        yield from (
            f"{table}.{key} creates {name!r}, but `drop` denies that name; remove it from one of the two."
            for name in names
            if fold(name) in dropped
        )
    for name, value in rules.set.items():
        if (isinstance(value, float) and not isfinite(value)) or (isinstance(value, int) and not within_64_bits(value)):
            yield f"{table}.set.{name} is {value}; set it to a finite number within 64 bits."
