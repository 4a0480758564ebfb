"""The control API: HTTP/1.1 and JSON on the control socket, which only the daemon's user and root can open.

The routes, their parameters and answers are documented in sidecar/control/README.md#api, and a test compares the table
with the code.

Rules
-----
* An error answer is ``{"error": one sentence}``: 400 for an invalid request, 404 and 405 for an unknown path or method,
  409 if the call needs a daemon and none runs, 503 while the outbox cannot be written.
* An empty page may be followed by others: only ``"next": null`` is the end.
* All views and exports are redacted by the privacy rules in force.
"""

import logging
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from copy import copy
from functools import partial
from typing import Any, Final
from urllib.parse import parse_qsl

import msgspec
import trio

from sidecar.clock import Clock
from sidecar.config import effective
from sidecar.control.answers import (
    READING_POSTS,
    Endpoint,
    Int64,
    Params,
    RequestError,
    RouteTable,
    call_path,
    decode_body,
    decode_query,
    json_response,
)
from sidecar.control.audit import AuditRoutes, peer, peer_of
from sidecar.control.delivery_control import DeliveryControl
from sidecar.control.outbox_admin import DeadLetterFilter, ExportedEvent, OutboxAdmin
from sidecar.control.pages import status_of
from sidecar.control.selection import DeadCommand, DeadQuery, EventsQuery, integer
from sidecar.control.state import StateReader
from sidecar.errors import Failed, SidecarError
from sidecar.http import Request, Response, Shutdown, serve, serve_connection, shortage
from sidecar.mapping import LiveSettings
from sidecar.observe import Feed, What
from sidecar.units import iso_utc

__all__ = [
    "ControlRoutes",
    "refuse_while_starting",
    "serve_control",
]

log = logging.getLogger(__name__)

CONNECTIONS: Final = 64  # operators and consoles; each tail holds one
NDJSON: Final = "application/x-ndjson"
# Calls wait in the queue of the kernel for the usual start, which takes a fraction of a second.
STARTING_S: Final = 5.0
_STARTING: Final = (
    "The daemon is starting: the outbox is being opened, which takes minutes if it is recovered; try again."
)

_MAX_ID_DIGITS: Final = 18  # more than events can be stored; SQLite's integers have at most 19
# Paths with the id of an event.
_WITH_ID: Final = ("/v1/events/{id}", "/v1/dead/{id}")


class DeliveredQuery(msgspec.Struct, forbid_unknown_fields=True):
    """The parameters of ``GET /v1/delivered``."""

    since_ms: Int64
    until_ms: Int64
    before: str | None = None


class TailQuery(msgspec.Struct, forbid_unknown_fields=True):
    """The parameters of ``GET /v1/tail``."""

    what: What | None = None
    name: str | None = None
    user: str | None = None

    def matches(self, record: dict[str, Any]) -> bool:
        """Return whether a record is selected. Records that are not about an event always are."""
        if "what" not in record or record["what"] == "listening":
            return True
        return all(value is None or record.get(key) == value for key, value in msgspec.structs.asdict(self).items())


class ForgetCommand(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /v1/forget``."""

    user: str | None = None
    users: list[str] = []
    suppress: bool = False
    after: Int64 = 0

    def selection(self) -> list[str]:
        """Return the users; at least one, none of them empty."""
        users = [*self.users, *([] if self.user is None else [self.user])]
        if not users or not all(users):
            raise RequestError(400, "No user is named; give `user` or `users`, none of them empty.")
        return users


class ImportCountCommand(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /v1/import/count``."""

    events: list[ExportedEvent]


class ImportCommand(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /v1/import``."""

    events: list[ExportedEvent]
    back: bool = False


class ControlRoutes:
    """Answer the requests of the API. ``delivery`` and ``feed`` are None without a daemon.

    ``more`` are the routes of other parts; ``audit`` records the calls that change something.
    """

    def __init__(
        self,
        reader: StateReader,
        admin: OutboxAdmin,
        settings: LiveSettings,
        clock: Clock,
        *,
        delivery: DeliveryControl | None = None,
        feed: Feed | None = None,
        audit: AuditRoutes | None = None,
        more: Sequence[RouteTable] = (),
    ) -> None:
        self._reader = reader
        self._admin = admin
        self._settings = settings
        self._clock = clock
        self._delivery = delivery
        self._feed = feed
        self._audit = audit
        self._routes: RouteTable = {
            "/v1/status": ("GET", self._status),
            "/v1/tail": ("GET", self._tail),
            "/v1/events": ("GET", self._events),
            "/v1/dead": ("GET", self._dead),
            "/v1/dead/export": ("GET", self._export),
            "/v1/dead/retry": ("POST", self._retry),
            "/v1/dead/discard": ("POST", self._discard),
            "/v1/pause": ("POST", self._pause),
            "/v1/resume": ("POST", self._resume),
            "/v1/forget": ("POST", self._forget),
            "/v1/delivered": ("GET", self._delivered),
            "/v1/import": ("POST", self._import),
            "/v1/import/count": ("POST", self._count_importable),
            "/v1/config": ("GET", self._config),
        }
        for table in more:
            self._routes |= table
        self._withheld: frozenset[str] = frozenset()

    def reading(self) -> "ControlRoutes":
        """Return routes that hold the reading calls alone: through them nothing that changes anything can be reached."""
        reading = copy(self)
        reading._routes = {
            path: route for path, route in self._routes.items() if route[0] == "GET" or path in READING_POSTS
        }
        reading._withheld = frozenset(self._routes.keys() - reading._routes.keys())
        return reading

    @property
    def routes(self) -> dict[str, str]:
        """The method of each path; a path with an id is written with ``{id}``."""
        return {path: method for path, (method, _) in self._routes.items()} | dict.fromkeys(_WITH_ID, "GET")

    async def answer(self, request: Request) -> Response:
        """Answer one request. Nothing that a client sends raises."""
        try:
            params = dict(parse_qsl(request.query, keep_blank_values=True))
            endpoint = self._endpoint(request)
            if request.method == "POST":
                # Here, without making values of it: some calls take no parameters, and act before they are recorded.
                decode_body(request, dict[str, msgspec.Raw])
            response = await endpoint(request, params)
            if self._audit is not None and request.method == "POST" and response.status == 200:
                await self._audit.record(request)
            return response
        except RequestError as error:
            return refuse("", str(error), error.status)
        except (msgspec.DecodeError, ValueError) as error:  # msgspec.ValidationError is a DecodeError
            return refuse("", f"The request is invalid: {error}.", 400)
        except Failed as error:
            return refuse("", str(error), 409)
        except SidecarError as error:
            return refuse("", str(error), 503)

    def _endpoint(self, request: Request) -> Endpoint:
        """Return the endpoint of a request. Raises RequestError for an unknown path or method."""
        path = call_path(request)
        method, endpoint = self._routes.get(path, ("", None))
        parent, _, last = path.rpartition("/")
        if endpoint is None and last.isdecimal() and f"{parent}/{{id}}" in _WITH_ID:
            if len(last) > _MAX_ID_DIGITS:
                raise RequestError(404, f"There is no event {last[:40]}: no id is that large; correct it.")
            method, endpoint = "GET", partial(self._event if parent == "/v1/events" else self._letter, int(last))
        if path in self._withheld:
            raise RequestError(
                403, f"This socket only answers reading calls; send {path} to the one in listen.control."
            )
        if endpoint is None:
            raise RequestError(404, f"There is nothing at {path[:200]}; `px-sidecar config openapi` lists the paths.")
        if request.method not in (method, "HEAD" if method == "GET" else method):
            raise RequestError(405, f"{path} allows {method} only.")
        return endpoint

    async def _status(self, _request: Request, _params: Params) -> Response:
        return json_response(status_of(await self._reader.read()))

    async def _config(self, _request: Request, _params: Params) -> Response:
        return json_response(effective(self._settings.now.config))

    async def _pause(self, request: Request, params: Params) -> Response:
        await self._running().pause()
        return await self._status(request, params)

    async def _resume(self, request: Request, params: Params) -> Response:
        await self._running().resume()
        return await self._status(request, params)

    async def _tail(self, _request: Request, params: Params) -> Response:
        self._running()
        return Response(200, _tail_lines(self.tail(), decode_query(params, TailQuery)), NDJSON)

    async def tail(self) -> AsyncIterator[dict[str, Any]]:
        """Yield the records of the live feed, without end.

        The first record, ``listening``, states that every later record is included: a caller that waits for it before
        sending an event cannot miss the event's outcome.
        """
        assert self._feed is not None
        async with self._feed.subscribe() as records:
            yield {"at": iso_utc(self._clock.wall_ms()), "what": "listening"}
            async for record in records:
                yield record

    def _running(self) -> DeliveryControl:
        """Return running delivery. Raises Failed without a daemon."""
        if self._delivery is None:
            raise Failed("The daemon is not running; start it with `systemctl start px-sidecar` or `px-sidecar run`.")
        return self._delivery

    async def _events(self, _request: Request, params: Params) -> Response:
        query = decode_query(params, EventsQuery)
        return json_response(
            await self._admin.events(
                query.selection(self._settings.now),
                state=query.state,
                limit=_limit(query.limit),
                before=_cursor(query.before),
            )
        )

    async def _event(self, event_id: int, _request: Request, _params: Params) -> Response:
        event = await self._admin.event(event_id)
        if event is None:
            raise RequestError(
                404, f"There is no event {event_id}: it was never accepted, or was pruned from the history."
            )
        return json_response(event)

    async def _dead(self, _request: Request, params: Params) -> Response:
        query = decode_query(params, DeadQuery)
        return json_response(await self._admin.letters(query.selection(), after=query.after, limit=_limit(query.limit)))

    async def _letter(self, event_id: int, _request: Request, _params: Params) -> Response:
        page = await self._admin.letters(DeadLetterFilter(ids=[event_id]))
        if not page["letters"]:
            raise RequestError(
                404, f"Event {event_id} is not a dead letter; `px-sidecar events show {event_id}` shows its state."
            )
        return json_response(page["letters"][0])

    async def _export(self, _request: Request, params: Params) -> Response:
        query = decode_query(params, DeadQuery)
        return Response(200, self._letter_lines(query.selection(), query.after), NDJSON)

    async def _letter_lines(self, selection: DeadLetterFilter, after: int | None) -> AsyncIterator[bytes]:
        # Page by page: the export of a million letters must not fill memory or hold the store.
        while after is not None:
            page = await self._admin.letters(selection, after=after)
            after = page["next"]
            yield b"".join(msgspec.json.encode(letter) + b"\n" for letter in page["letters"])

    async def _retry(self, request: Request, _params: Params) -> Response:
        command = decode_body(request, DeadCommand)
        return json_response(await self._admin.retry(command.selection(), after=command.after))

    async def _discard(self, request: Request, _params: Params) -> Response:
        command = decode_body(request, DeadCommand)
        return json_response(await self._admin.discard(command.selection(), after=command.after))

    async def _forget(self, request: Request, _params: Params) -> Response:
        command = decode_body(request, ForgetCommand)
        return json_response(
            await self._admin.forget(command.selection(), suppressed=command.suppress, after=command.after)
        )

    async def _delivered(self, _request: Request, params: Params) -> Response:
        query = decode_query(params, DeliveredQuery)
        return json_response(
            await self._admin.delivered(since_ms=query.since_ms, until_ms=query.until_ms, before=_cursor(query.before))
        )

    async def _import(self, request: Request, _params: Params) -> Response:
        command = decode_body(request, ImportCommand)
        return json_response(await self._admin.import_events(command.events, back=command.back))

    async def _count_importable(self, request: Request, _params: Params) -> Response:
        command = decode_body(request, ImportCountCommand)
        return json_response({"count": await self._admin.count_importable(command.events)})


async def serve_control(
    routes: ControlRoutes,
    listener: socket.socket,
    *,
    shutdown: Shutdown,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the API on the bound control socket. Returns once ``shutdown`` is set and the last request is answered."""

    async def connection(stream: trio.SocketStream) -> None:
        peer.set(peer_of(stream.socket))
        await serve_connection(stream, routes.answer, shutdown=shutdown, refuse=refuse, on_error=_log_error)

    listening = trio.SocketListener(trio.socket.from_stdlib_socket(listener))
    await serve(
        [listening],
        connection,
        max_connections=CONNECTIONS,
        shutdown=shutdown,
        on_error=_log_error,
        task_status=task_status,
    )


def refuse(_code: str, message: str, status: int) -> Response:
    """Return an error answer of this API. The first argument, a code, is part of the HTTP server's interface."""
    return Response(status, msgspec.json.encode({"error": message}))


async def _tail_lines(records: AsyncIterator[dict[str, Any]], query: TailQuery) -> AsyncIterator[bytes]:
    try:
        async for record in records:
            if query.matches(record):
                yield msgspec.json.encode(record) + b"\n"
    finally:
        await records.aclose()  # type: ignore[attr-defined]  # an async generator; left open, it stays subscribed


def _limit(limit: int) -> int:
    """Return the limit within 1 to 1,000: a larger page would hold the store and the event loop too long."""
    return max(1, min(limit, 1_000))


def _cursor(text: str | None) -> tuple[int, int] | None:
    """Parse the ``before`` of a page: the settling time and id of the last row of the page before."""
    if text is None:
        return None
    settled_ms, _, event_id = text.partition(".")
    return integer(settled_ms), integer(event_id)


def _log_error(error: BaseException, *_request: Request) -> None:
    if missing := shortage(error):
        log.error("Calls to the control socket wait: %s.", missing)
        return
    log.error("A request to the control socket failed: %r. This is a bug; report it.", error)


# A long start ---------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def refuse_while_starting(*listeners: socket.socket | None) -> AsyncIterator[None]:
    """Answer calls with 503 if the block takes longer than ``STARTING_S``; the listeners stay open for the daemon."""
    shutdown = Shutdown()
    async with trio.open_nursery() as nursery:

        async def answer_late() -> None:
            await trio.sleep(STARTING_S)
            async with trio.open_nursery() as serving:
                for listener in filter(None, listeners):
                    listening = trio.SocketListener(trio.socket.from_stdlib_socket(listener))
                    connection = partial(serve_connection, handler=_answer, shutdown=shutdown, refuse=refuse)
                    serving.start_soon(
                        partial(serve, [listening], connection, max_connections=CONNECTIONS, shutdown=shutdown)
                    )

        nursery.start_soon(answer_late)
        yield
        shutdown.set()
        nursery.cancel_scope.cancel()


async def _answer(_request: Request) -> Response:
    return refuse("", _STARTING, 503)
