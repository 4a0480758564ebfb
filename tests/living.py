"""A daemon that lives in a thread of the test: real sockets and a real outbox, PX played by a script."""

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
from sidecar.clock import SystemClock
from sidecar.config import Config, load_text
from sidecar.control.client import Daemon as Asked
from sidecar.control.desk import Desk
from sidecar.control.server import serve_control
from sidecar.daemon import Daemon
from sidecar.http import Stopping
from sidecar.outbox import Store, ThreadRunner
from sidecar.px import Answer, Reply, Request
from sidecar.px.fake import FakeNetwork
from sidecar.receive import Front, Routes, bind_control, bind_listeners

PRODUCT = "AP-XXXXXXXXXX-2"
Script = Callable[[Request], Awaitable[Reply]]


def wait_until(true: Callable[[], object], what: str, timeout_s: float = 10.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline_s, f"{what} did not happen within {timeout_s} s"
        time.sleep(0.01)


def always(status: int, body: bytes = b"{}") -> Script:
    async def script(_request: Request) -> Reply:
        return Answer(status, body, content_type="application/json")

    return script


class Place:
    """Where a daemon lives: its folder, configuration and sockets. ``more`` and ``px`` are added to the TOML text."""

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
        """What a verb needs to find this place."""
        return ["--config", str(self.file)]

    @contextmanager
    def living(self, script: Script | None = None, *, network: Any = None) -> Iterator["Living"]:
        """The daemon, for as long as the block lasts; PX is the script, or what is behind ``network``."""
        living = Living(self, network or (FakeNetwork(script) if script else FakeNetwork()))
        try:
            yield living.start()
        finally:
            living.stop()


class Living:
    """A running daemon, and the ways in."""

    def __init__(self, place: Place, network: Any) -> None:
        self.place = place
        self.network = network
        self.asked = Asked(place.control)
        self.daemon: Daemon
        self.desk: Desk
        self._token: trio.lowlevel.TrioToken
        self._stop: trio.Event
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> "Living":
        self._thread.start()
        self._ready.wait(10)
        if self._failure is not None:
            raise self._failure
        return self

    def stop(self) -> None:
        if self._thread.is_alive():
            self._token.run_sync_soon(self._stop.set)
        self._thread.join(10)
        assert not self._thread.is_alive()
        if self._failure is not None:
            raise self._failure

    def do(self, call: Callable[[], Any]) -> Any:
        """Call something in the daemon's own thread."""
        return trio.from_thread.run_sync(call, trio_token=self._token)

    def reload(self, text: str) -> None:
        """Have the daemon read this configuration, as upon SIGHUP."""
        trio.from_thread.run(self.daemon.reload, lambda: load_text(text), trio_token=self._token)

    def track(self, user: str | None, name: str, **fields: Any) -> str:
        """Have an event accepted; its message id."""
        with Client(self.place.unix) as client:
            return client.track(user, name, fields.pop("properties", None), **fields)

    def status(self) -> dict[str, Any]:
        return self.asked.get("/v1/status")

    def settle(self) -> dict[str, Any]:
        """Wait until nothing is pending; the status then."""
        wait_until(lambda: self.status()["pending"] == 0, "settling everything")
        return self.status()

    def _run(self) -> None:
        try:
            trio.run(self._main)
        except BaseException as error:
            self._failure = error
        finally:
            self._ready.set()

    async def _main(self) -> None:
        config = self.place.config
        self._token, self._stop = trio.lowlevel.current_trio_token(), trio.Event()
        store = Store(self.place.outbox)
        with closing(store):
            self.daemon = Daemon(
                config,
                store=store,
                network=self.network,
                clock=SystemClock(),
                runner=ThreadRunner(),
                random=Random(1),
            )
            self.desk = getattr(self.daemon, "desk", None) or Desk(self.daemon)
            with closing(bind_listeners(config.listen, {})) as opened, bind_control(config.listen) as control:
                await self.daemon.run(partial(self._front, opened, control))

    async def _front(self, opened: Any, control: Any) -> None:
        daemon, stopping = self.daemon, Stopping()
        routes = Routes(daemon.intake, daemon.outbox, {})
        front = Front(routes, daemon.intake, daemon.outbox, max_request_bytes=2**22, stopping=stopping)
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(front.serve, opened, descriptors=1024))
            await nursery.start(partial(serve_control, self.desk, control, stopping=stopping))
            self._ready.set()
            await self._stop.wait()
            stopping.set()
