"""The mapping reference as Markdown: keys and defaults from the schema, recipes with what the mapper makes of them.

Nothing that can be computed is written by hand: types and defaults are the schema's, the preset and the default paths
are the tables that events go through, and each recipe's outcome is the outcome.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from sidecar.config import AttributeRules, EventRules, People, Secret, load_text
from sidecar.config import Mapping as MappingConfig
from sidecar.mapping.mapper import compile_mapping
from sidecar.mapping.model import CustomEvent, Known, UpsertUser
from sidecar.mapping.names import CALL_NAMES, PRESETS
from sidecar.mapping.paths import DEFAULT_PATHS
from sidecar.mapping.recipes import RECIPES, Recipe

__all__ = ["KEYS", "reference"]

KEYS: Mapping[type[msgspec.Struct], tuple[str, Mapping[str, str]]] = {
    MappingConfig: (
        "[mapping]",
        {
            "preset": "The table of event names to begin with; see below.",
            "unmapped": "Names that neither `mapping.events` nor the preset knows: sent as they are, or `dropped: unmapped`.",
            "anonymous": "Events without `userId`: dropped, or sent with `anonymousId` and this `userType`.",
            "attribute_case": "`camel`: `feature_name` is sent as `featureName`; leading `_` and all else stay. `keep`: as sent.",
            "nested": "Objects in attributes: compact JSON text with sorted keys, or names joined by dots. Lists are text.",
            "events": 'Event name or glob (`*`, `?`, `[abc]`) → PX event name; `""` drops the event (`mapped_to_nothing`). '
            "Exact names go before globs, globs in the order of the file, all before the preset. "
            "Page and screen calls: by `page` and `screen`, or by `Page Viewed` and `Screen Viewed`.",
            "event": 'Rules for one event name as the app sends it: `[mapping.event."NAME"]`, see below.',
            "fields": "PX field → path or list of paths, tried in order; replaces the default list of that field.",
            "attributes": "What becomes of the properties; see below.",
            "traits": "The same for traits (`[people]`). `drop` and `hash` of `[mapping.attributes]` hold there as well.",
        },
    ),
    EventRules: (
        '[mapping.event."NAME"]',
        {
            "priority": "`high`: sent before others, and may use the reserve of the day. `identify` and `group` always are.",
            "user_type": "The `userType` of this event, over `mapping.fields.userType` and over `mapping.anonymous`.",
            "attributes": "Rules over the general ones: `drop`, `hash`, `rename` and `set` add up, and the event's own "
            "`rename` and `set` entries win; `keep`, `hash_salt`, `case` and `nested` replace the general ones.",
        },
    ),
    AttributeRules: (
        '[mapping.attributes], [mapping.traits], [mapping.event."NAME".attributes]',
        {
            "keep": "If not empty, only these names are sent, exactly as written. With `flatten` also what is below them.",
            "drop": "Never leaves this host in any form: at any depth, in properties, traits and context, in PX fields, "
            "views and exports. Case and underscores do not matter: `first_name` is `firstName`. `a.b` is one nested place.",
            "hash": "Replaced by SHA-256 of salt and value in hexadecimal, in the same places and by the same comparison. "
            "A value that already is a SHA-256 stays.",
            "hash_salt": "What is put before each value that is hashed. Without one, the hash of an email can be guessed.",
            "rename": "Name as the app sends it → new name, before the case rule.",
            "set": "Constants that are added under exactly these names, over a value that the app sent.",
            "case": "`attribute_case` for these values only.",
            "nested": "`nested` for these values only.",
        },
    ),
    People: (
        "[people]",
        {
            "users": "`upsert`: `identify` also writes the PX user; `group` its `accountId`.",
            "accounts": "`upsert`: `group`, and a trait `company` or `account` that is an object, also write the PX account.",
        },
    ),
}

PATHS = """\
A path is keys joined by dots, from the event down: `context.traits.plan`. Where an object has the rest of the path as
one key, that key is meant. A path that begins with `=` is itself the value: `"=production"`. The first path that has a
text that is not blank, or a number, gives the value. An empty list switches an optional field off. A field cannot be
read from a dropped name; from a hashed one it gets the hash.

| PX field | default paths |
| --- | --- |"""

CHANGES = """\
## What PX's limits change

Reported with the event (`map`, `events show`) and counted: over 50 attributes, the first by name are sent; an attribute
name over 1,024 characters and an event name over 2,000 are cut; of two names that come out the same, or differ only in
case, the one in final form is sent, else the first by the app's spelling; numbers beyond 64 bits are sent as text; NaN
and infinities are left out. A date before 2000, or more than a day after it was received, becomes the time of receipt;
one that cannot be read gives way to the next path. Null is left out without a report.
"""


def reference() -> str:
    """The whole page."""
    parts = ["# Mapping reference", *_tables(), *_fields(), *_presets(), CHANGES, "## Recipes", *map(_recipe, RECIPES)]
    return "\n".join(part.rstrip() + "\n" for part in parts)


def _tables() -> Iterator[str]:
    for struct, (title, words) in KEYS.items():
        rows = [f"## `{title}`", "", "| key | values | default | what it does |", "| --- | --- | --- | --- |"]
        hints = get_type_hints(struct)
        for field in msgspec.structs.fields(struct):
            default = field.default if field.default is not msgspec.NODEFAULT else field.default_factory
            rows.append(
                f"| `{field.name}` | {_values(hints[field.name])} | {_default(default)} | {words[field.name]} |"
            )
        yield "\n".join(rows)


def _values(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(kind))
    choices = [one for one in get_args(kind) if get_origin(one) is Literal]
    if choices:
        return _values(choices[0])
    if kind in (str, Secret):
        return "text"
    return "list of texts" if get_origin(kind) is list else "table"


def _default(default: Any) -> str:
    return f'`"{default}"`' if isinstance(default, str) else "" if default is None else "empty"


def _fields() -> Iterator[str]:
    rows = ["## `[mapping.fields]`", "", PATHS]
    words = {
        "accountId": ", then memory of the user: the `groupId` of `group`, or what these paths, a trait `accountId` or "
        "`company.id` gave at `identify`",
        "date": ", then when it was received",
        "url": "; for page calls also `properties.url`",
    }
    for name in (
        *DEFAULT_PATHS,
        "eventName",
        "userType",
        "remoteHost",
        "eventId",
        "globalContext",
        "globalContext.NAME",
    ):
        paths = ", ".join(f"`{path}`" for path in DEFAULT_PATHS.get(name, ()))
        rows.append(f"| `{name}` | {paths or _WITHOUT.get(name, 'none')}{words.get(name, '')} |")
    yield "\n".join(rows)


_WITHOUT = {
    "eventName": "`event`, `Page Viewed` or `Screen Viewed`; a path's name goes through the same rules",
    "userType": "`USER`, or by `mapping.anonymous`; a path may give `USER`, `VISITOR`, `LEAD`, `EMPTY_USER_TYPE`",
    "globalContext": "none; an object that is sent whole and is then no attribute",
    "globalContext.NAME": "none; one value, for events without an object of their own",
}


def _presets() -> Iterator[str]:
    for name, table in PRESETS.items():
        if table:
            rows = [f"## The preset `{name}`", "", "| the app's event | PX event |", "| --- | --- |"]
            yield "\n".join([*rows, *(f"| {sent} | {px} |" for sent, px in {**CALL_NAMES, **table}.items())])


def _recipe(recipe: Recipe) -> str:
    parts = [f"### {recipe.title}", "", recipe.words]
    parts += ["", "```toml", recipe.toml, "```"] if recipe.toml else []
    for event in recipe.events:
        parts += ["", "```", f"{_json(event)}", f"→ {outcome(recipe, event)}", "```"]
    return "\n".join(parts)


def outcome(recipe: Recipe, event: dict[str, Any]) -> str:
    """What the mapper makes of one event under a recipe, in one line."""
    config = load_text(recipe.toml)
    mapper = compile_mapping(config.mapping, config.people)
    mapped = mapper.map(event, Known(), property_key="AP-XXXXXXXXXX-2", received_ms=1_717_689_600_000)
    shown = []
    for intent in mapped.intents:
        if isinstance(intent, CustomEvent):
            shown.append(_json(intent.body))
        else:
            user = isinstance(intent, UpsertUser)
            shown.append(
                f"{'user' if user else 'account'} {intent.user_id if isinstance(intent, UpsertUser) else intent.account_id}: {_json(intent.fields)}"
            )
    return "\n→ ".join(shown) or f"dropped: {mapped.dropped}"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
