"""How long a call may take."""

import asyncio
import json
import math
import socket
import threading

import pytest
from px_sidecar_client import AsyncClient, Client


@pytest.fixture
def path(tmp_path):
    """A sidecar that answers the first line of one connection."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()

        def serve():
            connection, _ = listener.accept()
            with connection, connection.makefile("rb") as lines:
                assert json.loads(lines.readline())["event"] == "E"
                connection.sendall(b'{"success":true,"accepted":1}\n')

        thread = threading.Thread(target=serve)
        thread.start()
        yield str(tmp_path / "s")
        thread.join()


@pytest.mark.parametrize("timeout_s", [math.inf, 1e12, 3e6])
def test_a_timeout_may_be_infinite(path, timeout_s):
    """It raised OverflowError, which no call is to raise."""
    with Client(path, timeout_s=timeout_s) as client:
        assert client.track("u", "E", message_id="m") == "m"


def test_an_async_timeout_may_be_infinite(path):
    async def scenario():
        async with AsyncClient(path, timeout_s=math.inf) as client:
            assert await client.track("u", "E", message_id="m") == "m"

    asyncio.run(scenario())
