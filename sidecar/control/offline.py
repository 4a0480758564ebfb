"""The outbox without a daemon: the same API, answered from the file itself, which is held exclusively meanwhile.

Each question runs a writer of its own for as long as it takes, on the spot; so a verb has one way of asking, and what
it is told has the same shape whether a daemon runs or not.

Whoever asks as root works as the owner of the file: what SQLite and the lock leave behind must be writable for the
daemon, which starts later as another user.
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
from sidecar.control.client import Params, with_params
from sidecar.control.desk import Desk
from sidecar.control.server import Control
from sidecar.errors import Failed, NotRunning
from sidecar.http import Request, Response
from sidecar.mapping import compile_mapping
from sidecar.observe import Feed
from sidecar.outbox import InlineRunner, Outbox, Room, Store, take_lock
from sidecar.outbox.recovery import damage_in, marking

__all__ = ["File", "open_file"]


@contextmanager
def open_file(config: Config) -> Iterator["File"]:
    """The outbox of a configuration, held until the block is left.

    Raises NotRunning if there is none yet, Failed if another process holds it or it cannot be written, ConfigError if
    it is not of this version.
    """
    path = Path(config.outbox.path)
    if not _exists(path):
        raise NotRunning(
            f"The daemon is not running, and there is no outbox at {path} yet; start the daemon with "
            "`systemctl start px-sidecar` or `px-sidecar run`, or name its configuration with --config."
        )
    with _as_owner(path):
        lock = take_lock(path)
        try:
            if why := damage_in(path):
                raise Failed(
                    f"The outbox {path} is damaged ({why}); start the daemon: it sets the file aside and recovers what "
                    "can be read."
                )
            store = Store(path, durability=config.outbox.durability)
            try:
                with marking(path):
                    yield File(config, store)
            finally:
                store.close()
        finally:
            lock.release()


class File:
    """Answers like a daemon, from the file. It is a ``house.House`` in which nothing is delivered."""

    def __init__(self, config: Config, store: Store) -> None:
        self.config = config
        self.store = store
        self.clock = SystemClock()
        self.delivery = None
        self.feed = Feed()
        self.mapper = compile_mapping(config.mapping, config.people)
        self.room = Room(store.path, config.outbox.max_bytes, when_full=config.outbox.when_full)
        self.outbox = self._writer()
        self._products = store.source_products()

    def product_of(self, source: int) -> str:
        """The property key that the events of a source belong to."""
        return self._products.get(source) or self.config.px.property_key

    def get(self, path: str, params: Params | None = None) -> Any:
        """What GET answers, decoded. Raises Failed if it is no success."""
        return self._ask("GET", with_params(path, params or {}), b"")

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """What POST answers, decoded. Raises Failed if it is no success."""
        return self._ask("POST", path, msgspec.json.encode(body or {}))

    def _writer(self) -> Outbox:
        return Outbox(self.store, self.clock, self.room, InlineRunner())

    def _ask(self, method: str, target: str, body: bytes) -> Any:
        path, _, query = target.partition("?")
        response = trio.run(self._answer, Request(method, path, query, [], body, "1.1", False))
        assert isinstance(response.body, bytes), "streams are for daemons"
        answer = msgspec.json.decode(response.body)
        if response.status != 200:
            raise Failed(answer["error"])
        return answer

    async def _answer(self, request: Request) -> Response:
        self.outbox = self._writer()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.outbox.run)
            response = await Control(Desk(self)).answer(request)
            self.outbox.stop()
        return response


def _exists(path: Path) -> bool:
    try:
        os.stat(path)
        return True
    except (FileNotFoundError, NotADirectoryError):
        return False
    except PermissionError:
        raise Failed(f"The outbox {path} cannot be looked at by this user; use sudo.") from None


@contextmanager
def _as_owner(path: Path) -> Iterator[None]:
    """Root works as the owner of the file meanwhile."""
    facts = path.stat()
    if os.geteuid() != 0 or facts.st_uid == 0:
        yield
        return
    group = os.getegid()
    os.setegid(facts.st_gid)
    os.seteuid(facts.st_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)
