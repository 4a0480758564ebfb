"""``px-sidecar config``: print the effective configuration, its schema, and files for Grafana and Prometheus."""

import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from sidecar.cli.backend import connect_daemon, control_option
from sidecar.cli.common import global_option, hint, json_option, load_config, print_document, print_json
from sidecar.config import Config, as_toml, config_path, effective, json_schema
from sidecar.config.error_messages import nearest
from sidecar.config.file import PREFIX
from sidecar.config.reference import as_listed, key_references, reference_markdown, reference_text
from sidecar.config.text_file import decode_text
from sidecar.config.toml_positions import line_of
from sidecar.control.client import DaemonUnreachable
from sidecar.errors import ConfigError, Failed, NotRunning
from sidecar.observe.boards import alert_rules, alert_rules_yaml, dashboard, log_schema

__all__ = ["config"]


@click.group("config")
def config() -> None:
    """Print the effective configuration, its schema, and monitoring files.

    \b
    Example:
      px-sidecar config show
    """


@config.command("show")
@click.option("--file", "from_file", is_flag=True, help="Print what the file says, even while a daemon runs.")
@control_option
@json_option
def show(from_file: bool, control_flag: str | None, config_flag: str | None, as_json: bool) -> None:
    """Print the configuration in force, with secrets masked.

    It is that of the running daemon; without one, or with --file, what file,
    environment and defaults give. The output is a valid configuration file. A
    setting that is not a default is followed by its source, or by what the
    file says where a reload or a restart has not taken it yet; with --json
    these are under "origin".

    \b
    Examples:
      px-sidecar config show
      px-sidecar config show --file --config ./config.toml
    """
    in_force = None if from_file else _in_force(control_flag, config_flag)
    if in_force is None:
        tables = effective(load_config(config_flag))
        origin = origins(tables, config_path(config_flag, os.environ, global_option("instance"))[0], os.environ)
    else:
        tables, origin = in_force
    if as_json:
        print_json(tables | {"origin": origin})
        return
    print_document(_annotate(as_toml(tables), origin))


def _in_force(control_flag: str | None, config_flag: str | None) -> tuple[dict[str, Any], dict[str, str]] | None:
    """Return configuration and origins of the running daemon; None if none runs, or, with a note on stderr, if this user may not ask it."""
    try:
        daemon = connect_daemon(control_flag, config_flag)
        tables: dict[str, Any] = daemon.get("/v1/config")
    except DaemonUnreachable as error:
        click.echo(f"This is what the file says, not what is in force: {error}", err=True)
        return None
    except (NotRunning, ConfigError):
        if control_flag:
            raise
        return None
    try:
        file = daemon.get("/v1/config/changes")
    except Failed:
        return tables, {}  # a daemon without a file, or of an earlier version
    try:
        # The variables of the daemon are not those of this shell.
        origin = {} if file["error"] else origins(tables, Path(file["path"]), {})
    except (OSError, ValueError):
        origin = {}  # this user may not read the file, or it is broken
    for change in file["changes"]:
        text = json.dumps(change["then"], ensure_ascii=False)
        place = origin.get(change["key"])
        short = text if len(text) <= 40 else "another value"
        origin[change["key"]] = f"not taken yet: {short}" + (f" ({place})" if place else "")
    return tables, origin


@config.command("schema")
@click.option("--log", "of_log", is_flag=True, help="Print the schema of a log line instead.")
@click.option("--json", "_as_json", is_flag=True, help="Accepted as in other verbs; the output is always JSON.")
def schema(of_log: bool, _as_json: bool) -> None:
    """Print the JSON Schema of the configuration file, for editors and checks.

    \b
    Examples:
      px-sidecar config schema > px-sidecar.schema.json
      px-sidecar config schema --log > px-sidecar-log.schema.json
    """
    print_json(log_schema() if of_log else json_schema())


@config.command("reference")
@click.argument("key", default="")
@click.option("--markdown", is_flag=True, help="Print Markdown, one table for each table of the file.")
@json_option
def reference(key: str, markdown: bool, as_json: bool) -> None:
    """Print every key: meaning, default, what is allowed, an example.

    Each key says whether a reload is enough for a change. KEY limits the
    output to the keys that begin with it.

    \b
    Examples:
      px-sidecar config reference deliver
      px-sidecar config reference --markdown > keys.md
    """
    prefix = as_listed(key)
    chosen = [entry for entry in key_references() if entry.key.startswith(prefix)]
    if not chosen:
        near = nearest(prefix, [entry.key for entry in key_references()] + list(Config.__struct_fields__))
        raise click.UsageError(f"No key begins with {key!r}{near if 'nearest' in near else ''}.")
    if as_json:
        print_json(chosen)
    else:
        click.echo(reference_markdown(prefix) if markdown else reference_text(prefix), nl=False)


@config.command("openapi")
@click.option("--json", "_as_json", is_flag=True, help="Accepted as in other verbs; the output is always JSON.")
def show_openapi(_as_json: bool) -> None:
    """Print the OpenAPI 3.1 description of both HTTP interfaces.

    Operations with the tag ingest are for apps, at listen.http; those with
    the tag control are for operators, at the socket listen.control.

    \b
    Example:
      px-sidecar config openapi > px-sidecar.openapi.json
    """
    from sidecar.control.openapi import openapi  # imported here: it loads the mapping and SQLite

    print_json(openapi())


@config.command("dashboard")
@click.option("--json", "_as_json", is_flag=True, help="Accepted as in other verbs; the output is always JSON.")
def show_dashboard(_as_json: bool) -> None:
    """Print a Grafana dashboard for import.

    \b
    Example:
      px-sidecar config dashboard > px-sidecar-dashboard.json
    """
    print_json(dashboard())


@config.command("alerts")
@json_option
def show_alerts(as_json: bool) -> None:
    """Print Prometheus alert rules, for rule_files in prometheus.yml.

    \b
    Example:
      px-sidecar config alerts > /etc/prometheus/rules/px-sidecar.yml
    """
    if as_json:
        print_json(json.loads(hint(json.dumps(alert_rules()))))
        return
    click.echo(hint(alert_rules_yaml()), nl=False)


def origins(tables: Mapping[str, Any], path: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the source of each setting in ``tables`` that is not a default: its variable, or file and line.

    Raises OSError or ValueError if there is a file that cannot be read or is not TOML.
    """
    text = decode_text(path.read_bytes()) if path.exists() else ""
    in_file = tomllib.loads(text)
    by_setting: dict[str, str] = {}
    for section, settings in tables.items():
        if not isinstance(settings, dict):
            if section in in_file:
                by_setting[section] = f"{path} line {line_of((section,), text)}"
            continue
        for key in settings:
            variable = f"{PREFIX}{section}_{key}".upper()
            if variable in environ:
                by_setting[f"{section}.{key}"] = variable
            elif key in in_file.get(section, {}):
                by_setting[f"{section}.{key}"] = f"{path} line {line_of((section, key), text)}"
            for inner in settings[key] if isinstance(settings[key], dict) else ():
                variable = f"{PREFIX}{section}_{key}_{inner}".upper()
                if variable in environ:
                    by_setting[f"{section}.{key}.{inner}"] = variable
    return by_setting


def _annotate(toml: str, origin: Mapping[str, str]) -> str:
    """Return the TOML text with the source as a comment after each setting that is not a default."""
    lines, section = [], ""
    for line in toml.splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        key = line.partition(" = ")[0]
        source = origin.get(f"{section}.{key}") or (origin.get(section) if line.startswith("[") else None)
        lines.append(f"{line}  # {source}" if source else line)
    return "\n".join(lines) + "\n"
