"""The control API without a daemon, answered from the outbox file, which is locked exclusively meanwhile.

Each request runs the same routes as in the daemon, with a writer that lives for the length of the request. Verbs
therefore have one way to ask, and answers have the same shape whether or not a daemon runs
(sidecar/control/README.md#offline).

Root works with the user id of the file's owner: the files that SQLite and the lock create must be writable for the
daemon, which runs as that user.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import trio

from sidecar.clock import SystemClock
from sidecar.config import Config
from sidecar.control.audit import AuditRoutes, PagedCalls, peer, this_process
from sidecar.control.backlog import BacklogRoutes
from sidecar.control.client import Params, with_params
from sidecar.control.dead_groups import DeadGroupRoutes
from sidecar.control.export import export_note
from sidecar.control.idle_rules import IdleRulesRoutes
from sidecar.control.outbox_admin import OutboxAdmin
from sidecar.control.server import ControlRoutes
from sidecar.control.state import Notices, StateReader
from sidecar.control.trace import TraceRoutes
from sidecar.errors import Failed, NotRunning
from sidecar.http import Request, Response
from sidecar.mapping import LiveSettings, compile_settings
from sidecar.outbox import Capacity, InlineRunner, Outbox, Store, real_path, take_lock
from sidecar.outbox.forget import suppression
from sidecar.outbox.recovery import damage_in, damage_marker, disk_errors, ensure_was_outbox
from sidecar.receive.sources import number_sources

__all__ = ["OfflineBackend", "open_file"]


@contextmanager
def open_file(config: Config) -> Iterator["OfflineBackend"]:
    """Open and lock the configured outbox for the length of the block.

    Raises NotRunning if the file does not exist, Failed if another process holds it or it cannot be written, and
    ConfigError if it is not an outbox of this version.
    """
    path = real_path(config)
    if not _exists(path):
        raise NotRunning(
            f"The daemon is not running, and there is no outbox at {path} yet; start the daemon with "
            "`systemctl start px-sidecar` or `px-sidecar run`, or name its configuration with --config."
        )
    with _as_owner(path):
        lock = take_lock(path)
        try:
            # Recovery replaces the file and can take minutes: that is the daemon's work, not that of a verb.
            if damage := damage_in(path):
                ensure_was_outbox(path, damage)
                raise Failed(
                    f"The outbox {path} is damaged ({damage}); start the daemon: it sets the file aside and recovers "
                    "every event that can be read."
                )
            store = Store(path, durability=config.outbox.durability)
            try:
                with disk_errors(path), damage_marker(path):
                    yield OfflineBackend(config, store)
            finally:
                store.close()
        finally:
            lock.release()


class OfflineBackend:
    """Answer the control API from the file. Nothing is delivered meanwhile."""

    def __init__(self, config: Config, store: Store) -> None:
        self.config = config
        self.store = store
        self.clock = SystemClock()
        self._paged = PagedCalls()
        # Read only: with a full disk the state can still be shown.
        numbers = number_sources(config.source, lambda digest, _key: store.source_number(digest))
        self.settings = LiveSettings(compile_settings(config, numbers, store.source_products(), suppression(store)))

    def get(self, path: str, params: Params | None = None) -> Any:
        """Return the decoded answer to GET. Raises Failed with the API's error sentence."""
        return self._request("GET", with_params(path, params or {}), b"")

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Return the decoded answer to POST. Raises Failed with the API's error sentence."""
        return self._request("POST", path, msgspec.json.encode(body or {}))

    def _request(self, method: str, target: str, body: bytes) -> Any:
        path, _, query = target.partition("?")
        response = trio.run(self._answer, Request(method, path, query, [], body, "1.1", False))
        assert isinstance(response.body, bytes), "streams need a daemon"
        answer = msgspec.json.decode(response.body)
        if response.status != 200:
            raise Failed(answer["error"])
        return answer

    async def _answer(self, request: Request) -> Response:
        """Answer one request, with a writer task that ends with it."""
        peer.set(this_process())
        limits = self.config.outbox
        capacity = Capacity(self.store.path, limits.max_bytes, when_full=limits.when_full)
        outbox = Outbox(self.store, self.clock, capacity, InlineRunner())
        note = export_note(self.store)
        notices = Notices(startup=note.describe() if note else "")
        reader = StateReader(self.store, outbox, self.settings, self.clock, notices)
        audit = AuditRoutes(outbox, self._paged)
        routes = ControlRoutes(
            reader,
            OutboxAdmin(outbox, self.settings),
            self.settings,
            self.clock,
            audit=audit,
            more=[
                audit.routes,
                DeadGroupRoutes(outbox, self.settings).routes,
                BacklogRoutes(outbox, self.settings, self.clock).routes,
                IdleRulesRoutes(outbox, self.settings).routes,
                TraceRoutes(outbox, self.settings, self.clock, reader).routes,
            ],
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(outbox.run)
            response = await routes.answer(request)
            outbox.stop()
        return response


def _exists(path: Path) -> bool:
    try:
        os.stat(path)
        return True
    except (FileNotFoundError, NotADirectoryError):
        return False
    except PermissionError:
        raise Failed(f"The outbox {path} cannot be accessed by this user; use sudo.") from None


@contextmanager
def _as_owner(path: Path) -> Iterator[None]:
    """Run the block with the effective user and group of the file's owner, if root calls."""
    owner = path.stat()
    if os.geteuid() != 0 or owner.st_uid == 0:
        yield
        return
    group = os.getegid()
    os.setegid(owner.st_gid)  # before seteuid, which takes away the right to change the group
    os.seteuid(owner.st_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)
