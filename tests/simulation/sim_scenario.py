"""What happens in one simulated life of a daemon: a list of steps and a configuration.

A scenario is plain data, so that it can be printed, shrunk and run again. ``sim_draw.py`` draws one from a seed.
"""

from typing import Any

import msgspec

__all__ = ["APPS", "PRODUCT", "SECRET", "SECRET_NAME", "Event", "Keeping", "Scenario", "Step"]

PRODUCT, OTHER_PRODUCT = "AP-XXXXXXXXXX-2", "AP-YYYYYYYYYY-2"
# A field that all that apps say has, with a value that is found again in what PX gets, unless it is forbidden.
SECRET_NAME, SECRET = "secret", b"classified"
APPS = {"wk_first": PRODUCT, "wk_second": OTHER_PRODUCT}  # write key -> property key


class Keeping(msgspec.Struct, frozen=True):
    """What of the configuration has to do with how much is kept, and for how long."""

    max_bytes: int = 2**32
    when_full: str = "refuse"
    keep_delivered: str = "90d"
    keep_ids: str = "90d"
    keep_dead: str = "90d"
    max_users: int = 1_000_000

    def is_soon_over(self) -> bool:
        """Whether anything leaves within a run for its age, or for being too many."""
        times = (self.keep_delivered, self.keep_ids, self.keep_dead)
        return self.max_users < 1_000_000 or any(time != "90d" for time in times)


class Event(msgspec.Struct, frozen=True):
    """One event as a producer makes it; ``number`` makes its message id and is found again in what PX gets."""

    number: int
    kind: str
    user: str | None
    pad: int = 0  # so many bytes more
    app: str = ""  # its write key, where there are several apps

    @property
    def product(self) -> str:
        """The property key that PX is to get it with."""
        return APPS.get(self.app, PRODUCT)

    @property
    def high(self) -> bool:
        return self.kind in ("high", "identify", "group")

    def call(self) -> dict[str, Any]:
        """The Segment call."""
        said: dict[str, Any] = {"messageId": f"m{self.number}", "userId": self.user}
        if self.pad:
            said["context"] = {"pad": "x" * self.pad}
        if self.app:
            said["writeKey"] = self.app
        plain = {"n": self.number, SECRET_NAME: SECRET.decode()}
        marks = plain | ({"poison": self.kind} if self.kind in ("refused", "firewall") else {})
        match self.kind:
            case "identify":
                return said | {"type": "identify", "traits": plain}
            case "group":
                return said | {"type": "group", "groupId": f"g{self.number}", "traits": plain}
            case "alias":
                return said | {"type": "alias", "previousId": "x"}
            case "bad":
                return said | {"type": "track", "properties": marks}
            case "page":
                return said | {"type": "page", "properties": marks}
            case "opted_out":
                said["integrations"] = {"All": False}
        return said | {"type": "track", "event": "Paid" if self.kind == "high" else "Clicked", "properties": marks}


class Step(msgspec.Struct, frozen=True):
    """Something that happens ``at_s`` seconds after the beginning."""

    at_s: float
    what: str
    args: dict[str, Any] = {}


class Scenario(msgspec.Struct, frozen=True):
    """All of a run but the dice of scheduler and PX, which ``seed`` throws."""

    seed: int
    config: str
    knobs: dict[str, int]
    per_second: float
    per_day: int
    steps: tuple[Step, ...]
    kept: Keeping = Keeping()

    @property
    def least_per_day(self) -> int:
        """The smallest quota that it has."""
        return min([self.per_day, *(step.args.get("per_day", self.per_day) for step in self.steps)])

    @property
    def spreads(self) -> bool:
        """Whether it spreads the day at some time."""
        return '"spread"' in self.config or any(step.args.get("pace") == "spread" for step in self.steps)

    @property
    def changes_people(self) -> bool:
        """Whether people are written at one time and not at another."""
        return any("people" in step.args for step in self.steps)

    def size(self) -> int:
        """How much there is, for shrinking."""
        return sum(1 + len(step.args.get("events", ())) for step in self.steps)
