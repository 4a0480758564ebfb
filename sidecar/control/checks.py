"""``GET /v1/checks``: everything that ``px-sidecar check`` looks at, as the daemon sees it.

The file is judged as it is now, which is what a reload or a restart would find; the host with the daemon's own rights.
"""

import os
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Final

import msgspec
import trio

from sidecar.config import Config, ConfigFile, Secret, api_key, fleet_password, reloaded
from sidecar.control.answers import Params, RouteTable, json_response
from sidecar.control.config_checks import check_broken_file, check_config, check_settings
from sidecar.control.host_checks import CheckResult, check_host
from sidecar.control.idle_rules import idle_rules
from sidecar.control.pages import status_of
from sidecar.control.state import StateReader
from sidecar.errors import ConfigError, SidecarError, with_instance
from sidecar.http import Request, Response
from sidecar.mapping import LiveSettings
from sidecar.outbox import Outbox
from sidecar.units import counted

__all__ = ["CheckRoutes", "check_fleet", "check_idle_rules", "check_state", "rules_not_compared"]

LOOK_S: Final = 20.0


class CheckRoutes:
    """``GET /v1/checks``. ``file`` is the configuration file of this daemon; None if it was started without one."""

    def __init__(self, file: ConfigFile | None, state: StateReader, outbox: Outbox, settings: LiveSettings) -> None:
        self._file = file
        self._state = state
        self._outbox = outbox
        self._settings = settings
        # A thread that waits for a hung disk cannot be ended; no second one starts meanwhile.
        self._looking = trio.CapacityLimiter(1)
        self.routes: RouteTable = {"/v1/checks": ("GET", self._check)}

    async def _check(self, _request: Request, _params: Params) -> Response:
        found: list[CheckResult] = []
        with trio.move_on_after(LOOK_S) as limit:
            await self._find(found)
        if limit.cancelled_caught:
            # A finding and not an error: after an error the verb checks in its own process, and would wait for that disk without end.
            sentence = f"The checks did not end within {LOOK_S:g} s; a folder or the fleet's engine does not answer."
            found.append(CheckResult("error", "checks", sentence))
        return json_response(self._answer(found))

    async def _find(self, found: list[CheckResult]) -> None:
        """Append what is found to ``found``, step by step."""
        look = partial(_look, self._settings.now.config, self._file)
        config, of_file, of_host = await trio.to_thread.run_sync(look, abandon_on_cancel=True, limiter=self._looking)
        found += of_file
        try:
            found += check_state(msgspec.to_builtins(status_of(await self._state.read())))
            found += check_idle_rules(await self._idle_rules())
        finally:
            found += of_host
        if config.fleet.url:
            found += await check_fleet(config, _environ(self._file))

    async def _idle_rules(self) -> list[str]:
        try:
            return await idle_rules(self._outbox, self._settings.now.config.mapping)
        except SidecarError as error:
            return [rules_not_compared(error)]

    def _answer(self, found: list[CheckResult]) -> dict[str, Any]:
        path, instance = ("", "") if self._file is None else (str(self._file.path.absolute()), self._file.instance)
        findings = [result._replace(message=with_instance(result.message, instance))._asdict() for result in found]
        return {"path": path, "findings": findings}


def _look(running: Config, file: ConfigFile | None) -> tuple[Config, list[CheckResult], list[CheckResult]]:
    """Return the configuration that was judged, what was found in it, and on the host.

    It is that of the file; the one in force if there is no file, or if it cannot be used. The sockets are those in force.
    """
    config = running

    def find_key(judged: Config) -> Secret:
        return api_key(judged.px, _environ(file))

    try:
        if file is None:
            found = list(check_settings(config, find_key))
        else:
            config = file.load()
            found = list(check_config(file, config, find_key))
            if waiting := reloaded(running, config)[1]:
                sentence = f"Changes that wait for a restart: {', '.join(waiting)}; restart the daemon."
                found.append(CheckResult("warning", "configuration", sentence))
    except ConfigError:
        assert file is not None
        found = list(check_broken_file(file, find_key))
    host = msgspec.structs.replace(config, listen=running.listen)
    return config, found, list(check_host(host, running=True))


def _environ(file: ConfigFile | None) -> Mapping[str, str]:
    return os.environ if file is None else file.environ


def check_state(status: Mapping[str, Any]) -> Iterator[CheckResult]:
    """Judge a running daemon by the answer of ``/v1/status``."""
    refused = {problem["message"] for problem in status.get("problems", ()) if problem["severity"] == "accepting"}
    for reason in status["reasons"]:
        yield CheckResult("error" if reason in refused else "warning", "daemon", reason)
    if not status["reasons"]:
        yield CheckResult("ok", "daemon", f"Running, with {counted(status['pending'], 'event')} pending.")


def check_idle_rules(sentences: list[str]) -> Iterator[CheckResult]:
    """Name the mapping rules that did nothing with the newest events."""
    return (CheckResult("warning", "mapping", sentence) for sentence in sentences)


def rules_not_compared(error: SidecarError) -> str:
    """Return the finding where the newest events cannot be read."""
    return f"The rules were not compared with events: {error}"


async def check_fleet(config: Config, environ: Mapping[str, str]) -> list[CheckResult]:
    """Try the fleet's engine, without joining the fleet."""
    from sidecar.fleet.trial import try_engine  # here: without [fleet] no code of the fleet is loaded

    try:
        password = await trio.to_thread.run_sync(fleet_password, config.fleet, environ, abandon_on_cancel=True)
    except ConfigError as error:
        return [CheckResult("error", "fleet", str(error))]
    return [CheckResult(trial.level, "fleet", trial.message) for trial in await try_engine(config.fleet, password)]
