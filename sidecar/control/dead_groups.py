"""Routes that count dead letters: in groups, and how many a filter selects before it is used to replay or discard."""

from functools import partial
from typing import Final

import trio

from sidecar.control.answers import Params, RouteTable, decode_body, json_response
from sidecar.control.selection import DeadCommand
from sidecar.http import Request, Response
from sidecar.mapping import LiveSettings
from sidecar.outbox import Outbox
from sidecar.outbox.dead import DeadLetterFilter, dead_page, exported
from sidecar.outbox.dead_groups import DeadGroup, count_page, group_page

__all__ = ["DeadGroupRoutes"]

# A million letters are counted in about two seconds; the store serves others between the pages.
COUNT_S: Final = 5.0
GROUPS_MAX: Final = 500


class DeadGroupRoutes:
    """``/v1/dead/groups`` and ``/v1/dead/count``. ``complete`` is false if there was not enough time to count all."""

    def __init__(self, outbox: Outbox, settings: LiveSettings) -> None:
        self._outbox = outbox
        self._settings = settings
        self.routes: RouteTable = {
            "/v1/dead/groups": ("GET", self._groups),
            "/v1/dead/count": ("POST", self._count),
        }

    async def _groups(self, _request: Request, _params: Params) -> Response:
        merged: dict[tuple[str, str, int | None], DeadGroup] = {}
        after: int | None = 0
        with trio.move_on_after(COUNT_S):
            while after is not None:
                groups, after = await self._outbox.read(partial(group_page, after_id=after))
                for group in groups:
                    _merge(merged, group)
        groups = sorted(merged.values(), key=lambda group: (-group.count, group.reason, group.name))
        return json_response(
            {
                "groups": await self._redacted(groups[:GROUPS_MAX]),
                "dead": sum(group.count for group in groups),
                "complete": after is None and len(groups) <= GROUPS_MAX,
            }
        )

    async def _redacted(self, groups: list[DeadGroup]) -> list[DeadGroup]:
        """Return the groups with details as the privacy rules in force show them: PX may quote what they hide now."""
        which = DeadLetterFilter(ids=[group.id for group in groups])
        details: dict[int, str] = {}
        after: int | None = 0 if groups else None
        while after is not None:
            page = await self._outbox.read(partial(dead_page, which=which, after_id=after))
            mapper = self._settings.now.mapper
            details |= {
                letter.id: exported(letter, mapper.redact, mapper.reveal_account)["detail"] for letter in page.letters
            }
            after = page.next_after
        for group in groups:
            group.detail = details.get(group.id, "")  # replayed or discarded meanwhile
        return groups

    async def _count(self, request: Request, _params: Params) -> Response:
        which = decode_body(request, DeadCommand).selection()
        counted, after = 0, 0 if which.ids != [] else None
        with trio.move_on_after(COUNT_S):
            while after is not None:
                count, after = await self._outbox.read(partial(count_page, which=which, after_id=after))
                counted += count
        return json_response({"count": counted, "complete": after is None})


def _merge(merged: dict[tuple[str, str, int | None], DeadGroup], group: DeadGroup) -> None:
    """Add a group of a later page; its newest letter is the newer one."""
    known = merged.setdefault((group.reason, group.name, group.status), group)
    if known is not group:
        known.count += group.count
        known.first_ms, known.last_ms = min(known.first_ms, group.first_ms), max(known.last_ms, group.last_ms)
        known.id, known.detail = group.id, group.detail
