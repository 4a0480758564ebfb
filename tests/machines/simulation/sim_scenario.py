"""A scenario: a configuration and a list of steps.

It is plain data, so that it can be printed, shrunk and run again. ``sim_draw.py`` draws it from a seed.
"""

from typing import Any

import msgspec

__all__ = [
    "APPS",
    "KEPT_WITH_WRONG_CLOCKS",
    "PRODUCT",
    "SECRET",
    "SECRET_NAME",
    "Event",
    "Scenario",
    "Step",
    "StorageLimits",
]

KEPT_WITH_WRONG_CLOCKS = "20m"
PRODUCT, OTHER_PRODUCT = "AP-XXXXXXXXXX-2", "AP-YYYYYYYYYY-2"
# A field of every event; its value reaches PX unless a privacy rule forbids the field.
SECRET_NAME, SECRET = "secret", b"classified"
APPS = {"wk_first": PRODUCT, "wk_second": OTHER_PRODUCT}  # write key -> property key


class StorageLimits(msgspec.Struct, frozen=True):
    """The settings that limit how much is stored, and for how long."""

    max_bytes: int = 2**32
    when_full: str = "refuse"
    keep_delivered: str = "90d"
    keep_ids: str = "90d"
    keep_dead: str = "90d"
    max_users: int = 1_000_000

    def expires_soon(self) -> bool:
        """Whether retention deletes anything within a run."""
        times = (self.keep_delivered, self.keep_ids, self.keep_dead)
        return self.max_users < 1_000_000 or any(time != "90d" for time in times)


class Event(msgspec.Struct, frozen=True):
    """One event of a producer; ``number`` becomes its message id and reaches PX as an attribute."""

    number: int
    kind: str
    user: str | None
    pad: int = 0  # additional bytes
    app: str = ""  # its write key if there are several apps

    @property
    def product(self) -> str:
        """The property key that PX must get with it."""
        return APPS.get(self.app, PRODUCT)

    @property
    def high(self) -> bool:
        return self.kind == "high"

    def call(self) -> dict[str, Any]:
        """Return the Segment call."""
        call: dict[str, Any] = {"messageId": f"m{self.number}", "userId": self.user}
        if self.pad:
            call["context"] = {"pad": "x" * self.pad}
        if self.app:
            call["writeKey"] = self.app
        properties = {"n": self.number, SECRET_NAME: SECRET.decode()}
        event_properties = properties | ({"poison": self.kind} if self.kind in ("refused", "firewall") else {})
        match self.kind:
            case "identify":
                return call | {"type": "identify", "traits": properties}
            case "group":
                return call | {"type": "group", "groupId": f"g{self.number}", "traits": properties}
            case "alias":
                return call | {"type": "alias", "previousId": "x"}
            case "bad":
                return call | {"type": "track", "properties": event_properties}
            case "page":
                return call | {"type": "page", "properties": event_properties}
            case "opted_out":
                call["integrations"] = {"All": False}
        return call | {
            "type": "track",
            "event": "Paid" if self.kind == "high" else "Clicked",
            "properties": event_properties,
        }


class Step(msgspec.Struct, frozen=True):
    """An action ``at_s`` seconds after the start; ``args`` are the arguments of its handler."""

    at_s: float
    what: str
    args: dict[str, Any] = {}


class Scenario(msgspec.Struct, frozen=True):
    """Everything that determines a run; ``seed`` also seeds the scheduler and the model of PX."""

    seed: int
    config: str
    knobs: dict[str, int]
    per_second: float
    per_day: int
    steps: tuple[Step, ...]
    kept: StorageLimits = StorageLimits()

    @property
    def least_per_day(self) -> int:
        """The smallest day quota in force at any time."""
        return min([self.per_day, *(step.args.get("per_day", self.per_day) for step in self.steps)])

    @property
    def spreads(self) -> bool:
        """Whether the day is spread at any time."""
        return '"spread"' in self.config or any(step.args.get("pace") == "spread" for step in self.steps)

    @property
    def changes_people(self) -> bool:
        """Whether reloads turn user and account upserts on or off."""
        return any("people" in step.args for step in self.steps)

    def size(self) -> int:
        """Return steps plus events, for shrinking."""
        return sum(1 + len(step.args.get("events", ())) for step in self.steps)
