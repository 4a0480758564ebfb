"""A daemon in a thread of the test process: real sockets, a real outbox file, a scripted network instead of PX."""

import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import trio

from sidecar.client import Client
from sidecar.clock import Clock, SystemClock
from sidecar.config import Config, ConfigFile, load_text
from sidecar.control.client import DaemonClient
from sidecar.daemon import Application, Seams, build, reload, serve, serve_sockets
from sidecar.outbox import Store, ThreadRunner
from sidecar.px import PxAnswer, PxRequest, Reply
from sidecar.px.network import FakeNetwork
from sidecar.receive import bind_control, bind_listeners

PRODUCT = "AP-XXXXXXXXXX-2"
Script = Callable[[PxRequest], Awaitable[Reply]]


def wait_until(condition: Callable[[], object], what: str, timeout_s: float = 10.0) -> None:
    """Poll until ``condition()`` is true. Raises AssertionError that names ``what`` after ``timeout_s``."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, f"{what} did not happen within {timeout_s} s"
        time.sleep(0.01)


def always(status: int, body: bytes = b"{}") -> Script:
    """A PX that answers every request with the same status and JSON body."""

    async def script(_request: PxRequest) -> Reply:
        return PxAnswer(status, body, content_type="application/json")

    return script


class DaemonDir:
    """The directory of one daemon: configuration, outbox and sockets.

    ``more`` is appended to the TOML text, behind ``[outbox]``; ``px`` is inserted into ``[px]``.
    """

    def __init__(self, folder: Path, more: str = "", *, px: str = "") -> None:
        self.folder = folder
        self.outbox = folder / "outbox.db"
        self.control = str(folder / "control.sock")
        self.unix = str(folder / "events.sock")
        self.file = folder / "config.toml"
        self.file.write_text(
            f'[px]\nproperty_key = "{PRODUCT}"\n{px}\n[listen]\nhttp = ""\nunix = "{self.unix}"\ncontrol = "{self.control}"\n'
            f'[outbox]\npath = "{self.outbox}"\n{more}\n'
        )

    @property
    def config(self) -> Config:
        return load_text(self.file.read_text())

    @property
    def flags(self) -> list[str]:
        """What a verb needs to find this daemon_dir."""
        return ["--config", str(self.file)]

    @contextmanager
    def running(
        self,
        script: Script | None = None,
        *,
        network: Any = None,
        config_file: ConfigFile | None = None,
        clock: Clock | None = None,
    ) -> Iterator["RunningDaemon"]:
        """Run the daemon for the length of the block. PX is the script, or what answers behind ``network``.

        With ``config_file`` the daemon knows its file, and reloads it on a call of the control API.
        """
        network = network or (FakeNetwork(script) if script else FakeNetwork())
        daemon = RunningDaemon(self, network, config_file, clock or SystemClock())
        try:
            yield daemon.start()
        finally:
            daemon.stop()


class RunningDaemon:
    """One run of a daemon. ``client`` speaks to its control socket; ``app`` is the application itself."""

    def __init__(self, daemon_dir: DaemonDir, network: Any, config_file: ConfigFile | None, clock: Clock) -> None:
        self._config_file, self._clock = config_file, clock
        self.daemon_dir = daemon_dir
        self.network = network
        self.client = DaemonClient(daemon_dir.control)
        self.app: Application
        self._token: trio.lowlevel.TrioToken
        self._stop: trio.Event
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> "RunningDaemon":
        """Start the thread and wait until events are accepted. Raises what the daemon failed with."""
        self._thread.start()
        self._ready.wait(10)
        if self._failure is not None:
            raise self._failure
        return self

    def stop(self) -> None:
        """Stop in order, as on SIGTERM. Raises what the daemon failed with."""
        self.begin_stop()
        self._thread.join(10)
        assert not self._thread.is_alive()
        if self._failure is not None:
            raise self._failure

    def begin_stop(self) -> None:
        """Begin to stop in order; ``stop`` waits for the end."""
        if self._thread.is_alive():
            self._token.run_sync_soon(self._stop.set)

    def do(self, call: Callable[[], Any]) -> Any:
        """Call a function in the daemon's thread, and return its result."""
        return trio.from_thread.run_sync(call, trio_token=self._token)

    def run(self, call: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
        """Await an async function in the daemon's thread, and return its result."""
        return trio.from_thread.run(call, *arguments, trio_token=self._token)

    def reload(self, text: str) -> None:
        """Reload the daemon with this TOML text, as on SIGHUP."""

        async def read() -> Config:
            return load_text(text)

        self.run(reload, self.app, read)

    def track(self, user: str | None, name: str, **fields: Any) -> str:
        """Send an event over the Unix socket, and return its message id."""
        with Client(self.daemon_dir.unix) as client:
            return client.track(user, name, fields.pop("properties", None), **fields)

    def status(self) -> dict[str, Any]:
        return self.client.get("/v1/status")

    def settle(self) -> dict[str, Any]:
        """Wait until nothing is pending, and return the status."""
        wait_until(lambda: self.status()["pending"] == 0, "an empty backlog")
        return self.status()

    def _run(self) -> None:
        try:
            trio.run(self._main)
        except BaseException as error:
            self._failure = error
        finally:
            self._ready.set()

    async def _read_config(self) -> Config:
        return await trio.to_thread.run_sync(self._config_file.load)

    async def _main(self) -> None:
        config = self.daemon_dir.config
        self._token, self._stop = trio.lowlevel.current_trio_token(), trio.Event()
        store = Store(self.daemon_dir.outbox)
        with closing(store):
            seams = Seams(store, self.network, self._clock, ThreadRunner(), Random(1))
            if self._config_file is not None:
                seams = seams._replace(config_file=self._config_file, read_config=self._read_config)
            self.app = build(config, seams)
            with closing(bind_listeners(config.listen, {})) as sockets, bind_control(config.listen) as control:
                await serve(self.app, partial(self._ingest, sockets, control))

    async def _ingest(self, sockets: Any, control: Any) -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(serve_sockets, self.app, sockets, control, descriptors=1024, stop=self._stop))
            self._ready.set()
