"""How verbs reach who knows: the running daemon, else the outbox file itself.

A verb that only talks to the daemon needs the path of its control socket and nothing else. It is, in this order:
``--control``, ``$PX_SIDECAR_LISTEN_CONTROL``, ``listen.control`` of the configuration if this user may read it, and
``/run/px-sidecar/control.sock``.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, TypeVar

import click

from sidecar.cli.common import before_the_verb, config_option, load_config
from sidecar.control.client import DEFAULT_PATH, Asked, Daemon, OutOfReach
from sidecar.errors import ConfigError, NotRunning
from sidecar.units import parse_duration_s

__all__ = ["DURATION", "MOMENT", "control_option", "reach", "the_daemon"]

F = TypeVar("F", bound=Callable[..., Any])


def control_option(function: F) -> F:
    """``--control PATH`` and ``--config PATH``, as every verb that talks to the daemon has them."""
    return config_option(
        click.option(
            "--control",
            "control_flag",
            metavar="PATH",
            help="The daemon's control socket [default: as configured].",
        )(function)
    )


def the_daemon(control_flag: str | None, config_flag: str | None) -> Daemon:
    """The daemon, wherever its socket is; whether it answers is seen at the first question.

    Raises ConfigError if a configuration was named and cannot be used: the daemon at the default place would be another.
    """
    return Daemon(control_flag or os.environ.get("PX_SIDECAR_LISTEN_CONTROL") or _configured(config_flag))


def _configured(config_flag: str | None) -> str:
    try:
        return load_config(config_flag).listen.control
    except ConfigError:
        if config_flag or os.environ.get("PX_SIDECAR_CONFIG"):
            raise
        instance = before_the_verb("instance")
        return f"/run/px-sidecar/control-{instance}.sock" if instance else DEFAULT_PATH


@contextmanager
def reach(control_flag: str | None, config_flag: str | None) -> Iterator[Asked]:
    """The daemon if one answers, else the outbox file of the configuration, which is held meanwhile.

    Raises NotRunning if there is neither, or a daemon that does not answer this user; Failed or ConfigError if the
    file cannot be used.
    """
    daemon = the_daemon(control_flag, config_flag)
    try:
        daemon.get("/v1/config")
    except OutOfReach:
        raise
    except NotRunning:
        if control_flag:
            raise
    else:
        yield daemon
        return
    from sidecar.control.offline import open_file  # it brings the whole house along; most verbs find a daemon

    with open_file(load_config(config_flag)) as file:
        yield file


class _Duration(click.ParamType[float]):
    """``30s``, ``24h``, ``7d``: seconds."""

    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        try:
            return parse_duration_s(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class _Moment(click.ParamType[int]):
    """``24h`` (so long ago) or ISO 8601 (local time unless it says otherwise): epoch milliseconds."""

    name = "WHEN"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return round(1000 * (time.time() - parse_duration_s(value)))
        except ValueError:
            pass  # then it is a date
        try:
            return round(1000 * datetime.fromisoformat(value).astimezone().timestamp())
        except (ValueError, OverflowError):
            self.fail(
                f"{value!r} is no moment; write how long ago, as in 24h, or a date, as in 2026-11-24T08:00", param, ctx
            )


DURATION = _Duration()
MOMENT = _Moment()
