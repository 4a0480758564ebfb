"""The client for one request to a local server: it returns a whole answer, or says that it is none."""

import pytest
import trio
import trio.testing

from sidecar.http import ProtocolError, open_response

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"


async def answered(answer: bytes) -> bytes:
    """Return the body that the client reads from a server that sends ``answer`` and ends."""
    stream, server = trio.testing.memory_stream_pair()
    await server.send_all(answer)
    await server.send_eof()
    response = await open_response(stream, "GET", "/v1/x")
    return await response.read(1000)


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (HEAD + b"Content-Length: 5\r\n\r\nwhole", b"whole"),
        (HEAD + b"Content-Length: 0\r\n\r\n", b""),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\nwh\r\n3\r\nole\r\n0\r\n\r\n", b"whole"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
    ],
)
def test_a_whole_answer_is_returned(answer, body):
    assert trio.run(answered, answer) == body


@pytest.mark.parametrize(
    "answer",
    [
        HEAD,
        HEAD + b"Content-Length: 5\r\n\r\nwhol",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\nwh\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\nwh\r\n0\r\n",
    ],
)
def test_an_answer_that_ends_too_early_is_an_error(answer):
    with pytest.raises(ProtocolError, match="closed the connection"):
        trio.run(answered, answer)
