"""The way to the daemon, with a control socket that breaks off."""

import pytest
import trio

from sidecar.console.upstream import Upstream
from sidecar.http import Request

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"


async def answer_of(tmp_path, path: str, data: bytes):
    """Return the console's answer to a request of the page, from a daemon that sends ``data`` and ends."""
    socket = trio.socket.socket(trio.socket.AF_UNIX)
    await socket.bind(str(tmp_path / "control.sock"))
    socket.listen()

    async def daemon():
        connection, _ = await socket.accept()
        with connection, socket:
            await connection.recv(1_000)
            await connection.send(data)

    upstream = Upstream(str(tmp_path / "control.sock"), read_only=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(daemon)
        return await upstream.pass_on(Request("GET", f"/api{path}", "", [], b"", "1.1", True), path, lambda: None)


async def test_an_export_that_breaks_off_is_not_passed_on_as_whole(tmp_path):
    """The page downloaded a part of the dead letters, said nothing, and offered to discard them."""
    response = await answer_of(tmp_path, "/v1/dead/export", HEAD + b"3\r\n{}\n\r\n")
    assert await anext(response.body) == b"{}\n"
    with pytest.raises(trio.BrokenResourceError):  # the server then leaves out the last chunk
        await anext(response.body)


async def test_an_answer_that_breaks_off_is_an_error(tmp_path):
    response = await answer_of(tmp_path, "/v1/status", HEAD + b"2\r\n{}\r\n")
    assert response.status == 502
    assert b"did not arrive" in response.body
