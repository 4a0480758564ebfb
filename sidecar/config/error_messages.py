"""Turn a validation error into one sentence: which key, its value, and what is allowed.

Theory
------
msgspec reports what it refused in English, with a path like ``$.mapping.event[...].priority`` that omits the keys of
dictionaries. The shape comes from that path. The key of a dictionary entry is found by converting the entries one by
one until one is refused. What is allowed is derived from the type in ``schema``, so that messages cannot contradict it.

A value is quoted unless its type is ``Secret`` or it contains other values. User names and passwords in URLs are
masked.
"""

import re
from collections.abc import Iterable
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

from sidecar.config.schema import Duration, Limit, Secret, Size, Table, UnknownName, ValueRefused, decode_text_type
from sidecar.config.toml_positions import Path

__all__ = ["ErrorDescription", "allowed_words", "describe", "dotted", "field_type", "mask_userinfo", "nearest"]

MAX_QUOTED_CHARS = 60


class ErrorDescription(msgspec.Struct, frozen=True):
    """A sentence without its full stop, and the path of the setting; the caller adds the file and the line.

    ``meant`` is the path of the known key that an unknown one is nearest to.
    """

    path: Path
    sentence: str
    meant: Path | None = None


def describe(error: msgspec.ValidationError, tree: dict[str, Any], root: type[Table]) -> ErrorDescription:
    """Describe msgspec's error about ``tree``, which was to be converted to ``root``."""
    reason, _, location = str(error).partition(" - at `$")
    path = _resolve(re.findall(r"\.(\w+)|\[(\d+|\.\.\.)\]", location), tree, root)
    if isinstance(error.__cause__, UnknownName):
        path = [*path, *error.__cause__.path]
        return _unknown_key(path[:-1], str(path[-1]), error.__cause__.known)
    if isinstance(error.__cause__, ValueRefused):
        return _wrong_value([*path, error.__cause__.key], tree, root, error.__cause__.allowed)
    if match := re.fullmatch(r"Object contains unknown field `(.*)`", reason, re.DOTALL):
        return _unknown_key(path, match[1], _fields(type_at(path, root)))
    if match := re.fullmatch(r"Object missing required field `(.*)`", reason, re.DOTALL):
        return ErrorDescription([*path, match[1]], f"{dotted([*path, match[1]])} is missing; add it")
    return _wrong_value(path, tree, root, allowed_words(type_at(path, root)))


def _resolve(steps: Iterable[tuple[str, str]], tree: Any, root: type[Table]) -> list[str | int]:
    """Return msgspec's path with ``[...]`` replaced by the key of the refused dictionary entry."""
    path: list[str | int] = []
    for name, index in steps:
        step: str | int = name or index
        if index == "...":
            entry_type = _inner(type_at(path, root), "")
            # msgspec stops at the first refused entry, and dictionaries keep the order of the file: this is that one.
            step = next(key for key, value in value_at(tree, path).items() if _is_refused(value, entry_type))
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


def _wrong_value(path: Path, tree: Any, root: type[Table], allowed: str) -> ErrorDescription:
    value = value_at(tree, path)
    kind = type_at(path, root)
    if value is None or _bare(kind) is Secret or any(_is_table(choice) for choice in _alternatives(kind)):
        shown = ""  # not in the file, or a secret, or a string in place of a table, which may be a misplaced secret
    elif isinstance(value, dict):
        shown = "is a table, but "
    elif isinstance(value, list):
        shown = "is a list, but "
    else:
        text = mask_userinfo(_literal(value))
        shown = f"is {text[:MAX_QUOTED_CHARS]}{'…' if len(text) > MAX_QUOTED_CHARS else ''}, but "
    return ErrorDescription(path, f"{dotted(path)} {shown}{allowed}{_other_spelling(value, kind)}")


def _other_spelling(value: Any, kind: Any) -> str:
    """Return ``; write 'eu'`` for a choice that differs in capitals or blanks alone, as in ``EU``."""
    choices = [
        choice for member in _alternatives(_bare(kind)) for choice in get_args(member) if isinstance(choice, str)
    ]
    near = [choice for choice in choices if isinstance(value, str) and value.strip().lower() == choice.lower()]
    return f"; write {near[0]!r}" if near else ""


def _literal(value: Any) -> str:
    """The value as it is written in TOML."""
    return str(value).lower() if isinstance(value, bool) else repr(value) if isinstance(value, str) else str(value)


def _unknown_key(path: Path, key: str, known: Iterable[str]) -> ErrorDescription:
    table = f"[{dotted(path)}]" if path and not isinstance(path[-1], int) else dotted(path) or "the file"
    known = list(known)
    near = _nearest_key(key, known)
    sentence = f"{table} has an unknown key {key!r}{nearest(key, known)}"
    return ErrorDescription([*path, key], sentence, None if near is None else [*path, near])


def nearest(key: str, known: Iterable[str]) -> str:
    """Return ``; the nearest known key is 'x'``, or the list of known keys if none is similar."""
    names = list(known)
    near = _nearest_key(key, names)
    return f"; known keys are {', '.join(names)}" if near is None else f"; the nearest known key is {near!r}"


def _nearest_key(key: str, known: Iterable[str]) -> str | None:
    folded = {name.lower(): name for name in known}
    from difflib import get_close_matches  # here: only an error needs it

    close = get_close_matches(key.lower(), folded, 1, 0.5)
    return folded[close[0]] if close else None


def dotted(path: Path) -> str:
    """The path in TOML notation: ``mapping.event."Plan Changed".priority``, ``write_key of [[source]] number 2``."""
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
    """Return the text with ``user:password@`` in URLs replaced by ``****@``.

    Up to the last ``@`` of a line: a password that is not percent-encoded may hold any character, and another ``@``.
    """
    return re.sub(r"//[^\n]+@", "//****@", text)


def value_at(tree: Any, path: Path) -> Any:
    """Return the value at ``path``, or None if there is none."""
    for part in path:
        if isinstance(tree, dict):
            tree = tree.get(part)
        elif isinstance(tree, list) and isinstance(part, int):
            tree = tree[part]
        else:
            return None
    return tree


def type_at(path: Path, root: Any) -> Any:
    """Return the annotated type of the setting at ``path``."""
    for part in path:
        root = _inner(root, part)
    return root


def field_type(table: type[Table], key: str) -> Any:
    """Return the annotated type of a field, or None if the table does not have it."""
    return get_type_hints(table, include_extras=True).get(key)


def _inner(kind: Any, step: str | int) -> Any:
    """Return the type of the item that ``step`` selects from a value of type ``kind``."""
    for choice in _alternatives(kind):
        if _is_table(choice) and isinstance(step, str):
            return field_type(choice, step)
        if get_origin(choice) is (list if isinstance(step, int) else dict):
            return get_args(choice)[-1]
    return Any


def _bare(kind: Any) -> Any:
    """The type without its annotations."""
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def _is_table(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Table)


def _fields(kind: Any) -> tuple[str, ...]:
    """The keys of the table among the alternatives of ``kind``; empty if there is none."""
    return next((choice.__struct_fields__ for choice in _alternatives(kind) if _is_table(choice)), ())


def _alternatives(kind: Any) -> list[Any]:
    """The members of a union without None; any other type as the only member."""
    if get_origin(kind) in (Union, UnionType):
        return [choice for choice in get_args(kind) if choice is not NoneType]
    return [kind]


def allowed_words(kind: Any) -> str:
    """``must be …``: the allowed values of a type in words."""
    words = [_type_words(choice) for choice in _alternatives(kind)]
    return "must be " + " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


_WORDS: dict[Any, str] = {
    Duration: 'a duration such as "30s" or "24h"',
    Limit: 'a duration such as "3d", or "" for no limit',
    Size: 'a size such as "32KiB" or "4GiB"',
    Secret: "a quoted string",
    bool: "true or false",
    str: "a quoted string",
    int: "an integer",
    float: "a number",
}


def _type_words(kind: Any) -> str:
    bare, *extras = get_args(kind) if get_origin(kind) is Annotated else (kind,)
    if get_origin(bare) is Literal:
        return "one of " + ", ".join(repr(choice) for choice in get_args(bare))
    if get_origin(bare) is list:
        item = get_args(bare)[0]
        return "a list of strings" if item is str else "a list of tables, each under its own [[…]] header"
    if get_origin(bare) is dict or _is_table(bare):
        return "a table"
    return _WORDS[bare] + "".join(_bounds(meta) for meta in extras if isinstance(meta, msgspec.Meta))


def _bounds(meta: msgspec.Meta) -> str:
    bounds = (("above", meta.gt), ("of at least", meta.ge), ("below", meta.lt), ("at most", meta.le))
    words = " and ".join(f"{word} {bound}" for word, bound in bounds if bound is not None)
    return f" {words}" if words else ""
