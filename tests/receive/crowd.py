"""Bad company for a daemon: ``crowd.py HOST PORT IDLE SLOW``; says ``ready`` when all are there, and goes on until killed.

IDLE connections say nothing. SLOW ones send a request of which a byte comes every second, some in the head and some in
the body, and come again when they are thrown out. One sends headers without an end, again and again. All of them stand back
for whoever else wants the processor: a real crowd would have machines of its own.
"""

import os
import resource
import sys

import trio

HEAD = b"POST /v1/batch HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\nX-Slow: "
FLOODS_PER_S = 20


async def main(host: str, port: int, idle: int, slow: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    crowd = [await trio.open_tcp_stream(host, port) for _ in range(idle)]
    async with trio.open_nursery() as nursery:
        for number in range(slow):
            nursery.start_soon(write_slowly, host, port, number)
        nursery.start_soon(flood, host, port)
        await trio.sleep(1)
        print("ready", len(crowd), flush=True)


async def write_slowly(host: str, port: int, number: int) -> None:
    await trio.sleep(number / 200)
    while True:
        async with await trio.open_tcp_stream(host, port) as stream:
            try:
                await stream.send_all(HEAD + (b"1\r\n\r\n" if number % 2 else b""))
                while True:
                    await trio.sleep(1)
                    await stream.send_all(b"x")
            except trio.BrokenResourceError:
                pass


async def flood(host: str, port: int) -> None:
    while True:
        async with await trio.open_tcp_stream(host, port) as stream:
            try:
                await stream.send_all(b"GET / HTTP/1.1\r\n")
                for number in range(2_000):
                    await stream.send_all(b"X-%d: %b\r\n" % (number, b"y" * 1000))
            except trio.BrokenResourceError:
                pass
        await trio.sleep(1 / FLOODS_PER_S)


if __name__ == "__main__":
    os.nice(19)
    trio.run(main, sys.argv[1], *map(int, sys.argv[2:]))
