"""Routes that ask PX with the daemon's own key, the one that deletes users there, and the one that accepts a test event.

Questions do not count against the day's quota: they are a few per call of a person, and the distance of
``deliver.per_day`` to PX's limit covers them (sidecar/px/README.md#limits). Deletions can be many, so they do.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final, Literal

import msgspec
import trio

from sidecar.clock import Clock
from sidecar.control.answers import Int64, Params, RequestError, RouteTable, decode_body, decode_query, json_response
from sidecar.control.outbox_admin import OutboxAdmin
from sidecar.deliver.errands import Errands
from sidecar.errors import Failed
from sidecar.events import judge
from sidecar.http import Request, Response
from sidecar.mapping import LiveSettings
from sidecar.outbox import Outbox, Via, new_event
from sidecar.px import (
    Network,
    PxAnswer,
    PxRequest,
    Reply,
    add_up_names,
    classify,
    declared_attributes,
    decode_events,
    delete_user,
    holds_event,
    read_attributes,
    read_event,
    read_events,
)

__all__ = [
    "AttributesQuery",
    "ForgetInPxCommand",
    "PxRoutes",
    "ReconcileQuery",
    "SendCommand",
    "TotalsCommand",
    "VerifyQuery",
    "deletions",
]

# PX shows an event some minutes after it accepted it; counted earlier, it would be reported as missing.
TOO_NEW_MS: Final = 15 * 60_000
MAX_RANGE_MS: Final = 190 * 86_400_000
HISTORY_PAGES: Final = 400
NAMES_MAX: Final = 100
ASK_S: Final = 25.0
TOTALS_AT_ONCE: Final = 20
DELETED_AT_ONCE: Final = 20
DELETE_S: Final = 10.0


class ReconcileQuery(msgspec.Struct, forbid_unknown_fields=True):
    """The parameters of ``GET /v1/reconcile``: how long ago the window begins, in hours; it ends 15 minutes ago."""

    hours: float = 24.0


class TotalsCommand(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /v1/reconcile/px``: PX event names, and the dates of their events, both inclusive."""

    names: list[str]
    since_ms: Int64
    until_ms: Int64


class SendCommand(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /v1/send``. ``source`` is the position of a ``[[source]]`` in the configuration, from 0."""

    event: dict[str, Any]
    source: Int64 | None = None


class VerifyQuery(msgspec.Struct, forbid_unknown_fields=True):
    """The parameters of ``GET /v1/verify``: the PX event name, its user, and its date."""

    name: str
    user: str
    date_ms: Int64


class AttributesQuery(msgspec.Struct, forbid_unknown_fields=True):
    """The parameters of ``GET /v1/attributes``: whose attributes."""

    kind: Literal["user", "account"]


class ForgetInPxCommand(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /v1/forget/px``."""

    users: list[str]


class PxRoutes:
    """``/v1/reconcile`` and ``/v1/reconcile/px``, ``/v1/verify``, ``/v1/attributes``, ``/v1/forget/px`` and ``/v1/send``."""

    def __init__(
        self,
        network: Network,
        admin: OutboxAdmin,
        outbox: Outbox,
        settings: LiveSettings,
        clock: Clock,
        errands: Errands,
    ) -> None:
        self._errands = errands
        self._network = network
        self._admin = admin
        self._outbox = outbox
        self._settings = settings
        self._clock = clock
        self._asking = trio.Lock()
        self.routes: RouteTable = {
            "/v1/reconcile": ("GET", self._reconcile),
            "/v1/reconcile/px": ("POST", self._totals),
            "/v1/verify": ("GET", self._verify),
            "/v1/attributes": ("GET", self._attributes),
            "/v1/forget/px": ("POST", self._forget),
            "/v1/send": ("POST", self._send),
        }

    async def _reconcile(self, _request: Request, params: Params) -> Response:
        query = decode_query(params, ReconcileQuery)
        until_ms = self._clock.wall_ms() - TOO_NEW_MS
        if not 0 < query.hours * 3_600_000 <= MAX_RANGE_MS:
            raise RequestError(400, "PX reads back at most 190 days; give hours between 0 and 4,560.")
        since_ms = until_ms - round(query.hours * 3_600_000)
        names, complete_since_ms = await self._delivered(since_ms, until_ms)
        names = add_up_names(names.most_common())  # under the commonest spelling
        most = names.most_common(NAMES_MAX)
        totals, problem = await self._ask_totals([name for name, _ in most], since_ms, until_ms)
        totals += [None] * (len(most) - len(totals))
        rows = [{"name": name, "delivered": count, "px": px} for (name, count), px in zip(most, totals, strict=True)]
        return json_response(
            {
                "since_ms": since_ms,
                "until_ms": until_ms,
                "complete_since_ms": complete_since_ms,
                "names": rows,
                "left_out": max(0, len(names) - NAMES_MAX),
                "problem": problem,
            }
        )

    async def _delivered(self, since_ms: int, until_ms: int) -> tuple[Counter[str], int]:
        """Count what this host delivered, page by page, and say from when on the history is complete."""
        names: Counter[str] = Counter()
        before = oldest_ms = None
        rows = ever = 0
        for _ in range(HISTORY_PAGES):
            page = await self._admin.delivered(since_ms=since_ms, until_ms=until_ms, before=before)
            names.update(page["names"])
            rows, ever, oldest_ms = rows + page["rows"], page["ever"], page["oldest_ms"] or oldest_ms
            if page["next"] is None:
                break
            settled, _, event_id = page["next"].partition(".")
            before = (int(settled), int(event_id))
        if rows < ever and (oldest_ms is None or oldest_ms > since_ms):
            return names, until_ms if oldest_ms is None else min(oldest_ms, until_ms)
        return names, since_ms

    async def _totals(self, request: Request, _params: Params) -> Response:
        """Answer how many events PX has of each name; of as many as PX was asked about in time, in their order."""
        command = decode_body(request, TotalsCommand)
        if len(command.names) > TOTALS_AT_ONCE:
            raise RequestError(400, f"Give at most {TOTALS_AT_ONCE} `names`.")
        if not 0 < command.until_ms - command.since_ms <= MAX_RANGE_MS:
            raise RequestError(400, "PX reads back at most 190 days; give `since_ms` and `until_ms` in that distance.")
        totals, problem = await self._ask_totals(command.names, command.since_ms, command.until_ms)
        return json_response({"totals": totals, "problem": problem})

    async def _ask_totals(
        self, names: Sequence[str], since_ms: int, until_ms: int
    ) -> tuple[list[int | None], str | None]:
        """Return how many events PX has of each name, and the reason if it could not be asked about all of them.

        None stands for a name with a semicolon, which PX's filter language reads as "and".
        """
        totals: list[int | None] = []
        with trio.move_on_after(ASK_S):
            for name in names:
                if ";" in name:
                    totals.append(None)
                    continue
                request = read_events(event_name=name, from_ms=since_ms, until_ms=until_ms, page_size=1)
                try:
                    totals.append((await self._ask(request))["totalHits"])
                except Failed as error:
                    return totals, str(error)
            return totals, None
        return totals, "PX answered too slowly to be asked about every name; ask again later."

    async def _verify(self, _request: Request, params: Params) -> Response:
        query = decode_query(params, VerifyQuery)
        answer = await self._ask(read_event(query.name, query.user, query.date_ms))
        return json_response(
            {
                "found": holds_event(answer, query.name, query.user, query.date_ms),
                "events": len(answer["customEvents"]),
            }
        )

    async def _attributes(self, _request: Request, params: Params) -> Response:
        kind = decode_query(params, AttributesQuery).kind
        return json_response({"names": declared_attributes(await self._reply(read_attributes(kind)), kind)})

    async def _forget(self, request: Request, _params: Params) -> Response:
        """Delete users in PX at the pace of delivery; ``left`` are those whose turn did not come within some seconds."""
        users = decode_body(request, ForgetInPxCommand).users
        if not users or not all(users) or len(users) > DELETED_AT_ONCE:
            raise RequestError(400, f"Give 1 to {DELETED_AT_ONCE} `users`, none of them empty.")
        replies = await self._errands.send_all([delete_user(user) for user in users], within_s=DELETE_S)
        left = users[len(replies) :]
        answer = deletions(users, replies, self._clock.wall_ms()) | {"left": left}
        return json_response(answer | {"why": self._errands.why_not() if left else ""})

    async def _ask(self, request: PxRequest) -> dict[str, Any]:
        """Return PX's answer to ``read_events``. Raises Failed."""
        return decode_events(await self._reply(request))

    async def _reply(self, request: PxRequest) -> Reply:
        """Return PX's reply. One question at a time for all callers."""
        async with self._asking:
            lane = self._network.lane()
            try:
                return await lane.send(request)
            finally:
                with trio.CancelScope(shield=True):
                    await lane.aclose()

    async def _send(self, request: Request, _params: Params) -> Response:
        command = decode_body(request, SendCommand)
        settings = self._settings.now
        judged = judge(command.event, settings.config.outbox.max_event_bytes)
        if judged.bad is not None:
            raise RequestError(400, f"The event cannot be accepted: {judged.bad}.")
        source = 0
        if command.source is not None:
            if not 0 <= command.source < len(settings.config.source):
                raise RequestError(
                    400, f"There is no [[source]] number {command.source} in the configuration in force; reload first."
                )
            source = list(settings.source_numbers.values())[command.source]
        event = new_event(settings, source, judged, via=Via.HTTP)
        accepted = await self._outbox.accept([event])
        return json_response({"messageId": judged.message_id, "accepted": accepted.stored})


def deletions(users: Sequence[str], replies: Sequence[Reply], wall_ms: int) -> dict[str, Any]:
    """Return how many of the users were deleted in PX, how many were not there, and a sentence for each that failed."""
    done = [reply.status if isinstance(reply, PxAnswer) else 0 for reply in replies]
    return {
        "deleted": sum(200 <= status < 300 for status in done),
        "absent": done.count(404),
        "failed": [
            f"{user}: {classify(reply, wall_ms=wall_ms).message}"
            for user, reply, status in zip(users, replies, done, strict=False)
            if not (200 <= status < 300 or status == 404)
        ],
    }
