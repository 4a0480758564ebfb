"""A strict HTTP client (h11) of a sandbox over memory streams, and an event to send."""

import json
from contextlib import asynccontextmanager

import h11
import trio
import trio.testing

from sidecar.sandbox import Sandbox

NOW_MS = 1_700_000_000_000
EVENTS = "/v1/events/custom"


def event(user="u1", name="Feature Used", seq=1, **more) -> dict:
    fields = {"identifyId": user, "propertyKey": "AP-X-2", "userType": "USER", "eventName": name}
    return fields | {"attributes": {"seq": seq}} | more


@asynccontextmanager
async def client_of(box: Sandbox):
    """Give a function that sends one request over a new connection.

    It returns (status, headers, body), None if the connection ends without an answer, or "hangs" after
    ``cancel_after_s`` seconds.
    """
    async with trio.open_nursery() as nursery:

        async def call(method, path, body=b"", *, key="sandbox-key", cancel_after_s=float("inf")):
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            here, there = trio.testing.memory_stream_pair()
            nursery.start_soon(box.connection, there)
            with trio.move_on_after(cancel_after_s):
                return await exchange(here, method, path, data, key)
            await here.aclose()
            return "hangs"

        yield call
        nursery.cancel_scope.cancel()


async def exchange(stream, method, path, body, key):
    client = h11.Connection(h11.CLIENT)
    headers = [("Host", "x"), ("Content-Length", str(len(body)))] + ([("X-APTRINSIC-API-KEY", key)] if key else [])
    await stream.send_all(client.send(h11.Request(method=method, target=path, headers=headers)))
    await stream.send_all(client.send(h11.Data(data=body)) + client.send(h11.EndOfMessage()))
    response, answer = None, b""
    while True:
        received = client.next_event()
        if received is h11.NEED_DATA:
            data = await stream.receive_some()
            if not data and response is None:
                return None
            client.receive_data(data)
        elif isinstance(received, h11.Response):
            response = received
        elif isinstance(received, h11.Data):
            answer += bytes(received.data)
        else:
            await stream.aclose()
            return response.status_code, dict(response.headers), answer
