"""What the control room needs of the daemon around it, and the same for an outbox that no daemon has open."""

from typing import Protocol

from sidecar.clock import Clock
from sidecar.config import Config
from sidecar.deliver.shell import Delivery
from sidecar.mapping import Mapper
from sidecar.observe import Feed
from sidecar.outbox import Outbox, Room, Store

__all__ = ["House"]


class House(Protocol):
    """The rooms that are asked. ``config`` and ``mapper`` are read anew each time, since a reload replaces them.

    ``delivery`` is None where no daemon runs. ``store`` is named for its path; it is used through ``outbox`` only.
    """

    @property
    def config(self) -> Config: ...

    @property
    def clock(self) -> Clock: ...

    @property
    def store(self) -> Store: ...

    @property
    def outbox(self) -> Outbox: ...

    @property
    def room(self) -> Room: ...

    @property
    def delivery(self) -> Delivery | None: ...

    @property
    def feed(self) -> Feed: ...

    @property
    def mapper(self) -> Mapper: ...

    def product_of(self, source: int) -> str:
        """The property key that the events of a source belong to."""
        ...
