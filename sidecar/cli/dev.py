"""``px-sidecar dev``: a stand-in for PX and the daemon in one process, for developers of apps.

Both run in this process, so that nothing can outlive it. The daemon talks to the stand-in over TCP as it does to PX, and
is built as ``px-sidecar run`` builds it; only the configuration is made here and nothing is read from the environment.
"""

import math
import os
import shlex
import shutil
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from random import Random
from typing import Final

import click
import trio

from sidecar.cli.common import expected_error, temporary_folder
from sidecar.cli.console import new_code_upon_enter, open_browser
from sidecar.cli.dev_feed import DevFeed
from sidecar.cli.screen import printable
from sidecar.clock import FreezeClock, SystemClock
from sidecar.config import Config, ConfigFile, Secret
from sidecar.config.schema import LABEL_RULE, MAX_SOCKET_PATH_BYTES, can_be_looked_up, is_loopback_host
from sidecar.console import Console, Options
from sidecar.control.status import total
from sidecar.daemon import Application, Seams, build, open_store, serve, serve_sockets
from sidecar.errors import Failed
from sidecar.http import Shutdown
from sidecar.observe import configure
from sidecar.outbox import ThreadRunner
from sidecar.px.transport import HttpxNetwork
from sidecar.receive import bind_control, bind_listeners, raise_descriptor_limit
from sidecar.sandbox import DEFAULT_KEY, Faults, Outage, Sandbox, serve_sandbox
from sidecar.systemd import Notifier
from sidecar.units import iso_utc

__all__ = ["FAILURES", "dev"]

DEFAULT_ADDRESS: Final = "127.0.0.1:8321"
SANDBOX_PORT: Final = 8399
SOCKET: Final = "px-sidecar.sock"
CONTROL_SOCKET: Final = "control.sock"
PRODUCT: Final = "AP-SANDBOX-2"
POLL_S: Final = 0.25

FAILURES: Final = {
    "429": (
        Faults(error_rate=0.5, error_status=429, retry_after="seconds:2"),
        "PX refuses half of the requests with 429 and asks to wait 2 s",
    ),
    "5xx": (Faults(error_rate=0.5, error_status=503), "PX answers half of the requests with 503"),
    "outage": (
        Faults(outages=tuple(Outage(from_s=60.0 * minute, to_s=60.0 * minute + 20) for minute in range(24 * 60))),
        "PX is away for the first 20 s of each minute",
    ),
    "slow": (Faults(latency_s=2.0, jitter_s=3.0), "PX takes 2 to 5 s for each answer"),
}


@click.command()
@click.option("--fail", type=click.Choice(list(FAILURES)), help="Let the stand-in for PX fail in this way.")
@click.option(
    "--state",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Keep the outbox and what PX got in this folder. [default: a temporary one]",
)
@click.option(
    "--listen",
    default=DEFAULT_ADDRESS,
    show_default=True,
    metavar="ADDRESS",
    help="HOST, HOST:PORT or :PORT; 0.0.0.0 lets other containers and hosts in.",
)
@click.option("--console", "with_console", is_flag=True, help="Open the console on these events.")
def dev(fail: str | None, state: Path | None, listen: str, with_console: bool) -> None:
    """See the events of your app arrive; needs no account and no configuration.

    Runs a stand-in for PX and the daemon, prints what to paste into your app,
    and then a line for each event: delivered with the body that PX would get,
    or dropped or dead, and why. The stand-in is as strict as PX is known to be.

    Ctrl-C ends it and prints the totals on the last line. With --fail the
    stand-in fails, and you see that your app still gets its answers.

    \b
    Examples:
      px-sidecar dev
      px-sidecar dev --fail outage --state ./px-dev
      px-sidecar dev --listen 0.0.0.0
      px-sidecar dev --console
    """
    address = _address(listen)
    _ensure_free(address, listen)
    with _folder(state) as folder, ExitStack() as stack:
        stand_in = stack.enter_context(_stand_in_socket())
        try:
            _ensure_own(folder / "config.toml")
            # Before the configuration is written: its file is locked, so a session that uses the folder keeps its own.
            box = Sandbox(faults=FAILURES[fail][0] if fail else Faults(), state=folder / "px.log")
            stack.callback(box.close)
            file = _config(folder, address, stand_in.getsockname()[1])
        except OSError as error:
            raise Failed(f"{folder} cannot be used ({error.strerror}); name another folder with --state.") from None
        config = file.load()
        configure(config.log, sys.stderr, os.environ)
        session = _Session(file, box, stand_in, failing=FAILURES[fail][1] if fail else "", with_console=with_console)
        try:
            trio.run(session.run, clock=FreezeClock())
        except BaseExceptionGroup as group:
            raise expected_error(group) from None
        session.echo(session.account)


def _address(text: str) -> str:
    """Return HOST:PORT for HOST, HOST:PORT or :PORT. Raises UsageError."""
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        host, port = text, "8321"
    elif host.count(":") and not host.startswith("["):
        host, port = text, "8321"  # an IPv6 address without brackets
    if not port.isascii() or not port.isdecimal() or not 0 < int(port) < 65_536:
        raise click.BadParameter(f"{text!r} has no valid port; write HOST, HOST:PORT or :PORT", param_hint="--listen")
    if not can_be_looked_up(host):
        raise click.BadParameter(f"{text!r} has no host {LABEL_RULE}", param_hint="--listen")
    host = host or "127.0.0.1"
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


def _host_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _ensure_free(address: str, listen: str) -> None:
    """Raise Failed if the address cannot be bound, in the words of this verb's option."""
    try:
        where = socket.getaddrinfo(*_host_port(address), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(where[0], socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where[4])
            probe.listen()
    except OSError as error:
        raise Failed(
            f"{printable(listen)} cannot be listened on ({error.strerror or error}); "
            "stop what uses it, or choose another address, as in --listen :8322."
        ) from None


@contextmanager
def _folder(state: Path | None) -> Iterator[Path]:
    """Yield the folder for the outbox: ``state``, which stays, or a temporary one, which goes."""
    if state is None:
        made = temporary_folder("dev")
        try:
            yield made
        finally:
            shutil.rmtree(made, ignore_errors=True)
        return
    try:
        state.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Failed(f"{state} cannot be created ({error.strerror}); name another folder with --state.") from None
    whole = state.absolute()  # verbs with --config run in other folders
    yield whole if _fits(whole / CONTROL_SOCKET) else state


def _config(folder: Path, address: str, stand_in_port: int) -> ConfigFile:
    control = folder / CONTROL_SOCKET
    if not _fits(control):
        raise Failed(f"The path of {folder} is too long for a socket; name a shorter one with --state.")
    remote = not is_loopback_host(_host_port(address)[0])
    path = folder / "config.toml"
    _ensure_own(path)
    path.write_text(
        f"""[px]
property_key = "{PRODUCT}"
api_key = "{DEFAULT_KEY}"
base_url = "http://127.0.0.1:{stand_in_port}"
[listen]
http = "{address}"
unix = {_toml(_socket_path(folder))}
control = {_toml(control)}
allow_remote = {str(remote).lower()}
[outbox]
path = {_toml(folder / "outbox.db")}
[deliver]
retry_max = "5s"
stop_timeout = "2s"
[mapping.fields]
eventId = "messageId"
[log]
level = "error"
format = "text"
""",
        encoding="utf-8",
    )
    return ConfigFile(str(path), {})


def _ensure_own(path: Path) -> None:
    """Raise Failed for a configuration that is not of this verb, OSError if it cannot be read."""
    if path.exists() and f'api_key = "{DEFAULT_KEY}"' not in path.read_text(encoding="utf-8", errors="replace"):
        raise Failed(f"{path} is not of `px-sidecar dev` and is not overwritten; name another folder with --state.")


def _socket_path(folder: Path) -> Path:
    """Return where apps find the Unix socket: in the working directory if it can be there, else in ``folder``."""
    here = Path.cwd() / SOCKET
    return here if _fits(here) and os.access(here.parent, os.W_OK) else folder / SOCKET


def _fits(path: Path) -> bool:
    """Return whether a socket can have this path, and a configuration can name it."""
    name = os.fsencode(path)
    return len(name) <= MAX_SOCKET_PATH_BYTES - 20 and name.decode(errors="replace") == str(path)


def _stand_in_socket() -> socket.socket:
    """Return a socket that listens on the usual port of the stand-in, or on a free one if that is taken.

    It listens from now on: two sessions that begin together must not choose the same port.
    """
    try:
        return socket.create_server(("127.0.0.1", SANDBOX_PORT))
    except OSError:
        return socket.create_server(("127.0.0.1", 0))


def _toml(path: Path) -> str:
    text = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


class _Session:
    """One run: the stand-in, the daemon, and the feed between them."""

    def __init__(
        self, file: ConfigFile, box: Sandbox, stand_in: socket.socket, *, failing: str, with_console: bool = False
    ) -> None:
        self.account = ""
        self._file = file
        self._config = file.load()
        self._with_console = with_console
        self._box, self._stand_in = box, stand_in
        self._failing = failing
        self._stop = trio.Event()
        self._feed = DevFeed(self.echo, trio.current_time, payloads=sys.stdout.isatty())

    def echo(self, text: str) -> None:
        """Print and flush. A reader that has gone, or a full disk, ends the session, which still stops in order."""
        try:
            click.echo(text)
            sys.stdout.flush()
        except OSError:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - Python flushes the old one at exit and complains
            self._stop.set()

    async def run(self) -> None:
        """Run until SIGINT, SIGTERM or SIGHUP; a second one ends it without waiting."""
        shutdown = Shutdown()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._handle_signals, nursery.cancel_scope)
            await nursery.start(partial(serve_sandbox, self._box, bound=self._stand_in, shutdown=shutdown))
            await self._run_daemon()
            shutdown.set()
            nursery.cancel_scope.cancel()

    async def _run_daemon(self) -> None:
        network = HttpxNetwork(self._config.px, Secret(DEFAULT_KEY), self._config.deliver.timeout)
        runner, notifier = ThreadRunner(), Notifier({})
        descriptors = raise_descriptor_limit()
        async with open_store(self._config, runner, notifier) as store:
            read_again = partial(trio.to_thread.run_sync, self._file.load)
            seams = Seams(store, network, SystemClock(), runner, Random(), notifier, self._file, read_again)  # noqa: S311 - jitter
            app = build(self._config, seams)
            listen = self._config.listen
            with closing(bind_listeners(listen, {})) as sockets, bind_control(listen) as control:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._follow, app)
                    nursery.start_soon(self._report_waiting, app)
                    self.echo(_greeting(self._config, str(self._file.path), self._failing))
                    if self._with_console:
                        page = Console(Options(listen.control, self._file, idle_s=math.inf))
                        await nursery.start(page.run)
                        address = page.url()
                        self.echo(f"Console: {address}\nEnter prints a new address for another tab.")
                        nursery.start_soon(new_code_upon_enter, page)
                        await trio.to_thread.run_sync(open_browser, address)
                    ingest = partial(serve_sockets, app, sockets, control, descriptors=descriptors, stop=self._stop)
                    await serve(app, ingest)
                    await trio.lowlevel.checkpoint()  # the feed prints what the stop has settled
                    nursery.cancel_scope.cancel()
                self.account = await _account(app, self._box)

    async def _follow(self, app: Application) -> None:
        changed = 0
        async with app.telemetry.feed.subscribe() as records:
            async for record in records:
                changes = None
                # Looked up only after the mapping has changed a value of some event, as this reads the outbox.
                if record.get("what") == "delivered" and (now := app.telemetry.statistics().changed) > changed:
                    changed = now
                    detail = await app.admin.event(record["id"])
                    changes = detail["mapped"]["changes"] if detail else None
                self._feed.show(record, changes)

    async def _report_waiting(self, app: Application) -> None:
        while True:
            await trio.sleep(POLL_S)
            if not self._feed.is_waiting():
                continue
            status = await app.state.read()
            reasons = status.reasons or ("PX has not answered yet.",)
            self._feed.show_waiting(reasons[0], iso_utc(app.clock.wall_ms()))

    async def _handle_signals(self, everything: trio.CancelScope) -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
            async for _ in signals:
                if self._stop.is_set():
                    everything.cancel()
                self._stop.set()


async def _account(app: Application, box: Sandbox) -> str:
    counters = app.outbox.counters
    pending = sum(count for name, count in counters.items() if name.startswith("pending_"))
    figures = {
        "accepted": counters.get("accepted", 0),
        "delivered": counters.get("delivered", 0),
        "dropped": total(counters, "dropped"),
        "dead": total(counters, "dead"),
        "pending": pending,
        "duplicates": box.report("eventId").duplicates,
    }
    return " ".join(f"{name}={count}" for name, count in figures.items())


def _greeting(config: Config, path: str, failing: str) -> str:
    """Return what to paste into an app, and where to look."""
    host, port = _host_port(config.listen.http)
    address = config.listen.http if is_loopback_host(host) else f"127.0.0.1:{port}"
    base = f"http://{address}"
    lines = ["px-sidecar dev: the daemon, and a stand-in for PX behind it. Ctrl-C ends both.", ""]
    lines += ["Send a first event:"]
    lines += [f'  curl -s {base}/v1/track -d \'{{"event":"Feature Used","userId":"u-1"}}\'']
    for label, code in _snippets(base, config.listen.unix):
        lines += [f"{label}:", f"  {code}"]
    lines += ["PHP, Analytics-CSharp and Segment's Ruby SDK need TLS: see --local-tls in px-sidecar init --help.", ""]
    if not is_loopback_host(host):
        lines += [
            f"From other hosts and containers: port {port} of this host. Every host that reaches it can send.",
            "",
        ]
    lines += [f"What PX got: curl -s {config.px.base_url}/sandbox/events"]
    lines += [f"Other verbs with --config, as in: px-sidecar status --config {shlex.quote(path)}"]
    if failing:
        lines += ["", f"{failing}. Your app is answered as ever: once the event is on disk."]
    return "\n".join([*lines, ""])


def _snippets(base: str, unix: str) -> list[tuple[str, str]]:
    return [
        (
            "Python, without an SDK (px-sidecar client > px_sidecar_client.py)",
            f'px_sidecar_client.Client("{unix}").track("u-1", "Feature Used")',
        ),
        ("Segment, Python", f'analytics.write_key = "any"; analytics.host = "{base}"'),
        ("Segment, Node", f'new Analytics({{ writeKey: "any", host: "{base}" }})'),
        ("RudderStack, Python", f'rudder_analytics.dataPlaneUrl = "{base}"'),
        ("RudderStack, Node", f'new RudderAnalytics("any", {{ dataPlaneUrl: "{base}", errorHandler: console.error }})'),
        (
            "Segment, Go (RudderStack: DataPlaneUrl)",
            f'analytics.NewWithConfig("any", analytics.Config{{Endpoint: "{base}"}})',
        ),
        ("Segment, Java (RudderStack: setDataPlaneUrl)", f'Analytics.builder("any").endpoint("{base}")'),
        ("RudderStack, Rust", f'RudderAnalytics::load("any".into(), "{base}".into())'),
        ("Segment, Analytics.NET", f'new Config().SetHost("{base}")'),
        ("RudderStack, Ruby", f'Rudder::Analytics.new(write_key: "any", data_plane_url: "{base}", ssl: false)'),
    ]
