"""``px-sidecar console``: the page for people who would rather look, in a process of its own."""

import os
import signal
import socket
import sys
import webbrowser
from contextlib import suppress
from typing import Final
from urllib.parse import urlsplit

import click
import trio

from sidecar.cli.backend import connect_daemon, control_option
from sidecar.cli.common import expected_error, global_option
from sidecar.config import ConfigFile
from sidecar.config.schema import LABEL_RULE, can_be_looked_up, is_loopback_host
from sidecar.console import Console, Options
from sidecar.console.guard import EVERY_ADDRESS, as_browsers_write
from sidecar.control.client import DaemonClient
from sidecar.errors import NotRunning

__all__ = ["console", "new_code_upon_enter", "open_browser", "serve_console"]

_EVERY_ADDRESS: Final = (
    " From another host, open the printed link with an address of this host in place of the local one."
)


@click.command("console")
@click.option(
    "--address",
    default="127.0.0.1:0",
    show_default=True,
    metavar="HOST:PORT",
    help="Where to listen; port 0: any free one.",
)
@click.option("--read-only", is_flag=True, help="Allow no changes.")
@click.option("--hide-bodies", is_flag=True, help="Show names, states and counts only; read-only.")
@click.option("--no-browser", is_flag=True, help="Do not open a browser.")
@control_option
def console(
    address: str,
    read_only: bool,
    hide_bodies: bool,
    no_browser: bool,
    control_flag: str | None,
    config_flag: str | None,
) -> None:
    """Serve a page on loopback that shows and controls the daemon.

    Prints its address with a code that works once; Enter prints a new one for
    another tab or a colleague. Runs with your rights: over the control socket
    everything can be done, over control-read.sock it is read-only. Ends with
    Ctrl-C, or when the page was not used for 30 minutes.

    \b
    Examples:
      px-sidecar console
      px-sidecar console --read-only --no-browser
    """
    host, port = _host_port(address)
    control, reads_only = _answering(connect_daemon(control_flag, config_flag))
    options = Options(
        control=control,
        config_file=ConfigFile(config_flag, instance=global_option("instance")),
        address=host,
        port=port,
        read_only=read_only or reads_only,
        hide_bodies=hide_bodies,
    )
    if not is_loopback_host(host):
        click.echo(
            f"Warning: every host that reaches {host} can open this page with a code, and what it shows travels "
            f"unencrypted; an `ssh -L` tunnel to 127.0.0.1 is safer.{_EVERY_ADDRESS if host in EVERY_ADDRESS else ''}",
            err=True,
        )
    try:
        trio.run(serve_console, options, not no_browser)
    except BaseExceptionGroup as group:
        raise expected_error(group) from None


async def serve_console(options: Options, browser: bool) -> None:
    """Serve until Ctrl-C, SIGTERM, or the page is idle; print the address, and a new one on Enter."""
    page = Console(options)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_stop_upon_signal, nursery.cancel_scope)
        await nursery.start(_serve_until_idle, page, nursery.cancel_scope)
        url = page.url()
        _print_address(url)
        if browser:
            await trio.to_thread.run_sync(open_browser, url)
        nursery.start_soon(new_code_upon_enter, page)


async def _serve_until_idle(page: Console, scope: trio.CancelScope, *, task_status: trio.TaskStatus[None]) -> None:
    await page.run(task_status=task_status)
    click.echo("The console has ended after half an hour without use.", err=True)
    scope.cancel()


async def _stop_upon_signal(scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            scope.cancel()


async def new_code_upon_enter(page: Console) -> None:
    """Print a new address for each line on standard input. Its end does not end the console."""
    signal.signal(signal.SIGTTIN, signal.SIG_IGN)  # in the background reading is then an error, and does not stop us
    with suppress(OSError):
        # Bytes: what is typed means nothing, and need not be text in the encoding of the terminal. Not by `sys.stdin`: a thread
        # that waits in it holds its lock, and Python aborts at the end of a process whose standard input is locked.
        while typed := await trio.to_thread.run_sync(os.read, sys.stdin.fileno(), 4096, abandon_on_cancel=True):
            for _ in range(typed.count(b"\n")):
                click.echo(f"Console: {page.url()}")
            sys.stdout.flush()


def _print_address(url: str) -> None:
    click.echo(f"Console: {url}")
    at = urlsplit(url)
    # A tunnel leads to a loopback address; the page of another one is opened without it.
    if os.environ.get("SSH_CONNECTION") and is_loopback_host(at.hostname or ""):
        target = at.netloc.rpartition(":")[0]
        click.echo(f"On your own computer: ssh -L {at.port}:{target}:{at.port} {socket.gethostname()}")
    sys.stdout.flush()


def open_browser(url: str) -> None:
    """Open the page if a person sits before this terminal."""
    display = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if sys.stdout.isatty() and display and not os.environ.get("SSH_CONNECTION"):
        webbrowser.open(url)


def _host_port(address: str) -> tuple[str, int]:
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65_535:
        raise click.BadParameter("write HOST:PORT, as in 127.0.0.1:8330", param_hint="--address")
    if not can_be_looked_up(host):
        raise click.BadParameter(f"{host!r} is not a host {LABEL_RULE}", param_hint="--address")
    return as_browsers_write(host.strip("[]") or "127.0.0.1"), int(port)


def _answering(daemon: DaemonClient) -> tuple[str, bool]:
    """Return the socket that answers this user, and whether it answers reading calls only. Raises NotRunning."""
    refused: NotRunning | None = None
    for path in (daemon.path, *daemon.read_paths):
        try:
            return path, DaemonClient(path).answers_reading_calls_only()
        except NotRunning as error:
            refused = refused or error  # that of the socket which can do everything says best what is wrong
    assert refused is not None
    raise refused
