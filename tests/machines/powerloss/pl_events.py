"""The events of the recorded program, each derived from its number, and the plan of one process of it."""

import json
from random import Random
from typing import Literal

import msgspec

from sidecar.outbox import NewEvent

__all__ = ["ProcessPlan", "event_of", "is_bad", "number_of"]

USERS = 40


class ProcessPlan(msgspec.Struct, frozen=True):
    """The plan of one process: its length, its settings, and where the process before it stopped.

    ``kill_at_write`` kills it at that write to a file (0: it ends by itself); ``power_cut`` cuts the power at its end.
    ``first`` is its first new event, ``again`` the events that were never answered, ``note`` the last note.
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
    """Return whether the event is a bad event, which is dead when it is accepted."""
    return number % 31 == 0


def event_of(number: int) -> NewEvent:
    """Return the event of this number, always the same bytes."""
    rng = Random(number)
    user = f"u{rng.randrange(USERS)}"
    pad = "x" * rng.choice((10, 100, 300, 300, 1_000, 9_000 if number % 17 == 0 else 20))
    event = {"messageId": f"m{number}", "type": "track", "event": "Event", "userId": user, "n": number, "pad": pad}
    body = json.dumps(event, separators=(",", ":")).encode()
    bad = "It is bad." if is_bad(number) else None
    return NewEvent(0, rng.random() < 0.1, user, f"m{number}", body, bad, kind="track", name="Event")


def number_of(body: bytes) -> int:
    """Return the number of the event of a body."""
    return int(json.loads(body)["n"])
