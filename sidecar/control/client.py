"""How the command line speaks to the control socket: synchronous, one connection a request.

Only the standard library and msgspec, so that a verb which needs nothing but the daemon starts fast.
"""

import errno
import http.client
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, Protocol
from urllib.parse import urlencode

import msgspec

from sidecar.errors import Failed, NotRunning

__all__ = ["DEFAULT_PATH", "Asked", "Daemon", "OutOfReach"]

DEFAULT_PATH: Final = "/run/px-sidecar/control.sock"
# A daemon that is stuck is as bad as none; a page of anything takes well below a second.
PATIENCE_S: Final = 30.0

Params = Mapping[str, str | int | None]


class OutOfReach(NotRunning):
    """There is a daemon, but it does not answer, or not this user."""


class Asked(Protocol):
    """Who answers the control API: a daemon, or the file itself (``offline.File``)."""

    def get(self, path: str, params: Params = ...) -> Any:
        """What GET answers, decoded. Raises Failed with the reason if it is no success."""
        ...

    def post(self, path: str, body: Mapping[str, Any] = ...) -> Any:
        """What POST answers, decoded. Raises Failed likewise."""
        ...


class Daemon:
    """The daemon behind a control socket. Each call raises NotRunning if nobody answers there."""

    def __init__(self, path: str) -> None:
        self.path = path

    def get(self, path: str, params: Params | None = None) -> Any:
        """What GET answers, decoded; parameters that are None are left out. Raises Failed or NotRunning."""
        with self._request("GET", with_params(path, params or {}), None) as response:
            return msgspec.json.decode(self._read(response))

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """What POST answers, decoded. Raises Failed or NotRunning."""
        with self._request("POST", path, msgspec.json.encode(body or {})) as response:
            return msgspec.json.decode(self._read(response))

    @contextmanager
    def lines(
        self, path: str, params: Params | None = None, *, patience_s: float | None = None
    ) -> Iterator[Iterator[Any]]:
        """The lines of a streamed answer, decoded as they come, without end unless the daemon stops.

        The iterator raises TimeoutError if none comes for ``patience_s``. Raises Failed or NotRunning.
        """
        with self._request("GET", with_params(path, params or {}), None, patience_s=patience_s) as response:
            yield self._lines(response)

    def _lines(self, response: http.client.HTTPResponse) -> Iterator[Any]:
        while True:
            try:
                line = response.readline()
            except TimeoutError:
                raise
            except (OSError, http.client.HTTPException):
                return  # the daemon has stopped in the middle of the stream
            if not line.endswith(b"\n"):
                return
            yield msgspec.json.decode(line)

    @contextmanager
    def _request(
        self, method: str, path: str, body: bytes | None, *, patience_s: float | None = PATIENCE_S
    ) -> Iterator[http.client.HTTPResponse]:
        connection = _UnixConnection(self.path, PATIENCE_S)
        response = None
        try:
            try:
                connection.request(method, path, body)
                raw = connection.sock  # http.client lets go of it once it has the head
                response = connection.getresponse()
            except (OSError, http.client.HTTPException) as error:
                raise self._unreachable(error) from None
            if response.status != 200:
                raise Failed(_said(self._read(response)))
            raw.settimeout(patience_s)
            yield response
        finally:
            if response is not None:
                response.close()  # a stream that is left in the middle holds the socket, not the connection
            connection.close()

    def _read(self, response: http.client.HTTPResponse) -> bytes:
        try:
            return response.read()
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from None

    def _unreachable(self, error: Exception) -> NotRunning:
        if isinstance(error, PermissionError):
            return OutOfReach(
                f"The control socket {self.path} can be used by the daemon's own user and root only; use sudo."
            )
        if isinstance(error, TimeoutError):
            return OutOfReach(
                f"The daemon at {self.path} does not answer; look at `journalctl -u px-sidecar` and restart it."
            )
        known = isinstance(error, FileNotFoundError | ConnectionRefusedError | NotADirectoryError)
        why = "" if known else f" ({getattr(error, 'strerror', None) or type(error).__name__})"
        if isinstance(error, OSError) and error.errno in (errno.ENAMETOOLONG, None) and "too long" in str(error):
            why = " (the path is too long for a socket)"
        return NotRunning(
            f"The daemon is not running: nobody answers at {self.path}{why}; start it with "
            "`systemctl start px-sidecar` or `px-sidecar run`, or name its socket with --control."
        )


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("px-sidecar", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(os.fspath(self._path))


def with_params(path: str, params: Params) -> str:
    """The path with its query."""
    given = {key: value for key, value in params.items() if value is not None}
    return f"{path}?{urlencode(given)}" if given else path


def _said(body: bytes) -> str:
    """The sentence of an answer that is no success."""
    try:
        return str(msgspec.json.decode(body)["error"])
    except (msgspec.DecodeError, KeyError, TypeError):
        return f"What answers there is no px-sidecar: {body[:80]!r}; check --control."
