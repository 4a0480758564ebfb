"""The command line as tests call it: in this process, with what it printed and its exit code."""

import json
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trio
from click.testing import CliRunner
from living import Place

from sidecar.cli import main
from sidecar.config import Secret
from sidecar.http import Stopping
from sidecar.px.transport import HttpxNetwork
from sidecar.sandbox import Sandbox, serve_sandbox


class Ran(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


def run(*arguments: str, stdin: str | bytes | None = None, **environ: str) -> Ran:
    result = CliRunner().invoke(main, list(arguments), input=stdin, env=environ)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Ran(result.exit_code, result.stdout, result.stderr)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


class Px:
    """The sandbox, on an address of its own: the key is ``sandbox-key``."""

    def __init__(self) -> None:
        self.box = Sandbox(per_second=0)
        self.url = ""
        self._ready = threading.Event()
        self._stopping = Stopping()
        self._thread = threading.Thread(target=lambda: trio.run(self._serve), daemon=True)

    def start(self) -> "Px":
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def stop(self) -> None:
        self._token.run_sync_soon(self._stopping.set)
        self._thread.join(10)
        assert not self._thread.is_alive()
        self.box.close()

    async def _serve(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as nursery:
            serve = partial(serve_sandbox, self.box, stopping=self._stopping)
            self.url = await nursery.start(serve)
            self._ready.set()

    def place(self, folder: Path, more: str = "") -> Place:
        """A place whose daemon delivers here."""
        return Place(folder, more, px=f'base_url = "{self.url}"')

    def network(self, place: Place) -> HttpxNetwork:
        """The way here, for ``place.living``."""
        return HttpxNetwork(place.config.px, Secret("sandbox-key"), 5.0)


@pytest.fixture
def px() -> Iterator[Px]:
    px = Px().start()
    yield px
    px.stop()


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    """Run a verb without what this machine may have configured."""
    for name in ("PX_SIDECAR_CONFIG", "PX_SIDECAR_LISTEN_CONTROL", "STATE_DIRECTORY", "CREDENTIALS_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PX_SIDECAR_PX_API_KEY", "sandbox-key")
    return run
