"""Requests to Gainsight PX and the meaning of its answers (both pure), and the one file that sends requests.

``sidecar.px.transport.HttpxNetwork`` is the real network; ``sidecar.px.network.FakeNetwork`` replaces it in simulations
and tests. What is known about PX, and how reliably, is in sidecar/px/README.md.
"""

from sidecar.px.answers import Kind, NotSent, PxAnswer, Reply, Unknown, Verdict, classify, decode_events
from sidecar.px.network import AT_ONCE, Departure, Lane, Network
from sidecar.px.requests import (
    CHECK_KEY,
    CallSequence,
    PxRequest,
    add_up_names,
    declared_attributes,
    delete_user,
    holds_event,
    preview,
    read_attributes,
    read_event,
    read_events,
)

__all__ = [
    "AT_ONCE",
    "CHECK_KEY",
    "CallSequence",
    "Departure",
    "Kind",
    "Lane",
    "Network",
    "NotSent",
    "PxAnswer",
    "PxRequest",
    "Reply",
    "Unknown",
    "Verdict",
    "add_up_names",
    "classify",
    "declared_attributes",
    "decode_events",
    "delete_user",
    "holds_event",
    "preview",
    "read_attributes",
    "read_event",
    "read_events",
]
