"""One event mapped for one attempt: the requests to send, and the change of its user's memory.

The memory of a user is overlaid. Mapping an event may change it, and the user's other events see the change at once;
the outbox learns it in the transaction that settles the event. An attempt that ends without a final answer rolls its
change back, so that the next attempt is mapped exactly like the first. With ``order = "none"`` other events of the same
user may have made changes in between; those stay.
"""

from typing import Any

import msgspec

from sidecar.deliver.order import LoadedEvent
from sidecar.mapping import Known, Mapped
from sidecar.observe import EventOutcome
from sidecar.outbox import ClockTrust, Failure, Row
from sidecar.px import CallSequence, Verdict

__all__ = ["Attempt", "UserMemory", "dead_letter_detail", "is_older", "outcome_of"]


class UserMemory:
    """The memory of one user, shared by all its loaded events: the settled state with the open changes over it."""

    __slots__ = ("__weakref__", "_changes", "_settled", "known")

    def __init__(self, known: Known) -> None:
        self.known = self._settled = known
        # Per attempt the fields that it changed, in the order of the changes. Whole snapshots would not do: rolling one
        # back would also undo what another attempt has changed since.
        self._changes: dict[Attempt, dict[str, Any]] = {}

    def change(self, by: "Attempt", known: Known) -> None:
        """Record that mapping this attempt has turned ``self.known`` into ``known``."""
        before, after = msgspec.structs.asdict(self.known), msgspec.structs.asdict(known)
        self._changes[by] = {field: value for field, value in after.items() if value != before[field]}
        self.known = known

    def roll_back(self, by: "Attempt") -> None:
        """Undo the attempt's change, if it made one; changes of other attempts stay."""
        if self._changes.pop(by, None):
            self._overlay()

    def settle(self, by: "Attempt") -> Known:
        """Make the attempt's change final; return the settled memory, which the file may learn now."""
        self._settled = msgspec.structs.replace(self._settled, **self._changes.pop(by, {}))
        self._overlay()
        return self._settled

    def _overlay(self) -> None:
        self.known = self._settled
        for change in self._changes.values():
            self.known = msgspec.structs.replace(self.known, **change)


class Attempt:
    """One mapped event. ``calls`` are its requests, None if there is nothing to send."""

    __slots__ = ("calls", "mapped", "memory", "name", "product")

    def __init__(self, mapped: Mapped, name: str, product: str, memory: UserMemory) -> None:
        self.mapped = mapped
        self.name = name
        self.product = product
        self.memory = memory
        self.calls = CallSequence(mapped.intents) if mapped.intents else None
        if mapped.known is not None:
            memory.change(self, mapped.known)

    def roll_back(self) -> None:
        """Undo the event's change of its user's memory."""
        self.memory.roll_back(self)


def dead_letter_detail(verdict: Verdict) -> str:
    """Return the detail text of a dead letter: what the answer means, and PX's own words unless they are in it."""
    if not verdict.excerpt or verdict.excerpt in verdict.message:
        return verdict.message
    return f"{verdict.message} PX said: {verdict.excerpt}"


def is_older(row: Row, max_age_s: float, clock_trust: ClockTrust) -> bool:
    """Return True if the event has been pending for longer, by a clock that can be believed."""
    scale = clock_trust.scale()
    since_ms = (row.received_ms, row.retried_ms) if row.retried_ms else (row.received_ms,)
    return scale.believed and min(map(scale.age_ms, since_ms)) > max_age_s * 1000


def outcome_of(
    event: LoadedEvent,
    what: str,
    attempts: int,
    *,
    reason: str = "",
    status: int | None = None,
    detail: str = "",
    failure: Failure | None = None,
) -> EventOutcome:
    """Return the telemetry record of an event that was settled or will be retried.

    ``attempts`` above the failed ones of the event means that a request of its present attempt was sent.
    """
    attempt: Attempt | None = event.attempt
    sent = attempt.calls.current if attempt and attempt.calls and attempts > event.attempts else None
    return EventOutcome(
        what=what,
        event_id=event.id,
        user=event.row.user,
        body=event.row.body,
        hashed=event.row.hashed,
        attempts=attempts,
        reason=reason,
        status=status,
        detail=detail,
        ambiguous=failure is not None and failure.ambiguous,
        request=f"{sent.method} {sent.path}" if sent else "",
        payload=sent.body if sent else b"",
        priority=event.priority.name.lower(),
        source=event.row.source,
        received_ms=event.row.received_ms,
    )
