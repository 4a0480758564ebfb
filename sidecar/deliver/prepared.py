"""An event whose turn has come, mapped: what is to be sent for it, and what it changes in the memory of its user.

The memory is overlaid: an event that changes it is mapped, and from then on the user's other events see the new one,
while the file learns it in the transaction that settles the event. An attempt that comes to nothing takes its change
back, so that the next one is mapped like the first.
"""

from sidecar.mapping import Known, Mapped
from sidecar.px import Verdict, Walk

__all__ = ["Memory", "Prepared", "words_of"]


class Memory:
    """What is known of a user, shared by all his loaded events."""

    __slots__ = ("__weakref__", "known")

    def __init__(self, known: Known) -> None:
        self.known = known


class Prepared:
    """An event that was mapped: what is to be sent for it, and what it changed in the memory of its user."""

    __slots__ = ("before", "mapped", "memory", "name", "product", "walk")

    def __init__(self, mapped: Mapped, name: str, product: str, memory: Memory) -> None:
        self.mapped = mapped
        self.name = name
        self.product = product
        self.memory = memory
        self.before = memory.known
        self.walk = Walk(mapped.intents) if mapped.intents else None
        if mapped.known is not None:
            memory.known = mapped.known

    def take_back(self) -> None:
        """The event's change of the memory did not happen (yet)."""
        if self.memory.known is self.mapped.known:
            self.memory.known = self.before


def words_of(verdict: Verdict) -> str:
    """What a dead letter keeps of an answer: what it means, and what PX said, where that is not in it already."""
    if not verdict.excerpt or verdict.excerpt in verdict.message:
        return verdict.message
    return f"{verdict.message} PX said: {verdict.excerpt}"
