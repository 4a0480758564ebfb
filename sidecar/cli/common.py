"""Options and output shared by the verbs."""

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from sidecar.config.file import config_path, load, user_path
from sidecar.config.schema import Config
from sidecar.errors import Failed, SidecarError, with_instance, with_user_unit

__all__ = [
    "config_option",
    "expected_error",
    "global_option",
    "hint",
    "json_for",
    "json_option",
    "load_config",
    "no_temporary_place",
    "own_command",
    "print_document",
    "print_json",
    "print_json_error",
    "temporary_folder",
]

_PRINTED = "sidecar.json_printed"
_NAMED = "sidecar.file_named"

F = TypeVar("F", bound=Callable[..., Any])


def config_option(function: F) -> F:
    """Add ``--config PATH``, for every verb that reads the configuration; the option before the verb is its default."""
    return click.option(
        "--config",
        "config_flag",
        metavar="PATH",
        default=lambda: global_option("config") or None,
        help="The configuration file [default: $PX_SIDECAR_CONFIG, /etc/px-sidecar/config.toml, ~/.config/px-sidecar/config.toml].",
    )(function)


def global_option(option: str) -> str:
    """Return the value of ``--instance`` or ``--config`` given before the verb; empty if it is not given there."""
    return click.get_current_context().find_root().params.get(option) or ""


def hint(text: str) -> str:
    """Return a sentence whose commands mean this daemon: that of ``--instance``, or of a user's own file.

    Errors need no call: the group does it.
    """
    context = click.get_current_context(silent=True)
    if context is not None and _NAMED in context.find_root().meta:
        return with_user_unit(text)
    return with_instance(text, global_option("instance") if context is not None else "")


def json_option(function: F) -> F:
    """Add ``--json``, for every verb that prints data."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(function)


def load_config(flag: str | None) -> Config:
    """Return the effective configuration, that of ``--instance`` if one is given. Raises ConfigError.

    A user's own file is named on stderr, once, because the usual one is that of the host.
    """
    context, instance = click.get_current_context().find_root(), global_option("instance")
    path, _ = config_path(flag, os.environ, instance)
    if path == user_path() and not flag and not os.environ.get("PX_SIDECAR_CONFIG") and _NAMED not in context.meta:
        context.meta[_NAMED] = True
        click.echo(f"Using {path}.", err=True)
    return load(flag, instance=instance)


def own_command() -> list[str]:
    """Return the command that runs px-sidecar again, as this process was started.

    The Debian package has its libraries in a folder of its own, where only its program finds them: there
    ``python3 -m sidecar`` is another program, or none.
    """
    program = os.path.abspath(sys.argv[0])
    if os.path.basename(program) == "px-sidecar" and os.access(program, os.X_OK):
        return [program]
    return [sys.executable, "-m", "sidecar"]


def temporary_folder(purpose: str) -> Path:
    """Make a folder that this user alone can open, named after ``purpose``. Raises Failed if there is no place for it."""
    try:
        return Path(tempfile.mkdtemp(prefix=f"px-sidecar-{purpose}-"))
    except OSError as error:  # a container whose root is read-only, or a full disk
        raise no_temporary_place(error) from None


def no_temporary_place(error: OSError) -> Failed:
    """Return the error of a verb that can make no temporary folder or file."""
    why = error.strerror or error
    return Failed(f"No temporary folder can be used ({why}); set TMPDIR to a folder that this user can write.")


def expected_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first SidecarError of tasks that failed together; the whole group if it holds a bug, for its traceback."""
    expected, bugs = group.split(SidecarError)
    error: BaseException = group if expected is None or bugs is not None else expected
    while error is not group and isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def print_json(value: Any) -> None:
    """Print one JSON document on stdout: indented on a terminal, compact in a pipe."""
    click.get_current_context().find_root().meta[_PRINTED] = True
    data = msgspec.json.encode(value)
    if sys.stdout.isatty():
        data = msgspec.json.format(data, indent=2)
    click.echo(json_for(sys.stdout, data))


def print_document(text: str) -> None:
    """Print a document that is kept as a file: in UTF-8 whatever the locale, except on a terminal.

    On a terminal a mark stands for each character that it cannot show, and for control characters: event names come
    from apps, and a terminal would execute them.
    """
    if sys.stdout.isatty():
        from sidecar.cli.screen import printable

        text = text.replace("\r\n", "\n")  # line ends of CSV; a carriage return alone would overwrite its line
        text = "\n".join(map(printable, text.split("\n")))
    click.echo(text if sys.stdout.isatty() else text.encode(), nl=False)


def json_for(stream: Any, data: bytes) -> str:
    """Return JSON as a text that ``stream`` can hold: with escapes where its encoding is not UTF-8.

    On a terminal they also stand for control characters, which it would execute: those beyond ASCII need none in JSON.
    """
    text = data.decode()
    if stream.isatty():
        text = "".join(char if char.isprintable() or char == "\n" else _escaped(char) for char in text)
    try:
        text.encode(getattr(stream, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        text = "".join(char if char < "\x80" else _escaped(char) for char in text)
    return text


def _escaped(char: str) -> str:
    import json

    return json.dumps(char)[1:-1]


def print_json_error(message: str, exit_code: int) -> None:
    """Print ``{"error", "exit_code"}`` on stdout, unless the verb has printed its result: one document is expected."""
    if not click.get_current_context().find_root().meta.get(_PRINTED):
        print_json({"error": message, "exit_code": exit_code})
