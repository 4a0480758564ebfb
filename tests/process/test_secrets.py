"""Secrets are in no log line, status, metric, error, process list or row.

All inputs and verbs run; then all output and all files are searched.

The server that stands in for PX repeats the request's headers in its answers, as a careless server may.
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
from process_harness import ProcessHarness, wait_until

API_KEY = "marked-api-key-7Q1xZ"
WRITE_KEYS = ("wk_marked_web_3Hf8", "wk_marked_app_9Lk2")
UNKNOWN_KEY = "wk_marked_unknown_5Tz"
MARKS = (API_KEY, *WRITE_KEYS, UNKNOWN_KEY)
WITH_SECRETS = {"config.toml", "key", "sent.ndjson"}  # files that the operator wrote them to


class EchoingServer(http.server.BaseHTTPRequestHandler):
    """Refuse every event with ``server.status``, and repeat the request's headers in the answer."""

    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = json.dumps({"message": f"bad {self.headers.get('X-APTRINSIC-API-KEY')}: {dict(self.headers)}"}).encode()
        self.send_response(self.server.status, f"no {self.headers.get('X-APTRINSIC-API-KEY')}")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_PUT = do_POST

    def log_message(self, *_):
        pass


@pytest.fixture
def echoing_px():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), EchoingServer)
    server.status = 400
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join(5)


def forms(mark: str) -> list[bytes]:
    """A secret in plain text, and as HTTP Basic encodes it."""
    return [mark.encode(), base64.b64encode(f"{mark}:".encode()), base64.b64encode(mark.encode())]


def assert_clean(what: str, data: bytes | str) -> None:
    data = data.encode() if isinstance(data, str) else data
    for mark in MARKS:
        for form in forms(mark):
            at = data.find(form)
            assert at < 0, f"{mark} is in {what}: …{data[max(0, at - 200) : at + 60]!r}"


def search_files(harness: ProcessHarness) -> int:
    searched = 0
    for path in Path(harness.folder).rglob("*"):
        if path.is_file() and path.name not in WITH_SECRETS:
            assert_clean(str(path), path.read_bytes())
            searched += 1
    return searched


def search_processes(harness: ProcessHarness) -> None:
    for process in harness.processes:
        if process.poll() is None:
            assert_clean("the process list", Path(f"/proc/{process.pid}/cmdline").read_bytes())


def basic(key: str) -> dict[str, str]:
    return {"Authorization": f"Basic {base64.b64encode(f'{key}:'.encode()).decode()}"}


def send_with_every_key(harness: ProcessHarness) -> None:
    """Send events with write keys in each field and header that SDKs use, and requests that are refused."""
    call = {"type": "track", "event": "Logged In", "userId": "u1"}
    answers = [harness.post("/v1/track", json.dumps(call).encode(), basic(key)) for key in (*WRITE_KEYS, UNKNOWN_KEY)]
    for key in (*WRITE_KEYS, UNKNOWN_KEY):
        body = json.dumps(
            {"writeKey": key, "batch": [call | {"writeKey": key}, call | {"type": "frob", "writeKey": key}]}
        )
        answers.append(harness.post("/v1/batch", body.encode(), {"Authorization": f"Bearer {key}"}))
        answers.append(harness.post("/v1/batch", body.encode()))
        answers.append(harness.post("/v1/track", json.dumps(call | {"writeKey": key, "userId": ["bad"]}).encode()))
        answers.append(harness.post("/v1/track", f'{{"writeKey":"{key}", broken'.encode()))
        answers.append(harness.post("/v1/track", json.dumps([{"writeKey": key}]).encode(), basic(key)))
    assert {status for status, _, _ in answers} >= {200, 400}
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(str(harness.unix))
        line.settimeout(10)
        for key in (*WRITE_KEYS, UNKNOWN_KEY):
            line.sendall(json.dumps(call | {"writeKey": key}).encode() + b"\n" + f'{{"writeKey":"{key}"\n'.encode())
        line.shutdown(socket.SHUT_WR)
        replies = b"".join(iter(lambda: line.recv(65536), b""))
    for answer in (*(headers_and_body for _, *headers_and_body in answers), replies):
        assert_clean("an answer", repr(answer))


def run_every_verb(harness: ProcessHarness, *more: tuple[str, ...]) -> None:
    config = ("--config", str(harness.folder / "config.toml"))
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
        done = harness.run(
            *verb, *(config if verb[0] in ("config", "check", "status", "run") else ()), PX_SIDECAR_CONFIG=config[1]
        )
        assert "Traceback" not in done.stderr, (verb, done.stderr)
        assert_clean(f"px-sidecar {' '.join(verb)}", done.stdout + done.stderr)
    for page in ("/status", "/metrics", "/health", "/cluster-info"):
        with urllib.request.urlopen(f"http://{harness.http}{page}", timeout=10) as answer:
            assert_clean(page, answer.read())


@pytest.mark.whole
def test_secrets_are_only_in_the_files_of_the_operator(harness: ProcessHarness, echoing_px):
    harness.sandbox_url = f"http://127.0.0.1:{echoing_px.server_address[1]}"
    (harness.folder / "key").write_text(API_KEY)
    (harness.folder / "key").chmod(0o600)
    sources = "".join(f'[[source]]\nwrite_key = "{key}"\nproperty_key = "AP-YYYYYYYYYY-2"\n' for key in WRITE_KEYS)
    harness.write_config(
        sources + '[log]\nlevel = "debug"\n',
        px=f'api_key_file = "{harness.folder / "key"}"',
        deliver="per_second = 190",
    )
    daemon = harness.start_daemon(PX_SIDECAR_PX_API_KEY="")
    send_with_every_key(harness)
    wait_until(lambda: harness.status()["pending"] == 0, what="PX's refusal of all events")
    assert harness.status()["dead"] > 3
    run_every_verb(harness, ("send", "Logged In", "--user", "u2", "--wait"))
    echoing_px.status = 401
    send_with_every_key(harness)
    wait_until(lambda: harness.status()["state"] == "paused", what="the pause for an invalid key")
    run_every_verb(harness)
    daemon.send_signal(signal.SIGHUP)
    search_processes(harness)
    daemon.send_signal(signal.SIGABRT)
    assert daemon.wait(10) == -signal.SIGABRT
    harness.write_config(sources)
    daemon = harness.start_daemon(PX_SIDECAR_PX_API_KEY=API_KEY)
    search_processes(harness)
    assert harness.stop(daemon) == 0
    run_without_daemon(harness)
    assert search_files(harness) > 3


def run_without_daemon(harness: ProcessHarness) -> None:
    (harness.folder / "config.toml").write_text(
        (harness.folder / "config.toml").read_text() + f'\n[frob]\nx = "{API_KEY}"\n'
    )
    done = harness.run("run", "--config", str(harness.folder / "config.toml"))
    assert done.returncode == 78
    assert "'frob'" in done.stderr
    assert_clean("an error of the configuration", done.stderr)
    events = "".join(
        json.dumps({"type": "track", "event": "x", "userId": "u", "writeKey": key}) + "\n" for key in MARKS
    )
    (harness.folder / "sent.ndjson").write_text(events)
    done = harness.run("map", str(harness.folder / "sent.ndjson"), PX_SIDECAR_CONFIG="")
    assert '"requests"' in done.stdout
    assert_clean("px-sidecar map", done.stdout + done.stderr)
