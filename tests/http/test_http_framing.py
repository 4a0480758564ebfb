"""Framing: each wire form gives the same requests however the bytes are cut; invalid or ambiguous ones are refused."""

import gzip
import tracemalloc

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sidecar.http.budget import at_once
from sidecar.http.coding import decode_body
from sidecar.http.message import Limits
from sidecar.http.reader import Phase, Reader

SMALL = Limits(max_header_bytes=1024, max_headers=20, max_body_bytes=5000)
BODY = b'{"type":"track"}'


def post(*headers: bytes, body: bytes = b"", target: bytes = b"/v1/track", version: bytes = b"1.1") -> bytes:
    lines = [b"POST %b HTTP/%b" % (target, version), b"Host: localhost", *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def sized(body: bytes, *headers: bytes) -> bytes:
    return post(b"Content-Length: %d" % len(body), *headers, body=body)


def read(data: bytes, limits: Limits = SMALL) -> Reader:
    reader = Reader(limits)
    reader.feed(data)
    return reader


def outcome(reader: Reader):
    return list(reader.ready), reader.refused and reader.refused.code, reader.phase


CHUNKED = post(b"Transfer-Encoding: chunked", body=b'5\r\n{"typ\r\n0b;x=y\r\ne":"track"}\r\n0\r\nTrailer: t\r\n\r\n')
GZIPPED = gzip.compress(BODY)

WIRE_FORMS = {
    "content-length": sized(BODY),
    "chunked, with extension and trailer": CHUNKED,
    "chunked, name and value in any case": CHUNKED.replace(
        b"Transfer-Encoding: chunked", b"transfer-ENCODING: Chunked"
    ),
    "gzip": sized(GZIPPED, b"Content-Encoding: gzip"),
    "x-gzip": sized(GZIPPED, b"Content-Encoding: x-gzip"),
    "gzip of several members": sized(gzip.compress(BODY[:7]) + gzip.compress(BODY[7:]), b"Content-Encoding: GZIP"),
    "gzip with zero padding": sized(GZIPPED + b"\0\0", b"Content-Encoding: gzip"),
    "gzip and chunked": post(
        b"Content-Encoding: gzip",
        b"Transfer-Encoding: chunked",
        body=b"%x\r\n%b\r\n0\r\n\r\n" % (len(GZIPPED), GZIPPED),
    ),
    "identity": sized(BODY, b"Content-Encoding: identity"),
    "blank lines before": b"\r\n\r\n" + sized(BODY),
    "expect": sized(BODY, b"Expect: 100-continue"),
    "an offer of h2c": sized(BODY, b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAEA"),
    "http/1.0": sized(BODY).replace(b"HTTP/1.1", b"HTTP/1.0"),
}


@pytest.mark.parametrize("form", WIRE_FORMS)
def test_every_wire_form_gives_the_body(form):
    reader = read(WIRE_FORMS[form])
    assert reader.refused is None
    (request,) = reader.ready
    assert at_once(decode_body(request, SMALL.max_body_bytes)) is None
    assert (request.method, request.path, request.query, request.body) == ("POST", "/v1/track", "", BODY)
    assert reader.phase is Phase.IDLE


@pytest.mark.parametrize("behind", [b"", sized(b"behind")], ids=["alone", "bytes behind it"])
@pytest.mark.parametrize(
    "data",
    [
        sized(BODY, b"Connection: close, Upgrade", b"Upgrade: h2c"),
        sized(BODY, b"Connection: Upgrade", b"Upgrade: h2c").replace(b"HTTP/1.1", b"HTTP/1.0"),
    ],
    ids=["close", "http/1.0"],
)
def test_an_upgrade_is_ignored_on_a_connection_that_closes(data, behind):
    """Its body was refused as data after "Connection: close"."""
    for cut in range(1, len(data) + 1):
        reader = read(data[:cut])
        reader.feed(data[cut:] + behind)
        assert [(request.body, request.keep_alive) for request in reader.ready] == [(BODY, False)]


@pytest.mark.parametrize("form", WIRE_FORMS)
def test_the_request_after_every_wire_form_is_read(form):
    reader = read(WIRE_FORMS[form] + sized(b"two") if form != "http/1.0" else sized(b"") + sized(b"two"))
    assert [request.body for request in reader.ready][1:] == [b"two"]


BAD = {
    "two lengths": (sized(b"abc", b"Content-Length: 4"), "bad_request"),
    "two equal lengths": (sized(b"abc", b"Content-Length: 3"), "bad_request"),
    "a list of lengths": (post(b"Content-Length: 3, 3", body=b"abc"), "bad_request"),
    "length and chunked": (post(b"Content-Length: 3", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"), "bad_request"),
    "chunked and length": (post(b"Transfer-Encoding: chunked", b"Content-Length: 3", body=b"0\r\n\r\n"), "bad_request"),
    "length with a sign": (post(b"Content-Length: +3", body=b"abc"), "bad_request"),
    "length that is not a number": (post(b"Content-Length: three", body=b"abc"), "bad_request"),
    "length beyond 64 bits": (post(b"Content-Length: 99999999999999999999999", body=b"abc"), "bad_request"),
    "another transfer coding": (post(b"Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n"), "bad_request"),
    "chunked twice": (post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked", body=b""), "bad_request"),
    "chunked in http/1.0": (post(b"Transfer-Encoding: chunked", body=b"0\r\n\r\n", version=b"1.0"), "bad_request"),
    "a chunk size that is not a number": (post(b"Transfer-Encoding: chunked", body=b"zz\r\n"), "bad_request"),
    "a chunk longer than its size": (post(b"Transfer-Encoding: chunked", body=b"2\r\nabc\r\n"), "bad_request"),
    "two hosts": (sized(b"", b"Host: evil"), "bad_request"),
    "a blank before the colon": (sized(b"", b"Content-Type : x"), "bad_request"),
    "a folded header": (post(b"X: a", b" b"), "bad_request"),
    "a nul in a header": (post(b"X: a\0b"), "bad_request"),
    "http/2 by prior knowledge": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "bad_request"),
    "tls": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "bad_request"),
    "not http": (b"hello\r\n\r\n", "bad_request"),
    "a proxy's request": (b"CONNECT evil:443 HTTP/1.1\r\nHost: evil:443\r\n\r\n", "bad_request"),
    "http/1.2": (post(b"Content-Length: 3", body=b"abc", version=b"1.2"), "bad_request"),
    "body too large": (post(b"Content-Length: 5001"), "too_large"),
    "one chunk too large": (
        post(b"Transfer-Encoding: chunked", body=b"1389\r\n" + b"x" * 5001 + b"\r\n0\r\n\r\n"),
        "too_large",
    ),
    "chunked body too large": (
        post(b"Transfer-Encoding: chunked", body=b"1000\r\n" + b"x" * 4096 + b"\r\n1000\r\n" + b"x" * 4096 + b"\r\n"),
        "too_large",
    ),
    "too many headers": (post(*[b"X: y"] * 20), "headers_too_large"),
    "headers too large": (post(b"X: " + b"y" * 1100), "headers_too_large"),
    "target too large": (post(target=b"/" + b"y" * 1100), "headers_too_large"),
    "trailers too large": (
        post(b"Transfer-Encoding: chunked", body=b"0\r\nX: " + b"y" * 1100 + b"\r\n\r\n"),
        "headers_too_large",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_invalid_request_is_refused_and_ends_reading(case):
    data, code = BAD[case]
    reader = read(sized(b"before") + data + sized(b"behind"))
    assert [request.body for request in reader.ready] == [b"before"]
    assert reader.refused is not None
    assert reader.refused.code == code
    assert reader.refused.message.endswith(".")


@pytest.mark.parametrize("case", BAD)
def test_invalid_request_is_refused_alike_byte_by_byte(case):
    data, code = BAD[case]
    reader = Reader(SMALL)
    for at in range(len(data)):
        reader.feed(data[at : at + 1])
    assert reader.refused is not None
    assert reader.refused.code == code
    assert not reader.ready


BAD_CODINGS = {
    "a gzip bomb": (sized(gzip.compress(b"x" * 5_000_000), b"Content-Encoding: gzip"), "too_large"),
    "not gzip": (sized(b"plain", b"Content-Encoding: gzip"), "bad_encoding"),
    "gzip cut short": (sized(GZIPPED[:-5], b"Content-Encoding: gzip"), "bad_encoding"),
    "gzip with rubbish behind": (sized(GZIPPED + b"rubbish", b"Content-Encoding: gzip"), "bad_encoding"),
    "gzip of very many members": (sized(gzip.compress(b"") * 100, b"Content-Encoding: gzip"), "bad_encoding"),
    "gzip twice": (sized(gzip.compress(GZIPPED), b"Content-Encoding: gzip, gzip"), "bad_encoding"),
    "gzip in two headers": (
        sized(GZIPPED, b"Content-Encoding: gzip", b"Content-Encoding: gzip"),
        "bad_encoding",
    ),
    "brotli": (sized(b"x", b"Content-Encoding: br"), "bad_encoding"),
}


@pytest.mark.parametrize("case", BAD_CODINGS)
def test_undecodable_body_is_refused_at_decoding(case):
    data, code = BAD_CODINGS[case]
    reader = read(sized(b"before") + data + sized(b"behind"))
    before, request, behind = reader.ready
    assert (before.body, behind.body, reader.refused) == (b"before", b"behind", None)
    as_received = request.body
    refused = at_once(decode_body(request, SMALL.max_body_bytes))
    assert refused is not None
    assert refused.code == code
    assert refused.message.endswith(".")
    assert request.coding
    assert request.body == as_received


def test_body_is_decoded_once():
    (request,) = read(sized(gzip.compress(GZIPPED), b"Content-Encoding: gzip")).ready
    assert at_once(decode_body(request, 5000)) is None
    assert at_once(decode_body(request, 5000)) is None
    assert request.body == GZIPPED


@pytest.mark.parametrize("pieces", [1, 2, 5])
def test_body_bytes_counts_an_unfinished_body(pieces):
    reader = read(post(b"Content-Length: 9"))
    for _ in range(pieces):
        reader.feed(b"x")
    assert reader.body_bytes == pieces


@pytest.mark.parametrize(
    "flood",
    [b"GET /" + b"a" * 100_000, b"GET / HTTP/1.1\r\nX: " + b"a" * 100_000, post(b"Transfer-Encoding: chunked", body=b"1;" + b"e" * 100_000)],
    ids=["target", "header", "chunk extension"],
)  # fmt: skip
def test_endless_line_is_refused_at_the_limit(flood):
    reader = Reader(SMALL)
    fed = 0
    while reader.refused is None and fed < len(flood):
        reader.feed(flood[fed : fed + 500])
        fed += 500
    assert reader.refused is not None
    assert fed <= 2500


def test_headers_keep_their_order_and_become_lower_case():
    (request,) = read(sized(b"", b"Authorization: Basic d2s6", b"X-Two: 1", b"X-Two:  2 ")).ready
    assert request.headers[2:] == [(b"authorization", b"Basic d2s6"), (b"x-two", b"1"), (b"x-two", b"2")]
    assert request.header(b"x-two") == b"1"
    assert request.header(b"x-three") is None


def test_path_and_query_are_as_sent():
    (request,) = read(post(b"Content-Length: 0", target=b"//v1%2Fbatch//?a=b?c%20d")).ready
    assert (request.path, request.query) == ("//v1%2Fbatch//", "a=b?c%20d")


def test_absolute_target_outranks_the_host_header():
    (request,) = read(post(b"Content-Length: 0", target=b"http://evil.example:80/v1/track?x")).ready
    assert (request.path, request.query, request.header(b"host")) == ("/v1/track", "x", b"evil.example:80")


@pytest.mark.parametrize(
    ("target", "expected"),
    [(b"http://h:80", ("/", "", b"h:80")), (b"http://h?a=/b", ("/", "a=/b", b"h")), (b"http://u@h/p?a", ("/p", "a", b"h"))],
)  # fmt: skip
def test_the_authority_ends_at_the_path_or_query(target, expected):
    (request,) = read(post(b"Content-Length: 0", target=target)).ready
    assert (request.path, request.query, request.header(b"host")) == expected


def test_long_targets_are_not_kept():
    tracemalloc.start()
    try:
        before_bytes = tracemalloc.get_traced_memory()[0]
        for number in range(300):
            assert read(post(b"Content-Length: 0", target=b"/%d?" % number + b"x" * 20_000), Limits()).ready
        assert tracemalloc.get_traced_memory()[0] - before_bytes < 3_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("version", "connection", "kept"),
    [(b"1.1", b"", True), (b"1.1", b"close", False), (b"1.1", b"Close", False), (b"1.0", b"", False), (b"1.0", b"keep-alive", True)],
)  # fmt: skip
def test_keep_alive_is_what_the_client_asks_for(version, connection, kept):
    headers = [b"Connection: " + connection] if connection else []
    (request,) = read(post(*headers, b"Content-Length: 0", version=version)).ready
    assert request.keep_alive is kept
    assert request.http_version == version.decode()


def test_continue_is_due_once_and_only_before_the_body():
    reader = read(post(b"Content-Length: 3", b"Expect: 100-Continue"))
    assert (reader.take_continue(), reader.take_continue()) == (True, False)
    assert not read(post(b"Content-Length: 3", b"Expect: 100-continue", body=b"a")).take_continue()
    assert not read(post(b"Content-Length: 3", b"Expect: 100-continue", version=b"1.0")).take_continue()
    assert not read(post(b"Content-Length: 9999", b"Expect: 100-continue")).take_continue()


ALL = [*WIRE_FORMS.values(), *(data for data, _ in (*BAD.values(), *BAD_CODINGS.values()))]


@given(st.lists(st.sampled_from(ALL), min_size=1, max_size=3), st.lists(st.integers(0, 3000), max_size=8))
def test_requests_do_not_depend_on_how_bytes_are_cut(parts, cuts):
    data = b"".join(parts)
    whole = read(data)
    reader = Reader(SMALL)
    start = 0
    for cut in [*sorted(cuts), len(data)]:
        reader.feed(data[start:cut])
        start = max(start, cut)
    assert list(reader.ready) == list(whole.ready)
    assert (reader.refused is None) == (whole.refused is None)
    if whole.refused is not None:
        assert reader.refused.code == whole.refused.code


@settings(max_examples=300)
@given(st.sampled_from(ALL), st.integers(0, 400), st.binary(max_size=30), st.integers(0, 10))
@example(b"", 0, b"\0", 0)
def test_damaged_bytes_never_raise_or_exceed_the_limits(data, at, damage, lost):
    reader = Reader(SMALL)
    reader.feed(data[:at] + damage + data[at + lost :])
    reader.feed(data)
    for request in reader.ready:
        assert len(request.body) <= SMALL.max_body_bytes
        assert len(request.headers) <= SMALL.max_headers
        at_once(decode_body(request, SMALL.max_body_bytes))
        assert len(request.body) <= SMALL.max_body_bytes


def test_connection_that_sends_nothing_holds_no_parser():
    """An empty first piece made one: a third of the memory of 10,000 mute connections."""
    tracemalloc.start()
    try:
        readers = [Reader(SMALL) for _ in range(100)]
        before = tracemalloc.get_traced_memory()[0]
        for reader in readers:
            reader.feed(b"")
        assert tracemalloc.get_traced_memory()[0] - before < 100 * 100
    finally:
        tracemalloc.stop()


def test_connection_between_two_requests_holds_no_parser():
    """10,000 connections of clients that do not read held 8 MB of parsers."""
    read(sized(BODY))  # what is made once
    tracemalloc.start()
    try:
        readers = [Reader(SMALL) for _ in range(100)]
        before = tracemalloc.get_traced_memory()[0]
        for reader in readers:
            reader.feed(sized(BODY))
            reader.ready.clear()
        assert tracemalloc.get_traced_memory()[0] - before < 100 * 100
    finally:
        tracemalloc.stop()


def test_what_follows_the_last_request_of_a_connection_is_refused():
    reader = read(sized(BODY, b"Connection: close"))
    reader.feed(sized(BODY))
    assert (len(reader.ready), reader.refused and reader.refused.code) == (1, "bad_request")
