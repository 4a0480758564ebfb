"""The first steps of a start: what makes clients wait instead of being refused, before anything heavy is loaded.

In this order:

1. An outbox of a newer version is refused: this process would listen, and then end.
2. The locks of the outbox: a second process never listens.
3. All sockets. From here on the kernel queues clients (listen(2)), while the rest of the program is loaded.

So this module and what it imports need the standard library, the configuration and nothing else; loading trio, SQLite
and the mapping takes several times as long as these steps. ``daemon.serve_daemon`` does the rest.
"""

import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import NamedTuple

from sidecar.config.schema import Config
from sidecar.outbox.lock import Lock, hold_lock, real_path, refuse_newer_schema
from sidecar.receive.listeners import (
    BoundSockets,
    bind_control,
    bind_control_read,
    bind_listeners,
    raise_descriptor_limit,
)
from sidecar.systemd import inherited_sockets

__all__ = ["Claimed", "claim"]


class Claimed(NamedTuple):
    """The things that a daemon holds to its end: the lock of the outbox and the listening sockets."""

    lock: Lock
    sockets: BoundSockets
    control: socket.socket
    control_read: socket.socket | None
    descriptors: int


@contextmanager
def claim(config: Config) -> Iterator[Claimed]:
    """Lock the outbox and open all sockets for the length of the block. Raises Failed or ConfigError."""
    refuse_newer_schema(real_path(config))
    descriptors = raise_descriptor_limit()
    inherited = inherited_sockets()
    with (
        hold_lock(config) as lock,
        closing(bind_listeners(config.listen, inherited)) as sockets,
        bind_control(config.listen) as control,
        bind_control_read(config.listen) as control_read,
    ):
        yield Claimed(lock, sockets, control, control_read, descriptors)
