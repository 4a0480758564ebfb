"""What several verbs share: their common options and how they print data."""

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click
import msgspec

from sidecar.config import Config, load

__all__ = ["before_the_verb", "config_option", "json_option", "load_config", "print_json", "to_terminal"]

F = TypeVar("F", bound=Callable[..., Any])


def config_option(function: F) -> F:
    """``--config PATH``, as every verb that reads the configuration has it; it may also stand before the verb."""
    return click.option(
        "--config",
        "config_flag",
        metavar="PATH",
        default=lambda: before_the_verb("config") or None,
        help="The configuration file [default: $PX_SIDECAR_CONFIG, /etc/px-sidecar/config.toml].",
    )(function)


def before_the_verb(option: str) -> str:
    """What ``--instance`` or ``--config`` says there; empty if it does not stand there."""
    return click.get_current_context().find_root().params.get(option) or ""


def json_option(function: F) -> F:
    """``--json``, as every verb that prints data has it."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")(function)


def load_config(flag: str | None) -> Config:
    """The effective configuration, of the ``--instance`` if one was named. Raises ConfigError."""
    return load(flag, instance=before_the_verb("instance"))


def print_json(value: Any) -> None:
    """One JSON document on stdout, indented on a terminal and compact in a pipe."""
    data = msgspec.json.encode(value)
    if sys.stdout.isatty():
        data = msgspec.json.format(data, indent=2)
    click.echo(data.decode())


def to_terminal() -> bool:
    """Whether a person looks at stdout."""
    return sys.stdout.isatty()
