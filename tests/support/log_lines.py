"""Check a log line against the schema that ships; it understands no more of JSON Schema than is used there."""

import json
import re
from typing import Any

from sidecar.observe.boards import log_schema

SCHEMA = log_schema()
TYPES = {"string": str, "number": (int, float), "boolean": bool, "null": type(None)}


def check_log_line(line: str) -> dict[str, Any]:
    """Return the line as data. Raises AssertionError if it does not fit the schema."""
    given = json.loads(line)
    assert isinstance(given, dict)
    assert set(SCHEMA["required"]) <= given.keys(), line
    for key, value in given.items():
        wanted = SCHEMA["properties"].get(key, SCHEMA["additionalProperties"])
        assert wanted.keys() <= {"description", "type", "format", "pattern", "examples", "enum", "minLength"}
        kinds = wanted.get("type", "string")
        allowed = tuple(TYPES[kind] for kind in ([kinds] if isinstance(kinds, str) else kinds))
        assert isinstance(
            value, tuple(kind for kinds in allowed for kind in (kinds if isinstance(kinds, tuple) else (kinds,)))
        )
        assert value in wanted.get("enum", [value]), line
        assert len(str(value)) >= wanted.get("minLength", 0)
        assert re.search(wanted.get("pattern", ""), str(value)), line
    return given
