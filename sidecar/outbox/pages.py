"""The pages of an SQLite file as they are, read without SQLite: for a file that it refuses or cannot follow.

Theory
------
Every row stands whole in one leaf page (long ones go on in a chain of overflow pages), and a leaf page can be read
without the pages that lead to it. So damage costs the rows it hits, and those whose way leads through it are still
found. The formats: https://www.sqlite.org/fileformat2.html, "B-tree Pages", "Record Format", "The Write-Ahead Log".

The newest version of a page may stand in the write-ahead log. Each frame there carries a checksum that continues the
one before it, which is why SQLite stops at the first bad frame and forgets all commits behind it. Taking up again with
the checksum that the bad frame *says* it has, the frames behind it can be verified all the same.
"""

import os
import sys
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

__all__ = ["PAGE_BYTES", "Pages", "Record", "commit_frames", "is_sound", "log_of"]

PAGE_BYTES: Final = 4096
_LOG_HEADER: Final = 32
_FRAME_HEADER: Final = 24
_FRAME: Final = _FRAME_HEADER + PAGE_BYTES
_MAGIC: Final = (0x377F0682, 0x377F0683)  # little-endian checksums, big-endian ones
_TABLE_LEAF: Final = 0x0D
_INDEX: Final = {0x02: 12, 0x0A: 8}  # inner and leaf pages of an index, and where their cell pointers begin
_LONGEST_RECORD: Final = 64 * 2**20
# Every so many pages one says to whom the others belong (auto_vacuum); it begins like a page of an index might.
_POINTER_MAP: Final = PAGE_BYTES // 5 + 1
_INT_BYTES: Final = (0, 1, 2, 3, 4, 6, 8)


class Record(NamedTuple):
    """One record; ``rowid`` is None for those of an index, and of a table WITHOUT ROWID, which is one."""

    rowid: int | None
    values: tuple[Any, ...]


def log_of(path: Path) -> Path:
    """Where the write-ahead log of a database stands."""
    return path.with_name(path.name + "-wal")


def commit_frames(log: Path) -> list[int]:
    """The numbers of the frames that claim to end a transaction of the newest generation, in ascending order.

    Reads the head of each frame only and verifies nothing, so that it takes milliseconds. If SQLite does not see one of
    them, something is wrong with it or a frame before it.
    """
    found = []
    with log.open("rb") as file:
        salts = _salts(file.fileno())
        for number in range(1, 1 + _frames(file.fileno())):
            head = os.pread(file.fileno(), _FRAME_HEADER, _LOG_HEADER + (number - 1) * _FRAME)
            if head[8:16] == salts and any(head[4:8]):
                found.append(number)
    return found


def is_sound(log: Path, number: int) -> bool:
    """Whether a frame's checksum is right, if that of the frame before is what this one says."""
    offset = _LOG_HEADER + (number - 1) * _FRAME
    with log.open("rb") as file:
        header = os.pread(file.fileno(), _LOG_HEADER, 0)
        before = os.pread(file.fileno(), _FRAME_HEADER, offset - _FRAME) if number > 1 else header[8:]
        frame = os.pread(file.fileno(), _FRAME, offset)
    return len(frame) == _FRAME and _follows(frame, _said(before), little=_u32(header, 0) != _MAGIC[1])


def _frames(log: int) -> int:
    return max(0, os.fstat(log).st_size - _LOG_HEADER) // _FRAME


def _salts(log: int) -> bytes:
    """The salts of the newest generation, which a writer makes anew; those of the first frames if the header is damaged."""
    header = os.pread(log, _LOG_HEADER, 0)
    little = _u32(header, 0) == _MAGIC[0]
    sound = len(header) == _LOG_HEADER and _u32(header, 0) in _MAGIC
    if sound and _checksum(header[:24], 0, 0, little=little) == (_u32(header, 24), _u32(header, 28)):
        return header[16:24]
    salts = b""
    for number in range(_frames(log)):
        before, salts = salts, os.pread(log, 8, _LOG_HEADER + number * _FRAME + 8)
        if salts == before and any(salts):  # not a hole
            break
    return salts


def _u32(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "big")


def _said(header: bytes) -> tuple[int, int]:
    """The checksum that the header of a frame says it has."""
    return _u32(header, 16), _u32(header, 20)


def _follows(frame: bytes, seed: tuple[int, int], *, little: bool) -> bool:
    """Whether a frame is sound behind one with the checksum ``seed``."""
    return _checksum(frame[:8] + frame[_FRAME_HEADER:], *seed, little=little) == _said(frame)


def _checksum(data: bytes, first: int, second: int, *, little: bool) -> tuple[int, int]:
    words = array("I", data)
    if little != (sys.byteorder == "little"):
        words.byteswap()
    for at in range(0, len(words), 2):
        first = (first + words[at] + second) & 0xFFFFFFFF
        second = (second + words[at + 1] + first) & 0xFFFFFFFF
    return first, second


class Pages:
    """The newest sound version of every page of the database at ``path`` and its log. Close it in the end.

    ``count`` is how many pages there are. ``older`` are versions that a damaged transaction has replaced: a row that
    the transaction moved may stand in the part of it that is lost, and is found there.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        self._log = log_of(path).open("rb", buffering=0) if log_of(path).exists() else None
        self._in_log: dict[int, int] = {}  # page number → offset in the log
        self.older: list[bytes] = []
        self.count = -(-os.fstat(self._file.fileno()).st_size // PAGE_BYTES)
        if self._log is not None:
            self._read_log(self._log.fileno())

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._log is not None:
            self._log.close()

    def page(self, number: int) -> bytes:
        """The newest sound version of a page, counted from 1; shorter or empty where the file ends."""
        offset = self._in_log.get(number)
        if offset is None or self._log is None:
            return os.pread(self._file.fileno(), PAGE_BYTES, (number - 1) * PAGE_BYTES)
        return os.pread(self._log.fileno(), PAGE_BYTES, offset)

    # The log --------------------------------------------------------------------------------------------------

    def _read_log(self, log: int) -> None:
        start = os.pread(log, _LOG_HEADER, 0)
        salts, little = _salts(log), _u32(start, 0) != _MAGIC[1]
        seed = (_u32(start, 24), _u32(start, 28))
        transaction: dict[int, int] = {}
        damaged = False
        for offset in range(_LOG_HEADER, _LOG_HEADER + _frames(log) * _FRAME, _FRAME):
            frame = os.pread(log, _FRAME, offset)
            ours = frame[8:16] == salts
            if ours and _follows(frame, seed, little=little):
                transaction[_u32(frame, 0)] = offset + _FRAME_HEADER
            else:
                damaged = True
            seed = _said(frame)
            if ours and _u32(frame, 4):
                self._commit(transaction, damaged=damaged)
                transaction, damaged = {}, False
        # What has no end was not committed, or its end is damaged: then older versions are asked, too.
        self._commit(transaction, damaged=True)

    def _commit(self, transaction: dict[int, int], *, damaged: bool) -> None:
        if damaged:
            self.older.extend(self.page(number) for number in transaction if number <= self.count)
        self._in_log.update(transaction)
        self.count = max(self.count, *transaction) if transaction else self.count

    # Records --------------------------------------------------------------------------------------------------

    def records(self, number: int) -> list[Record]:
        """What can be read of a page; nothing if there are no records in it."""
        if number > 1 and (number - 2) % _POINTER_MAP == 0:
            return []
        return self.records_of(self.page(number), 100 if number == 1 else 0)

    def records_of(self, page: bytes, start: int = 0) -> list[Record]:
        """The same of the bytes of a page.

        A page whose first byte is damaged is tried as one of a table. A zero there is that of an overflow page (up to
        64 GiB of file), and those hold what apps have sent: they are never taken for a page of records.
        """
        kind = page[start] if len(page) == PAGE_BYTES else 0
        found: list[Record] = []
        if kind in _INDEX:
            found = list(self._cells(page, start, _INDEX[kind], rowids=False, skip=4 if kind == 0x02 else 0))
        return found or (list(self._cells(page, start, 8, rowids=True, skip=0)) if kind else [])

    def _cells(self, page: bytes, start: int, pointers: int, *, rowids: bool, skip: int) -> Iterator[Record]:
        first = start + pointers
        cells = min(int.from_bytes(page[start + 3 : start + 5], "big"), (PAGE_BYTES - first) // 2)
        for at in range(first, first + 2 * cells, 2):
            offset = int.from_bytes(page[at : at + 2], "big") + skip
            try:
                size, offset = _varint(page, offset)
                rowid, offset = _varint(page, offset) if rowids else (None, offset)
                yield Record(rowid, _values(self._payload(page, offset, size, rowids=rowids)))
            except (IndexError, ValueError):
                continue  # this cell is damaged; the others of its page are not

    def _payload(self, page: bytes, offset: int, size: int, *, rowids: bool) -> bytes:
        """The bytes of a record, its overflow pages included. Raises ValueError if they are not all there."""
        if not 0 < size < _LONGEST_RECORD:
            raise ValueError(size)
        most = PAGE_BYTES - 35 if rowids else (PAGE_BYTES - 12) * 64 // 255 - 23
        here = size
        if size > most:
            least = (PAGE_BYTES - 12) * 32 // 255 - 23
            here = least + (size - least) % (PAGE_BYTES - 4)
            here = here if here <= most else least
        parts = [page[offset : offset + here]]
        missing = size - here
        following = _u32(page, offset + here) if missing else 0
        while missing > 0:
            more = self.page(following) if 0 < following <= self.count else b""
            if len(more) != PAGE_BYTES:
                raise ValueError(following)
            parts.append(more[4 : 4 + missing])
            missing -= PAGE_BYTES - 4
            following = _u32(more, 0)
        payload = b"".join(parts)
        if len(payload) != size:
            raise ValueError(size)
        return payload


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of one to nine bytes, and where the next thing begins. Raises IndexError at the end of the data."""
    value = 0
    for length in range(8):
        byte = data[at + length]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at + length + 1
    value = value << 8 | data[at + 8]
    return value - (1 << 64) if value >> 63 else value, at + 9


def _values(payload: bytes) -> tuple[Any, ...]:
    """The columns of a record. Raises ValueError or IndexError if it is none."""
    header, at = _varint(payload, 0)
    types: list[int] = []
    while at < header:
        kind, at = _varint(payload, at)
        types.append(kind)
    if at != header:
        raise ValueError(header)
    values: list[Any] = []
    for kind in types:
        value, at = _value(payload, at, kind)
        values.append(value)
    if at != len(payload):
        raise ValueError(at)
    return tuple(values)


def _value(payload: bytes, at: int, kind: int) -> tuple[Any, int]:
    if kind >= 12:
        end = at + (kind - 12) // 2
        data = payload[at:end]
        if end > len(payload):
            raise ValueError(end)
        return (data.decode("utf-8", "replace") if kind % 2 else data), end
    if kind == 0:
        return None, at
    if kind in (8, 9):
        return kind - 8, at
    if kind > 6:  # a float: our tables have none; or nothing that exists
        raise ValueError(kind)
    end = at + _INT_BYTES[kind]
    return int.from_bytes(payload[at:end], "big", signed=True), end
