"""The server on real sockets: TLS from end to end, every listener, and connections that wait through a restart."""

import socket
import ssl
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import trio
import trio.testing
import trustme
from receive_harness import receiving

from sidecar.config.schema import ListenConfig
from sidecar.receive import bind_listeners
from sidecar.receive.listeners import BoundSockets


@pytest.fixture
def folder():
    # The path of a Unix socket is limited to 107 bytes (unix(7)), and pytest's own folders have long names.
    with TemporaryDirectory(prefix="pxl-") as name:
        yield Path(name)


def bound(folder: Path, inherited: dict[str, list[socket.socket]] | None = None, **more):
    listen = ListenConfig(**{"http": "", "unix": str(folder / "events.sock"), "control": str(folder / "c.sock")} | more)
    return closing(bind_listeners(listen, inherited or {}))


def unix_listener(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    listener.setblocking(False)
    return listener


def tcp() -> socket.socket:
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    return listener


class Certificate:
    """A certificate authority, and a certificate of it for this host as files."""

    def __init__(self, folder: Path, *names: str) -> None:
        self.authority = trustme.CA()
        issued = self.authority.issue_cert(*(names or ("localhost", "127.0.0.1")))
        self.cert, self.key = folder / "cert.pem", folder / "key.pem"
        issued.cert_chain_pems[0].write_to_path(self.cert)
        issued.private_key_pem.write_to_path(self.key)

    @property
    def listen(self) -> dict[str, str]:
        return {"https": "127.0.0.1:0", "tls_cert": str(self.cert), "tls_key": str(self.key)}

    def client(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        return context


async def serve(harness, sockets: BoundSockets) -> None:
    await harness.nursery.start(lambda task_status: harness.serve(sockets, descriptors=1_000, task_status=task_status))


async def post_over(stream: trio.abc.Stream, host: str = "localhost") -> bytes:
    body = b'{"event":"x","userId":"u"}'
    head = f"POST /v1/track HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    await stream.send_all(head.encode() + body)
    return bytes(await stream.receive_some(4096))


async def open_tls(certificate: Certificate, port: int, host: str) -> trio.SSLStream:
    # By address: a minimal Debian has no /etc/hosts that resolves localhost.
    plain = await trio.open_tcp_stream("127.0.0.1", port)
    return trio.SSLStream(plain, certificate.client(), server_hostname=host, https_compatible=True)


async def test_tls_client_is_served_beside_broken_ones(tmp_path, folder: Path):
    certificate = Certificate(folder)
    with bound(folder, **certificate.listen, http="127.0.0.1:0") as sockets:
        async with receiving(tmp_path / "o.db") as harness:
            await serve(harness, sockets)
            port = sockets.https[0].getsockname()[1]
            silent = await trio.open_tcp_stream("127.0.0.1", port)
            plain = await trio.open_tcp_stream("127.0.0.1", port)
            await plain.send_all(b"POST /v1/track HTTP/1.1\r\n\r\n")
            garbage = await trio.open_tcp_stream("127.0.0.1", port)
            await garbage.send_all(b"\x16\x03\x01\xff\xff" + b"\0" * 200)
            with trio.fail_after(10):
                for host in ("localhost", "127.0.0.1"):
                    stream = await open_tls(certificate, port, host)
                    assert b'"accepted":1' in await post_over(stream, host)
                    assert stream.selected_alpn_protocol() in (None, "http/1.1")
                    await stream.aclose()
                foreign = await open_tls(certificate, port, "localhost")
                assert b" 403 " in await post_over(foreign, "evil.example")
                await foreign.aclose()
            harness.shutdown.set()
            for stream in (silent, plain, garbage):
                await stream.aclose()
        assert harness.refused == []


async def test_all_listeners_are_served_also_several_of_one_name(tmp_path, folder: Path):
    paths = [folder / "one.sock", folder / "two.sock"]
    inherited = {"unix": [unix_listener(path) for path in paths], "http": [tcp(), tcp()]}
    with bound(folder, inherited) as sockets:
        async with receiving(tmp_path / "o.db") as harness:
            await serve(harness, sockets)
            with trio.fail_after(10):
                for path in paths:
                    async with await trio.open_unix_socket(str(path)) as stream:
                        await stream.send_all(b'{"type":"page"}\n')
                        assert await stream.receive_some(100) == b'{"success":true,"accepted":1}\n'
                for listener in inherited["http"]:
                    async with await trio.open_tcp_stream("127.0.0.1", listener.getsockname()[1]) as stream:
                        assert b'"accepted":1' in await post_over(stream)
            harness.shutdown.set()


async def test_connections_wait_in_an_inherited_socket_at_restart(tmp_path, folder: Path):
    listener = tcp()
    ours = listener.dup()
    port = listener.getsockname()[1]
    with bound(folder, {"http": [ours]}) as sockets:
        async with receiving(tmp_path / "o.db") as harness:
            await serve(harness, sockets)
            harness.shutdown.set()
            await trio.testing.wait_all_tasks_blocked()
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            with trio.move_on_after(0.05) as waited:
                await post_over(stream)
            assert waited.cancelled_caught, "it was answered after the shutdown"
    with bound(folder, {"http": [listener]}) as sockets:
        async with receiving(tmp_path / "o2.db") as harness:
            await serve(harness, sockets)
            with trio.fail_after(10):
                assert b'"accepted":1' in bytes(await stream.receive_some(4096))
            harness.shutdown.set()
            await stream.aclose()
