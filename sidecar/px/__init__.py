"""What PX is asked and what its answers mean (pure), and the one file through which requests leave the host.

The real network is ``sidecar.px.transport.HttpxNetwork``, the one for simulations ``sidecar.px.fake.FakeNetwork``.
"""

from sidecar.px.answers import Answer, Kind, NotSent, Reply, Unknown, Verdict, classify
from sidecar.px.network import Lane, Network
from sidecar.px.requests import CHECK_KEY, Request, Walk, preview, read_events

__all__ = [
    "CHECK_KEY",
    "Answer",
    "Kind",
    "Lane",
    "Network",
    "NotSent",
    "Reply",
    "Request",
    "Unknown",
    "Verdict",
    "Walk",
    "classify",
    "preview",
    "read_events",
]
