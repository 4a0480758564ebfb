"""The accept loop."""

import errno
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

import trio

from sidecar.http.stopping import Stopping

__all__ = ["serve"]

OnError = Callable[[BaseException], None]

_OUT_OF_ROOM = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
_OUT_OF_ROOM_PAUSE_S = 0.1


async def serve(
    listeners: Sequence[trio.abc.Listener[Any]],
    connection: Callable[[Any], Awaitable[None]],
    *,
    max_connections: int,
    stopping: Stopping | None = None,
    on_error: OnError | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run ``connection(stream)`` for every connection of the ``listeners``, at most ``max_connections`` at a time.

    A place is taken before accepting, so that clients beyond the limit wait in the kernel's queue and cost nothing.
    The stream is closed when ``connection`` returns or raises; an exception of it is told to ``on_error`` and ends
    only that connection. Out of descriptors, memory or buffers: told to ``on_error``, and tried again after 100 ms.

    Returns when ``stopping`` is set and the last connection has ended. Does not close the listeners: whoever opened
    or inherited them decides what becomes of the clients in their queue. Raises what a listener's accept raises.
    """
    stopping = stopping or Stopping()
    async with trio.open_nursery() as connections:
        accepting = _Accepting(connection, connections, trio.Semaphore(max_connections), on_error)
        with trio.CancelScope() as accept_scope:
            unsubscribe = stopping.subscribe(accept_scope.cancel)
            try:
                if stopping.is_set():
                    accept_scope.cancel()
                async with trio.open_nursery() as accept_loops:
                    for listener in listeners:
                        accept_loops.start_soon(accepting.accept_from, listener)
                    task_status.started()
            finally:
                unsubscribe()


class _Accepting(NamedTuple):
    """What the accept loops of one ``serve`` share."""

    connection: Callable[[Any], Awaitable[None]]
    connections: trio.Nursery
    places: trio.Semaphore
    on_error: OnError | None

    async def accept_from(self, listener: trio.abc.Listener[Any]) -> None:
        while True:
            await self.places.acquire()
            try:
                stream = await listener.accept()
            except OSError as error:
                self.places.release()
                if error.errno not in _OUT_OF_ROOM:
                    raise
                self._tell(error)
                await trio.sleep(_OUT_OF_ROOM_PAUSE_S)
            except trio.Cancelled:
                self.places.release()
                raise
            else:
                self.connections.start_soon(self._one, stream)

    async def _one(self, stream: trio.abc.AsyncResource) -> None:
        try:
            await self.connection(stream)
        except Exception as error:  # one connection must not take the others along
            self._tell(error)
        finally:
            try:
                await trio.aclose_forcefully(stream)
            finally:
                self.places.release()

    def _tell(self, error: BaseException) -> None:
        if self.on_error is not None:
            self.on_error(error)
