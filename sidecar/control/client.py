"""The client of the control socket: synchronous, one connection per request.

It imports only the standard library and msgspec, so that verbs that talk to the daemon start fast.
"""

import errno
import http.client
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, Protocol
from urllib.parse import urlencode

import msgspec

from sidecar.errors import Failed, NotRunning

__all__ = [
    "DEFAULT_PATH",
    "DEFAULT_READ_PATH",
    "READING_POSTS",
    "CallRefused",
    "ControlApi",
    "DaemonClient",
    "DaemonUnreachable",
]

DEFAULT_PATH: Final = "/run/px-sidecar/control.sock"
DEFAULT_READ_PATH: Final = "/run/px-sidecar/control-read.sock"
# Every page is answered in well below a second. A daemon that needs longer than this is stuck.
TIMEOUT_S: Final = 30.0

Params = Mapping[str, str | int | None]

READING_POSTS: Final = frozenset(
    {
        "/v1/dead/count",
        "/v1/events/count",
        "/v1/resend/count",
        "/v1/backfill/check",
        "/v1/import/count",
        "/v1/map",
        "/v1/mapping/preview",
        "/v1/config/check",
        "/v1/reconcile/px",
    }
)
"""Calls that are POST because of the size of what they get, and change nothing."""


class DaemonUnreachable(NotRunning):
    """A daemon exists, but it does not answer, or its socket does not admit this user."""


class CallRefused(Failed):
    """The daemon refused a call; ``answer`` is the whole answer, of which ``error`` is the sentence."""

    def __init__(self, answer: Mapping[str, Any], status: int) -> None:
        super().__init__(str(answer["error"]))
        self.answer = answer
        self.status = status


class ControlApi(Protocol):
    """A backend that answers the control API: a daemon, or the outbox file (``offline.OfflineBackend``)."""

    def get(self, path: str, params: Params = ...) -> Any:
        """Return the decoded answer to GET. Raises Failed with the API's error sentence."""
        ...

    def post(self, path: str, body: Mapping[str, Any] = ...) -> Any:
        """Return the decoded answer to POST. Raises Failed with the API's error sentence."""
        ...


class DaemonClient:
    """The daemon behind a control socket. Every call raises NotRunning if no daemon listens there.

    A reading call tries ``read_paths`` in turn where ``path`` cannot be opened: sockets that answer reading calls alone.
    """

    def __init__(self, path: str, read_paths: Sequence[str] = ()) -> None:
        self.path = path
        self.read_paths = tuple(read_paths)

    def get(self, path: str, params: Params | None = None) -> Any:
        """Return the decoded answer to GET. Parameters that are None are omitted. Raises Failed or NotRunning."""
        with self._request("GET", with_params(path, params or {}), None) as response:
            return msgspec.json.decode(self._read(response))

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Return the decoded answer to POST. Raises Failed or NotRunning."""
        with self._request("POST", path, msgspec.json.encode(body or {})) as response:
            return msgspec.json.decode(self._read(response))

    def answers_reading_calls_only(self) -> bool:
        """Return whether the socket withholds every call that changes something. Raises Failed or NotRunning."""
        try:
            self.get("/v1/pause")  # a GET changes nothing: it is withheld, or its method is wrong
        except CallRefused as refused:
            return refused.status == 403
        return False

    @contextmanager
    def lines(
        self, path: str, params: Params | None = None, *, timeout_s: float | None = None
    ) -> Iterator[Iterator[Any]]:
        """Iterate over the decoded lines of a streamed answer as they arrive, until the stream or the daemon ends.

        The iterator raises TimeoutError if no line arrives for ``timeout_s`` (None: wait without limit). Raises Failed
        or NotRunning. Leaving the block closes the stream.
        """
        with self._request("GET", with_params(path, params or {}), None, timeout_s=timeout_s) as response:
            yield self._lines(response)

    def _lines(self, response: http.client.HTTPResponse) -> Iterator[Any]:
        while True:
            try:
                line = response.readline()
            except TimeoutError:
                raise
            except (OSError, http.client.HTTPException):
                return  # the daemon stopped in the middle of the stream
            if not line.endswith(b"\n"):
                return  # the end, or a line that was cut off when the daemon stopped
            yield msgspec.json.decode(line)

    @contextmanager
    def _request(
        self, method: str, path: str, body: bytes | None, *, timeout_s: float | None = TIMEOUT_S
    ) -> Iterator[http.client.HTTPResponse]:
        reads = method == "GET" or path in READING_POSTS
        paths = (self.path, *self.read_paths) if reads else (self.path,)
        connection = _UnixConnection(paths, TIMEOUT_S)
        response = None
        try:
            try:
                connection.request(method, path, body)
                raw = connection.sock  # getresponse() detaches the socket from the connection
                response = connection.getresponse()
            except (OSError, http.client.HTTPException) as error:
                raise self._unreachable(error, path, reads=reads) from None
            if response.status != 200:
                raise _refusal(self._read(response), response.status)
            raw.settimeout(timeout_s)
            yield response
        finally:
            if response is not None:
                response.close()  # the response of an unfinished stream owns the socket, not the connection
            connection.close()

    def _read(self, response: http.client.HTTPResponse) -> bytes:
        try:
            return response.read()
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from None

    def _unreachable(self, error: Exception, call: str = "", *, reads: bool = True) -> NotRunning:
        if isinstance(error, PermissionError) and not reads:
            return DaemonUnreachable(
                f"This changes something ({call.removeprefix('/v1/')}), and the control socket {self.path} is open to the "
                "daemon's user and root only; use sudo. Verbs that read need no more than the group px-sidecar-operators."
            )
        if isinstance(error, PermissionError):
            return DaemonUnreachable(
                f"The control socket {self.path} is open to the daemon's user and root only; use sudo, or for reading calls "
                "join the group px-sidecar-operators."
            )
        if isinstance(error, TimeoutError):
            return DaemonUnreachable(
                f"The daemon at {self.path} does not answer; check `journalctl -u px-sidecar` and restart it."
            )
        expected = isinstance(error, FileNotFoundError | ConnectionRefusedError | NotADirectoryError)
        reason = "" if expected else f" ({getattr(error, 'strerror', None) or type(error).__name__})"
        # Python itself rejects a long path, without an errno.
        if isinstance(error, OSError) and error.errno in (errno.ENAMETOOLONG, None) and "too long" in str(error):
            reason = " (the path is too long for a socket)"
        return NotRunning(
            f"The daemon is not running: no process listens at {self.path}{reason}; start it with "
            "`systemctl start px-sidecar` or `px-sidecar run`, or name its socket with --control."
        )


class _UnixConnection(http.client.HTTPConnection):
    """An HTTP connection over the first Unix socket of ``paths`` that can be opened."""

    def __init__(self, paths: Sequence[str], timeout_s: float) -> None:
        super().__init__("px-sidecar", timeout=timeout_s)
        self._paths = paths

    def connect(self) -> None:
        error: OSError | None = None
        for path in self._paths:
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.sock.settimeout(self.timeout)
            try:
                self.sock.connect(os.fspath(path))
                return
            except OSError as failure:
                self.sock.close()
                error = error or failure  # that of the socket which can do everything says best what is wrong
        assert error is not None
        raise error


def with_params(path: str, params: Params) -> str:
    """Return the path with a query of all parameters that are not None."""
    present = {key: value for key, value in params.items() if value is not None}
    return f"{path}?{urlencode(present)}" if present else path


def _refusal(body: bytes, status: int) -> Failed:
    """Return the error in an answer, or one that says that the peer is not px-sidecar."""
    try:
        return CallRefused(msgspec.json.decode(body), status)
    except (msgspec.DecodeError, KeyError, TypeError):
        return Failed(
            f"The process at the control socket is not px-sidecar: it answered {body[:80]!r}; check --control."
        )
