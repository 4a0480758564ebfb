"""The control API: HTTP/1.1 and JSON on the control socket, which only the daemon's user and root can open.

======  =======================  =====================================================================================
GET     /v1/status               ``control.status.Status``
GET     /v1/tail                 a line of JSON for each event and outcome from now on (``control.records``), without
                                 end; ``?what=``, ``name=`` and ``user=`` choose
GET     /v1/events               ``{"events", "next"}``, newest first; ``?state=``, ``name=``, ``user=``,
                                 ``message_id=`` choose, ``limit=`` bounds, ``before=`` is the ``next`` of the page before
GET     /v1/events/{id}          all about one event
GET     /v1/dead                 ``{"letters", "next", "dead"}`` in the order of ids; ``?ids=`` (with commas),
                                 ``name=``, ``reason=``, ``since_ms=``, ``until_ms=`` choose, ``limit=`` bounds,
                                 ``after=`` is the ``next`` of the page before
GET     /v1/dead/{id}            one dead letter
GET     /v1/dead/export          a line of JSON for each dead letter that is chosen as above
POST    /v1/dead/retry           ``{"ids", "name", "reason", "since_ms", "until_ms", "all", "after"}`` choose: makes a
                                 page of them pending again, ``{"moved", "next"}``; go on with ``after``
POST    /v1/dead/discard         likewise: gives a page of them up
POST    /v1/pause, /v1/resume    delivery stops and starts; both answer the status
POST    /v1/forget               ``{"user", "after"}``: one page, ``{"pending", "dead", "history", "memory", "left",
                                 "next"}``; go on with ``after``
GET     /v1/delivered            ``?since_ms=&until_ms=&before=``: one page of what was delivered, counted by PX event
                                 name, ``{"names", "rows", "ever", "oldest_ms", "next"}``
POST    /v1/import               ``{"events": [{"propertyKey", "receivedMs", "event"}]}``: ``{"accepted", "repeated"}``
GET     /v1/config               the configuration in force, secrets masked
======  =======================  =====================================================================================

An answer that is no success is ``{"error": one sentence}``: 400 for a wrong request, 404 and 405 for what is not there,
409 where there is no daemon, 503 while the outbox cannot be written. A page that is empty may have another one behind
it: only ``"next": null`` is the end. All views and exports have gone through today's privacy rules.
"""

import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl, unquote

import msgspec
import trio

from sidecar.config import effective
from sidecar.control.archive import Carried, Which
from sidecar.control.desk import Desk
from sidecar.errors import Failed, SidecarError
from sidecar.http import Request, Response, Stopping, serve, serve_connection

__all__ = ["Control", "serve_control"]

log = logging.getLogger(__name__)

CONNECTIONS: Final = 64
NDJSON: Final = "application/x-ndjson"

T = TypeVar("T")
Params = dict[str, str]
Answer = Callable[[Request, Params], Awaitable[Response]]


class _Wrong(Exception):
    """The request is wrong; the text is one sentence."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class EventsQuery(msgspec.Struct, forbid_unknown_fields=True):
    """What ``GET /v1/events`` takes."""

    state: str | None = None
    name: str | None = None
    user: str | None = None
    message_id: str | None = None
    limit: int = 50
    before: str | None = None


class DeadQuery(msgspec.Struct, forbid_unknown_fields=True):
    """What ``GET /v1/dead`` takes."""

    ids: str | None = None
    name: str | None = None
    reason: str | None = None
    since_ms: int | None = None
    until_ms: int | None = None
    after: int = 0
    limit: int = 500

    def which(self) -> Which:
        """The letters that are meant."""
        ids = None if self.ids is None else [_whole(one) for one in self.ids.split(",")]
        return Which(ids, self.name, self.reason, self.since_ms, self.until_ms)


class DeadOrder(msgspec.Struct, forbid_unknown_fields=True):
    """What ``POST /v1/dead/retry`` and ``discard`` take."""

    ids: list[int] | None = None
    name: str | None = None
    reason: str | None = None
    since_ms: int | None = None
    until_ms: int | None = None
    all: bool = False
    after: int = 0

    def which(self) -> Which:
        """The letters that are meant; all of them only if that is said."""
        which = Which(self.ids, self.name, self.reason, self.since_ms, self.until_ms)
        if which == Which() and not self.all:
            raise _Wrong(400, 'Nothing was chosen; choose by ids, name, reason or time, or say "all": true.')
        return which


class DeliveredQuery(msgspec.Struct, forbid_unknown_fields=True):
    """What ``GET /v1/delivered`` takes."""

    since_ms: int
    until_ms: int
    before: str | None = None


class TailQuery(msgspec.Struct, forbid_unknown_fields=True):
    """What ``GET /v1/tail`` takes."""

    what: str | None = None
    name: str | None = None
    user: str | None = None

    def fits(self, record: dict[str, Any]) -> bool:
        """Whether a record is wanted; what is not about an event always is."""
        if "what" not in record or record["what"] == "listening":
            return True
        return all(want is None or record.get(key) == want for key, want in msgspec.structs.asdict(self).items())


class ForgetOrder(msgspec.Struct, forbid_unknown_fields=True):
    """What ``POST /v1/forget`` takes."""

    user: str
    after: int = 0


class ImportOrder(msgspec.Struct, forbid_unknown_fields=True):
    """What ``POST /v1/import`` takes."""

    events: list[Carried]


class Control:
    """Answers the requests that the module describes."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self._routes: dict[str, tuple[str, Answer]] = {
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
            "/v1/config": ("GET", self._config),
        }

    async def answer(self, request: Request) -> Response:
        """Answer one request; never raises for anything a client sends."""
        try:
            return await self._find(request)(request, dict(parse_qsl(request.query, keep_blank_values=True)))
        except _Wrong as wrong:
            return refuse("", str(wrong), wrong.status)
        except (msgspec.DecodeError, ValueError) as error:
            return refuse("", f"The request is wrong: {error}.", 400)
        except Failed as error:
            return refuse("", str(error), 409)
        except SidecarError as error:
            return refuse("", str(error), 503)

    def _find(self, request: Request) -> Answer:
        path = unquote(request.path).rstrip("/")
        method, answer = self._routes.get(path, ("", None))
        folder, _, name = path.rpartition("/")
        if answer is None and name.isdecimal() and folder in ("/v1/events", "/v1/dead"):
            method, answer = "GET", partial(self._event if folder == "/v1/events" else self._letter, int(name))
        if answer is None:
            raise _Wrong(404, f"There is nothing at {path[:200]}; the API is described in sidecar.control.server.")
        if request.method not in (method, "HEAD" if method == "GET" else method):
            raise _Wrong(405, f"{path} answers {method} only; use that.")
        return answer

    async def _status(self, _request: Request, _params: Params) -> Response:
        return _json(await self.desk.status())

    async def _config(self, _request: Request, _params: Params) -> Response:
        return _json(effective(self.desk.house.config))

    async def _pause(self, request: Request, params: Params) -> Response:
        await self.desk.pause()
        return await self._status(request, params)

    async def _resume(self, request: Request, params: Params) -> Response:
        await self.desk.resume()
        return await self._status(request, params)

    async def _tail(self, _request: Request, params: Params) -> Response:
        self.desk.running()
        return Response(200, _chosen(self.desk.tail(), _query(params, TailQuery)), NDJSON)

    async def _events(self, _request: Request, params: Params) -> Response:
        query = _query(params, EventsQuery)
        return _json(
            await self.desk.archive.events(
                state=query.state,
                name=query.name,
                user=query.user,
                message_id=query.message_id,
                limit=_limit(query.limit),
                before=_cursor(query.before),
            )
        )

    async def _event(self, event_id: int, _request: Request, _params: Params) -> Response:
        event = await self.desk.archive.event(event_id)
        if event is None:
            raise _Wrong(404, f"There is no event {event_id}; it never was, or its history was pruned.")
        return _json(event)

    async def _dead(self, _request: Request, params: Params) -> Response:
        query = _query(params, DeadQuery)
        return _json(await self.desk.archive.letters(query.which(), after=query.after, limit=_limit(query.limit)))

    async def _letter(self, event_id: int, _request: Request, _params: Params) -> Response:
        found = await self.desk.archive.letters(Which(ids=[event_id]))
        if not found["letters"]:
            raise _Wrong(404, f"Event {event_id} is no dead letter; `px-sidecar events show {event_id}` tells more.")
        return _json(found["letters"][0])

    async def _export(self, _request: Request, params: Params) -> Response:
        query = _query(params, DeadQuery)
        return Response(200, self._all_letters(query.which(), query.after), NDJSON)

    async def _all_letters(self, which: Which, after: int | None) -> AsyncIterator[bytes]:
        while after is not None:
            page = await self.desk.archive.letters(which, after=after)
            after = page["next"]
            yield b"".join(msgspec.json.encode(letter) + b"\n" for letter in page["letters"])

    async def _retry(self, request: Request, _params: Params) -> Response:
        order = _body(request, DeadOrder)
        return _json(await self.desk.archive.retry(order.which(), after=order.after))

    async def _discard(self, request: Request, _params: Params) -> Response:
        order = _body(request, DeadOrder)
        return _json(await self.desk.archive.discard(order.which(), after=order.after))

    async def _forget(self, request: Request, _params: Params) -> Response:
        order = _body(request, ForgetOrder)
        return _json(await self.desk.archive.forget(order.user, after=order.after))

    async def _delivered(self, _request: Request, params: Params) -> Response:
        query = _query(params, DeliveredQuery)
        return _json(
            await self.desk.archive.delivered(
                since_ms=query.since_ms, until_ms=query.until_ms, before=_cursor(query.before)
            )
        )

    async def _import(self, request: Request, _params: Params) -> Response:
        return _json(await self.desk.archive.take_in(_body(request, ImportOrder).events))


async def serve_control(
    desk: Desk,
    listener: socket.socket,
    *,
    stopping: Stopping,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the API on the bound control socket; returns when ``stopping`` is set and the last request is answered."""
    control = Control(desk)

    async def connection(stream: trio.abc.Stream) -> None:
        await serve_connection(stream, control.answer, stopping=stopping, refuse=refuse, on_error=_tell)

    listening = trio.SocketListener(trio.socket.from_stdlib_socket(listener))
    await serve(
        [listening], connection, max_connections=CONNECTIONS, stopping=stopping, on_error=_tell, task_status=task_status
    )


def refuse(_code: str, message: str, status: int) -> Response:
    """An answer that says no, as all of this API do."""
    return Response(status, msgspec.json.encode({"error": message}))


async def _chosen(records: AsyncIterator[dict[str, Any]], query: TailQuery) -> AsyncIterator[bytes]:
    try:
        async for record in records:
            if query.fits(record):
                yield msgspec.json.encode(record) + b"\n"
    finally:
        await records.aclose()  # type: ignore[attr-defined]  # it is an async generator; unclosed it stays subscribed


def _json(value: Any) -> Response:
    return Response(200, msgspec.json.encode(value))


def _query(params: Params, kind: type[T]) -> T:
    return msgspec.convert(params, kind, strict=False)


def _body(request: Request, kind: type[T]) -> T:
    return msgspec.json.decode(request.body or b"{}", type=kind)


def _limit(limit: int) -> int:
    return max(1, min(limit, 1_000))


def _cursor(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    settled_ms, _, event_id = text.partition(".")
    return _whole(settled_ms), _whole(event_id)


def _whole(text: str) -> int:
    if not text.strip().isdecimal():
        raise _Wrong(400, f"{text[:40]!r} is no number; give whole numbers.")
    return int(text)


def _tell(error: BaseException, *_request: Request) -> None:
    log.error("A request to the control socket failed: %r", error)
