"""The description of both interfaces: complete, and true of a running daemon (schemathesis)."""

import http.client
import io
import socket
from collections.abc import Mapping
from urllib.parse import urlsplit

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from requests import Session
from requests.adapters import HTTPAdapter
from running_daemon import DaemonDir, always, wait_until
from schemathesis.specs.openapi import checks
from urllib3 import HTTPResponse

from sidecar.config import ConfigFile
from sidecar.control.answers import READING_POSTS
from sidecar.control.audit import AUDITED
from sidecar.control.openapi import CALLS, openapi

# Streams without an end are tested on their own.
ENDLESS = {"/v1/tail", "/v1/live"}
CHECKS = [checks.status_code_conformance, checks.content_type_conformance, checks.response_schema_conformance]
OPERATIONS = [(call.method, path) for path, call in CALLS.items() if path not in ENDLESS]


def test_every_route_is_described_with_its_method(daemon_dir: DaemonDir):
    with daemon_dir.running() as daemon:
        assert {path: call.method for path, call in CALLS.items()} == daemon.app.control.routes


def test_calls_that_only_read_are_known_as_such():
    assert all(CALLS[path].method == "POST" for path in READING_POSTS)


def test_no_answer_has_a_field_without_a_description(daemon):
    wait_until(lambda: daemon.status()["dead"] == 3, "three dead letters")
    events = [{"type": "track", "event": "Opened", "userId": "u"}]
    answers = {
        "/v1/events/{id}": daemon.client.get("/v1/events/1"),
        "/v1/dead/{id}": daemon.client.get("/v1/dead/1"),
        "/v1/map": daemon.client.post("/v1/map", {"events": events}),
        "/v1/mapping/preview": daemon.client.post("/v1/mapping/preview", {"unmatched": True}),
        "/v1/trace": daemon.client.get("/v1/trace", {"user": "nobody"}),
        "/v1/config": daemon.client.get("/v1/config"),
    }
    for path, answer in answers.items():
        assert answer.keys() <= CALLS[path].answer.keys(), path


def test_every_changing_call_is_audited():
    changing = {path for path, call in CALLS.items() if call.method == "POST"} - READING_POSTS
    assert changing - {"/v1/audit/note"} == AUDITED.keys()


def test_ingest_calls_do_not_collide_with_the_control_api():
    paths = openapi()["paths"]
    assert paths["/v1/{call}"]["post"]["tags"] == ["ingest"]
    assert "import" in paths["/v1/{call}"]["post"]["parameters"][0]["schema"]["enum"]
    assert paths["/v1/import"]["post"]["tags"] == ["control"]


class OverUnixSocket(HTTPAdapter):
    """Lets requests speak to a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def send(self, request, **_):
        target = urlsplit(request.url)
        connection = http.client.HTTPConnection("x", timeout=20)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(20)
        connection.sock.connect(self.path)
        try:
            url = f"{target.path}?{target.query}" if target.query else target.path
            connection.request(request.method, url, request.body, dict(request.headers))
            answer = connection.getresponse()
            body, headers = answer.read(), dict(answer.getheaders())
        finally:
            connection.close()
        raw = HTTPResponse(io.BytesIO(body), headers, answer.status, reason=answer.reason, preload_content=False)
        return self.build_response(request, raw)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    """One daemon for all operations; PX refuses, so that there are dead letters."""
    folder = DaemonDir(tmp_path_factory.mktemp("openapi"))
    with folder.running(always(400), config_file=ConfigFile(str(folder.file), {})) as running:
        for number in range(3):
            running.track(f"u{number}", "Opened")
        yield running


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_the_daemon_answers_as_described(daemon, method, path):
    operation = schemathesis.openapi.from_dict(openapi())[path][method]
    session = Session()
    session.mount("http://", OverUnixSocket(daemon.daemon_dir.control))

    @given(case=operation.as_strategy())
    @settings(
        max_examples=15,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def check(case):
        response = case.call(base_url="http://px-sidecar", session=session)
        case.validate_response(response, checks=CHECKS)
        fields = CALLS[path].answer
        if response.status_code == 200 and isinstance(fields, Mapping):
            assert response.json().keys() <= fields.keys()  # no field without a description
        assert response.status_code in (200, 400, 404, 409), response.text

    check()
