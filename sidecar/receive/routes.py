"""The HTTP routes: POST for the events of SDKs, GET for the pages of operators and monitors.

Over TCP, any web page could make a browser on this host post events (sidecar/receive/README.md#browsers). A browser
names the page that sends (``Origin``) and the host that it was asked to reach (``Host``), so any Origin and a foreign
Host are refused with 403. A browser cannot reach the Unix socket, which is exempt.

A small body can expand, because the context of a batch is copied into each of its events. Therefore the parsed events of
all requests that wait for their commit are bounded together (``MemoryBudget``), for TCP and the Unix socket separately.
While their share is exceeded no body is parsed, and a request that waits too long is answered 503: SDKs repeat a 503,
while some drop the events of a 408 (sidecar/receive/README.md#retries). Large bodies are parsed one at a time, in slices.
"""

import base64
import binascii
import re
from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import lru_cache, partial
from typing import Final

import trio

from sidecar.config.schema import is_loopback_name
from sidecar.errors import SidecarError
from sidecar.events import TYPES
from sidecar.http import BUSY, LARGE_BYTES, BudgetExceeded, MemoryBudget, Request, Response
from sidecar.observe import Telemetry
from sidecar.outbox import Outbox
from sidecar.receive.parse import BATCH, EventParser, parsed_bytes
from sidecar.receive.responses import (
    NOTHING_TO_STORE,
    IngestResponse,
    ParsedRequest,
    accepted_response,
    error_response,
    unavailable_response,
)

__all__ = ["ClientMemory", "PageHandler", "Routes"]

PageHandler = Callable[[], Awaitable[Response]]
Parsed = ParsedRequest | IngestResponse

_KINDS: Final = {f"/v1/{kind}": kind for kind in TYPES} | {f"/v1/{path}": BATCH for path in ("batch", "import", "b")}
# Codes of sidecar.http for requests that would be refused again, and our codes for them (sent with 400).
_PERMANENT_CODES: Final = {"too_large": "too_large", "headers_too_large": "too_large", "bad_encoding": "bad_json"}
# A body with more commas than this, and fewer bytes for each, is made of tiny events.
MANY_EVENTS: Final = 256
TINY_BYTES: Final = 8
_SLASHES: Final = re.compile(r"/{2,}")
BUSY_RETRY_AFTER_S: Final = 10
_HOST: Final = re.compile(r"\[([^\]]*)\](?::\d*)?|([^:]*)(?::\d*)?")


class ClientMemory:
    """The memory for all clients (``listen.max_memory``), in two halves: clients on TCP, and clients of the Unix socket.

    Many clients on TCP, which other hosts may be able to reach, cannot take the memory of the apps that this host lets open
    the Unix socket. How a half is shared out is described in ``sidecar.http.budget``. Large bodies of both are worked on one
    at a time.
    """

    def __init__(self, max_memory_bytes: int) -> None:
        working = trio.Lock()
        self.tcp = MemoryBudget(max_memory_bytes // 2, working)
        self.unix = MemoryBudget(max_memory_bytes // 2, working)


class Routes:
    """Answer requests.

    ``pages`` are the GET routes by path. ``own_hosts`` are names of this host that clients may use beside those of
    loopback, in lower case; ``foreign_hosts`` accepts any Host (listen.allow_remote).
    """

    def __init__(
        self,
        parser: EventParser,
        outbox: Outbox,
        telemetry: Telemetry,
        pages: Mapping[str, PageHandler],
        memory: ClientMemory,
        *,
        own_hosts: Collection[str] = (),
        foreign_hosts: bool = False,
    ) -> None:
        self._parser = parser
        self._outbox = outbox
        self._telemetry = telemetry
        self._pages = pages
        self._own_hosts = frozenset(own_hosts)
        self._foreign_hosts = foreign_hosts
        # By `trusted`: clients of the Unix socket are not held up by those on TCP.
        self._budgets = {True: memory.unix, False: memory.tcp}

    # Not async: each answer would pass through one coroutine more.
    def over_tcp(self, request: Request) -> Awaitable[Response]:
        """Answer a request that came over TCP."""
        return self._answer(request, trusted=False)

    def over_unix(self, request: Request) -> Awaitable[Response]:
        """Answer a request that came over the Unix socket."""
        return self._answer(request, trusted=True)

    def refuse(self, code: str, message: str, status: int) -> Response:
        """Build the answer to a request that never reached a route (``sidecar.http.Refuse``).

        A request that would be refused again gets 400, because SDKs repeat 413, 415 and 431
        (sidecar/receive/README.md#retries). One that was too slow (408), one that the server was too slow for (503) and
        one that the server failed to handle (500) should be repeated, and keep their status.
        """
        return _respond(self._refusal(code, message, status))

    def _refusal(self, code: str, message: str, status: int) -> IngestResponse:
        if code == "too_large":
            message = f"{message.removesuffix('.')}, or raise outbox.max_request_bytes."
        our_code = _PERMANENT_CODES.get(code)
        after_s = BUSY_RETRY_AFTER_S if status == 503 else None
        response = (
            error_response(code, message, status, after_s) if our_code is None else error_response(our_code, message)
        )
        self._telemetry.request_refused(response.code, response.message)
        return response

    def _foreign(self, request: Request) -> IngestResponse | None:
        """Return the refusal of a request over TCP that a web page may have made a browser send."""
        if request.header(b"origin") is not None:
            return error_response("foreign_origin", "Web pages may not send events here; send them from a server.", 403)
        if not self._foreign_hosts and not _is_local(request.header(b"host"), self._own_hosts):
            return error_response(
                "foreign_host", "The Host header names another host; use the address in listen.http.", 403
            )
        return None

    async def _answer(self, request: Request, *, trusted: bool) -> Response:
        if not trusted and (foreign := self._foreign(request)) is not None:
            return _respond(foreign)
        path = request.path
        kind = _KINDS.get(path)
        if kind is None:
            # Segment's Java SDK posts to /v1/import/, and to //v1/import/ if its endpoint ends with a slash.
            path = _SLASHES.sub("/", path).rstrip("/")
            kind = _KINDS.get(path)
        if kind is not None and request.method == "POST":
            began_s = trio.current_time()
            response = await self._ingest(request, kind, trusted=trusted)
            self._telemetry.request_answered(trio.current_time() - began_s)
            return _respond(response)
        page = self._pages.get(path)
        if page is not None and request.method in ("GET", "HEAD"):
            return await page()
        if kind is not None or page is not None:
            allowed = "GET" if page is not None else "POST"
            refusal = error_response("method_not_allowed", f"{path} supports only {allowed}; use that.", 405)
            return Response(refusal.status, refusal.body, headers=(("Allow", allowed),))
        return _respond(
            error_response("not_found", "There is nothing at this path; events go to POST /v1/batch or /v1/track.", 404)
        )

    async def _ingest(self, request: Request, kind: str, *, trusted: bool) -> IngestResponse:
        """Parse and store the events of one request; answer after their commit."""
        budget = self._budgets[trusted]
        try:
            parsed, large = self._parse_at_once(request, kind, trusted=trusted) or await self._parse_in_turn(
                request, kind, trusted=trusted
            )
            request.body = b""  # parsed: only the events are needed until their commit
            if isinstance(parsed, IngestResponse):
                self._telemetry.request_refused(parsed.code, parsed.message)
                return parsed
            if not parsed.events:
                return NOTHING_TO_STORE
            for entry in parsed.refused:
                self._telemetry.request_refused(entry["code"])
            # Counted from submit to commit: an answer that the client is slow to read is counted as held.
            write = self._outbox.submit(parsed.events)
            held_bytes = parsed_bytes(parsed, write)
            budget.add(held_bytes, large=large)
        except BudgetExceeded:
            return self._refusal(BUSY.code, BUSY.message, BUSY.status)
        except SidecarError as error:
            return self._unavailable(error)
        finally:
            budget.next_turn()
        try:
            accepted = await write.wait()
        except SidecarError as error:
            return self._unavailable(error)
        finally:
            budget.add(-held_bytes, large=large)
        self._telemetry.events_accepted(accepted.stored_of(parsed.events))
        return accepted_response(parsed, accepted)

    def _parse_at_once(self, request: Request, kind: str, *, trusted: bool) -> tuple[Parsed, bool] | None:
        """Parse a small body with a single call, by far the most frequent one; None if it is another, or has to wait."""
        body = request.body
        if kind == BATCH or len(body) >= LARGE_BYTES or has_tiny_events(body) or self._budgets[trusted].is_full():
            return None
        return self._parser.parse_one(body, kind, self._key_of(request), trusted=trusted), False

    async def _parse_in_turn(self, request: Request, kind: str, *, trusted: bool) -> tuple[Parsed, bool]:
        """Parse any body once there is space for its events; return whether it is large, too. Raises BudgetExceeded."""
        steps = partial(self._parser.steps, request.body, kind, self._key_of(request), trusted=trusted)
        tiny = has_tiny_events(request.body)
        return await self._budgets[trusted].work(steps, len(request.body), has_tiny_parts=tiny)

    def _key_of(self, request: Request) -> str | None:
        return _write_key(request.header(b"authorization")) if self._parser.has_sources else None

    def _unavailable(self, error: SidecarError) -> IngestResponse:
        response = unavailable_response(error)
        self._telemetry.request_refused(response.code, response.message)
        return response


def has_tiny_events(body: bytes) -> bool:
    """Return whether a body seems to hold hundreds of events of a few bytes, each of which costs as much as any other."""
    commas = body.count(b",")
    return commas >= MANY_EVENTS and len(body) < TINY_BYTES * commas


def _respond(response: IngestResponse) -> Response:
    if response.retry_after_s is None:
        return Response(response.status, response.body)
    return Response(response.status, response.body, headers=(("Retry-After", str(response.retry_after_s)),))


def _write_key(authorization: bytes | None) -> str | None:
    """Return the write key in a Basic header, with or without its colon; a Bearer token is not a write key.

    SDKs send the key with an empty password, in UTF-8 or Latin-1: a key may itself have a colon.
    """
    if not authorization or authorization[:6].lower() != b"basic ":
        return None
    try:
        # Surplus padding is ignored, so a key that was sent without padding is decoded too.
        data = base64.b64decode(authorization[6:] + b"==", validate=False)
    except binascii.Error:
        return None
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    return (text[:-1] if text.endswith(":") else text.partition(":")[0]) or None


@lru_cache(maxsize=64)  # an app sends the same Host with each request
def _is_local(host: bytes | None, own_hosts: frozenset[str]) -> bool:
    """Return whether Host is a loopback name or address. Without Host (HTTP/1.0, nc) the client is not a browser."""
    if host is None:
        return True
    match = _HOST.fullmatch(host.decode("latin-1").strip().lower())
    if match is None:
        return False
    name = (match[1] or match[2] or "").rstrip(".")
    return is_loopback_name(name) or name in own_hosts
