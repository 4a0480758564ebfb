"""Read the pages of an SQLite file without SQLite: for a damaged file that SQLite refuses or cannot follow.

Theory
------
Every row is in one leaf page (a long row continues in a chain of overflow pages), and a leaf page can be read without
the inner pages that point to it. So damage costs the rows it hits, and not the rows that are reached through the
damaged page. The formats: https://www.sqlite.org/fileformat2.html, "B-tree Pages", "Record Format", "The Write-Ahead
Log".

The newest version of a page may be in the write-ahead log (WAL). The checksum of each frame continues that of the frame
before it. So SQLite stops at the first bad frame and ignores all commits after it. This module continues with the
checksum that the bad frame *states*: the frames after it can then be verified.
"""

import os
import sys
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

__all__ = ["PAGE_BYTES", "Pages", "Record", "commit_frames", "frame_is_valid", "wal_path"]

PAGE_BYTES: Final = 4096
_WAL_HEADER: Final = 32
_FRAME_HEADER: Final = 24
_FRAME: Final = _FRAME_HEADER + PAGE_BYTES
_MAGIC: Final = (0x377F0682, 0x377F0683)  # little-endian checksums, big-endian checksums
_INDEX: Final = {0x02: 12, 0x0A: 8}  # inner and leaf pages of an index: type byte → offset of the cell pointers
_LONGEST_RECORD: Final = 64 * 2**20
# With auto_vacuum one page in this many is a pointer map; its first byte can look like that of an index page.
_POINTER_MAP: Final = PAGE_BYTES // 5 + 1
_INT_BYTES: Final = (0, 1, 2, 3, 4, 6, 8)  # length of an integer by its serial type


class Record(NamedTuple):
    """One record; ``rowid`` is None in an index and in a table WITHOUT ROWID, which is stored as an index."""

    rowid: int | None
    values: tuple[Any, ...]


def wal_path(path: Path) -> Path:
    """Return the path of the write-ahead log of a database."""
    return path.with_name(path.name + "-wal")


def commit_frames(wal: Path) -> list[int]:
    """Return the numbers of the frames that claim to end a transaction of the current generation, in ascending order.

    Reads only the header of each frame and verifies nothing, so it takes milliseconds. If SQLite does not see one of
    them, that frame or one before it is damaged or was not written completely.
    """
    numbers = []
    with wal.open("rb") as file:
        salts = _salts(file.fileno())
        for number in range(1, 1 + _frame_count(file.fileno())):
            head = os.pread(file.fileno(), _FRAME_HEADER, _WAL_HEADER + (number - 1) * _FRAME)
            # Bytes 4 to 7 are the size of the database after the commit, 0 in a frame that does not end a transaction.
            if head[8:16] == salts and any(head[4:8]):
                numbers.append(number)
    return numbers


def frame_is_valid(wal: Path, number: int) -> bool:
    """Return True if the checksum of a frame is right, given the checksum that the frame before it states."""
    offset = _WAL_HEADER + (number - 1) * _FRAME
    with wal.open("rb") as file:
        header = os.pread(file.fileno(), _WAL_HEADER, 0)
        before = os.pread(file.fileno(), _FRAME_HEADER, offset - _FRAME) if number > 1 else header[8:]
        frame = os.pread(file.fileno(), _FRAME, offset)
    return len(frame) == _FRAME and _continues(frame, _stated_checksum(before), little=_u32(header, 0) != _MAGIC[1])


def _frame_count(wal: int) -> int:
    return max(0, os.fstat(wal).st_size - _WAL_HEADER) // _FRAME


def _salts(wal: int) -> bytes:
    """Return the salts of the current generation; those of the first frames if the header is damaged.

    A writer changes the salts whenever it uses the WAL from its beginning again: frames with other salts are left over.
    """
    header = os.pread(wal, _WAL_HEADER, 0)
    little = _u32(header, 0) == _MAGIC[0]
    complete = len(header) == _WAL_HEADER and _u32(header, 0) in _MAGIC
    if complete and _checksum(header[:24], 0, 0, little=little) == (_u32(header, 24), _u32(header, 28)):
        return header[16:24]
    salts = b""
    for number in range(_frame_count(wal)):
        before, salts = salts, os.pread(wal, 8, _WAL_HEADER + number * _FRAME + 8)
        if salts == before and any(salts):  # all zeros would be a hole in the file
            break
    return salts


def _u32(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "big")


def _stated_checksum(header: bytes) -> tuple[int, int]:
    """Return the checksum that is written in the header of a frame."""
    return _u32(header, 16), _u32(header, 20)


def _continues(frame: bytes, seed: tuple[int, int], *, little: bool) -> bool:
    """Return True if the checksum of a frame continues the checksum ``seed`` of the frame before it."""
    return _checksum(frame[:8] + frame[_FRAME_HEADER:], *seed, little=little) == _stated_checksum(frame)


def _checksum(data: bytes, first: int, second: int, *, little: bool) -> tuple[int, int]:
    """Return the checksum of https://www.sqlite.org/fileformat2.html, "Checksum Algorithm", continued from a seed."""
    words = array("I", data)
    if little != (sys.byteorder == "little"):
        words.byteswap()
    for at in range(0, len(words), 2):
        first = (first + words[at] + second) & 0xFFFFFFFF
        second = (second + words[at + 1] + first) & 0xFFFFFFFF
    return first, second


class Pages:
    """The newest valid version of every page of the database at ``path`` and its WAL. To be closed by the caller.

    ``count`` is the number of pages. ``wal_offsets`` maps the number of each page whose newest version is in the WAL to
    its offset there. ``older`` holds page versions that an incomplete transaction has replaced: a row that the
    transaction moved may be in the part of it that is lost, and is then still in the older version. ``frames_lost`` is
    the number of frames of the current generation that are damaged.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        self._wal = wal_path(path).open("rb", buffering=0) if wal_path(path).exists() else None
        self.wal_offsets: dict[int, int] = {}
        self.older: list[bytes] = []
        self.frames_lost = 0
        self.count = -(-os.fstat(self._file.fileno()).st_size // PAGE_BYTES)
        if self._wal is not None:
            self._read_wal(self._wal.fileno())

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._wal is not None:
            self._wal.close()

    def page(self, number: int) -> bytes:
        """Return the newest valid version of a page, counted from 1; shorter or empty where the file ends."""
        offset = self.wal_offsets.get(number)
        if offset is None or self._wal is None:
            return os.pread(self._file.fileno(), PAGE_BYTES, (number - 1) * PAGE_BYTES)
        return os.pread(self._wal.fileno(), PAGE_BYTES, offset)

    # The write-ahead log --------------------------------------------------------------------------------------

    def _read_wal(self, wal: int) -> None:
        start = os.pread(wal, _WAL_HEADER, 0)
        salts, little = _salts(wal), _u32(start, 0) != _MAGIC[1]
        seed = (_u32(start, 24), _u32(start, 28))
        transaction: dict[int, int] = {}
        damaged = False
        for offset in range(_WAL_HEADER, _WAL_HEADER + _frame_count(wal) * _FRAME, _FRAME):
            frame = os.pread(wal, _FRAME, offset)
            current = frame[8:16] == salts
            if current and _continues(frame, seed, little=little):
                transaction[_u32(frame, 0)] = offset + _FRAME_HEADER
            else:
                damaged = True
                self.frames_lost += current
            # The stated checksum, right or not: only this lets the frames after a damaged one be verified.
            seed = _stated_checksum(frame)
            if current and _u32(frame, 4):
                self._apply(transaction, damaged=damaged)
                transaction, damaged = {}, False
        # Frames without an end were not committed, or their end is damaged: so the older versions are kept as well.
        self._apply(transaction, damaged=True)

    def _apply(self, transaction: dict[int, int], *, damaged: bool) -> None:
        """Make the pages of a transaction the newest versions."""
        if damaged:
            self.older.extend(self.page(number) for number in transaction if number <= self.count)
        self.wal_offsets.update(transaction)
        self.count = max(self.count, *transaction) if transaction else self.count

    # Records --------------------------------------------------------------------------------------------------

    def records(self, number: int) -> list[Record]:
        """Return the records of a page that can be read; empty for a page that holds none."""
        if number > 1 and (number - 2) % _POINTER_MAP == 0:
            return []
        return self.records_of(self.page(number), 100 if number == 1 else 0)

    def records_of(self, page: bytes, start: int = 0) -> list[Record]:
        """Return the records in the bytes of a page whose header begins at ``start``.

        A page with an unknown type byte is read as a table leaf, because that byte may be damaged. A zero is the first
        byte of an overflow page (in files up to 64 GiB). Overflow pages hold text that apps have sent: they are never
        read as a page of records, or a client could inject rows.
        """
        kind = page[start] if len(page) == PAGE_BYTES else 0
        records: list[Record] = []
        if kind in _INDEX:
            records = list(self._cells(page, start, _INDEX[kind], rowids=False, skip=4 if kind == 0x02 else 0))
        return records or (list(self._cells(page, start, 8, rowids=True, skip=0)) if kind else [])

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
                continue  # this cell is damaged; the other cells of the page may be readable

    def _payload(self, page: bytes, offset: int, size: int, *, rowids: bool) -> bytes:
        """Return the bytes of a record, including its overflow pages. Raises ValueError if some are missing.

        The split between page and overflow follows fileformat2.html, "Cell Payload Overflow Pages".
        """
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
    """Decode a variable-length integer of one to nine bytes; return it and the offset after it.

    Raises IndexError at the end of the data.
    """
    value = 0
    for length in range(8):
        byte = data[at + length]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at + length + 1
    value = value << 8 | data[at + 8]
    return value - (1 << 64) if value >> 63 else value, at + 9


def _values(payload: bytes) -> tuple[Any, ...]:
    """Decode the columns of a record. Raises ValueError or IndexError if the bytes are not a record."""
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
    if kind > 6:  # a float, which the outbox does not store, or a reserved type
        raise ValueError(kind)
    end = at + _INT_BYTES[kind]
    return int.from_bytes(payload[at:end], "big", signed=True), end
