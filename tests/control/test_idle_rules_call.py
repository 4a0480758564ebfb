"""The comparison of the newest events with the mapping: it holds nothing else up."""

import trio

from sidecar.config import MappingConfig
from sidecar.control import idle_rules


class Rows:
    """The only page of an outbox."""

    def __init__(self, bodies: list[bytes]) -> None:
        self._rows = list(enumerate(bodies))

    async def read(self, _call: object) -> list[tuple[int, bytes]]:
        return self._rows


async def test_large_events_are_compared_one_by_one(nursery, monkeypatch):
    """Twenty of them in one step held the event loop for almost half a second."""
    at_once = [0]
    monkeypatch.setattr(idle_rules.IdleRules, "add", lambda *_: at_once.append(at_once.pop() + 1))

    async def others():
        while True:
            at_once.append(0)
            await trio.lowlevel.checkpoint()

    nursery.start_soon(others)
    large = b'{"type":"track","event":"A","properties":{"text":"%b"}}' % (b"x" * 30_000)
    await idle_rules.idle_rules(Rows([large] * 40), MappingConfig())
    nursery.cancel_scope.cancel()
    assert max(at_once) <= 2  # trio runs the tasks that are ready in either order
