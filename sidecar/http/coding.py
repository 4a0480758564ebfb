"""Content codings: decode a request body within a limit (RFC 9110 8.4).

Bodies are decoded when the handler is about to run, not when their last byte arrives: a few kilobytes can inflate to
megabytes, and a client can pipeline many such requests in one packet. Decoding is a generator that yields after each
piece, so that the caller decides when the work continues, and what runs between the pieces.

A server that takes JSON can tell the codings apart by the first bytes, and need not trust the header (``lenient``):
clients send gzip without saying so, say so without doing it, or list codings that they did not apply
(sidecar/receive/README.md#wire-details).
"""

import zlib
from collections.abc import Generator
from typing import Final

from sidecar.http.message import Refusal, Request, body_too_large

__all__ = ["decode_body", "needs_decoding"]

_MAX_GZIP_MEMBERS: Final = 64
# Inflated at a time: a fraction of a millisecond.
_SLICE_BYTES: Final = 128 * 1024
_GZIP: Final = b"\x1f\x8b"
# The first byte of a zlib stream with the usual window of 32 KiB (RFC 1950 2.2); JSON cannot begin with it.
_ZLIB: Final = b"\x78"
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_HEAD_BYTES: Final = 64
# Codings that one body may have on top of each other: more are not sent, and each could be a bomb.
_MAX_LAYERS: Final = 2
_NAMES: Final = frozenset({b"gzip", b"x-gzip", b"deflate", b"identity", b""})

_NOT_SUPPORTED: Final = Refusal("bad_encoding", "The Content-Encoding is not supported; send gzip, or none.", 415)


def needs_decoding(request: Request, *, lenient: bool) -> bool:
    """Return whether ``decode_body`` has anything to do."""
    return bool(request.coding) or (lenient and request.body[:1] in (b"\x1f", _ZLIB))


def decode_body(
    request: Request, max_body_bytes: int, *, lenient: bool = False
) -> Generator[None, None, Refusal | None]:
    """Decode the body in place and clear ``request.coding``; return a refusal if that is impossible.

    With ``lenient`` the first bytes of the body decide, else the Content-Encoding. After a refusal the request is
    unchanged.
    """
    named = [name.strip() for name in request.coding.split(b",")]
    body = request.body
    try:
        if lenient:
            body = yield from _decode_by_content(body, named, max_body_bytes)
        elif request.coding in (b"gzip", b"x-gzip"):
            body = yield from _inflate(body, 31, max_body_bytes)
        elif request.coding not in (b"", b"identity"):
            return _NOT_SUPPORTED
    except _TooLarge:
        return body_too_large(max_body_bytes)
    except (zlib.error, EOFError):
        coding = "deflate" if b"deflate" in named else "gzip"
        return Refusal(
            "bad_encoding", f"The body is sent as {coding}, but is not valid {coding}; send valid {coding}.", 400
        )
    except _UnknownCoding:
        return _NOT_SUPPORTED
    request.body = body
    request.coding = b""
    return None


class _TooLarge(Exception):
    """The inflated body exceeds the limit."""


class _UnknownCoding(Exception):
    """The header names a coding that is not known here, and the body does not look like text."""


def _decode_by_content(body: bytes, named: list[bytes], limit: int) -> Generator[None, None, bytes]:
    """Undo the codings that the body's first bytes show; then what is left must be text if the header names a coding."""
    for _ in range(_MAX_LAYERS):
        if body.startswith(_GZIP):
            body = yield from _inflate(body, 31, limit)
        elif _has_zlib_header(body) and (b"deflate" in named or body.startswith(_ZLIB)):
            body = yield from _inflate(body, 15, limit)
        elif b"deflate" in named and not _begins_json(body):
            # Without zlib's header, as some clients understand "deflate". Deflated JSON never begins with a bracket.
            body = yield from _inflate(body, -15, limit)
            named = []
        else:
            break
    if not _is_text(body):
        if not _NAMES.issuperset(named):
            raise _UnknownCoding
        if b"gzip" in named or b"x-gzip" in named:
            raise zlib.error("no gzip header")
    return body


def _has_zlib_header(body: bytes) -> bool:
    """Return whether a body begins with the header of a zlib stream, with a window of any size (RFC 1950 2.2)."""
    return len(body) > 1 and body[0] & 0x8F == 8 and (body[0] << 8 | body[1]) % 31 == 0


def _begins_json(body: bytes) -> bool:
    """Return whether a body is empty, or begins with a bracket after blanks and a byte order mark."""
    head = body[:_HEAD_BYTES].removeprefix(_BYTE_ORDER_MARK).lstrip(b" \t\r\n")
    return head[:1] in (b"", b"{", b"[")


def _is_text(body: bytes) -> bool:
    """Return whether a body may be JSON as it is: it begins with a printable character, a blank or a byte order mark."""
    return body[:1] in (b"", b"\t", b"\n", b"\r", b"\xef") or 0x20 <= body[0] < 0x7F


def _inflate(data: bytes, wbits: int, limit: int) -> Generator[None, None, bytes]:
    """Inflate one stream, or one or more gzip members (``wbits`` 31); yield after each piece.

    Raises zlib.error if ``data`` is not of that form, EOFError if it ends too early, and _TooLarge if the result exceeds
    ``limit`` bytes. Never holds more than that.
    """
    out = bytearray()
    members = 0
    while data:
        members += 1
        # Each member costs a copy of the data after it: 100,000 empty members would take quadratic time.
        if members > _MAX_GZIP_MEMBERS:
            raise zlib.error("too many members")
        member = zlib.decompressobj(wbits=wbits)
        piece = data
        while not member.eof:
            # One byte beyond the limit distinguishes a bomb from a body that just fits.
            inflated = member.decompress(piece, min(_SLICE_BYTES, limit + 1 - len(out)))
            out += inflated
            if len(out) > limit:
                raise _TooLarge
            piece = member.unconsumed_tail
            if not inflated and not piece:
                break  # nothing is left on either side: the stream was cut off
            if not member.eof:
                yield
        if not member.eof:
            raise EOFError
        data = member.unused_data.lstrip(b"\0") if wbits == 31 else b""  # gzip(1) allows zero padding after a member
    return bytes(out)
