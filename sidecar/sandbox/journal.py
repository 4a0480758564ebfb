"""The exact log: what arrived when, what was answered, and what was stored.

Theory
------
Every request is one record in an append-only file, written before it is answered; memory holds only columns of numbers
(about 50 bytes a request) and each name once. Bodies are read back from the file when somebody asks. The file is the
one given as ``state``, which a killed sandbox takes up again when it is restarted, or an unnamed temporary one.

A record is a line of text, the body, and a line end::

    <arrival_s> <status> <flags> <method> <path> <date of the stored event> <length of the body>\\n<body>\\n

``arrival_s`` is by CLOCK_BOOTTIME, so arrivals of several runs of the sandbox on one host are on one scale. A last
record that was cut by a kill is cut off when the file is taken up again.
"""

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
"""Flag: the request was processed and its answer deliberately lost."""


class LogEntry(msgspec.Struct, frozen=True):
    """One request as the log shows it. ``status`` 0: no answer was sent (hang, refused in an outage)."""

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
    arrival_s: "array[float]"
    status: "array[int]"
    flags: "array[int]"
    target: "array[int]"  # method and path, as an index into the names
    user: "array[int]"
    name: "array[int]"
    date_ms: "array[int]"
    digest: "array[int]"
    body_at: "array[int]"
    body_bytes: "array[int]"


class Journal:
    """Columns, names and the file. Not safe for more than one thread or process."""

    def __init__(self, state: Path | None = None) -> None:
        self._file = tempfile.TemporaryFile() if state is None else _open(state)  # noqa: SIM115 - held for its lifetime
        self._end = 0
        self._clear_columns()
        self._end = self._take_up()
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
        """Close the file. A state file stays."""
        self._file.close()

    def clear(self) -> None:
        """Forget everything, in the file too."""
        os.ftruncate(self._file.fileno(), 0)
        self._end = 0
        self._clear_columns()

    def append(
        self, arrival_s: float, method: str, path: str, body: bytes, status: int, flags: int, date_ms: int
    ) -> int:
        """Add a request and return its index. It survives a kill of this process (not of the host) when this returns.

        ``date_ms``: of the stored event. Raises OSError when the file cannot be written.
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
        shown = _decoder.decode(body) if flags & STORED else _Shown()
        columns.arrival_s.append(arrival_s)
        columns.status.append(status)
        columns.flags.append(flags)
        self.stored_count += flags & STORED
        columns.target.append(self._intern(f"{method} {path}"))
        columns.user.append(self._intern(shown.identifyId))
        columns.name.append(self._intern(shown.eventName))
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
        """The number that stands for ``name`` in the columns, or None if it never came."""
        return self._index_of.get(name)

    def body(self, index: int) -> bytes:
        """The body of the request ``index``."""
        return os.pread(self._file.fileno(), self.columns.body_bytes[index], self.columns.body_at[index])

    def event(self, index: int) -> dict[str, Any]:
        """The stored event of the request ``index``."""
        event: dict[str, Any] = msgspec.json.decode(self.body(index))
        return event

    def stored(self) -> Iterator[int]:
        """The indexes of the requests that stored an event, in order of arrival."""
        return (index for index, flags in enumerate(self.columns.flags) if flags & STORED)

    def entry(self, index: int) -> LogEntry:
        """The request ``index`` as the log shows it."""
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
        """Method, path, status and body of every request, in order of arrival."""
        for index, target in enumerate(self.columns.target):
            method, _, path = self.names[target].partition(" ")
            yield method, path, self.columns.status[index], self.body(index)

    def _take_up(self) -> int:
        """Read the records of an earlier run; returns where the last whole one ends."""
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
                break
            end = at + len(body)
        return end


class _Shown(msgspec.Struct):
    """The part of a stored event that the columns keep; judged before, so the types are certain."""

    identifyId: str = ""
    eventName: str = ""


_decoder = msgspec.json.Decoder(_Shown)


def _message_id(event: dict[str, Any]) -> str | None:
    found = event.get("eventId", event.get("attributes", {}).get("messageId"))
    return found if isinstance(found, str) else None


def _open(path: Path) -> Any:
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+b")
