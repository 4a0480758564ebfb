"""The connection and `check` against a real engine: passwords, rights, replicas, limits of the daemon around it."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trustme
from fleet_engine import EngineClient, EngineServer, path_of

from sidecar.config import FleetConfig, Secret
from sidecar.fleet.connection import EngineAway, EngineConnection, EngineRefused
from sidecar.fleet.runner import load_script
from sidecar.fleet.trial import try_engine
from sidecar.fleet.wire import keys_of
from sidecar.sandbox.server import free_ports

SCRIPT = load_script()
DIGEST = hashlib.sha1(SCRIPT.encode()).hexdigest()
RIGHTS = (
    "-@all +eval +evalsha +auth +select +ping +info +wait +time +hmget +hget +hset +hdel +hincrby +hgetall +hlen "
    "+zadd +zrem +zcard +zscore +zrangebyscore +zremrangebyscore +del +pexpire"
)


@pytest.fixture(scope="module", params=["redis", "valkey"])
def server(request, tmp_path_factory) -> Iterator[EngineServer]:
    """Each server in turn."""
    with EngineServer(tmp_path_factory.mktemp("engine"), path_of(request.param)) as started:
        yield started


def config_of(server: EngineServer, **fields) -> FleetConfig:
    return FleetConfig(url=f"unix://{server.path}", name="t", **fields)


async def look(connection: EngineConnection, replicas: int = 0, timeout_s: float = 5.0):
    """Call the script; the timeout is a busy machine's unless a test is about it."""
    return await connection.run_script(DIGEST, SCRIPT, keys_of("t"), ["look"], replicas=replicas, timeout_s=timeout_s)


async def test_the_script_is_loaded_when_the_engine_does_not_have_it(server, client):
    client.command("SCRIPT", "FLUSH")
    connection = EngineConnection(config_of(server), Secret())
    info = await connection.connect()
    assert len(info.run) == 40
    assert (await look(connection))[0] == b"ok"
    assert await connection.time_us(5.0) > 10**15
    await connection.aclose()


async def test_the_rights_of_the_page_are_enough(server, client):
    assert client.command("ACL", "SETUSER", "px", "on", ">secret", "~{px:t}:*", *RIGHTS.split()) == b"OK"
    trials = await try_engine(config_of(server, username="px"), Secret("secret"))
    assert [trial.level for trial in trials if trial.level == "error"] == []
    connection = EngineConnection(config_of(server, username="px"), Secret("secret"))
    await connection.connect()
    await look(connection)
    await connection.aclose()


async def test_a_missing_right_and_a_wrong_password_say_what_to_do(server, client):
    client.command("ACL", "SETUSER", "poor", "on", ">secret", "~{px:t}:*", *RIGHTS.replace("+hset ", "").split())
    (trial,) = await try_engine(config_of(server, username="poor"), Secret("secret"))
    assert trial.level == "error"
    with pytest.raises(EngineRefused, match=r"check fleet\.username and fleet\.password_file"):
        await EngineConnection(config_of(server, username="poor"), Secret("other")).connect()


@pytest.mark.parametrize("name", ["redis", "valkey"])
async def test_a_user_with_the_rights_of_the_page_works_over_tcp(tmp_path, name):
    (port,) = free_ports(1)
    with EngineServer(tmp_path, path_of(name), ("--port", str(port))) as server:
        client = EngineClient(server.path)
        client.command("ACL", "SETUSER", "px", "on", ">secret", "~{px:t}:*", *RIGHTS.split())
        client.command("ACL", "SETUSER", "default", "off")
        client.close()
        config = FleetConfig(url=f"redis://127.0.0.1:{port}", name="t", username="px")
        assert [trial.level for trial in await try_engine(config, Secret("secret"))] == ["ok"] * 4
        with pytest.raises(EngineRefused, match=r"set fleet\.password_file"):
            await EngineConnection(config, Secret()).connect()


def certificates(folder: Path) -> tuple[str, ...]:
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    files = (("cert-file", "cert.pem"), ("key-file", "key.pem"), ("ca-cert-file", "ca.pem"))
    return tuple(text for option, file in files for text in (f"--tls-{option}", str(folder / file)))


async def test_rediss_checks_the_engines_certificate(tmp_path):
    """With Redis only: the Valkey of the wheel is built without TLS."""
    (port,) = free_ports(1)
    options = ("--port", "0", "--tls-port", str(port), "--tls-auth-clients", "no", *certificates(tmp_path))
    with EngineServer(tmp_path, path_of("redis"), options):
        config = FleetConfig(url=f"rediss://localhost:{port}", name="t", ca_file=str(tmp_path / "ca.pem"))
        connection = EngineConnection(config, Secret())
        await connection.connect()
        assert (await look(connection))[0] == b"ok"
        await connection.aclose()
        with pytest.raises(EngineAway, match=r"certificate is not accepted: .*; set fleet\.ca_file"):
            await EngineConnection(FleetConfig(url=config.url, name="t"), Secret()).connect()


async def test_a_plain_engine_behind_rediss_is_one_sentence(tmp_path):
    (port,) = free_ports(1)
    connection = EngineConnection(FleetConfig(url=f"rediss://localhost:{port}", name="t"), Secret())
    with (
        EngineServer(tmp_path, path_of("redis"), ("--port", str(port))),
        pytest.raises(EngineAway, match="does not answer in time, or does not speak TLS"),
    ):
        await connection.connect()


async def test_an_engine_that_is_away_is_one_sentence(tmp_path):
    config = FleetConfig(url=f"unix://{tmp_path}/nothing", name="t")
    with pytest.raises(EngineAway, match=r"cannot be reached .*; check it and fleet\.url"):
        await EngineConnection(config, Secret()).connect()


async def test_an_answer_without_its_replicas_does_not_count(server):
    connection = EngineConnection(config_of(server), Secret())
    await connection.connect()
    with pytest.raises(EngineAway, match="Only 0 of 1 replicas"):
        await look(connection, replicas=1, timeout_s=1.0)
    await connection.aclose()


async def test_a_replica_is_refused(server, tmp_path):
    with EngineServer(tmp_path) as other:
        replica = EngineClient(other.path)
        replica.command("REPLICAOF", "127.0.0.1", "1")
        replica.close()
        with pytest.raises(EngineRefused, match=r"set fleet\.url to the primary"):
            await EngineConnection(config_of(other), Secret()).connect()


async def test_a_frozen_engine_ends_the_call_in_time(server):
    connection = EngineConnection(config_of(server), Secret())
    await connection.connect()
    server.process.send_signal(19)
    try:
        began_s = trio.current_time()
        with pytest.raises(EngineAway, match="does not answer in time"):
            await look(connection, timeout_s=0.5)
        assert trio.current_time() - began_s < 2
    finally:
        server.process.send_signal(18)
