"""A small client for Python apps: an event is on disk at the sidecar when the call returns, or the caller sees why not.

    from sidecar.client import Client

    events = Client()
    events.identify("u-1", {"email": "ann@example.com"})
    events.track("u-1", "Products Searched", {"query": "shoes"})

Theory
------
One line of JSON out, one line back, over the Unix socket. A call that fails on the way is repeated once on a new
connection with the same ``messageId``, by which the sidecar recognises what it has already stored. So a restart of the
sidecar costs a call nothing but time.

Rules
-----
* Standard library only, and nothing else of this package: an app imports this and nothing that is heavy.
* A connection belongs to the process that opened it. After a fork the child opens its own, and closes its copy of the
  parent's without a word on the wire.
* A connection on which anything went wrong is closed: a late answer must not be taken for the next one's.
"""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from types import TracebackType
from typing import Any, TypedDict, Unpack

__all__ = ["Client", "Common", "NotAccepted", "Unavailable"]

DEFAULT_PATH = "/run/px-sidecar/events.sock"
LONGEST_ANSWER_BYTES = 2**20
ABSENT_PAUSE_S = 0.1  # a sidecar without socket activation may be starting again; one that is off must not slow the app
FULL_PAUSE_S = 0.01


class NotAccepted(Exception):
    """The sidecar refused the event. ``code`` says why in a word (``bad_event``, ``outbox_full``, ``disk_full`` …).

    ``bad_event`` will be refused again; ``outbox_full`` and ``disk_full`` will not, once there is room.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{message} ({code})")
        self.code = code
        self.message = message


class Unavailable(NotAccepted):
    """There was no answer within the time given: the sidecar is not running, not reachable, or stuck.

    If ``maybe_accepted`` is true the event was on its way and may be stored; sending it again with the same
    ``message_id`` stores it at most once.
    """

    def __init__(self, message: str, *, maybe_accepted: bool) -> None:
        super().__init__("unavailable", message)
        self.maybe_accepted = maybe_accepted


class Common(TypedDict, total=False):
    """What every method takes by name. ``timestamp`` is a datetime (local, if it has no zone) or an ISO 8601 text."""

    anonymous_id: str | None
    context: Mapping[str, Any] | None
    integrations: Mapping[str, Any] | None
    message_id: str | None
    timestamp: datetime | str | None


class Client:
    """The way to one sidecar; make one per app and keep it.

    ``path`` is the sidecar's Unix socket. ``timeout_s`` bounds each call as a whole: waiting for other threads,
    connecting, and the answer. ``write_key`` chooses the source, where the sidecar's configuration has more than one.

    Safe to share between threads, which then send one after the other, and across forks (gunicorn's ``--preload``,
    multiprocessing, Celery). Each method returns the ``messageId`` after the sidecar has stored the event, and raises
    NotAccepted, or its subclass Unavailable, if it has not; TypeError if a value has no form in JSON.
    """

    def __init__(self, path: str = DEFAULT_PATH, *, timeout_s: float = 5.0, write_key: str | None = None) -> None:
        self._path = path
        self._timeout_s = timeout_s
        self._write_key = write_key
        self._lines: dict[int, _Line] = {}  # by process id

    def identify(
        self, user_id: str | int | None, traits: Mapping[str, Any] | None = None, **common: Unpack[Common]
    ) -> str:
        """Who a user is."""
        return self._send("identify", {"userId": user_id, "traits": dict(traits or {})}, common)

    def track(
        self,
        user_id: str | int | None,
        event: str,
        properties: Mapping[str, Any] | None = None,
        **common: Unpack[Common],
    ) -> str:
        """What a user did."""
        return self._send("track", {"userId": user_id, "event": event, "properties": dict(properties or {})}, common)

    def page(
        self,
        user_id: str | int | None,
        name: str | None = None,
        properties: Mapping[str, Any] | None = None,
        **common: Unpack[Common],
    ) -> str:
        """Which page a user saw."""
        return self._send("page", {"userId": user_id, "name": name, "properties": dict(properties or {})}, common)

    def screen(
        self,
        user_id: str | int | None,
        name: str | None = None,
        properties: Mapping[str, Any] | None = None,
        **common: Unpack[Common],
    ) -> str:
        """Which screen of a mobile app a user saw."""
        return self._send("screen", {"userId": user_id, "name": name, "properties": dict(properties or {})}, common)

    def group(
        self,
        user_id: str | int | None,
        group_id: str | int,
        traits: Mapping[str, Any] | None = None,
        **common: Unpack[Common],
    ) -> str:
        """Which account a user belongs to."""
        return self._send("group", {"userId": user_id, "groupId": group_id, "traits": dict(traits or {})}, common)

    def close(self) -> None:
        """Closes this process's connection. A later call opens a new one."""
        line = self._lines.pop(os.getpid(), None)
        if line is not None:
            with line.lock:
                line.hang_up()

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _send(self, type_: str, fields: dict[str, Any], common: Common) -> str:
        """Makes the event, has it stored, and returns its messageId."""
        event = {
            "type": type_,
            "messageId": common.get("message_id") or str(uuid.uuid4()),
            "timestamp": common.get("timestamp") or datetime.now(UTC),
            "anonymousId": common.get("anonymous_id"),
            "context": common.get("context"),
            "integrations": common.get("integrations"),
            "writeKey": self._write_key,
            **fields,
        }
        said = {name: value for name, value in event.items() if value is not None}
        text = json.dumps(said, default=_in_json, separators=(",", ":")).encode("ascii") + b"\n"
        _judge(self._line().ask(text, time.monotonic() + self._timeout_s))
        return str(event["messageId"])

    def _line(self) -> "_Line":
        """This process's line. Two threads that come first at once get the same: ``setdefault`` is atomic."""
        me = os.getpid()
        line = self._lines.get(me)
        if line is None:
            line = self._lines.setdefault(me, _Line(self._path))
            for other in list(self._lines):
                if other != me and (inherited := self._lines.pop(other, None)):
                    inherited.hang_up()  # without its lock, which a thread of the parent may have held at the fork
        return line


class _Line:
    """One connection at most, and the lock that gives each caller its own answer."""

    def __init__(self, path: str) -> None:
        self.lock = threading.Lock()
        self._path = path
        self._socket: socket.socket | None = None

    def hang_up(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def ask(self, text: bytes, deadline_s: float) -> bytes:
        """The sidecar's line in answer to ours. Raises Unavailable."""
        if not self.lock.acquire(timeout=max(0.0, deadline_s - time.monotonic())):
            raise Unavailable(f"Other threads used the time to ask the sidecar at {self._path}.", maybe_accepted=False)
        try:
            return self._ask_twice(text, deadline_s)
        except BaseException:
            self.hang_up()
            raise
        finally:
            self.lock.release()

    def _ask_twice(self, text: bytes, deadline_s: float) -> bytes:
        on_its_way = False
        for last_try in (False, True):
            try:
                if self._socket is None:
                    self._socket = _connect(self._path, deadline_s)
                on_its_way = True
                return _exchange(self._socket, text, deadline_s)
            except TimeoutError:
                raise Unavailable(
                    f"The sidecar at {self._path} did not answer in time; look at `px-sidecar status`.",
                    maybe_accepted=on_its_way,
                ) from None
            except OSError as error:  # no connection; or EPIPE, ECONNRESET or the end of file on the one there was
                if last_try or self._socket is None:
                    raise Unavailable(
                        f"The sidecar at {self._path} cannot be reached ({error.strerror or error}); is it running?",
                        maybe_accepted=on_its_way,
                    ) from error
                self.hang_up()
        raise AssertionError("the second try returns or raises")


def _connect(path: str, deadline_s: float) -> socket.socket:
    """A connection. Asks once more if nobody listens, and waits while the queue of connections is full.

    A Unix socket reports a full queue as EAGAIN at once, whatever the timeout.
    """
    absent = False
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(_left(deadline_s))
            connection.connect(path)
            return connection
        except BlockingIOError:
            connection.close()
            time.sleep(min(FULL_PAUSE_S, _left(deadline_s)))
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
            if absent:
                raise
            absent = True
            time.sleep(min(ABSENT_PAUSE_S, _left(deadline_s)))
        except BaseException:
            connection.close()
            raise


def _exchange(connection: socket.socket, text: bytes, deadline_s: float) -> bytes:
    connection.settimeout(_left(deadline_s))
    connection.sendall(text)
    answer = b""
    while not answer.endswith(b"\n"):
        connection.settimeout(_left(deadline_s))
        part = connection.recv(65_536)
        if not part:
            raise ConnectionResetError("the connection ended before the answer")
        answer += part
        if len(answer) > LONGEST_ANSWER_BYTES:
            raise ConnectionAbortedError("the answer does not end")
    return answer


def _left(deadline_s: float) -> float:
    """Seconds until the deadline. Raises TimeoutError when it has passed."""
    left_s = deadline_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    return left_s


def _judge(answer: bytes) -> None:
    """Returns if the answer says that the event was stored as one that can be delivered. Raises NotAccepted."""
    try:
        said = json.loads(answer)
        verdict = said if not said["success"] else next(iter(said.get("refused") or ()), None)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise NotAccepted("bad_answer", f"What answers there is no px-sidecar: {answer[:80]!r}") from None
    if verdict is not None:
        raise NotAccepted(str(verdict.get("code")), str(verdict.get("message")))


def _in_json(value: Any) -> Any:
    """The form in JSON of what apps put into properties and JSON has no word for."""
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.astimezone()).isoformat()  # without a zone it is local time
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, uuid.UUID):
        return str(value)
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, set | frozenset | tuple):
        return list(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} has no form in JSON; give a text, number, boolean, list or dict")
