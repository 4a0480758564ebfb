"""Requests that verbs send to PX directly: is the key valid (``check --live``), and, without a daemon, which events exist.

They do not count against the day's quota: its counters belong to the daemon, and these are a few requests a run. The
distance of ``deliver.per_day`` to PX's limit covers them (sidecar/px/README.md#limits).
"""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import trio

from sidecar.cli.common import global_option, load_config
from sidecar.config import Config, Secret, api_key
from sidecar.config.credentials import KeyUnreadable
from sidecar.control.client import ControlApi, DaemonClient
from sidecar.errors import ConfigError, Failed
from sidecar.px import (
    PxRequest,
    Reply,
    declared_attributes,
    decode_events,
    holds_event,
    read_attributes,
    read_event,
    read_events,
)
from sidecar.px.transport import HttpxNetwork

__all__ = ["ask_px", "changed_credential", "declared_in_px", "effective_key", "is_in_px", "totals_in_px"]

TIMEOUT_S: Final = 30.0
NAMES_AT_ONCE: Final = 20
KEY_FOLDER: Final = Path("/etc/px-sidecar")  # LoadCredential= in systemd/*.service


def effective_key(config: Config, environ: Mapping[str, str] = os.environ) -> Secret:
    """Return the API key that the daemon uses. Raises ConfigError if there is none.

    systemd passes the key to the daemon as a credential, which an operator's shell does not have. In that case the key
    is read from the file that ``LoadCredential=`` names, if this user can read it.
    """
    try:
        return api_key(config.px, environ)
    except ConfigError:
        path = _credential_path()
        own = config.px.api_key or config.px.api_key_file
        if not own and path.exists() and not os.access(path, os.R_OK):
            raise KeyUnreadable(path) from None
        if config.px.api_key or config.px.api_key_file or not os.access(path, os.R_OK):
            raise
        return api_key(msgspec.structs.replace(config.px, api_key_file=str(path)), {})


def _credential_path() -> Path:
    instance = global_option("instance")
    return KEY_FOLDER / (f"{instance}.api_key" if instance else "api_key")


def changed_credential(daemon: ControlApi) -> str:
    """Return what to do if the file of the systemd credential is newer than the daemon that uses it; else nothing."""
    path = _credential_path()
    try:
        changed_s = path.stat().st_mtime
    except OSError:
        return ""
    px, uptime_s = daemon.get("/v1/config")["px"], daemon.get("/v1/status")["uptime_s"]
    if px["api_key"] or px["api_key_file"] or changed_s <= time.time() - uptime_s:
        return ""
    return (
        f"{path} has changed since the daemon started; as a systemd credential it is read at a start alone: "
        "`systemctl restart px-sidecar`."
    )


def ask_px(config: Config, requests: Sequence[PxRequest]) -> list[Reply]:
    """Send the requests one after another on one connection; return PX's replies. Raises ConfigError without a key."""
    network = HttpxNetwork(config.px, effective_key(config), min(TIMEOUT_S, config.deliver.timeout))

    async def ask() -> list[Reply]:
        lane = network.lane()
        try:
            return [await lane.send(request) for request in requests]
        finally:
            await lane.aclose()

    return trio.run(ask)


def totals_in_px(
    backend: ControlApi, config_flag: str | None, names: Sequence[str], since_ms: int, until_ms: int
) -> list[int]:
    """Return how many events PX has of the first ``NAMES_AT_ONCE`` names, at least of one; the daemon asks if one runs.

    Raises Failed, or ConfigError without a key. PX's filter language reads ";" as "and" and has no way to quote it: a name
    with one cannot be asked for.
    """
    names = names[:NAMES_AT_ONCE]
    if not isinstance(backend, DaemonClient):
        requests = [read_events(event_name=name, from_ms=since_ms, until_ms=until_ms, page_size=1) for name in names]
        return [decode_events(reply)["totalHits"] for reply in ask_px(load_config(config_flag), requests)]
    answer = backend.post("/v1/reconcile/px", {"names": names, "since_ms": since_ms, "until_ms": until_ms})
    if not answer["totals"]:
        raise Failed(answer["problem"])
    totals: list[int] = answer["totals"]
    return totals


def declared_in_px(backend: ControlApi, config_flag: str | None, kind: Literal["user", "account"]) -> list[str]:
    """Return the custom attributes that PX declares; the daemon asks if one runs. Raises Failed or ConfigError."""
    if isinstance(backend, DaemonClient):
        names: list[str] = backend.get("/v1/attributes", {"kind": kind})["names"]
        return names
    return declared_attributes(ask_px(load_config(config_flag), [read_attributes(kind)])[0], kind)


def is_in_px(backend: ControlApi, config_flag: str | None, body: Mapping[str, Any]) -> bool:
    """Return whether PX shows the event with this body, by its name, user and date; the daemon asks if one runs.

    Raises Failed, or ConfigError without a key. An ``OfflineBackend`` may be closed already.
    """
    name, user, date_ms = body["eventName"], body["identifyId"], body["date"]
    if isinstance(backend, DaemonClient):
        return bool(backend.get("/v1/verify", {"name": name, "user": user, "date_ms": date_ms})["found"])
    (reply,) = ask_px(load_config(config_flag), [read_event(name, user, date_ms)])
    return holds_event(decode_events(reply), name, user, date_ms)
