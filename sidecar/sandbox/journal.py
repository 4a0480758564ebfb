"""The exact log of requests: arrival, answer, and the stored event.

Theory
------
Every request is one record in an append-only file, written before it is answered. Memory holds only columns of numbers
(about 50 bytes per request) and each name once; bodies are read back from the file on demand. The file is the one given
as ``state``, which a restarted sandbox continues after a kill, or an unnamed temporary file.

A record is a line of text, the body, and a line end::

    <arrival_s> <status> <flags> <method> <path> <date of the stored event> <length of the body>\\n<body>\\n

``arrival_s`` is a time of CLOCK_BOOTTIME, so arrivals of several runs of the sandbox on one host share one scale, up to a
boot: those of earlier boots are dated back in memory, so that arrivals ascend and none is in the future. A last record that a kill left incomplete is truncated when the file is opened again.
"""

import errno
import fcntl
import math
import os
import tempfile
from array import array
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

__all__ = ["ANSWER_DROPPED", "STORED", "Journal", "LogEntry"]

STORED = 1
"""Flag: the request stored a custom event."""
ANSWER_DROPPED = 2
"""Flag: the request was processed and its answer deliberately dropped."""

BOOT_S = 1.0
"""The least time that a boot takes: no second counts requests from before and after it."""


class LogEntry(msgspec.Struct, frozen=True):
    """One request in the log. ``status`` 0 means that no answer was sent (a hang, or a refusal in an outage)."""

    index: int
    arrival_s: float
    method: str
    path: str
    status: int
    stored: bool
    answer_dropped: bool
    identifyId: str | None
    eventName: str | None
    messageId: str | None


class _Columns(NamedTuple):
    """One array per attribute; the position in each is the index of the request."""

    arrival_s: "array[float]"
    status: "array[int]"
    flags: "array[int]"
    target: "array[int]"  # method and path; this and the next two are positions in ``names``
    user: "array[int]"
    name: "array[int]"
    date_ms: "array[int]"
    digest: "array[int]"
    body_at: "array[int]"
    body_bytes: "array[int]"


class Journal:
    """The columns, the names and the file. Not safe for more than one thread or process.

    ``now_s`` is the time of CLOCK_BOOTTIME at which a file of an earlier run is opened.
    """

    def __init__(self, state: Path | None = None, now_s: float = math.inf) -> None:
        self._file = tempfile.TemporaryFile() if state is None else _open(state)  # noqa: SIM115 - stays open
        self._end = 0
        self._clear_columns()
        try:
            self._end = self._recover()
            self._date_back(now_s)
        except BaseException:
            self._file.close()
            raise
        os.ftruncate(self._file.fileno(), self._end)

    def _clear_columns(self) -> None:
        self.stored_count = 0
        self.columns = _Columns(
            array("d"),
            array("H"),
            array("B"),
            array("I"),
            array("I"),
            array("I"),
            array("q"),
            array("Q"),
            array("Q"),
            array("I"),
        )
        self.names: list[str] = [""]
        self._index_of: dict[str, int] = {"": 0}

    def __len__(self) -> int:
        return len(self.columns.arrival_s)

    def close(self) -> None:
        """Close the file. A state file is kept."""
        self._file.close()

    def clear(self) -> None:
        """Forget all requests, in memory and in the file."""
        os.ftruncate(self._file.fileno(), 0)
        self._end = 0
        self._clear_columns()

    def append(
        self, arrival_s: float, method: str, path: str, body: bytes, status: int, flags: int, date_ms: int
    ) -> int:
        """Append a request and return its index. ``date_ms`` is the date of the stored event.

        After the return the request survives a kill of this process, but not a crash of the host. Raises OSError if the
        file cannot be written.
        """
        head = f"{arrival_s:.6f} {status} {flags} {method} {path} {date_ms} {len(body)}\n".encode()
        os.pwrite(self._file.fileno(), b"%b%b\n" % (head, body), self._end)
        self._add(arrival_s, method, path, body, status, flags, date_ms, self._end + len(head))
        self._end += len(head) + len(body) + 1
        return len(self) - 1

    def _add(
        self, arrival_s: float, method: str, path: str, body: bytes, status: int, flags: int, date_ms: int, at: int
    ) -> None:
        columns = self.columns
        # Only judged events are decoded, so this cannot fail.
        fields = _decoder.decode(body) if flags & STORED else _StoredFields()
        columns.arrival_s.append(arrival_s)
        columns.status.append(status)
        columns.flags.append(flags)
        self.stored_count += flags & STORED
        columns.target.append(self._intern(f"{method} {path}"))
        columns.user.append(self._intern(fields.identifyId))
        columns.name.append(self._intern(fields.eventName))
        columns.date_ms.append(date_ms)
        columns.digest.append(int.from_bytes(blake2b(body, digest_size=8).digest(), "big"))
        columns.body_at.append(at)
        columns.body_bytes.append(len(body))

    def _intern(self, name: str) -> int:
        index = self._index_of.get(name)
        if index is None:
            index = self._index_of[name] = len(self.names)
            self.names.append(name)
        return index

    def index_of_name(self, name: str) -> int | None:
        """Return the number of ``name`` in the columns, or None if it has not occurred."""
        return self._index_of.get(name)

    def body(self, index: int) -> bytes:
        """Return the body of request ``index``."""
        return os.pread(self._file.fileno(), self.columns.body_bytes[index], self.columns.body_at[index])

    def event(self, index: int) -> dict[str, Any]:
        """Return the stored event of request ``index``."""
        event: dict[str, Any] = msgspec.json.decode(self.body(index))
        return event

    def stored(self) -> Iterator[int]:
        """Return the indexes of the requests that stored an event, in order of arrival."""
        return (index for index, flags in enumerate(self.columns.flags) if flags & STORED)

    def entry(self, index: int) -> LogEntry:
        """Return the log entry of request ``index``."""
        columns = self.columns
        method, _, path = self.names[columns.target[index]].partition(" ")
        flags = columns.flags[index]
        return LogEntry(
            index,
            columns.arrival_s[index],
            method,
            path,
            columns.status[index],
            bool(flags & STORED),
            bool(flags & ANSWER_DROPPED),
            self.names[columns.user[index]] or None,
            self.names[columns.name[index]] or None,
            _message_id(self.event(index)) if flags & STORED else None,
        )

    def requests(self) -> Iterator[tuple[str, str, int, bytes]]:
        """Yield method, path, status and body of every request, in order of arrival."""
        for index, target in enumerate(self.columns.target):
            method, _, path = self.names[target].partition(" ")
            yield method, path, self.columns.status[index], self.body(index)

    def _recover(self) -> int:
        """Read the records of an earlier run and return the offset after the last complete one."""
        end = 0
        self._file.seek(0)
        while line := self._file.readline():
            try:
                arrival_s, status, flags, method, path, date_ms, length = line.decode().split(" ")
                body = self._file.read(int(length) + 1)
                if len(body) != int(length) + 1:
                    break
                at = end + len(line)
                self._add(float(arrival_s), method, path, body[:-1], int(status), int(flags), int(date_ms), at)
            except ValueError:
                # A kill leaves the beginning of a record. Anything else is a file of another program, which stays as it is.
                if not end and (line.endswith(b"\n") or not line[:1].isdigit()):
                    raise OSError(errno.EINVAL, "it is not a log of the sandbox") from None
                break
            end = at + len(body)
        return end

    def _date_back(self, now_s: float) -> None:
        """Move arrivals of earlier boots before those of later ones, and all of them before ``now_s``.

        The limits look up arrivals by bisection, and the report counts with two pointers: both need them to ascend.
        """
        arrivals, later_s, shift_s = self.columns.arrival_s, now_s, 0.0
        for index in range(len(arrivals) - 1, -1, -1):
            # The clock started from 0 between this one and the next. A record is rounded, by less than a millisecond.
            if arrivals[index] + shift_s > later_s + 0.001:
                shift_s = later_s - BOOT_S - arrivals[index]
            later_s = arrivals[index] = arrivals[index] + shift_s


class _StoredFields(msgspec.Struct):
    """The fields of a stored event that the columns keep. The event was judged before, so the types are certain."""

    identifyId: str = ""
    eventName: str = ""


_decoder = msgspec.json.Decoder(_StoredFields)


def _message_id(event: dict[str, Any]) -> str | None:
    message_id = event.get("eventId", event.get("attributes", {}).get("messageId"))
    return message_id if isinstance(message_id, str) else None


def _open(path: Path) -> Any:
    """Open and lock a state file until it is closed: a second sandbox would cut and overwrite records. Raises OSError."""
    file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+b")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise OSError(errno.EAGAIN, "another process uses it") from None
    return file
