"""The seam between delivery and the network, as two protocols.

``transport.HttpxNetwork`` is the real one and ``fake.FakeNetwork`` the one for simulations and tests. Neither is
imported by the package itself, so that verbs which only map or judge do not pay for httpx at their start.
"""

from typing import Protocol

from sidecar.px.answers import Reply
from sidecar.px.requests import Request

__all__ = ["Lane", "Network"]


class Lane(Protocol):
    """A way for one request at a time."""

    async def send(self, request: Request) -> Reply:
        """Send and return what came of it; never raises but for cancellation, after which the lane is usable."""
        ...

    async def aclose(self) -> None:
        """Close the connection. The lane can still be used and then opens a new one."""
        ...


class Network(Protocol):
    """Where lanes come from."""

    def lane(self) -> Lane:
        """A new lane; it connects with its first request."""
        ...
