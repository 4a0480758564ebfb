"""What the dispatcher says: what to do now, and what it wants from the outbox. Plain records, no behaviour."""

from typing import NamedTuple

from sidecar.deliver.order import Item, Turn
from sidecar.outbox import Settlement
from sidecar.px import Request

__all__ = ["AsidePage", "NextPage", "Rest", "Send", "SetAside", "Settle"]


class Send(NamedTuple):
    """Send this request now; its event has taken a slot."""

    item: Item
    request: Request


class Settle(NamedTuple):
    """Have this settled; nothing needs to be sent for it."""

    settlement: Settlement


class Rest(NamedTuple):
    """Nothing can be done before ``until_s`` (monotonic), unless something is told meanwhile."""

    until_s: float


class NextPage(NamedTuple):
    """Fetch the next rows of a class from the backlog."""

    high: bool
    after_id: int
    limit: int


class AsidePage(NamedTuple):
    """Fetch the next rows of one user that were set aside."""

    turn: Turn
    after_id: int
    limit: int


class SetAside(NamedTuple):
    """Mark these rows as set aside."""

    ids: list[int]
