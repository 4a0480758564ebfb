"""``px-sidecar config``: the configuration in force, its schema, and the files for Grafana and Prometheus."""

import os
import tomllib
from collections.abc import Mapping
from typing import Any

import click

from sidecar.cli.common import config_option, json_option, load_config, print_json
from sidecar.config import as_toml, config_path, effective, json_schema
from sidecar.config.lines import line_of
from sidecar.config.load import PREFIX
from sidecar.observe.alerts import alerts, alerts_yaml
from sidecar.observe.dashboard import dashboard

__all__ = ["config"]


@click.group("config")
def config() -> None:
    """Show the configuration in force, its schema, and monitoring files.

    \b
    Example:
      px-sidecar config show
    """


@config.command("show")
@config_option
@json_option
def show(config_flag: str | None, as_json: bool) -> None:
    """Show the configuration in force, with secrets masked.

    It is what file, environment and defaults give together, as a file that the daemon would take. What is not a default
    says where it comes from; with --json that is under "origin".

    \b
    Example:
      px-sidecar config show --config /etc/px-sidecar/config.toml
    """
    loaded = load_config(config_flag)
    origin = origins(effective(loaded), config_flag, os.environ)
    if as_json:
        print_json(effective(loaded) | {"origin": origin})
        return
    click.echo(_with_origins(as_toml(loaded), origin), nl=False)


@config.command("schema")
@click.option("--json", "_as_json", is_flag=True, help="Accepted for likeness with other verbs: the output is JSON.")
def schema(_as_json: bool) -> None:
    """Print the JSON Schema of the configuration file, for editors and checks.

    \b
    Example:
      px-sidecar config schema > px-sidecar.schema.json
    """
    print_json(json_schema())


@config.command("dashboard")
@click.option("--json", "_as_json", is_flag=True, help="Accepted for likeness with other verbs: the output is JSON.")
def show_dashboard(_as_json: bool) -> None:
    """Print a Grafana dashboard, to be imported there.

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
        print_json(alerts())
        return
    click.echo(alerts_yaml(), nl=False)


def origins(tables: Mapping[str, Any], flag: str | None, environ: Mapping[str, str]) -> dict[str, str]:
    """Where each setting of ``tables`` comes from that is no default: its variable, or file and line.

    The configuration has been loaded from the same places just before, so the file can be read and is valid.
    """
    path, _ = config_path(flag, environ)
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    in_file = tomllib.loads(text)
    found: dict[str, str] = {}
    for section, settings in tables.items():
        if not isinstance(settings, dict):
            if section in in_file:
                found[section] = f"{path} line {line_of((section,), text)}"
            continue
        for key in settings:
            variable = f"{PREFIX}{section}_{key}".upper()
            if variable in environ:
                found[f"{section}.{key}"] = variable
            elif key in in_file.get(section, {}):
                found[f"{section}.{key}"] = f"{path} line {line_of((section, key), text)}"
    return found


def _with_origins(toml: str, origin: Mapping[str, str]) -> str:
    """The TOML text with a comment behind each setting of a plain table that is no default."""
    lines, section = [], ""
    for line in toml.splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        key = line.partition(" = ")[0]
        from_where = origin.get(f"{section}.{key}") or (origin.get(section) if line.startswith("[") else None)
        lines.append(f"{line}  # {from_where}" if from_where else line)
    return "\n".join(lines) + "\n"
