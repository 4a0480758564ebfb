"""The effects of a changed text of the configuration file: lines, a snippet to paste elsewhere, keys without effect.

All of it is about masked texts: an old secret is a placeholder in both.
"""

import difflib
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import tomlkit

from sidecar.config import load_toml
from sidecar.config.show import PLACEHOLDER

__all__ = ["Review", "review"]


class Review(msgspec.Struct, frozen=True):
    """``lines`` of the difference; ``snippet``: what is new, as TOML; ``overridden``: changed keys that a variable sets."""

    lines: list[str]
    snippet: str
    overridden: list[str]


def review(before: str, after: str, variables: Mapping[str, str]) -> Review:
    """Compare two masked texts. ``variables`` are the daemon's, by the keys that they set."""
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), "in the file", "new", lineterm="", n=2)
    old, new = _tree(before), _tree(after)
    overridden = [
        f"{key} is set by the daemon's variable {variable}: change it there, the file has no effect."
        for key, variable in variables.items()
        if _at(old, key) != _at(new, key)
    ]
    return Review(list(lines), _snippet(old, new), overridden)


def _tree(text: str) -> dict[str, Any]:
    """Return the tree of a text; empty if it is not TOML, which the file can be until it is corrected here."""
    try:
        return load_toml(text)
    except tomllib.TOMLDecodeError:
        return {}


def _at(tree: Any, key: str) -> Any:
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


def _snippet(old: dict[str, Any], new: dict[str, Any]) -> str:
    added = tomlkit.dumps(_added(old, new))
    masked = "# write the secrets themselves in place of ****\n" if PLACEHOLDER.search(added) else ""
    return masked + added + "".join(f"# removed: {what}\n" for what in _gone(old, new))


def _added(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Return the values that are new or changed; of a list of tables the new tables, of another list all of it."""
    added: dict[str, Any] = {}
    for key, value in new.items():
        before = old.get(key)
        if value == before:
            continue
        if isinstance(value, dict):
            value = _added(before if isinstance(before, dict) else {}, value)
        elif isinstance(value, list) and isinstance(before, list) and any(isinstance(item, dict) for item in value):
            value = [item for item in value if item not in before]
        if value not in ({}, []) or before is None:
            added[key] = value
    return added


def _gone(old: dict[str, Any], new: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[str]:
    for key, value in old.items():
        after, where = new.get(key), (*path, key)
        if after is None:
            yield tomlkit.key(where).as_string()
        elif isinstance(value, dict) and isinstance(after, dict):
            yield from _gone(value, after, where)
        elif isinstance(value, list) and isinstance(after, list):
            gone = [item for item in value if isinstance(item, dict) and item not in after]
            yield from (f"{tomlkit.key(where).as_string()}, the entry {item}" for item in gone)
