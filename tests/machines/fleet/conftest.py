"""One real server for all tests of a run."""

from collections.abc import Iterator

import pytest
from fleet_engine import EngineClient, EngineServer, find_server


@pytest.fixture(scope="session")
def server(tmp_path_factory) -> Iterator[EngineServer]:
    program = find_server()
    if program is None:
        pytest.skip("neither redis-server nor valkey-server is installed")
    with EngineServer(tmp_path_factory.mktemp("engine"), program) as started:
        yield started


@pytest.fixture
def client(server) -> Iterator[EngineClient]:
    connected = EngineClient(server.path)
    connected.command("FLUSHALL")
    yield connected
    connected.close()
