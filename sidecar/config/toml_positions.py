"""Find the line of a setting in a TOML text, for error messages and ``px-sidecar config show``.

Theory
------
``tomllib`` does not report positions. This module scans the text again, line by line, for headers and for keys at the
start of a line, and has ``tomllib`` parse each key. A setting inside an inline table or a multi-line list does not have
an entry of its own: it is reported at the line where the table or list begins. The text must be valid TOML.
"""

import re
import tomllib
from collections.abc import Sequence
from typing import Any

__all__ = ["Path", "exact_line_of", "line_of", "parts_of"]

Path = Sequence[str | int]

_PART = r"""(?:[A-Za-z0-9_-]+|"(?:[^"\\]|\\.)*"|'[^']*')"""
_KEY = rf"{_PART}(?:\s*\.\s*{_PART})*"
_HEADER = re.compile(rf"\s*(\[{{1,2}})\s*({_KEY})\s*\]")
_SETTING = re.compile(rf"\s*({_KEY})\s*=")


def line_of(path: Path, text: str) -> int | None:
    """Return the line (from 1) where ``path`` begins, else that of the nearest table that contains it, else None."""
    index = _index(text)
    for length in range(len(path), 0, -1):
        if number := index.get(tuple(path[:length])):
            return number
    return None


def exact_line_of(path: Path, text: str) -> int | None:
    """Return the line of ``path`` itself, or of the part of it that the file has below its section; else None."""
    try:
        index = _index(text)
    except ValueError:  # not TOML
        return None
    setting = tuple(path)
    return next((index[setting[:length]] for length in range(len(setting), 1, -1) if setting[:length] in index), None)


def _index(text: str) -> dict[tuple[str | int, ...], int]:
    """Map each path to the line where it first appears."""
    lines: dict[tuple[str | int, ...], int] = {}
    counts: dict[tuple[str, ...], int] = {}  # of the [[headers]]: the number of the entry is part of the path
    table: tuple[str | int, ...] = ()
    inside_string = False
    for number, line in enumerate(text.splitlines(), 1):
        quotes = line.count('"""') + line.count("'''")
        # The lines of a multi-line string may look like headers or settings.
        if not inside_string:
            if header := _HEADER.match(line):
                names = parts_of(header[2])
                table = names
                if header[1] == "[[":
                    counts[names] = counts.get(names, -1) + 1
                    table = (*names, counts[names])
                _add(lines, table, number)
            elif setting := _SETTING.match(line):
                _add(lines, (*table, *parts_of(setting[1])), number)
        inside_string ^= quotes % 2 == 1
    return lines


def _add(lines: dict[tuple[str | int, ...], int], path: tuple[str | int, ...], number: int) -> None:
    """Record the line of the path and of each table that contains it, unless an earlier line is recorded."""
    for length in range(1, len(path) + 1):
        lines.setdefault(path[:length], number)


def parts_of(key: str) -> tuple[str, ...]:
    """Return the parts of a dotted key without quotes."""
    tree: Any = tomllib.loads(f"{key} = 0")
    parts = []
    while isinstance(tree, dict):
        (part,) = tree
        parts.append(part)
        tree = tree[part]
    return tuple(parts)
