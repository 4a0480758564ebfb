"""The configuration, compiled: readers for PX fields, name rules, attribute rules for each event, privacy.

How rules for one event name are laid over the general ones: ``drop`` and ``hash`` add up, so that a denial cannot be
lifted; ``rename`` and ``set`` add up and the event's own entries win; ``keep``, ``case``, ``nested`` and ``hash_salt``
of the event, where given, replace the general ones.

Contradictions are found here, before any event: a rename onto a denied name, a field read from a denied path.
"""

from math import isfinite
from typing import Final

import msgspec

from sidecar.config import AttributeRules
from sidecar.config import Mapping as MappingConfig
from sidecar.errors import ConfigError
from sidecar.mapping.attributes import MAX_ATTRIBUTES, Attributes
from sidecar.mapping.context import GlobalContext
from sidecar.mapping.names import Names
from sidecar.mapping.paths import DEFAULT_PATHS, Field, Read, compile_path
from sidecar.mapping.privacy import CALL_KEYS, CONTEXT_OWN, Bag, Denied, View, fold
from sidecar.mapping.values import within_64_bits

__all__ = ["Plan", "Rules"]

_OWN: Final = frozenset(".".join(("context", *keys)) for keys in CONTEXT_OWN)
_ANONYMOUS_TYPES: Final = {"drop": None, "visitor": "VISITOR", "lead": "LEAD"}


class Plan(msgspec.Struct, frozen=True):
    """What holds for one event name: the general rules with those of ``[mapping.event."NAME"]`` over them."""

    attributes: Attributes
    view: View
    user_type: str | None = None
    high: bool = False


class Rules(msgspec.Struct, frozen=True):
    """All that a mapper needs, compiled. ``plans`` has the key None for events without rules of their own."""

    names: Names
    plans: dict[str | None, Plan]
    identify_id: Field
    anonymous_type: str | None
    user_type: Field
    date: Field
    session_id: Field
    account_id: Field
    account_from_memory: bool
    texts: tuple[Field, ...]
    page_texts: tuple[Field, ...]
    global_context: GlobalContext | None
    traits: Attributes
    traits_denied: Denied

    @classmethod
    def compile(cls, mapping: MappingConfig) -> "Rules":
        """Compile ``[mapping]``. Raises ConfigError where rules contradict each other."""
        return _Compiler(mapping).rules()


class _Compiler:
    """The steps of ``Rules.compile``, around what they share."""

    def __init__(self, mapping: MappingConfig) -> None:
        self.mapping = mapping
        self.general = _settled(mapping, mapping.attributes)
        self.by_event = {
            name: _settled(mapping, laid_over(mapping.attributes, rules.attributes))
            for name, rules in mapping.event.items()
        }
        general = self.general
        everywhere = AttributeRules(drop=general.drop, hash=general.hash, hash_salt=general.hash_salt)
        self.trait_rules = _settled(mapping, laid_over(everywhere, mapping.traits))
        # A field is read before it is known which event's rules hold, so what any event denies is denied to fields.
        drop, hashed = (
            [name for one in self.by_event.values() for name in getattr(one, key)] for key in ("drop", "hash")
        )
        to_fields, in_traits = (
            Denied.of([*one.drop, *drop], [*one.hash, *hashed], one.hash_salt.reveal())
            for one in (general, self.trait_rules)
        )
        self.denied_to_fields = {
            **dict.fromkeys(("traits", "context.traits", "context"), in_traits),
            **dict.fromkeys(("properties", "context.", ""), to_fields),
        }
        _check("mapping.attributes", self.general)
        _check("mapping.traits", self.trait_rules)
        for name, rules in self.by_event.items():
            _check(f'mapping.event."{name}".attributes', rules)

    def rules(self) -> Rules:
        texts = tuple(map(self.field, ("url", "referrer", "remoteHost", "eventId")))
        page_url = self.field("url", ("properties.url",))
        return Rules(
            names=Names(self.mapping, self.field("eventName")),
            plans={None: self.plan(None), **{name: self.plan(name) for name in self.by_event}},
            identify_id=self.field("identifyId"),
            anonymous_type=_ANONYMOUS_TYPES[self.mapping.anonymous],
            user_type=self.field("userType"),
            date=self.field("date"),
            session_id=self.field("sessionId"),
            account_id=self.field("accountId"),
            account_from_memory=self.mapping.fields.get("accountId") != [],
            texts=tuple(field for field in texts if field.reads),
            page_texts=tuple(field for field in (page_url, *texts[1:]) if field.reads),
            global_context=GlobalContext.compile(self.mapping.fields, self.field),
            traits=Attributes(self.trait_rules, _denied(self.trait_rules), field="customAttributes", limit=None),
            traits_denied=_denied(self.trait_rules),
        )

    def field(self, name: str, more: tuple[str, ...] = ()) -> Field:
        """The readers of one PX field: configured paths, else those of DESIGN 3. Raises ConfigError for a denied path."""
        configured = self.mapping.fields.get(name)
        paths = [configured] if isinstance(configured, str) else configured
        compiled = [
            (path, self.reader(path)) for path in (DEFAULT_PATHS.get(name, ()) + more if paths is None else paths)
        ]
        denied = [path for path, read in compiled if read is None]
        if denied and paths is not None:
            raise ConfigError(
                f"mapping.fields.{name} reads {denied[0]}, which a `drop` list denies; take it out of one of the two."
            )
        kept = [(path, read) for path, read in compiled if read is not None]
        return Field(name, tuple(path for path, _ in kept), tuple(read for _, read in kept))

    def reader(self, path: str) -> Read | None:
        """The reader of a path under the privacy rules of the place it leads to; None if it is denied."""
        read = compile_path(path)
        if path.startswith("=") or path in _OWN:
            return read
        for bag in ("context.traits", "traits", "properties"):
            if path == bag or path.startswith(f"{bag}."):
                return self.denied_to_fields[bag].guard(path[len(bag) + 1 :], read)
        if path.startswith("context."):
            return self.denied_to_fields["context."].guard(path[len("context.") :], read)
        return self.denied_to_fields["context" if path == "context" else ""].guard(
            "" if path in CALL_KEYS else path, read
        )

    def plan(self, name: str | None) -> Plan:
        """The rules for one event name, or for all others."""
        rules = self.general if name is None else self.by_event[name]
        override = self.mapping.event.get(name) if name is not None else None
        denied = _denied(rules)
        return Plan(
            attributes=Attributes(
                rules, denied, field="attributes", limit=MAX_ATTRIBUTES, never=self.global_context_names()
            ),
            view=View(
                properties=Bag(denied, self.seen_paths(rules.keep, "properties."), rules.nested == "flatten"),
                traits=Bag(
                    _denied(self.trait_rules),
                    self.seen_paths(self.trait_rules.keep, "traits."),
                    self.trait_rules.nested == "flatten",
                ),
                rest=denied,
            ),
            user_type=override.user_type if override else None,
            high=override is not None and override.priority == "high",
        )

    def global_context_names(self) -> frozenset[str]:
        """The properties that are sent as ``globalContext`` and therefore not as attributes."""
        paths = self.field("globalContext").paths
        return frozenset(path.removeprefix("properties.") for path in paths if path.startswith("properties."))

    def seen_paths(self, keep: list[str], prefix: str) -> frozenset[str] | None:
        """The paths of a bag that people may see: those kept, and those that PX fields are made from; None for all."""
        if not keep:
            return None
        configured = [path for one in self.mapping.fields.values() for path in ([one] if isinstance(one, str) else one)]
        default = [path for paths in DEFAULT_PATHS.values() for path in paths] + ["properties.url"]
        read = (path.removeprefix("context.") for path in (*configured, *default))
        return frozenset([*keep, *(path.removeprefix(prefix) for path in read if path.startswith(prefix))])


def laid_over(general: AttributeRules, own: AttributeRules | None) -> AttributeRules:
    """The rules of one event over the general ones; see above for what adds up and what replaces."""
    if own is None:
        return general
    return AttributeRules(
        keep=own.keep or general.keep,
        drop=[*general.drop, *own.drop],
        hash=[*general.hash, *own.hash],
        hash_salt=own.hash_salt or general.hash_salt,
        rename={**general.rename, **own.rename},
        set={**general.set, **own.set},
        case=own.case or general.case,
        nested=own.nested or general.nested,
    )


def _settled(mapping: MappingConfig, rules: AttributeRules) -> AttributeRules:
    """The same rules with ``case`` and ``nested`` filled in from ``[mapping]``."""
    return msgspec.structs.replace(
        rules, case=rules.case or mapping.attribute_case, nested=rules.nested or mapping.nested
    )


def _denied(rules: AttributeRules) -> Denied:
    return Denied.of(rules.drop, rules.hash, rules.hash_salt.reveal())


def _check(table: str, rules: AttributeRules) -> None:
    """Raise ConfigError where a denied name would come back as a new name."""
    dropped = {fold(name) for name in rules.drop}
    for key, names in (("rename", rules.rename.values()), ("set", rules.set)):
        for name in names:
            if fold(name) in dropped:
                raise ConfigError(f"{table}.{key} makes {name!r}, which `drop` denies; take it out of one of the two.")
    for name, value in rules.set.items():
        if (isinstance(value, float) and not isfinite(value)) or (isinstance(value, int) and not within_64_bits(value)):
            raise ConfigError(f"{table}.set.{name} is {value}, but must be a finite number within 64 bits.")
