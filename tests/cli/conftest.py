"""Run a verb in this process and return its output and exit code; a sandbox as PX."""

import json
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trio
from click.testing import CliRunner
from running_daemon import DaemonDir

from sidecar.cli import main
from sidecar.config import Secret
from sidecar.http import Shutdown
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
def daemon_dir(tmp_path: Path) -> DaemonDir:
    return DaemonDir(tmp_path)


class Px:
    """A sandbox in a thread, on its own port; the API key is ``sandbox-key``."""

    def __init__(self) -> None:
        self.box = Sandbox(per_second=0)
        self.url = ""
        self._ready = threading.Event()
        self._stopping = Shutdown()
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
            serve = partial(serve_sandbox, self.box, shutdown=self._stopping)
            self.url = await nursery.start(serve)
            self._ready.set()

    def daemon_dir(self, folder: Path, more: str = "") -> DaemonDir:
        """The directory of a daemon that delivers to this sandbox."""
        return DaemonDir(folder, more, px=f'base_url = "{self.url}"')

    def network(self, daemon_dir: DaemonDir) -> HttpxNetwork:
        """A network to this sandbox, for ``daemon_dir.running``."""
        return HttpxNetwork(daemon_dir.config.px, Secret("sandbox-key"), 5.0)


@pytest.fixture
def px() -> Iterator[Px]:
    px = Px().start()
    yield px
    px.stop()


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    """Run a verb without the configuration that this machine may have."""
    for name in ("PX_SIDECAR_CONFIG", "PX_SIDECAR_LISTEN_CONTROL", "STATE_DIRECTORY", "CREDENTIALS_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PX_SIDECAR_PX_API_KEY", "sandbox-key")
    return run
