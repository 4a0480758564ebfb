"""The mapping reference as Markdown: keys and defaults from the schema, recipes with their results.

Everything that can be computed is computed: types and defaults come from the schema, the preset and the default paths
from the tables that the mapper uses, and each recipe shows the mapper's output.
"""

import json
from collections.abc import Iterator, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

from sidecar.config import AttributeRules, DropRule, EventRules, MappingConfig, PeopleConfig, Secret, load_text
from sidecar.mapping.mapper import compile_mapping
from sidecar.mapping.model import CustomEvent, Known, UpsertUser
from sidecar.mapping.names import CALL_NAMES, PRESETS
from sidecar.mapping.paths import DEFAULT_PATHS
from sidecar.mapping.recipes import RECIPES, Recipe

__all__ = ["KEYS", "reference"]

# Schema struct → title of its section, and the description of each of its keys.
KEYS: Mapping[type[msgspec.Struct], tuple[str, Mapping[str, str]]] = {
    MappingConfig: (
        "[mapping]",
        {
            "preset": "The built-in table of event names; see below.",
            "unmapped": "Names that are neither in `mapping.events` nor in the preset: sent as they are, or `dropped: unmapped`.",
            "anonymous": "Events without `userId`: dropped, or sent with `anonymousId` and this `userType`.",
            "attribute_case": "`camel`: `feature_name` is sent as `featureName`; leading `_` and all else stay. `keep`: as sent.",
            "nested": "Objects in attributes: compact JSON text with sorted keys, or names joined by dots. Lists are always JSON text.",
            "url_query": "Parameters of URLs in `url`, `referrer` and attributes: `keep`, `drop`, or a list of names that stay. "
            "`drop` and `hash` of attributes apply to parameters as well.",
            "consent": "Categories of `context.consent.categoryPreferences`: an event in which one is false is `dropped: no_consent`.",
            "drop": "Events that are not sent (`dropped: filtered`); see below.",
            "events": 'Event name or glob (`*`, `?`, `[abc]`) → PX event name; `""` drops the event (`mapped_to_nothing`). '
            "Exact names come before globs, globs in the order of the file, all of them before the preset. "
            "Page and screen calls: by `page` and `screen`, or by `Page Viewed` and `Screen Viewed`.",
            "event": 'Rules for one event name as the app sends it: `[mapping.event."NAME"]`, see below.',
            "fields": "PX field → path or list of paths, tried in order; replaces the default list of that field.",
            "attributes": "Rules for the properties; see below.",
            "traits": "The same for traits (`[people]`). `drop` and `hash` of `[mapping.attributes]` apply there as well.",
        },
    ),
    EventRules: (
        '[mapping.event."NAME"]',
        {
            "priority": "`high`: sent before others, and may use the reserve of the day. `low`: sent with what the others leave. "
            "`identify` and `group` are always `normal`.",
            "user_type": "The `userType` of this event; takes precedence over `mapping.fields.userType` and `mapping.anonymous`.",
            "attributes": "Rules merged over the general ones: `drop`, `hash`, `rename` and `set` add up, and the event's own "
            "`rename` and `set` entries win; `keep`, `hash_salt`, `case` and `nested` replace the general ones.",
            "per_day": "The most that are sent on a UTC day; others are `dropped: capped` when they would be sent.",
            "sample": "The share of users (0 to 1) whose events are sent; the others' are `dropped: sampled`. The same users for "
            "every name and host.",
        },
    ),
    DropRule: (
        "[[mapping.drop]]",
        {
            "event": "Event name or glob; `page`, `screen`, `identify` and `group` by their type.",
            "where": "Path → glob for its value (with case; `true` and `false` for booleans; any item of a list). All must match.",
        },
    ),
    AttributeRules: (
        '[mapping.attributes], [mapping.traits], [mapping.event."NAME".attributes]',
        {
            "keep": "If not empty, only these names are sent, exactly as written. With `flatten`, names below them as well.",
            "drop": "These names never leave this host in any form: at any depth, in properties, traits and context, in PX fields, "
            "views and exports. Case and underscores do not matter: `first_name` is `firstName`, and also covers `First-Name`. `a.b` names one nested value.",
            "hash": "Values are replaced by SHA-256 of salt and value in hexadecimal, in the same places and by the same comparison. "
            "Every value is hashed, even one that looks like a hash; ids of the call (`userId`) cannot be.",
            "hash_salt": "Text put before each value that is hashed. Without it, the hash of an email can be guessed.",
            "rename": "Name as the app sends it → new name, before the case rule.",
            "set": "Constants added under exactly these names; they replace values that the app sent.",
            "case": "`attribute_case` for these values only.",
            "nested": "`nested` for these values only.",
        },
    ),
    PeopleConfig: (
        "[people]",
        {
            "users": "`upsert`: `identify` also writes the PX user, and `group` the user's `accountId`.",
            "accounts": "`upsert`: `group`, and a trait `company` or `account` that is an object, also write the PX account.",
        },
    ),
}

PATHS = """\
A path is keys joined by dots, from the event down: `context.traits.plan`. If an object has the rest of the path as a
single key, that key is read. A path that begins with `=` is a constant: `"=production"`. The first path whose value is a
number, or a text that is not blank, gives the value. An empty list switches an optional field off. A field cannot be
read from a dropped name; from a hashed name it gets the hash.

| PX field | default paths |
| --- | --- |"""

CHANGES = """\
## What PX's limits change

These changes are reported with the event (`map`, `events show`) and counted:

* Of more than 50 attributes, the first by name are sent.
* An attribute name over 1,024 characters and an event name over 2,000 are cut.
* Of two names that become equal, or differ only in case, the one in final form is sent, else the first by the app's
  spelling.
* Numbers beyond 64 bits are sent as text; NaN and infinities are left out.
* A date before 2000, or more than a day after it was received, is replaced by the time of receipt; for one that cannot
  be read the next path is used. Such dates of people are left out; `renewalDate` may be 50 years ahead.
* Blanks around an event's name are cut.
* NUL, and bytes that are not UTF-8, are sent as U+FFFD.
* A text in `identity.reject` is not an id of a user or an account.
* Of two traits for one field of PX, PX's own spelling is sent, else camel case, snake case, the first by name.
* Whole numbers of PX are rounded.

Null is left out without a report.
"""


def reference() -> str:
    """Return the complete page."""
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
    if get_origin(kind) is Annotated:
        return _values(get_args(kind)[0])
    options = [option for option in get_args(kind) if get_origin(kind) in (Union, UnionType) and option is not NoneType]
    if options:
        return ", ".join(map(_values, options))
    if kind in (int, float):
        return "number"
    if kind in (str, Secret):
        return "text"
    return "list of texts" if get_origin(kind) is list else "table"


def _default(default: Any) -> str:
    if isinstance(default, (int, float)):
        return f"`{default}`"
    return f'`"{default}"`' if isinstance(default, str) else "" if default is None else "empty"


def _fields() -> Iterator[str]:
    rows = ["## `[mapping.fields]`", "", PATHS]
    words = {
        "accountId": ", then the memory of the user: the `groupId` of `group`, or the value of these paths, of a trait `accountId` or "
        "of `company.id` at `identify`",
        "date": ", then the time of receipt",
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
    "eventName": "`event`, `Page Viewed` or `Screen Viewed`; the same rules apply to a name from a path",
    "userType": "`USER`, or by `mapping.anonymous`; a path may give `USER`, `VISITOR`, `LEAD`, `EMPTY_USER_TYPE`",
    "globalContext": "none; an object that is sent as a whole and then not as an attribute",
    "globalContext.NAME": "none; one value, for events without such an object",
}


def _presets() -> Iterator[str]:
    for name, table in PRESETS.items():
        if table:
            rows = [f"## The preset `{name}`", "", "| the app's event | PX event |", "| --- | --- |"]
            yield "\n".join([*rows, *(f"| {sent} | {px} |" for sent, px in {**CALL_NAMES, **table}.items())])


def _recipe(recipe: Recipe) -> str:
    parts = [f"### {recipe.title}", "", recipe.text]
    parts += ["", "```toml", recipe.toml, "```"] if recipe.toml else []
    for event in recipe.events:
        parts += ["", "```", f"{_json(event)}", f"→ {outcome(recipe, event)}", "```"]
    return "\n".join(parts)


def outcome(recipe: Recipe, event: dict[str, Any]) -> str:
    """Return the mapper's result for one event under a recipe; one line for each request."""
    config = load_text(recipe.toml)
    mapper = compile_mapping(config.mapping, config.people, config.identity)
    mapped = mapper.map(event, Known(), property_key="AP-XXXXXXXXXX-2", received_ms=1_717_689_600_000)
    shown = []
    for intent in mapped.intents:
        if isinstance(intent, CustomEvent):
            shown.append(_json(intent.body))
        else:
            record = f"user {intent.user_id}" if isinstance(intent, UpsertUser) else f"account {intent.account_id}"
            shown.append(f"{record}: {_json(intent.fields)}")
    return "\n→ ".join(shown) or f"dropped: {mapped.dropped}"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
