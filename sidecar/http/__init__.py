"""A small HTTP/1.1 server on trio streams and httptools: framing, limits, deadlines. It knows no routes.

A handler is ``async def handler(request: Request) -> Response``; ``serve_connection`` runs it for each request of one
stream of any kind, ``serve`` accepts connections for it, ``Stopping`` ends both politely.
"""

from sidecar.http.accept import serve
from sidecar.http.connection import serve_connection
from sidecar.http.message import BUSY, Handler, Hangup, Limits, Places, Raw, Refuse, Request, Response, plain_refusal
from sidecar.http.stopping import Stopping

__all__ = [
    "BUSY",
    "Handler",
    "Hangup",
    "Limits",
    "Places",
    "Raw",
    "Refuse",
    "Request",
    "Response",
    "Stopping",
    "plain_refusal",
    "serve",
    "serve_connection",
]
