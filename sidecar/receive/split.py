"""Take a large body apart without decoding it as a whole.

Theory
------
Decoded, a body of 5 MiB costs ten times its bytes, and nothing else runs while it is decoded. msgspec finds the ends of
its events in a few milliseconds and keeps them as slices of the body; each is then decoded, judged and encoded by
itself. A body that msgspec refuses as a whole (one bare NaN is enough), or that is made of a million tiny values, is cut
by a scanner that only looks at strings, brackets and commas: ten times slower, but in slices, and it can stop early.

Both give the same pieces, because each piece is decoded by the same functions as a small body.
"""

import re
from collections.abc import Generator, Mapping
from typing import Any, Final, NamedTuple

import msgspec

from sidecar.events import SHARED_KEYS, BadJson, decode
from sidecar.http import at_once

__all__ = ["Piece", "SentSizes", "SplitBody", "decode_piece", "sent_shared_bytes", "sent_sizes", "split"]

# About a millisecond of scanning; two or three if each byte is a bracket or a comma.
_SLICE_BYTES: Final = 8 * 1024
# msgspec's pieces cost 56 bytes each. With more commas than this the body is scanned instead: it may have millions.
_MAX_COMMAS: Final = 400_000

_as_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_as_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
# The quantifiers are possessive: a greedy one keeps a record for each escape, 280 MB for a body of 5 MB that has only those.
_CHARACTERS: Final = rb'[^"\\]*+(?:\\.[^"\\]*+)*+'
_IN_STRING: Final = re.compile(_CHARACTERS, re.DOTALL)
_WHOLE_STRING: Final = re.compile(b'"' + _CHARACTERS + b'"', re.DOTALL)
# A whole string, even one that never ends, or one character of structure.
_TOKENS: Final = re.compile(b'"' + _CHARACTERS + rb'"?|[\[\]{},:]', re.DOTALL)

_CLOSING: Final = {b"[": b"]", b"{": b"}"}

Piece = bytes | msgspec.Raw


class SplitBody(NamedTuple):
    """A body in pieces: the undecoded values of its object, and those of its list of events.

    ``values`` is None if the body is a list; ``events`` is None if it is an object without a list ``batch``. If it is
    neither, both are None.
    """

    values: dict[str, Piece] | None
    events: list[Piece] | None


class SentSizes(NamedTuple):
    """The bytes of each event of a body as the app sent it, and of what its batch adds to each of them."""

    events: list[int]
    shared: int


def sent_sizes(body: bytes) -> SentSizes:
    """Measure the events of a body that can be decoded: a list, a batch, or one event."""
    values, events = at_once(split(body, len(body)))
    shared_bytes = sent_shared_bytes(values or {})
    if events is None:
        return SentSizes([len(body)], shared_bytes)
    return SentSizes([memoryview(event).nbytes for event in events], shared_bytes)


def sent_shared_bytes(values: Mapping[str, Piece]) -> int:
    """Return the bytes of what a batch adds to each of its events, as the app sent it."""
    return sum(memoryview(values.get(key, b"")).nbytes for key in SHARED_KEYS)


def split(body: bytes, max_events: int) -> Generator[None, None, SplitBody]:
    """Take a body apart; yield after each slice of the work. Raises BadJson.

    Stops at ``max_events + 1`` events: the caller refuses them anyway.
    """
    text = body.lstrip(b"\xef\xbb\xbf \t\r\n")
    if body.count(b",") <= _MAX_COMMAS:
        try:
            return (yield from _split_strictly(text))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            yield
    return (yield from _split_tolerantly(text, max_events))


def _split_strictly(text: bytes) -> Generator[None, None, SplitBody]:
    if text[:1] == b"[":
        return SplitBody(None, list(_as_list(text)))
    if text[:1] != b"{":
        return SplitBody(None, None)
    values: dict[str, Piece] = dict(_as_object(text))
    batch = values.get("batch", b"")
    yield  # both look at each byte
    return SplitBody(values, list(_as_list(batch)) if bytes(memoryview(batch)[:1]) == b"[" else None)


def _split_tolerantly(text: bytes, max_events: int) -> Generator[None, None, SplitBody]:
    if text[:1] == b"[":
        events, end = yield from _elements(text, 1, max_events)
        _check_end(text, end, len(events) > max_events)
        return SplitBody(None, list(events))
    if text[:1] != b"{":
        return SplitBody(None, None)
    values: dict[str, Piece] = {}
    members, end = yield from _elements(text, 1, len(text))
    _check_end(text, end, False)
    for member in members:
        match = _TOKENS.match(member)
        key, colon, value = (b"", b"", b"") if match is None else (match[0], *_at_colon(member[match.end() :]))
        if not colon or key[:1] != b'"':
            raise BadJson("an object has a member without a name or a value")
        values[str(decode(key))] = value
    batch = bytes(values.get("batch", b""))
    if batch[:1] != b"[":
        return SplitBody(values, None)
    events, _ = yield from _elements(batch, 1, max_events)
    return SplitBody(values, list(events))


def _at_colon(rest: bytes) -> tuple[bytes, bytes]:
    blank, colon, value = rest.partition(b":")
    return (b"", b"") if blank.strip() else (colon, value.strip())


def _elements(text: bytes, start: int, max_elements: int) -> Generator[None, None, tuple[list[bytes], int]]:
    """Cut at the commas of the container that begins before ``start``; return its elements, and the end of the container.

    The end is 0 if the container does not end. Stops after ``max_elements`` elements.
    """
    elements: list[bytes] = []
    depth = 0
    begin = position = start
    while position < len(text):
        match: re.Match[bytes] | None = None
        for match in _TOKENS.finditer(text, position, position + _SLICE_BYTES):
            mark = match[0]
            if mark == b"[" or mark == b"{":
                depth += 1
            elif depth and (mark == b"]" or mark == b"}"):
                depth -= 1
            elif not depth and mark in (b",", b"]", b"}"):
                element = text[begin : match.start()].strip()
                if element or mark == b"," or elements:  # nothing between the brackets is not an element
                    elements.append(element)
                if mark != b",":
                    if mark != _CLOSING[text[start - 1 : start]]:
                        raise BadJson(f"a bracket does not match at byte {match.start()}")
                    return elements, match.end()
                if len(elements) > max_elements:
                    return elements, match.end()
                begin = match.end()
        yield
        # Only the last token of a slice can be a string that the end of the slice cuts.
        if match is not None and match[0][:1] == b'"' and not _WHOLE_STRING.fullmatch(match[0]):
            position = yield from _string_end(text, match.end())
        else:
            position += _SLICE_BYTES
    return elements, 0


def _string_end(text: bytes, position: int) -> Generator[None, None, int]:
    """Return the end of the string that ``position`` is inside of: that of the text if the string does not end."""
    while match := _IN_STRING.match(text, position, position + _SLICE_BYTES):
        if text[match.end() : match.end() + 1] == b'"':
            return match.end() + 1
        if match.end() == position:  # nothing is left, or a backslash alone
            break
        position = match.end()
        yield
    return len(text)


def _check_end(text: bytes, end: int, stopped_early: bool) -> None:
    if not end:
        raise BadJson("the text ends too early")
    if not stopped_early and text[end:].strip():
        raise BadJson(f"there is something after its end at byte {end}")


def decode_piece(piece: Piece) -> Any:
    """Decode one piece. Raises BadJson."""
    return decode(bytes(piece))
