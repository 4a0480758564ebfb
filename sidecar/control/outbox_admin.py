"""``OutboxAdmin``: read and change what the outbox stores (events, dead letters, users), with or without a daemon.

Rules
-----
* One call is one page: a short transaction, the cursor of the next page, and progress for the caller.
* Every event that is returned is redacted by the privacy rules in force.
* The settings' mapper belongs to the event loop's thread. Code that maps in the store's thread (the class of a retried
  letter) compiles a mapper of its own.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, NamedTuple, Protocol

import msgspec

from sidecar.control.selection import Class
from sidecar.events import decode_or_empty, judge, name_of
from sidecar.mapping import (
    Account,
    CustomEvent,
    Known,
    LiveSettings,
    Mapped,
    Mapper,
    Priority,
    compile_mapping,
    compile_settings,
)
from sidecar.observe import Redact
from sidecar.outbox import NewEvent, Outbox, Remembered, Row, Store, Via, dead, hashed_values, new_event, queries
from sidecar.outbox.dead import DeadLetterFilter
from sidecar.outbox.forget import Forgotten, forget_users, suppress, suppression, user_matcher
from sidecar.outbox.lookup import events_of_message
from sidecar.outbox.moved import BroughtBack, bring_back, count_importable, count_moved
from sidecar.outbox.selection import ALL_EVENTS, EventFilter
from sidecar.px import preview

__all__ = ["DeadLetterFilter", "ExportedEvent", "OutboxAdmin"]

# Mapping this many events blocks the event loop for about 15 ms.
DELIVERED_ROWS: Final = 500
DAY_MS: Final = 86_400_000
DATE_BYTES: Final = 200  # most that an import adds to an event: the key of its date, and the time of its receipt


class ExportedEvent(msgspec.Struct, frozen=True, rename="camel"):
    """A pending event in an export: with its product, and the time at which it was received (epoch milliseconds).

    ``hashed`` are the values of the event that are hashed already. Only the import honors it: an app cannot say so.
    ``source`` is the fingerprint of its source, in hexadecimal, if the event comes from an outbox of this host.
    ``priority`` is its class (``high``, ``normal``, ``low``); without one the importing host decides it by name.
    ``account`` is that of the event, ``memory`` the one that its user had on the exporting host at the time of the export.
    """

    property_key: str
    received_ms: int
    event: dict[str, Any]
    account: str | None = None
    account_from: str = ""
    hashed: list[str] | None = None
    source: str = ""
    priority: Class | None = msgspec.field(default=None, name="class")
    memory: str | None = None
    memory_from: str = ""


class _Delivered(NamedTuple):
    """A page of delivered rows, and the number that were ``ever`` delivered from this outbox."""

    page: queries.EventPage
    ever: int


class LoadedEvents(Protocol):
    """The events that delivery holds in memory, whose rows are about to change; implemented by ``deliver.Delivery``."""

    def withdraw(self, match: Callable[[Row], bool]) -> None:
        """Unload matching events that are not in flight."""
        ...

    def rewind(self, first_id: int) -> None:
        """Read the backlog again from ``first_id``: rows from there on may be pending again."""
        ...


class NothingLoaded:
    """Stand-in for delivery without a daemon."""

    def withdraw(self, match: Callable[[Row], bool]) -> None:
        """Do nothing."""

    def rewind(self, first_id: int) -> None:
        """Do nothing."""


class OutboxAdmin:
    """Read and change what is stored. ``loaded`` is running delivery, or None without a daemon."""

    def __init__(self, outbox: Outbox, settings: LiveSettings, loaded: LoadedEvents | None = None) -> None:
        self._outbox = outbox
        self._settings = settings
        self._loaded = loaded or NothingLoaded()

    @property
    def _mapper(self) -> Mapper:
        return self._settings.now.mapper

    # Events -----------------------------------------------------------------------------------------------------

    async def events(
        self,
        which: EventFilter = ALL_EVENTS,
        *,
        state: str | None = None,
        limit: int = 50,
        before: tuple[int, int] | None = None,
    ) -> dict[str, Any]:
        """Return ``{"events", "next"}``, newest first; ``next`` is the ``before`` of the next page.

        Raises ValueError for an unknown state.
        """
        page = await self._outbox.read(partial(_events_page, state=state, which=which, limit=limit, before=before))
        redact = self._mapper.redact
        return {"events": [event_summary(row, redact) for row in page.events], "next": _cursor_text(page.next_before)}

    async def event(self, event_id: int) -> dict[str, Any] | None:
        """Return everything about one event, or None if it was never accepted or is pruned.

        ``mapped`` is the result of the mapping in force, with what is remembered of the user now: ``requests``,
        ``dropped`` or ``dead``, and the ``changes`` where a value was cut or replaced.
        """
        detail, remembered = await self._outbox.read(partial(_event_with_known, event_id=event_id))
        if detail is None:
            return None
        result = self._map(detail.event, remembered)
        mapped: dict[str, Any] = {
            "changes": [{"field": change.field, "what": change.what} for change in result.changes]
        }
        mapped |= {"requests": preview(result.intents)} if result.intents else {}
        mapped |= {"dropped": result.dropped} if result.dropped else {}
        mapped |= {"dead": result.dead} if result.dead else {}
        return event_detail(detail, self._mapper) | {"mapped": mapped}

    def _map(self, row: queries.EventRow, remembered: Sequence[Remembered] = ()) -> Mapped:
        """Map an event with the mapping in force."""
        product = self._settings.now.product_of(row.source)
        known = next((Known.decode(user.known) for user in remembered if user.property_key == product), Known())
        return self._mapper.map(
            *(decode_or_empty(row.body), known),
            property_key=product,
            received_ms=row.received_ms,
            account=row.account,
            hashed=hashed_values(row.hashed),
        )

    # Dead letters -----------------------------------------------------------------------------------------------

    async def letters(self, which: DeadLetterFilter, *, after: int = 0, limit: int = dead.PAGE_ROWS) -> dict[str, Any]:
        """Return ``{"letters", "next", "dead"}`` in the order of ids; ``dead`` is the number of all dead letters."""
        page = await self._outbox.read(partial(dead.dead_page, which=which, after_id=after, limit=limit))
        letters = [dead.exported(letter, self._mapper.redact, self._mapper.reveal_account) for letter in page.letters]
        return {"letters": letters, "next": page.next_after, "dead": self._dead()}

    async def retry(self, which: DeadLetterFilter, *, after: int = 0) -> dict[str, Any]:
        """Make a page of dead letters pending again; the mapping in force maps them: ``{"moved", "next"}``."""
        config = self._settings.now.config
        # The settings' mapper is not thread-safe, and the class of a letter is decided in the store's thread.
        priority_of = compile_mapping(config.mapping, config.people, config.identity).priority_of
        try:
            moved = await self._outbox.write(
                lambda store, now_ms: dead.retry(store, which, now_ms, priority_of=priority_of, after_id=after)
            )
        finally:
            self._loaded.rewind(after + 1)  # even after an error: the commit may be on disk nevertheless
        return {"moved": len(moved.ids), "next": moved.next_after}

    async def discard(self, which: DeadLetterFilter, *, after: int = 0) -> dict[str, Any]:
        """Drop a page of dead letters with reason ``discarded``: ``{"moved", "next"}``."""
        moved = await self._outbox.write(lambda store, now_ms: dead.discard(store, which, now_ms, after_id=after))
        return {"moved": len(moved.ids), "next": moved.next_after}

    def _dead(self) -> int:
        return sum(count for name, count in self._outbox.counters.items() if name.startswith("dead:"))

    # Forgetting -------------------------------------------------------------------------------------------------

    async def forget(self, users: Sequence[str], *, suppressed: bool = False, after: int = 0) -> dict[str, Any]:
        """Forget users in one page of rows: ``{"pending", "dead", "history", "memory", "left", "linked", "next"}``.

        ``left`` is the number of the users' events in flight, which are kept; ``linked`` are other ids in their events.
        With ``suppressed`` what they send from now on is dropped. After the last page the write-ahead log is truncated,
        so that the users' data is not in it either.
        """
        if suppressed and after == 0:
            await self._suppress(users)
        matches = user_matcher(users)
        self._loaded.withdraw(lambda row: matches(row.user, row.body))
        checked_out = self._outbox.checked_out_now
        try:
            done: Forgotten = await self._outbox.write(
                lambda store, now_ms: forget_users(store, users, now_ms, checked_out=checked_out, after_id=after)
            )
        finally:
            # Delivery may have loaded rows that were read before that transaction, so unload them again. Rows that are
            # still pending, because they are new or the write failed, were unloaded as well, so read the backlog again.
            self._loaded.withdraw(lambda row: matches(row.user, row.body))
            self._loaded.rewind(1)
        if done.next_after is None:
            await self._outbox.read(lambda store: store.checkpoint(truncate=True))
        return {
            "pending": done.pending,
            "dead": done.dead,
            "history": done.history,
            "memory": done.memory,
            "left": len(done.skipped),
            "linked": sorted(done.linked),
            "next": done.next_after,
        }

    async def _suppress(self, users: Sequence[str]) -> None:
        """Put the suppression of users in force, before their events are searched: none may slip in meanwhile."""
        await self._outbox.write(lambda store, now_ms: suppress(store, users, now_ms))
        is_suppressed = await self._outbox.read(suppression)
        now = self._settings.now
        self._settings.replace(compile_settings(now.config, now.source_numbers, now.products, is_suppressed))

    # Delivered events -------------------------------------------------------------------------------------------

    async def delivered(self, *, since_ms: int, until_ms: int, before: tuple[int, int] | None = None) -> dict[str, Any]:
        """Count a page of delivered events by PX event name, where the event's date is in [since, until].

        Returns ``{"names", "rows", "ever", "oldest_ms", "next"}``: ``rows`` is the number of rows in the page, ``ever``
        the number of deliveries in the life of this outbox, ``oldest_ms`` the delivery time of the page's oldest row.
        """
        delivered = await self._outbox.read(partial(_delivered_page, before=before))
        page = delivered.page
        names: Counter[str] = Counter()
        for row in page.events:
            name, date_ms = self._px_name_and_date(row)
            if name is not None and since_ms <= date_ms <= until_ms:
                names[name] += 1
        oldest_ms = page.events[-1].settled_ms if page.events else None
        # The mapping replaces dates later than a day after receipt, so earlier deliveries than this are out of range.
        more = page.next_before is not None and (oldest_ms is None or oldest_ms >= since_ms - DAY_MS)
        return {
            "names": dict(names),
            "rows": len(page.events),
            "ever": delivered.ever,
            "oldest_ms": oldest_ms,
            "next": _cursor_text(page.next_before) if more else None,
        }

    def _px_name_and_date(self, row: queries.EventRow) -> tuple[str | None, int]:
        """Return name and date of the custom event that PX received; the name is None if it received none."""
        for intent in self._map(row).intents:
            if isinstance(intent, CustomEvent):
                return str(intent.body["eventName"]), int(intent.body["date"])
        return None, 0

    # Moving between hosts ---------------------------------------------------------------------------------------

    async def import_events(self, exported: Sequence[ExportedEvent], *, back: bool = False) -> dict[str, int]:
        """Accept events that a host exported: ``{"accepted", "repeated"}``.

        An event whose message id is known here is not stored again. With ``back`` those that were moved away from here
        are pending again. Without it ``moved`` is their number, if there are any; ``pruned`` is the number of those
        that are known and have no row any more. Raises ValueError, and stores none of them, if an event is not
        acceptable or belongs to a product without a source on this host.
        """
        new = await self._new_events(exported)
        returned, extra = 0, {}
        if back:
            brought = await self._bring_back(new)
            new = [event for position, event in enumerate(new) if position not in brought.positions]
            returned, extra = len(brought.ids), {"pruned": brought.pruned}
        outcome = await self._outbox.accept(new)
        if outcome.repeated and not back:
            extra = {"moved": await self._outbox.read(partial(count_moved, events=new))}
        answer = {"accepted": outcome.stored + returned, "repeated": outcome.repeated}
        return answer | {name: count for name, count in extra.items() if count}

    async def count_importable(self, exported: Sequence[ExportedEvent]) -> int:
        """Return how many of these events ``import_events`` with ``back`` would make pending. Raises ValueError as it does."""
        return await self._outbox.read(partial(count_importable, events=await self._new_events(exported)))

    async def _new_events(self, exported: Sequence[ExportedEvent]) -> list[NewEvent]:
        """Return the events as they are accepted. Raises ValueError for one that is not acceptable here."""
        products = await self._outbox.read(Store.source_products)
        # Several sources can share a product: the lowest number wins, and 0 (no source) for the host's own product.
        numbers = {key: number for number, key in sorted(products.items(), reverse=True)}
        numbers[self._settings.now.config.px.property_key] = 0
        known = {
            fingerprint: number for number, fingerprint in (await self._outbox.read(Store.source_fingerprints)).items()
        }
        return [
            self._new_event(event, known.get(event.source), numbers, position)
            for position, event in enumerate(exported, 1)
        ]

    async def _bring_back(self, new: Sequence[NewEvent]) -> BroughtBack:
        config = self._settings.now.config
        priority_of = compile_mapping(config.mapping, config.people, config.identity).priority_of
        brought: BroughtBack | None = None
        try:
            brought = await self._outbox.write(lambda store, _now_ms: bring_back(store, new, priority_of=priority_of))
        finally:
            # Even after an error: the commit may be on disk nevertheless.
            self._loaded.rewind(min(brought.ids, default=2**62) if brought else 1)
        return brought

    def _new_event(
        self, exported: ExportedEvent, source: int | None, numbers: dict[str, int], position: int
    ) -> NewEvent:
        if source is None and exported.property_key not in numbers:
            raise ValueError(
                f"event {position} belongs to {exported.property_key}, which is not a product of this host; add a "
                "[[source]] with that property_key"
            )
        # Without a usable date of its own the event would be dated by its import.
        event = self._settings.now.mapper.keep_date(exported.event, exported.received_ms)
        # An exported event holds what its batch had added to it, or a repair: twice the limit, and here the date.
        judged = judge(event, 2 * self._settings.now.config.outbox.max_event_bytes + DATE_BYTES)
        if judged.bad is not None or judged.event is None:
            raise ValueError(f"event {position} cannot be accepted: {judged.bad}")
        carried = None if exported.account is None else Account(exported.account, exported.account_from)
        new = new_event(
            self._settings.now,
            numbers[exported.property_key] if source is None else source,
            judged,
            via=Via.IMPORT,
            carried=carried,
            hashed=msgspec.json.encode(exported.hashed).decode() if exported.hashed else None,
        )
        if exported.priority is None:  # a line of an older release: the account of its event is all that is known
            return new
        # The class was decided when the event was accepted, or when an operator resent it: it stays as it was.
        return msgspec.structs.replace(
            new,
            priority=Priority[exported.priority.upper()],
            memory=Account(exported.memory, exported.memory_from) if exported.memory else None,
            keeps_memory=True,
        )


def _events_page(
    store: Store, *, state: str | None, which: EventFilter, limit: int, before: tuple[int, int] | None
) -> queries.EventPage:
    """Return a page of events; those of a message id through its index, as long as it knows the id."""
    if which.message_id is not None and before is None:
        rows = [detail.event for detail in events_of_message(store, which.message_id).found]
        found = [
            row
            for row in reversed(rows)
            if (state is None or row.state == state)
            and which.matches(
                decode_or_empty(row.body),
                user=row.user,
                source=row.source,
                received_ms=row.received_ms,
                priority=row.priority,
            )
        ]
        if found:
            return queries.EventPage(found[:limit], None)
    return queries.list_events(store, state=state, which=which, limit=limit, before=before)


def _delivered_page(store: Store, before: tuple[int, int] | None) -> _Delivered:
    page = queries.list_events(store, state="delivered", limit=DELIVERED_ROWS, before=before)
    return _Delivered(page, store.counters["delivered"])


def _cursor_text(cursor: tuple[int, int] | None) -> str | None:
    return None if cursor is None else f"{cursor[0]}.{cursor[1]}"


def _event_with_known(store: Store, event_id: int) -> tuple[queries.EventDetail | None, list[Remembered]]:
    """Return one event, and what is remembered of its user."""
    detail = queries.get_event(store, event_id)
    users = {detail.event.user} if detail is not None and detail.event.user is not None else set[str]()
    return detail, store.known(users)


def event_summary(row: queries.EventRow, redact: Redact) -> dict[str, Any]:
    """Return an event as a list shows it: its state and outcome, and the event redacted by the privacy rules."""
    event = decode_or_empty(row.body)
    return {
        "id": row.id,
        "state": row.state,
        "class": None if row.priority is None else row.priority.name.lower(),
        "name": name_of(event),
        "user": row.user,
        "messageId": event.get("messageId"),
        "received_ms": row.received_ms,
        "settled_ms": row.settled_ms,
        "reason": row.reason,
        "status": row.status,
        "attempts": row.attempts,
        "event": redact(event, hashed_values(row.hashed)),
    }


def event_detail(detail: queries.EventDetail, mapper: Mapper) -> dict[str, Any]:
    """Return an event as in a list, with its failed attempts while it is pending, and the refusal if it is dead."""
    event = event_summary(detail.event, mapper.redact)
    if detail.failure is not None:
        failure = detail.failure
        event |= {"attempts": failure.attempts, "detail": failure.detail}
        event |= {"first_failed_ms": failure.first_failed_ms, "last_failed_ms": failure.last_failed_ms}
    if detail.letter is not None:
        letter = detail.letter
        event |= {"detail": letter.detail, "attempts": letter.attempts}
        event |= {"first_failed_ms": letter.first_ms, "last_failed_ms": letter.last_ms}
    if "detail" in event:
        shown = (decode_or_empty(detail.event.body), event["event"])
        event["detail"] = dead.hide_all(event["detail"], shown, detail.event.account, mapper.reveal_account)
    return event
