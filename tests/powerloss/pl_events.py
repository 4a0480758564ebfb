"""The events of the recorded program, each made of its number, and what one life of it is."""

import json
from random import Random
from typing import Literal

import msgspec

from sidecar.outbox import NewEvent

__all__ = ["Life", "event_of", "is_bad", "number_of"]

USERS = 40


class Life(msgspec.Struct, frozen=True):
    """One process: how long, with which settings, and where the one before it stopped.

    ``kill_at_write`` ends it at that write to a file (0: it ends by itself); ``power_cut`` says that the power goes at
    its end. ``first`` is its first new event, ``again`` are those that nobody was answered for, ``note`` the last note.
    """

    seed: int
    number: int
    rounds: int
    durability: Literal["disk", "process"] = "disk"
    wal_bytes: int = 16 * 2**20
    drain: bool = False
    kill_at_write: int = 0
    power_cut: bool = False
    first: int = 1
    again: tuple[int, ...] = ()
    note: int = 0


def is_bad(number: int) -> bool:
    """Whether an event is one that is dead on arrival."""
    return number % 31 == 0


def event_of(number: int) -> NewEvent:
    """The event of this number, always the same bytes."""
    dice = Random(number)
    user = f"u{dice.randrange(USERS)}"
    pad = "x" * dice.choice((10, 100, 300, 300, 1_000, 9_000 if number % 17 == 0 else 20))
    event = {"messageId": f"m{number}", "type": "track", "event": "Event", "userId": user, "n": number, "pad": pad}
    body = json.dumps(event, separators=(",", ":")).encode()
    return NewEvent(0, dice.random() < 0.1, user, f"m{number}", body, "It is bad." if is_bad(number) else None)


def number_of(body: bytes) -> int:
    """Which event a body belongs to."""
    return int(json.loads(body)["n"])
