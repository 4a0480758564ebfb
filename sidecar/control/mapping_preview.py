"""Routes that map without sending: events that the caller gives, and recent real events under a changed mapping.

Rules
-----
* Both mappings see the events as the privacy rules in force show them. Where the changed rules would send what today's
  rules hide, the row says so (``reveals``) and does not show it.
* An event that a filter in force drops is shown as dropped, though what the filter looks at may be hidden. A changed
  filter sees what is shown: it must not tell, one try after the other, what today's rules hide.
* A rule for a name *matches nothing* if it decides no name that ever came; a filter, if it drops no recent event; another
  one, if leaving it out changes the result of no recent event. That is what an operator wants to know, and it needs no
  second implementation of the rules.
* All of it runs in a worker thread with mappers of its own: the event loop continues, and the settings' mapper is not
  thread-safe.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Final

import msgspec
import trio

from sidecar.clock import Clock
from sidecar.config import Config, ConfigFile, MappingConfig
from sidecar.control.answers import Params, RequestError, RouteTable, decode_body, json_response
from sidecar.control.config_calls import check_text
from sidecar.errors import ConfigError, Failed
from sidecar.events import decode_or_empty, judge, name_of
from sidecar.http import Request, Response
from sidecar.mapping import Known, LiveSettings, Mapped, Mapper, Settings, compile_mapping
from sidecar.mapping.filters import DropFilter
from sidecar.outbox import Outbox, Remembered, Store, hashed_values, queries
from sidecar.outbox.forget import suppression
from sidecar.outbox.selection import EventFilter
from sidecar.px import preview

__all__ = ["MapCommand", "MappingRoutes", "PreviewCommand"]

EVENTS_PER_NAME: Final = 50
# Pages of queries.SCAN_ROWS rows that are looked through for events of one name: about 0.1 s of the store's thread.
PAGES_MAX: Final = 5
NAMES_MAX: Final = 2_000
# Leaving out each rule means mapping all events again: 100 rules and 100 events take about 0.3 s of a worker thread.
RULES_MAX: Final = 100
RULE_EVENTS: Final = 100


class MapCommand(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /v1/map``; ``toml`` is a whole configuration file, by default the one in force."""

    events: list[dict[str, Any]]
    toml: str | None = None


class PreviewCommand(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /v1/mapping/preview``: a configuration file, and the event name to look at (default: all)."""

    toml: str | None = None
    name: str | None = None
    unmatched: bool = False


class _Recent(msgspec.Struct, frozen=True):
    """Recent events and what is needed to map them: the memory of their users, and the names ever seen."""

    rows: list[queries.EventRow]
    known: list[Remembered]
    names: list[tuple[str, str, int, int]]


class MappingRoutes:
    """``/v1/map`` and ``/v1/mapping/preview``."""

    def __init__(self, outbox: Outbox, settings: LiveSettings, clock: Clock, file: ConfigFile | None) -> None:
        self._outbox = outbox
        self._settings = settings
        self._clock = clock
        self._file = file
        self.routes: RouteTable = {
            "/v1/map": ("POST", self._map),
            "/v1/mapping/preview": ("POST", self._preview),
        }

    async def _map(self, request: Request, _params: Params) -> Response:
        command = decode_body(request, MapCommand)
        if len(command.events) > 1_000:
            raise RequestError(400, f"There are {len(command.events):,} events; send at most 1,000.")
        settings = self._settings.now
        config = settings.config if command.toml is None else await self._judged(command.toml)
        if isinstance(config, dict):
            return json_response(config)
        is_suppressed = await self._outbox.read(suppression)
        now_ms = self._clock.wall_ms()
        results = await trio.to_thread.run_sync(_map_events, command.events, config, is_suppressed, now_ms)
        return json_response({"ok": True, "error": None, "line": None, "results": results})

    async def _preview(self, request: Request, _params: Params) -> Response:
        command = decode_body(request, PreviewCommand)
        settings = self._settings.now
        then = settings.config if command.toml is None else await self._judged(command.toml)
        if isinstance(then, dict):
            return json_response(then)
        recent = await self._outbox.read(partial(_recent, name=command.name))
        work = partial(_compare, settings, then, recent, unmatched=command.unmatched)
        return json_response({"ok": True, "error": None, "line": None} | await trio.to_thread.run_sync(work))

    async def _judged(self, toml: str) -> Config | dict[str, Any]:
        if self._file is None:
            raise Failed("There is no configuration file to compare with; run the daemon with --config.")
        return await trio.to_thread.run_sync(check_text, self._file, toml)


def _recent(store: Store, name: str | None) -> _Recent:
    """Return the newest events of a name, and every name that was ever seen with its count."""
    names = store.names.newest(NAMES_MAX)
    rows = _newest(store, name, None)
    if not rows and name is not None:
        # A name that comes once an hour is behind a million others; the catalogue knows when it came last.
        last_ms = max((last_ms for _, seen, _, last_ms in names if seen == name), default=None)
        if last_ms is not None:
            rows = _newest(store, name, (0, queries.id_behind(store, last_ms)))
    users = {row.user for row in rows if row.user is not None}
    return _Recent(rows, store.known(users), names)


def _newest(store: Store, name: str | None, before: tuple[int, int] | None) -> list[queries.EventRow]:
    rows: list[queries.EventRow] = []
    for _ in range(PAGES_MAX if name is not None else 1):
        page = queries.list_events(
            store, which=EventFilter(name=name), limit=EVENTS_PER_NAME - len(rows), before=before
        )
        rows += page.events
        before = page.next_before
        if before is None or len(rows) >= EVENTS_PER_NAME:
            break
    return rows


def _mapper_of(config: Config, is_suppressed: Callable[[str], bool] | None = None) -> Mapper:
    return compile_mapping(config.mapping, config.people, config.identity, is_suppressed=is_suppressed)


def _map_events(
    events: Sequence[dict[str, Any]], config: Config, is_suppressed: Callable[[str], bool] | None, received_ms: int
) -> list[dict[str, Any]]:
    mapper = _mapper_of(config, is_suppressed)
    results = []
    for event in events:
        judged = judge(event, config.outbox.max_event_bytes, reject=config.identity.reject)
        if judged.bad is not None or judged.event is None:
            results.append({"dead": "bad_event", "detail": judged.bad})
        else:
            mapped = mapper.map(judged.event, Known(), property_key=config.px.property_key, received_ms=received_ms)
            results.append(_result(mapped))
    return results


def _compare(settings: Settings, then: Config, recent: _Recent, *, unmatched: bool) -> dict[str, Any]:
    """Map the recent events with both mappings."""
    now_mapper, then_mapper = _mapper_of(settings.config), _mapper_of(then)
    events = [_Event(row, settings, recent.known, now_mapper) for row in recent.rows]
    in_force = settings.config.mapping
    is_filtered_alike = _names_alike(in_force, then.mapping) and in_force.drop == then.mapping.drop
    rows = []
    for event in events:
        before, after = event.map(now_mapper), event.map(then_mapper)
        as_received = event.map(now_mapper, raw=True)
        if as_received.dropped == "filtered":
            before, after = as_received, as_received if is_filtered_alike else after
        sent = event.map(then_mapper, raw=True).intents
        reveals = bool(sent) and sent != after.intents
        row = {"id": event.row.id, "name": name_of(event.shown), "state": event.row.state, "user": event.row.user}
        row |= {"received_ms": event.row.received_ms, "event": event.shown}
        shown_before, shown_after = _result(before), _result(after)
        row |= {"now": shown_before, "then": shown_after, "same": shown_before == shown_after, "reveals": reveals}
        rows.append(row)
    names = [
        {
            "type": kind,
            "name": now_mapper.shown_name(kind, name),
            "events": count,
            "last_ms": last_ms,
            "now": _px_name(now_mapper, kind, name),
            "then": _px_name(then_mapper, kind, name),
        }
        for kind, name, count, last_ms in recent.names
    ]
    answer: dict[str, Any] = {"rows": rows, "names": names}
    if unmatched:
        named = [{"type": kind, "event": name, "name": name} for kind, name, *_ in recent.names]
        answer["unmatched"] = [*_idle_names(then.mapping, then_mapper, [*named, *(event.raw for event in events)])]
        answer["unmatched"] += _idle_filters(in_force, then.mapping, events)
        answer["unmatched"] += _unmatched(then, events[:RULE_EVENTS])
    return answer


class _Event:
    """One recent event, as the privacy rules in force show it, with what is needed to map it."""

    def __init__(self, row: queries.EventRow, settings: Settings, known: Sequence[Remembered], mapper: Mapper) -> None:
        self.row = row
        self.raw = decode_or_empty(row.body)
        self._carried = hashed_values(row.hashed)
        self.shown, self._hashed = mapper.export(self.raw, self._carried)
        self._product = settings.product_of(row.source)
        memory = (user.known for user in known if (user.user, user.property_key) == (row.user, self._product))
        self._known = Known.decode(next(memory, b"{}"))

    def map(self, mapper: Mapper, *, raw: bool = False) -> Mapped:
        return mapper.map(
            self.raw if raw else self.shown,
            self._known,
            account=self.row.account,
            property_key=self._product,
            received_ms=self.row.received_ms,
            hashed=self._carried if raw else self._hashed,
        )


def _result(mapped: Mapped) -> dict[str, Any]:
    """Return what PX would get: ``requests``, ``dropped`` or ``dead``, and what was changed on the way."""
    result: dict[str, Any] = {}
    if mapped.intents:
        result["requests"] = preview(mapped.intents)
    if mapped.dropped:
        result["dropped"] = mapped.dropped
    if mapped.dead:
        result |= {"dead": mapped.dead, "detail": mapped.detail}
    if mapped.changes:
        result["changes"] = [{"field": change.field, "what": change.what} for change in mapped.changes]
    return result


def _px_name(mapper: Mapper, kind: str, name: str) -> str | None:
    """Return what a name becomes; None if its events are dropped, or are not custom events."""
    return mapper.px_name({"type": kind, "event": name, "name": name})


def _idle_names(mapping: MappingConfig, mapper: Mapper, calls: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield the entries of [mapping.events] and [mapping.event] that do not apply to any call."""
    resolved = [name for call in calls if (name := mapper.rules.names.resolve(call)) is not None]
    deciding = {name.rule for name in resolved}
    yield from (f"mapping.events.{name}" for name in mapping.events if f'mapping.events "{name}"' not in deciding)
    overriding = {name.override for name in resolved}
    yield from (f"mapping.event.{name}" for name in mapping.event if name not in overriding)


def _names_alike(mapping: MappingConfig, other: MappingConfig) -> bool:
    """Return whether filters see the same names with both."""
    return mapping.fields.get("eventName") == other.fields.get("eventName")


def _idle_filters(in_force: MappingConfig, mapping: MappingConfig, events: Sequence[_Event]) -> Iterator[str]:
    """Yield the entries of [[mapping.drop]] that match no recent event; a new one is compared with what is shown."""
    for number, rule in enumerate(mapping.drop, 1):
        compiled = DropFilter.compile(number, rule, mapping)
        is_in_force = rule in in_force.drop and _names_alike(in_force, mapping)
        if not any(compiled.matches(event.raw if is_in_force else event.shown) for event in events):
            yield compiled.label


def _unmatched(config: Config, events: Sequence[_Event]) -> Iterator[str]:
    """Yield the rules for values without which every recent event would become the same. Filters do not count."""
    config = msgspec.structs.replace(config, mapping=msgspec.structs.replace(config.mapping, drop=[]))
    mapper = _mapper_of(config)
    results = [event.map(mapper, raw=True) for event in events]
    for rule, without in _rules_left_out(config.mapping):
        try:
            other = _mapper_of(msgspec.structs.replace(config, mapping=without))
        except ConfigError:
            continue  # the rest contradicts itself without this rule, so the rule has an effect
        if [event.map(other, raw=True) for event in events] == results:
            yield rule


def _rules_left_out(mapping: MappingConfig) -> Iterator[tuple[str, MappingConfig]]:
    """Yield the name of each rule for values, and the mapping without it; at most ``RULES_MAX``."""
    replace = msgspec.structs.replace
    rules: list[tuple[str, MappingConfig]] = []
    for section in ("attributes", "traits"):
        given = getattr(mapping, section)
        for table in ("rename", "set"):
            entries: dict[str, Any] = getattr(given, table)
            for name in entries:
                rest = {key: value for key, value in entries.items() if key != name}
                changed = replace(mapping, **{section: replace(given, **{table: rest})})
                rules.append((f"mapping.{section}.{table}.{name}", changed))
        for table in ("keep", "drop", "hash"):
            listed: list[str] = getattr(given, table)
            for name in listed:
                without = replace(given, **{table: [item for item in listed if item != name]})
                rules.append((f"mapping.{section}.{table}: {name}", replace(mapping, **{section: without})))
    for name in mapping.fields:
        fields = {key: value for key, value in mapping.fields.items() if key != name}
        rules.append((f"mapping.fields.{name}", replace(mapping, fields=fields)))
    yield from rules[:RULES_MAX]
