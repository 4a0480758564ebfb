"""What the outbox holds: events, dead letters, forgetting a user, what was delivered; with or without a daemon.

Rules
-----
* One call is one page: it holds nobody up, says where the next one begins, and lets its caller show progress.
* Whatever leaves here has gone through today's privacy rules.
* The mapper belongs to the loop's thread. What has to map within the store's thread (the class of a letter that is
  retried) uses one of its own.
"""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import msgspec

from sidecar.control.house import House
from sidecar.control.records import decoded, found_event, seen_event
from sidecar.events import seal
from sidecar.mapping import CustomEvent, Known, Mapped, Mapper, compile_mapping
from sidecar.mapping.values import to_epoch_ms
from sidecar.outbox import NewEvent, Remembered, Store, dead, lookup
from sidecar.outbox.dead import Which
from sidecar.outbox.forget import Forgotten, forget_users, theirs
from sidecar.px import preview

__all__ = ["Archive", "Carried", "Which"]

# Mapping so many events takes some 15 ms of the loop.
DELIVERED_ROWS: Final = 500
DAY_MS: Final = 86_400_000


class Carried(msgspec.Struct, frozen=True, rename="camel"):
    """A pending event on its way between hosts: with its product, and when it was received (epoch milliseconds)."""

    property_key: str
    received_ms: int
    event: dict[str, Any]


class _Delivered(NamedTuple):
    """A page of delivered rows, and how many were ``ever`` delivered from this outbox."""

    page: lookup.FoundPage
    ever: int


class Archive:
    """Reads and changes what is stored, through the outbox of ``house``."""

    def __init__(self, house: House) -> None:
        self.house = house
        self._store_mapper: tuple[Mapper, Mapper] | None = None

    # Events -----------------------------------------------------------------------------------------------------

    async def events(
        self,
        *,
        state: str | None = None,
        name: str | None = None,
        user: str | None = None,
        message_id: str | None = None,
        limit: int = 50,
        before: tuple[int, int] | None = None,
    ) -> dict[str, Any]:
        """``{"events", "next"}``: newest first; ``next`` is the ``before`` of the next page. Raises ValueError."""
        matches = None if message_id is None else lambda event: str(event.get("messageId")) == message_id
        ask = partial(
            lookup.recent, state=state, name=name, user=user, limit=limit, before=before, matches=matches
        )  # fmt: skip
        page = await self.house.outbox.read(ask)
        redact = self.house.mapper.redact
        return {"events": [found_event(one, redact) for one in page.events], "next": _cursor_text(page.next_before)}

    async def event(self, event_id: int) -> dict[str, Any] | None:
        """Everything about one event; None if it never was or is pruned.

        ``mapped`` is what today's mapping makes of it, with what is known of its user today: ``requests``, ``dropped``
        or ``dead``, and the ``changes`` where a value is cut or replaced.
        """
        seen, remembered = await self.house.outbox.read(partial(_seen, event_id=event_id))
        if seen is None:
            return None
        mapped = self._map(seen.event, remembered)
        about: dict[str, Any] = {"changes": [{"field": one.field, "what": one.what} for one in mapped.changes]}
        about |= {"requests": preview(mapped.intents)} if mapped.intents else {}
        about |= {"dropped": mapped.dropped} if mapped.dropped else {}
        about |= {"dead": mapped.dead} if mapped.dead else {}
        return seen_event(seen, self.house.mapper.redact) | {"mapped": about}

    def _map(self, found: lookup.Found, remembered: Sequence[Remembered] = ()) -> Mapped:
        """What today's mapping makes of an event."""
        product = self.house.product_of(found.source)
        known = next((Known.decode(one.known) for one in remembered if one.property_key == product), Known())
        return self.house.mapper.map(decoded(found.body), known, property_key=product, received_ms=found.received_ms)

    # Dead letters -----------------------------------------------------------------------------------------------

    async def letters(self, which: Which, *, after: int = 0, limit: int = dead.PAGE_ROWS) -> dict[str, Any]:
        """``{"letters", "next", "dead"}``: in the order of ids; ``dead`` is how many there are, matching or not."""
        page = await self.house.outbox.read(partial(dead.dead_page, which=which, after_id=after, limit=limit))
        letters = [dead.exported(letter, self.house.mapper.redact) for letter in page.letters]
        return {"letters": letters, "next": page.next_after, "dead": self._dead()}

    async def retry(self, which: Which, *, after: int = 0) -> dict[str, Any]:
        """Make a page of dead letters pending again, to be mapped anew: ``{"moved", "next"}``."""
        high = self._mapper_for_store().is_high
        try:
            moved = await self.house.outbox.write(
                lambda store, now_ms: dead.retry(store, which, now_ms, high=high, after_id=after)
            )
        finally:
            self._read_again(after + 1)  # a commit that failed may have happened all the same
        return {"moved": len(moved.ids), "next": moved.next_after}

    async def discard(self, which: Which, *, after: int = 0) -> dict[str, Any]:
        """Give up a page of dead letters for good: ``{"moved", "next"}``."""
        moved = await self.house.outbox.write(lambda store, now_ms: dead.discard(store, which, now_ms, after_id=after))
        return {"moved": len(moved.ids), "next": moved.next_after}

    def _dead(self) -> int:
        return sum(count for name, count in self.house.outbox.counters.items() if name.startswith("dead:"))

    def _mapper_for_store(self) -> Mapper:
        current = self.house.mapper
        if self._store_mapper is None or self._store_mapper[0] is not current:
            config = self.house.config
            self._store_mapper = (current, compile_mapping(config.mapping, config.people))
        return self._store_mapper[1]

    # Forgetting -------------------------------------------------------------------------------------------------

    async def forget(self, user: str, *, after: int = 0) -> dict[str, Any]:
        """Forget a user in a page of rows: ``{"pending", "dead", "history", "memory", "left", "next"}``.

        ``left`` are events of the user that are just being delivered. After the last page the log of the database is
        emptied too, so that the text is gone from the disk.
        """
        self._withdraw(user)
        delivery = self.house.delivery
        in_use = frozenset[int]() if delivery is None else delivery.dispatcher.loaded_ids()
        try:
            done: Forgotten = await self.house.outbox.write(
                lambda store, now_ms: forget_users(store, [user], now_ms, in_use=in_use, after_id=after)
            )
        finally:
            self._withdraw(user)  # a page that was read before that transaction may have come after it
            self._read_again(1)  # what is pending all the same, as the disk failed or it is new, was let go of too
        if done.next_after is None:
            await self.house.outbox.read(lambda store: store.checkpoint(truncate=True))
        return {
            "pending": done.pending,
            "dead": done.dead,
            "history": done.history,
            "memory": done.memory,
            "left": len(done.left),
            "next": done.next_after,
        }

    def _read_again(self, first_id: int) -> None:
        """Have delivery look again for what is pending from ``first_id`` on; what it holds already it keeps."""
        if self.house.delivery is not None:
            self.house.delivery.dispatcher.rewind(first_id)
            self.house.delivery.wake()

    def _withdraw(self, user: str) -> None:
        """Have delivery let go of what it has loaded of the user and is not sending."""
        if self.house.delivery is not None:
            is_theirs = theirs([user])
            self.house.delivery.dispatcher.withdraw(lambda row: is_theirs(row.user, row.body))

    # What was delivered -----------------------------------------------------------------------------------------

    async def delivered(self, *, since_ms: int, until_ms: int, before: tuple[int, int] | None = None) -> dict[str, Any]:
        """Count a page of delivered events by PX event name, where the event's date is in [since, until].

        ``{"names", "rows", "ever", "oldest_ms", "next"}``: ``rows`` were looked at, of ``ever`` delivered in the life
        of this outbox; ``oldest_ms`` is when the oldest of the page was delivered. No event can be dated more than a
        day after it was received, so the last page is the one that reaches a day before ``since``.
        """
        found = await self.house.outbox.read(partial(_delivered_page, before=before))
        names: Counter[str] = Counter()
        for one in found.page.events:
            name, date_ms = self._as_px_sees(one)
            if name is not None and since_ms <= date_ms <= until_ms:
                names[name] += 1
        oldest_ms = found.page.events[-1].settled_ms if found.page.events else None
        more = found.page.next_before is not None and (oldest_ms is None or oldest_ms >= since_ms - DAY_MS)
        return {
            "names": dict(names),
            "rows": len(found.page.events),
            "ever": found.ever,
            "oldest_ms": oldest_ms,
            "next": _cursor_text(found.page.next_before) if more else None,
        }

    def _as_px_sees(self, found: lookup.Found) -> tuple[str | None, int]:
        """Name and date of the custom event that PX got; no name if it got none."""
        for intent in self._map(found).intents:
            if isinstance(intent, CustomEvent):
                return str(intent.body["eventName"]), int(intent.body["date"])
        return None, 0

    # Moving between hosts ---------------------------------------------------------------------------------------

    async def take_in(self, carried: Sequence[Carried]) -> dict[str, Any]:
        """Accept events from another host, as they were there: ``{"accepted", "repeated"}``. Raises ValueError.

        A message id that is known here is not stored again. None is stored if one of them belongs to a product that
        this host knows no source of.
        """
        products = await self.house.outbox.read(Store.source_products)
        numbers = {key: number for number, key in sorted(products.items(), reverse=True)}
        numbers[self.house.config.px.property_key] = 0
        new = [self._new(one, numbers, position) for position, one in enumerate(carried, 1)]
        outcome = await self.house.outbox.accept(new)
        return {"accepted": outcome.stored, "repeated": outcome.repeated}

    def _new(self, one: Carried, numbers: dict[str, int], position: int) -> NewEvent:
        if one.property_key not in numbers:
            raise ValueError(
                f"event {position} belongs to {one.property_key}, which is no product of this host; add a [[source]] "
                "with that property_key"
            )
        event = one.event
        if not any(to_epoch_ms(event.get(key)) is not None for key in ("timestamp", "originalTimestamp")):
            event = event | {"originalTimestamp": one.received_ms}  # else it would be dated by its arrival here
        sealed = seal(event, self.house.config.outbox.max_event_bytes)
        if sealed.bad is not None or sealed.event is None:
            raise ValueError(f"event {position} cannot be accepted: {sealed.bad}")
        mapper = self.house.mapper
        return NewEvent(
            numbers[one.property_key],
            mapper.is_high(sealed.event),
            mapper.user_of(sealed.event),
            sealed.message_id,
            sealed.body,
        )


def _delivered_page(store: Store, before: tuple[int, int] | None) -> _Delivered:
    page = lookup.recent(store, state="delivered", limit=DELIVERED_ROWS, before=before)
    return _Delivered(page, store.counters["delivered"])


def _cursor_text(cursor: tuple[int, int] | None) -> str | None:
    return None if cursor is None else f"{cursor[0]}.{cursor[1]}"


def _seen(store: Store, event_id: int) -> tuple[lookup.Seen | None, list[Remembered]]:
    seen = lookup.show(store, event_id)
    users = {seen.event.user} if seen is not None and seen.event.user is not None else set[str]()
    return seen, store.known(users)
