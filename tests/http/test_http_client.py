"""The client for one request to a local server: what is an answer, and what is a part of one."""

import pytest
import trio.testing

from sidecar.http import ProtocolError, open_response

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"
SIZED = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nabc"


async def answer_of(data: bytes):
    """Return the response of a server that sends ``data`` and closes."""
    client, server = trio.testing.memory_stream_pair()
    await server.send_all(data)
    await server.send_eof()
    return await open_response(client, "GET", "/")


@pytest.mark.parametrize("data", [CHUNKED + b"0\r\n\r\n", SIZED.replace(b"6", b"3"), b"HTTP/1.1 200 OK\r\n\r\nabc"])
async def test_a_whole_body_is_read(data):
    assert await (await answer_of(data)).read(100) == b"abc"


@pytest.mark.parametrize("data", [CHUNKED, CHUNKED[:-3], SIZED])
async def test_a_body_that_ends_too_early_is_an_error(data):
    """Half an answer was taken for a whole one: an export was cut when the daemon stopped, and nothing said so."""
    with pytest.raises(ProtocolError, match="in the middle"):
        await (await answer_of(data)).read(100)
