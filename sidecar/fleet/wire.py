"""One call of the script: its arguments and its answer. Pure.

Numbers travel as text with fixed digits: Lua's own conversion loses microseconds. Times are integers in microseconds of
the engine's clock, rates and promises integers in millionths of a request a second.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from sidecar.fleet.record import FleetRecord

__all__ = ["KEYS", "Answer", "Granted", "ScriptCall", "keys_of", "members_of", "parse_answer", "restored_grant"]

KEYS: Final = (
    *("state", "members", "absent", "ledger", "identities", "names"),
    *("high", "normal", "low", "pace", "minutes", "granted"),
)


class ScriptCall(NamedTuple):
    """The arguments of the script, in its order. ``valid_from`` and ``valid_until`` bound the time of its execution."""

    op: str
    member: str
    start: int
    nonce: str
    host: str
    run: str
    valid_from: int
    valid_until: int
    per_second: int
    per_day: int
    normal_day: int
    day: str
    spread: int
    identity: str
    horizon: int
    lease: int
    cap: int
    guard: int
    forget: int
    alone: int
    epoch: str
    promise: int
    known: int
    high: int = 0
    normal: int = 0
    low: int = 0
    held: int = 0
    returned: str = ""
    lone_id: int = 0
    lone: str = ""
    pace: int = 1000
    history: str = ""
    own: str = ""

    def arguments(self) -> list[str]:
        """Return the arguments as the texts that are sent."""
        return [str(value) for value in self]


class Granted(NamedTuple):
    """The answer to a call that had effects.

    The slots: ``slots`` of them, from ``first`` on, each ``step`` after the one before; they are booked in ``minute``. ``total`` is the
    sum of all promises, ``set_aside`` what of them is off the rate now; ``used`` includes what is set aside
    of the day for absent hosts; ``history`` holds the fleet's minutes.
    """

    epoch: str
    first: int
    step: int
    slots: int
    high_only: bool
    minute: int
    promise: int
    number: int
    total: int
    members: int
    absent: int
    others_high: int
    others_normal: int
    used: int
    rate: int
    set_aside: int
    history: dict[int, int]


def restored_grant(record: FleetRecord) -> Granted:
    """Return the last answer of an earlier process as far as it is recorded: its epoch and the promise, no slots."""
    return Granted(
        *(
            record.epoch,
            0,
            0,
            0,
            False,
            0,
            record.promise,
            record.number,
            record.total,
            0,
            0,
            0,
            0,
            record.used,
            0,
            0,
            {},
        )
    )


class Answer(NamedTuple):
    """The script's answer at ``now``: ``ok`` with ``granted``, or another outcome with its ``details``."""

    outcome: str
    now: int
    granted: Granted | None = None
    details: tuple[str, ...] = ()


def keys_of(name: str) -> list[str]:
    """Return the keys of a fleet; the braces put all of them into one slot of a cluster."""
    return [f"{{px:{name}}}:{key}" for key in KEYS]


def pack_minutes(minutes: Mapping[int, int]) -> str:
    """Return counts by minute as the script reads them."""
    return " ".join(f"{minute}:{count}" for minute, count in minutes.items() if count > 0)


def _unpack_minutes(text: str) -> dict[int, int]:
    pairs = (pair.split(":") for pair in text.split())
    return {int(minute): int(count) for minute, count in pairs}


def parse_answer(reply: Sequence[bytes]) -> Answer:
    """Return the script's answer. Raises ValueError or IndexError if it is not one."""
    texts = [part.decode() for part in reply]
    outcome, now = texts[0], int(texts[1])
    if outcome != "ok" or len(texts) == 2:
        return Answer(outcome, now, None, tuple(texts[2:]))
    fields: list[Any] = [texts[2], *(int(text) for text in texts[3:18]), _unpack_minutes(texts[18])]
    granted = Granted(*fields)
    return Answer(outcome, now, granted._replace(high_only=bool(granted.high_only)))


def members_of(reply: Sequence[bytes], own: str) -> list[dict[str, Any]]:
    """Return the members from the answer to ``look``: host, whether it is connected, what it may send alone, its slots."""
    texts = [part.decode() for part in reply]
    now, rest = int(texts[1]), texts[6:]
    members = []
    for at in range(0, len(rest) - 4, 5):
        member, host, until, promise, granted = rest[at : at + 5]
        members.append(
            {
                "host": host,
                "this": member == own,
                "connected": int(float(until)) >= now,
                "alone_per_second": int(promise) / 1_000_000,
                "granted": int(granted),
            }
        )
    return members
