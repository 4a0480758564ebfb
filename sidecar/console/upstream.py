"""The way to the daemon: requests to the control socket, one connection each, answers as a whole or as they arrive.

Only calls of the control API pass, each rebuilt from its path, its decoded parameters and its body. Nothing else of
a browser's request reaches the socket.
"""

import os
import re
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode

import msgspec
import trio

from sidecar.control.answers import READING_POSTS
from sidecar.control.openapi import CALLS, Call
from sidecar.control.status import public_sentence
from sidecar.errors import Failed, NotRunning
from sidecar.http import ClientResponse, ProtocolError, Request, Response, open_response

__all__ = ["SEARCHES", "SHOWN", "Upstream", "find_call", "hide"]

MAX_ANSWER_BYTES: Final = 32 * 2**20
CONNECT_S: Final = 5.0
# The longest calls: reconcile asks PX for up to 25 s.
ANSWER_S: Final = 60.0

ENDLESS: Final = frozenset({"/v1/live", "/v1/tail"})
"""Streams that end only with the daemon, which is not an error."""

_TEMPLATES: Final = [(re.compile(path.replace("{id}", r"\d{1,18}")), path) for path in CALLS]


def find_call(method: str, path: str) -> Call | None:
    """Return the call of the control API that a request is, or None."""
    for pattern, template in _TEMPLATES:
        if pattern.fullmatch(path) and CALLS[template].method == method:
            return CALLS[template]
    return None


class Upstream:
    """The control socket at ``path``. With ``read_only`` no changing call leaves this process."""

    def __init__(self, path: str, *, read_only: bool, hide: Callable[[str, Any], Any] | None = None) -> None:
        self.path = path
        self.read_only = read_only
        self._hide = hide

    async def pass_on(self, request: Request, path: str, touch: Callable[[], None]) -> Response:
        """Answer a request of the page with the daemon's answer. ``touch`` is called while a stream is read."""
        method = "GET" if request.method == "HEAD" else request.method
        call = find_call(method, path)
        if call is None:
            return _error(404, f"There is no call {method} {path[:100]}.")
        if self.read_only and method == "POST" and path not in READING_POSTS:
            return _error(403, "This console is read-only.")
        if self._hide is not None and path not in SHOWN:
            return _error(403, "Hidden: this console shows names, states and counts only.")
        # A search in what is hidden would reveal it, one letter after the other.
        given = parse_qsl(request.query, keep_blank_values=True)
        query = urlencode([pair for pair in given if self._hide is None or pair[0] not in SEARCHES])
        try:
            answer = await self._open(method, f"{path}?{query}" if query else path, request.body)
        except NotRunning as error:
            return _error(502, str(error))
        if call.stream and answer.status == 200:
            return Response(200, self._stream(answer, path, touch), answer.content_type)
        try:
            with trio.fail_after(ANSWER_S):
                body = await answer.read(MAX_ANSWER_BYTES)
        except (ProtocolError, trio.TooSlowError):
            return _error(502, "The daemon's answer did not arrive; try again.")
        finally:
            await answer.aclose()
        if self._hide is not None and answer.status == 200:
            body = msgspec.json.encode(self._hide(path, msgspec.json.decode(body)))
        return Response(answer.status, body, answer.content_type or "application/json")

    async def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Return the decoded answer to a call of this process. Raises NotRunning, or Failed with the daemon's sentence."""
        answer = await self._open(method, path, b"" if body is None else msgspec.json.encode(body))
        try:
            with trio.fail_after(ANSWER_S):
                raw = await answer.read(MAX_ANSWER_BYTES)
            decoded = msgspec.json.decode(raw)
        except (ProtocolError, trio.TooSlowError, msgspec.DecodeError):
            raise Failed("The daemon's answer did not arrive; try again.") from None
        finally:
            await answer.aclose()
        if answer.status != 200:
            raise Failed(str(decoded.get("error", decoded)))
        return decoded

    async def _open(self, method: str, target: str, body: bytes) -> ClientResponse:
        try:
            with trio.fail_after(CONNECT_S):
                stream = await trio.open_unix_socket(os.fspath(self.path))
            with trio.fail_after(ANSWER_S):
                return await open_response(stream, method, target, body=body)
        except (OSError, ProtocolError, trio.TooSlowError, trio.BrokenResourceError, RuntimeError):
            raise NotRunning(
                f"The daemon does not answer at {self.path}; the page continues once it runs again."
            ) from None

    async def _stream(self, answer: ClientResponse, path: str, touch: Callable[[], None]) -> AsyncIterator[bytes]:
        """Yield the daemon's answer as it arrives. A truncated one is passed on as truncated, so that the page does not save it."""
        try:
            rest = b""
            async for chunk in answer.chunks():
                touch()
                if self._hide is None:
                    yield chunk
                    continue
                *lines, rest = (rest + chunk).split(b"\n")
                shown = [msgspec.json.encode(self._hide(path, msgspec.json.decode(line))) for line in lines if line]
                if shown:
                    yield b"\n".join(shown) + b"\n"
        except ProtocolError as error:
            if path not in ENDLESS:
                raise trio.BrokenResourceError from error
        finally:
            with trio.CancelScope(shield=True):
                await answer.aclose()


def _error(status: int, message: str) -> Response:
    return Response(status, msgspec.json.encode({"error": message}))


_EVENT: Final = frozenset(
    {"id", "at", "what", "state", "class", "name", "reason", "status", "attempts", "ambiguous", "sample", "missed"}
    | {"received_ms", "settled_ms"}
)
_GROUP: Final = frozenset({"reason", "name", "status", "count", "first_ms", "last_ms", "id"})
_STATUS_HIDDEN: Final = frozenset({"slowest_user", "last_problem", "outbox", "refused", "fleet"})
SHOWN: Final = frozenset({"/v1/status", "/v1/series", "/v1/live", "/v1/events", "/v1/dead/groups"})
"""The calls that are answered at all. None takes a body: a count by user would reveal who has dead letters."""
SEARCHES: Final = frozenset({"text", "user", "message_id"})
"""Parameters that are not passed on."""


def hide(path: str, answer: Any) -> Any:
    """Return what of the daemon's answer may be shown."""
    match path:
        case "/v1/status":
            return {key: None if key in _STATUS_HIDDEN else value for key, value in _public(answer).items()}
        case "/v1/live":
            return _only(answer, _EVENT)
        case "/v1/events":
            return {"events": [_only(event, _EVENT) for event in answer["events"]], "next": answer["next"]}
        case "/v1/dead/groups":
            return answer | {"groups": [_only(group, _GROUP) | {"detail": ""} for group in answer["groups"]]}
        case _:  # counts only
            return answer


def _public(status: dict[str, Any]) -> dict[str, Any]:
    """Return the status with sentences that name no user and do not quote what PX or the daemon answered."""
    public = partial(public_sentence, outbox=status["outbox"]["path"])
    sentences = {key: [public(text) for text in status[key]] for key in ("reasons", "warnings")}
    problems = [problem | {"message": public(problem["message"])} for problem in status["problems"]]
    return status | sentences | {"problems": problems}


def _only(record: dict[str, Any], keys: frozenset[str]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key in keys}
