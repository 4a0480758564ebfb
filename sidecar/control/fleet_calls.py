"""``/v1/fleet``: this host in its fleet, and all members as the engine knows them."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from sidecar.control.answers import Params, RouteTable, json_response
from sidecar.control.status import FleetFacts
from sidecar.errors import Failed, SidecarError
from sidecar.http import Request, Response

__all__ = ["FleetRoutes", "FleetSource", "fleet_facts"]


class FleetSource(Protocol):
    """The running part of a fleet."""

    def facts(self) -> dict[str, Any]:
        """Return the fields of ``FleetFacts``."""
        ...

    async def members(self) -> Sequence[Mapping[str, Any]]:
        """Return all members as the engine knows them. Raises SidecarError if it does not answer."""
        ...


def fleet_facts(fleet: FleetSource | None) -> FleetFacts | None:
    """Return the state of this host in its fleet; None without one."""
    return FleetFacts(**fleet.facts()) if fleet else None


class FleetRoutes:
    """``GET /v1/fleet``."""

    def __init__(self, fleet: FleetSource | None) -> None:
        self._fleet = fleet
        self.routes: RouteTable = {"/v1/fleet": ("GET", self._status)}

    async def _status(self, _request: Request, _params: Params) -> Response:
        if self._fleet is None:
            raise Failed("This daemon is not in a fleet; set fleet.url and fleet.name, and restart it.")
        try:
            members: Sequence[Mapping[str, Any]] | None = await self._fleet.members()
            error = None
        except SidecarError as failure:
            members, error = None, str(failure)
        return json_response({"fleet": fleet_facts(self._fleet), "members": members, "error": error})
