"""Invariants for every event and configuration (hypothesis; ``--hypothesis-profile=long`` runs 20,000 examples of each)."""

import json
from collections.abc import Collection
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from mapping_help import KEY, RECEIVED_MS, mapper_of

from sidecar.config import AttributeRules, EventRules, MappingConfig, PeopleConfig, Secret
from sidecar.events import TYPES
from sidecar.mapping import CustomEvent, Known, Mapped, Mapper
from sidecar.mapping.privacy import CALL_KEYS, fold

# Names that collide by case, by the camel rule or by dots, and names that the rules below deny, hash or rename.
NAMES = ["plan", "Plan", "plan_name", "planName", "plan.name", "_plan", "a__b", "email", "E_Mail", "phone", "seats"]
NAMES += ["name", "address", "street", "address.street", "company", "created_at", "groupId", "account_id", "x", ""]
NAMES += ["score", "city", "gender", "nps", "é_ö"]
DENIED = ["email", "phone", "address", "address.street", "plan_name", "x", "created_at"]

any_text = st.text(st.characters(), max_size=8) | st.sampled_from(
    ["2024-06-06T16:00:00Z", "u1", "\ud800", "é" * 3, "7", "https://a.test/?x=1&email=S#phone=2", "?x=%3Femail%3Dj"]
)
number_like = st.text("-.0123456789eE+:TZ ", max_size=25)  # also the characters of timestamps
scalar = (
    number_like | st.none() | st.booleans() | st.integers() | st.integers(-(2**70), 2**70) | st.floats() | any_text
)  # fmt: skip
names = st.sampled_from(NAMES) | any_text
values = st.recursive(
    scalar, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4), max_leaves=8
)
bags = st.dictionaries(names, values, max_size=12)
ids = st.none() | st.sampled_from(["u1", "", " ", 7, 0, 1.5, "a/b"]) | scalar
contexts = st.fixed_dictionaries(
    {},
    optional={
        "traits": bags | values,
        "groupId": ids,
        "session": st.fixed_dictionaries({"id": ids}) | values,
        "page": st.fixed_dictionaries({}, optional={"url": any_text, "referrer": values}) | values,
        "app": values,
    },
)
event_names = st.sampled_from(["Feature Used", "Products Searched", "Noise 1", "Special", " Special "]) | st.text(
    min_size=1
).filter(str.strip)
events = st.fixed_dictionaries(
    {"type": st.sampled_from(sorted(TYPES)), "event": event_names},
    optional={
        "userId": ids,
        "anonymousId": ids,
        "groupId": ids,
        "properties": bags | values,
        "traits": bags | values,
        "context": contexts | values,
        "integrations": values | st.just({"All": True}),
        "timestamp": values | st.just("2024-06-06T16:00:00.1234567+05:30"),
        "originalTimestamp": scalar,
        "messageId": any_text,
        "email": values,
        "name": scalar,
        "category": scalar,
    },
)

rules = st.builds(
    AttributeRules,
    keep=st.lists(st.sampled_from(NAMES), max_size=2),
    drop=st.lists(st.sampled_from(DENIED), max_size=3),
    hash=st.lists(st.sampled_from(DENIED), max_size=2),
    hash_salt=st.sampled_from([Secret(), Secret("salt")]),
    rename=st.dictionaries(st.sampled_from(NAMES), st.sampled_from(["tier", "Tier", "seats"]), max_size=2),
    set=st.dictionaries(
        st.sampled_from(["environment", "Seats"]), st.integers(-(2**63), 2**63 - 1) | st.just("é"), max_size=2
    ),
    case=st.sampled_from(["camel", "keep", None]),
    nested=st.sampled_from(["string", "flatten", None]),
)
mappings = st.builds(
    MappingConfig,
    unmapped=st.sampled_from(["pass", "pass", "drop"]),
    anonymous=st.sampled_from(["drop", "visitor", "lead"]),
    attribute_case=st.sampled_from(["camel", "keep"]),
    nested=st.sampled_from(["string", "flatten"]),
    events=st.dictionaries(st.sampled_from(["Noise *", "Feature Used", "page"]), st.sampled_from(["", "Else"])),
    event=st.dictionaries(
        st.sampled_from(["Special", "Feature Used", "page"]),
        st.builds(EventRules, attributes=st.none() | rules, user_type=st.sampled_from(["LEAD", None])),
        max_size=2,
    ),
    fields=st.dictionaries(
        st.sampled_from(
            ["accountId", "sessionId", "globalContext", "globalContext.k", "userType", "eventName", "date"]
        ),
        st.sampled_from(["properties.seats", "context.app", "properties.plan.name", "=constant", "traits.seats"]),
        max_size=3,
    ),
    attributes=rules,
    traits=rules,
    url_query=st.sampled_from(["keep", "keep", "drop", ["x"]]),
)
peoples = st.builds(PeopleConfig, users=st.sampled_from(["off", "upsert"]), accounts=st.sampled_from(["off", "upsert"]))
mappers = st.builds(mapper_of, mappings, peoples)
memories = st.builds(Known, account_id=st.sampled_from([None, "acct-1"]))


def run(mapper: Mapper, event: dict[str, Any], known: Known, hashed: Collection[str] = ()) -> Mapped:
    return mapper.map(event, known, property_key=KEY, received_ms=RECEIVED_MS, hashed=hashed)


def as_bytes(mapped: Mapped) -> bytes:
    return msgspec.json.encode((mapped.intents, mapped.dropped, mapped.dead, mapped.known))


def strict(value: Any) -> str:
    """Return JSON text; raises for NaN, and for lone surrogates."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=False)
    text.encode("utf-8", "strict")
    return text


@given(mappers, events, memories)
def test_requests_are_strict_json_within_the_caps_of_px(mapper: Mapper, event: dict, known: Known):
    mapped = run(mapper, event, known)
    assert mapped.dead is None, mapped.detail
    assert bool(mapped.intents) != bool(mapped.dropped)
    for intent in mapped.intents:
        if not isinstance(intent, CustomEvent):
            strict([intent.fields, intent.new_only])
            continue
        body = intent.body
        strict(body)
        assert all(
            type(body[key]) is str and body[key] for key in body if key not in ("date", "attributes", "globalContext")
        )
        assert type(body["date"]) is int
        assert len(body["eventName"]) <= 2000
        sent = body["attributes"]
        assert len(sent) <= 50
        assert len({name.casefold() for name in sent}) == len(sent)
        for name, value in sent.items():
            assert 0 < len(name) <= 1024
            assert type(value) in (str, bool, float, int)
            assert type(value) is not int or -(2**63) <= value < 2**63


def with_secrets(value: Any, denied: set[str], path: str = "") -> Any:
    """Return the value with a secret under every denied name."""
    if isinstance(value, list):
        return [with_secrets(item, denied, path) for item in value]
    if not isinstance(value, dict):
        return value
    shown = {}
    for key, inner in value.items():
        here = f"{path}.{fold(key)}" if path else fold(key)
        shown[key] = {"deep": "S3CRET"} if fold(key) in denied or here in denied else with_secrets(inner, denied, here)
    return shown


@given(mappings, peoples, events, memories)
def test_denied_data_appears_nowhere(mapping: MappingConfig, people: PeopleConfig, event: dict, known: Known):
    denied = set(map(fold, [*mapping.attributes.drop, *mapping.attributes.hash]))
    denied_in_traits = denied | set(map(fold, [*mapping.traits.drop, *mapping.traits.hash]))
    secret = {
        key: with_secrets(value, denied) if key in CALL_KEYS else with_secrets({key: value}, denied)[key]
        for key, value in event.items()
    }
    if isinstance(event.get("traits"), dict):
        secret["traits"] = with_secrets(event["traits"], denied_in_traits)
    if isinstance(event.get("context"), dict) and "traits" in event["context"]:
        secret["context"] = with_secrets(event["context"], denied) | {
            "traits": with_secrets(event["context"]["traits"], denied_in_traits)
        }
    mapper = mapper_of(mapping, people)
    mapped = run(mapper, secret, known)
    assert "S3CRET" not in repr(mapped)
    assert "S3CRET" not in repr(mapper.redact(secret))


@given(mappings, peoples, events, memories)
def test_mapping_twice_gives_the_same_bytes(mapping: MappingConfig, people: PeopleConfig, event: dict, known: Known):
    mapper = mapper_of(mapping, people)
    first = as_bytes(run(mapper, event, known))
    assert as_bytes(run(mapper, event, known)) == first
    assert as_bytes(run(mapper_of(mapping, people), event, known)) == first


def with_reversed_keys(value: Any) -> Any:
    """Return the value with the keys of all objects in reverse order."""
    if isinstance(value, list):
        return [with_reversed_keys(item) for item in value]
    return {key: with_reversed_keys(value[key]) for key in reversed(value)} if isinstance(value, dict) else value


@given(mappers, events, memories)
def test_order_of_keys_does_not_matter(mapper: Mapper, event: dict, known: Known):
    assert as_bytes(run(mapper, with_reversed_keys(event), known)) == as_bytes(run(mapper, event, known))
    assert mapper.user_of(with_reversed_keys(event)) == mapper.user_of(event)


@given(mappers, events, memories)
def test_redacted_event_maps_to_the_same_requests(mapper: Mapper, event: dict, known: Known):
    seen, hashed = mapper.export(event)
    assert as_bytes(run(mapper, seen, known, hashed)) == as_bytes(run(mapper, event, known))
    assert canonical(mapper.redact(seen, hashed)) == canonical(seen)


@given(mappers, events, memories)
def test_a_rule_drops_an_event_as_its_mapping_does(mapper: Mapper, event: dict, known: Known):
    seen, made = mapper.export(event)
    for call, hashed in ((event, []), (seen, made)):
        dropped = run(mapper, call, known, hashed).dropped
        assert mapper.dropped_by_rule(call, hashed) == (None if dropped == "remembered" else dropped)


def canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


@given(mappers, st.dictionaries(st.sampled_from(sorted(CALL_KEYS)) | any_text, values, max_size=8), memories)
def test_no_json_object_raises(mapper: Mapper, event: dict, known: Known):
    mapped = run(mapper, event, known)
    assert mapped.dead in (None, "mapping_error")
    assert "bug" not in mapped.detail
    mapper.redact(event)
    mapper.priority_of(event)
    mapper.user_of(event)
