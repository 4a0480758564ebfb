"""Shared by the mapping tests: a mapper from TOML or structs, example calls, and readers of results."""

from typing import Any

from sidecar.config import MappingConfig, PeopleConfig, load_text
from sidecar.mapping import CustomEvent, Known, Mapped, Mapper, UpsertAccount, UpsertUser, compile_mapping

KEY = "AP-XXXXXXXXXX-2"
RECEIVED_MS = 1_717_700_000_000  # 2024-06-06T18:53:20Z
NOTHING_KNOWN = Known()


def mapper(toml: str = "") -> Mapper:
    config = load_text(toml)
    return compile_mapping(config.mapping, config.people, config.identity)


def mapper_of(mapping: MappingConfig, people: PeopleConfig | None = None) -> Mapper:
    return compile_mapping(mapping, people or PeopleConfig())


def map_one(event: dict[str, Any], toml: str = "", known: Known = NOTHING_KNOWN) -> Mapped:
    mapped = mapper(toml).map(event, known, property_key=KEY, received_ms=RECEIVED_MS)
    assert mapped.dead is None, mapped.detail
    return mapped


def body_of(mapped: Mapped) -> dict[str, Any]:
    (intent,) = mapped.intents
    assert isinstance(intent, CustomEvent)
    return intent.body


def body(event: dict[str, Any], toml: str = "", known: Known = NOTHING_KNOWN) -> dict[str, Any]:
    return body_of(map_one(event, toml, known))


def attributes(properties: Any, toml: str = "") -> dict[str, Any]:
    return body(track(properties=properties), toml)["attributes"]


def changes_by_field(mapped: Mapped) -> dict[str, str]:
    return {change.field: change.what for change in mapped.changes}


def upserts(mapped: Mapped) -> list[UpsertUser | UpsertAccount]:
    assert all(not isinstance(intent, CustomEvent) for intent in mapped.intents)
    return list(mapped.intents)


def track(event: str = "Feature Used", **more: Any) -> dict[str, Any]:
    return {"type": "track", "event": event, "userId": "user-123", **more}


def identify(traits: Any = None, **more: Any) -> dict[str, Any]:
    return {"type": "identify", "userId": "user-123", **({"traits": traits} if traits is not None else {}), **more}


def group(account: Any = "acct-987", traits: Any = None, **more: Any) -> dict[str, Any]:
    event = {"type": "group", "userId": "user-123", "groupId": account, **more}
    return event | ({"traits": traits} if traits is not None else {})
