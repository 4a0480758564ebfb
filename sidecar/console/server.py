"""The console's server: the page, its session, and the calls that it passes on to the daemon.

Nothing of it runs in the daemon, which only answers the control API. The process ends with Ctrl-C, or after half an hour
without use of the page.
"""

import logging
import os
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from importlib.resources import files
from typing import Any, Final, NamedTuple

import msgspec
import trio

from sidecar import __version__
from sidecar.config import ConfigFile
from sidecar.console import config_file
from sidecar.console.guard import EVERY_ADDRESS, Guard, headers
from sidecar.console.review import Review, review
from sidecar.console.session import IDLE_S, Sessions, TooManyGuesses
from sidecar.console.upstream import Upstream, hide
from sidecar.control.reload import changes_between
from sidecar.errors import ConfigError, Failed, NotRunning, SidecarError
from sidecar.http import Request, Response, Shutdown, serve, serve_connection

__all__ = ["Console", "Options"]

log = logging.getLogger(__name__)

CONNECTIONS: Final = 64
WITH_TEXT: Final = frozenset({"/api/v1/map", "/api/v1/mapping/preview", "/api/v1/config/check"})
"""Calls that get the text of a configuration file."""
TYPES: Final = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
}


class Options(NamedTuple):
    """The caller's options."""

    control: str
    config_file: ConfigFile
    address: str = "127.0.0.1"
    port: int = 0
    read_only: bool = False
    hide_bodies: bool = False
    idle_s: float = IDLE_S


class Text(msgspec.Struct, forbid_unknown_fields=True):
    """The body of calls about the file: its masked text, and the digest of what was loaded."""

    toml: str
    sha256: str = ""
    changes: list[config_file.Edit] = []


class Code(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /session``."""

    code: str


class Console:
    """One console. ``run`` serves it; ``url`` is what to open in a browser, with a new code each time."""

    def __init__(self, options: Options) -> None:
        self._options = options
        hidden = hide if options.hide_bodies else None
        read_only = options.read_only or options.hide_bodies
        self._upstream = Upstream(options.control, read_only=read_only, hide=hidden)
        self._sessions = Sessions(trio.current_time())
        self._static = _load_static()
        self._headers = headers()
        self._saving = trio.Lock()
        self._listener = _bind(options.address, options.port)
        self.port: int = self._listener.getsockname()[1]
        self._guard = Guard(options.address, self.port)
        self._local: dict[str, tuple[str, Callable[[Request], Awaitable[Any]]]] = {
            "/api/console": ("GET", self._about),
            "/api/file": ("GET", self._read_file),
            "/api/file/edit": ("POST", self._edit),
            "/api/file/diff": ("POST", self._diff),
            "/api/file/save": ("POST", self._save),
        }

    def url(self) -> str:
        """Return the address of the page with a new one-time code."""
        address = EVERY_ADDRESS.get(self._options.address, self._options.address)
        address = f"[{address}]" if ":" in address else address
        return f"http://{address}:{self.port}/#code={self._sessions.new_code(trio.current_time())}"

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until the page has been idle for a while. Cancellation ends it at once."""
        shutdown = Shutdown()
        listening = trio.SocketListener(trio.socket.from_stdlib_socket(self._listener))

        async def connection(stream: trio.abc.Stream) -> None:
            await serve_connection(stream, self._answer, shutdown=shutdown, refuse=self._refuse, on_error=_log_error)

        async with listening, trio.open_nursery() as nursery:
            serving = partial(serve, [listening], connection, max_connections=CONNECTIONS, on_error=_log_error)
            await nursery.start(serving)
            task_status.started()
            while True:
                left_s = self._options.idle_s - self._sessions.idle_s(trio.current_time())
                if left_s <= 0:
                    break
                await trio.sleep(left_s)
            nursery.cancel_scope.cancel()

    async def _answer(self, request: Request) -> Response:
        response = await self._respond(request)
        response.headers = (*self._headers, *response.headers)
        return response

    async def _respond(self, request: Request) -> Response:
        if refused := self._guard.refusal(request):
            return _error(*refused)
        if request.path == "/session":
            return self._open_session(request)
        if not request.path.startswith("/api/"):
            return self._page(request)
        scheme, _, token = (request.header(b"authorization") or b"").decode("latin-1").partition(" ")
        if scheme.lower() != "bearer" or not self._sessions.use(token.strip(), trio.current_time()):
            return _error(401, "This page is not signed in: press Enter in the terminal of the console for a new link.")
        if request.path.startswith("/api/v1/"):
            if request.path in WITH_TEXT:
                try:
                    request = await trio.to_thread.run_sync(self._with_secrets, request)
                except ConfigError as error:
                    return _error(409, str(error))
            return await self._upstream.pass_on(request, request.path.removeprefix("/api"), self._touch)
        return await self._answer_local(request)

    def _with_secrets(self, request: Request) -> Request:
        """Return the request with the file's secrets put back into the text of the page, for the daemon alone.

        Raises ConfigError for a text that would show a secret.
        """
        try:
            body = msgspec.json.decode(request.body, type=dict[str, Any])
            body["toml"] = config_file.full_text(self._options.config_file, body["toml"])
        except (msgspec.DecodeError, RecursionError, Failed, KeyError, TypeError):
            return request  # without a text, or a bad request, which the daemon answers
        return msgspec.structs.replace(request, body=msgspec.json.encode(body))

    def _touch(self) -> None:
        self._sessions.touch(trio.current_time())

    def _open_session(self, request: Request) -> Response:
        if request.method != "POST":
            return _error(405, "/session allows POST only.")
        try:
            code = msgspec.json.decode(request.body, type=Code).code
            token = self._sessions.redeem(code, trio.current_time())
        except msgspec.DecodeError:
            return _error(400, "The request has no code.")
        except TooManyGuesses:
            return _error(429, "Too many wrong codes; wait a minute.")
        if token is None:
            return _error(401, "The code was used already, or is too old: press Enter in the terminal for a new link.")
        return _json({"token": token})

    def _page(self, request: Request) -> Response:
        if request.method == "POST":
            return _error(405, f"{request.path[:100]} allows GET only.")
        name = request.path.removeprefix("/") or "index.html"
        body = self._static.get(name)
        if body is None:
            return _error(404, f"There is nothing at {request.path[:100]}.")
        return Response(200, body, TYPES[name.rpartition(".")[2]])

    async def _answer_local(self, request: Request) -> Response:
        method, call = self._local.get(request.path, ("", None))
        if call is None or method != ("GET" if request.method == "HEAD" else request.method):
            return _error(404, f"There is no call {request.method} {request.path[:100]}.")
        if self._options.hide_bodies and request.path != "/api/console":
            return _error(403, "Hidden: this console shows names, states and counts only.")
        try:
            return _json(await call(request))
        except msgspec.DecodeError as error:
            return _error(400, f"The request is invalid: {error}.")
        except RecursionError:
            return _error(400, "The request is invalid: it is nested too deeply.")
        except SidecarError as error:
            return _error(409, str(error))

    async def _about(self, _request: Request) -> dict[str, Any]:
        return {
            "version": __version__,
            "host": socket.gethostname(),
            "read_only": self._upstream.read_only,
            "hide_bodies": self._options.hide_bodies,
        }

    async def _read_file(self, _request: Request) -> config_file.SavedFile:
        variables = await self._variables()
        return await trio.to_thread.run_sync(config_file.read, self._options.config_file, variables)

    async def _variables(self) -> dict[str, str]:
        """Return the keys that the daemon's variables set; without a daemon none are known."""
        try:
            known = await self._upstream.call("GET", "/v1/config/file")
        except SidecarError:
            return {}
        variables: dict[str, str] = known.get("variables", {})
        return variables

    async def _edit(self, request: Request) -> dict[str, Any]:
        text = msgspec.json.decode(request.body, type=Text)
        return await trio.to_thread.run_sync(_edited, text)

    async def _diff(self, request: Request) -> Review:
        text = msgspec.json.decode(request.body, type=Text)
        loaded = await self._read_file(request)
        return review(loaded.toml, text.toml, loaded.variables)

    async def _save(self, request: Request) -> dict[str, Any]:
        """Save the file, have the daemon reload it, and put the old one back if the daemon refuses."""
        if self._upstream.read_only:
            raise Failed("This console is read-only.")
        text = msgspec.json.decode(request.body, type=Text)
        file = self._options.config_file
        async with self._saving:
            before = await trio.to_thread.run_sync(_load_or_none, file)
            full = await trio.to_thread.run_sync(config_file.full_text, file, text.toml)
            reachable = await self._judged_by_daemon(full)
            # From here on the file must end up with the new text or the old one, whatever disconnects meanwhile.
            with trio.CancelScope(shield=True):
                config = await trio.to_thread.run_sync(config_file.save, file, text.toml, text.sha256)
                changed = [] if before is None else [change["key"] for change in changes_between(before, config)]
                answer: dict[str, Any] = {"saved": True, "changed": changed, "reloaded": False, "waiting": []}
                if not reachable:
                    return answer | {"note": "The daemon does not run; it reads the file when it starts."}
                try:
                    result = await self._upstream.call("POST", "/v1/reload")
                except SidecarError as error:
                    await trio.to_thread.run_sync(config_file.restore, file, text.sha256)
                    raise Failed(f"Not saved, the old file is back: {error}") from None
                await self._note(f"saved {file.path}: {', '.join(changed) or 'no setting changed'}")
        return answer | {"reloaded": True, "waiting": result["waiting"], "note": ""}

    async def _judged_by_daemon(self, full: str) -> bool:
        """Have the daemon judge the text, in its own environment. Returns whether it runs. Raises Failed."""
        try:
            known = await self._upstream.call("GET", "/v1/config/file")
        except NotRunning:
            return False
        except Failed as error:  # it runs, and could not read what is saved
            raise Failed(f"Not saved: {error}") from None
        path = str(self._options.config_file.path.absolute())
        if not _is_same(path, known["path"]):
            raise Failed(f"Not saved: the daemon reads {known['path']}, not {path}; name its file with --config.")
        judged = await self._upstream.call("POST", "/v1/config/check", {"toml": full})
        if not judged["ok"]:
            raise Failed(f"Not saved: {judged['error']}")
        return True

    async def _note(self, detail: str) -> None:
        try:
            await self._upstream.call("POST", "/v1/audit/note", {"action": "configuration", "detail": detail})
        except SidecarError as error:
            log.warning("The saved configuration is not in the audit trail: %s", error)

    def _refuse(self, _code: str, message: str, status: int) -> Response:
        response = _error(status, message)
        response.headers = self._headers
        return response


def _is_same(path: str, other: str) -> bool:
    """Return whether two absolute paths are the same, apart from ".."; links are refused elsewhere."""
    return os.path.normpath(path) == os.path.normpath(other)


def _edited(text: Text) -> dict[str, Any]:
    toml = config_file.edit(text.toml, text.changes)
    return {"toml": toml, "rules": config_file.rules_of(toml)}


def _load_or_none(file: ConfigFile) -> Any:
    try:
        return file.load()
    except ConfigError:
        return None


def _load_static() -> dict[str, bytes]:
    """Return the files of the page by path. They are read once: no path of a request ever reaches the file system."""
    root = files("sidecar.console").joinpath("static")
    loaded: dict[str, bytes] = {}
    for folder, prefix in ((root, ""), (root.joinpath("vendor"), "vendor/")):
        for entry in folder.iterdir():
            if entry.is_file() and entry.name.rpartition(".")[2] in TYPES:
                loaded[prefix + entry.name] = entry.read_bytes()
    return loaded


def _bind(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(CONNECTIONS)
    except OSError as error:
        listener.close()
        raise Failed(
            f"The console cannot listen at {address}:{port} ({error.strerror}); choose another --address."
        ) from None
    return listener


def _json(value: Any) -> Response:
    return Response(200, msgspec.json.encode(value))


def _error(status: int, message: str) -> Response:
    return Response(status, msgspec.json.encode({"error": message}))


def _log_error(error: BaseException, *_request: Request) -> None:
    log.error("A request to the console failed: %r. This is a bug; report it.", error)
