"""An event whose turn has come, mapped: what is to be sent for it, and what it changes in the memory of its user.

The memory is overlaid: an event that changes it is mapped, and from then on the user's other events see the new one,
while the file learns it in the transaction that settles the event. An attempt that comes to nothing takes its change
back, so that the next one is mapped like the first; without order others may have made theirs meanwhile, which stay.
"""

from typing import Any

import msgspec

from sidecar.mapping import Known, Mapped
from sidecar.px import Verdict, Walk

__all__ = ["Memory", "Prepared", "words_of"]


class Memory:
    """What is known of a user, shared by all his loaded events: what is settled, and the changes under way over it."""

    __slots__ = ("__weakref__", "_changes", "_settled", "known")

    def __init__(self, known: Known) -> None:
        self.known = self._settled = known
        self._changes: dict[Prepared, dict[str, Any]] = {}

    def change(self, by: "Prepared", known: Known) -> None:
        """This event's mapping has changed ``known`` to this."""
        before, after = msgspec.structs.asdict(self.known), msgspec.structs.asdict(known)
        self._changes[by] = {field: value for field, value in after.items() if value != before[field]}
        self.known = known

    def take_back(self, by: "Prepared") -> None:
        """The event's change did not happen (yet)."""
        if self._changes.pop(by, None):
            self._overlay()

    def settle(self, by: "Prepared") -> Known:
        """The event's change is final; returns all that is."""
        self._settled = msgspec.structs.replace(self._settled, **self._changes.pop(by, {}))
        self._overlay()
        return self._settled

    def _overlay(self) -> None:
        self.known = self._settled
        for change in self._changes.values():
            self.known = msgspec.structs.replace(self.known, **change)


class Prepared:
    """An event that was mapped: what is to be sent for it, and what it changed in the memory of its user."""

    __slots__ = ("mapped", "memory", "name", "product", "walk")

    def __init__(self, mapped: Mapped, name: str, product: str, memory: Memory) -> None:
        self.mapped = mapped
        self.name = name
        self.product = product
        self.memory = memory
        self.walk = Walk(mapped.intents) if mapped.intents else None
        if mapped.known is not None:
            memory.change(self, mapped.known)

    def take_back(self) -> None:
        """The event's change of the memory did not happen (yet)."""
        self.memory.take_back(self)


def words_of(verdict: Verdict) -> str:
    """What a dead letter keeps of an answer: what it means, and what PX said, where that is not in it already."""
    if not verdict.excerpt or verdict.excerpt in verdict.message:
        return verdict.message
    return f"{verdict.message} PX said: {verdict.excerpt}"
