"""Routes about the configuration: what is in the file, what a changed text would do, and the reload."""

import hashlib
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import msgspec
import trio

from sidecar.config import Config, ConfigFile, reloaded, without_secrets
from sidecar.control.answers import Params, RouteTable, decode_body, json_response
from sidecar.control.reload import Reloaded, changes_between, problems_of
from sidecar.errors import ConfigError, Failed
from sidecar.http import Request, Response
from sidecar.mapping import LiveSettings, compile_mapping

__all__ = ["ConfigRoutes", "ConfigText", "check_text"]

_LINE: Final = re.compile(r"\bline (\d+)")


class ConfigText(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /v1/config/check``: a whole configuration file."""

    toml: str


class ConfigRoutes:
    """``/v1/config/file``, ``/v1/config/changes``, ``/v1/config/check`` and ``/v1/reload``."""

    def __init__(
        self, settings: LiveSettings, file: ConfigFile | None, reload: Callable[[], Awaitable[Reloaded]] | None
    ) -> None:
        self._settings = settings
        self._file = file
        self._reload = reload
        self.routes: RouteTable = {
            "/v1/config/file": ("GET", self._show_file),
            "/v1/config/changes": ("GET", self._list_changes),
            "/v1/config/check": ("POST", self._check),
            "/v1/reload": ("POST", self._reload_now),
        }

    async def _show_file(self, _request: Request, _params: Params) -> Response:
        file = self._known_file()
        described = await trio.to_thread.run_sync(_describe_file, file.path)
        return json_response(described | {"variables": file.variables()})

    async def _list_changes(self, _request: Request, _params: Params) -> Response:
        """Return what the file says that is not in force, as this process would read it, with its own environment."""
        file, running = self._known_file(), self._settings.now.config
        answer: dict[str, Any] = {"path": str(file.path.absolute()), "changes": [], "error": None, "problems": []}
        try:
            config = await trio.to_thread.run_sync(file.load)
        except ConfigError as error:
            return json_response(answer | {"error": str(error), "problems": list(problems_of(error))})
        return json_response(answer | {"changes": _with_restart(running, config)})

    async def _check(self, request: Request, _params: Params) -> Response:
        text = decode_body(request, ConfigText).toml
        config = await trio.to_thread.run_sync(check_text, self._known_file(), text)  # a long text takes a second
        if isinstance(config, dict):
            return json_response(config)
        running = self._settings.now.config
        changes = _with_restart(running, config)
        return json_response({"ok": True, "error": None, "line": None, "changes": changes, "problems": []})

    async def _reload_now(self, _request: Request, _params: Params) -> Response:
        if self._reload is None:
            raise Failed("The daemon is not running; the configuration is read when it starts.")
        result = await self._reload()
        if result.error:
            return json_response({"error": result.error, "problems": result.problems}, 409)
        return json_response(
            {"reloaded": True, "waiting": result.waiting, "changed": result.changed, "new_key": result.new_key}
        )

    def _known_file(self) -> ConfigFile:
        if self._file is None:
            raise Failed("There is no configuration file to read; run the daemon with --config.")
        return self._file


def _with_restart(running: Config, config: Config) -> list[dict[str, Any]]:
    waiting = set(reloaded(running, config)[1])
    return [change | {"restart": change["key"] in waiting} for change in changes_between(running, config)]


def _describe_file(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {"path": str(path.absolute()), "exists": False, "toml": "", "sha256": ""}
    except (OSError, UnicodeDecodeError) as error:
        raise Failed(f"The configuration file {path} cannot be read ({error}); check its owner and mode.") from None
    digest = hashlib.sha256(text.encode()).hexdigest()
    return {"path": str(path.absolute()), "exists": True, "toml": without_secrets(text), "sha256": digest}


def check_text(file: ConfigFile, toml: str) -> Config | dict[str, Any]:
    """Return the configuration that a text gives, or the answer that says what is wrong with it, and in which line."""
    try:
        config = file.parse(toml)
        compile_mapping(config.mapping, config.people, config.identity)
    except ConfigError as error:
        line = _LINE.search(str(error))
        answer = {"ok": False, "error": str(error), "line": int(line[1]) if line else None, "changes": []}
        return answer | {"problems": list(problems_of(error))}
    return config
