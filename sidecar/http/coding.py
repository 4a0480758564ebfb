"""Content codings: a body as it was meant, from the body as it came.

Undone when the request's turn comes and not when its last byte arrives: a few kilobytes may become megabytes, and a
client can send many such requests in one piece.
"""

import zlib
from typing import Final

from sidecar.http.message import Refused, Request, body_too_large

__all__ = ["decode_body"]

_MAX_GZIP_MEMBERS: Final = 64


def decode_body(request: Request, max_body_bytes: int) -> Refused | None:
    """Undo ``request.coding``: then it is empty and the body is plain. Or why that cannot be; the body is then as before."""
    if request.coding in (b"gzip", b"x-gzip"):
        try:
            inflated = _gunzip(request.body, max_body_bytes)
        except (zlib.error, EOFError):
            return Refused("bad_encoding", "The body is said to be gzip and cannot be inflated.", 400)
        if inflated is None:
            return body_too_large(max_body_bytes)
        request.body = inflated
    elif request.coding not in (b"", b"identity"):
        return Refused("bad_encoding", "The Content-Encoding is not known here; send gzip, or none.", 415)
    request.coding = b""
    return None


def _gunzip(data: bytes, limit: int) -> bytes | None:
    """The inflated bytes of one or more gzip members; None if they are more than ``limit``.

    Raises zlib.error for what is not gzip and EOFError for what ends too early. Never holds more than ``limit`` bytes.
    Each member costs a copy of what follows it, so a body of a hundred thousand empty ones must not be worked through.
    """
    out = bytearray()
    members = 0
    while data:
        members += 1
        if members > _MAX_GZIP_MEMBERS:
            raise zlib.error("too many members")
        member = zlib.decompressobj(wbits=31)
        out += member.decompress(data, limit + 1 - len(out))
        if len(out) > limit:
            return None
        if not member.eof:
            raise EOFError
        data = member.unused_data.lstrip(b"\0")  # gzip(1) allows zero padding behind a member
    return bytes(out)
