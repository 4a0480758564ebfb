"""Explain a mapping: for each PX field its value, and the rule and path that gave it.

``explain`` evaluates the compiled rules a second time, without caches, after ``Mapper.map`` has decided. It makes no
decision of its own, so it can be slow without slowing delivery.
"""

from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from sidecar.mapping.attributes import MAX_ATTRIBUTES
from sidecar.mapping.dates import to_epoch_ms
from sidecar.mapping.mapper import USER_TYPES, Mapper, attribute_values, call_values
from sidecar.mapping.model import CustomEvent, Mapped, UpsertUser
from sidecar.mapping.paths import Field
from sidecar.mapping.values import as_text

__all__ = ["Reason", "explain", "own_account"]


_DROP_REASONS = {
    "remembered": "nothing new to write; kept for later events of this user",
    "not_supported": "PX has no counterpart of an alias call",
    "opted_out": "integrations switch Gainsight PX off",
    "suppressed": "the user was forgotten for good (forget --suppress)",
}


class Reason(msgspec.Struct, frozen=True):
    """One row: a PX field (or ``not sent``), its value, and its source."""

    field: str
    value: Any
    source: str


def explain(mapper: Mapper, event: dict[str, Any], mapped: Mapped) -> list[Reason]:
    """Return the rows for ``event``; ``mapped`` is the result of ``mapper`` for it."""
    rows: list[Reason] = []
    for intent in mapped.intents:
        if isinstance(intent, CustomEvent):
            rows += _custom_event(mapper, event, intent.body)
            continue
        kind, own_id = ("user", intent.user_id) if isinstance(intent, UpsertUser) else ("account", intent.account_id)
        source = "traits, by the table of PX fields"
        rows.append(Reason(kind, own_id, "identifyId" if kind == "user" else "accountId"))
        rows += [Reason(f"{kind}.{name}", value, source) for name, value in intent.fields.items()]
        rows += [Reason(f"{kind}.{name}", value, "only for a new record") for name, value in intent.new_only.items()]
    if mapped.dropped or mapped.dead:
        reason = mapped.detail or _drop_reason(mapper, event, mapped)
        rows.append(Reason("not sent", mapped.dropped or mapped.dead, reason))
    if mapped.known is not None:
        rows.append(Reason("memory", msgspec.to_builtins(mapped.known), "kept for later events of this user"))
    return rows


def own_account(mapper: Mapper, event: dict[str, Any], mapped: Mapped) -> tuple[str, str] | None:
    """Return the account that an event names itself, as PX gets it, and its path; None if it is remembered or absent."""
    path = _path(mapper.rules.account_id, event)
    sent = next((intent.body.get("accountId") for intent in mapped.intents if isinstance(intent, CustomEvent)), None)
    return (sent, path) if path and sent else None


def _custom_event(mapper: Mapper, event: dict[str, Any], body: dict[str, Any]) -> Iterator[Reason]:
    rules = mapper.rules
    name = rules.names.resolve(event)
    assert name is not None, "a custom event has a name"
    plan = rules.plans[name.override]
    texts = {field.name: field for field in (rules.page_texts if event.get("type") == "page" else rules.texts)}
    # Functions, so that a path is searched only for fields that are in the body.
    sources: dict[str, Callable[[], str]] = {
        "identifyId": lambda: _path(rules.identify_id, event) or "anonymousId, by mapping.anonymous",
        "propertyKey": lambda: "the source's property_key, else px.property_key",
        "userType": lambda: _user_type_source(mapper, event, plan.user_type),
        "eventName": lambda: name.rule,
        "date": lambda: _date_source(rules.date, event, body["date"]),
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
    """Explain each attribute that is sent, then each property that is not."""
    name = mapper.rules.names.resolve(event)
    compiled = mapper.rules.plans[name.override if name else None].attributes
    properties = attribute_values(event, compiled)
    own = event.get("properties")
    from_call = {key for key in call_values(event) if not isinstance(own, dict) or own.get(key) is None}
    unsent: list[Reason] = []
    origins = compiled.origins(properties)
    sources = dict.fromkeys(attributes, "set")  # what no property gives
    for sent in sorted(flat := compiled.flatten(properties)) if isinstance(properties, dict) else ():
        plan = compiled.plan_for(sent)
        path = sent if sent in from_call else f"properties.{sent}"
        if plan.final is None:
            unsent.append(Reason("not sent", path, plan.reason))
        elif origins.get(plan.final) == sent and plan.final in attributes:
            sources[plan.final] = path + (f" ({plan.reason})" if plan.reason else "")
        elif flat[sent] is None:
            unsent.append(Reason("not sent", path, "null"))
        elif sent in origins.values():
            unsent.append(Reason("not sent", path, f"over {MAX_ATTRIBUTES} attributes"))
        else:
            unsent.append(Reason("not sent", path, "no value for PX, or a name that another property has in PX"))
    for final, value in attributes.items():
        yield Reason(f"attributes.{final}", value, sources[final])
    yield from unsent


def _path(field: Field, event: dict[str, Any], convert: Callable[[Any], Any] = as_text) -> str | None:
    """Return the first path of a field whose value can be converted and is not rejected."""
    return next(
        (
            path
            for path, read in zip(field.paths, field.reads, strict=True)
            if (value := convert(read(event))) is not None and value not in field.reject | field.hashed_blanks
        ),
        None,
    )


def _date_source(field: Field, event: dict[str, Any], sent_ms: int) -> str:
    """Return the path whose time is sent; an absurd one is not, and then neither are those behind it."""
    path = _path(field, event, to_epoch_ms)
    read = dict(zip(field.paths, field.reads, strict=True)).get(path or "")
    return path if path and read and to_epoch_ms(read(event)) == sent_ms else "time of receipt"


def _no_user(mapper: Mapper, event: dict[str, Any], mapped: Mapped) -> str:
    rules = mapper.rules
    usable = "usable " if any(change.field == "identifyId" for change in mapped.changes) else ""
    ids = " or ".join(rules.identify_id.paths) or "path for identifyId"
    if rules.anonymous_type is None and as_text(event.get("anonymousId")) is not None:
        return f"no {usable}{ids}, and mapping.anonymous does not allow anonymousId here"
    return f"no {usable}{ids}, and no {usable}anonymousId"


def _user_type_source(mapper: Mapper, event: dict[str, Any], override: str | None) -> str:
    if override:
        return "mapping.event, user_type"
    if path := _path(mapper.rules.user_type, event, _as_user_type):
        return path
    return "default" if mapper.rules.identify_id.text(event) else "mapping.anonymous"


def _as_user_type(value: Any) -> str | None:
    return value if isinstance(value, str) and value.upper() in USER_TYPES else None


def _drop_reason(mapper: Mapper, event: dict[str, Any], mapped: Mapped) -> str:
    if mapped.dropped == "no_user":
        return _no_user(mapper, event, mapped)
    if mapped.dropped in ("unmapped", "mapped_to_nothing"):
        name = mapper.rules.names.resolve(event)
        return name.rule if name is not None else ""
    return _DROP_REASONS.get(mapped.dropped or "", "")
