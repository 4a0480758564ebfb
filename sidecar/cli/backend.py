"""The source of a verb's answers: the running daemon, or the outbox file if no daemon runs.

Both implement ``ControlApi``, so a verb is written once. The path of the control socket is, in this order:
``--control``, ``$PX_SIDECAR_LISTEN_CONTROL``, ``listen.control`` of the configuration if this user can read it, and
``/run/px-sidecar/control.sock``. Reading calls of a user who may not open it go to ``listen.control_read``, then to
``/run/px-sidecar/control-read.sock``. A verb that needs only the daemon therefore works without a readable or valid
configuration.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, TypeVar

import click

from sidecar.cli.common import config_option, global_option, load_config
from sidecar.config.file import control_sockets
from sidecar.control.client import DEFAULT_PATH, DEFAULT_READ_PATH, ControlApi, DaemonClient, DaemonUnreachable
from sidecar.errors import ConfigError, NotRunning
from sidecar.units import parse_duration_s

__all__ = ["DURATION", "TIMESTAMP", "connect_daemon", "control_option", "ensure_order", "open_backend"]

_NOTED = "sidecar.broken_file_noted"

F = TypeVar("F", bound=Callable[..., Any])


def control_option(function: F) -> F:
    """Add ``--control PATH`` and ``--config PATH``, for every verb that talks to the daemon."""
    return config_option(
        click.option(
            "--control",
            "control_flag",
            metavar="PATH",
            help="The daemon's control socket [default: as configured].",
        )(function)
    )


def connect_daemon(control_flag: str | None, config_flag: str | None) -> DaemonClient:
    """Return a client for the daemon's control socket; it connects with the first request.

    A file that is broken is still searched for its socket: the operator who broke it needs the daemon most of all.
    Raises ConfigError if a configuration is named and its socket cannot be found out. Falling back to the default socket would
    then talk to a different daemon than the named one.
    """
    if named := control_flag or os.environ.get("PX_SIDECAR_LISTEN_CONTROL"):
        return DaemonClient(named)
    instance = global_option("instance")
    usual, usual_read = DEFAULT_PATH, DEFAULT_READ_PATH
    if instance:
        usual, usual_read = (path.replace(".sock", f"-{instance}.sock") for path in (usual, usual_read))
    try:
        listen = load_config(config_flag).listen
    except ConfigError as error:
        sockets = control_sockets(config_flag, instance=instance)
        if sockets is None:
            if config_flag or os.environ.get("PX_SIDECAR_CONFIG"):
                raise
            sockets = (usual, usual_read)
        else:
            _note_broken_file(error)
        control, control_read = sockets
    else:
        control, control_read = listen.control, listen.control_read
    # The usual path for reading may belong to another daemon if this one has its control socket elsewhere.
    read_paths = [control_read, usual_read if control == usual else ""]
    return DaemonClient(control, list(dict.fromkeys(path for path in read_paths if path)))


def _note_broken_file(error: ConfigError) -> None:
    """Say once that the file is broken: the daemon that runs has read an older state of it."""
    context = click.get_current_context().find_root()
    if not context.meta.get(_NOTED):
        context.meta[_NOTED] = True
        click.echo(
            f"Note: a running daemon keeps what it read before, because this file cannot be used: {error}", err=True
        )


@contextmanager
def open_backend(control_flag: str | None, config_flag: str | None) -> Iterator[ControlApi]:
    """Yield the daemon if it answers, else the outbox file of the configuration, locked until the block ends.

    Raises NotRunning if there is neither a daemon nor an outbox, or if a daemon exists that does not answer this user;
    Failed or ConfigError if the file cannot be opened.
    """
    daemon = connect_daemon(control_flag, config_flag)
    try:
        daemon.get("/v1/config")
    except DaemonUnreachable:
        raise  # a daemon holds the file: opening it here would fail on the lock and hide the reason
    except NotRunning:
        if control_flag:
            raise  # a socket named on the command line is never replaced by the file
    else:
        yield daemon
        return
    from sidecar.control.offline import (
        open_file,
    )  # imported here: it loads SQLite and the mapping, most verbs need neither

    with open_file(load_config(config_flag)) as file:
        yield file


class _Duration(click.ParamType[float]):
    """A duration such as ``30s``, ``24h`` or ``7d``, in seconds."""

    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        try:
            return parse_duration_s(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class _Timestamp(click.ParamType[int]):
    """A point in time in epoch milliseconds: ``24h`` means 24 hours ago; else ISO 8601, local time without an offset."""

    name = "WHEN"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return max(0, round(1000 * (time.time() - parse_duration_s(value))))  # not before what a clock can show
        except ValueError:
            pass  # not a duration: try a date
        try:
            return round(1000 * datetime.fromisoformat(value).astimezone().timestamp())
        except (ValueError, OverflowError):
            self.fail(
                f"{value!r} is not a time; write how long ago, as in 24h, or a date, as in 2026-11-24T08:00", param, ctx
            )


DURATION = _Duration()
TIMESTAMP = _Timestamp()


def ensure_order(ctx: click.Context, param: click.Parameter, value: int | None) -> int | None:
    """Refuse an ``--until`` that is not after ``--since``; the callback of both. Nothing lies between such times."""
    given = {**ctx.params, str(param.name): value}
    since, until = (given.get(f"{name}_ms", given.get(name)) for name in ("since", "until"))
    if since is not None and until is not None and until <= since:
        raise click.UsageError(
            "--until is not after --since, so nothing lies between them (3h ago is before 2h ago).", ctx
        )
    return value
