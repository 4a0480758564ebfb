"""Bad clients for a daemon: ``crowd.py HOST PORT KIND COUNT``; prints ``ready N`` when all are there, runs until killed.

KIND is one of

mute         connects and sends nothing
slow_head    sends a byte of a header every few seconds, without end
slow_body    announces a body of a megabyte, sends 8 KiB of it, then a byte every few seconds
never_reads  sends requests without end and reads no answer
half_closed  sends half a request, and ends its side
batches      sends batches of 5 MiB back to back; prints the number of answers by status at the end of standard input
flood        sends headers without end, again and again

Clients that are thrown out come again. The process stands back for others that want the processor: a real crowd would
have machines of its own.
"""

import json
import os
import resource
import sys

import trio

HEAD = b"POST /v1/batch HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n"
TRACK = b'{"type":"track","event":"E","userId":"u","properties":{"x":"%b"}}' % (b"y" * 400)
EVERY_S = 3.0
FLOODS_PER_S = 20
GONE = (trio.BrokenResourceError, trio.ClosedResourceError, OSError)


async def mute(stream: trio.SocketStream, _number: int) -> None:
    await stream.receive_some(1)


async def slow_head(stream: trio.SocketStream, number: int) -> None:
    await stream.send_all(HEAD % 1_000_000 + b"X-Slow: " + b"x" * (number % 4) * 1_000)
    await trickle(stream)


async def slow_body(stream: trio.SocketStream, _number: int) -> None:
    await stream.send_all(HEAD % 1_000_000 + b"\r\n" + b"x" * 8_192)
    await trickle(stream)


async def trickle(stream: trio.SocketStream) -> None:
    while True:
        await trio.sleep(EVERY_S)
        await stream.send_all(b"x")


async def never_reads(stream: trio.SocketStream, number: int) -> None:
    # Some ask for much with few bytes, some send many events.
    body = b'{"batch":[%b]}' % b",".join([b"1"] * 900 if number % 2 else [TRACK] * 4)
    request = HEAD % len(body) + b"\r\n" + body
    while True:
        await stream.send_all(request)
        await trio.sleep(EVERY_S)


async def half_closed(stream: trio.SocketStream, number: int) -> None:
    await stream.send_all(HEAD % 1_000_000 + (b"\r\n" + b"x" * 8_192 if number % 2 else b"X: y"))
    await stream.send_eof()
    await stream.receive_some(1)
    await trio.sleep(EVERY_S)


async def flood(stream: trio.SocketStream, _number: int) -> None:
    await stream.send_all(b"GET / HTTP/1.1\r\n")
    for number in range(2_000):
        await stream.send_all(b"X-%d: %b\r\n" % (number, b"y" * 1_000))


ANSWERS: dict[int, int] = {}


async def batches(stream: trio.SocketStream, number: int) -> None:
    turn = 0
    while True:
        events = [
            {
                "type": "track",
                "event": "E",
                "userId": f"u{number}",
                "messageId": f"{number}-{turn}-{at}",
                "p": "y" * 600,
            }
            for at in range(7_000)
        ]
        body = json.dumps({"batch": events}, separators=(",", ":")).encode()
        await stream.send_all(HEAD % len(body) + b"\r\n" + body)
        answer = await stream.receive_some(65_536)
        if not answer:
            return
        status = int(answer.split()[1])
        ANSWERS[status] = ANSWERS.get(status, 0) + 1
        turn += 1


KINDS = {kind.__name__: kind for kind in (mute, slow_head, slow_body, never_reads, half_closed, flood, batches)}


async def main(host: str, port: int, kind: str, count: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    async with trio.open_nursery() as nursery:
        # All are there before the first says anything: those that are thrown out come again, and would delay the others.
        streams = [await connect(host, port) for _ in range(count)]
        for number, stream in enumerate(streams):
            nursery.start_soon(again_and_again, host, port, kind, number, stream)
        await trio.sleep(1)
        print("ready", count, flush=True)
        await trio.to_thread.run_sync(sys.stdin.readline)
        print(json.dumps(ANSWERS), flush=True)
        nursery.cancel_scope.cancel()


async def connect(host: str, port: int) -> trio.SocketStream:
    # Not open_tcp_stream: its tasks and its look-up of the name cost more than the connection.
    sock = trio.socket.socket()
    try:
        await sock.connect((host, port))
    except BaseException:
        sock.close()
        raise
    return trio.SocketStream(sock)


async def again_and_again(host: str, port: int, kind: str, number: int, stream: trio.SocketStream) -> None:
    await trio.sleep(number / 5_000)  # not all at the same moment
    while True:
        async with stream:
            try:
                await KINDS[kind](stream, number)
            except GONE:
                pass
        while True:
            await trio.sleep(1 / FLOODS_PER_S if kind == "flood" else EVERY_S)
            try:
                stream = await connect(host, port)
                break
            except OSError:
                continue


if __name__ == "__main__":
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))  # the daemons may have real-time priority
    os.nice(10)
    trio.run(main, sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
