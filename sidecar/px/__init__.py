"""What PX is asked and what its answers mean (pure), and the one file through which requests leave the host."""

from sidecar.px.answers import Answer, Kind, NotSent, Reply, Unknown, Verdict, classify
from sidecar.px.requests import CHECK_KEY, Request, Walk, preview, read_events
from sidecar.px.transport import HttpxNetwork, Lane, Network

__all__ = [
    "CHECK_KEY",
    "Answer",
    "HttpxNetwork",
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
