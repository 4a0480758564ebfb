"""Where a setting stands in a TOML text: only errors need it, so it is looked up when there is one.

Theory
------
``tomllib`` tells no positions. This reads the text again, line by line, for headers and for keys at the start of a
line, and lets ``tomllib`` itself take each of these apart. What stands inside an inline table or a list of several
lines has no entry of its own and is found at the line where its table or list begins, which is close enough for a
person. The text is known to be valid TOML.
"""

import re
import tomllib
from collections.abc import Sequence
from typing import Any

__all__ = ["Path", "line_of"]

Path = Sequence[str | int]

_PART = r"""(?:[A-Za-z0-9_-]+|"(?:[^"\\]|\\.)*"|'[^']*')"""
_KEY = rf"{_PART}(?:\s*\.\s*{_PART})*"
_HEADER = re.compile(rf"\s*(\[{{1,2}})\s*({_KEY})\s*\]")
_SETTING = re.compile(rf"\s*({_KEY})\s*=")


def line_of(path: Path, text: str) -> int | None:
    """The number of the line (from 1) where the setting or table at ``path`` begins, or what it stands in; or None."""
    index = _index(text)
    for length in range(len(path), 0, -1):
        if number := index.get(tuple(path[:length])):
            return number
    return None


def _index(text: str) -> dict[tuple[str | int, ...], int]:
    found: dict[tuple[str | int, ...], int] = {}
    counts: dict[tuple[str, ...], int] = {}
    table: tuple[str | int, ...] = ()
    inside_text = False
    for number, line in enumerate(text.splitlines(), 1):
        quotes = line.count('"""') + line.count("'''")
        if not inside_text:
            if header := _HEADER.match(line):
                names = _parts(header[2])
                table = names
                if header[1] == "[[":
                    counts[names] = counts.get(names, -1) + 1
                    table = (*names, counts[names])
                _remember(found, table, number)
            elif setting := _SETTING.match(line):
                _remember(found, (*table, *_parts(setting[1])), number)
        inside_text ^= quotes % 2 == 1
    return found


def _remember(found: dict[tuple[str | int, ...], int], path: tuple[str | int, ...], number: int) -> None:
    """The path and what it stands in, unless that was seen before."""
    for length in range(1, len(path) + 1):
        found.setdefault(path[:length], number)


def _parts(key: str) -> tuple[str, ...]:
    """The parts of a dotted key, without their quotes."""
    tree: Any = tomllib.loads(f"{key} = 0")
    parts = []
    while isinstance(tree, dict):
        (part,) = tree
        parts.append(part)
        tree = tree[part]
    return tuple(parts)
