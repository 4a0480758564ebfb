"""A client of px-sidecar for Python apps. A call returns once the sidecar has the event on disk.

    from px_sidecar_client import Client

    events = Client()
    events.identify("u-1", {"email": "ann@example.com"})
    events.track("u-1", "Products Searched", {"query": "shoes"})

``Client`` is for threads and forks, ``AsyncClient`` for asyncio, ``NullClient`` for tests without a sidecar; as a pytest
plugin the module has the fixture ``px_sidecar``, a sidecar with a stand-in for PX. This file is all of it: it needs the
standard library and Python 3.8 or later, and may be copied into an app.

Theory
------
One line of JSON is sent and one line is returned, over the Unix socket. A call that fails on the way is repeated once,
on a new connection and with the same ``messageId``, by which the sidecar recognizes an event that it has already stored.
So a restart of the sidecar delays a call but does not fail it.

Rules
-----
* Standard library only, and asyncio is imported when it is used: importing the client must stay cheap for apps.
* A connection belongs to the process that opened it. After a fork the child opens its own, and closes its copy of the
  parent's connection without sending anything on it.
* A connection on which anything failed is closed: a late answer must not be taken for the answer to the next event.
* A call may begin inside another call of the same thread, in a signal handler or a finalizer. It then uses a connection
  of its own, because on the first one an answer is outstanding.

PYTEST_DONT_REWRITE: an app may have imported this module before pytest registers it as a plugin.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Mapping
from datetime import date, datetime, timezone
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Callable, Coroutine, Generic, TypedDict, TypeVar  # noqa: UP035 - Python 3.8

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator
    from types import TracebackType
    from typing import Unpack

__all__ = ["AsyncClient", "Client", "Common", "NotAccepted", "NullClient", "Unavailable"]

DEFAULT_PATH = "/run/px-sidecar/events.sock"
MAX_ANSWER_BYTES = 2**20
RECONNECT_DELAY_S = 0.1  # a sidecar without socket activation may be restarting; a stopped one must not slow the app
BACKLOG_POLL_S = 0.01
SKIP_S = 1.0
MAX_TIMEOUT_S = 86_400.0  # locks and sockets overflow at longer ones, and at infinity

R = TypeVar("R")
OnError = Callable[[Exception], Any]


class NotAccepted(Exception):
    """The sidecar refused the event. ``code`` is the reason: ``bad_event``, ``outbox_full``, ``disk_full`` …

    An event refused as ``bad_event`` is refused again when it is repeated. After ``outbox_full`` and ``disk_full`` a
    repetition succeeds once space is available.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{message} ({code})")
        self.code = code
        self.message = message


class Unavailable(NotAccepted):
    """No answer arrived within the timeout: the sidecar is not running, not reachable, or stuck.

    If ``maybe_accepted`` is true, the event was being sent and may be stored. Sending it again with the same
    ``message_id`` stores it at most once.
    """

    def __init__(self, message: str, *, maybe_accepted: bool) -> None:
        super().__init__("unavailable", message)
        self.maybe_accepted = maybe_accepted


class Common(TypedDict, total=False):
    """Keyword arguments of every method. ``timestamp`` is a datetime (local if without zone) or an ISO 8601 text."""

    anonymous_id: str | None
    context: Mapping[str, Any] | None
    integrations: Mapping[str, Any] | None
    message_id: str | None
    timestamp: datetime | str | None


class _Calls(Generic[R]):
    """The methods of every client; ``_send`` gives an event to the sidecar."""

    def _send(self, type_: str, fields: dict[str, Any], common: Common) -> R:
        raise NotImplementedError

    def identify(
        self, user_id: str | int | None, traits: Mapping[str, Any] | None = None, **common: Unpack[Common]
    ) -> R:
        """Record the traits of a user."""
        return self._send("identify", {"userId": user_id, "traits": traits or {}}, common)

    def track(
        self,
        user_id: str | int | None,
        event: str,
        properties: Mapping[str, Any] | None = None,
        **common: Unpack[Common],
    ) -> R:
        """Record an action of a user."""
        return self._send("track", {"userId": user_id, "event": event, "properties": properties or {}}, common)

    def page(
        self,
        user_id: str | int | None,
        name: str | None = None,
        properties: Mapping[str, Any] | None = None,
        **common: Unpack[Common],
    ) -> R:
        """Record a page view of a user."""
        return self._send("page", {"userId": user_id, "name": name, "properties": properties or {}}, common)

    def screen(
        self,
        user_id: str | int | None,
        name: str | None = None,
        properties: Mapping[str, Any] | None = None,
        **common: Unpack[Common],
    ) -> R:
        """Record a screen view of a user in a mobile app."""
        return self._send("screen", {"userId": user_id, "name": name, "properties": properties or {}}, common)

    def group(
        self,
        user_id: str | int | None,
        group_id: str | int,
        traits: Mapping[str, Any] | None = None,
        **common: Unpack[Common],
    ) -> R:
        """Record the account that a user belongs to."""
        return self._send("group", {"userId": user_id, "groupId": group_id, "traits": traits or {}}, common)


class _Failures:
    """The handling of failures: one is raised, or passed to ``on_error``, after which calls are skipped for a second."""

    def __init__(self, on_error: OnError | None) -> None:
        self.skipped = 0
        self._on_error = on_error
        self._skip_until_s = 0.0

    def skips(self) -> bool:
        """Return whether the sidecar failed to answer within the last second; count the skipped event."""
        if self._on_error is None or time.monotonic() >= self._skip_until_s:
            return False
        self.skipped += 1
        return True

    def handle(self, error: Exception) -> None:
        """Raise ``error``, or pass it to ``on_error``, whose own errors are ignored."""
        if self._on_error is None:
            raise error
        if isinstance(error, Unavailable):
            self._skip_until_s = time.monotonic() + SKIP_S
        try:
            self._on_error(error)
        except Exception:  # noqa: S110 - no call raises, and a handler that fails has nowhere to report it
            pass


class Client(_Calls[str]):
    """A client of one sidecar. Create one per app and keep it.

    ``path`` is the sidecar's Unix socket. ``timeout_s`` bounds each call as a whole: waiting for other threads,
    connecting, and the answer. ``write_key`` selects the source if the sidecar's configuration has several.

    Safe to share between threads, which then send one after the other, and across forks (gunicorn's ``--preload``,
    multiprocessing, Celery). Each method returns the ``messageId`` once the sidecar has stored the event. Otherwise it
    raises NotAccepted or its subclass Unavailable, or TypeError for a value that JSON cannot represent, and no other
    exception.

    With ``on_error`` no call raises: it passes the exception to ``on_error`` and returns the ``messageId`` nevertheless.
    After an Unavailable, calls return at once for a second without trying, so that a stopped sidecar does not slow the
    app; ``skipped`` counts their events, which are lost.
    """

    def __init__(
        self,
        path: str = DEFAULT_PATH,
        *,
        timeout_s: float = 5.0,
        write_key: str | None = None,
        on_error: OnError | None = None,
    ) -> None:
        self._path = path
        self._timeout_s = min(timeout_s, MAX_TIMEOUT_S)
        self._write_key = write_key
        self._failures = _Failures(on_error)
        self._channels: dict[int, _Channel] = {}  # by process id; after a fork each process uses its own

    @property
    def skipped(self) -> int:
        """The number of events that ``on_error`` made this client skip."""
        return self._failures.skipped

    def close(self) -> None:
        """Close this process's connection. A later call opens a new one."""
        channel = self._channels.pop(os.getpid(), None)
        if channel is not None:
            channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _send(self, type_: str, fields: dict[str, Any], common: Common) -> str:
        """Build the event, have it stored, and return its messageId."""
        message_id = common.get("message_id") or str(uuid.uuid4())
        if self._failures.skips():
            return str(message_id)
        try:
            line = _encode(_event(type_, message_id, fields, common, self._write_key))
            _check_answer(self._channel().request(line, time.monotonic() + self._timeout_s))
        except (NotAccepted, TypeError) as error:
            self._failures.handle(error)
        return str(message_id)

    def _channel(self) -> _Channel:
        """Return this process's channel. Concurrent threads get the same one, because ``setdefault`` is atomic."""
        pid = os.getpid()
        channel = self._channels.get(pid)
        if channel is None:
            channel = self._channels.setdefault(pid, _Channel(self._path))
            for other in list(self._channels):
                if other != pid:
                    inherited = self._channels.pop(other, None)
                    # Without its lock, which a thread of the parent may have held at the fork: the child would wait
                    # for a release that never comes.
                    if inherited is not None:
                        inherited.disconnect()
        return channel


class _Channel:
    """At most one connection, and the lock that gives each caller the answer to its own event."""

    def __init__(self, path: str) -> None:
        # Reentrant: a signal handler or finalizer may call while its own thread holds the lock, and would wait for itself.
        self._lock = threading.RLock()
        self._path = path
        self._socket: socket.socket | None = None
        self._busy = False
        self._closing = False

    def disconnect(self) -> None:
        """Close the connection, without the lock."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def close(self) -> None:
        """Close the connection; inside a call of the same thread, after that call."""
        with self._lock:
            if self._busy:
                self._closing = True
            else:
                self.disconnect()

    def request(self, line: bytes, deadline_s: float) -> bytes:
        """Send a line and return the sidecar's answer. Raises Unavailable."""
        if not self._lock.acquire(timeout=max(0.0, deadline_s - time.monotonic())):
            raise Unavailable(
                f"Other threads used up the time to ask the sidecar at {self._path}; raise timeout_s, or use more clients.",
                maybe_accepted=False,
            )
        try:
            # The lock is held, so a channel in use means that this call began inside another one of this thread. A
            # signal before ``_busy`` is set is harmless: its call ends before this one continues.
            if self._busy:
                return self._request_beside(line, deadline_s)
            self._busy = True
            try:
                return self._request_with_retry(line, deadline_s)
            except BaseException:
                # Also for KeyboardInterrupt and the like: an unread answer must not meet the next event.
                self.disconnect()
                raise
            finally:
                self._busy = False
                if self._closing:
                    self._closing = False
                    self.disconnect()
        finally:
            self._lock.release()

    def _request_beside(self, line: bytes, deadline_s: float) -> bytes:
        own = _Channel(self._path)
        try:
            return own.request(line, deadline_s)
        finally:
            own.disconnect()

    def _request_with_retry(self, line: bytes, deadline_s: float) -> bytes:
        sending_began = False
        for last_try in (False, True):
            try:
                if self._socket is None:
                    self._socket = _connect(self._path, deadline_s)
                sending_began = True
                return _exchange(self._socket, line, deadline_s)
            except TimeoutError:
                raise _no_answer(self._path, maybe_accepted=sending_began) from None
            except (
                OSError,
                ValueError,
            ) as error:  # no connection; EPIPE, ECONNRESET or end of file; or an impossible path
                # A failed connect is final here, because ``_connect`` has already tried twice. A failure on an open
                # connection is usually a restart of the sidecar, so the event is sent again on a new one.
                if last_try or self._socket is None:
                    raise _unreachable(self._path, error, maybe_accepted=sending_began) from error
                self.disconnect()
        raise AssertionError("the second try returns or raises")


def _no_answer(path: str, *, maybe_accepted: bool) -> Unavailable:
    return Unavailable(
        f"The sidecar at {path} did not answer in time; check `px-sidecar status`.", maybe_accepted=maybe_accepted
    )


def _unreachable(path: str, error: Exception, *, maybe_accepted: bool) -> Unavailable:
    reason = getattr(error, "strerror", None) or error
    advice = "start it, or give its socket to the client"
    if isinstance(error, PermissionError):
        advice = "this user may not use the socket; add it to the socket's group (with the units: px-sidecar-clients)"
    return Unavailable(
        f"The sidecar at {path} cannot be reached ({reason}); {advice}.",
        maybe_accepted=maybe_accepted,
    )


def _connect(path: str, deadline_s: float) -> socket.socket:
    """Connect to ``path``. Raises OSError, ValueError for an impossible path, or TimeoutError after the deadline.

    Retries once if nothing listens there, and polls while the listener's backlog is full: a Unix socket reports a full
    backlog as EAGAIN immediately, whatever its timeout (connect(2)).
    """
    retried = False
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(_remaining_s(deadline_s))
            connection.connect(path)
            return connection
        except BlockingIOError:
            connection.close()
            time.sleep(min(BACKLOG_POLL_S, _remaining_s(deadline_s)))
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
            if retried:
                raise
            retried = True
            time.sleep(min(RECONNECT_DELAY_S, _remaining_s(deadline_s)))
        except BaseException:
            connection.close()
            raise


def _exchange(connection: socket.socket, line: bytes, deadline_s: float) -> bytes:
    """Send a line and read the answer up to its line end. Raises OSError, or TimeoutError after the deadline."""
    connection.settimeout(_remaining_s(deadline_s))
    connection.sendall(line)
    answer = b""
    while not answer.endswith(b"\n"):
        connection.settimeout(_remaining_s(deadline_s))  # set again, since it bounds one call and not the whole answer
        part = connection.recv(65_536)
        if not part:
            raise ConnectionResetError("the connection ended before the answer")
        answer += part
        if len(answer) > MAX_ANSWER_BYTES:
            raise ConnectionAbortedError("the answer does not end")
    return answer


def _remaining_s(deadline_s: float) -> float:
    """Return the seconds until the deadline. Raises TimeoutError after it."""
    remaining_s = deadline_s - time.monotonic()
    if remaining_s <= 0:
        raise TimeoutError
    return remaining_s


class AsyncClient(_Calls[Coroutine[Any, Any, str]]):
    """The client for asyncio: as ``Client``, with methods to await and many calls in flight over one connection.

    A call may be cancelled at any time; its event may be stored nevertheless, and the other calls get their own answers.
    Each loop that calls it has a connection of its own, and so has each process after a fork.
    """

    def __init__(
        self,
        path: str = DEFAULT_PATH,
        *,
        timeout_s: float = 5.0,
        write_key: str | None = None,
        on_error: OnError | None = None,
    ) -> None:
        self._path = path
        self._timeout_s = min(timeout_s, MAX_TIMEOUT_S)
        self._write_key = write_key
        self._failures = _Failures(on_error)
        self._pipes: dict[
            asyncio.AbstractEventLoop, asyncio.Task[_Pipe]
        ] = {}  # each connects, and has the pipe as its result

    @property
    def skipped(self) -> int:
        """The number of events that ``on_error`` made this client skip."""
        return self._failures.skipped

    async def aclose(self) -> None:
        """Close this loop's connection; calls in flight fail. A later call opens a new one."""
        import asyncio

        opening = self._pipes.pop(asyncio.get_running_loop(), None)
        if opening is not None and opening.done():
            _close_client(opening)
        elif opening is not None:
            opening.add_done_callback(_close_client)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _send(self, type_: str, fields: dict[str, Any], common: Common) -> str:
        message_id = common.get("message_id") or str(uuid.uuid4())
        if self._failures.skips():
            return str(message_id)
        try:
            line = _encode(_event(type_, message_id, fields, common, self._write_key))
            _check_answer(await self._request(line))
        except (NotAccepted, TypeError) as error:
            self._failures.handle(error)
        return str(message_id)

    async def _request(self, line: bytes) -> bytes:
        """Send a line and return its answer; once more on a new connection if the first one fails. Raises Unavailable."""
        import asyncio

        progress = _Progress()
        try:
            return await asyncio.wait_for(self._request_with_retry(line, progress), self._timeout_s)
        except (TimeoutError, asyncio.TimeoutError):  # noqa: UP041 - two classes before Python 3.11
            # Nothing came for the older calls either: the connection is stuck, and the calls after this one use a new one.
            if progress.pipe is not None:
                progress.pipe.give_up_if_stuck(progress.answer)
            raise _no_answer(self._path, maybe_accepted=progress.sending_began) from None

    async def _request_with_retry(self, line: bytes, progress: _Progress) -> bytes:
        for last_try in (False, True):
            try:
                progress.pipe = await self._open()
            except TimeoutError:
                raise  # an OSError, too: an attempt that an earlier call began has used up its time
            except (OSError, ValueError) as error:
                raise _unreachable(self._path, error, maybe_accepted=progress.sending_began) from error
            try:
                progress.answer = progress.pipe.send(line)
                progress.sending_began = True
                return await progress.answer
            except _Closed:
                raise Unavailable(
                    f"The client was closed before the sidecar at {self._path} answered; close it after its calls.",
                    maybe_accepted=progress.sending_began,
                ) from None
            except OSError as error:
                if last_try:
                    raise _unreachable(self._path, error, maybe_accepted=progress.sending_began) from error
        raise AssertionError("the second try returns or raises")

    async def _open(self) -> _Pipe:
        """Return the open connection of this loop and process; calls that need a new one share one attempt."""
        import asyncio

        loop = asyncio.get_running_loop()
        opening = self._pipes.get(loop)
        if opening is None or (opening.done() and not _is_usable(opening)):
            self._abandon_unused()
            # A task of its own, so that the cancellation of one call does not end the attempt of the others.
            opening = loop.create_task(_Pipe.open(self._path, loop, time.monotonic() + self._timeout_s))
            opening.add_done_callback(_retrieve)
            self._pipes[loop] = opening
        return await asyncio.shield(opening)

    def _abandon_unused(self) -> None:
        """Close the connections of loops that have ended, and this process's copies of its parent's."""
        for loop, opening in list(self._pipes.items()):
            pipe = opening.result() if _is_open(opening) else None
            if loop.is_closed() or (pipe is not None and pipe.is_inherited):
                self._pipes.pop(loop, None)
                if pipe is not None:
                    pipe.abandon()


def _is_open(opening: asyncio.Task[_Pipe]) -> bool:
    """Return whether a connection was opened."""
    return opening.done() and not opening.cancelled() and opening.exception() is None


def _is_usable(opening: asyncio.Task[_Pipe]) -> bool:
    """Return whether a connection was opened and takes further lines."""
    return _is_open(opening) and opening.result().is_usable


def _close_client(opening: asyncio.Task[_Pipe]) -> None:
    """Close the connection of a client that was closed, also if it was still being opened then."""
    if _is_open(opening):
        opening.result().close(_Closed("the client was closed"))


def _retrieve(task: asyncio.Task[_Pipe]) -> None:
    """Read the task's exception, which asyncio would report as lost if all callers were cancelled."""
    if not task.cancelled():
        task.exception()


class _Closed(ConnectionAbortedError):
    """The client was closed during a call, which is not repeated."""


class _Progress:
    """The progress of a call when its time was over."""

    def __init__(self) -> None:
        self.pipe: _Pipe | None = None
        self.answer: asyncio.Future[bytes] | None = None
        self.sending_began = False


class _Pipe:
    """One connection of asyncio. Answers come in the order of the lines, so each line has its place in a queue.

    A call that is cancelled leaves its place, and its answer is discarded there.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        connection: socket.socket,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._loop = loop
        self._connection = connection
        self._pid = os.getpid()
        self._reader = reader
        self._writer = writer
        self._answers: deque[asyncio.Future[bytes]] = deque()
        self._error: OSError | None = None  # why it takes no further lines
        self._task = loop.create_task(self._read())

    @classmethod
    async def open(cls, path: str, loop: asyncio.AbstractEventLoop, deadline_s: float) -> _Pipe:
        """Connect as ``_connect`` does. Raises OSError, or ValueError for an impossible path."""
        import asyncio

        retried = False
        while True:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                connection.setblocking(False)
                connection.connect(path)  # at once: a Unix socket never answers EINPROGRESS
                reader, writer = await asyncio.open_unix_connection(sock=connection, limit=MAX_ANSWER_BYTES)
                return cls(loop, connection, reader, writer)
            except BlockingIOError:
                connection.close()
                await asyncio.sleep(min(BACKLOG_POLL_S, _remaining_s(deadline_s)))
            except (FileNotFoundError, ConnectionRefusedError):
                connection.close()
                if retried:
                    raise
                retried = True
                await asyncio.sleep(min(RECONNECT_DELAY_S, _remaining_s(deadline_s)))
            except BaseException:
                connection.close()
                raise

    @property
    def is_inherited(self) -> bool:
        """True if another process opened the connection, before it forked this one."""
        return self._pid != os.getpid()

    @property
    def is_usable(self) -> bool:
        """True if calls on its loop may use the connection."""
        return self._error is None and not self.is_inherited

    def send(self, line: bytes) -> asyncio.Future[bytes]:
        """Queue a line and return the future of its answer. Lines and places are in the same order: nothing awaits here.

        Raises OSError if the connection has failed since it was opened.
        """
        if self._error is not None:
            raise self._error
        answer = self._loop.create_future()
        self._answers.append(answer)
        self._writer.write(line)
        return answer

    async def _read(self) -> None:
        import asyncio

        try:
            while True:
                line = await self._reader.readline()
                if not line.endswith(b"\n"):
                    raise ConnectionResetError("the connection ended before the answer")
                if not self._answers:
                    raise ConnectionAbortedError("the peer sent a line that nothing asked for")
                answer = self._answers.popleft()
                if not answer.done():
                    answer.set_result(line)
        except ValueError:
            self.close(ConnectionAbortedError("the answer does not end"))
        except OSError as error:
            self.close(error)
        except asyncio.CancelledError:
            # With all other tasks, as at the end of asyncio.run: nothing would read the answers to calls that they still make.
            if self._error is None:
                self.close(ConnectionAbortedError("the loop is ending"))
            raise

    def give_up_if_stuck(self, answer: asyncio.Future[bytes] | None) -> None:
        """Close the connection if it still owes ``answer``, whose time is over, and with it all older ones.

        The oldest may be that of a cancelled call, which notices nothing.
        """
        if answer in self._answers:
            self.close(ConnectionAbortedError("the sidecar did not answer"))

    def close(self, error: OSError) -> None:
        """Close the connection and fail the calls that wait for an answer, which repeat once."""
        self._error = error
        self._task.cancel()
        self._writer.close()
        while self._answers:
            answer = self._answers.popleft()
            if not answer.done():
                answer.set_exception(error)

    def abandon(self) -> None:
        """Close the socket of a loop that has ended, or this process's copy of its parent's; send nothing on it."""
        if self._error is None:
            self._error = ConnectionAbortedError("the connection was abandoned")
            self._connection.close()


class NullClient(_Calls[str]):
    """A client for tests without a sidecar: it keeps the events in ``events``, as they would be sent.

    A value that JSON cannot represent raises TypeError, as ``Client`` does.
    """

    def __init__(self, path: str = DEFAULT_PATH, **_options: Any) -> None:
        self.path = path
        self.events: list[dict[str, Any]] = []

    def close(self) -> None:
        """Do nothing; the events stay."""

    def __enter__(self) -> NullClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _send(self, type_: str, fields: dict[str, Any], common: Common) -> str:
        message_id = str(common.get("message_id") or uuid.uuid4())
        self.events.append(json.loads(_encode(_event(type_, message_id, fields, common, None))))
        return message_id


def _event(
    type_: str, message_id: str, fields: dict[str, Any], common: Common, write_key: str | None
) -> dict[str, Any]:
    event = {
        "type": type_,
        "messageId": message_id,
        "timestamp": common.get("timestamp") or datetime.now(timezone.utc),  # noqa: UP017 - Python 3.8
        "anonymousId": common.get("anonymous_id"),
        "context": common.get("context"),
        "integrations": common.get("integrations"),
        "writeKey": write_key,
        **fields,
    }
    return {name: value for name, value in event.items() if value is not None}


def _encode(event: dict[str, Any]) -> bytes:
    """Return the line of an event. Raises TypeError for a value that JSON cannot represent, and nothing else."""
    try:
        return json.dumps(event, default=_json_default, separators=(",", ":")).encode("ascii") + b"\n"
    except TypeError:
        raise
    # A cycle, a nesting too deep, a number too long; or anything that an object of the app raises when it is read.
    except Exception as error:
        raise TypeError(f"The event cannot be written as JSON ({type(error).__name__}: {error})") from error


def _json_default(value: Any) -> Any:
    """Convert values that apps put into properties and that JSON lacks. Raises TypeError for any other type."""
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.astimezone()).isoformat()  # without a zone it is local time
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, uuid.UUID):
        return str(value)
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, (set, frozenset, tuple)):
        return list(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON; use a text, number, boolean, list or dict")


def _check_answer(answer: bytes) -> None:
    """Return if the answer confirms that the event is stored and deliverable. Raises NotAccepted otherwise."""
    try:
        result = json.loads(answer)
        # A stored event can still be undeliverable: then it is accepted and listed under ``refused``.
        refusal = result if not result["success"] else next(iter(result.get("refused") or ()), None)
        refused = None if refusal is None else NotAccepted(str(refusal.get("code")), str(refusal.get("message")))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise NotAccepted(
            "bad_answer", f"The peer is not a px-sidecar; it answered {answer[:80]!r}. Check the path of the client."
        ) from None
    if refused is not None:
        raise refused


# The pytest plugin --------------------------------------------------------------------------------------------------


class TestSidecar:
    """A sidecar with a stand-in for PX, of one test: what the fixture ``px_sidecar`` returns."""

    __test__ = False  # pytest collects classes of this name

    def __init__(self, url: str, path: str, px_url: str) -> None:
        self.url = url
        """For SDKs, as in ``http://127.0.0.1:43210``."""
        self.path = path
        """The Unix socket, for ``Client(path)``."""
        self.px_url = px_url
        """The stand-in for PX."""

    def events(self, count: int = 0, timeout_s: float = 5.0) -> list[dict[str, Any]]:
        """Return the events as PX got them, once nothing is pending and at least ``count`` have arrived.

        Events that were dropped or refused are not among them: ``status()`` counts those. Raises AssertionError if
        ``timeout_s`` passes before.
        """
        deadline_s = time.monotonic() + timeout_s
        while True:
            pending = self.status()["pending"]
            got = [json.loads(line) for line in _get(f"{self.px_url}/sandbox/events").splitlines()]
            if not pending and len(got) >= count:
                return got
            if time.monotonic() > deadline_s:
                raise AssertionError(f"PX got {len(got)} of {count} events within {timeout_s} s; {pending} are pending")
            time.sleep(0.01)

    def status(self) -> dict[str, Any]:
        """Return the sidecar's status: ``accepted``, ``delivered``, ``dropped_by_reason``, ``dead_by_reason`` …"""
        status: dict[str, Any] = json.loads(_get(f"{self.url}/status"))
        return status


def _get(url: str) -> bytes:
    import urllib.request

    # Not through the proxy that the environment may name: it does not lead to this host.
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=5) as answer:
        data: bytes = answer.read()
    return data


def _run_sidecar() -> Iterator[TestSidecar]:
    """A sidecar and a stand-in for PX on free ports, for the time of one test; ``px-sidecar dev`` in a temporary folder."""
    import shutil
    import subprocess
    import tempfile

    beside = os.path.join(os.path.dirname(sys.executable), "px-sidecar")  # a virtual environment that is not activated
    program = shutil.which("px-sidecar") or shutil.which(beside)
    if program is None:
        raise RuntimeError("The fixture px_sidecar needs the command px-sidecar on PATH; run `pip install px-sidecar`.")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    # Not pytest's tmp_path: the path of a Unix socket is limited to about 100 bytes.
    with tempfile.TemporaryDirectory(prefix="px-sidecar-") as folder, open(f"{folder}/log", "w+b") as log:
        command = [program, "dev", "--listen", address]
        with subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log) as process:  # noqa: S603
            try:
                px_url = _wait_for_px_url(process, log.name)
                yield TestSidecar(f"http://{address}", f"{folder}/px-sidecar.sock", px_url)
            finally:
                process.terminate()


def _wait_for_px_url(process: Any, log: str) -> str:
    """Return the URL of the stand-in, which ``px-sidecar dev`` prints once it listens. Raises RuntimeError."""
    marker, deadline_s = "What PX got: curl -s ", time.monotonic() + 20
    while True:
        with open(log, encoding="utf-8", errors="replace") as file:
            text = file.read()
        line = next((line for line in text.splitlines(keepends=True) if line.startswith(marker)), "")
        if line.endswith("\n"):
            return line.strip()[len(marker) :].replace("/sandbox/events", "")
        if process.poll() is not None or time.monotonic() > deadline_s:
            raise RuntimeError(f"`px-sidecar dev` did not start: {text.strip()[-500:]}")
        time.sleep(0.01)


# Under pytest the module is a plugin: ``pytest_plugins = ["px_sidecar_client"]`` in conftest.py. pytest is loaded then,
# so nothing is imported that an app has not.
if "pytest" in sys.modules and hasattr(sys.modules["pytest"], "fixture"):
    px_sidecar = sys.modules["pytest"].fixture(name="px_sidecar")(_run_sidecar)
