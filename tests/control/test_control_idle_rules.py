"""The comparison of recent events with the mapping rules, beside everything else that the daemon does."""

import msgspec
import trio

from sidecar.config import MappingConfig
from sidecar.control.idle_rules import idle_rules

EVENTS = 40
LONG = msgspec.json.encode({"type": "track", "event": "E", "properties": {"text": "x" * 32_000}})


class OutboxOfLongEvents:
    """Reads one page of events that are as long as they may be."""

    async def read(self, _query) -> list[tuple[int, bytes]]:
        await trio.lowlevel.checkpoint()
        return [(1, LONG)] * EVENTS


def test_other_tasks_run_between_two_long_events():
    """Twenty of them were compared at once, which took as long as a hundred milliseconds."""
    turns = 0

    async def compare() -> None:
        nonlocal turns
        async with trio.open_nursery() as nursery:

            async def count() -> None:
                nonlocal turns
                while True:
                    await trio.lowlevel.checkpoint()
                    turns += 1

            nursery.start_soon(count)
            await idle_rules(OutboxOfLongEvents(), MappingConfig())
            nursery.cancel_scope.cancel()

    trio.run(compare)
    assert turns >= EVENTS - 1
