"""The seam between delivery and the network: three protocols, and a fake for simulations and tests.

``transport.HttpxNetwork`` is the real network. The package itself does not import it, so that verbs which only map or
classify do not pay for importing httpcore.
"""

import math
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import trio

from sidecar.px.answers import PxAnswer, Reply
from sidecar.px.requests import PxRequest

__all__ = ["AT_ONCE", "Departure", "FakeNetwork", "Lane", "Network", "wait_until_due"]


class Departure(Protocol):
    """The moment at which a request leaves this host.

    A lane may first have to connect, which takes a round trip or several. What counts against the ceiling is when the
    request leaves, not when it was decided, so the lane asks and reports here.
    """

    def due_s(self) -> float:
        """Return when the request may leave (``trio.current_time()``); a past time means now. Ask again after waiting."""
        ...

    def left(self) -> None:
        """Record that the last byte of the request has been handed to the kernel."""
        ...


async def wait_until_due(departure: Departure) -> None:
    """Wait until the request may leave; return without a checkpoint if it may leave now."""
    while (due_s := departure.due_s()) > trio.current_time():  # noqa: ASYNC110 - a time, not a condition
        await trio.sleep_until(due_s)


class _AtOnce:
    def due_s(self) -> float:
        return -math.inf

    def left(self) -> None:
        pass


AT_ONCE: Final[Departure] = _AtOnce()


class Lane(Protocol):
    """A channel for one request at a time."""

    async def send(self, request: PxRequest, departure: Departure = AT_ONCE) -> Reply:
        """Send and return the outcome. Raises nothing except cancellation, after which the lane is usable again."""
        ...

    async def aclose(self) -> None:
        """Close the connection. The lane stays usable; its next request opens a new connection."""
        ...


class Network(Protocol):
    """A source of lanes."""

    def lane(self) -> Lane:
        """Return a new lane; it connects with its first request."""
        ...


async def _created(_: PxRequest) -> Reply:
    return PxAnswer(201, b"{}", content_type="application/json")


class FakeNetwork:
    """Lanes whose replies come from ``script``, an async function that may wait and is cancelled with the send.

    ``sent`` holds all requests in sending order. ``lanes`` counts the lanes handed out, ``closed`` the calls of
    ``aclose``, ``in_flight`` the requests without a reply, and ``max_in_flight`` the maximum of that.
    """

    def __init__(self, script: Callable[[PxRequest], Awaitable[Reply]] = _created) -> None:
        self.script = script
        self.sent: list[PxRequest] = []
        self.lanes = self.closed = 0
        self.in_flight = 0
        self.max_in_flight = 0

    def lane(self) -> "FakeLane":
        """Return a new lane."""
        self.lanes += 1
        return FakeLane(self)


class FakeLane:
    """A lane to the script, for one request at a time, as a real lane is."""

    def __init__(self, network: FakeNetwork) -> None:
        self._network = network
        self._busy = False

    async def send(self, request: PxRequest, departure: Departure = AT_ONCE) -> Reply:
        """Return the script's reply to ``request``."""
        assert not self._busy, "a lane carries one request at a time"
        network, self._busy = self._network, True
        departure.left()
        network.sent.append(request)
        network.in_flight += 1
        network.max_in_flight = max(network.max_in_flight, network.in_flight)
        try:
            return await network.script(request)
        finally:
            network.in_flight -= 1
            self._busy = False

    async def aclose(self) -> None:
        """Count the call."""
        self._network.closed += 1
