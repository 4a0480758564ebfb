"""Reading the configuration: flag, environment, file, default, in this order of precedence.

Theory
------
The file is parsed as TOML into plain dictionaries; variables and flags are laid over it; the result is converted
strictly into ``schema.Config``. What msgspec refuses is told in one sentence (``wording``) that begins with the file
and line (``lines``), or with the variable if the value came from one.

A scalar's variable is ``PX_SIDECAR_<SECTION>_<KEY>``. Variables with the prefix but without a known section are left
alone: orchestrators set some of their own (Kubernetes sets ``PX_SIDECAR_SERVICE_HOST`` for a service of that name).
"""

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, get_args, get_origin

import msgspec

from sidecar.config.lines import line_of
from sidecar.config.schema import Config, Table, decode_text_type
from sidecar.config.wording import complaint, field_type, nearest
from sidecar.errors import ConfigError

__all__ = ["config_path", "load", "load_text"]

DEFAULT_PATH = "/etc/px-sidecar/config.toml"
STATE_FOLDER = "/var/lib/px-sidecar"
PREFIX = "PX_SIDECAR_"

_INSTANCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")
_SOCKETS = {"unix": "events", "control": "control"}


def config_path(flag: str | None, environ: Mapping[str, str] = os.environ, instance: str = "") -> tuple[Path, bool]:
    """The path of the configuration file, and whether somebody asked for it (then it must exist)."""
    if asked := flag or environ.get(f"{PREFIX}CONFIG"):
        return Path(asked), True
    return (Path(DEFAULT_PATH).with_name(f"{instance}.toml"), True) if instance else (Path(DEFAULT_PATH), False)


def load(flag: str | None = None, environ: Mapping[str, str] = os.environ, instance: str = "") -> Config:
    """The effective configuration, with ``outbox.path`` filled in.

    ``instance`` is one of several daemons on this host (``--instance NAME``, ``px-sidecar@NAME.service``): it has a
    file, sockets and an outbox of its own, and no HTTP address unless its file gives one. A missing file is an error
    only if it was asked for, by ``--config``, ``$PX_SIDECAR_CONFIG`` or an instance; without one the defaults and the
    environment apply. Raises ConfigError.
    """
    if instance and not _INSTANCE.fullmatch(instance):
        raise ConfigError(
            f"The instance {instance!r} has no fitting name; use letters, digits, dots, dashes and underscores."
        )
    path, asked = config_path(flag, environ, instance)
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
    config = load_text(text, environ, str(path), _listen_defaults(instance))
    outbox = msgspec.structs.replace(config.outbox, path=config.outbox.path or _default_outbox(environ, instance))
    return msgspec.structs.replace(config, outbox=outbox)


def _listen_defaults(instance: str) -> dict[str, str]:
    """What an instance has in place of the defaults of ``[listen]``, which one daemon of a host can have."""
    if not instance:
        return {}
    return {"http": ""} | {key: f"/run/px-sidecar/{name}-{instance}.sock" for key, name in _SOCKETS.items()}


def _default_outbox(environ: Mapping[str, str], instance: str) -> str:
    """In ``$STATE_DIRECTORY`` if systemd gives one (the first, if it gives several)."""
    folder = environ.get("STATE_DIRECTORY", "").split(":")[0] or str(Path(STATE_FOLDER, instance))
    return str(Path(folder, "outbox.db"))


def load_text(
    text: str,
    environ: Mapping[str, str] | None = None,
    name: str = "the configuration",
    listen_defaults: Mapping[str, str] = MappingProxyType({}),
) -> Config:
    """The configuration in ``text`` (TOML) with the variables of ``environ`` over it. Raises ConfigError.

    ``name`` begins each message; ``listen_defaults`` stand in for those of ``[listen]``.
    """
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{name} is not valid TOML ({error}); correct that place.") from None
    if listen_defaults and isinstance(tree.setdefault("listen", {}), dict):
        tree["listen"] = {**listen_defaults, **tree["listen"]}
    variables: dict[tuple[str | int, ...], str] = {}
    for section, key, value, variable in _variables(environ or {}):
        table = tree.setdefault(section, {})
        if isinstance(table, dict):
            table[key] = _scalar(field_type(field_type(Config, section), key), value, variable)
            variables[section, key] = variable
    try:
        return msgspec.convert(tree, Config, dec_hook=decode_text_type)
    except msgspec.ValidationError as error:
        said = complaint(error, tree, Config)
        if variable_name := variables.get(tuple(said.path[:2])):
            place = f"The variable {variable_name}"
        else:
            number = line_of(said.path, text)
            place = f"{name} line {number}" if number else name
        raise ConfigError(f"{place}: {said.sentence}.") from None


def _variables(environ: Mapping[str, str]) -> list[tuple[str, str, str, str]]:
    """Section, key, value and name of each variable that is ours; a known section with an unknown key is an error."""
    found = []
    for variable, value in sorted(environ.items()):
        if not variable.startswith(PREFIX) or variable == f"{PREFIX}CONFIG":
            continue
        section, _, key = variable[len(PREFIX) :].lower().partition("_")
        kind = field_type(Config, section)
        if not (isinstance(kind, type) and issubclass(kind, Table)):
            continue
        if key not in kind.__struct_fields__:
            raise ConfigError(
                f"The variable {variable} names no setting{nearest(key, kind.__struct_fields__)}; rename or unset it."
            )
        found.append((section, key, value, variable))
    return found


def _scalar(kind: Any, value: str, variable: str) -> Any:
    """The variable's text as the type that the file would have given."""
    kind = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    try:
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[value.lower()]
        if kind in (int, float):
            return kind(value.replace("_", ""))
    except (KeyError, ValueError):
        allowed = "true or false" if kind is bool else "a number"
        raise ConfigError(f"The variable {variable} is {value!r}, but must be {allowed}.") from None
    if get_origin(kind) in (dict, list) or (isinstance(kind, type) and issubclass(kind, Table)):
        raise ConfigError(f"The variable {variable} names a table or list; set it in the file instead.")
    return value
