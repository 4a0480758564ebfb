"""The answers to clients: pure functions from an outcome to a status and a JSON body.

SDKs depend on these answers to the byte (sidecar/receive/README.md#answers). Success is 200 with ``"success":true``, and
never another 2xx. A request that will never be accepted gets 400 with ``code``, ``message`` and ``error``. A request
that cannot be made durable now gets 503.
"""

from typing import Any, Final, NamedTuple

from sidecar.errors import SidecarError
from sidecar.events import encode
from sidecar.outbox import Accepted, DiskFull, NewEvent, StorageUnavailable

__all__ = [
    "NOTHING_TO_STORE",
    "IngestResponse",
    "ParsedRequest",
    "accepted_response",
    "error_response",
    "unavailable_response",
]


class IngestResponse(NamedTuple):
    """A status and a JSON body. ``retry_after_s`` is for a Retry-After header; ``code`` and
    ``message`` are empty for a success."""

    status: int
    body: bytes
    retry_after_s: int | None = None
    code: str = ""
    message: str = ""


class ParsedRequest(NamedTuple):
    """A parsed body: the events to store, and an entry for the answer for each bad one among them.

    ``large``: what it holds until its commit counts with the large requests (``MemoryBudget``).
    """

    events: list[NewEvent]
    refused: list[dict[str, Any]]
    large: bool = False


NOTHING_TO_STORE: Final = IngestResponse(200, b'{"success":true,"accepted":0}')


def accepted_response(parsed: ParsedRequest, accepted: Accepted) -> IngestResponse:
    """Return the answer to a request whose events are on disk."""
    if not accepted.repeated and not parsed.refused:
        return IngestResponse(200, b'{"success":true,"accepted":%d}' % accepted.stored)
    body: dict[str, Any] = {"success": True, "accepted": accepted.stored}
    if accepted.repeated:
        body["repeated"] = accepted.repeated
    if parsed.refused:
        body["refused"] = parsed.refused
    return IngestResponse(200, encode(body))


def unavailable_response(error: SidecarError) -> IngestResponse:
    """Return the answer to a request whose events could not be made durable."""
    code = error.code if isinstance(error, StorageUnavailable) else "disk_error"
    after_s = error.retry_after_s if isinstance(error, StorageUnavailable) else DiskFull.retry_after_s
    return error_response(code, str(error), 503, after_s)


def error_response(code: str, message: str, status: int = 400, retry_after_s: int | None = None) -> IngestResponse:
    """Return a refusal. Ruby's SDK reads ``error``; Python's reads ``code`` and ``message``."""
    body = encode({"success": False, "code": code, "message": message, "error": message})
    return IngestResponse(status, body, retry_after_s, code, message)
