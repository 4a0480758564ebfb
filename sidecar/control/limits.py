"""Warn of PX's silent limits: beyond them PX answers 201 and drops events (sidecar/px/README.md#limits)."""

from functools import partial
from typing import Final, NoReturn

import trio

from sidecar.clock import Clock
from sidecar.control.state import Notices
from sidecar.control.status import NameShare
from sidecar.errors import SidecarError
from sidecar.mapping import LiveSettings, compile_mapping
from sidecar.outbox import Outbox
from sidecar.outbox.limit_watch import LimitWatch, NearLimit, busiest_name

__all__ = ["watch_limits", "watch_names"]

ROUND_EVERY_S: Final = 900.0
# A step reads some thousand rows of history. The pause between steps leaves the store to accepting and delivery.
STEP_EVERY_S: Final = 0.2
NAMES_EVERY_S: Final = 60.0

_SENTENCES: Final = {
    "user": "User {subject} had {count:,} events in 24 hours; PX accepts {limit:,} a day and drops the rest silently.",
    "session": "Session {subject} had {count:,} events; PX accepts {limit:,} per session and drops the rest silently.",
    "names": "There are {count:,} distinct event names; PX accepts {limit:,} and drops others silently. Merge some.",
}


async def watch_limits(outbox: Outbox, settings: LiveSettings, clock: Clock, notices: Notices) -> NoReturn:
    """Scan the delivered history every 15 minutes, and report in ``notices`` what is near a limit of PX."""
    while True:
        await trio.sleep(ROUND_EVERY_S)
        # A mapper of its own: a mapper caches names and is not thread-safe, and the steps run in the store's thread.
        config = settings.now.config
        watch = LimitWatch(compile_mapping(config.mapping, config.people, config.identity).px_name)
        more = True
        while more:
            await trio.sleep(STEP_EVERY_S)
            try:
                more = await outbox.read(partial(watch.step, now_ms=clock.wall_ms()))
            except SidecarError:
                continue  # the outbox reports what is wrong with the disk
        notices.near_limits([_sentence(near) for near in watch.near])


async def watch_names(outbox: Outbox, notices: Notices) -> NoReturn:
    """Tell ``notices`` every minute which event name came most often in the last day."""
    while True:
        try:
            busiest = await outbox.write(busiest_name)
        except SidecarError:
            pass  # the outbox reports what is wrong with the disk
        else:
            notices.busiest(None if busiest is None else NameShare(*busiest))
        await trio.sleep(NAMES_EVERY_S)


def _sentence(near: NearLimit) -> str:
    return _SENTENCES[near.kind].format(subject=near.subject, count=near.seen, limit=near.limit)
