"""A small HTTP/1.1 server on trio streams and httptools: framing, limits, deadlines. It knows no routes.

A handler is ``async def handler(request: Request) -> Response``. ``serve_connection`` runs it for each request of one
stream of any kind, ``serve`` accepts connections, and ``Shutdown`` ends both without losing a request.
"""

from typing import TYPE_CHECKING

from sidecar import lazy_exports

if TYPE_CHECKING:
    from sidecar.http.accept import IdleConnections, Shutdown, serve, shortage
    from sidecar.http.budget import (
        LARGE_BYTES,
        BudgetExceeded,
        BudgetStatistics,
        Holder,
        MemoryBudget,
        at_once,
        in_slices,
    )
    from sidecar.http.client import ClientResponse, ProtocolError, open_response
    from sidecar.http.connection import serve_connection
    from sidecar.http.message import BUSY, Handler, Hangup, Limits, Raw, Refuse, Request, Response, plain_refusal

__all__ = [
    "BUSY",
    "LARGE_BYTES",
    "BudgetExceeded",
    "BudgetStatistics",
    "ClientResponse",
    "Handler",
    "Hangup",
    "Holder",
    "IdleConnections",
    "Limits",
    "MemoryBudget",
    "ProtocolError",
    "Raw",
    "Refuse",
    "Request",
    "Response",
    "Shutdown",
    "at_once",
    "in_slices",
    "open_response",
    "plain_refusal",
    "serve",
    "serve_connection",
    "shortage",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "accept": ("IdleConnections", "Shutdown", "serve", "shortage"),
        "budget": (
            "LARGE_BYTES",
            "BudgetExceeded",
            "BudgetStatistics",
            "Holder",
            "MemoryBudget",
            "at_once",
            "in_slices",
        ),
        "client": ("ClientResponse", "ProtocolError", "open_response"),
        "connection": ("serve_connection",),
        "message": ("BUSY", "Handler", "Hangup", "Limits", "Raw", "Refuse", "Request", "Response", "plain_refusal"),
    },
)
