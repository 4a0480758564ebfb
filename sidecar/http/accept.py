"""The accept loop, the signal that ends it and every connection, and what ends idle connections.

Rules
-----
* A connection slot is acquired before accepting, so that at most ``max_connections`` are open. Further clients wait in
  the kernel's queue, where they need neither a descriptor nor memory of this process.
* Running out of descriptors, memory or buffers is temporary: report it, pause, accept again. A client that has gone before it
  was accepted is an error of accept(2) on some systems, and none of the listener. Every other error means that the listener is
  unusable, and is raised.
* An error in one connection never ends another connection or the loop.
* A listener that is closed with clients in its queue resets them (tcp(7)), and a client cannot know whether its request
  was read. So a listener of our own is emptied before it is closed, at once: later clients are refused and try again.
"""

import errno
import select
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, NamedTuple

import trio

__all__ = ["IdleConnections", "Shutdown", "serve", "shortage"]

OnError = Callable[[BaseException], None]

# Errors of accept(2) that pass once other connections close. Without the pause the loop would spin: the waiting
# connection stays in the queue, and the listener stays readable.
_OUT_OF_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
_RETRY_PAUSE_S = 0.1
# The client has gone: BSD, macOS and gVisor report it, Linux returns its socket.
_CLIENT_GONE = frozenset({errno.ECONNABORTED, errno.EPROTO})


def shortage(error: BaseException) -> str | None:
    """Return what is missing for another connection, and what to do, as a half sentence; None for another error."""
    if not isinstance(error, OSError) or error.errno not in _OUT_OF_RESOURCES:
        return None
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return "no file descriptor is left for another; raise LimitNOFILE in the unit, or `ulimit -n`"
    return "this host has no memory left for another connection; end other programs, or give it more"


class Shutdown:
    """A flag that is set once and then notifies all subscribers.

    Setting it never blocks and never cancels a handler: idle connections close, accept loops end, and a request that
    has begun to arrive is finished.
    """

    def __init__(self) -> None:
        self._is_set = False
        self._subscribers: dict[Callable[[], None], None] = {}

    def is_set(self) -> bool:
        """Return whether ``set`` was called."""
        return self._is_set

    def set(self) -> None:
        """Begin the shutdown: call all subscribers. A second call does nothing."""
        if self._is_set:
            return
        self._is_set = True
        for notify in list(self._subscribers):  # a copy: a subscriber may unsubscribe itself
            notify()

    def subscribe(self, notify: Callable[[], None]) -> None:
        """Have ``set`` call ``notify``, until ``unsubscribe``.

        ``notify`` is not called for a shutdown that is already set: check ``is_set`` after subscribing.
        """
        self._subscribers[notify] = None

    def unsubscribe(self, notify: Callable[[], None]) -> None:
        """End the subscription of ``notify``, if there is one."""
        self._subscribers.pop(notify, None)


class IdleConnections:
    """The connections that wait for their clients; each one's scope is cancelled after ``idle_s`` seconds.

    All wait equally long, so that one task can end them in the order in which they began. A deadline of each connection's
    own scope would move twice with every request, a twenty-fifth of what the request costs.
    """

    def __init__(self, idle_s: float) -> None:
        self._idle_s: Final = idle_s
        # Always added at the end, and with the same wait: the first one is the first to end.
        self._deadlines: dict[trio.CancelScope, float] = {}

    def add(self, scope: trio.CancelScope) -> None:
        """Cancel ``scope`` in ``idle_s`` seconds, unless it is removed before. It must not be here yet."""
        self._deadlines[scope] = trio.current_time() + self._idle_s

    def remove(self, scope: trio.CancelScope) -> None:
        """Leave ``scope`` alone; nothing happens if it is not here."""
        self._deadlines.pop(scope, None)

    def __contains__(self, scope: trio.CancelScope) -> bool:
        return scope in self._deadlines

    async def run(self) -> None:
        """End each connection when its time is up, until cancelled. A wake-up per ``idle_s`` is enough when none ends."""
        while True:
            now_s = trio.current_time()
            overdue = []
            for scope, deadline_s in self._deadlines.items():
                if deadline_s > now_s:
                    break
                overdue.append(scope)
            for scope in overdue:
                self.remove(scope)
                scope.cancel()
            # Whatever is added during the sleep ends later than the first one of now.
            await trio.sleep_until(next(iter(self._deadlines.values()), now_s + self._idle_s))


async def serve(
    listeners: Sequence[trio.abc.Listener[Any]],
    handle_connection: Callable[[Any], Awaitable[None]],
    *,
    max_connections: int,
    shutdown: Shutdown | None = None,
    on_error: OnError | None = None,
    close_listeners: bool = False,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run ``handle_connection(stream)`` for each connection of ``listeners``, at most ``max_connections`` at a time.

    The stream is closed when ``handle_connection`` returns or raises. Its exceptions are passed to ``on_error`` and end
    only that connection. If descriptors, memory or buffers run out, the error is passed to ``on_error`` and accepting
    is tried again after 100 ms.

    Returns when ``shutdown`` is set and the last connection has ended. With ``close_listeners`` the shutdown serves the
    clients in the listeners' queues and then closes the listeners; without it they stay open, as a socket that systemd
    passed must, and their clients wait. Raises what a listener's ``accept`` raises. Cancellation closes all connections.
    """
    shutdown = shutdown or Shutdown()
    # Two nurseries, so that the shutdown ends the accept loops without cancelling the connections.
    async with trio.open_nursery() as connections:
        acceptor = _Acceptor(handle_connection, connections, trio.Semaphore(max_connections), on_error)
        with trio.CancelScope() as accept_scope:
            shutdown.subscribe(accept_scope.cancel)
            try:
                if shutdown.is_set():
                    accept_scope.cancel()
                async with trio.open_nursery() as accept_loops:
                    for listener in listeners:
                        accept_loops.start_soon(acceptor.accept_from, listener)
                    task_status.started()
            finally:
                shutdown.unsubscribe(accept_scope.cancel)
        if close_listeners:
            for listener in listeners:
                await acceptor.empty(listener)
                await listener.aclose()


class _Acceptor(NamedTuple):
    """The state that the accept loops of one ``serve`` share."""

    handle_connection: Callable[[Any], Awaitable[None]]
    connections: trio.Nursery
    free_slots: trio.Semaphore
    on_error: OnError | None

    async def accept_from(self, listener: trio.abc.Listener[Any]) -> None:
        """Accept connections until cancelled. Each path below gives the slot back or hands it to a connection."""
        while True:
            await self.free_slots.acquire()
            try:
                stream = await listener.accept()
            except OSError as error:
                self.free_slots.release()
                if error.errno in _CLIENT_GONE:
                    continue
                if error.errno not in _OUT_OF_RESOURCES:
                    raise
                self._report(error)
                await trio.sleep(_RETRY_PAUSE_S)
            except trio.Cancelled:
                self.free_slots.release()
                raise
            else:
                # No checkpoint between accept and here, so that a shutdown cannot lose an accepted connection.
                self.connections.start_soon(self._run, stream)

    async def empty(self, listener: trio.abc.Listener[Any]) -> None:
        """Accept the clients that wait, as far as there are free slots; waits for nothing."""
        waiting = select.poll()
        raw = listener.transport_listener if isinstance(listener, trio.SSLListener) else listener
        assert isinstance(raw, trio.SocketListener)
        waiting.register(raw.socket, select.POLLIN)
        while self.free_slots.value and waiting.poll(0):
            with trio.move_on_after(_RETRY_PAUSE_S):  # the client may have gone since
                try:
                    stream = await listener.accept()
                except OSError as error:
                    if error.errno in _CLIENT_GONE:
                        continue
                    self._report(error)
                    return
                self.free_slots.acquire_nowait()
                self.connections.start_soon(self._run, stream)

    async def _run(self, stream: trio.abc.AsyncResource) -> None:
        try:
            await self.handle_connection(stream)
        except Exception as error:  # one connection must not end the others
            self._report(error)
        finally:
            try:
                await trio.aclose_forcefully(stream)
            finally:
                self.free_slots.release()

    def _report(self, error: BaseException) -> None:
        if self.on_error is not None:
            self.on_error(error)
