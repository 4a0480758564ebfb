"""Load the configuration. Precedence, highest first: command line, environment, file, default.

Theory
------
The file is parsed as TOML into plain dictionaries. Environment variables overwrite its scalars. The result is converted
strictly into ``schema.Config``. An error is one sentence (``error_messages``) that begins with the file and line
(``toml_positions``), or with the name of the variable that set the value.

The variable of a scalar is ``PX_SIDECAR_<SECTION>_<KEY>``. Variables with the prefix whose section is unknown are
ignored, and so are those that Kubernetes sets by itself: ``PX_SIDECAR_SERVICE_HOST`` and ``PX_SIDECAR_PORT…`` for a service
named px-sidecar, ``PX_SIDECAR_OUTBOX_SERVICE_HOST`` for one named px-sidecar-outbox (https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables).
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, get_args, get_origin

import msgspec

from sidecar.config.error_messages import field_type, nearest
from sidecar.config.problems import ConfigProblem, ConfigProblems, convert_all, parse_toml
from sidecar.config.schema import AT_RESTART, Config, Table
from sidecar.config.text_file import read_text
from sidecar.config.toml_positions import line_of
from sidecar.errors import ConfigError

__all__ = [
    "ConfigFile",
    "config_path",
    "control_sockets",
    "examine",
    "is_reloadable",
    "load",
    "load_text",
    "reloaded",
    "user_folder",
    "user_path",
]

DEFAULT_PATH = "/etc/px-sidecar/config.toml"
STATE_FOLDER = "/var/lib/px-sidecar"
PREFIX = "PX_SIDECAR_"

# NAME_SERVICE_HOST, NAME_SERVICE_PORT[_PORTNAME], NAME_PORT, NAME_PORT_80_TCP[_PROTO|_PORT|_ADDR] of each service.
_OF_KUBERNETES = re.compile(r"_SERVICE_(HOST|PORT(_.*)?)$|_PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?$")

_INSTANCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")
_SOCKET_LINE = re.compile(
    r"""^[ \t]*(?:listen\s*\.\s*)?(control|control_read)[ \t]*=[ \t]*["']([^"'\n]*)["']""", re.MULTILINE
)
_SOCKETS = {"unix": "events", "control": "control"}


def config_path(flag: str | None, environ: Mapping[str, str] = os.environ, instance: str = "") -> tuple[Path, bool]:
    """Return the path of the configuration file, and whether it was named explicitly and therefore must exist.

    Raises ConfigError if ``instance`` cannot be a part of a file's name.
    """
    if instance and not _INSTANCE.fullmatch(instance):
        raise ConfigError(
            f"The instance name {instance!r} is not valid; use at most 32 letters, digits, dots, dashes and "
            "underscores, and begin with a letter or digit."
        )
    if named := flag or environ.get(f"{PREFIX}CONFIG"):
        return Path(named), True
    own = None if instance else user_path(environ)
    if own is not None and own.exists():
        return own, True
    return (Path(DEFAULT_PATH).with_name(f"{instance}.toml"), True) if instance else (Path(DEFAULT_PATH), False)


def user_path(environ: Mapping[str, str] = os.environ) -> Path | None:
    """Return the path of a user's own configuration file; None for root, and where the host has a configuration.

    XDG Base Directory Specification: https://specifications.freedesktop.org/basedir-spec/latest/.
    """
    if os.geteuid() == 0 or os.path.exists(DEFAULT_PATH):
        return None
    folder = user_folder(environ, "XDG_CONFIG_HOME", ".config")
    return None if folder is None else folder / "config.toml"


def user_folder(environ: Mapping[str, str], variable: str, below_home: str) -> Path | None:
    """Return px-sidecar's folder below an XDG base directory. The specification ignores relative paths in variables."""
    base, home = environ.get(variable, ""), environ.get("HOME", "")
    if os.path.isabs(base):
        return Path(base, "px-sidecar")
    return Path(home, below_home, "px-sidecar") if os.path.isabs(home) else None


class ConfigFile:
    """The configuration file of one daemon, with the environment and instance that complete it."""

    def __init__(self, flag: str | None = None, environ: Mapping[str, str] = os.environ, instance: str = "") -> None:
        self.path = config_path(flag, environ, instance)[0]
        self._flag = flag
        self.environ = environ
        self.instance = instance

    def load(self) -> Config:
        """Return the effective configuration. Raises ConfigError."""
        return load(self._flag, self.environ, self.instance)

    def examine(self) -> tuple[Config | None, list[ConfigProblem]]:
        """Return the configuration without its invalid settings, and all problems. Raises ConfigError if there is no text."""
        return examine(self._flag, self.environ, self.instance)

    def parse(self, text: str) -> Config:
        """Return what the configuration would be if the file held ``text``. Raises ConfigError."""
        return _parsed(text, str(self.path), self.environ, self.instance)

    def region_warning(self, config: Config) -> str | None:
        """Return a warning if neither file nor environment names the region, so that its default decides where events go."""
        if config.px.base_url:
            return None
        path, named = config_path(self._flag, self.environ, self.instance)
        tree, _, _ = parse_toml(_read(path, named=named), str(path))
        tree = tree or {}
        _add_variables(tree, self.environ)
        if "region" in tree.get("px", {}):
            return None
        return (
            f"px.region is not set, and {config.px.region} is used; PX knows a key in its own region alone. Write "
            f'region = "{config.px.region}" below [px], or "eu" or "us2".'
        )

    def variables(self) -> dict[str, str]:
        """Return the variable of each key that one sets, and that the file therefore cannot set: names, never values."""
        return {".".join(map(str, key)): name for key, name in _add_variables({}, self.environ)[0].items()}


def load(flag: str | None = None, environ: Mapping[str, str] = os.environ, instance: str = "") -> Config:
    """Return the effective configuration, with ``outbox.path`` resolved. Raises ConfigError.

    ``instance`` names one of several daemons on this host (``--instance NAME``, ``px-sidecar@NAME.service``). An
    instance has its own file, sockets and outbox, and listens on HTTP only if its file sets ``listen.http``.
    A missing file is an error only if it was named: by ``--config``, ``$PX_SIDECAR_CONFIG`` or an instance. Otherwise
    the defaults and the environment apply.
    """
    path, named = config_path(flag, environ, instance)
    return _parsed(_read(path, named=named), str(path), environ, instance)


def examine(
    flag: str | None = None, environ: Mapping[str, str] = os.environ, instance: str = ""
) -> tuple[Config | None, list[ConfigProblem]]:
    """Return the configuration without its invalid settings, and all problems; None for it if too much is invalid.

    The configuration serves to look for more problems, and not to run with. Raises ConfigError if there is no text.
    """
    path, named = config_path(flag, environ, instance)
    config, problems = _examined(_read(path, named=named), environ, str(path), _listen_defaults(instance))
    return config and _with_outbox(config, environ, instance), problems


def control_sockets(
    flag: str | None = None, environ: Mapping[str, str] = os.environ, instance: str = ""
) -> tuple[str, str] | None:
    """Return ``listen.control`` and ``control_read`` of a file that cannot be loaded; None if they cannot be found out.

    A daemon that runs with an older state of the file listens there.
    """
    path, named = config_path(flag, environ, instance)
    try:
        text = _read(path, named=named)
    except ConfigError:
        return None
    config, problems = _examined(text, environ, str(path), _listen_defaults(instance))
    if config is not None and not any(problem.path[:1] == ("listen",) for problem in problems):
        return config.listen.control, config.listen.control_read
    # Too much is wrong to parse the rest: search for the lines of the settings themselves.
    found = dict(_SOCKET_LINE.findall(text))
    return (found["control"], found.get("control_read", "")) if "control" in found else None


def _read(path: Path, *, named: bool) -> str:
    try:
        return read_text("The configuration file", path)
    except FileNotFoundError:
        if not named:
            return ""
        raise ConfigError(f"The configuration file {path} does not exist; create it with `px-sidecar init`.") from None


def _parsed(text: str, name: str, environ: Mapping[str, str], instance: str) -> Config:
    return _with_outbox(load_text(text, environ, name, _listen_defaults(instance)), environ, instance)


def _with_outbox(config: Config, environ: Mapping[str, str], instance: str) -> Config:
    # The path depends on environment and instance, so it cannot be a default of the schema.
    outbox = msgspec.structs.replace(config.outbox, path=config.outbox.path or _default_outbox(environ, instance))
    return msgspec.structs.replace(config, outbox=outbox)


def _listen_defaults(instance: str) -> dict[str, str]:
    """Defaults of ``[listen]`` for an instance: the usual ones are taken by the daemon without an instance name."""
    if not instance:
        return {}
    return {"http": ""} | {key: f"/run/px-sidecar/{name}-{instance}.sock" for key, name in _SOCKETS.items()}


def _default_outbox(environ: Mapping[str, str], instance: str) -> str:
    """Return the outbox path in the first directory of ``$STATE_DIRECTORY`` (systemd.exec(5)), else in /var/lib."""
    folder = environ.get("STATE_DIRECTORY", "").split(":")[0] or str(Path(STATE_FOLDER, instance))
    return str(Path(folder, "outbox.db"))


def load_text(
    text: str,
    environ: Mapping[str, str] | None = None,
    name: str = "the configuration",
    listen_defaults: Mapping[str, str] = MappingProxyType({}),
) -> Config:
    """Return the configuration of a TOML text, overridden by the variables of ``environ``. Raises ConfigProblems.

    Each error message begins with ``name``. ``listen_defaults`` replace the defaults of ``[listen]``.
    """
    config, problems = _examined(text, environ or {}, name, listen_defaults)
    if problems or config is None:
        raise ConfigProblems(problems)
    return config


def _examined(
    text: str, environ: Mapping[str, str], name: str, listen_defaults: Mapping[str, str]
) -> tuple[Config | None, list[ConfigProblem]]:
    """Return the configuration without what is wrong, if that is possible, and all problems in the order of the file."""
    tree, text, problems = parse_toml(text, name)
    if tree is None:
        return None, problems
    # Defaults of an instance go below the file's own values, and below the variables that are added next.
    if listen_defaults and isinstance(tree.setdefault("listen", {}), dict):
        tree["listen"] = {**listen_defaults, **tree["listen"]}
    variables, wrong = _add_variables(tree, environ)
    config, refused = convert_all(tree)
    for path, sentence in refused:
        # A variable sets a key of a table, or of a table in it.
        variable = variables.get(tuple(path[:2])) or variables.get(tuple(path[:3]))
        number = None if variable else line_of(path, text)
        origin = f"The variable {variable}" if variable else f"{name} line {number}" if number else name
        problems.append(ConfigProblem(f"{origin}: {sentence}.", number, tuple(path)))
    problems.sort(key=lambda problem: problem.line or 0)
    return config, wrong + problems


def _add_variables(
    tree: dict[str, Any], environ: Mapping[str, str]
) -> tuple[dict[tuple[str | int, ...], str], list[ConfigProblem]]:
    """Set the keys that variables set. Return the variable of each key that has one, and what is wrong with variables."""
    variables: dict[tuple[str | int, ...], str] = {}
    problems = []
    for variable, value in sorted(environ.items()):
        try:
            setting = _setting(variable)
            if setting is None:
                continue
            *tables, key = setting
            kind: Any = Config
            for name in tables:
                kind = field_type(kind, name)
            scalar = _scalar(field_type(kind, key), value, variable)
        except ConfigError as error:
            problems.append(ConfigProblem(str(error), None))
            continue
        table: Any = tree
        for name in tables:
            table = table.setdefault(name, {}) if isinstance(table, dict) else None
        if isinstance(table, dict):  # else the file has a scalar where a table belongs, which the conversion reports
            table[key] = scalar
            variables[setting] = variable
    return variables, problems


def _setting(variable: str) -> tuple[str, ...] | None:
    """Return the key that a variable sets, with the tables that it is in; None for a foreign variable.

    Raises ConfigError for a known section with an unknown key: that is a misspelled setting, not a foreign variable.
    """
    if not variable.startswith(PREFIX) or variable == f"{PREFIX}CONFIG" or _OF_KUBERNETES.search(variable):
        return None
    section, _, key = variable[len(PREFIX) :].lower().partition("_")
    kind = field_type(Config, section)
    # An unknown section, such as SERVICE of Kubernetes, or [[source]], which is a list.
    if not _is_table(kind):
        return None
    if key in kind.__struct_fields__:
        return section, key
    known = kind.__struct_fields__
    for name in known:  # [mapping.attributes], [mapping.traits]
        inner, (before, _, inner_key) = field_type(kind, name), key.partition(f"{name}_")
        if _is_table(inner) and not before and inner_key:
            if inner_key in inner.__struct_fields__:
                return section, name, inner_key
            key, known = inner_key, inner.__struct_fields__
            break
    raise ConfigError(f"The variable {variable} does not name a setting{nearest(key, known)}; rename or unset it.")


def _is_table(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Table)


def _scalar(kind: Any, value: str, variable: str) -> Any:
    """Return the variable's text as the TOML type of the key; other types than bool and numbers stay text."""
    kind = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    try:
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[value.lower()]
        if kind in (int, float):
            return kind(value.replace("_", ""))
    except (KeyError, ValueError):
        allowed = "true or false" if kind is bool else "an integer" if kind is int else "a number"
        raise ConfigError(f"The variable {variable} is {value!r}, but must be {allowed}.") from None
    if get_origin(kind) in (dict, list) or _is_table(kind):
        raise ConfigError(f"The variable {variable} names a table or list; set that key in the file instead.")
    return value


def reloaded(running: Config, read: Config) -> tuple[Config, list[str]]:
    """Return the configuration in force after a reload, and the changed keys that wait for a restart.

    ``running`` is in force now, ``read`` is the new file. Keys that are marked ``schema.AT_RESTART`` keep the running
    value (sidecar/config/README.md#reload).
    """
    waiting: list[str] = []
    tables: dict[str, Any] = {}
    for name in Config.__struct_fields__:
        old, new = getattr(running, name), getattr(read, name)
        if isinstance(new, Table):
            kept = {key: getattr(old, key) for key in new.__struct_fields__ if not is_reloadable(type(new), key)}
            waiting += [f"{name}.{key}" for key, value in kept.items() if getattr(new, key) != value]
            new = msgspec.structs.replace(new, **kept)
        tables[name] = new
    if read.fleet.url and not running.fleet.url and read.deliver.hosts != running.deliver.hosts:
        # ``hosts`` became 1 because the fleet divides the limits. It waits for a restart: until then this host sends its part.
        tables["deliver"] = msgspec.structs.replace(tables["deliver"], hosts=running.deliver.hosts)
        waiting.append("deliver.hosts")
    return Config(**tables), waiting


def is_reloadable(table: type[Table], key: str) -> bool:
    """Return whether a reload applies a change of this key; otherwise it waits for a restart."""
    kind = field_type(table, key)
    return not (get_origin(kind) is Annotated and AT_RESTART in get_args(kind)[1:])
