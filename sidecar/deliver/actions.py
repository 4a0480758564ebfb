"""The dispatcher's decisions: what the loop does now, what it loads or writes, and its state. Plain records without behavior."""

from typing import NamedTuple

from sidecar.deliver.order import LoadedEvent, QueueKey, QueueStatistics
from sidecar.mapping import Priority
from sidecar.outbox import Settlement
from sidecar.px import PxRequest

__all__ = [
    "DispatcherStatistics",
    "LoadPage",
    "LoadParked",
    "LoadRows",
    "Park",
    "Send",
    "Settle",
    "SettleRows",
    "SweepPage",
    "SweepParked",
    "WaitUntil",
]


class Send(NamedTuple):
    """Send this request now; its event holds a slot from now on.

    ``renews_key``: it probes a pause for the API key, which is read again before it.
    """

    event: LoadedEvent
    request: PxRequest
    renews_key: bool = False


class Settle(NamedTuple):
    """Settle an event; no request is sent for it."""

    settlement: Settlement


class WaitUntil(NamedTuple):
    """Do nothing before ``until_s`` (monotonic seconds, or infinity) unless something changes before."""

    until_s: float


class LoadPage(NamedTuple):
    """Load up to ``limit`` rows of a class from the backlog, those with an id above ``after_id``."""

    priority: Priority
    after_id: int
    limit: int


class SweepPage(NamedTuple):
    """Read up to ``limit`` rows of a class after ``after_id``, only to find what a rule drops; keep none."""

    priority: Priority
    after_id: int
    limit: int


class SweepParked(NamedTuple):
    """Read up to ``limit`` parked rows of a class after a user and id, only to find what a rule drops; keep none."""

    priority: Priority
    after: tuple[str, int]
    limit: int


class SettleRows(NamedTuple):
    """Settle these events, which were about to be parked; there may be none. Then ask again."""

    settlements: list[Settlement]


class LoadParked(NamedTuple):
    """Load up to ``limit`` parked rows of one user, those with an id above ``after_id``."""

    key: QueueKey
    after_id: int
    limit: int


class LoadRows(NamedTuple):
    """Load these rows again: their retries are due, and their bodies were unloaded meanwhile."""

    ids: list[int]


class Park(NamedTuple):
    """Mark these rows as parked in the outbox."""

    ids: list[int]


class DispatcherStatistics(NamedTuple):
    """The dispatcher's state at one moment, for status and tests.

    ``in_flight`` are the slots: ids of events sent and not settled by a commit. ``under_way`` counts the requests
    without an answer. ``window`` is the most events that the queues may load.
    """

    in_flight: frozenset[int]
    under_way: int
    on_probation: int
    last_delivered_ms: int | None
    window: int
    queues: QueueStatistics
