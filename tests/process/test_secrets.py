"""No secret in any log line, status, metric, error, process list or row: everything is done, then everything is searched.

PX is played by a server that is as careless as a server can be: it answers with the request's own headers.
"""

import base64
import http.server
import json
import signal
import socket
import threading
import urllib.request
from pathlib import Path

import pytest
from stage import Stage, wait_until

API_KEY = "marked-api-key-7Q1xZ"
WRITE_KEYS = ("wk_marked_web_3Hf8", "wk_marked_app_9Lk2")
UNKNOWN_KEY = "wk_marked_unknown_5Tz"
MARKS = (API_KEY, *WRITE_KEYS, UNKNOWN_KEY)
ADMITTED = {"config.toml", "key", "sent.ndjson"}  # where the operator has written them


class Careless(http.server.BaseHTTPRequestHandler):
    """Refuses every event with a body that repeats what it was sent; ``status`` of the server says how."""

    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        said = json.dumps({"message": f"bad {self.headers.get('X-APTRINSIC-API-KEY')}: {dict(self.headers)}"}).encode()
        self.send_response(self.server.status, f"no {self.headers.get('X-APTRINSIC-API-KEY')}")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    do_GET = do_PUT = do_POST

    def log_message(self, *_):
        pass


@pytest.fixture
def careless():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Careless)
    server.status = 400
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join(5)


def forms(mark: str) -> list[bytes]:
    """A secret as it is, and as HTTP Basic carries it."""
    return [mark.encode(), base64.b64encode(f"{mark}:".encode()), base64.b64encode(mark.encode())]


def assert_clean(what: str, data: bytes | str) -> None:
    data = data.encode() if isinstance(data, str) else data
    for mark in MARKS:
        for form in forms(mark):
            at = data.find(form)
            assert at < 0, f"{mark} stands in {what}: …{data[max(0, at - 200) : at + 60]!r}"


def search_files(stage: Stage) -> int:
    searched = 0
    for path in Path(stage.folder).rglob("*"):
        if path.is_file() and path.name not in ADMITTED:
            assert_clean(str(path), path.read_bytes())
            searched += 1
    return searched


def search_processes(stage: Stage) -> None:
    for process in stage.processes:
        if process.poll() is None:
            assert_clean("the process list", Path(f"/proc/{process.pid}/cmdline").read_bytes())


def basic(key: str) -> dict[str, str]:
    return {"Authorization": f"Basic {base64.b64encode(f'{key}:'.encode()).decode()}"}


def send_in_every_way(stage: Stage) -> None:
    """Events with write keys where SDKs put them, and requests that are refused."""
    call = {"type": "track", "event": "Logged In", "userId": "u1"}
    answers = [stage.post("/v1/track", json.dumps(call).encode(), basic(key)) for key in (*WRITE_KEYS, UNKNOWN_KEY)]
    for key in (*WRITE_KEYS, UNKNOWN_KEY):
        body = json.dumps(
            {"writeKey": key, "batch": [call | {"writeKey": key}, call | {"type": "frob", "writeKey": key}]}
        )
        answers.append(stage.post("/v1/batch", body.encode(), {"Authorization": f"Bearer {key}"}))
        answers.append(stage.post("/v1/batch", body.encode()))
        answers.append(stage.post("/v1/track", json.dumps(call | {"writeKey": key, "userId": ["bad"]}).encode()))
        answers.append(stage.post("/v1/track", f'{{"writeKey":"{key}", broken'.encode()))
        answers.append(stage.post("/v1/track", json.dumps([{"writeKey": key}]).encode(), basic(key)))
    assert {status for status, _, _ in answers} >= {200, 400}
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(str(stage.unix))
        line.settimeout(10)
        for key in (*WRITE_KEYS, UNKNOWN_KEY):
            line.sendall(json.dumps(call | {"writeKey": key}).encode() + b"\n" + f'{{"writeKey":"{key}"\n'.encode())
        line.shutdown(socket.SHUT_WR)
        said = b"".join(iter(lambda: line.recv(65536), b""))
    for answer in (*(headers_and_body for _, *headers_and_body in answers), said):
        assert_clean("an answer", repr(answer))


def ask_every_verb(stage: Stage, *more: tuple[str, ...]) -> None:
    config = ("--config", str(stage.folder / "config.toml"))
    for verb in (
        ("status",),
        ("status", "--json"),
        ("events", "list", "--json"),
        ("events", "show", "1", "--json"),
        ("dead", "list"),
        ("dead", "list", "--json"),
        ("dead", "show", "1", "--json"),
        ("dead", "export"),
        ("config", "show"),
        ("config", "show", "--json"),
        ("check",),
        ("check", "--json"),
        ("reconcile",),
        ("outbox", "export"),
        ("pause",),
        ("resume",),
        ("statsu",),
        *more,
    ):
        done = stage.run(
            *verb, *(config if verb[0] in ("config", "check", "status", "run") else ()), PX_SIDECAR_CONFIG=config[1]
        )
        assert "Traceback" not in done.stderr, (verb, done.stderr)
        assert_clean(f"px-sidecar {' '.join(verb)}", done.stdout + done.stderr)
    for page in ("/status", "/metrics", "/health", "/cluster-info"):
        with urllib.request.urlopen(f"http://{stage.http}{page}", timeout=10) as answer:
            assert_clean(page, answer.read())


def test_no_secret_is_anywhere_but_where_the_operator_has_put_it(stage: Stage, careless):
    stage.sandbox_url = f"http://127.0.0.1:{careless.server_address[1]}"
    (stage.folder / "key").write_text(API_KEY)
    (stage.folder / "key").chmod(0o600)
    sources = "".join(f'[[source]]\nwrite_key = "{key}"\nproperty_key = "AP-YYYYYYYYYY-2"\n' for key in WRITE_KEYS)
    stage.write_config(
        sources + '[log]\nlevel = "debug"\n', px=f'api_key_file = "{stage.folder / "key"}"', deliver="per_second = 190"
    )
    daemon = stage.start_daemon(PX_SIDECAR_PX_API_KEY="")
    send_in_every_way(stage)
    wait_until(lambda: stage.status()["pending"] == 0, what="all are refused by PX")
    assert stage.status()["dead"] > 3
    ask_every_verb(stage, ("send", "Logged In", "--user", "u2", "--wait"))
    careless.status = 401
    send_in_every_way(stage)
    wait_until(lambda: stage.status()["state"] == "paused", what="a pause over the key")
    ask_every_verb(stage)
    daemon.send_signal(signal.SIGHUP)
    search_processes(stage)
    daemon.send_signal(signal.SIGABRT)
    assert daemon.wait(10) == -signal.SIGABRT
    stage.write_config(sources)
    daemon = stage.start_daemon(PX_SIDECAR_PX_API_KEY=API_KEY)
    search_processes(stage)
    assert stage.stop(daemon) == 0
    ask_without_daemon(stage)
    assert search_files(stage) > 3


def ask_without_daemon(stage: Stage) -> None:
    (stage.folder / "config.toml").write_text(
        (stage.folder / "config.toml").read_text() + f'\n[frob]\nx = "{API_KEY}"\n'
    )
    done = stage.run("run", "--config", str(stage.folder / "config.toml"))
    assert done.returncode == 78
    assert "'frob'" in done.stderr
    assert_clean("an error of the configuration", done.stderr)
    events = "".join(
        json.dumps({"type": "track", "event": "x", "userId": "u", "writeKey": key}) + "\n" for key in MARKS
    )
    (stage.folder / "sent.ndjson").write_text(events)
    done = stage.run("map", str(stage.folder / "sent.ndjson"), PX_SIDECAR_CONFIG="")
    assert '"requests"' in done.stdout
    assert_clean("px-sidecar map", done.stdout + done.stderr)
