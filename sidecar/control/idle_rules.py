"""Compare the newest events with the mapping, and name the rules that do nothing: for ``check`` and ``status``."""

from functools import partial
from typing import Final, NoReturn

import trio

from sidecar.config import MappingConfig
from sidecar.control.answers import Params, RouteTable, json_response
from sidecar.control.state import Notices
from sidecar.errors import SidecarError
from sidecar.events import decode_or_empty
from sidecar.http import Request, Response
from sidecar.mapping import LiveSettings
from sidecar.mapping.idle_rules import EVENTS_OF_A_KIND, IdleRules
from sidecar.outbox import Outbox
from sidecar.outbox.queries import newest_bodies

__all__ = ["IdleRulesRoutes", "watch_rules"]

FIRST_AFTER_S: Final = 10.0
ROUND_EVERY_S: Final = 60.0
# The newest events are of one kind perhaps, so more are read than are compared.
NEWEST: Final = 3 * EVENTS_OF_A_KIND
READ_ROWS: Final = 250
BYTES_AT_ONCE: Final = 8 * 1024  # about a millisecond
READ_BYTES: Final = 4 * 2**20


class IdleRulesRoutes:
    """``/v1/mapping/idle``."""

    def __init__(self, outbox: Outbox, settings: LiveSettings) -> None:
        self._outbox = outbox
        self._settings = settings
        self.routes: RouteTable = {"/v1/mapping/idle": ("GET", self._idle)}

    async def _idle(self, _request: Request, _params: Params) -> Response:
        return json_response({"rules": await idle_rules(self._outbox, self._settings.now.config.mapping)})


async def watch_rules(outbox: Outbox, settings: LiveSettings, notices: Notices) -> NoReturn:
    """Report in ``notices`` which rules do nothing: soon after the start, then whenever events or rules are new."""
    await trio.sleep(FIRST_AFTER_S)
    seen: tuple[object, int] | None = None
    while True:
        mapping = settings.now.config.mapping
        now = (mapping, outbox.counters.get("accepted", 0))
        if mapping != MappingConfig() and now != seen:
            try:
                notices.idle_rules(await idle_rules(outbox, mapping))
                seen = now
            except SidecarError:
                pass  # the outbox reports what is wrong with the disk
        await trio.sleep(ROUND_EVERY_S)


async def idle_rules(outbox: Outbox, mapping: MappingConfig) -> list[str]:
    """Return a sentence for each rule that did nothing. Reads and compares in short steps."""
    rules = IdleRules(mapping)
    before, rows, size_bytes, step_bytes = 2**63 - 1, 0, 0, 0
    while rows < NEWEST and size_bytes < READ_BYTES:
        page = await outbox.read(partial(newest_bodies, before=before, limit=READ_ROWS))
        for _, body in page:
            if event := decode_or_empty(body):
                rules.add(event)
            rows, size_bytes, step_bytes = rows + 1, size_bytes + len(body), step_bytes + len(body)
            if step_bytes >= BYTES_AT_ONCE:
                step_bytes = 0
                await trio.lowlevel.checkpoint()
        if len(page) < READ_ROWS:
            break
        before = page[-1][0]
    return rules.sentences()
