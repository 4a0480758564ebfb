"""Dead letters: list, retry, discard and export them; used by the control API and the command line.

Each call processes one page and returns where the next one begins: 100,000 dead letters block no other request, and
progress can be shown. ``retry`` and ``discard`` run inside a transaction. An empty page does not mean the end: a call
examines a bounded number of rows, whether they match or not.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from sidecar.events import decode_or_empty
from sidecar.mapping import Account, Priority
from sidecar.mapping.privacy import hide_in
from sidecar.outbox.classify import Via
from sidecar.outbox.records import PENDING, EventState, hashed_values
from sidecar.outbox.steps import CHANGED_BYTES, READ_BYTES, up_to
from sidecar.outbox.store import Store

__all__ = [
    "DeadLetter",
    "DeadLetterFilter",
    "DeadPage",
    "MovedPage",
    "dead_page",
    "discard",
    "discard_ids",
    "exported",
    "retry",
]

PAGE_ROWS: Final = 500
# Most rows that one call examines: a few milliseconds of the store's thread.
SCAN_ROWS: Final = 2_000


class DeadLetterFilter(NamedTuple):
    """Selects dead letters; a field that is None selects all.

    ``name`` is compared exactly, ``reason`` is one of the closed list. ``since_ms`` and ``until_ms`` bound the time of
    the last attempt, the end excluded. ``user`` is the ordering key.
    """

    ids: Collection[int] | None = None
    name: str | None = None
    reason: str | None = None
    since_ms: int | None = None
    until_ms: int | None = None
    user: str | None = None


# Returns an account as the current privacy rules show it; None if they drop it.
Reveal = Callable[[Account], str | None]


class DeadLetter(msgspec.Struct, frozen=True, gc=False):
    """An event that was refused for good, with the reason, the last attempt and the event as received."""

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
    hashed: str | None = None
    account: str | None = None
    account_from: str | None = None


class DeadPage(NamedTuple):
    """Dead letters in id order, and the ``after_id`` of the next page, None at the end."""

    letters: list[DeadLetter]
    next_after: int | None


class MovedPage(NamedTuple):
    """The ids of retried or discarded letters in order, and the ``after_id`` of the next page, None at the end."""

    ids: list[int]
    next_after: int | None


def dead_page(store: Store, which: DeadLetterFilter, *, after_id: int = 0, limit: int = PAGE_ROWS) -> DeadPage:
    """Return the next matching dead letters after ``after_id``, at most ``limit``."""
    matches, next_after = _matching(store, which, after_id, limit)
    query = (
        "SELECT dead.id, dead.reason, dead.name, dead.user, dead.status, detail, dead.attempts, first_ms, last_ms, payload,"
        " source, received_ms, body, hashed, account, account_from FROM dead JOIN events ON events.id = dead.id WHERE dead.id = ?"
    )
    found = (store.connection.execute(query, (event_id,)).fetchone() for event_id, _ in matches)
    letters = [DeadLetter(*row) for row in up_to(READ_BYTES, found, lambda row: len(row[9]) + len(row[12]))]
    return DeadPage(letters, next_after if len(letters) == len(matches) else letters[-1].id)


def retry(
    store: Store,
    which: DeadLetterFilter,
    now_ms: int,
    *,
    priority_of: Callable[[dict[str, Any]], Priority],
    after_id: int = 0,
    limit: int = PAGE_ROWS,
) -> MovedPage:
    """Make the next page of dead letters pending again, inside a transaction: same id, no failed attempts.

    ``priority_of(event)`` decides the class again, with the current mapping. The dispatcher has to read the backlog again from
    the lowest of these ids: its read position may be past them.
    """
    matches, next_after = _fitting(store, *_matching(store, which, after_id, limit))
    for event_id, reason in matches:
        body, via = store.connection.execute("SELECT body, via FROM events WHERE id = ?", (event_id,)).fetchone()
        # Resent and backfilled events yield to what apps send, even after a refusal.
        low = via in (Via.RESEND, Via.BACKFILL)
        priority = Priority.LOW if low else priority_of(decode_or_empty(body))
        store.connection.execute("DELETE FROM dead WHERE id = ?", (event_id,))
        # ``settled_ms`` of a pending row is when it was retried: ages count from then, see ``Row.retried_ms``.
        store.connection.execute(
            "UPDATE events SET state = ?, settled_ms = ?, status = NULL, reason = NULL, attempts = NULL WHERE id = ?",
            (priority, now_ms, event_id),
        )
        store.count(f"dead:{reason}", -1)
        store.count(PENDING[priority])
    return MovedPage([event_id for event_id, _ in matches], next_after)


def discard(
    store: Store, which: DeadLetterFilter, now_ms: int, *, after_id: int = 0, limit: int = PAGE_ROWS
) -> MovedPage:
    """Make the next page of dead letters dropped with the reason ``discarded``, inside a transaction."""
    matches, next_after = _fitting(store, *_matching(store, which, after_id, limit))
    ids = [event_id for event_id, _ in matches]
    discard_ids(store, ids, now_ms)
    return MovedPage(ids, next_after)


def discard_ids(store: Store, ids: Sequence[int], now_ms: int, *, reason: str = "discarded") -> None:
    """Make these dead letters dropped, inside a transaction; ids that are not dead are skipped."""
    for event_id in ids:
        letter = store.connection.execute("DELETE FROM dead WHERE id = ? RETURNING reason", (event_id,)).fetchone()
        if letter is None:
            continue
        store.connection.execute(
            "UPDATE events SET state = ?, reason = ?, settled_ms = ? WHERE id = ?",
            (EventState.DROPPED, reason, now_ms, event_id),
        )
        store.count(f"dead:{letter[0]}", -1)
        store.count(f"dropped:{reason}")


def exported(
    letter: DeadLetter, redact: Callable[..., dict[str, Any]], reveal: Reveal = lambda account: account.id
) -> dict[str, Any]:
    """Return a dead letter as a JSON object, with the event as the current privacy rules show it.

    The ``payload`` was built by the rules in force when it was sent. It is shown if the current rules hide nothing in
    the event and not its account, else it is null: it could hold, under another name, what they hide. What PX said is
    shown without what they hide.
    """
    event = decode_or_empty(letter.body)
    redacted = redact(event, hashed_values(letter.hashed))
    account = Account(letter.account or "", letter.account_from or "")
    hides = redacted != event or (reveal(account) or "") != account.id
    return {
        "id": letter.id,
        "reason": letter.reason,
        "status": letter.status,
        "detail": hide_all(letter.detail, (event, redacted), account, reveal),
        "attempts": letter.attempts,
        "first_ms": letter.first_ms,
        "last_ms": letter.last_ms,
        "name": letter.name,
        "user": letter.user,
        "received_ms": letter.received_ms,
        "payload": decode_or_empty(letter.payload) if letter.payload and not hides else None,
        "event": redacted,
    }


def hide_all(text: str, shown: tuple[dict[str, Any], dict[str, Any]], account: Account | None, reveal: Reveal) -> str:
    """Return an answer of PX without what the rules hide in an event, given with its redacted form, and of its account.

    The answer may quote a request that was made by older rules.
    """
    event, redacted = shown
    held = account.id if account else ""
    return hide_in(text, [event, held], [redacted, (reveal(account) if account else None) or ""])


def _fitting(
    store: Store, matches: list[tuple[int, str]], next_after: int | None
) -> tuple[list[tuple[int, str]], int | None]:
    """Return those of the matches that one call may change, and where the next one begins."""
    query = "SELECT length(body) + length(payload) FROM events JOIN dead USING (id) WHERE id = ?"

    def size_of(match: tuple[int, str]) -> int:
        row = store.connection.execute(query, (match[0],)).fetchone()
        return row[0] if row else 0

    fitting = list(up_to(CHANGED_BYTES, matches, size_of))
    return fitting, next_after if len(fitting) == len(matches) else fitting[-1][0]


def _matching(
    store: Store, which: DeadLetterFilter, after_id: int, limit: int
) -> tuple[list[tuple[int, str]], int | None]:
    """Return ids and reasons of the next matches, and the ``after_id`` of the next page, None at the end."""
    candidates = _by_id(store, which.ids, after_id) if which.ids is not None else _scan(store, after_id)
    matches: list[tuple[int, str]] = []
    for event_id, reason, name, last_ms, user in candidates.rows:
        if (
            (which.reason is None or reason == which.reason)
            and (which.name is None or name == which.name)
            and (which.since_ms is None or last_ms >= which.since_ms)
            and (which.until_ms is None or last_ms < which.until_ms)
            and (which.user is None or user == which.user)
        ):
            matches.append((event_id, reason))
            if len(matches) == limit:
                return matches, event_id
    return matches, candidates.next_after


class _Candidates(NamedTuple):
    """A bounded number of rows (id, reason, name, last attempt, user) in id order, and where the next call begins."""

    rows: list[tuple[int, str, str, int, str | None]]
    next_after: int | None


def _scan(store: Store, after_id: int) -> _Candidates:
    rows = store.connection.execute(
        "SELECT id, reason, name, last_ms, user FROM dead WHERE id > ? ORDER BY id LIMIT ?", (after_id, SCAN_ROWS)
    ).fetchall()
    return _Candidates(rows, rows[-1][0] if len(rows) == SCAN_ROWS else None)


def _by_id(store: Store, ids: Collection[int], after_id: int) -> _Candidates:
    part = sorted(event_id for event_id in set(ids) if event_id > after_id)[:SCAN_ROWS]
    query = "SELECT id, reason, name, last_ms, user FROM dead WHERE id = ?"
    rows = [row for event_id in part for row in store.connection.execute(query, (event_id,))]
    return _Candidates(rows, part[-1] if len(part) == SCAN_ROWS else None)
