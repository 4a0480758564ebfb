"""The control sockets during a long start: they are bound early, and a recovery can take minutes."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import trio

from sidecar.control.server import refuse
from sidecar.http import Request, Response, Shutdown, serve, serve_connection

__all__ = ["refuse_while_starting"]

# Calls wait in the queue of the kernel for the usual start, which takes a fraction of a second.
WAIT_S: Final = 5.0
CONNECTIONS: Final = 20
_STARTING: Final = (
    "The daemon is starting: the outbox is being opened, which takes minutes if it is recovered; try again."
)


@asynccontextmanager
async def refuse_while_starting(*listeners: socket.socket | None) -> AsyncIterator[None]:
    """Answer calls with 503 if the block takes longer than ``WAIT_S``; the listeners stay open for the daemon."""
    shutdown = Shutdown()
    async with trio.open_nursery() as nursery:

        async def answer_late() -> None:
            await trio.sleep(WAIT_S)
            async with trio.open_nursery() as serving:
                for listener in filter(None, listeners):
                    listening = trio.SocketListener(trio.socket.from_stdlib_socket(listener))
                    connection = partial(serve_connection, handler=_answer, shutdown=shutdown, refuse=refuse)
                    serving.start_soon(
                        partial(serve, [listening], connection, max_connections=CONNECTIONS, shutdown=shutdown)
                    )

        nursery.start_soon(answer_late)
        yield
        shutdown.set()
        nursery.cancel_scope.cancel()


async def _answer(_request: Request) -> Response:
    return refuse("", _STARTING, 503)
