"""A network without a network: every reply comes from a function. For simulations and tests."""

from collections.abc import Awaitable, Callable

from sidecar.px.answers import Answer, Reply
from sidecar.px.requests import Request

__all__ = ["FakeNetwork"]


async def _created(_: Request) -> Reply:
    return Answer(201, b"{}", content_type="application/json")


class FakeNetwork:
    """Lanes whose replies are what ``script`` returns; it may wait first (trio), and is cancelled with the lane's send.

    ``sent`` holds every request in the order of sending, ``lanes`` is how many lanes were asked for, ``closed`` how many
    of them were closed, ``most_at_once`` the most requests that were under way together.
    """

    def __init__(self, script: Callable[[Request], Awaitable[Reply]] = _created) -> None:
        self.script = script
        self.sent: list[Request] = []
        self.lanes = self.closed = 0
        self.at_once = 0
        self.most_at_once = 0

    def lane(self) -> "FakeLane":
        """A new lane."""
        self.lanes += 1
        return FakeLane(self)


class FakeLane:
    """One way to the script, for one request at a time like a real one."""

    def __init__(self, network: FakeNetwork) -> None:
        self._network = network
        self._busy = False

    async def send(self, request: Request) -> Reply:
        """The script's reply to ``request``."""
        assert not self._busy, "a lane carries one request at a time"
        network, self._busy = self._network, True
        network.sent.append(request)
        network.at_once += 1
        network.most_at_once = max(network.most_at_once, network.at_once)
        try:
            return await network.script(request)
        finally:
            network.at_once -= 1
            self._busy = False

    async def aclose(self) -> None:
        """Count it as closed; there is nothing else to do."""
        self._network.closed += 1
