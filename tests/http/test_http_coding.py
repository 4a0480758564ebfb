"""Bodies are read by what they are, whatever their Content-Encoding says, where the server asks for that."""

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.http import Request, at_once
from sidecar.http.coding import decode_body, needs_decoding

TEXT = b'{"type":"track","event":"E","userId":"u"}' * 50
LIMIT = 10_000


def gzipped(data: bytes) -> bytes:
    # Without the time of day, which would be in the names of the tests: pytest-xdist wants the same in each worker.
    return gzip.compress(data, mtime=0)


def deflated(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


def small_window(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=9)
    return packer.compress(data) + packer.flush()


def decoded(body: bytes, coding: bytes, *, lenient: bool = True):
    request = Request("POST", "/", "", [], body, "1.1", True, coding)
    if not needs_decoding(request, lenient=lenient):
        return request.body
    refused = at_once(decode_body(request, LIMIT, lenient=lenient))
    return request.body if refused is None else refused.status


@pytest.mark.parametrize(
    ("body", "coding"),
    [
        (gzipped(TEXT), b""),
        (gzipped(TEXT), b"identity"),
        (gzipped(TEXT), b"gzip, identity"),
        (gzipped(TEXT), b"identity,gzip"),
        (gzipped(TEXT), b"deflate"),
        (gzipped(TEXT), b"br"),
        (gzipped(gzipped(TEXT)), b"gzip, gzip"),
        (TEXT, b"gzip"),
        (TEXT, b"x-gzip"),
        (TEXT, b"deflate"),
        (TEXT, b"br"),
        (TEXT, b"utf-8"),
        (b"\xef\xbb\xbf" + TEXT, b"gzip"),
        (b"\r\n " + TEXT, b"gzip"),
        (b"", b"gzip"),
        (zlib.compress(TEXT), b"deflate"),
        (zlib.compress(TEXT), b""),
        (zlib.compress(TEXT, 0), b"deflate"),
        (small_window(TEXT), b"deflate"),
        (b"\xef\xbb\xbf\r\n" + TEXT, b"deflate"),
        (b"\n" + TEXT, b"deflate"),
        (deflated(TEXT), b"deflate"),
        (deflated(b"[" + TEXT), b"deflate"),
    ],
)
def test_a_body_is_read_by_what_it_is(body, coding):
    assert decoded(body, coding).lstrip(b"\xef\xbb\xbf\r\n [") == TEXT.lstrip(b"\r\n") * bool(body)


@pytest.mark.parametrize("body", [b"x", b"xyz", b"x=1&y=2"])
def test_a_text_is_not_compressed_for_its_first_letter(body):
    """Such a body was refused as one that "is sent as gzip, but is not valid gzip"."""
    assert decoded(body, b"") == body


@pytest.mark.parametrize(
    ("body", "coding", "status"),
    [
        (b"\x01\x02", b"gzip", 400),
        (gzipped(TEXT)[:-9], b"", 400),
        (gzipped(TEXT)[:30], b"gzip", 400),
        (zlib.compress(TEXT)[:30], b"deflate", 400),
        (deflated(TEXT)[:30], b"deflate", 400),
        (b"\x1f\x8b no gzip", b"", 400),
        (b"\x01\x02", b"br", 415),
        (gzipped(b"x" * (LIMIT + 1)), b"", 413),
        (gzipped(gzipped(b"x" * (LIMIT + 1))), b"gzip, gzip", 413),
        (zlib.compress(b"x" * (LIMIT + 1)), b"deflate", 413),
    ],
)
def test_what_is_nothing_of_that_is_refused(body, coding, status):
    assert decoded(body, coding) == status


@pytest.mark.parametrize(("body", "coding"), [(TEXT, b"gzip"), (gzipped(TEXT), b"gzip, identity")])
def test_without_leniency_the_header_decides(body, coding):
    assert decoded(body, coding, lenient=False) in (400, 415)
    assert decoded(gzipped(TEXT), b"", lenient=False) == gzipped(TEXT)


@given(st.binary(max_size=200), st.sampled_from([b"", b"gzip", b"deflate", b"br", b"gzip,deflate"]))
def test_no_bytes_raise_or_exceed_the_limit(body, coding):
    result = decoded(body, coding)
    assert result in (400, 413, 415) or len(result) <= max(LIMIT, len(body))


@given(st.binary(max_size=3_000), st.integers(1, 3))
def test_text_under_each_coding_is_restored(data, members):
    text = b"{" + data
    whole = b"".join(gzipped(text) for _ in range(members))
    assert decoded(whole, b"gzip") == text * members
    assert decoded(zlib.compress(text), b"deflate") == decoded(deflated(text), b"deflate") == text
