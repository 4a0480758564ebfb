"""One sentence for whatever is wrong with a configuration: where, which key, what it is, what is allowed.

Theory
------
msgspec says what it refused in English and where in a path like ``$.mapping.event[...].priority``, in which an entry of
a table of ours has no name. From the path we keep the shape; the name of the entry is found by converting the entries
one by one until one is refused. What is allowed is told from the type in ``schema``, so that the two cannot disagree.
A value is shown unless its type is ``Secret`` or it holds other values; user names and passwords in addresses are
masked.
"""

import difflib
import re
from collections.abc import Iterable
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

from sidecar.config.lines import Path
from sidecar.config.schema import Duration, Limit, Refused, Secret, Size, Table, UnknownName, decode_text_type

__all__ = ["Complaint", "complaint", "dotted", "field_type", "mask_userinfo", "nearest"]

LONGEST_VALUE_SHOWN = 60


class Complaint(msgspec.Struct, frozen=True):
    """What is wrong, and the path of the setting it is about; the caller adds the file and the line."""

    path: Path
    sentence: str


def complaint(error: msgspec.ValidationError, tree: dict[str, Any], root: type[Table]) -> Complaint:
    """The wording of msgspec's error about ``tree``, which was to become ``root``."""
    what, _, place = str(error).partition(" - at `$")
    path = _resolve(re.findall(r"\.(\w+)|\[(\d+|\.\.\.)\]", place), tree, root)
    if isinstance(error.__cause__, UnknownName):
        path = [*path, *error.__cause__.path]
        return _unknown(path[:-1], str(path[-1]), error.__cause__.known)
    if isinstance(error.__cause__, Refused):
        return _wrong_value([*path, error.__cause__.key], tree, root, error.__cause__.allowed)
    if match := re.fullmatch(r"Object contains unknown field `(.*)`", what, re.DOTALL):
        return _unknown(path, match[1], _fields(type_at(path, root)))
    if match := re.fullmatch(r"Object missing required field `(.*)`", what, re.DOTALL):
        return Complaint(path, f"{dotted([*path, match[1]])} is missing; add it")
    return _wrong_value(path, tree, root, _allowed(type_at(path, root)))


def _resolve(steps: Iterable[tuple[str, str]], tree: Any, root: type[Table]) -> list[str | int]:
    """The path with the entries of our tables named."""
    path: list[str | int] = []
    for name, index in steps:
        step: str | int = name or index
        if index == "...":
            entry_kind = _inner(type_at(path, root), "")
            step = next(key for key, value in value_at(tree, path).items() if _is_refused(value, entry_kind))
        elif index:
            step = int(index)
        path.append(step)
    return path


def _is_refused(value: Any, kind: Any) -> bool:
    try:
        msgspec.convert(value, kind, dec_hook=decode_text_type)
    except msgspec.ValidationError:
        return True
    return False


def _wrong_value(path: Path, tree: Any, root: type[Table], allowed: str) -> Complaint:
    value = value_at(tree, path)
    kind = type_at(path, root)
    if value is None or kind is Secret or any(_is_table(one) for one in _alternatives(kind)):
        shown = (
            ""  # not in the file; or secret; or a text where a table belongs, which may be a secret in a wrong place
        )
    elif isinstance(value, dict):
        shown = "is a table, but "
    elif isinstance(value, list):
        shown = "is a list, but "
    else:
        text = mask_userinfo(_written(value))
        shown = f"is {text[:LONGEST_VALUE_SHOWN]}{'…' if len(text) > LONGEST_VALUE_SHOWN else ''}, but "
    return Complaint(path, f"{dotted(path)} {shown}{allowed}")


def _written(value: Any) -> str:
    """The value as the file has it."""
    return str(value).lower() if isinstance(value, bool) else repr(value) if isinstance(value, str) else str(value)


def _unknown(path: Path, key: str, known: Iterable[str]) -> Complaint:
    where = f"[{dotted(path)}]" if path and not isinstance(path[-1], int) else dotted(path) or "the file"
    return Complaint([*path, key], f"{where} has an unknown key {key!r}{nearest(key, known)}")


def nearest(key: str, known: Iterable[str]) -> str:
    """``; the nearest known one is …``, or the list of all."""
    names = list(known)
    folded = {name.lower(): name for name in names}
    close = difflib.get_close_matches(key.lower(), folded, 1, 0.5)
    return f"; the nearest known one is {folded[close[0]]!r}" if close else f"; known are {', '.join(names)}"


def dotted(path: Path) -> str:
    """The path as people write it: ``mapping.event."Plan Changed".priority``, ``write_key of [[source]] number 2``."""
    if len(path) > 1 and isinstance(path[1], int):
        owner = f"[[{path[0]}]] number {path[1] + 1}"
        return f"{dotted(path[2:])} of {owner}" if path[2:] else owner
    parts = ""
    for part in path:
        if isinstance(part, int):
            parts += f"[{part}]"
        else:
            parts += "." + (part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else f'"{part}"')
    return parts.lstrip(".")


def mask_userinfo(text: str) -> str:
    """The text with ``user:password@`` in addresses masked."""
    return re.sub(r"//[^/@\s]+@", "//****@", text)


def value_at(tree: Any, path: Path) -> Any:
    """What stands at ``path``; None if nothing does."""
    for part in path:
        if isinstance(tree, dict):
            tree = tree.get(part)
        elif isinstance(tree, list) and isinstance(part, int):
            tree = tree[part]
        else:
            return None
    return tree


def type_at(path: Path, root: Any) -> Any:
    """The annotated type of the setting at ``path``."""
    for part in path:
        root = _inner(root, part)
    return root


def field_type(table: type[Table], key: str) -> Any:
    """The annotated type of a field; None for an unknown one."""
    return get_type_hints(table, include_extras=True).get(key)


def _inner(kind: Any, step: str | int) -> Any:
    """The type of what is one step inside a value of type ``kind``."""
    for one in _alternatives(kind):
        if _is_table(one) and isinstance(step, str):
            return field_type(one, step)
        if get_origin(one) is (list if isinstance(step, int) else dict):
            return get_args(one)[-1]
    return Any


def _is_table(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Table)


def _fields(kind: Any) -> tuple[str, ...]:
    """The keys of the table that ``kind`` is or may be."""
    return next((one.__struct_fields__ for one in _alternatives(kind) if _is_table(one)), ())


def _alternatives(kind: Any) -> list[Any]:
    """The types of a union without None; else the one type."""
    if get_origin(kind) in (Union, UnionType):
        return [one for one in get_args(kind) if one is not NoneType]
    return [kind]


def _allowed(kind: Any) -> str:
    """What may stand there, in words."""
    words = [_one(each) for each in _alternatives(kind)]
    return "must be " + " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


_WORDS: dict[Any, str] = {
    Duration: 'a duration such as "30s" or "24h"',
    Limit: 'a duration such as "3d", or "" for none',
    Size: 'a size such as "32KiB" or "4GiB"',
    Secret: "a text in quotes",
    bool: "true or false",
    str: "a text in quotes",
    int: "a whole number",
    float: "a number",
}


def _one(kind: Any) -> str:
    bare, *extras = get_args(kind) if get_origin(kind) is Annotated else (kind,)
    if get_origin(bare) is Literal:
        return "one of " + ", ".join(repr(choice) for choice in get_args(bare))
    if get_origin(bare) is list:
        inner = get_args(bare)[0]
        return "a list of texts" if inner is str else "a list of tables, each under its own [[…]] header"
    if get_origin(bare) is dict or _is_table(bare):
        return "a table"
    return _WORDS[bare] + "".join(_bounds(meta) for meta in extras if isinstance(meta, msgspec.Meta))


def _bounds(meta: msgspec.Meta) -> str:
    said = (("above", meta.gt), ("from", meta.ge), ("below", meta.lt), ("up to", meta.le))
    return "".join(f" {word} {bound}" for word, bound in said if bound is not None)
