"""The JSON Schema of the configuration file, for editors and for checks before a rollout.

It is derived from the types in ``schema``, the texts in ``key_texts`` and the defaults as ``show`` writes them.
``msgspec.json.schema`` is not used: it cannot encode the defaults of the scalar types that ``schema`` adds.
"""

import tomllib
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

from sidecar.config.file import is_reloadable
from sidecar.config.key_texts import KEY_TEXTS
from sidecar.config.schema import GLOBAL_CONTEXT, PX_FIELDS, Config, Duration, Limit, MappingConfig, Secret, Size, Table
from sidecar.config.show import shown
from sidecar.units import MAX_SIZE_BYTES

__all__ = ["json_schema"]

_DURATION = r"\d+(\.\d+)?\s*(ms|s|m|h|d)"
_SCALARS: dict[Any, dict[str, Any]] = {
    Duration: {"type": "string", "pattern": rf"^{_DURATION}$", "examples": ["30s", "24h"]},
    Limit: {"type": "string", "pattern": rf"^({_DURATION})?$", "examples": ["", "3d"]},
    Size: {
        "type": ["string", "integer"],
        "pattern": r"^\d+(\.\d+)?\s*([KMG]i?B|TiB|B)?$",
        "minimum": 0,
        "maximum": MAX_SIZE_BYTES,
        "examples": ["32KiB", "4GiB"],
    },
    Secret: {"type": "string", "writeOnly": True},
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
}


def json_schema() -> dict[str, Any]:
    """Return the schema (draft 2020-12) of the whole file.

    It covers keys, types and ranges. Rules across several keys are checked by ``px-sidecar check`` only.
    """
    title = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "px-sidecar configuration"}
    return title | _table(Config)


def _table(table: type[Table]) -> dict[str, Any]:
    hints = get_type_hints(table, include_extras=True)
    properties, required = {}, []
    for field in msgspec.structs.fields(table):
        properties[field.name] = _schema(hints[field.name]) | _text_of(table, field.name)
        if (table, field.name) == (MappingConfig, "fields"):  # a table whose keys are not fields here
            properties[field.name]["propertyNames"] = {
                "anyOf": [{"enum": list(PX_FIELDS)}, {"pattern": GLOBAL_CONTEXT}]
            }
        if field.required:
            required.append(field.name)
        elif field.default is not msgspec.NODEFAULT and not isinstance(field.default, Table | None):
            properties[field.name]["default"] = shown(field.default)
        elif field.default_factory is not msgspec.NODEFAULT and isinstance(default := field.default_factory(), list):
            properties[field.name]["default"] = shown(default)
    description = {"description": (table.__doc__ or "").replace("``", "")}
    return {
        "type": "object",
        **description,
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _text_of(table: type[Table], key: str) -> dict[str, Any]:
    """Return description and example of a key; a table keeps its own description and needs no example."""
    text = KEY_TEXTS[table][key]
    if table is Config:
        return {}
    effect = "" if is_reloadable(table, key) else " A change takes effect with a restart."
    return {"description": text.meaning + effect, "examples": [tomllib.loads(f"value = {text.example}")["value"]]}


def _schema(kind: Any) -> dict[str, Any]:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _schema(arguments[0]) | {keyword: bound for meta in arguments[1:] for keyword, bound in _bounds(meta)}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (Union, UnionType):
        choices = [_schema(argument) for argument in arguments if argument is not NoneType]
        return choices[0] if len(choices) == 1 else {"anyOf": choices}
    if origin is list:
        return {"type": "array", "items": _schema(arguments[0])}
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema(arguments[1])}
    return dict(_SCALARS[kind]) if kind in _SCALARS else _table(kind)


def _bounds(meta: msgspec.Meta) -> list[tuple[str, float]]:
    bounds = (("exclusiveMinimum", meta.gt), ("minimum", meta.ge), ("exclusiveMaximum", meta.lt), ("maximum", meta.le))
    return [(keyword, bound) for keyword, bound in bounds if bound is not None]
