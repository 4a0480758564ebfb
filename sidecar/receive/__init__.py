"""Receiving: the Segment routes over HTTP, and NDJSON on the Unix socket, into the outbox."""

from sidecar.receive.front import Front
from sidecar.receive.intake import Answer, Intake
from sidecar.receive.listeners import Opened, bind_control, bind_listeners, raise_descriptor_limit
from sidecar.receive.routes import Routes
from sidecar.receive.sources import Sources, fingerprint

__all__ = [
    "Answer",
    "Front",
    "Intake",
    "Opened",
    "Routes",
    "Sources",
    "bind_control",
    "bind_listeners",
    "fingerprint",
    "raise_descriptor_limit",
]
