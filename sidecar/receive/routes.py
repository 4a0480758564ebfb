"""The HTTP routes: what an SDK posts, what an operator or a monitor gets.

On TCP, a browser on this host could be made to post here by any web page. Browsers say where they come from (``Origin``)
and what they were told to reach (``Host``), so a foreign Host and any Origin are refused with 403. The Unix socket
cannot be reached by a browser and is exempt.

A small body may become much: the context of a batch goes into each of its events. So what the requests of one way in have
become and what waits for its commit is bounded together (``Held``): beyond it nobody's body is opened. SDKs repeat a 503,
and some of them drop what they get a 408 for (facts: ``px_and_sdks.md`` 3.4), so whoever waits in vain for us gets a 503.
"""

import base64
import binascii
import re
from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import Final

import trio

from sidecar.config.schema import is_loopback_host
from sidecar.errors import SidecarError
from sidecar.events import TYPES
from sidecar.http import BUSY, Request, Response
from sidecar.outbox import Outbox
from sidecar.receive.held import Held
from sidecar.receive.intake import BATCH, Answer, Intake, nothing_to_store, refusal

__all__ = ["Page", "Routes"]

Page = Callable[[], Awaitable[Response]]

_KINDS: Final = {f"/v1/{kind}": kind for kind in TYPES} | {f"/v1/{path}": BATCH for path in ("batch", "import", "b")}
# The server's codes for what no repetition makes good, and our own for the same.
_REFUSED_FOR_GOOD: Final = {"too_large": "too_large", "headers_too_large": "too_large", "bad_encoding": "bad_json"}
_SLASHES: Final = re.compile(r"/{2,}")
REFUSED_BYTES: Final = 1_000  # about what a bad event takes, with its entry in the answer
BUSY_RETRY_AFTER_S: Final = 10
_HOST: Final = re.compile(r"\[([^\]]*)\](?::\d*)?|([^:]*)(?::\d*)?")


class Routes:
    """Answers requests. ``pages`` are what GET finds, by path; ``foreign_hosts`` are allowed where others may come in.

    ``took`` is told how long each request for taking events waited for its answer, in seconds.
    """

    def __init__(
        self,
        intake: Intake,
        outbox: Outbox,
        pages: dict[str, Page],
        *,
        foreign_hosts: bool = False,
        took: Callable[[float], None] = lambda _seconds: None,
    ) -> None:
        self._took = took
        self._intake = intake
        self._outbox = outbox
        self._pages = pages
        self._foreign_hosts = foreign_hosts
        self._held = {True: Held(), False: Held()}  # by being trusted: who comes over the socket has his own

    async def over_tcp(self, request: Request) -> Response:
        """Answer a request that came over TCP."""
        if request.header(b"origin") is not None:
            return _respond(
                refusal("foreign_origin", "Web pages may not send events here; send them from a server.", 403)
            )
        if not self._foreign_hosts and not _is_local(request.header(b"host")):
            return _respond(
                refusal("foreign_host", "The Host header names another host; use the address in listen.http.", 403)
            )
        return await self._answer(request, trusted=False)

    async def over_unix(self, request: Request) -> Response:
        """Answer a request that came over the Unix socket."""
        return await self._answer(request, trusted=True)

    def refuse(self, code: str, message: str, status: int) -> Response:
        """Words for what never reached a route (``sidecar.http.Refuse``).

        What would be refused again is 400, since SDKs repeat 413, 415 and 431 (facts: ``px_and_sdks.md`` 3.4). A
        request that was too slow (408), one that we were too slow for (503) and one at which we failed (500) should be
        repeated, and so keep their status.
        """
        return _respond(self._refused(code, message, status))

    def _refused(self, code: str, message: str, status: int) -> Answer:
        if code == "too_large":
            message = f"{message.removesuffix('.')}, or raise outbox.max_request_bytes."
        ours = _REFUSED_FOR_GOOD.get(code)
        after_s = BUSY_RETRY_AFTER_S if status == 503 else None
        said = refusal(code, message, status, after_s) if ours is None else refusal(ours, message)
        self._intake.count(said.code)
        return said

    async def _answer(self, request: Request, *, trusted: bool) -> Response:
        path = request.path
        kind = _KINDS.get(path)
        if kind is None:
            path = _SLASHES.sub("/", path).rstrip("/")
            kind = _KINDS.get(path)
        if kind is not None and request.method == "POST":
            began_s = trio.current_time()
            answer = await self._take(request, kind, trusted=trusted)
            self._took(trio.current_time() - began_s)
            return _respond(answer)
        page = self._pages.get(path)
        if page is not None and request.method in ("GET", "HEAD"):
            return await page()
        if kind is not None or page is not None:
            allowed = "GET" if page is not None else "POST"
            said = refusal("method_not_allowed", f"{path} answers {allowed} only; use that.", 405)
            return Response(said.status, said.body, headers=(("Allow", allowed),))
        return _respond(
            refusal("not_found", "There is nothing at this path; events go to POST /v1/batch or /v1/track.", 404)
        )

    async def _take(self, request: Request, kind: str, *, trusted: bool) -> Answer:
        held = self._held[trusted]
        if held.is_full() and not await held.room():
            return self._refused(BUSY.code, BUSY.message, BUSY.status)
        key = _key_of(request.header(b"authorization")) if self._intake.sources else None
        opened = self._intake.open(request.body, kind, key, trusted=trusted)
        if isinstance(opened, Answer):
            return opened
        if not opened.events:
            return nothing_to_store
        try:
            note = self._outbox.submit(opened.events)
            size_bytes = note.size_bytes + REFUSED_BYTES * len(opened.refused)
            held.more(size_bytes)
            try:
                outcome = await note.wait()
            finally:
                held.more(-size_bytes)
        except SidecarError as error:
            return self._intake.not_stored(error)
        return self._intake.accepted(opened, outcome)


def _respond(answer: Answer) -> Response:
    if answer.retry_after_s is None:
        return Response(answer.status, answer.body)
    return Response(answer.status, answer.body, headers=(("Retry-After", str(answer.retry_after_s)),))


def _key_of(authorization: bytes | None) -> str | None:
    """The write key in a Basic header, with or without the colon; a Bearer token is no write key."""
    if not authorization or authorization[:6].lower() != b"basic ":
        return None
    try:
        # Too much padding is skipped, so what was sent without any is read too.
        text = base64.b64decode(authorization[6:] + b"==", validate=False).decode("utf-8", "replace")
    except binascii.Error:
        return None
    return text.partition(":")[0] or None


@lru_cache(maxsize=64)  # an app says the same with every request
def _is_local(host: bytes | None) -> bool:
    """Whether a Host header names this machine by loopback. Without one (HTTP/1.0, nc) it cannot be a browser."""
    if host is None:
        return True
    match = _HOST.fullmatch(host.decode("latin-1").strip().lower())
    return match is not None and is_loopback_host((match[1] or match[2] or "").rstrip("."))
