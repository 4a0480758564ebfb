"""What verbs ask of PX itself, apart from delivery: is the key good, which events are there.

These few requests are not counted in the day's quota, which belongs to the daemon.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import trio

from sidecar.cli.common import before_the_verb
from sidecar.clock import SystemClock
from sidecar.config import Config, Secret, api_key
from sidecar.errors import ConfigError, Failed
from sidecar.px import Answer, Kind, Reply, Request, classify
from sidecar.px.transport import HttpxNetwork

__all__ = ["ask_px", "found_events", "key_of"]

TIMEOUT_S: Final = 30.0
KEY_FOLDER: Final = Path("/etc/px-sidecar")  # LoadCredential= in systemd/*.service


def key_of(config: Config, environ: Mapping[str, str] = os.environ) -> Secret:
    """The API key as the daemon gets it. Raises ConfigError.

    Where the units hand it over as a credential a person's shell has none: then it is read from the file that they
    name, if this user may.
    """
    try:
        return api_key(config.px, environ)
    except ConfigError:
        instance = before_the_verb("instance")
        path = KEY_FOLDER / (f"{instance}.api_key" if instance else "api_key")
        if config.px.api_key or config.px.api_key_file or not os.access(path, os.R_OK):
            raise
        return api_key(msgspec.structs.replace(config.px, api_key_file=str(path)), {})


def ask_px(config: Config, requests: Sequence[Request]) -> list[Reply]:
    """PX's replies to these requests, one after the other on one connection. Raises ConfigError without a key."""
    network = HttpxNetwork(config.px, key_of(config), min(TIMEOUT_S, config.deliver.timeout))

    async def ask() -> list[Reply]:
        lane = network.lane()
        try:
            return [await lane.send(request) for request in requests]
        finally:
            await lane.aclose()

    return trio.run(ask)


def found_events(reply: Reply) -> dict[str, Any]:
    """What PX answered to ``px.read_events``: ``customEvents``, ``totalHits``, ``scrollId``. Raises Failed."""
    verdict = classify(reply, wall_ms=SystemClock().wall_ms())
    if not isinstance(reply, Answer) or verdict.kind is not Kind.DELIVERED:
        if verdict.kind is Kind.WRONG_KEY:
            raise Failed(
                f"PX does not let this key read events (it answered {verdict.status}); give the key the Read permission "
                "under Administration > Integrations > REST API."
            )
        raise Failed(f"The events could not be read back from PX: {verdict.message}")
    try:
        found = msgspec.json.decode(reply.body)
        if isinstance(found["customEvents"], list) and isinstance(found["totalHits"], int):
            return dict(found)
    except (msgspec.DecodeError, KeyError, TypeError):
        pass  # the same as a wrong type
    raise Failed("PX's answer about events cannot be understood; is px.base_url or px.region right?")
