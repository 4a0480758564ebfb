"""``px-sidecar run``: the daemon, in the foreground."""

import os
import sys

import click
import trio

from sidecar.cli.common import config_option, load_config
from sidecar.config.keys import api_key, odd_property_key, property_key
from sidecar.daemon import serve_daemon
from sidecar.errors import SidecarError
from sidecar.observe import configure, secrets_of

__all__ = ["run"]


@click.command()
@config_option
def run(config_flag: str | None) -> None:
    """Run the daemon in the foreground.

    Accepts events over HTTP and the Unix socket, keeps them in the outbox and
    delivers them to PX. SIGTERM and SIGINT stop it in order, a second one at
    once; SIGHUP reads the configuration again.

    Exits with 78 where starting again is pointless until somebody changes the
    configuration, and with 1 where it may work later.

    \b
    Example:
        PX_SIDECAR_PX_API_KEY=… px-sidecar run --config ./config.toml
    """
    config = load_config(config_flag)
    key = api_key(config.px, os.environ)
    product = property_key(config.px)
    configure(config.log, sys.stderr, os.environ, [key, *secrets_of(config)])
    if warning := odd_property_key(product):
        click.echo(f"px-sidecar: {warning}", err=True)
    try:
        trio.run(serve_daemon, config, key, lambda: load_config(config_flag))
    except BaseExceptionGroup as group:
        raise _one_sentence(group) from None


def _one_sentence(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Out of tasks that ended together: the one error that is told to people, or all of them if one is a bug."""
    told, bugs = group.split(SidecarError)
    error: BaseException = group if told is None or bugs is not None else told
    while error is not group and isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
