"""Dead letters: look at them, make them pending again, give them up. For the control room and the command.

All calls do one page and say where the next one begins, so that 100,000 of them hold nobody up and progress can be
shown. ``retry`` and ``discard`` run inside a transaction; a page without a match may have another one behind it.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from sidecar.events import readable
from sidecar.outbox.records import State
from sidecar.outbox.store import Store

__all__ = ["DeadLetter", "DeadPage", "Moved", "Which", "dead_page", "discard", "discard_ids", "exported", "retry"]

PAGE_ROWS: Final = 500
# So many rows one call looks at, whether they match or not: some 30 ms.
SCAN_ROWS: Final = 5_000


class Which(NamedTuple):
    """Which dead letters are meant; what is None does not matter.

    ``name`` is the event's name, exactly; ``reason`` one of the closed list; ``since_ms`` and ``until_ms`` bound the
    time of the last attempt, the end excluded.
    """

    ids: Collection[int] | None = None
    name: str | None = None
    reason: str | None = None
    since_ms: int | None = None
    until_ms: int | None = None


class DeadLetter(msgspec.Struct, frozen=True, gc=False):
    """Everything that is known of an event that was refused for good."""

    id: int
    reason: str
    name: str
    user: str | None
    status: int | None
    detail: str
    attempts: int
    first_ms: int
    last_ms: int
    payload: bytes
    source: int
    received_ms: int
    body: bytes


class DeadPage(NamedTuple):
    """Some dead letters in the order of their ids, and the ``after_id`` of the next page, None at the end."""

    letters: list[DeadLetter]
    next_after: int | None


class Moved(NamedTuple):
    """The ids that were moved, in order, and the ``after_id`` of the next page, None at the end."""

    ids: list[int]
    next_after: int | None


def dead_page(store: Store, which: Which, *, after_id: int = 0, limit: int = PAGE_ROWS) -> DeadPage:
    """The next dead letters behind ``after_id``, ``limit`` at most."""
    found, next_after = _matching(store, which, after_id, limit)
    query = (
        "SELECT dead.id, dead.reason, name, dead.user, dead.status, detail, dead.attempts, first_ms, last_ms, payload,"
        " source, received_ms, body FROM dead JOIN events ON events.id = dead.id WHERE dead.id = ?"
    )
    return DeadPage([DeadLetter(*store.connection.execute(query, (one,)).fetchone()) for one, _ in found], next_after)


def retry(
    store: Store,
    which: Which,
    now_ms: int,
    *,
    high: Callable[[dict[str, Any]], bool],
    after_id: int = 0,
    limit: int = PAGE_ROWS,
) -> Moved:
    """Make the next page of dead letters pending again, inside a transaction: same id, patience from the start.

    ``high`` decides the class anew, with today's mapping. The dispatcher has to look again from the lowest id on.
    """
    found, next_after = _matching(store, which, after_id, limit)
    for event_id, reason in found:
        body = store.connection.execute("SELECT body FROM events WHERE id = ?", (event_id,)).fetchone()[0]
        is_high = high(readable(body))
        store.connection.execute("DELETE FROM dead WHERE id = ?", (event_id,))
        store.connection.execute(
            "UPDATE events SET state = ?, settled_ms = ?, status = NULL, reason = NULL, attempts = NULL WHERE id = ?",
            (State.HIGH if is_high else State.NORMAL, now_ms, event_id),
        )
        store.count(f"dead:{reason}", -1)
        store.count("pending_high" if is_high else "pending_normal")
    return Moved([one for one, _ in found], next_after)


def discard(store: Store, which: Which, now_ms: int, *, after_id: int = 0, limit: int = PAGE_ROWS) -> Moved:
    """Give up the next page of dead letters, inside a transaction: they become dropped, ``discarded``."""
    found, next_after = _matching(store, which, after_id, limit)
    ids = [one for one, _ in found]
    discard_ids(store, ids, now_ms)
    return Moved(ids, next_after)


def discard_ids(store: Store, ids: Sequence[int], now_ms: int, *, reason: str = "discarded") -> None:
    """Make these dead letters dropped, inside a transaction; ids that are not dead are passed over."""
    for event_id in ids:
        found = store.connection.execute("DELETE FROM dead WHERE id = ? RETURNING reason", (event_id,)).fetchone()
        if found is None:
            continue
        store.connection.execute(
            "UPDATE events SET state = ?, reason = ?, settled_ms = ? WHERE id = ?",
            (State.DROPPED, reason, now_ms, event_id),
        )
        store.count(f"dead:{found[0]}", -1)
        store.count(f"dropped:{reason}")


def exported(letter: DeadLetter, redact: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    """A dead letter as a JSON object: the event as today's privacy rules let people see it.

    The ``payload`` as PX got it was made by the rules of its day. It is shown where today's have nothing to hide in the
    event, else it is null: it could hold, under another name, what they keep.
    """
    event = readable(letter.body)
    seen = redact(event)
    return {
        "id": letter.id,
        "reason": letter.reason,
        "status": letter.status,
        "detail": letter.detail,
        "attempts": letter.attempts,
        "first_ms": letter.first_ms,
        "last_ms": letter.last_ms,
        "name": letter.name,
        "user": letter.user,
        "received_ms": letter.received_ms,
        "payload": readable(letter.payload) if letter.payload and seen == event else None,
        "event": seen,
    }


def _matching(store: Store, which: Which, after_id: int, limit: int) -> tuple[list[tuple[int, str]], int | None]:
    """Ids and reasons of the next matches, and where to go on."""
    wanted = (
        _by_id(store, which.ids, after_id) if which.ids is not None else _scan(store, after_id)
    )  # both in the order of ids, bounded
    found: list[tuple[int, str]] = []
    for event_id, reason, name, last_ms in wanted.rows:
        if (
            (which.reason is None or reason == which.reason)
            and (which.name is None or name == which.name)
            and (which.since_ms is None or last_ms >= which.since_ms)
            and (which.until_ms is None or last_ms < which.until_ms)
        ):
            found.append((event_id, reason))
            if len(found) == limit:
                return found, event_id
    return found, wanted.next_after


class _Rows(NamedTuple):
    rows: list[tuple[int, str, str, int]]
    next_after: int | None


def _scan(store: Store, after_id: int) -> _Rows:
    rows = store.connection.execute(
        "SELECT id, reason, name, last_ms FROM dead WHERE id > ? ORDER BY id LIMIT ?", (after_id, SCAN_ROWS)
    ).fetchall()
    return _Rows(rows, rows[-1][0] if len(rows) == SCAN_ROWS else None)


def _by_id(store: Store, ids: Collection[int], after_id: int) -> _Rows:
    part = sorted(one for one in set(ids) if one > after_id)[:SCAN_ROWS]
    query = "SELECT id, reason, name, last_ms FROM dead WHERE id = ?"
    rows = [row for one in part for row in store.connection.execute(query, (one,))]
    return _Rows(rows, part[-1] if len(part) == SCAN_ROWS else None)
