"""The audit trail of the control API: every call that changes something, with the peer that made it.

The peer is what the kernel says about the other end of the control socket (SO_PEERCRED, unix(7)), so that no client can
give another name than its own. What is recorded of a call is its parameters, without values that can name a user.
"""

import hashlib
import logging
import os
import pwd
import socket
import struct
from collections.abc import Mapping
from contextvars import ContextVar
from functools import partial
from typing import Any, Final, NamedTuple

import msgspec
import trio

from sidecar.control.answers import (
    Int64,
    Params,
    RequestError,
    RouteTable,
    call_path,
    decode_body,
    decode_query,
    json_response,
)
from sidecar.errors import SidecarError
from sidecar.http import Request, Response
from sidecar.outbox import Outbox
from sidecar.outbox.operations import add_audit, audit_page

__all__ = [
    "AUDITED",
    "AuditQuery",
    "AuditRoutes",
    "Note",
    "PagedCalls",
    "Peer",
    "describe",
    "peer",
    "peer_of",
    "this_process",
]

log = logging.getLogger(__name__)

AUDITED: Final = {
    "/v1/pause": "pause",
    "/v1/resume": "resume",
    "/v1/reload": "reload",
    "/v1/dead/retry": "dead retry",
    "/v1/dead/discard": "dead discard",
    "/v1/events/discard": "events discard",
    "/v1/resend": "resend",
    "/v1/backfill": "backfill",
    "/v1/forget": "forget",
    "/v1/forget/px": "forget in PX",
    "/v1/import": "import",
    "/v1/send": "send",
}
"""The action of each call that is recorded."""

# Parameters that are recorded as given; of all others only the name.
_SHOWN: Final = frozenset(
    {"ids", "name", "reason", "since_ms", "until_ms", "all", "source", "class", "suppress", "back", "after"}
)
# Parameters that differ from page to page of one call; of a backfill only its job is the same.
_OF_THE_PAGE: Final = frozenset({"after", "next", "events", "total"})
MAX_DETAIL: Final = 2_000
PAGED_MAX: Final = 1_000

NAME_S: Final = 1.0  # for the name of a user, which may come over the network


class Peer(NamedTuple):
    """A process at the other end of a Unix socket; ``where`` is added to its description."""

    uid: int
    pid: int
    where: str = ""


peer: ContextVar[Peer | None] = ContextVar("peer", default=None)
"""The peer that is connected: set for each connection, in its task. None if the kernel does not say."""


class AuditQuery(msgspec.Struct, forbid_unknown_fields=True):
    """The parameters of ``GET /v1/audit``."""

    before: Int64 | None = None
    limit: Int64 = 100


class Note(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /v1/audit/note``: a change that was made outside the daemon, such as a saved configuration."""

    action: str
    detail: str = ""


def peer_of(connection: socket.socket | Any) -> Peer | None:
    """Return the user and process at the other end of a Unix socket."""
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid, uid, _ = struct.unpack("3i", raw)
    except (OSError, AttributeError):
        return None
    return Peer(uid, pid)


def this_process() -> Peer:
    """Return the user and process that runs this, for changes that are made without a daemon."""
    return Peer(os.getuid(), os.getpid(), ", without a daemon")


def describe(who: Peer, name: str | None = None) -> str:
    """Return a process as the trail shows it, such as ``root (uid 0, pid 4711)``; ``name`` is looked up if it is None."""
    if name is None:
        try:
            name = pwd.getpwuid(who.uid).pw_name
        except KeyError:
            name = "?"
    return f"{name} (uid {who.uid}, pid {who.pid}){who.where}"


async def _description(who: Peer | None) -> str:
    """Return a peer as ``describe`` does. A directory of users that does not answer (LDAP, sssd) holds nothing up."""
    if who is None:
        return "unknown"
    with trio.move_on_after(NAME_S):
        return await trio.to_thread.run_sync(describe, who, abandon_on_cancel=True)
    return describe(who, name="?")


class PagedCalls:
    """The paged calls that are recorded already, so that 1,000 pages make one row; the newest ``PAGED_MAX``.

    ``after`` alone does not make a request a later page: a caller may begin anywhere, and that is a change, too.
    """

    def __init__(self) -> None:
        self._recorded: dict[bytes, None] = {}

    def is_later_page(self, who: Peer | None, action: str, given: Mapping[str, Any]) -> bool:
        """Return whether the request continues a call of the same caller that is recorded; else note it as recorded."""
        selection = {key: value for key, value in given.items() if key not in _OF_THE_PAGE}
        call = hashlib.sha256(msgspec.json.encode([who, action, selection], order="sorted")).digest()
        if given.get("after") and call in self._recorded:
            return True
        self._recorded[call] = None
        if len(self._recorded) > PAGED_MAX:
            del self._recorded[next(iter(self._recorded))]
        return False


class AuditRoutes:
    """``/v1/audit``, and ``record``, which the server calls after each audited call."""

    def __init__(self, outbox: Outbox, paged: PagedCalls) -> None:
        self._outbox = outbox
        self._paged = paged
        self.routes: RouteTable = {"/v1/audit": ("GET", self._list), "/v1/audit/note": ("POST", self._note)}

    async def record(self, request: Request) -> None:
        """Record a call that has succeeded, if it is one of ``AUDITED``: of a paged call the page that comes first.

        One that cannot be recorded, as with a full disk, is in the log: the call is done, and must not be repeated.
        """
        action = AUDITED.get(call_path(request))
        given: dict[str, Any] = msgspec.json.decode(request.body or b"{}", type=dict[str, Any]) if action else {}
        if action is None or self._paged.is_later_page(peer.get(), action, given):
            return
        shown = {key: value if key in _SHOWN else "…" for key, value in given.items() if key != "after" or value}
        try:
            await self._add(action, msgspec.json.encode(shown).decode() if shown else "")
        except SidecarError as error:
            log.warning(
                "%s by %s is done, and is not in the audit trail: %s", action, await _description(peer.get()), error
            )

    async def _add(self, action: str, detail: str) -> None:
        caller = await _description(peer.get())
        await self._outbox.write(
            lambda store, now_ms: add_audit(store, now_ms, caller, action[:100], detail[:MAX_DETAIL])
        )

    async def _list(self, _request: Request, params: Params) -> Response:
        query = decode_query(params, AuditQuery)
        limit = max(1, min(query.limit, 1_000))
        rows = await self._outbox.read(partial(audit_page, before=query.before, limit=limit))
        following = rows[-1].id if len(rows) == limit else None
        return json_response({"changes": [row._asdict() for row in rows], "next": following})

    async def _note(self, request: Request, _params: Params) -> Response:
        note = decode_body(request, Note)
        if not note.action.strip():
            raise RequestError(400, "The action is empty; say what was changed.")
        await self._add(note.action, note.detail)
        return json_response({"recorded": True})
