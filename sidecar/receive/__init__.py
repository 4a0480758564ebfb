"""Take events from clients: the Segment routes over HTTP, and NDJSON on the Unix socket, into the outbox."""

from typing import TYPE_CHECKING

from sidecar import lazy_exports

if TYPE_CHECKING:
    from sidecar.receive.listeners import (
        BoundSockets,
        bind_control,
        bind_control_read,
        bind_events,
        bind_listeners,
        raise_descriptor_limit,
    )
    from sidecar.receive.parse import EventParser
    from sidecar.receive.responses import IngestResponse, ParsedRequest
    from sidecar.receive.routes import ClientMemory, PageHandler, Routes
    from sidecar.receive.server import IngestServer
    from sidecar.receive.socket_watch import keep_open, watch_inherited
    from sidecar.receive.sources import fingerprint, number_sources
    from sidecar.receive.starting import StartingServer

__all__ = [
    "BoundSockets",
    "ClientMemory",
    "EventParser",
    "IngestResponse",
    "IngestServer",
    "PageHandler",
    "ParsedRequest",
    "Routes",
    "StartingServer",
    "bind_control",
    "bind_control_read",
    "bind_events",
    "bind_listeners",
    "fingerprint",
    "keep_open",
    "number_sources",
    "raise_descriptor_limit",
    "watch_inherited",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "listeners": (
            "BoundSockets",
            "bind_control",
            "bind_control_read",
            "bind_events",
            "bind_listeners",
            "raise_descriptor_limit",
        ),
        "parse": ("EventParser",),
        "responses": ("IngestResponse", "ParsedRequest"),
        "routes": ("ClientMemory", "PageHandler", "Routes"),
        "server": ("IngestServer",),
        "sources": ("fingerprint", "number_sources"),
        "starting": ("StartingServer",),
        "socket_watch": ("keep_open", "watch_inherited"),
    },
)
