"""``px-sidecar sandbox`` as a process: greeting, report, options, errors."""

import json
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

EVENT = b'{"identifyId":"u","propertyKey":"AP-X-2","userType":"USER","eventName":"Feature Used"}'


class SandboxProcess:
    """A sandbox process, its greeting and its URL."""

    def __init__(self, *options: str) -> None:
        command = [sys.executable, "-m", "sidecar", "sandbox", "--port", "0", *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.greeting = [self.process.stderr.readline() for _ in range(5)]
        self.url = re.search(r"http://\S+\d", self.greeting[0])[0]

    def post(self, key: str = "sandbox-key") -> int:
        headers = {"X-APTRINSIC-API-KEY": key}
        request = urllib.request.Request(f"{self.url}/v1/events/custom", EVENT, headers, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            error.close()
            return error.code

    def end(self, number: int) -> tuple[int, str]:
        self.process.send_signal(number)
        out, _ = self.process.communicate(timeout=20)
        return self.process.returncode, out


@pytest.fixture
def start():
    running = []

    def make(*options: str) -> SandboxProcess:
        running.append(SandboxProcess(*options))
        return running[-1]

    yield make
    for box in running:
        if box.process.poll() is None:
            box.process.kill()
            box.process.communicate()


def test_it_prints_how_to_use_it_and_a_json_report_at_the_end(start):
    box = start("--json")
    text = "".join(box.greeting)
    assert f"PX_SIDECAR_PX_BASE_URL={box.url}" in text
    assert "PX_SIDECAR_PX_API_KEY=sandbox-key" in text
    assert "sandbox-read-only" in text
    assert [box.post(), box.post("sandbox-read-only"), box.post("other")] == [201, 403, 401]
    code, out = box.end(signal.SIGTERM)
    report = json.loads(out)
    assert (code, report["requests"], report["stored"]) == (0, 3, 1)


@pytest.mark.parametrize(("host", "own"), [("0.0.0.0", "127.0.0.1"), ("::", "[::1]")])
def test_on_all_addresses_it_names_one_that_a_daemon_may_use(start, host, own):
    """A daemon refuses http://0.0.0.0 in px.base_url: only a loopback host may get the key without TLS."""
    box = start("--host", host)
    assert f"PX_SIDECAR_PX_BASE_URL=http://{own}:{box.url.rpartition(':')[2]} " in "".join(box.greeting)


def test_ctrl_c_prints_a_readable_report(start):
    box = start("--per-second", "1")
    assert [box.post(), box.post()] == [201, 429]
    code, out = box.end(signal.SIGINT)
    assert code == 0
    assert re.search(r"requests +2  \(201: 1, 429: 1\)", out)
    assert re.search(r"largest second +2 requests", out)


def test_options_become_faults(start):
    box = start(
        "--error-rate", "1", "--error-status", "500", "--outage", "1h-2h", "--fail-user", "x", "--latency", "1ms"
    )
    with urllib.request.urlopen(f"{box.url}/sandbox/faults", timeout=10) as answer:
        faults = json.load(answer)
    assert (faults["error_rate"], faults["fail_users"], faults["latency_s"]) == (1.0, ["x"], 0.001)
    assert faults["outages"] == [{"from_s": 3600.0, "to_s": 7200.0, "how": "refuse"}]
    assert box.post() == 500
    box.end(signal.SIGTERM)


def test_a_state_file_survives_a_kill(start, tmp_path):
    state = str(tmp_path / "log")
    first = start("--state", state)
    assert first.post() == 201
    first.end(signal.SIGKILL)
    second = start("--state", state, "--json")
    assert second.post() == 201
    _, out = second.end(signal.SIGTERM)
    report = json.loads(out)
    assert (report["stored"], report["duplicates"]) == (2, 1)


def run(*options: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "sidecar", "sandbox", *options], capture_output=True, text=True, timeout=30, check=False
    )


def test_an_occupied_port_is_reported_in_one_line():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        ended = run("--port", port)
    assert ended.returncode == 1
    assert len(ended.stderr.strip().splitlines()) == 1
    assert f"127.0.0.1:{port}" in ended.stderr
    assert "--port" in ended.stderr


def test_an_unusable_state_file_is_reported_with_its_path(tmp_path):
    ended = run("--port", "0", "--state", str(tmp_path / "missing" / "log"))
    assert ended.returncode == 1
    assert str(tmp_path / "missing" / "log") in ended.stderr


@pytest.mark.parametrize("options", [["--outage", "5s"], ["--outage", "5s-2s"], ["--latency", "soon"], ["--hang", "2"]])
def test_invalid_options_exit_with_2(options):
    ended = run(*options)
    assert ended.returncode == 2
    assert options[0] in ended.stderr
