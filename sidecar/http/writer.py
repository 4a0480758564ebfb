"""Response bytes: a head, a chunk, or a whole small answer in one piece."""

import time
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus

from sidecar.http.message import Response

__all__ = ["CONTINUE", "LAST_CHUNK", "chunk", "encode", "encode_head"]

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"

_PHRASES = {status.value: status.phrase for status in HTTPStatus}


def encode(response: Response, *, keep_alive: bool, http_version: str, head_only: bool) -> bytes:
    """Return the whole answer to one request; its body must be bytes. ``head_only`` omits the body (for HEAD)."""
    body = response.body
    assert isinstance(body, bytes)
    status = response.status
    start = _start(status, response.content_type, http_version, keep_alive)
    extra = _header_lines(response.headers) if response.headers else b""
    if status in (204, 304):  # no body, and for 204 no Content-Length either (RFC 9110 8.6)
        return b"%b%b%b\r\n" % (start, _date_line(int(time.time())), extra)
    shown = b"" if head_only else body
    return b"%b%b%bContent-Length: %d\r\n\r\n%b" % (start, _date_line(int(time.time())), extra, len(body), shown)


def encode_head(response: Response, *, http_version: str) -> bytes:
    """Return the head of a streamed answer. The body is chunked, or for HTTP/1.0 ends with the connection.

    Always with ``Connection: close``.
    """
    chunked = b"Transfer-Encoding: chunked\r\n" if http_version != "1.0" else b""
    start = _start(response.status, response.content_type, http_version, False)
    return start + _date_line(int(time.time())) + _header_lines(response.headers) + chunked + b"\r\n"


def chunk(data: bytes) -> bytes:
    """Return one chunk of a chunked body. ``data`` must not be empty: an empty chunk ends the body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


@lru_cache(maxsize=256)  # a server has few statuses and content types
def _start(status: int, content_type: str, http_version: str, keep_alive: bool) -> bytes:
    lines = [f"HTTP/1.1 {status} {_PHRASES.get(status, 'Unknown')}"]
    if content_type and status not in (204, 304):
        lines.append(f"Content-Type: {_one_line(content_type)}")
    if not keep_alive:
        lines.append("Connection: close")
    elif http_version == "1.0":  # an HTTP/1.0 client closes unless the server says this
        lines.append("Connection: keep-alive")
    return ("\r\n".join(lines) + "\r\n").encode("latin-1")


@lru_cache(maxsize=2)
def _date_line(second: int) -> bytes:
    return f"Date: {formatdate(second, usegmt=True)}\r\n".encode("ascii")


def _header_lines(headers: tuple[tuple[str, str], ...]) -> bytes:
    return "".join(f"{_one_line(name)}: {_one_line(value)}\r\n" for name, value in headers).encode("latin-1")


def _one_line(text: str) -> str:
    """Return ``text``. Raises ValueError for a line break, which would let a value inject headers."""
    if "\r" in text or "\n" in text:
        raise ValueError(f"A header cannot hold a line break: {text!r}.")
    return text
