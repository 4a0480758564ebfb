"""``/v1/trace`` and ``/v1/names``: what became of an event, and which names came.

A *story* is all that is known of one event, in the order in which it happened: received, its account, its mapping, its
attempts, what it waits for, its end. A story is put together when it is asked for: nothing is stored for it but what the
event's row holds. The mapping is the one in force; what is shown passes its privacy rules.

``/v1/names`` adds to the catalogue what a sample of the newest events says: what PX gets, attributes and their types.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Final

import msgspec
import trio

from sidecar.clock import Clock
from sidecar.control.answers import Int64, Params, RequestError, RouteTable, decode_query, json_response
from sidecar.control.names import NameEntry, findings, kind_of, merged
from sidecar.control.outbox_admin import event_detail, event_summary
from sidecar.control.state import StateReader
from sidecar.events import decode_or_empty, name_of
from sidecar.http import Request, Response
from sidecar.mapping import CustomEvent, Known, LiveSettings, Mapped, UpsertUser, explain, own_account
from sidecar.outbox import Outbox, Via, hashed_values, queries
from sidecar.outbox.lookup import CatalogueRow, MessageEvents, catalogue, events_of_message
from sidecar.outbox.records import attempts_of
from sidecar.outbox.selection import EventFilter
from sidecar.px import preview
from sidecar.units import counted

__all__ = ["NamesQuery", "TraceQuery", "TraceRoutes"]

STORIES_MAX: Final = 100
SAMPLE_MAX: Final = 20_000
PAGE_ROWS: Final = 500  # mapping this many events blocks the event loop for about 15 ms
ATTRIBUTES_MAX: Final = 500  # per name; an app that makes attributes of ids must not fill memory
NEAR: Final = 5
DAY_MS: Final = 86_400_000


class TraceQuery(msgspec.Struct, forbid_unknown_fields=True):
    """The parameters of ``GET /v1/trace``: ``id``, ``message_id``, or ``user`` and ``event`` (a name), newest first.

    Beside a message id, user and name narrow down its events.

    ``id`` finds every event that has a row: some that are dead have no message id, and a message id is known for
    ``outbox.keep_ids`` only.

    ``instead`` asks only for what was received instead.
    """

    id: Int64 | None = None
    message_id: str | None = None
    user: str | None = None
    event: str | None = None
    since_ms: Int64 = 0
    limit: int = 10
    before: str | None = None
    instead: bool = False


class NamesQuery(msgspec.Struct, forbid_unknown_fields=True):
    """The parameters of ``GET /v1/names``: how many of the newest events are looked at for attributes."""

    sample: int = 2_000


class TraceRoutes:
    """``/v1/trace`` and ``/v1/names``. ``refusals`` describes refused requests; without a daemon none are known."""

    def __init__(
        self,
        outbox: Outbox,
        settings: LiveSettings,
        clock: Clock,
        state: StateReader,
        refusals: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        self._outbox = outbox
        self._settings = settings
        self._clock = clock
        self._state = state
        self._refusals = refusals
        self.routes: RouteTable = {"/v1/trace": ("GET", self._trace), "/v1/names": ("GET", self._names)}

    # Trace --------------------------------------------------------------------------------------------------------

    async def _trace(self, _request: Request, params: Params) -> Response:
        query = decode_query(params, TraceQuery)
        if query.instead:
            return json_response({"stories": [], "pruned": [], "next": None, "instead": await self._instead(query)})
        if query.id is not None:
            by_id: queries.EventDetail | None = await self._outbox.read(partial(queries.get_event, event_id=query.id))
            details, pruned, cursor = [] if by_id is None else [by_id], [], None
        elif query.message_id is not None:
            found: MessageEvents = await self._outbox.read(partial(events_of_message, message_id=query.message_id))
            details = [detail for detail in found.found if _is_selected(detail.event, _narrowed(query))]
            pruned, cursor = found.pruned, None
        elif query.user is not None or query.event is not None:
            details, cursor = await self._newest(query)
            pruned = []
        else:
            raise RequestError(400, "Name the event: give id, message_id, user or event.")
        stories = [await self._story(detail) for detail in details if detail.event.received_ms >= query.since_ms]
        # Past the time that was asked for, the older pages hold nothing.
        over = bool(details) and details[-1].event.received_ms < query.since_ms
        answer: dict[str, Any] = {"stories": stories, "pruned": pruned, "next": None if over else cursor}
        if not stories and answer["next"] is None and query.before is None:
            answer["instead"] = await self._instead(query)
        return json_response(answer)

    async def _newest(self, query: TraceQuery) -> tuple[list[queries.EventDetail], str | None]:
        before = None if query.before is None else (0, _integer(query.before))
        limit = max(1, min(query.limit, STORIES_MAX))
        page: queries.EventPage = await self._outbox.read(
            partial(queries.list_events, which=_narrowed(query), limit=limit, before=before)
        )
        ids = [row.id for row in page.events]
        details = await self._outbox.read(lambda store: [queries.get_event(store, event_id) for event_id in ids])
        return [detail for detail in details if detail is not None], page.next_before and str(page.next_before[1])

    async def _story(self, detail: queries.EventDetail) -> dict[str, Any]:
        row = detail.event
        settings = self._settings.now
        result, event = self._map(row), decode_or_empty(row.body)
        failure = detail.failure
        retried = failure and (failure.attempts, failure.first_failed_ms, failure.last_failed_ms, failure.detail)
        return event_detail(detail, settings.mapper) | {
            "via": Via(row.via or 0).name.lower(),
            "product": settings.product_of(row.source),
            "account": await self._account(row, event, result),
            "mapped": self._mapping(event, result, row.reason),
            "failures": attempts_of(row.history, retried or None),
            "waits_for": await self._waits_for(detail),
        }

    async def _account(self, row: queries.EventRow, event: dict[str, Any], result: Mapped) -> dict[str, Any] | None:
        """Return the account of an event and the call that decided it; None if the event has none.

        Its id is as PX gets it: None where a rule drops it.
        """
        if own := own_account(self._settings.now.mapper, event, result):  # goes before what is remembered
            return {"id": own[0], "path": own[1], "call_id": 0, "call": None}
        if row.account is None or not row.account.id:
            return None
        shown = self._settings.now.mapper.reveal_account(row.account)
        account: dict[str, Any] = {"id": shown, "path": row.account.path, "call_id": row.account.call_id}
        call_id = row.account.call_id
        if not call_id or call_id == row.id:
            return account | {"call": None}
        call = await self._outbox.read(lambda store: queries.get_event(store, call_id))
        if call is None:
            return account | {"call": None}
        summary = event_summary(call.event, self._settings.now.mapper.redact)
        kind = decode_or_empty(call.event.body).get("type")
        return account | {"call": {key: summary[key] for key in ("id", "messageId", "received_ms")} | {"type": kind}}

    def _map(self, row: queries.EventRow) -> Mapped:
        product = self._settings.now.product_of(row.source)
        return self._settings.now.mapper.map(
            *(decode_or_empty(row.body), Known()),
            account=row.account,
            property_key=product,
            received_ms=row.received_ms,
            hashed=hashed_values(row.hashed),
        )

    def _mapping(self, event: dict[str, Any], result: Mapped, reason: str | None) -> dict[str, Any]:
        """Return what the mapping in force makes of an event, and by which rule; ``reason`` is that of its outcome."""
        mapper = self._settings.now.mapper
        name = mapper.rules.names.resolve(event)
        reasons = [reason for reason in explain(mapper, event, result) if reason.field == "not sent"]
        cap = result.cap if reason == "capped" else None
        detail = f'mapping.event "{cap.name}", per_day = {cap.per_day}' if cap else result.detail
        return {
            "name": name.px if name is not None and not name.dropped else None,
            "rule": name.rule if name is not None else None,
            "requests": preview(result.intents),
            "dropped": result.dropped,
            "dead": result.dead,
            "detail": next((reason.source for reason in reasons if result.dropped or result.dead), detail),
            "changes": [{"field": change.field, "what": change.what} for change in result.changes],
        }

    async def _waits_for(self, detail: queries.EventDetail) -> str | None:
        """Return in one sentence why a pending event is not sent yet; None for a settled one."""
        if detail.event.state != "pending":
            return None
        state = await self._state.read()
        if state.reasons:
            return state.reasons[0]
        if detail.failure is not None:
            return "It is sent again after a pause, which grows with each failure; its user's later events wait for it."
        return f"Its turn: {counted(state.pending, 'event', 'is')} pending and {state.ceiling:g} a second are sent."

    async def _instead(self, query: TraceQuery) -> dict[str, Any]:
        """Return what was received instead of an event that is not there."""
        shown_name = self._settings.now.mapper.shown_name
        rows_of_names: list[CatalogueRow] = await self._outbox.read(catalogue)
        names = [row._replace(name=shown_name(row.type, row.name)) for row in rows_of_names]
        instead: dict[str, Any] = {"refused": self._refusals(), "events": sum(row.events for row in names)}
        if query.event is not None:
            # Ten thousand names take a second: in a worker thread, so that the event loop continues.
            folded = {row.name.casefold() for row in names if row.name}
            near = await trio.to_thread.run_sync(_nearest, query.event.casefold(), folded)
            rows = [row for row in names if row.name.casefold() in near]
            instead["names"] = [_name_row(row) for row in sorted(rows, key=lambda row: near.index(row.name.casefold()))]
        if query.user is not None:
            page = await self._outbox.read(partial(queries.list_events, which=EventFilter(user=query.user), limit=NEAR))
            instead["same_user"] = [
                {"name": name_of(decode_or_empty(row.body)), "received_ms": row.received_ms, "state": row.state}
                for row in page.events
            ]
        if "names" not in instead or not instead["names"]:
            newest = sorted(names, key=lambda row: -row.last_ms)[:NEAR]
            instead["newest_names"] = [_name_row(row) for row in newest]
        return instead

    # Names --------------------------------------------------------------------------------------------------------

    async def _names(self, _request: Request, params: Params) -> Response:
        query = decode_query(params, NamesQuery)
        rows: list[CatalogueRow] = await self._outbox.read(catalogue)
        entries = {row.number: NameEntry(row.type, row.name, row.events, row.first_ms, row.last_ms) for row in rows}
        traits: dict[str, dict[str, int]] = {"user": {}, "account": {}}
        sampled = await self._sample(entries, traits, max(0, min(query.sample, SAMPLE_MAX)))
        day = sum(entry.day for entry in entries.values())
        for entry in entries.values():
            entry.share = round(entry.day / day, 6) if day else 0.0
        mapper = self._settings.now.mapper
        for entry in entries.values():
            entry.name = mapper.shown_name(entry.type, entry.name)
        names = merged([list(entries.values())])  # names that the rules hide are one
        answer = {"names": names, "sampled": sampled, "traits": traits, "findings": findings(names)}
        return json_response(answer | {"now_ms": self._clock.wall_ms()})

    async def _sample(self, entries: dict[int, NameEntry], traits: dict[str, dict[str, int]], wanted: int) -> int:
        """Look at the newest events, page by page, so that accepting and delivering continue."""
        sampled, before, day_began_ms = 0, None, self._clock.wall_ms() - DAY_MS
        while sampled < wanted:
            page: queries.EventPage = await self._outbox.read(
                partial(queries.list_events, limit=min(PAGE_ROWS, wanted - sampled), before=before)
            )
            for row in page.events:
                if entry := entries.get(row.name or 0):
                    _add_traits(traits, self._add(entry, row, in_day=row.received_ms >= day_began_ms))
            sampled += len(page.events)
            before = page.next_before
            if before is None:
                break
            await trio.lowlevel.checkpoint()
        return sampled

    def _add(self, entry: NameEntry, row: queries.EventRow, *, in_day: bool) -> Mapped:
        """Add an event to its entry; return what the mapping makes of it."""
        result = self._map(row)
        entry.day += in_day
        entry.sampled += 1
        entry.cut += bool(result.changes)
        if not entry.rule:  # the newest event decides what is shown: the rules do not differ within a name
            name = self._settings.now.mapper.rules.names.resolve(decode_or_empty(row.body))
            entry.rule = name.rule if name is not None else ""
        sent = next((intent.body for intent in result.intents if isinstance(intent, CustomEvent)), None)
        if sent is None:
            reason = result.dropped or result.dead or "people calls only"
            entry.not_sent[reason] = entry.not_sent.get(reason, 0) + 1
            return result
        entry.px = entry.px or str(sent["eventName"])
        if row.state == "delivered" and row.settled_ms is not None:
            entry.delivered_ms = min(entry.delivered_ms or row.settled_ms, row.settled_ms)
        for attribute, value in sent.get("attributes", {}).items():
            if attribute in entry.attributes or len(entry.attributes) < ATTRIBUTES_MAX:
                types = entry.attributes.setdefault(attribute, {})
                kind = kind_of(value)
                types[kind] = types.get(kind, 0) + 1
        return result


def _nearest(name: str, names: set[str]) -> list[str]:
    from difflib import get_close_matches  # here: only a name that never came needs it

    return get_close_matches(name, names, NEAR, 0.6)


def _add_traits(traits: dict[str, dict[str, int]], result: Mapped) -> None:
    """Count the custom attributes that the people calls of an event write."""
    for intent in result.intents:
        if isinstance(intent, CustomEvent):
            continue
        counts = traits["user" if isinstance(intent, UpsertUser) else "account"]
        for name in (intent.fields | intent.new_only).get("customAttributes", {}):
            if name in counts or len(counts) < ATTRIBUTES_MAX:
                counts[name] = counts.get(name, 0) + 1


def _name_row(row: CatalogueRow) -> dict[str, Any]:
    return {"type": row.type, "name": row.name, "events": row.events, "last_ms": row.last_ms}


def _integer(text: str) -> int:
    if not text.isdecimal() or len(text) > 18:
        raise RequestError(400, f"{text[:40]!r} is not the `next` of a page.")
    return int(text)


def _narrowed(query: TraceQuery) -> EventFilter:
    return EventFilter(name=query.event, user=query.user)


def _is_selected(row: queries.EventRow, which: EventFilter) -> bool:
    event = decode_or_empty(row.body)
    return which.matches(event, user=row.user, source=row.source, received_ms=row.received_ms, priority=None)
