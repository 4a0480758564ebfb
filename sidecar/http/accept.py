"""The accept loop."""

import errno
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import trio

from sidecar.http.stopping import Stopping

__all__ = ["serve"]

_OUT_OF_ROOM = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
_OUT_OF_ROOM_PAUSE_S = 0.1


async def serve(
    listeners: Sequence[trio.abc.Listener[Any]],
    connection: Callable[[Any], Awaitable[None]],
    *,
    max_connections: int,
    stopping: Stopping | None = None,
    on_error: Callable[[BaseException], None] | None = None,
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
    places = trio.Semaphore(max_connections)

    async def one(stream: trio.abc.AsyncResource) -> None:
        try:
            await connection(stream)
        except Exception as error:  # one connection must not take the others along
            _tell(on_error, error)
        finally:
            try:
                await trio.aclose_forcefully(stream)
            finally:
                places.release()

    async def accept_from(listener: trio.abc.Listener[Any]) -> None:
        while True:
            await places.acquire()
            try:
                stream = await listener.accept()
            except OSError as error:
                places.release()
                if error.errno not in _OUT_OF_ROOM:
                    raise
                _tell(on_error, error)
                await trio.sleep(_OUT_OF_ROOM_PAUSE_S)
            except trio.Cancelled:
                places.release()
                raise
            else:
                connections.start_soon(one, stream)

    async with trio.open_nursery() as connections:
        with trio.CancelScope() as accepting:
            unsubscribe = stopping.subscribe(accepting.cancel)
            try:
                if stopping.is_set():
                    accepting.cancel()
                async with trio.open_nursery() as accept_loops:
                    for listener in listeners:
                        accept_loops.start_soon(accept_from, listener)
                    task_status.started()
            finally:
                unsubscribe()


def _tell(on_error: Callable[[BaseException], None] | None, error: BaseException) -> None:
    if on_error is not None:
        on_error(error)
