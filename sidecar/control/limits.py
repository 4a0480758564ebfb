"""Warnings of PX's silent limits: beyond them it answers 201 and drops events (facts: ``px_and_sdks.md`` 1.2)."""

from functools import partial
from typing import Final, NoReturn

import trio

from sidecar.control.house import House
from sidecar.errors import SidecarError
from sidecar.mapping import compile_mapping
from sidecar.outbox.watch import Near, Watch

__all__ = ["warn_of_limits"]

ROUND_EVERY_S: Final = 900.0
# A step reads some thousand rows of history; between two of them the store is there for others.
STEP_EVERY_S: Final = 0.2

_SAID: Final = {
    "user": "User {who} had {count:,} events in 24 hours; PX takes {limit:,} of a user a day and drops the rest silently.",
    "session": "Session {who} had {count:,} events; PX takes {limit:,} of a session and drops the rest silently.",
    "names": "There are {count:,} distinct event names; PX takes {limit:,} and drops others silently. Map some together.",
}


async def warn_of_limits(house: House, warnings: list[str]) -> NoReturn:
    """Look through the delivered history again and again, and keep in ``warnings`` who is near a limit of PX."""
    while True:
        await trio.sleep(ROUND_EVERY_S)
        # A mapper of its own: the look-ups run in the store's thread, and a mapper remembers names.
        watch = Watch(compile_mapping(house.config.mapping, house.config.people).px_name)
        more = True
        while more:
            await trio.sleep(STEP_EVERY_S)
            try:
                more = await house.outbox.read(partial(watch.step, now_ms=house.clock.wall_ms()))
            except SidecarError:
                continue  # the outbox says on its own surfaces what is wrong with the disk
        warnings[:] = [_say(near) for near in watch.near]


def _say(near: Near) -> str:
    return _SAID[near.kind].format(who=near.who, count=near.seen, limit=near.limit)
