"""A console process, and what it refuses: each row of sidecar/console/README.md#attacks that needs a server."""

import json
import socket
import threading
import time
from pathlib import Path

import pytest
from console_process import ConsoleProcess, running_console, wait_for
from running_daemon import DaemonDir

from sidecar.config import ConfigFile

SOURCE = '[[source]]\nwrite_key = "wk_very_secret"\nproperty_key = "AP-YYYYYYYYYY-2"\n[mapping.events]\n"Clicked" = "Click"\n'


def config_file(daemon_dir: DaemonDir) -> ConfigFile:
    return ConfigFile(str(daemon_dir.file), {})


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """One daemon and one console for all attacks that change nothing."""
    daemon_dir = DaemonDir(tmp_path_factory.mktemp("console"), SOURCE)
    with daemon_dir.running(config_file=config_file(daemon_dir)) as daemon, running_console(daemon_dir.file) as console:
        console.sign_in()
        yield daemon, console


def test_the_page_is_served_and_everything_else_needs_a_token(served):
    _, console = served
    status, page = console.request("GET", "/", token=False)
    assert status == 200
    assert b"<title>px-sidecar" in page
    assert "frame-ancestors 'none'" in console.headers["Content-Security-Policy"]
    assert console.request("GET", "/api/v1/status", token=False)[0] == 401
    assert console.get("/v1/status")[1]["state"] == "open"


def test_a_used_or_guessed_code_is_worth_nothing(served):
    _, console = served
    for code in (console.code, "", "x" * 5_000, "\x00"):
        status, answer = console.request("POST", "/session", {"code": code}, token=False)
        assert status == 401, answer
    assert console.request("POST", "/session", {"key": 1}, token=False)[0] == 400
    assert console.request("GET", "/session", token=False)[0] == 405


def test_enter_prints_a_code_for_another_tab(served):
    _, console = served
    another = console.press_enter().partition("#code=")[2]
    assert another != console.code
    assert console.request("POST", "/session", {"code": another}, token=False)[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Host": "rebound.example"},
        {"Connection": "Upgrade", "Upgrade": "websocket", "Origin": "http://evil.example"},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
    ],
    ids=str,
)
@pytest.mark.parametrize("path", ["/session", "/api/v1/pause", "/api/file/save"])
def test_another_page_is_refused_even_with_a_token(served, path, headers):
    daemon, console = served
    status, _ = console.request("POST", path, {"code": "x"}, headers)
    assert status in (403, 415)
    assert "Access-Control-Allow-Origin" not in console.headers
    assert daemon.status()["state"] == "open"


@pytest.mark.parametrize("path", ["/api/v1/live", "/api/v1/tail"])
def test_a_stream_is_guarded_like_everything(served, path):
    _, console = served
    assert console.request("GET", path, headers={"Origin": "http://evil.example"})[0] == 403
    assert console.request("GET", path, token=False)[0] == 401
    assert console.request("GET", path, token=False, headers={"Cookie": f"token={console.token}"})[0] == 401


@pytest.mark.parametrize(
    "path",
    [
        "/../config.toml",
        "/static/../../control.sock",
        "/%2e%2e/%2e%2e/etc/passwd",
        "//etc/passwd",
        "/vendor/../server.py",
        "/api/v1/../v1/status",
        "/api/v1/status%20HTTP/1.1%0d%0aHost:%20x",
        "/api/v1/nothing",
        "/api/v1/events/1/../../status",
        "/api/../session",
    ],
)
def test_a_path_trick_finds_nothing(served, path):
    _, console = served
    assert console.request("GET", path)[0] == 404


def test_trace_and_connect_are_refused(served):
    _, console = served
    for method in ("TRACE", "OPTIONS", "PUT", "DELETE"):
        assert console.request(method, "/")[0] == 405
    assert raw(console, f"CONNECT 127.0.0.1:{console.port} HTTP/1.1\r\nHost: x\r\n\r\n".encode())[9:12] in (
        b"400",
        b"405",
    )


def resident_kb(console: ConsoleProcess) -> int:
    lines = Path(f"/proc/{console.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def raw(console: ConsoleProcess, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", console.port), timeout=10) as stream:
        stream.sendall(data)
        stream.shutdown(socket.SHUT_WR)
        received = b""
        while part := stream.recv(65_536):
            received += part
        return received


def test_a_request_cannot_be_smuggled_to_the_control_socket(served):
    daemon, console = served
    inner = b"POST /v1/pause HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
    head = (
        f"Host: 127.0.0.1:{console.port}\r\nAuthorization: Bearer {console.token}\r\nContent-Type: application/json\r\n"
    )
    for framing in (
        f"Content-Length: {len(inner)}\r\nTransfer-Encoding: chunked\r\n",
        f"Content-Length: 5\r\nContent-Length: {len(inner)}\r\n",
        f"Content-Length: {len(inner)}\r\n",
        "Transfer-Encoding: xchunked\r\n",
    ):
        raw(console, f"POST /api/v1/dead/count HTTP/1.1\r\n{head}{framing}\r\n".encode() + inner)
        raw(console, f"GET /api/v1/events?name=a%0d%0a HTTP/1.1\r\n{head}{framing}\r\n".encode() + inner)
    assert console.get("/v1/events?name=a%0d%0aHost:%20x")[0] == 200
    assert daemon.status()["state"] == "open"


def test_script_in_everything_stays_text_in_json(served):
    daemon, console = served
    evil = '</script><img src=x onerror=alert(1)>"'
    daemon.track(evil, evil, properties={evil: evil})
    daemon.settle()
    status, answer = console.get("/v1/events?limit=1")
    assert status == 200
    assert console.headers["Content-Type"] == "application/json"
    assert console.headers["X-Content-Type-Options"] == "nosniff"
    assert answer["events"][0]["name"] == evil


def test_no_secret_reaches_the_page(served):
    _, console = served
    answers = [console.get(path)[1] for path in ("/file", "/v1/config", "/v1/config/file", "/v1/log", "/console")]
    toml = answers[0]["toml"]
    answers.append(console.post("/file/diff", {"toml": toml + "# x\n"})[1])
    answers.append(console.post("/v1/mapping/preview", {"toml": toml, "unmatched": True})[1])
    answers.append(console.post("/v1/config/check", {"toml": toml})[1])
    assert answers[-1]["changes"] == []  # the secrets were put back for the daemon
    stolen = toml + '\n[mapping.attributes]\nset = { stolen = "****1" }\n'
    for path in ("/v1/mapping/preview", "/v1/config/check", "/v1/map"):
        status, answer = console.post(path, {"toml": stolen} | ({"events": []} if path == "/v1/map" else {}))
        assert status == 409
        answers.append(answer)
    assert "wk_very_secret" not in json.dumps(answers)


def test_giant_deep_and_many_values_are_answered(served):
    daemon, console = served
    deep: dict = {}
    for _ in range(40):
        deep = {"a": deep}
    daemon.track("giant", "Giant", properties={"text": "x" * 25_000, "deep": deep})
    daemon.settle()
    began = time.monotonic()
    status, answer = console.post("/v1/mapping/preview", {"name": "Giant"})
    assert status == 200
    assert len(answer["rows"]) == 1
    assert time.monotonic() - began < 2
    for toml in ("x = " + "[" * 5_000, "x = " + "{a=" * 5_000, ".".join("a" * 3_000) + " = 1"):
        assert "nested too deeply" in console.post("/file/edit", {"toml": toml})[1]["error"]
        assert console.post("/file/diff", {"toml": toml})[0] == 200
        for path in ("/v1/config/check", "/v1/mapping/preview"):
            assert "nested too deeply" in console.post(path, {"toml": toml})[1]["error"]
    assert console.request("POST", "/api/v1/map", {"events": [{}] * 1_001})[0] == 400
    assert console.request("POST", "/api/v1/map", {"x": "y" * 6_000_000})[0] == 413


def test_a_slow_reader_costs_others_nothing(served):
    daemon, console = served
    with socket.create_connection(("127.0.0.1", console.port)) as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        head = f"Host: 127.0.0.1:{console.port}\r\nAuthorization: Bearer {console.token}\r\n"
        slow.sendall(f"GET /api/v1/live HTTP/1.1\r\n{head}\r\n".encode())
        wait_for(lambda: daemon.app.telemetry.sample.listening, "the subscription")
        before_kb = resident_kb(console)
        for number in range(150):
            daemon.track(f"u{number}", "Slow", properties={"text": "x" * 30_000})
            time.sleep(0.03)  # some seconds, in each of which ten are shown: far more than its buffers hold
        began = time.monotonic()
        assert console.get("/v1/status")[0] == 200
        assert time.monotonic() - began < 1
        with socket.create_connection(("127.0.0.1", console.port), timeout=5) as quick:
            quick.sendall(f"GET /api/v1/live HTTP/1.1\r\n{head}\r\n".encode())
            received = b""
            while b'"sample"' not in received:
                received += quick.recv(65_536)
        assert daemon.settle()["dead"] == 0
        assert resident_kb(console) < before_kb + 10_000


def test_read_only_lets_no_changing_call_out(served):
    daemon, _ = served
    with running_console(daemon.daemon_dir.file, "--read-only") as console:
        console.sign_in()
        loaded = console.get("/file")[1]
        for path in (
            "/v1/pause",
            "/v1/dead/discard",
            "/v1/send",
            "/v1/reload",
            "/v1/audit/note",
            "/v1/forget",
            "/v1/import",
        ):
            assert console.post(path, {"all": True})[0] == 403
        assert console.post("/file/save", {"toml": loaded["toml"] + "# x\n", "sha256": loaded["sha256"]})[0] == 409
        assert console.post("/v1/dead/count", {"all": True})[0] == 200
        assert console.get("/console")[1]["read_only"]
    assert daemon.status()["state"] == "open"


def test_hidden_bodies_stay_hidden(served):
    daemon, _ = served
    daemon.track("ann@example.com", "Opened", properties={"secret": "needle"})
    daemon.settle()
    with running_console(daemon.daemon_dir.file, "--hide-bodies") as console:
        console.sign_in()
        shown = [console.get(path)[1] for path in ("/v1/status", "/v1/series", "/v1/events", "/v1/dead/groups")]
        assert "needle" not in json.dumps(shown)
        assert "ann@example.com" not in json.dumps(shown)
        event = shown[2]["events"][0]["id"]
        for path in (f"/v1/events/{event}", "/v1/dead", "/v1/config", "/v1/tail", "/v1/log", "/v1/checks", "/file"):
            assert console.get(path)[0] == 403
        assert len(console.get("/v1/events?user=nobody")[1]["events"]) > 0  # a search would reveal what is hidden
        assert console.post("/v1/dead/count", {"user": "ann@example.com"})[0] == 403  # so would a count


@pytest.mark.parametrize(
    ("address", "tunnel"),
    [("127.0.0.1:0", "127.0.0.1"), ("127.0.0.2:0", "127.0.0.2"), ("[::1]:0", "[::1]"), ("0.0.0.0:0", "127.0.0.1")],
)
def test_the_tunnel_leads_to_where_the_console_listens(served, address, tunnel):
    daemon, _ = served
    remote = {"SSH_CONNECTION": "192.0.2.1 50000 192.0.2.2 22"}
    with running_console(daemon.daemon_dir.file, "--address", address, environ=remote) as console:
        line = console.process.stdout.readline()
    assert console.url.startswith(f"http://{tunnel}:{console.port}/")
    assert f"ssh -L {console.port}:{tunnel}:{console.port} " in line


def test_another_address_says_what_it_means(served):
    daemon, _ = served
    with running_console(daemon.daemon_dir.file, "--address", "0.0.0.0:0") as console:
        own = f"192.0.2.7:{console.port}"
        assert console.request("GET", "/", headers={"Host": own}, token=False)[0] == 200
        assert console.request("GET", "/", headers={"Host": f"rebound.example:{console.port}"}, token=False)[0] == 403
        console.process.terminate()
        said = console.process.stderr.read()
    assert "every host that reaches 0.0.0.0 can open this page" in said
    assert "unencrypted" in said
    assert "From another host" in said


# What a person does ---------------------------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path):
    """A daemon and a console that one test may change."""
    daemon_dir = DaemonDir(tmp_path, SOURCE)
    with daemon_dir.running(config_file=config_file(daemon_dir)) as daemon, running_console(daemon_dir.file) as console:
        yield daemon, console.sign_in()


def test_a_save_is_in_force_and_audited(own):
    daemon, console = own
    loaded = console.get("/file")[1]
    change = {"path": ["mapping", "events", "Clicked"], "value": "Button Clicked"}
    edited = console.post("/file/edit", {"toml": loaded["toml"], "changes": [change]})[1]
    status, saved = console.post("/file/save", {"toml": edited["toml"], "sha256": loaded["sha256"]})
    assert status == 200, saved
    assert (saved["reloaded"], saved["changed"]) == (True, ["mapping.events"])
    assert daemon.app.config.mapping.events == {"Clicked": "Button Clicked"}
    assert 'write_key = "wk_very_secret"' in daemon.daemon_dir.file.read_text()
    note = daemon.client.get("/v1/audit")["changes"][0]
    assert note["action"] == "configuration"
    assert "mapping.events" in note["detail"]


def test_what_the_daemon_refuses_is_put_back(own):
    daemon, console = own
    before = daemon.daemon_dir.file.read_text()
    loaded = console.get("/file")[1]
    wrong = loaded["toml"] + '[mapping.attributes]\ndrop = ["a"]\nrename = { b = "a" }\n'
    status, answer = console.post("/file/save", {"toml": wrong, "sha256": loaded["sha256"]})
    assert status == 409
    assert "creates 'a'" in answer["error"]
    assert daemon.daemon_dir.file.read_text() == before
    assert console.post("/file/save", {"toml": loaded["toml"], "sha256": "0" * 64})[0] == 409


def test_a_save_without_a_daemon_is_read_at_its_start(own):
    daemon, console = own
    loaded = console.get("/file")[1]
    daemon.stop()
    assert console.get("/v1/status")[0] == 502
    status, saved = console.post("/file/save", {"toml": loaded["toml"] + "# x\n", "sha256": loaded["sha256"]})
    assert status == 200
    assert not saved["reloaded"]
    assert daemon.daemon_dir.file.read_text().endswith("# x\n")


def test_a_daemon_that_cannot_read_the_file_is_not_taken_for_none(tmp_path):
    """The text was saved and never reloaded, with "the daemon does not run; it reads the file when it starts"."""
    daemon_dir = DaemonDir(tmp_path, SOURCE)
    before = daemon_dir.file.read_text()
    with daemon_dir.running(), running_console(daemon_dir.file) as console:
        loaded = console.sign_in().get("/file")[1]
        status, answer = console.post("/file/save", {"toml": loaded["toml"] + "# x\n", "sha256": loaded["sha256"]})
    assert status == 409
    assert "Not saved: There is no configuration file to read" in answer["error"]
    assert daemon_dir.file.read_text() == before


def test_a_file_is_the_daemons_however_its_path_is_written(own):
    daemon, _ = own
    dotted = daemon.daemon_dir.file.parent / "folder" / ".." / "config.toml"
    (daemon.daemon_dir.file.parent / "folder").mkdir()
    with running_console(dotted) as console:
        loaded = console.sign_in().get("/file")[1]
        status, saved = console.post("/file/save", {"toml": loaded["toml"] + "# x\n", "sha256": loaded["sha256"]})
    assert (status, saved.get("reloaded")) == (200, True), saved


def test_the_console_survives_a_restart_of_the_daemon(own):
    daemon, console = own
    daemon.stop()
    assert "does not answer" in console.get("/v1/status")[1]["error"]
    with daemon.daemon_dir.running():
        assert console.get("/v1/status")[0] == 200


def test_the_daemon_of_another_file_is_noticed(own, tmp_path):
    daemon, _ = own
    other = tmp_path / "other.toml"
    other.write_text(daemon.daemon_dir.file.read_text())
    with running_console(other) as console:
        console.sign_in()
        loaded = console.get("/file")[1]
        status, answer = console.post("/file/save", {"toml": loaded["toml"] + "# x\n", "sha256": loaded["sha256"]})
    assert status == 409
    assert f"the daemon reads {daemon.daemon_dir.file}" in answer["error"]


def test_checks_are_those_of_the_verb(own):
    _, console = own
    status, answer = console.get("/v1/checks")
    assert status == 200
    assert {"ok", "warning", "error"} >= {check["level"] for check in answer["findings"]}


def test_the_end_of_standard_input_does_not_end_it(own):
    _, console = own
    console.process.stdin.close()
    console.process.stdin = None
    time.sleep(0.3)
    assert console.get("/console")[0] == 200


def test_without_a_daemon_it_says_so(tmp_path):
    daemon_dir = DaemonDir(tmp_path)
    with pytest.raises(AssertionError, match="ended without an address"), running_console(daemon_dir.file):
        pass


def test_the_memory_stays_small(own):
    _, console = own
    threads = [threading.Thread(target=console.get, args=("/v1/status",)) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert resident_kb(console) < 60_000


def test_a_stream_ends_with_the_page(own):
    daemon, console = own
    with socket.create_connection(("127.0.0.1", console.port)) as page:
        head = f"Host: 127.0.0.1:{console.port}\r\nAuthorization: Bearer {console.token}\r\n"
        page.sendall(f"GET /api/v1/live HTTP/1.1\r\n{head}\r\n".encode())
        wait_for(lambda: daemon.app.telemetry.sample.listening, "the subscription")
    wait_for(lambda: not daemon.app.telemetry.sample.listening, "its end")
