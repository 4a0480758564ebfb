"""The man page, generated from the help texts: ``python -m sidecar.cli.manual > px-sidecar.1``, for package builds.

A verb whose file cannot be imported raises here, so that a package is never built without its documentation.
"""

import inspect
import sys
from collections.abc import Iterator

import click

from sidecar import __version__
from sidecar.cli import VERBS, main

__all__ = ["manual"]

_EXITS = (
    ("0", "Done."),
    ("1", "Failed; trying again may help."),
    ("2", "Wrong usage."),
    ("69", "The daemon is not running, or does not answer this user."),
    ("78", "Configuration, key or program version must change before the next start can succeed."),
)
_FILES = (
    ("/etc/px-sidecar/config.toml", "The configuration; --config or $PX_SIDECAR_CONFIG name another file."),
    ("/etc/px-sidecar/api_key", "The PX API key, mode 0600, owner root; systemd passes it to the daemon."),
    ("/var/lib/px-sidecar/outbox.db", "The outbox: accepted events, their state and their history."),
    ("/run/px-sidecar/events.sock", "Accepts events from apps, as does http://127.0.0.1:8321."),
    ("/run/px-sidecar/control.sock", "The socket on which this command reaches the daemon."),
)


def manual() -> str:
    """Return the page as roff with the macros of man(7)."""
    return "\n".join([*_head(), *_verbs(), *_tables(), ""])


def _head() -> Iterator[str]:
    yield f'.TH PX-SIDECAR 1 "" "px-sidecar {__version__}" "User Commands"'
    yield from (".SH NAME", r"px\-sidecar \- deliver product\-usage events to Gainsight PX, durably and at its pace")
    yield from (".SH SYNOPSIS", r".B px\-sidecar", r"[\-\-instance NAME] [\-\-config PATH] VERB [OPTION ...]")
    yield ".SH DESCRIPTION"
    yield from _paragraphs(main.help or "")
    yield from _options(main)


def _verbs() -> Iterator[str]:
    context = click.Context(main, info_name="px-sidecar")
    yield ".SH VERBS"
    for name in VERBS:
        command = main.get_command(context, name)
        assert command is not None
        yield from _command(command, click.Context(command, info_name=name, parent=context))


def _command(command: click.Command, context: click.Context) -> Iterator[str]:
    usage = " ".join(command.collect_usage_pieces(context))
    yield from (f".SS {_text(context.command_path.removeprefix('px-sidecar '))} {_text(usage)}", "")
    yield from _paragraphs(command.help or "")
    yield from _options(command)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from _command(inner, click.Context(inner, info_name=name, parent=context))


def _options(command: click.Command) -> Iterator[str]:
    context = click.Context(command)
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None:
            yield from (".TP", f".B {_text(record[0])}", _text(record[1]) or r"\&")


def _paragraphs(text: str) -> Iterator[str]:
    """Yield the paragraphs; those that click keeps verbatim (they begin with a backspace) line by line."""
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        lines = paragraph.split("\n")
        yield ".PP"
        if lines[0].strip() == "\b":
            yield from (".nf", *map(_text, lines[1:]), ".fi")
        else:
            yield _text(" ".join(lines))


def _tables() -> Iterator[str]:
    for title, rows in (("EXIT STATUS", _EXITS), ("FILES", _FILES)):
        yield f".SH {title}"
        for name, about in rows:
            yield from (".TP", f".B {_text(name)}", _text(about))
    yield from (".SH ENVIRONMENT", r"Every setting can be given as \fBPX_SIDECAR_\fISECTION\fB_\fIKEY\fR, for example")
    yield r"\fBPX_SIDECAR_PX_API_KEY\fR; \fBpx\-sidecar config schema\fR lists them all."


def _text(text: str) -> str:
    text = text.replace("\\", r"\e").replace("-", r"\-").replace("…", "...")
    return rf"\&{text}" if text.startswith((".", "'")) else text


if __name__ == "__main__":
    sys.stdout.write(manual())
