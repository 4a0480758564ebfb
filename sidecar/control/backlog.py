"""Routes that act on many events: count and discard pending ones, accept delivered ones and history again, in class low.

One call is one page or one batch; the client asks for the next with ``after``. What is accepted again takes the path of
every event, with an id by which a second run recognizes it, and leaves the memory of accounts as it is.
"""

from functools import partial
from typing import Any, Final

import msgspec
import trio

from sidecar.clock import Clock
from sidecar.control.answers import Int64, RouteTable, decode_body, json_response
from sidecar.control.outbox_admin import LoadedEvents, NothingLoaded
from sidecar.control.selection import EventCommand, event_filter
from sidecar.events import JudgedEvent, decode_or_empty, encode, given_message_id, judge
from sidecar.http import Request, Response
from sidecar.mapping import LiveSettings, Priority, Settings
from sidecar.outbox import NewEvent, Outbox, Row, Via, new_event
from sidecar.outbox.backlog import USAGE_TYPES, Kind, count_page, delivered_page, discard_page, mark_resent
from sidecar.outbox.operations import advance_job, jobs
from sidecar.outbox.queries import EventRow

__all__ = ["BackfillCommand", "BacklogRoutes"]

# Ten million events are counted in several calls of this length; the store serves others between the pages.
COUNT_S: Final = 5.0
# Events are accepted again while the outbox is less full than this: the rest belongs to what apps send.
FULL_SHARE: Final = 0.5


class BackfillCommand(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /v1/backfill`` and ``/v1/backfill/check``.

    ``job`` names the file (a digest of its text), ``after`` is the number of its lines before these events, ``next`` that
    behind them, None at the end, ``total`` that of all. With a job the position is kept: ``GET /v1/jobs``.
    """

    events: list[Any]
    source: str | None = None
    job: str | None = None
    after: Int64 = 0
    next: Int64 | None = None
    total: Int64 = 0


class BacklogRoutes:
    """The routes. ``loaded`` is running delivery, or None without a daemon."""

    def __init__(
        self, outbox: Outbox, settings: LiveSettings, clock: Clock, loaded: LoadedEvents | None = None
    ) -> None:
        self._outbox = outbox
        self._clock = clock
        self._settings = settings
        self._loaded = loaded or NothingLoaded()
        self.routes: RouteTable = {
            "/v1/events/count": ("POST", partial(self._count, "pending")),
            "/v1/events/discard": ("POST", self._discard),
            "/v1/resend/count": ("POST", partial(self._count, "resend")),
            "/v1/resend": ("POST", self._resend),
            "/v1/backfill/check": ("POST", self._check),
            "/v1/backfill": ("POST", self._backfill),
            "/v1/jobs": ("GET", self._jobs),
        }

    # Pending events -----------------------------------------------------------------------------------------------

    async def _count(self, kind: Kind, request: Request, _params: Any) -> Response:
        command = decode_body(request, EventCommand)
        which, counted = command.selection(self._settings.now), 0
        following: int | None = command.after
        with trio.move_on_after(COUNT_S):
            while following is not None:
                count, following = await self._outbox.read(
                    partial(count_page, which=which, kind=kind, after_id=following)
                )
                counted += count
        return json_response({"count": counted, "next": following})

    async def _discard(self, request: Request, _params: Any) -> Response:
        command = decode_body(request, EventCommand)
        which = command.selection(self._settings.now)

        def selected(row: Row) -> bool:
            event = decode_or_empty(row.body)
            return which.matches(
                event, user=row.user, source=row.source, received_ms=row.received_ms, priority=row.priority
            )

        checked_out, moved = self._outbox.checked_out_now, 0
        try:
            # Twice: what was read for delivery between unloading and the transaction is loaded and not in flight.
            for _ in range(2):
                self._loaded.withdraw(selected)
                page = await self._outbox.write(
                    lambda store, now_ms: discard_page(
                        store, which, now_ms, checked_out=checked_out, after_id=command.after
                    )
                )
                moved += page.discarded
                if not page.in_flight:
                    break
        finally:
            # What was unloaded and is still pending, on a later page or because the write failed, must be read again.
            self._loaded.withdraw(selected)
            self._loaded.rewind(1)
        return json_response({"moved": moved, "in_flight": len(page.in_flight), "next": page.next_after})

    # Accepting again ----------------------------------------------------------------------------------------------

    async def _resend(self, request: Request, _params: Any) -> Response:
        command = decode_body(request, EventCommand)
        which = command.selection(self._settings.now)
        if not await self._has_space():
            return json_response({"accepted": 0, "repeated": 0, "next": command.after, "full": True})
        rows, following = await self._outbox.read(partial(delivered_page, which=which, after_id=command.after))
        outcome = await self._outbox.accept([self._again(row) for row in rows])
        await self._outbox.write(lambda store, _now_ms: mark_resent(store, [row.id for row in rows]))
        return json_response(
            {"accepted": outcome.stored, "repeated": outcome.repeated, "next": following, "full": False}
        )

    def _again(self, row: EventRow) -> NewEvent:
        """Return a delivered event in the form in which it is accepted again: dated as before, with an id of its own."""
        event = decode_or_empty(row.body)
        event = event | {"messageId": f"resend:{event.get('messageId')}"}
        event = self._settings.now.mapper.keep_date(event, row.received_ms)
        # It was within the limits when it came, and is not judged again.
        judged = JudgedEvent(event, event["messageId"], encode(event), None)
        again = new_event(
            *(self._settings.now, row.source, judged), via=Via.RESEND, carried=row.account, hashed=row.hashed
        )
        return msgspec.structs.replace(again, priority=Priority.LOW, keeps_memory=True)

    async def _check(self, request: Request, _params: Any) -> Response:
        command = decode_body(request, BackfillCommand)
        new, refused = self._judged(command)
        return json_response({"usable": len(new), "refused": refused})

    async def _backfill(self, request: Request, _params: Any) -> Response:
        command = decode_body(request, BackfillCommand)
        new, refused = self._judged(command)
        if not await self._has_space():
            return json_response({"accepted": 0, "repeated": 0, "refused": [], "full": True})
        outcome = await self._outbox.accept(new)
        if (job := command.job) is not None:
            # After the commit of the events: a crash in between repeats a batch, whose ids are recognized.
            position = command.total if command.next is None else command.next
            await self._outbox.write(
                lambda store, now_ms: advance_job(
                    *(store, "backfill", job[:200], now_ms),
                    position=str(position),
                    done=outcome.stored,
                    total=command.total,
                    over=command.next is None,
                )
            )
        return json_response(
            {"accepted": outcome.stored, "repeated": outcome.repeated, "refused": refused, "full": False}
        )

    def _judged(self, command: BackfillCommand) -> tuple[list[NewEvent], list[dict[str, Any]]]:
        """Return the events that can be accepted, and why the others cannot be, each with its position in the batch."""
        settings = self._settings.now
        sources = event_filter(settings, None, command.source, None, None, None).sources or (0,)
        new: list[NewEvent] = []
        refused: list[dict[str, Any]] = []
        now_ms = self._clock.wall_ms()
        for position, event in enumerate(command.events):
            bad = _history_error(event, settings, now_ms)
            judged = None if bad else judge(event, settings.config.outbox.max_event_bytes)
            if judged is None or judged.bad is not None:
                refused.append({"index": position, "message": bad or (judged and judged.bad)})
                continue
            made = new_event(settings, sources[0], judged, via=Via.BACKFILL)
            new.append(msgspec.structs.replace(made, priority=Priority.LOW, keeps_memory=True))
        return new, refused

    async def _jobs(self, _request: Request, _params: Any) -> Response:
        return json_response({"jobs": [job._asdict() for job in await self._outbox.read(jobs)]})

    async def _has_space(self) -> bool:
        used_bytes: int = await self._outbox.read(lambda store: store.used_bytes())
        return used_bytes < self._outbox.capacity.max_bytes * FULL_SHARE


def _history_error(event: Any, settings: Settings, now_ms: int) -> str | None:
    """Return why an event cannot be taken as history, in one clause; None if it can."""
    if not isinstance(event, dict):
        return "it is not a JSON object"
    kind = event.get("type", "track")
    if not isinstance(kind, str) or kind not in USAGE_TYPES:
        # Traits and accounts of the past would overwrite those of today.
        return f"its type is {str(event.get('type'))[:40]!r}; only track, page and screen events are taken"
    if not settings.mapper.has_own_date(event, now_ms):
        return "it has no timestamp that can be read and is plausible, and would be dated today"
    message_id = given_message_id(event)
    if not message_id:
        return "it has no messageId, or one that is neither text nor a whole number"
    if (
        message_id in settings.config.identity.reject
    ):  # events that share it would be taken for repeats of the first one
        return f"its messageId {message_id[:40]!r} is not an id by identity.reject; leave it out"
    return None
