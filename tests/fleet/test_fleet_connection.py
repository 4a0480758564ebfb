"""The connection to the engine over a memory stream: what a call returns or raises, and how long it takes."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import hiredis
import pytest
import trio
from trio.testing import memory_stream_pair

from sidecar.config import FleetConfig, Secret
from sidecar.fleet.connection import EngineAway, EngineConnection, EngineRefused

INFO = "redis_version:7.0.15\r\nrole:master\r\nrun_id:1234\r\n"
TIMEOUT_S = 0.5


def bulk(text: str) -> bytes:
    return b"$%d\r\n%s\r\n" % (len(text), text.encode())


class Engine:
    """Answers each command with the reply of its name; None leaves the command without an answer."""

    def __init__(self, **replies: bytes | None) -> None:
        self.replies: dict[str, bytes | None] = {"INFO": bulk(INFO), **replies}
        self.commands: list[list[bytes]] = []
        self.wait_s = 0.0  # WAIT answers this much later than it was asked to

    async def serve(self, stream: trio.abc.Stream) -> None:
        reader = hiredis.Reader()
        async with stream:
            while data := await stream.receive_some(65_536):
                reader.feed(bytes(data))
                while (command := reader.gets()) is not False:
                    await self._answer(stream, command)

    async def _answer(self, stream: trio.abc.Stream, command: list[bytes]) -> None:
        self.commands.append(command)
        name = command[0].decode()
        if name == "WAIT" and self.wait_s:
            await trio.sleep(int(command[2]) / 1000 + self.wait_s)
        if (reply := self.replies.get(name)) is not None:
            await stream.send_all(reply)


@asynccontextmanager
async def connected(engine: Engine, replicas: int = 0, password: str = "") -> AsyncIterator[EngineConnection]:
    async with trio.open_nursery() as nursery:

        async def open_stream() -> trio.abc.Stream:
            ours, theirs = memory_stream_pair()
            nursery.start_soon(engine.serve, theirs)
            return ours

        config = FleetConfig(url="redis://host", name="t", replicas=replicas)
        connection = EngineConnection(config, Secret(password), open_stream=open_stream)
        await connection.connect()
        yield connection
        await connection.aclose()
        nursery.cancel_scope.cancel()


async def run(connection: EngineConnection, replicas: int = 0) -> object:
    return await connection.run_script("digest", "script", ["key"], [], replicas=replicas, timeout_s=TIMEOUT_S)


async def test_an_answer_with_its_replicas_counts(autojump_clock):
    async with connected(Engine(EVALSHA=b"+done\r\n", WAIT=b":1\r\n")) as connection:
        assert await run(connection, 1) == b"done"


async def test_wait_ends_before_the_deadline_of_the_call(autojump_clock):
    """A server looks for blocked clients whose time is over only ten times a second; WAIT answers late by up to 0.1 s."""
    engine = Engine(EVALSHA=b"+done\r\n", WAIT=b":0\r\n")
    engine.wait_s = 0.1
    async with connected(engine, 1) as connection:
        began_s = trio.current_time()
        with pytest.raises(EngineAway, match="Only 0 of 1 replicas of the fleet's engine at host:6379"):
            await run(connection, 1)
        assert trio.current_time() - began_s <= TIMEOUT_S - 0.1


async def test_an_unanswered_wait_is_a_lack_of_replicas(autojump_clock):
    """It was called an engine that cannot be reached, although the engine had answered the call itself."""
    async with connected(Engine(EVALSHA=b"+done\r\n", WAIT=None), 1) as connection:
        with pytest.raises(EngineAway, match="Only 0 of 1 replicas"):
            await run(connection, 1)
        with pytest.raises(EngineAway, match="not connected"):  # the late answer must not be taken for another one
            await run(connection, 0)


async def test_an_unanswered_call_is_an_engine_out_of_reach(autojump_clock):
    async with connected(Engine(EVALSHA=None, WAIT=None)) as connection:
        with pytest.raises(EngineAway, match="does not answer in time"):
            await run(connection, 1)


async def test_a_refused_wait_is_not_a_call_without_effect(autojump_clock):
    """The script has run by then; a host that believed otherwise would send alone while its lease lasts."""
    engine = Engine(EVALSHA=b"+done\r\n", WAIT=b"-NOPERM this user has no permissions to run the 'wait' command\r\n")
    async with connected(engine) as connection:
        with pytest.raises(EngineAway, match="grant the user the rights"):
            await run(connection, 1)


async def test_a_forgotten_script_is_sent_again(autojump_clock):
    engine = Engine(EVALSHA=b"-NOSCRIPT No matching script.\r\n", EVAL=b"+done\r\n", WAIT=b":1\r\n")
    async with connected(engine) as connection:
        assert await run(connection, 1) == b"done"
    assert [command[0] for command in engine.commands] == [b"INFO", b"EVALSHA", b"WAIT", b"EVAL", b"WAIT"]


@pytest.mark.parametrize(
    ("error", "raised", "words"),
    [
        ("READONLY You can't write against a read only replica.", EngineRefused, "set fleet.url to the primary"),
        ("MOVED 1234 10.0.0.2:6379", EngineRefused, "the node that the error names"),
        ("OOM command not allowed", EngineRefused, "raise its maxmemory"),
        ("ERR unknown", EngineAway, "check the engine"),
        # Of a command inside the script: what came before it is done. Redis 7.0, and later ones.
        ("ERR The user executing the script can't run this command or subcommand script: 1", EngineAway, "the rights"),
        ("ERR ACL failure in script: User px has no permissions to run 'hset'", EngineAway, "the rights"),
    ],
)
async def test_an_error_of_the_engine_says_what_to_do(autojump_clock, error, raised, words):
    async with connected(Engine(EVALSHA=f"-{error}\r\n".encode())) as connection:
        with pytest.raises(raised, match=words):
            await run(connection, 0)


@pytest.mark.parametrize(
    ("info", "words"),
    [
        ("redis_version:5.0.1\r\nrole:master\r\nrun_id:1\r\n", "has version 5.0.1; use Redis 6.2"),
        ("redis_version:7.0.1\r\nrole:slave\r\nrun_id:1\r\n", "set fleet.url to the primary"),
        ("redis_version:7.0.1\r\nrole:master\r\n", "neither run_id nor master_replid"),
    ],
)
async def test_an_unusable_engine_is_refused(autojump_clock, info, words):
    with pytest.RaisesGroup(pytest.RaisesExc(EngineRefused, match=words)):
        async with connected(Engine(INFO=bulk(info))):
            pass


async def test_a_wrong_password_says_that_a_new_one_needs_a_restart(autojump_clock):
    """The file is read at the start; with the right password in it `check` was content, and nothing else happened."""
    with pytest.RaisesGroup(pytest.RaisesExc(EngineRefused, match="password_file, and restart the daemon after")):
        async with connected(Engine(AUTH=b"-WRONGPASS invalid username-password pair\r\n"), password="old"):
            pass


async def test_a_password_that_the_server_repeats_is_not_shown(autojump_clock):
    """As Redis does where AUTH has been renamed."""
    refusal = b"-ERR unknown command 'AUTH', with args beginning with: 'MARKED' \r\n"
    with pytest.RaisesGroup(pytest.RaisesExc(EngineAway, match=r"refuses \(ERR unknown command 'AUTH'\); check")):
        async with connected(Engine(AUTH=refusal), password="MARKED"):
            pass


async def test_an_engine_with_too_few_replicas_is_not_called(autojump_clock):
    """A stale primary; each call without its replicas would bring seconds of silence to a host that could be alone."""
    info = "redis_version:7.0.1\r\nrole:master\r\nrun_id:1\r\nconnected_slaves:0\r\n"
    with pytest.RaisesGroup(pytest.RaisesExc(EngineAway, match="Only 0 of 1 replicas")):
        async with connected(Engine(INFO=bulk(info)), 1):
            pass


@pytest.mark.parametrize(("content", "reason"), [(None, "No such file or directory"), ("", "it holds no certificate")])
async def test_a_ca_file_that_cannot_be_used_is_named(tmp_path, content, reason):
    """The advice was to check the engine, or to do without TLS."""
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    connection = EngineConnection(FleetConfig(url="rediss://127.0.0.1:1", name="t", ca_file=str(path)), Secret())
    with pytest.raises(EngineRefused, match=rf"fleet\.ca_file, {path} \({reason}\)"):
        await connection.connect()


@pytest.mark.parametrize("reply", [b"+OK\r\n", b"*0\r\n", b"*2\r\n+a\r\n+b\r\n", b"$-1\r\n"], ids=str)
async def test_an_answer_of_another_form_is_reported_and_ends_nothing(reply):
    """A proxy that answers for the engine ended the daemon."""
    connection = EngineConnection(FleetConfig(url="redis://host", name="t"), Secret())
    connection._stream, theirs = memory_stream_pair()
    await theirs.send_all(reply)
    with pytest.raises(EngineAway, match="does not answer as Redis does"):
        await connection.time_us(1.0)


async def test_a_peer_that_is_no_engine_is_reported_and_ends_nothing():
    """A load balancer answers HTTP while no engine is behind it: hiredis's error ended the daemon."""

    async def open_stream() -> trio.abc.Stream:
        ours, theirs = memory_stream_pair()
        await theirs.send_all(b"HTTP/1.0 503 Service Unavailable\r\n\r\n")
        return ours

    connection = EngineConnection(FleetConfig(url="redis://host", name="t"), Secret(), open_stream=open_stream)
    with pytest.raises(EngineAway, match="does not answer as Redis does"):
        await connection.connect()
