"""Reading the configuration: flag, environment, file, default, in this order of precedence.

Theory
------
The file is parsed as TOML into plain dictionaries; variables and flags are laid over it; the result is converted
strictly into ``schema.Config``. What msgspec refuses is reworded into one sentence that names the key, the value, what
is allowed and, where it can be found, the line of the file.

A scalar's variable is ``PX_SIDECAR_<SECTION>_<KEY>``. Variables with the prefix but without a known section are left
alone: orchestrators set some of their own (Kubernetes sets ``PX_SIDECAR_SERVICE_HOST`` for a service of that name).
"""

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from sidecar.config.schema import Config, Duration, Limit, Secret, Size, Table, decode_text_type
from sidecar.errors import ConfigError

__all__ = ["config_path", "load", "load_text"]

DEFAULT_PATH = "/etc/px-sidecar/config.toml"
PREFIX = "PX_SIDECAR_"


def config_path(flag: str | None, environ: Mapping[str, str] = os.environ) -> tuple[Path, bool]:
    """The path of the configuration file, and whether somebody asked for it (then it must exist)."""
    asked = flag or environ.get(f"{PREFIX}CONFIG")
    return Path(asked or DEFAULT_PATH), bool(asked)


def load(flag: str | None = None, environ: Mapping[str, str] = os.environ) -> Config:
    """The effective configuration.

    A missing file is an error only if it was asked for by ``--config`` or ``$PX_SIDECAR_CONFIG``; without one the
    defaults and the environment apply. Raises ConfigError.
    """
    path, asked = config_path(flag, environ)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        if asked:
            raise ConfigError(
                f"The configuration file {path} does not exist; create it with `px-sidecar init`."
            ) from None
        text = ""
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(
            f"The configuration file {path} cannot be read ({reason}); check its owner and mode."
        ) from None
    return load_text(text, environ, str(path))


def load_text(text: str, environ: Mapping[str, str] | None = None, name: str = "the configuration") -> Config:
    """The configuration in ``text`` (TOML) with the variables of ``environ`` over it. Raises ConfigError."""
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{name} is not valid TOML: {error}; correct that line.") from None
    for section, key, value, variable in _variables(environ or {}):
        table = tree.setdefault(section, {})
        if isinstance(table, dict):
            table[key] = _scalar(_field_type(section, key), value, variable)
    try:
        return msgspec.convert(tree, Config, dec_hook=decode_text_type)
    except msgspec.ValidationError as error:
        raise ConfigError(_reword(str(error), tree, text, name)) from None


def _variables(environ: Mapping[str, str]) -> list[tuple[str, str, str, str]]:
    """Section, key, value and name of each variable that is ours; a known section with an unknown key is an error."""
    found = []
    for variable, value in sorted(environ.items()):
        if not variable.startswith(PREFIX) or variable == f"{PREFIX}CONFIG":
            continue
        section, _, key = variable[len(PREFIX) :].lower().partition("_")
        kind = _field_type("", section)
        if not (isinstance(kind, type) and issubclass(kind, Table)):
            continue
        if key not in kind.__struct_fields__:
            raise ConfigError(
                f"The variable {variable} names no setting{_nearest(key, kind.__struct_fields__)}; rename or unset it."
            )
        found.append((section, key, value, variable))
    return found


def _field_type(section: str, key: str) -> Any:
    """The annotated type of a key, without ``Annotated``; None for an unknown one."""
    owner: Any = get_type_hints(Config).get(section) if section else Config
    kind = get_type_hints(owner, include_extras=True).get(key)
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def _scalar(kind: Any, value: str, variable: str) -> Any:
    """The variable's text as the type that the file would have given."""
    try:
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[value.lower()]
        if kind in (int, float):
            return kind(value.replace("_", ""))
    except (KeyError, ValueError):
        allowed = "true or false" if kind is bool else "a number"
        raise ConfigError(f"The variable {variable} is {value!r}, but must be {allowed}.") from None
    if get_origin(kind) in (dict, list):
        raise ConfigError(f"The variable {variable} names a table or list; set it in the file instead.")
    return value


def _reword(message: str, tree: dict[str, Any], text: str, name: str) -> str:
    """One sentence from msgspec's message, which ends in `` - at `$.section.key` `` when it knows the place."""
    what, _, place = message.partition(" - at `$")
    path = [part for part in re.split(r"[.\[\]]+", place.rstrip("`")) if part]
    if match := re.fullmatch(r"Object contains unknown field `(.*)`", what):
        return _unknown_key(match[1], path, text, name)
    if match := re.fullmatch(r"Object missing required field `(.*)`", what):
        return f"{name}: {_dotted([*path, match[1]])} is missing; add it."
    key, _, rest = what.partition(": ")
    if rest and re.fullmatch(r"\w+", key):  # our own __post_init__ messages name their key first
        path, what = [*path, key], rest
    value = _value_at(tree, path)
    shown = (
        "" if value is _NOTHING or isinstance(_type_at(path), type) and _type_at(path) is Secret else f" is {value!r}"
    )
    return f"{name}{_line_of(path, text)}: {_dotted(path)}{shown}, but {_allowed(_type_at(path), what)}."


def _unknown_key(key: str, path: list[str], text: str, name: str) -> str:
    known = getattr(_type_at(path), "__struct_fields__", ())
    where = f"table [{_dotted(path)}]" if path else "file"
    nearest = _nearest(key, known) or f"; known are {', '.join(known)}"
    return f"{name}{_line_of([*path, key], text)}: the {where} has an unknown key {key!r}{nearest}."


def _nearest(key: str, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(key, known, 1, 0.5)
    return f"; the nearest known one is {close[0]!r}" if close else ""


def _dotted(path: list[str]) -> str:
    return ".".join(path).replace("...", "*") or "the file"


_NOTHING = object()


def _value_at(tree: Any, path: list[str]) -> Any:
    for part in path:
        try:
            tree = tree[int(part)] if isinstance(tree, list) else tree[part]
        except (KeyError, TypeError, ValueError, IndexError):
            return _NOTHING
    return tree


def _type_at(path: list[str]) -> Any:
    """The type of the field at ``path``; Any where the schema has no single answer."""
    kind: Any = Config
    for part in path:
        hints = get_type_hints(kind, include_extras=True) if isinstance(kind, type) and issubclass(kind, Table) else {}
        if hints:
            kind = hints.get(part, Any)
        elif get_origin(kind) in (list, dict):
            kind = get_args(kind)[-1]
        if isinstance(kind, UnionType):
            tables = [one for one in get_args(kind) if isinstance(one, type) and issubclass(one, Table)]
            kind = tables[0] if tables else kind
    return kind


def _allowed(kind: Any, what: str) -> str:
    """What may stand there, in words; msgspec's own where the type says no more."""
    bare = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    if get_origin(bare) is Literal:
        return "must be one of " + ", ".join(repr(choice) for choice in get_args(bare))
    words: dict[Any, str] = {
        Duration: 'must be a duration such as "30s" or "24h"',
        Limit: 'must be a duration such as "3d", or "" for none',
        Size: 'must be a size such as "32KiB" or "4GiB"',
        Secret: "must be a text",
        bool: "must be true or false",
        str: "must be a text",
    }
    if bare in words and what.startswith("Expected"):
        return words[bare]
    match = re.fullmatch(r"Expected `(?:int|float)`(?: (.*))?", what.split(", got")[0])
    if match:
        return f"must be a number {match[1] or ''}".rstrip()
    return what[:1].lower() + what[1:] if what.startswith("Expected") else what


def _line_of(path: list[str], text: str) -> str:
    """`` line N`` where the key stands in the file, if that can be told by looking for it in its table."""
    if not path:
        return ""
    section = ".".join(part for part in path[:-1] if not part.isdigit() and part != "...")
    here = ""
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[+\s*([^\]]+?)\s*\]+", line):
            here = header[1].replace('"', "")
            if f"{section}.{path[-1]}".lstrip(".") == here:
                return f" line {number}"
        elif here == section and re.match(rf"\s*[\"']?{re.escape(path[-1])}[\"']?\s*=", line):
            return f" line {number}"
    return ""
