"""Why an event maps as it does: for each PX field its value, the rule and the path that gave it.

This walks the compiled rules once more, slowly, after ``Mapper.map`` has decided; it decides nothing itself.
"""

from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from sidecar.mapping.mapper import Mapper
from sidecar.mapping.model import CustomEvent, Mapped, UpsertUser
from sidecar.mapping.paths import Field
from sidecar.mapping.values import as_text, to_epoch_ms

__all__ = ["Reason", "explain"]


_WORDS = {
    "no_user": "no userId, and mapping.anonymous takes no anonymousId here",
    "remembered": "nothing new to write; kept for later events of this user",
    "not_supported": "PX has nothing that an alias call could become",
    "opted_out": "integrations switch Gainsight PX off",
}


class Reason(msgspec.Struct, frozen=True):
    """One row: a PX field (or what is not sent), its value, and where it comes from."""

    field: str
    value: Any
    source: str


def explain(mapper: Mapper, event: dict[str, Any], mapped: Mapped) -> list[Reason]:
    """The rows for an event and what ``mapper`` made of it."""
    rows: list[Reason] = []
    for intent in mapped.intents:
        if isinstance(intent, CustomEvent):
            rows += _custom_event(mapper, event, intent.body)
            continue
        kind, own_id = ("user", intent.user_id) if isinstance(intent, UpsertUser) else ("account", intent.account_id)
        source = "traits, by the table of PX fields"
        rows.append(Reason(kind, own_id, "identifyId" if kind == "user" else "accountId"))
        rows += [Reason(f"{kind}.{name}", value, source) for name, value in intent.fields.items()]
        rows += [Reason(f"{kind}.{name}", value, "only where it is new") for name, value in intent.new_only.items()]
    if mapped.dropped or mapped.dead:
        rows.append(
            Reason("not sent", mapped.dropped or mapped.dead, mapped.detail or _why_dropped(mapper, event, mapped))
        )
    if mapped.known is not None:
        rows.append(Reason("memory", msgspec.to_builtins(mapped.known), "remembered of this user for later events"))
    return rows


def _custom_event(mapper: Mapper, event: dict[str, Any], body: dict[str, Any]) -> Iterator[Reason]:
    rules = mapper.rules
    name = rules.names.of(event)
    assert name is not None, "a custom event has a name"
    plan = rules.plans[name.override]
    texts = {field.name: field for field in (rules.page_texts if event.get("type") == "page" else rules.texts)}
    sources: dict[str, Callable[[], str]] = {
        "identifyId": lambda: _path(rules.identify_id, event) or "anonymousId, by mapping.anonymous",
        "propertyKey": lambda: "the source's property_key, else px.property_key",
        "userType": lambda: _user_type_source(mapper, event, plan.user_type),
        "eventName": lambda: name.rule,
        "date": lambda: _path(rules.date, event, to_epoch_ms) or "when it was received",
        "sessionId": lambda: _path(rules.session_id, event) or "",
        "accountId": lambda: _path(rules.account_id, event) or "memory of the user (identify, group)",
        "globalContext": lambda: "mapping.fields",
    }
    for key, value in body.items():
        if key == "attributes":
            yield from _attributes(mapper, event, value)
        else:
            yield Reason(key, value, sources[key]() if key in sources else _path(texts[key], event) or "")


def _attributes(mapper: Mapper, event: dict[str, Any], attributes: dict[str, Any]) -> Iterator[Reason]:
    name = mapper.rules.names.of(event)
    compiled = mapper.rules.plans[name.override if name else None].attributes
    properties = event.get("properties")
    unsent, origin = [], dict.fromkeys(attributes, "set")
    for sent in sorted(compiled.flat(properties)) if isinstance(properties, dict) else ():
        fate = compiled.fate(sent)
        path = f"properties.{sent}"
        if fate.final in attributes:
            better = origin[fate.final] == "set" or fate.rank == 0
            origin[fate.final] = path + (f" ({fate.why})" if fate.why else "") if better else origin[fate.final]
        else:
            unsent.append(Reason("not sent", path, fate.why if fate.final is None else "null, or cut by a cap"))
    for final, value in attributes.items():
        yield Reason(f"attributes.{final}", value, origin[final])
    yield from unsent


def _path(field: Field, event: dict[str, Any], convert: Callable[[Any], Any] = as_text) -> str | None:
    return next(
        (path for path, read in zip(field.paths, field.reads, strict=True) if convert(read(event)) is not None), None
    )


def _user_type_source(mapper: Mapper, event: dict[str, Any], override: str | None) -> str:
    if override:
        return "mapping.event, user_type"
    if path := _path(mapper.rules.user_type, event):
        return path
    return "default" if mapper.rules.identify_id.text(event) else "mapping.anonymous"


def _why_dropped(mapper: Mapper, event: dict[str, Any], mapped: Mapped) -> str:
    if mapped.dropped in ("unmapped", "mapped_to_nothing"):
        name = mapper.rules.names.of(event)
        return name.rule if name is not None else ""
    return _WORDS.get(mapped.dropped or "", "")
